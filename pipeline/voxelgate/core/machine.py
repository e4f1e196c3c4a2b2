"""What the machine has for this process."""

from collections.abc import Sequence
from pathlib import Path

import psutil

from voxelgate.core.errors import InputError

GIB = 2**30

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells the limit of this process's group, as a container has one, which psutil does not look at."""


def free_host_bytes() -> int:
    """Return the memory that is free now; of the control group where that has a limit."""
    free: int = psutil.virtual_memory().available
    try:
        limit = int((CONTROL_GROUP / "memory.max").read_text(encoding="utf-8"))
        used = int((CONTROL_GROUP / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no control group, or "max"
        return free
    return min(free, limit - used)


def refuse_too_fine(before_vox: Sequence[int], after_vox: Sequence[int], needed_bytes: int) -> None:
    """Refuse to resample an image to a grid that the free memory cannot hold, before it is tried.

    Args:
        before_vox: size of the image.
        after_vox: size that it would get.
        needed_bytes: by the new grid.

    Raises:
        InputError: names both sizes and both amounts of memory.
    """
    if needed_bytes > (free := free_host_bytes()):
        before, after = ("x".join(map(str, size)) for size in (before_vox, after_vox))
        raise InputError(
            f"{before} voxels would become {after} and need {needed_bytes / GIB:.1f} GiB, {free / GIB:.1f} GiB are "
            "free; the bundle works on a finer grid than the image, so crop the image, or use a machine with more "
            "memory."
        )
