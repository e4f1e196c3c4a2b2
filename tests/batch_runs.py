"""Run `voxelgate` in a process of its own that is there at once, and look at what it leaves."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from voxelgate.apps.cli.main import main
from voxelgate.core.files import LOCK_NAME
from voxelgate.segmentation.batch.ledger import LEDGER_NAME

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["voxelgate.apps.cli.segment", "tests.batch_bundle"])

CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir"}
"""Audit events (https://docs.python.org/3.11/library/audit_events.html), each raised before the change."""


@dataclass(frozen=True)
class Command:
    """A running `voxelgate`.

    Args:
        process: forked from a server that has imported everything; so are its workers.
        log: what it prints.
    """

    process: ForkServerProcess
    log: Path

    @property
    def printed(self) -> str:
        """Return what it has printed so far."""
        return self.log.read_text("utf-8")

    def end(self, timeout_s: float = 120) -> int:
        """Wait for its end, and return its exit code."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"still running after {timeout_s} s: {self.printed}"
        return self.process.exitcode


def start(log: Path, *arguments: object) -> Command:
    """Start `voxelgate` with arguments."""
    process = CONTEXT.Process(target=_main, args=(log, list(map(str, arguments))))
    process.start()
    return Command(process, log)


def start_to_die(log: Path, out: Path, operation: int, *arguments: object) -> Command:
    """Start `voxelgate`, which dies as if by `kill -9` just before it changes a name in a folder for the n-th time."""
    process = CONTEXT.Process(target=_main_to_die, args=(log, out, operation, list(map(str, arguments))))
    process.start()
    return Command(process, log)


def _main_to_die(log: Path, out: Path, operation: int, arguments: list[str]) -> None:
    countdown = itertools.count(operation - 1, -1)

    def die(event: str, values: tuple[object, ...]) -> None:
        if event in CHANGES and str(values[0]).startswith(str(out)) and next(countdown) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    _main(log, arguments)


def _main(log: Path, arguments: list[str]) -> None:
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]  # ours forks the workers too
    os.environ["COLUMNS"] = "200"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what it runs in the background
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["voxelgate", *arguments]
    with contextlib.suppress(BrokenPipeError):
        main()


def tree(out: Path) -> dict[str, bytes]:
    """Return every file below an output folder but the ledger, which holds times, and the lock."""
    kept = {path for path in out.rglob("*") if path.is_file() and not path.name.startswith((LEDGER_NAME, LOCK_NAME))}
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in kept}


def wait_until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Wait for something to become true."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.05)
