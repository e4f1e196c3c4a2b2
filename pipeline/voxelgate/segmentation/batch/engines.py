"""Where cases are worked on: in this process, in processes beside it, or on the workers of a Dask cluster."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any, Protocol, TypeVar

import torch

from voxelgate.core.errors import EngineError, UsageError
from voxelgate.core.workers import EngineKind, dask_client, engine_named
from voxelgate.segmentation.batch.worker import CaseJob, Outcome, work, worker_name
from voxelgate.segmentation.batch.worker_process import CASES_AT_A_TIME, WorkerProcess

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RESTART_S = 60.0
"""Time for the nanny of a Dask worker to bring up a new one."""


class Worker(Protocol):
    """One worker, which has its own process if it can be killed."""

    @property
    def name(self) -> str:
        """Return which worker it is now, for the ledger."""

    @property
    def depth(self) -> int:
        """Return how many cases it takes at a time."""

    @property
    def can_be_killed(self) -> bool:
        """Return whether a case that hangs can be ended."""

    def submit(self, job: CaseJob) -> Future[Outcome]:
        """Start a job; its future ends with `BrokenExecutor` if the worker dies.

        Raises:
            BrokenExecutor: the worker is dead, and a new one died at once.
        """

    def kill(self) -> None:
        """End a worker that hangs, and all that runs in it; the next job gets a new one."""

    def give_up(self) -> None:
        """Forget a worker that died; the next job gets a new one."""


class Engine(Protocol):
    """All workers of a run."""

    def lanes(self) -> Sequence[Worker]:
        """Return the workers that there are now; the same object as long as it is the same worker."""

    def close(self, *, is_abandoned: bool) -> None:
        """Let the workers go; if abandoned, without waiting for their cases."""


class SerialExecutor(Executor):
    """Run each call at once, in this thread; for tests and debuggers, since a crash or a hang in it ends the run."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run a call; what it raises is raised here."""
        future: Future[Result] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class ExecutorWorker:
    """Any executor as one lane; what hangs in it cannot be ended, and where it breaks it stays broken.

    Args:
        executor: whose workers can import this package and see all files under the same names.
        workers: calls that it runs at a time.
    """

    can_be_killed = False

    def __init__(self, executor: Executor, workers: int) -> None:
        self.executor = executor
        self.depth = workers

    @property
    def name(self) -> str:
        """Return the kind of executor and this process."""
        return f"{type(self.executor).__name__} of {worker_name()}"

    def submit(self, job: CaseJob) -> Future[Outcome]:
        """Start a job."""
        return self.executor.submit(work, job)

    def kill(self) -> None:
        """Do nothing; such an executor cannot be told to."""

    def give_up(self) -> None:
        """Do nothing; the executor knows."""


class ExecutorEngine:
    """Any `concurrent.futures.Executor` as an engine.

    Args:
        executor: as for `ExecutorWorker`; it is shut down at the end.
        workers: calls that it runs at a time.
    """

    def __init__(self, executor: Executor, workers: int = 1) -> None:
        self._lane = ExecutorWorker(executor, workers)

    def lanes(self) -> Sequence[Worker]:
        """Return the one lane."""
        return (self._lane,)

    def close(self, *, is_abandoned: bool) -> None:
        """Shut the executor down."""
        self._lane.executor.shutdown(wait=not is_abandoned, cancel_futures=True)


