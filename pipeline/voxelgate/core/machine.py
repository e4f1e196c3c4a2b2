"""What the machine has for this process."""

from pathlib import Path

import psutil

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
