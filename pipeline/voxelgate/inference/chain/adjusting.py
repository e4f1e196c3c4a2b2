"""What the inferers of foreign bundles can be told at run time, and what they refuse."""

import torch

from voxelgate.core.errors import UsageError
from voxelgate.inference.memory import free_memory_bytes

FREE_SHARE = 0.9
"""Part of the free memory that a run may plan with; the rest is left to the allocator."""


def refuse_unfollowed(*, fast: bool | None, mirroring: bool | None) -> None:
    """Refuse options that a MONAI bundle has no way to follow; what is left to the bundle is None.

    Raises:
        UsageError: names the option.
    """
    if fast:
        raise UsageError("--fast: this bundle has one way to run, which gives its labels; leave it out.")
    if mirroring:
        raise UsageError("this bundle does not average over mirrored images; leave mirroring out.")


def overlap_of(step_size: float) -> float:
    """Return how much of a window the next one repeats, if it begins a part of the window further on.

    Raises:
        UsageError: the part does not lie above 0 and up to 1.
    """
    if not 0 < step_size <= 1:
        raise UsageError(f"--step-size {step_size}: expected a part of the window, above 0 and up to 1.")
    return 1 - step_size


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
