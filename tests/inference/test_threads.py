"""One thread of a worker has helpers, and computes for all others."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from voxelgate.inference.threads import LoneWorkers, in_network_thread
from voxelgate.segmentation.batch.worker_process import WorkerProcess


def processors_here() -> tuple[int, int]:
    """Return the thread, and with how many processors PyTorch computes in it."""
    return threading.get_native_id(), torch.get_num_threads()


def in_both_ways(wait_s: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the same of this thread, and of that in which networks run."""
    time.sleep(wait_s)  # so that another call needs another thread
    torch.ones(2**16).sum()
    return processors_here(), in_network_thread(processors_here)


def fail() -> None:
    raise ValueError("no")


def test_all_calls_of_a_worker_share_one_thread_with_helpers_and_compute_alone_otherwise() -> None:
    with WorkerProcess(threads=3) as worker:
        calls = [worker.submit(in_both_ways, 0.5) for _ in range(2)]
        (first, network), (second, same) = (call.result(60) for call in calls)

    assert network == same
    assert network[1] == 3
    assert first[1] == second[1] == 1
    assert len({first[0], second[0], network[0]}) == 3


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "50000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing", "a count", "a policy"],
)
def test_threads_spin_shortly_unless_the_user_says_how(given: dict[str, str], count: str) -> None:
    cleared = {name: text for name, text in os.environ.items() if name not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    code = "import sys, os, voxelgate; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], env=cleared | given, capture_output=True, text=True, check=True)

    assert done.stdout.split() == [count, "False"]  # libgomp reads it when PyTorch is imported


def test_without_such_a_thread_the_caller_computes_as_it_did() -> None:
    assert in_network_thread(processors_here) == processors_here()


def test_one_call_runs_at_a_time_and_one_that_raises_holds_up_no_other() -> None:
    running = []

    def call() -> int:
        running.append(1)
        most = len(running)
        time.sleep(0.02)
        running.pop()
        return most

    with pytest.raises(ValueError, match="no"):
        in_network_thread(fail)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(in_network_thread(call))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [1] * 4


def test_lone_workers_compute_alone_and_give_results_in_order() -> None:
    before = torch.get_num_threads()
    with LoneWorkers() as workers:
        found = list(workers.in_order(lambda n=n: (n, torch.get_num_threads()) for n in range(20)))
    assert found == [(n, 1) for n in range(20)]
    assert torch.get_num_threads() == before


def test_lone_workers_are_no_more_than_their_number_ahead() -> None:
    asked: list[int] = []

    def calls() -> Iterator[Callable[[], int]]:
        for n in range(20):
            asked.append(n)
            yield lambda n=n: n

    with LoneWorkers() as workers:
        next(workers.in_order(calls()))
    assert len(asked) == torch.get_num_threads() + 1
