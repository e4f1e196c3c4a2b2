"""Whatever is killed whenever, the same command ends with the tree of an undisturbed run."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.batch_bundle import HANGING_HU, HUNGRY_HU, make_moody_bundle, save_case
from tests.batch_runs import Command, start, start_to_die, tree
from voxelgate.core.errors import OutputError
from voxelgate.segmentation.batch.status import status

GOOD_CASES = 30
KILLS = 20
TIMEOUT_S = 20
"""Far above what any case but the hanging one takes, on a busy machine too."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_moody_bundle(tmp_path_factory.mktemp("bundles") / "moody")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(GOOD_CASES):
        save_case(folder / f"patient{number}" / "scan.nii.gz", seed=number)
    whole = save_case(folder / "good.nii.gz").read_bytes()
    (folder / "corrupt_text.nii.gz").write_bytes(b"no image")
    (folder / "corrupt_short.nii.gz").write_bytes(whole[:-1000])
    (folder / "corrupt_bytes.nii.gz").write_bytes(whole[:3000] + bytes(64) + whole[3064:])
    save_case(folder / "hanging.nii.gz", HANGING_HU)
    save_case(folder / "hungry.nii.gz", HUNGRY_HU, size=64)
    return folder


def segment(bundle: Path, inputs: Path, out: Path) -> Command:
    options = ("--engine", "processes:2", "--timeout", TIMEOUT_S, "--attempts", 2, "--max-memory", 2, "--no-forecast")
    return start(out.with_suffix(".log"), "segment", bundle, inputs, "--out", out, *options)


def kill_coordinator(command: Command) -> bool:
    command.process.kill()
    command.process.join()
    return True


def kill_worker(command: Command, out: Path) -> bool:
    """Kill a worker as soon as there is one; return whether there was one before the run ended."""
    while command.process.is_alive():
        with suppress(OutputError, ProcessLookupError):  # the ledger or the process may not be there yet, or any more
            for case in status(out).running[:1]:
                os.kill(int(case.worker.rpartition(":")[2]), signal.SIGKILL)
                return True
    return False


def killed_again_and_again(bundle: Path, inputs: Path, out: Path, rng: random.Random) -> Iterator[bool]:
    """Yield after each moment whether something was killed; no case loses two workers within one run."""
    command = segment(bundle, inputs, out)
    for number in range(KILLS):
        time.sleep(rng.uniform(0.0, 1.5))
        if not command.process.is_alive():
            command = segment(bundle, inputs, out)
        yield kill_coordinator(command) if number % 2 else kill_worker(command, out)
    kill_coordinator(command)


def label_maps_in(out: Path) -> Iterator[Path]:
    """Yield what has a final name, while a worker may still make and remove folders."""
    for folder, below, names in os.walk(out):  # passes over what is gone
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if name.endswith(".nii.gz") and not name.startswith("."))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_at_twenty_moments_ends_with_the_tree_of_an_undisturbed_run(
    tmp_path: Path, bundle: Path, inputs: Path, seed: int
) -> None:
    undisturbed = segment(bundle, inputs, tmp_path / "undisturbed")
    assert undisturbed.end(300) == 1, undisturbed.printed
    wanted = tree(tmp_path / "undisturbed")
    out, written, killed = tmp_path / "out", {}, 0

    for was_killed in killed_again_and_again(bundle, inputs, out, random.Random(seed)):  # noqa: S311 - no secret
        killed += was_killed
        for path in label_maps_in(out):
            assert path.read_bytes() == wanted[path.relative_to(out).as_posix()]
            written.setdefault(path, path.stat().st_ino)
    last = segment(bundle, inputs, out)

    assert killed >= KILLS - 2
    assert last.end(300) == 1, last.printed
    assert tree(out) == wanted
    assert {path: path.stat().st_ino for path in written} == written, "a case was done twice"
    bad = {case.case_id: case.reason for case in status(out).bad}
    assert bad.keys() == {"corrupt_text", "corrupt_short", "corrupt_bytes", "hanging"}
    assert f"took longer than {TIMEOUT_S} s" in bad["hanging"]
    assert all("corrupt" in bad[name] and "export it again" in bad[name] for name in bad if name != "hanging")
    assert f"{GOOD_CASES + 2} of {GOOD_CASES + 6} volumes" in last.printed
    assert b"hungry: memory ran out, so it was done with windows of 32 x 32 x 32 voxels on cpu." in wanted["cases.csv"]


@pytest.mark.slow
def test_a_run_that_dies_before_any_change_of_a_name_goes_on_to_the_same_tree(tmp_path: Path, bundle: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    options = ("segment", bundle, source, "--engine", "serial")
    older = [save_case(source / f"{name}.nii.gz", seed=seed).read_bytes() for seed, name in enumerate("ab")]
    save_case(source / "a.nii.gz", seed=7)
    newer = [(source / f"{name}.nii.gz").read_bytes() for name in "ab"]
    assert start(tmp_path / "log", *options, "--out", tmp_path / "wanted").end() == 0
    wanted = tree(tmp_path / "wanted")

    for operation in range(1, 100):
        shutil.rmtree(out, ignore_errors=True)
        give(source, older)
        assert start(tmp_path / "log", *options, "--out", out).end() == 0
        give(source, newer)
        died = start_to_die(tmp_path / "log", out, operation, *options, "--out", out).end()
        last = start(tmp_path / "log", *options, "--out", out)
        assert last.end() == 0, last.printed
        assert tree(out) == wanted, f"after dying before change {operation}"
        if died == 0:
            break

    assert operation > 10


def give(source: Path, contents: list[bytes]) -> None:
    for name, content in zip("ab", contents, strict=True):
        (source / f"{name}.nii.gz").write_bytes(content)
