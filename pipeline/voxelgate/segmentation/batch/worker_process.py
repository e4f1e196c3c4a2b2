"""A process of its own for one lane of work, as an executor: it can be killed, and what kills it kills nothing else."""

import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any, TypeVar

from voxelgate.core.errors import VoxelgateError
from voxelgate.core.machine import GIB
from voxelgate.core.process import end_with_parent, installed_only
from voxelgate.core.text import log_to_stderr
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.inference.precision import keep_large_buffers
from voxelgate.inference.threads import compute_with, start_network_thread

Result = TypeVar("Result")

CASES_AT_A_TIME = 2
"""One case has the network while the one before it is written and the one after it is read."""


LOWEST_PRIORITY = 19
"""setpriority(2): the nicest; on Linux each thread has its own."""

LEAST_BYTES = 2**24
"""Less than any case takes; a worker that cannot have it is none."""


class WorkerProcess(Executor):
    """Run calls in one process, some of them at a time; when it dies, all of them end with `BrokenExecutor`.

    Not `ProcessPoolExecutor`: that cannot be told to kill a worker, runs one call at a time in it, and leaves its
    workers behind when the coordinator is killed. The process is forked from a server that has imported everything
    and started no thread, so that a new one is there at once. It logs what this process logs, to its error output.

    Args:
        threads: for the network.
        max_gib: memory that it may allocate, of which the libraries take about 0.45 GiB; None for any.
    """

    def __init__(self, threads: int = 1, max_gib: float | None = None) -> None:
        log_level = logging.getLogger("voxelgate").getEffectiveLevel()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["voxelgate.segmentation.batch.worker"])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve_calls, args=(theirs, threads, max_gib, log_level), daemon=True)
        with installed_only():
            self._process.start()
        theirs.close()
        self._lock = threading.Lock()
        self._is_over = False
        self._count = 0
        self._pending: dict[int, Future[Any]] = {}
        self._calls: SimpleQueue[memoryview | None] = SimpleQueue()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._sender.start()
        self._receiver.start()

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid or 0

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Send a call to the process; also to one that hangs and takes nothing, without waiting for it.

        Raises:
            BrokenExecutor: the process has ended.
        """
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._is_over:
                raise BrokenExecutor(self._ending())
            self._count += 1
            call = ForkingPickler.dumps((self._count, fn, args, kwargs))
            self._pending[self._count] = future
            self._calls.put(call)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as in Executor
        """Let the process end; running calls are waited for, unless they are to be cancelled."""
        if cancel_futures:
            self.kill()
        else:
            self._calls.put(None)
        if wait:
            self._receiver.join()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def _send(self) -> None:
        """Send calls until there is None; a process that hangs takes no more than the pipe holds."""
        with suppress(OSError):  # it has ended, as the receiver sees
            while (call := self._calls.get()) is not None:
                self._connection.send_bytes(call)
            self._connection.send(None)

    def _receive(self) -> None:
        while self._connection in wait([self._connection, self._process.sentinel]):
            try:
                number, error, value = self._connection.recv()
            except (EOFError, OSError):
                break
            future = self._pending.pop(number)
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        self._process.join()
        with self._lock:
            self._is_over = True
        self._calls.put(None)
        self._sender.join()  # before its pipe is closed, whose number might be given to another file
        self._connection.close()
        for future in self._pending.values():
            future.set_exception(BrokenExecutor(self._ending()))

    def _ending(self) -> str:
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"ended with code {code}"
        return f"was killed by {signal.Signals(-code).name}"


def serve_calls(connection: Connection, network_threads: int, max_gib: float | None, log_level: int) -> None:
    """Answer calls until the other side says no more, or is gone: then end at once, in the middle of a call too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the coordinator decides
    end_with_parent()
    log_to_stderr()
    logging.getLogger("voxelgate").setLevel(log_level)
    keep_large_buffers()
    sending = threading.Lock()
    start_network_thread(network_threads)
    threads = ThreadPoolExecutor(CASES_AT_A_TIME, initializer=_step_back, initargs=(network_threads,))
    _start(threads)
    if max_gib is not None:
        limit = int(max_gib * GIB)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        bytearray(LEAST_BYTES)  # ends the process where this cannot be had
    with quiet_pydicom(), threads:  # for good, since contexts of several threads would end each other's
        for number, fn, args, kwargs in _calls(connection):
            threads.submit(fn, *args, **kwargs).add_done_callback(partial(_send_answer, connection, sending, number))


def _step_back(network_threads: int) -> None:
    """Let this thread compute alone, and where the system knows priorities of threads, only when the network does not.

    The threads of a network wait for each other at barriers; one that is kept from its processor holds up all.
    """
    compute_with(1)
    if network_threads > 1 and sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


def _start(threads: ThreadPoolExecutor) -> None:
    """Start all threads, before memory is limited: one that has none to begin with is waited for in vain."""
    together = threading.Barrier(CASES_AT_A_TIME + 1)
    for _ in range(CASES_AT_A_TIME):
        threads.submit(together.wait)
    together.wait()


def _calls(connection: Connection) -> Iterator[tuple[int, Callable[..., Any], Any, Any]]:
    with suppress(EOFError):
        while (call := connection.recv()) is not None:
            yield call


def _send_answer(connection: Connection, sending: threading.Lock, number: int, ended: Future[Any]) -> None:
    error = ended.exception()
    if error is not None and not isinstance(error, VoxelgateError):
        error = RuntimeError(f"ended with {type(error).__name__}")  # any other may not survive the way
    with sending:
        connection.send((number, error, ended.result() if error is None else None))
