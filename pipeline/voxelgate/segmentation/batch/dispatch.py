"""Which case goes to which worker, and what it costs a case when a worker dies, hangs or runs out of memory.

A worker has two cases at a time, if memory holds both. When it dies or hangs, nobody knows whose fault it was: both are
tried again, and only what happens to a case alone counts as an attempt. So a case is done in the same way whoever was
its neighbour.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field, replace
from typing import Protocol

from voxelgate.core.errors import EngineError, VoxelgateError
from voxelgate.segmentation.batch.engines import Engine, Worker
from voxelgate.segmentation.batch.worker import CaseJob, Outcome, Setup
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.faults import Fault

logger = logging.getLogger(__name__)

POLL_S = 0.2
"""How long results are waited for before clocks, workers and arrivals are looked at again."""


MOST_FRUITLESS = 5
"""Cases that lose their workers before any case of a run has ended otherwise: then it is not the cases' fault."""


@dataclass(frozen=True)
class Ticket:
    """A case on its way.

    Args:
        case: with the id that it has for good.
        attempts: that failed, and that no other case can have caused.
        losses: how often its worker died, in company too.
        shrinks: how often memory ran out.
        is_alone: whether it must have a worker for itself.
    """

    case: Case
    attempts: int = 0
    losses: int = 0
    shrinks: int = 0
    is_alone: bool = False


@dataclass(frozen=True)
class Ended:
    """A case that needs no more attempts.

    Args:
        ticket: of the case.
        job: of the last attempt.
        outcome: of the last attempt; None if it was given up.
        reason: why it was given up: a sentence without the case's name.
    """

    ticket: Ticket
    job: CaseJob
    outcome: Outcome | None
    reason: str = ""


@dataclass(eq=False)
class _Running:
    """A case with a worker; its clock starts with it, or with the end of the case before it."""

    ticket: Ticket
    job: CaseJob
    future: Future[Outcome]
    clock_s: float
    had_company: bool


@dataclass(eq=False)
class _Occupied:
    """A worker and what it has, oldest first."""

    lane: Worker
    running: list[_Running] = field(default_factory=list)


class CaseBook(Protocol):
    """Who knows what there is to do for a case, and keeps the books."""

    def job_for(self, ticket: Ticket) -> CaseJob | None:
        """Return the job of a case, or None if there is nothing to do."""

    def started(self, ticket: Ticket, job: CaseJob, worker: str) -> None:
        """Note that a worker has a case now."""

    def put_aside(self, ticket: Ticket, job: CaseJob) -> None:
        """Note that a case will be tried again, and that nothing will come of its last job."""


