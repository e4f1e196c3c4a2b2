"""Two folders that exchange their names at one moment, so that there is never none under either."""

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD = -100
"""Paths start from the current folder (`fcntl.h`)."""

RENAME_EXCHANGE = 2
"""Flag of renameat2(2), of Linux since 3.15."""

NOT_THERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
"""What kernels, sandboxes and file systems say that cannot do it."""


def exchange_names(one: Path, other: Path) -> bool:
    """Let two files or folders of one file system exchange their names; return False where that cannot be done at once.

    Raises:
        OSError: one is missing, or the folder takes no changes.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_THERE:
        return False
    raise OSError(number, os.strerror(number), os.fspath(one), None, os.fspath(other))
