"""The one thread of a process that computes with several processors, while others read and write.

libgomp, which PyTorch brings, keeps helpers for every thread that ever computed in parallel. Once there are more of
them than processors, it lets all sleep at each barrier instead of spinning (`gomp_throttled_spin_count_var` in its
`env.c`), and networks take 1.5 times as long. So one thread has helpers, and all others compute alone.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

import torch

Result = TypeVar("Result")

_turn = threading.Lock()
_started: list[ThreadPoolExecutor] = []  # none, or the one of this process


def start_network_thread(processors: int) -> None:
    """Start the thread in which `in_network_thread` runs everything from now on; once in a process."""
    _started.append(ThreadPoolExecutor(1, "network", initializer=compute_with, initargs=(processors,)))
    in_network_thread(int)  # starts it, while there is memory for its stack


def in_network_thread(call: Callable[..., Result], *args: Any) -> Result:
    """Call something in the network's thread, or in the caller's if none was started, one call at a time."""
    if _started:
        return _started[0].submit(call, *args).result()
    with _turn:
        return call(*args)


def compute_with(processors: int) -> None:
    """Let PyTorch use some processors for what this thread does."""
    torch.get_num_threads()  # the first call in a thread takes over what another one has set last
    torch.set_num_threads(processors)


class LoneWorkers:
    """Threads, as many as PyTorch computes with in this one, each of which computes alone.

    Many small operations in several such threads take less time than each of them in all threads, which wait for each
    other every time, and for their turn where other processes use the processors too. To be used in a `with` block.
    """

    def __init__(self) -> None:
        self._count = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._count, "alone", initializer=compute_with, initargs=(1,))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for all threads; new ones elsewhere compute with as many processors as before."""
        self._pool.shutdown(cancel_futures=True)
        compute_with(self._count)

    def in_order(self, calls: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """Yield what some calls return, in their order; only as many as there are threads are made ahead."""
        waiting: deque[Future[Result]] = deque()
        for call in calls:
            waiting.append(self._pool.submit(call))
            if len(waiting) > self._count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
