"""What the inferers of foreign bundles can be told at run time, and what they refuse."""

import torch

from voxelgate.core.errors import UsageError
from voxelgate.inference.memory import free_memory_bytes
from voxelgate.inference.pass_options import PassOptions

FREE_SHARE = 0.9
"""Part of the free memory that a run may plan with; the rest is left to the allocator."""


def refuse_fast(asked: PassOptions) -> None:
    """Refuse what a MONAI bundle has no way to follow; it never averages over mirrored images.

    Raises:
        UsageError: it is asked to be fast.
    """
    if asked.fast:
        raise UsageError("--fast: this bundle has one way to run, which gives its labels; leave it out.")


def check_limit(max_memory: int | None) -> None:
    """Refuse a limit that nothing can keep to.

    Raises:
        UsageError: it is not positive.
    """
    if max_memory is not None and max_memory < 1:
        raise UsageError(f"max_memory {max_memory}: expected null or a number of bytes above 0.")


def limit_bytes(max_memory: int | None, device: torch.device) -> float:
    """Return how many bytes may be taken on a device now."""
    free = FREE_SHARE * free_memory_bytes(device)
    return free if max_memory is None else min(free, max_memory)