class ProcessWorker:
    """One process after the other, each forked when it is needed.

    Args:
        threads: as for `WorkerProcess`.
        max_gib: as for `WorkerProcess`.
    """

    can_be_killed = True
    depth = CASES_AT_A_TIME

    def __init__(self, threads: int, max_gib: float | None) -> None:
        self._share = threads, max_gib
        self._worker: WorkerProcess | None = None

    @property
    def name(self) -> str:
        """Return host and number of the process."""
        host = worker_name().rpartition(":")[0]
        return f"{host}:{0 if self._worker is None else self._worker.pid}"

    def submit(self, job: CaseJob) -> Future[Outcome]:
        """Start a job, in a new process if there is none or the last one died."""
        if self._worker is not None:
            try:
                return self._worker.submit(work, job)
            except BrokenExecutor:
                pass
        self._worker = WorkerProcess(*self._share)
        return self._worker.submit(work, job)

    def kill(self) -> None:
        """Kill the process."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    give_up = kill  # it may have closed its connection only

    def close(self) -> None:
        """Let the process end by itself."""
        if self._worker is not None:
            self._worker.shutdown()


class ProcessEngine:
    """Processes on this machine, which share its processors.

    Args:
        count: of processes.
        max_gib: memory that each may allocate; None for any.
    """

    def __init__(self, count: int, max_gib: float | None = None) -> None:
        threads = max(1, torch.get_num_threads() // count)
        self._lanes = [ProcessWorker(threads, max_gib) for _ in range(count)]

    def lanes(self) -> Sequence[Worker]:
        """Return a lane for each process."""
        return self._lanes

    def close(self, *, is_abandoned: bool) -> None:
        """End the processes."""
        for lane in self._lanes:
            lane.kill() if is_abandoned else lane.close()


class DaskWorker:
    """One worker of a Dask cluster; its tasks go nowhere else, so that it is known what a death has cost.

    Args:
        client: `distributed.Client`.
        address: of the worker.
        threads: of the worker, each of which can take a case.
    """

    can_be_killed = True

    def __init__(self, client: Any, address: str, threads: int) -> None:  # distributed is an optional extra
        self.name = address
        self.depth = min(threads, CASES_AT_A_TIME)
        self.is_over = False
        self.is_stuck = False
        self._client = client
        self._executor: Executor = client.get_executor(
            workers=[address], allow_other_workers=False, retries=0, pure=False
        )

    def submit(self, job: CaseJob) -> Future[Outcome]:
        """Start a job."""
        try:
            return self._executor.submit(work, job)
        except (OSError, RuntimeError) as error:  # the scheduler is gone, as will be seen when workers are listed
            raise BrokenExecutor("went away") from error

    def give_up(self) -> None:
        """Take back its tasks; one that runs goes on, but nobody looks at what it leaves."""
        self._executor.shutdown(wait=False)
        self.is_over = True

    def kill(self) -> None:
        """Take back its tasks, and ask the worker's nanny to kill it and to start another, which gets a new address."""
        self.give_up()
        found = self._client.restart_workers([self.name], timeout=RESTART_S, raise_for_error=False)
        self.is_stuck = found.get(self.name) != "OK"
        if self.is_stuck:
            logger.warning("worker %s cannot be restarted; it gets no more cases.", self.name)


class DaskEngine:
    """The workers of a Dask cluster, however it was deployed: by hand, SLURM, PBS, Kubernetes.

    Workers may come and go. They must have this package installed, and see bundle, inputs and output folder under the
    names that they have here. A case that hangs is ended only on workers with a nanny, as `dask worker` starts them.

    Args:
        address: of the scheduler, such as `tcp://host:8786`, or a scheduler file.

    Raises:
        UsageError: the extra is not installed, or nobody answers.
    """

    def __init__(self, address: str) -> None:
        self._client = dask_client(address)
        self._lanes: dict[str, DaskWorker] = {}

    def lanes(self) -> Sequence[Worker]:
        """Return a lane for each worker that the scheduler knows now.

        Raises:
            EngineError: the scheduler is gone.
        """
        try:  # not `scheduler_info`, in whose answer another thread of the client now and then puts no workers
            workers = self._client.sync(self._client.scheduler.identity, n_workers=-1)["workers"]
        except (OSError, RuntimeError) as error:
            raise EngineError("the Dask scheduler is gone; start it, and run the command again to go on.") from error
        self._lanes = {address: self._lane(address, facts["nthreads"]) for address, facts in workers.items()}
        return [lane for lane in self._lanes.values() if not lane.is_stuck]

    def _lane(self, address: str, threads: int) -> DaskWorker:
        known = self._lanes.get(address)
        if known is None or (known.is_over and not known.is_stuck):
            return DaskWorker(self._client, address, threads)
        return known

    def close(self, *, is_abandoned: bool) -> None:
        """Leave the cluster, which goes on."""
        for lane in self._lanes.values() if is_abandoned else ():
            lane.give_up()
        self._client.close()


def engine_of(name: str, max_gib: float | None = None) -> Engine:
    """Return the engine of a name, whose workers are known one by one; `executor_named` opens the pools of all else.

    Args:
        name: as for `engine_named`.
        max_gib: memory that a process may allocate; None for any.

    Raises:
        UsageError: no such engine, or one that cannot be limited.
    """
    found = engine_named(name)
    if found.kind is EngineKind.PROCESSES:
        return ProcessEngine(found.count, max_gib)
    if max_gib is not None:
        raise UsageError(
            f"--max-memory goes with processes only, not with {found.kind}; limit the memory of workers there."
        )
    return DaskEngine(found.address) if found.kind is EngineKind.DASK else ExecutorEngine(SerialExecutor())
