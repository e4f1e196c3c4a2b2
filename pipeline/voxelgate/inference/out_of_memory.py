"""What to do when a device has less memory than was planned with."""

from collections.abc import Callable
from typing import TypeVar

import torch

from voxelgate.core.errors import UsageError

Result = TypeVar("Result")

HALVINGS = 4
"""A sixteenth of what was free and still too much: smaller windows would not help."""


def with_less_memory(run: Callable[[int], Result], max_bytes: int) -> Result:
    """Call `run(max_bytes)`, and again with half of it each time the device runs out of memory.

    Only what PyTorch calls out of memory counts, unlike MONAI's guess from any error (monai/inferers/inferer.py,
    `SlidingWindowInfererAdapt`).

    Raises:
        UsageError: a sixteenth was still too much.
    """
    for halving in range(HALVINGS + 1):
        try:
            return run(max_bytes >> halving)
        except torch.OutOfMemoryError:
            pass  # let go of the traceback, which holds the tensors
        torch.cuda.empty_cache()  # does nothing without a GPU
    raise UsageError(
        f"the device ran out of memory even with a limit of {(max_bytes >> HALVINGS) / 2**20:.0f} MiB; use the CPU."
    )
