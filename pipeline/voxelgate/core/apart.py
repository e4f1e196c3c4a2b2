"""Look at many things in a process of its own, which has limits of time and memory, and whose end ends nothing else."""

import multiprocessing
import resource
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from voxelgate.core.process import end_with_parent, installed_only

Item = TypeVar("Item")
Found = TypeVar("Found")

START_S = 60.0
"""Longest time for a process to start on a busy machine; mostly it takes one second."""


@dataclass(frozen=True)
class Bounds:
    """What looking at one thing may take.

    Args:
        seconds: of time.
        memory_bytes: that the process may allocate, its libraries included.
        most_lost: things that may cost a process each; after the last one nothing is known of those that are left.
    """

    seconds: float = 10.0
    memory_bytes: int = 2**30
    most_lost: int = 5


def each_apart(
    look: Callable[[Item], Found], items: Sequence[Item], bounds: Bounds | None = None
) -> Iterator[Found | None]:
    """Yield what a function finds of each item in another process; None if it raises, or takes too much.

    An item that crashes the process, hangs or fills the memory costs the process, and the others get a new one.

    Args:
        look: a function of a module, which is imported there: of one without PyTorch, lest that takes seconds.
        items: what it is called with; they are sent there.
        bounds: for each item.
    """
    limits, left, lost = bounds or Bounds(), deque(items), 0
    while left and lost < limits.most_lost:
        with _started(look, tuple(left), limits.memory_bytes) as answers:
            seconds = START_S  # for the first answer, which only says that the process is there
            while (answer := _received(answers, seconds)) is not None:
                yield from answer
                for _ in answer:
                    left.popleft()
                if not left:
                    return
                seconds = limits.seconds
        left.popleft()
        lost += 1
        yield None
    yield from (None for _ in left)


@contextmanager
def _started(look: Callable[[Any], Any], items: tuple[Any, ...], memory_bytes: int) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    answers, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer_each, args=(theirs, look, items, memory_bytes), daemon=True)
    with installed_only():
        process.start()
    theirs.close()
    try:
        yield answers
    finally:
        process.kill()
        process.join()
        answers.close()


def _received(answers: Connection, seconds: float) -> tuple[Any, ...] | None:
    """Return the next answer; None if it does not come in time, or never will."""
    try:
        return answers.recv() if answers.poll(seconds) else None
    except (EOFError, OSError):
        return None


def answer_each(answers: Connection, look: Callable[[Any], Any], items: tuple[Any, ...], memory_bytes: int) -> None:
    """Send an empty tuple, and then one with what a function finds for each item."""
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    answers.send(())
    for item in items:
        try:
            found = look(item)
        except Exception:  # noqa: BLE001 - whatever a parser raises is told by who does the case
            found = None
        answers.send((found,))
