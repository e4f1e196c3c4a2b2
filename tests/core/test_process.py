"""Processes that start run nothing but what is installed, whatever lies in the current folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import voxelgate
from tests.batch_bundle import make_moody_bundle, save_case
from voxelgate.core.process import installed_path, safe_environment
from voxelgate.core.workers import ProcessPool
from voxelgate.segmentation.batch.worker_process import WorkerProcess

ROOTS = [str(Path(voxelgate.__file__).parents[1]), str(Path(__file__).parents[2])]

PLANTED = ("nibabel", "random", "signal", "threading", "selectors", "_posixshmem", "pydicom", "voxelgate")
"""Names of modules that Python, or what is installed, imports when a process starts."""

POOL = "from voxelgate.core.workers import ProcessPool as Workers"
WORKER = "from voxelgate.segmentation.batch.worker_process import WorkerProcess as Workers"


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """A folder in which somebody has put modules, each of which leaves a trace when it is imported."""
    folder = tmp_path / "inbox"
    (folder / "dl").mkdir(parents=True)
    for name in PLANTED:
        (folder / f"{name}.py").write_text("open('IMPORTED', 'a').write(__name__ + chr(10))\n", encoding="utf-8")
    return folder


def run_python(folder: Path, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(ROOTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def path_of_process() -> list[str]:
    return list(sys.path)


@pytest.mark.slow
@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("kind", [WorkerProcess, ProcessPool], ids=["forked", "spawned"])
def test_no_process_looks_for_modules_in_the_current_folder(
    inbox: Path, monkeypatch: pytest.MonkeyPatch, kind: type[WorkerProcess | ProcessPool], is_named: bool
) -> None:
    entry = str(inbox) if is_named else ""
    monkeypatch.chdir(inbox)
    monkeypatch.setattr(sys, "path", [*sys.path, entry])
    workers = kind(1)
    try:
        found = workers.submit(path_of_process).result()
    finally:
        workers.shutdown()

    assert {"", str(inbox)}.isdisjoint(found)
    assert sys.path[-1] == entry


@pytest.mark.slow
@pytest.mark.parametrize("workers", [POOL, WORKER], ids=["spawned", "forked"])
def test_what_a_program_starts_imports_nothing_from_the_current_folder(inbox: Path, workers: str) -> None:
    start = f"import os; {workers}; os.chdir({str(inbox)!r})"  # whose modules the program has no need of any more
    use = "workers = Workers(1); print(workers.submit(sum, [1, 2]).result()); workers.shutdown()"

    assert run_python(inbox.parent, "-c", f"{start}; {use}") == "3\n"
    assert not (inbox / "IMPORTED").exists()


@pytest.mark.slow
def test_the_command_imports_nothing_from_the_current_folder(inbox: Path) -> None:
    bundle, image = make_moody_bundle(inbox.parent / "moody"), save_case(inbox / "a.nii.gz")

    run_python(inbox, "-P", "-m", "voxelgate", "segment", bundle, image, "--out", inbox.parent / "out")

    assert (inbox.parent / "out" / "a.nii.gz").exists()
    assert not (inbox / "IMPORTED").exists()


def test_a_folder_that_is_named_for_modules_stays_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(tmp_path) not in installed_path()

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert str(tmp_path) in installed_path()


@pytest.mark.parametrize("named", ["/a:", ":/a", "/a::", "/a"])
def test_an_empty_name_in_pythonpath_which_is_the_current_folder_is_not_handed_on(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", named)

    assert safe_environment() == {"PYTHONSAFEPATH": "1", "PYTHONPATH": "/a"}
