"""The workers of a Dask cluster, each a process of its own: they give the same tree, may die, and may join late."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch_bundle import DEADLY_HU, HANGING_HU, SLOW_HU, make_moody_bundle, save_case
from tests.batch_runs import tree
from voxelgate.core.errors import EngineError, UsageError
from voxelgate.segmentation.batch.engines import DaskEngine
from voxelgate.segmentation.batch.run_batch import segment, segment_cases, setup_of
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.report import CaseStatus

dask = pytest.importorskip("dask", reason="needs the extra dask")
distributed = pytest.importorskip("distributed", reason="needs the extra dask")

CASES = 12


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_moody_bundle(tmp_path_factory.mktemp("bundles") / "moody")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(CASES):
        save_case(folder / f"{number:02}.nii.gz", SLOW_HU, seed=number)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """Start a scheduler and two workers, each with a nanny that may take its time on a busy machine."""
    dask.config.set({"distributed.deploy.lost-worker-timeout": "300s"})
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=None, host="127.0.0.1", preload="tests.batch_bundle"
    ) as started:
        yield started


def name_of(cluster: object) -> str:
    return f"dask:{cluster.scheduler_address}"


@pytest.mark.slow
def test_a_cluster_gives_the_tree_of_a_serial_run_although_a_worker_dies_and_another_joins_late(
    tmp_path: Path, bundle: Path, inputs: Path, cluster: object
) -> None:
    list(segment(bundle, inputs, tmp_path / "serial", workers="serial"))

    reports = segment(bundle, inputs, tmp_path / "cluster", workers=name_of(cluster))
    first = next(reports)
    victim = cluster.workers[0].pid
    os.kill(victim, signal.SIGKILL)
    cluster.scale(3)
    rest = list(reports)

    assert {report.status for report in (first, *rest)} == {CaseStatus.DONE}
    assert len(rest) == CASES - 1
    assert tree(tmp_path / "cluster") == tree(tmp_path / "serial")
    assert victim not in {nanny.pid for nanny in cluster.workers.values()}


@pytest.mark.slow
def test_cases_that_hang_or_kill_their_worker_on_a_cluster_are_given_up_and_the_others_are_done(
    tmp_path: Path, bundle: Path, cluster: object
) -> None:
    for name in "abcd":
        save_case(tmp_path / "in" / f"{name}.nii.gz")
    save_case(tmp_path / "in" / "b_deadly.nii.gz", DEADLY_HU)
    save_case(tmp_path / "in" / "c_hanging.nii.gz", HANGING_HU)

    found = segment(bundle, tmp_path / "in", tmp_path / "out", workers=name_of(cluster), timeout_s=40, attempts=1)
    reports = {report.case_id: report for report in found}

    deadly, hanging = reports.pop("b_deadly"), reports.pop("c_hanging")
    assert "its worker" in str(deadly.findings[0])
    assert "took longer than 40 s" in str(hanging.findings[0])
    assert deadly.status is hanging.status is CaseStatus.FAILED
    assert {report.status for report in reports.values()} == {CaseStatus.DONE}


@pytest.mark.slow
def test_all_workers_are_listed_while_the_client_refreshes_what_it_knows_without_them(
    cluster: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = distributed.Client._update_scheduler_info

    async def refresh_twice(client: object, n_workers: int = 0) -> None:
        await refresh(client, n_workers)
        await refresh(client)  # as the client does every two seconds

    monkeypatch.setattr(distributed.Client, "_update_scheduler_info", refresh_twice)
    engine = DaskEngine(cluster.scheduler_address)

    assert len(engine.lanes()) == len(cluster.workers)
    engine.close(is_abandoned=False)


@pytest.mark.slow
def test_a_scheduler_that_went_away_ends_the_run() -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        with distributed.LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as short:
            engine = DaskEngine(short.scheduler_address)
            assert list(engine.lanes()) == []

        with pytest.raises(EngineError, match="scheduler is gone"):
            engine.lanes()
    engine.close(is_abandoned=True)


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_wrong_usage(tmp_path: Path, bundle: Path) -> None:
    setup = setup_of(bundle, tmp_path / "out", Options(workers="dask:127.0.0.1:1"))

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        pytest.raises(UsageError, match=r"no Dask scheduler answers at 127.0.0.1:1"),
    ):
        list(segment_cases([], setup))
