"""Workers that die, hang or run out of memory: each costs its case attempts, and the run nothing."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.batch_bundle import DEADLY_HU, HANGING_HU, HUNGRY_HU, SLOW_HU, make_moody_bundle, save_case
from tests.batch_runs import start, tree, wait_until
from tests.conftest import REPOSITORY
from voxelgate.core.errors import EngineError, InputError, OutputError, UsageError
from voxelgate.segmentation.batch.case_table import INPUTS_NAME, TABLE_NAME
from voxelgate.segmentation.batch.engines import ExecutorEngine
from voxelgate.segmentation.batch.ledger import Ledger
from voxelgate.segmentation.batch.run_batch import cases_in, segment, segment_cases, setup_of
from voxelgate.segmentation.batch.runner import run_cases
from voxelgate.segmentation.batch.status import status
from voxelgate.segmentation.batch.worker_process import WorkerProcess
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.report import CaseStatus

INTERRUPTED = 130


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_moody_bundle(tmp_path_factory.mktemp("bundles") / "moody")


def refuse(text: str) -> None:
    raise InputError(text)


def fault() -> None:
    raise LookupError("Doe^Jane")


@pytest.mark.slow
def test_a_worker_hands_back_results_and_our_errors_and_only_the_kind_of_others() -> None:
    with WorkerProcess() as worker:
        results = [worker.submit(pow, 2, exponent) for exponent in range(5)]
        refused, failed = worker.submit(refuse, "a.nii.gz: no."), worker.submit(fault)

        assert [future.result() for future in results] == [1, 2, 4, 8, 16]
        with pytest.raises(InputError, match=r"^a.nii.gz: no.$"):
            refused.result()
        with pytest.raises(RuntimeError, match=r"^ended with LookupError$"):
            failed.result()


def test_a_worker_that_is_killed_breaks_what_it_had_and_says_how() -> None:
    worker = WorkerProcess()
    worker.submit(os.getpid).result()
    sleeping = worker.submit(time.sleep, 3600)

    worker.kill()

    with pytest.raises(BrokenExecutor, match="was killed by SIGKILL"):
        sleeping.result(30)
    with pytest.raises(BrokenExecutor):
        worker.submit(os.getpid)


def test_a_call_for_a_worker_that_stands_still_is_not_waited_for() -> None:
    worker = WorkerProcess()
    os.kill(worker.submit(os.getpid).result(), signal.SIGSTOP)

    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(worker.submit, len, bytes(2**24))
        try:
            future = sending.result(30)
        finally:
            worker.kill()

    with pytest.raises(BrokenExecutor, match="was killed by SIGKILL"):
        future.result(30)


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path, bundle: Path) -> None:
    save_case(tmp_path / "in" / "a.nii.gz", HANGING_HU)
    command = start(tmp_path / "log", "segment", bundle, tmp_path / "in", "--out", tmp_path / "out")
    pid = worker_of(tmp_path / "out")

    command.process.kill()
    command.process.join()

    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    counts = status(tmp_path / "out").counts
    assert (counts["running"], counts["waiting"]) == (0, 1)


def test_a_worker_that_dies_and_memory_that_runs_out_cost_their_cases_and_no_other(
    tmp_path: Path, bundle: Path
) -> None:
    for name in "abcd":
        save_case(tmp_path / "in" / f"{name}.nii.gz")
    save_case(tmp_path / "in" / "b_deadly.nii.gz", DEADLY_HU)
    save_case(tmp_path / "in" / "c_hungry.nii.gz", HUNGRY_HU, size=64)

    found = segment(bundle, tmp_path / "in", tmp_path / "out", attempts=2, max_memory_gib=2, forecast=False)
    reports = {report.case_id: report for report in found}

    deadly, hungry = reports.pop("b_deadly"), reports.pop("c_hungry")
    assert deadly.status is CaseStatus.FAILED
    assert "its worker was killed by SIGKILL in attempt 2 of 2" in str(deadly.findings[0])
    assert hungry.status is CaseStatus.DONE
    assert "windows of 32 x 32 x 32 voxels" in str(hungry.findings[0])
    assert {report.status for report in reports.values()} == {CaseStatus.DONE}
    assert all(not report.findings for report in reports.values())
    assert status(tmp_path / "out").bad[0].case_id == "b_deadly"


@pytest.mark.slow
def test_a_case_that_hangs_costs_its_time_and_the_one_beside_it_is_done(tmp_path: Path, bundle: Path) -> None:
    save_case(tmp_path / "in" / "a.nii.gz", HANGING_HU)
    save_case(tmp_path / "in" / "b.nii.gz")

    found = segment(bundle, tmp_path / "in", tmp_path / "out", timeout_s=15, attempts=1)
    reports = {report.case_id: report for report in found}

    assert reports["a"].status is CaseStatus.FAILED
    assert "took longer than 15 s in attempt 1 of 1" in str(reports["a"].findings[0])
    assert reports["b"].status is CaseStatus.DONE


@pytest.mark.slow
def test_a_case_whose_neighbour_became_a_pipe_is_done(tmp_path: Path, bundle: Path) -> None:
    save_case(tmp_path / "in" / "a.nii.gz", SLOW_HU)
    save_case(tmp_path / "in" / "b.nii.gz")
    found = segment(bundle, tmp_path / "in", tmp_path / "out", timeout_s=15, attempts=1)
    (tmp_path / "in" / "b.nii.gz").unlink()
    os.mkfifo(tmp_path / "in" / "b.nii.gz")

    reports = {report.case_id: report for report in found}

    assert reports["a"].status is CaseStatus.DONE
    assert reports["b"].status is CaseStatus.REJECTED


def test_a_run_whose_workers_cannot_even_start_ends_and_its_cases_wait(tmp_path: Path, bundle: Path) -> None:
    for number in range(8):
        save_case(tmp_path / "in" / f"{number}.nii.gz")
    found = segment(bundle, tmp_path / "in", tmp_path / "out", attempts=1, max_memory_gib=0.001, forecast=False)

    with pytest.raises(EngineError, match="no worker has finished a case, and 5 cases in a row were given up"):
        list(found)

    counts = status(tmp_path / "out").counts
    assert (counts["failed"], counts["waiting"]) == (4, 4)


@pytest.mark.slow
def test_many_cases_that_kill_their_workers_end_no_run_in_which_others_were_done(tmp_path: Path, bundle: Path) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    for number in range(5):
        save_case(tmp_path / "in" / f"deadly{number}.nii.gz", DEADLY_HU)
    save_case(tmp_path / "in" / "z.nii.gz")

    for _ in range(2):  # what is done already counts too
        reports = list(segment(bundle, tmp_path / "in", tmp_path / "out", attempts=1))

        assert [report.status for report in reports].count(CaseStatus.DONE) == 2


def test_an_executor_that_broke_for_good_fails_its_cases_in_words(tmp_path: Path, bundle: Path) -> None:
    for name in ("a_deadly", "b"):
        save_case(tmp_path / "in" / f"{name}.nii.gz", DEADLY_HU)
    setup = setup_of(bundle, tmp_path / "out", Options(attempts=2))
    (tmp_path / "out").mkdir()
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver"))

    with closing(Ledger(setup.out_dir)) as ledger:
        cases = iter([cases_in([tmp_path / "in"], setup).cases])
        reports = list(run_cases(cases, setup, ExecutorEngine(pool), ledger))

    assert [report.status for report in reports] == [CaseStatus.FAILED] * 2
    assert all("its worker " in str(report.findings[0]) for report in reports)


@pytest.mark.slow
@pytest.mark.parametrize("at_a_time", [1, 2])
def test_a_worker_has_as_many_cases_at_a_time_as_it_may_and_the_results_are_equal(
    tmp_path: Path, bundle: Path, at_a_time: int
) -> None:
    for number in range(4):
        save_case(tmp_path / "in" / f"{number}.nii.gz", SLOW_HU, seed=number)
    list(segment(bundle, tmp_path / "in", tmp_path / "serial", workers="serial"))
    setup = replace(setup_of(bundle, tmp_path / "out", Options()), cases_at_a_time=at_a_time)

    most = 0
    for _ in segment_cases([cases_in([tmp_path / "in"], setup).cases], setup):
        most = max(most, status(tmp_path / "out").counts["running"] + 1)  # and the one that has just ended

    assert most == at_a_time
    assert tree(tmp_path / "out") == tree(tmp_path / "serial")


def test_every_engine_of_this_machine_gives_the_same_tree(tmp_path: Path, bundle: Path) -> None:
    for number in range(6):
        save_case(tmp_path / "in" / f"{number}.nii.gz", seed=number)
    for engine in ("serial", "processes:2"):
        list(segment(bundle, tmp_path / "in", tmp_path / engine, workers=engine))

    assert tree(tmp_path / "serial") == tree(tmp_path / "processes:2")
    assert len(tree(tmp_path / "serial")) == 6 + len({TABLE_NAME, INPUTS_NAME})


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_the_same_command_goes_on(tmp_path: Path, bundle: Path) -> None:
    for number in range(5):
        save_case(tmp_path / "in" / f"{number}.nii.gz", SLOW_HU, seed=number)
    save_case(tmp_path / "in" / "hanging.nii.gz", HANGING_HU)
    arguments = ("segment", bundle, tmp_path / "in", "--out", tmp_path / "out", "--no-previews")
    command = start(tmp_path / "log", *arguments)
    wait_until((tmp_path / "out" / "4.nii.gz").exists)

    os.kill(command.process.pid or 0, signal.SIGINT)

    assert command.end(60) == INTERRUPTED
    assert "Interrupted; the same command goes on" in command.printed
    assert "Traceback" not in command.printed
    found = status(tmp_path / "out")
    assert (found.counts["done"], found.counts["waiting"], found.is_running) == (5, 1, False)
    assert not list((tmp_path / "out").glob(".voxelgate-*"))
    before = tree(tmp_path / "out")
    save_case(tmp_path / "in" / "hanging.nii.gz")
    assert start(tmp_path / "log", *arguments).end() == 0
    assert tree(tmp_path / "out").items() >= {name: before[name] for name in before if name != "cases.csv"}.items()


def test_ctrl_c_pressed_again_and_again_ends_like_once(tmp_path: Path, bundle: Path) -> None:
    save_case(tmp_path / "in" / "a.nii.gz", HANGING_HU)
    arguments = ("segment", bundle, tmp_path / "in", "--out", tmp_path / "out")
    command = start(tmp_path / "log", *arguments)
    worker_of(tmp_path / "out")

    while command.process.is_alive():
        with suppress(ProcessLookupError):  # it may have ended just now
            os.kill(command.process.pid or 0, signal.SIGINT)
        time.sleep(0.01)

    assert command.end(60) == INTERRUPTED
    assert "Traceback" not in command.printed
    save_case(tmp_path / "in" / "a.nii.gz")
    assert start(tmp_path / "log", *arguments).end() == 0


def test_status_tells_of_a_run_that_is_on(tmp_path: Path, bundle: Path) -> None:
    save_case(tmp_path / "in" / "a.nii.gz", HANGING_HU)
    command = start(tmp_path / "log", "segment", bundle, tmp_path / "in", "--out", tmp_path / "out")
    pid = worker_of(tmp_path / "out")

    found = status(tmp_path / "out")
    second = start(tmp_path / "second", "segment", bundle, tmp_path / "in", "--out", tmp_path / "out")

    assert found.is_running
    assert (found.running[0].case_id, found.running[0].attempt) == ("a", 1)
    assert found.running[0].worker.endswith(f":{pid}")
    assert second.end() == 1
    assert "another run works in this folder" in second.printed
    command.process.kill()
    command.process.join()
    assert not status(tmp_path / "out").is_running


def test_a_memory_limit_goes_with_processes_only(tmp_path: Path, bundle: Path) -> None:
    setup = setup_of(bundle, tmp_path / "out", Options(workers="serial", max_memory_gib=1))

    with pytest.raises(UsageError, match="--max-memory goes with processes only"):
        list(segment_cases([], setup))


def worker_of(out: Path) -> int:
    """Return the number of the process that has the only case, once it has it."""
    wait_until(lambda: (out / "ledger.sqlite").exists() and bool(running(out)))
    return int(running(out)[0].rpartition(":")[2])


def running(out: Path) -> list[str]:
    try:
        return [case.worker for case in status(out).running]
    except OutputError:  # the tables are not there yet
        return []


@pytest.mark.slow
def test_a_script_without_a_guard_is_run_once(tmp_path: Path, bundle: Path) -> None:
    save_case(tmp_path / "a.nii.gz")
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.append({str(REPOSITORY)!r}); import voxelgate as vg\n"
        f"print([r.status.value for r in vg.segment({str(bundle)!r}, 'a.nii.gz', 'out', workers='processes:1')])\n",
        encoding="utf-8",
    )

    plain = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert plain.stdout.strip() == "['done']"
