"""What a run is doing now, or was doing when it ended, read from the ledger of its output folder."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxelgate.core.files import is_held
from voxelgate.core.verdict import Verdict
from voxelgate.segmentation.batch.ledger import read_ledger
from voxelgate.segmentation.batch.ledger_records import Entry, EntryState, RunRecord

OPEN = (EntryState.WAITING, EntryState.RUNNING, EntryState.PUBLISHING)
BAD = (EntryState.REJECTED, EntryState.FAILED)


@dataclass(frozen=True)
class RunningCase:
    """A case with a worker.

    Args:
        case_id: as in `Case`.
        worker: which has it.
        attempt: from 1.
        elapsed_s: since it was started.
    """

    case_id: str
    worker: str
    attempt: int
    elapsed_s: float


@dataclass(frozen=True)
class BadCase:
    """A case without a result.

    Args:
        case_id: as in `Case`.
        status: rejected or failed.
        reason: why.
    """

    case_id: str
    status: str
    reason: str


@dataclass(frozen=True)
class Status:
    """What is known of an output folder now.

    Args:
        is_running: whether a run works in it.
        counts: of cases by state; all states, in their order. What a run was at when it was killed waits.
        verdicts: of the cases that are done.
        running: cases with a worker; empty if nothing runs.
        bad: cases without a result, by id.
        ended_per_hour: cases that the last run brought to an end; 0 before the first.
        left_s: time for the cases that wait, at that rate; None if it is not known or nothing runs.

    >>> _ = list(vg.segment("my_bundle", "scan.nii.gz", "seen", workers="serial"))
    >>> vg.status("seen").is_running
    False
    """

    is_running: bool
    counts: dict[str, int]
    verdicts: dict[str, int]
    running: tuple[RunningCase, ...]
    bad: tuple[BadCase, ...]
    ended_per_hour: float
    left_s: float | None


def status(out: Path | str) -> Status:
    """Return what is known of an output folder; it is only read, and a run may go on meanwhile.

    Raises:
        OutputError: it has no ledger, or that cannot be read.

    >>> _ = list(vg.segment("my_bundle", "scan.nii.gz", "counted", workers="serial"))
    >>> vg.status("counted").counts["done"]
    1
    """
    out_dir = Path(out)
    is_running = is_held(out_dir)
    entries, runs = read_ledger(out_dir)
    now_s = time.time()
    states = Counter(EntryState.WAITING if entry.state in OPEN and not is_running else entry.state for entry in entries)
    done = [entry.report.verdict for entry in entries if entry.state is EntryState.DONE and entry.report]
    rate = _ended_per_s(entries, runs[-1], now_s if is_running else None) if runs else 0.0
    waiting = sum(states[state] for state in OPEN)
    return Status(
        is_running,
        {state.value: states[state] for state in EntryState},
        {verdict.value: Counter(done)[verdict] for verdict in Verdict},
        tuple(_running_case(entry, now_s) for entry in entries if entry.state is EntryState.RUNNING and is_running),
        tuple(_bad(entry) for entry in entries if entry.state in BAD),
        round(3600 * rate, 1),
        round(waiting / rate, 1) if rate and is_running else None,
    )


def _ended_per_s(entries: Sequence[Entry], run: RunRecord, now_s: float | None) -> float:
    """Return how many cases a run ended in a second, up to now; one that was killed counts up to its last case.

    Where somebody has set the clock back, nothing can be said, which is 0.
    """
    ended_s = [entry.ended_s for entry in entries if entry.ended_s >= run.started_s]
    until_s = now_s or run.ended_s or max(ended_s, default=0.0)
    return len(ended_s) / (until_s - run.started_s) if until_s > run.started_s else 0.0


def _running_case(entry: Entry, now_s: float) -> RunningCase:
    return RunningCase(entry.case_id, entry.worker, entry.attempts, round(now_s - entry.started_s, 1))


def _bad(entry: Entry) -> BadCase:
    reason = "" if entry.report is None else " ".join(map(str, entry.report.findings))
    return BadCase(entry.case_id, entry.state.value, reason)
