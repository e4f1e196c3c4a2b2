"""The one thread of a process that computes with several processors, while others read and write.

libgomp, which PyTorch brings, keeps helpers for every thread that ever computed in parallel. Once there are more of
them than processors, it lets all sleep at each barrier instead of spinning (`gomp_throttled_spin_count_var` in its
`env.c`), and networks take 1.5 times as long. So one thread has helpers, and all others compute alone.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

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
