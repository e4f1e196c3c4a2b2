"""Every command that the pages print is run here, in the order of its page, or names the test that runs it."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import REPOSITORY, Run
from tests.imports.nnunet_files import write_data_set
from tests.imports.totalseg_files import PARTS, ROUGH, write_weights
from tests.imports.zoo_bundles import write_zoo_bundle
from tests.planted import ct_series
from voxelgate.apps.demo.cohort import make_cohort
from voxelgate.images.pictures import write_picture

PAGES = (
    "README.md",
    "docs/getting-started.md",
    *sorted(f"docs/tutorials/{one.name}" for one in (REPOSITORY / "docs" / "tutorials").glob("*.md")),
)
BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<kind>sh|python)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
TESTED = re.compile(r"tested by: (?P<file>tests/\S+\.py)::(?P<name>\w+)")
SHORTENED = re.compile(r'shortened: "(?P<start>[^"]+)" (?P<options>.+)')
HIPPOCAMPUS_MM = (35, 50, 36)
CASES = 5
SLICES = 24
"""Of the CT series; the head and neck bundle wants 22 at least."""
REFUSED = re.compile(r': refused: (bundle|missing|volume): |"verdict": "refuse"')
"""What is said of results here: scans are noise, bundles trained for seconds, so that only `--require any` writes."""
PORT = "8786"
"""The port of the cluster in the tutorial; a free one takes its place here."""


class Block(NamedTuple):
    """A fenced block, and what the comment before it says."""

    kind: str
    text: str
    note: str

    @property
    def commands(self) -> list[str]:
        """Return the lines that are commands, without comments."""
        lines = (re.sub(r"\s+#\s.*$", "", line) for line in self.text.splitlines())
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def blocks(page: str) -> list[Block]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return [Block(one["kind"], one["text"], one["note"] or "") for one in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_here_names_a_test_that_exists(page: str) -> None:
    for block in blocks(page):
        tested = TESTED.fullmatch(block.note)
        assert tested or SHORTENED.fullmatch(block.note) or not block.note, block.note
        if tested:
            source = (REPOSITORY / tested["file"]).read_text(encoding="utf-8")
            assert f"def {tested['name']}(" in source


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all that the pages name: scans, a DICOM study, true labels, and data to train on."""
    folder = tmp_path_factory.mktemp("places")
    rng = np.random.default_rng(0)
    for name in ("scan.nii.gz", "scans/one.nii.gz", "scans/two.nii.gz", "folder_with_images/one.nii.gz"):
        _save(folder / name, rng.normal(500, 90, HIPPOCAMPUS_MM).astype(np.int16))
    for name in ("scan", "one", "two"):
        _save(folder / "true_labels" / f"{name}.nii.gz", rng.integers(0, 3, HIPPOCAMPUS_MM).astype(np.uint8))
    (folder / "studies").mkdir()
    for index, dataset in enumerate(ct_series(SLICES)):
        dataset.save_as(folder / "studies" / f"{index:02}", enforce_file_format=True)
    cohort = make_cohort(folder / "my_data", CASES, rng)
    (folder / "new_scans").mkdir()
    shutil.copy(cohort[0].image, folder / "new_scans")
    _save_models(folder)
    for index in range(CASES):
        _save_picture(folder / "my_pictures", f"{index}.png", rng)
    return folder


def _save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def _save_models(folder: Path) -> None:
    """Write models of other programs, with random weights, and scans for them."""
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        _save(folder / "ct_scans" / f"{name}.nii.gz", rng.normal(100, 60, (30, 26, 22)).astype(np.int16))
    write_data_set(folder / "nnUNet_results" / "Dataset001_Blobs")
    write_weights(folder / "totalsegmentator_weights", PARTS | ROUGH)
    write_zoo_bundle(folder / "blobs_of_monai")


def _save_picture(folder: Path, name: str, rng: np.random.Generator) -> None:
    for kind, most in (("images", 255), ("masks", 2)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        write_picture(folder / kind / name, rng.integers(0, most, (1, 40, 48, 1)).astype(np.uint8))


@pytest.fixture
def background() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Collect programs that a page starts with `&`, and end them with the page."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for program in reversed(started):
        program.terminate()
        program.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_does_what_the_page_says(
    page: str,
    places: Path,
    run: Run,
    background: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    shutil.copytree(places, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("VOXELGATE_BUNDLES", str(tmp_path / "kept"))
    port = _free_port()
    names: dict[str, object] = {}
    for block in blocks(page):
        if TESTED.fullmatch(block.note):
            continue
        if block.kind == "python":
            exec(compile(block.text, page, "exec"), names)  # noqa: S102 - our own pages
            continue
        for command in block.commands:
            _do(_lengthened(command, block.note).replace(PORT, port), run, background)


def _lengthened(command: str, note: str) -> str:
    shortened = SHORTENED.fullmatch(note)
    return f"{command} {shortened['options']}" if shortened and command.startswith(shortened["start"]) else command


def _do(command: str, run: Run, background: list[subprocess.Popen[bytes]]) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        return
    if words[0] == "voxelgate":
        result = run(*words[1:], *(("--require", "any") if words[1] == "segment" else ()))
        is_refused = words[1] == "segment" and REFUSED.search(result.stdout + result.stderr) is not None
        assert result.returncode == (1 if is_refused else 0), f"{command}\n{result.stdout}\n{result.stderr}"
        return
    assert words[0] == "dask", f"no test knows how to run {command!r}"
    assert words.pop() == "&"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    background.append(
        subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_" + words[1], *words[2:]], env=environment)
    )
    time.sleep(3)


def _free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])
