"""What `pip install voxelgate-*.whl` gives: a program with its models, in any folder, whatever lies about there."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

NAME = "hippocampus_mri_segmentation"
HOSTILE = ("pipeline.py", "core.py", "images.py", "networks.py", "transforms.py", "bundles.py")
"""Files of the user's that have names of our own, of today or of earlier."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it into a new environment, which borrows all other packages; return its `bin`."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("voxelgate-*.whl")
    home = folder / "environment"
    venv.create(home, symlinks=True, with_pip=False)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (own,) = home.glob("lib/python*/site-packages")
    (own / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return home / "bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a scan in it, and with what breaks programs that import from the current folder."""
    for name in HOSTILE:
        (tmp_path / name).write_text("raise SystemExit('a file of the user was imported')\n", encoding="utf-8")
    (tmp_path / "voxelgate").mkdir()
    voxels = np.random.default_rng(0).normal(100, 20, (33, 41, 35)).astype(np.float32)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.1, 1.2, 1])), tmp_path / "scans" / "scan.nii.gz")
    return tmp_path


def end(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without the checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def run(folder: Path, *command: object) -> str:
    """Run a command that must succeed; return what it printed."""
    done = end(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_of_the_wheel_is_imported_and_not_the_checkout(installed: Path, folder: Path) -> None:
    where = Path(run(folder, installed / "python", "-c", "import voxelgate; print(voxelgate.__file__)").strip())
    assert where.is_relative_to(installed.parent)
    assert (where.parent / "py.typed").is_file()


def test_the_wheel_holds_every_file_of_the_shipped_bundles(installed: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "bundles"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    (package,) = installed.parent.glob("lib/python*/site-packages/voxelgate")
    for name in tracked.stdout.splitlines():
        assert (package / name).read_bytes() == (REPOSITORY / name).read_bytes(), name


def test_the_program_says_its_version_and_its_bundles(installed: Path, folder: Path) -> None:
    assert run(folder, installed / "voxelgate", "--version").startswith("voxelgate ")
    assert f"{NAME} " in run(folder, installed / "voxelgate", "bundle", "list")


@pytest.mark.parametrize("program", [("voxelgate",), ("python", "-m", "voxelgate")], ids=["script", "module"])
def test_a_scan_is_segmented_by_the_name_of_a_bundle(installed: Path, folder: Path, program: tuple[str, ...]) -> None:
    command, *rest = program
    asked = ("segment", NAME, "scans/scan.nii.gz", "--out", "results", "--require", "any")
    done = end(folder, installed / command, *rest, *asked)
    assert "1 of 1 volumes segmented into results; 1 of the results is refused" in done.stdout, done.stderr
    written, scan = (nib.load(folder / place / "scan.nii.gz") for place in ("results", "scans"))
    assert written.shape == scan.shape
    np.testing.assert_array_equal(written.affine, scan.affine)


def test_python_opens_a_bundle_by_its_name(installed: Path, folder: Path) -> None:
    program = f"import voxelgate; print(voxelgate.open_bundle({NAME!r}).name)"
    assert run(folder, installed / "python", "-c", program).split() == [NAME]


def test_a_bundle_of_the_package_is_not_written_into(installed: Path, folder: Path) -> None:
    refused = end(folder, installed / "voxelgate", "bundle", "seal", NAME)
    assert refused.returncode == 2
    assert f"UsageError: {NAME} came with the program and is only read" in refused.stderr


@pytest.mark.parametrize("name", sorted(path.name for path in (REPOSITORY / "bundles").iterdir()))
def test_plain_monai_runs_a_shipped_bundle_from_any_folder(installed: Path, folder: Path, name: str) -> None:
    (package,) = installed.parent.glob("lib/python*/site-packages/voxelgate")
    root = package / "bundles" / name
    configs = ("--config_file", root / "configs" / "inference.json", "--bundle_root", root)
    places = ("--dataset_dir", folder / "scans", "--output_dir", folder / "labels")
    run(folder, installed / "python", "-P", "-m", "monai.bundle", "run", *configs, *places)
    assert [path.name for path in (folder / "labels").rglob("*.nii.gz")] == ["scan_seg.nii.gz"]