class Dispatcher:
    """Give cases to workers until each has ended.

    Args:
        engine: the workers.
        setup: of the run, which says what a case may cost.
        clerk: who is asked and told.
    """

    def __init__(self, engine: Engine, setup: Setup, clerk: CaseBook) -> None:
        self._engine, self._clerk = engine, clerk
        self._options, self._most = setup.options, setup.cases_at_a_time
        self._waiting: deque[Ticket] = deque()
        self._suspects: deque[Ticket] = deque()
        self._workers: dict[Worker, _Occupied] = {}
        self._is_deserted = False
        self._is_fruitful = False
        self._given_up = 0

    @property
    def active(self) -> set[str]:
        """Return the ids of the cases that have not ended."""
        running = (one.ticket for worker in self._workers.values() for one in worker.running)
        return {ticket.case.case_id for ticket in (*self._waiting, *self._suspects, *running)}

    @property
    def is_busy(self) -> bool:
        """Return whether a case has not ended."""
        return bool(self._waiting or self._suspects or self._futures())

    def add(self, case: Case) -> None:
        """Take in a case."""
        self._waiting.append(Ticket(case))

    def turn(self) -> Iterator[Ended]:
        """Give work to free workers, wait a moment, and yield what ended.

        Raises:
            VoxelgateError: no case can be done.
        """
        yield from self._look_at_workers()
        for worker in self._workers.values():
            self._fill(worker)
        if futures := self._futures():
            wait(futures, timeout=POLL_S, return_when=FIRST_COMPLETED)
        elif not self._waiting or not self._workers:
            time.sleep(POLL_S)
        for worker in self._workers.values():
            yield from self._collect(worker)
            yield from self._expire(worker)

    def _futures(self) -> list[Future[Outcome]]:
        return [one.future for worker in self._workers.values() for one in worker.running]

    def _look_at_workers(self) -> Iterator[Ended]:
        """Take in workers that joined, and take back the cases of those that are gone."""
        there = self._engine.lanes()
        if bool(there) is self._is_deserted:
            self._is_deserted = not there
            logger.info("%s", "Workers are there; going on." if there else "There is no worker; waiting for one.")
        for lane in there:
            self._workers.setdefault(lane, _Occupied(lane))
        for lane in [lane for lane in self._workers if lane not in there]:
            worker = self._workers.pop(lane)
            yield from self._collect(worker)
            yield from self._lose(worker, "went away")

    def _fill(self, worker: _Occupied) -> None:
        while (ticket := self._next_for(worker)) is not None:
            job = self._clerk.job_for(ticket)
            if job is None:
                self._is_fruitful = True  # workers have done it before
                continue
            future = _submitted(worker.lane, job)
            self._clerk.started(ticket, job, worker.lane.name)
            worker.running.append(_Running(ticket, job, future, time.monotonic(), had_company=False))
            for one in worker.running if len(worker.running) > 1 else ():
                one.had_company = True

    def _next_for(self, worker: _Occupied) -> Ticket | None:
        """Return what a worker can take now; while cases must be alone, no worker takes a second one."""
        if self._suspects:
            return None if worker.running else self._suspects.popleft()
        most = min(worker.lane.depth, self._most)
        is_full = len(worker.running) >= most or any(one.ticket.is_alone for one in worker.running)
        return self._waiting.popleft() if self._waiting and not is_full else None

    def _collect(self, worker: _Occupied) -> Iterator[Ended]:
        """Take what a worker has finished; if it died, all that it had is lost."""
        for one in [one for one in worker.running if one.future.done() and _has_outcome(one.future)]:
            worker.running.remove(one)
            for other in worker.running:
                other.clock_s = time.monotonic()
            yield from self._judge(one, one.future.result())
        dead = [one.future for one in worker.running if one.future.done()]
        if dead:
            worker.lane.give_up()
            error = None if dead[0].cancelled() else dead[0].exception()
            yield from self._lose(worker, "died" if error is None else str(error))

    def _judge(self, one: _Running, outcome: Outcome) -> Iterator[Ended]:
        self._is_fruitful = True
        if outcome.fault is not Fault.MEMORY:
            yield Ended(one.ticket, one.job, outcome)
        elif one.had_company:
            self._try_alone(one, one.ticket)
        else:
            yield from self._charge(one, replace(one.ticket, shrinks=one.ticket.shrinks + 1), "memory ran out")

    def _lose(self, worker: _Occupied, reason: str) -> Iterator[Ended]:
        lost, worker.running = worker.running, []
        for one in lost:
            ticket = replace(one.ticket, losses=one.ticket.losses + 1)
            if one.had_company:
                self._try_alone(one, ticket)
            else:  # a system that runs out of memory kills without a word; so may anybody, once
                ticket = replace(ticket, shrinks=ticket.shrinks + (ticket.losses > 1))
                for ended in self._charge(one, ticket, f"its worker {reason}"):
                    self._refuse_fruitless(reason)
                    yield ended

    def _refuse_fruitless(self, reason: str) -> None:
        """End the run if workers die of every case, such as where they cannot even start.

        Raises:
            EngineError: they do.
        """
        self._given_up += 1
        if self._given_up == MOST_FRUITLESS and not self._is_fruitful:
            raise EngineError(
                f"no worker has finished a case, and {MOST_FRUITLESS} cases in a row were given up, the last since its "
                f"worker {reason}; see what it printed, and give it more memory if there was too little."
            )

    def _expire(self, worker: _Occupied) -> Iterator[Ended]:
        """End a worker whose oldest case takes too long; it is tried alone if it had company, which may have hung."""
        if not worker.running or not worker.lane.can_be_killed:
            return
        first, *others = worker.running
        if time.monotonic() - first.clock_s < self._options.timeout_s:
            return
        worker.running = []
        worker.lane.kill()
        for other in others:
            self._clerk.put_aside(other.ticket, other.job)
            self._waiting.appendleft(other.ticket)
        if first.had_company:
            self._try_alone(first, first.ticket)
        else:
            yield from self._charge(first, first.ticket, f"it took longer than {self._options.timeout_s:g} s")

    def _try_alone(self, one: _Running, ticket: Ticket) -> None:
        self._clerk.put_aside(ticket, one.job)
        self._suspects.append(replace(ticket, is_alone=True))

    def _charge(self, one: _Running, ticket: Ticket, reason: str) -> Iterator[Ended]:
        """Count a failed attempt; after the last one the case has ended."""
        ticket = replace(ticket, attempts=ticket.attempts + 1)
        if ticket.attempts < self._options.attempts:
            self._try_alone(one, ticket)
        else:
            yield Ended(ticket, one.job, None, f"{reason} in attempt {ticket.attempts} of {self._options.attempts}")


def _submitted(lane: Worker, job: CaseJob) -> Future[Outcome]:
    """Give a job to a worker; one that cannot take any, not even anew, has died."""
    try:
        return lane.submit(job)
    except BrokenExecutor as error:
        future: Future[Outcome] = Future()
        future.set_exception(error)
        return future


def _has_outcome(future: Future[Outcome]) -> bool:
    """Return whether a future that is done holds an outcome, not the death of a worker.

    Raises:
        VoxelgateError: no case can be done.
    """
    if future.cancelled():
        return False
    error = future.exception()
    if isinstance(error, VoxelgateError):
        raise error
    return error is None
