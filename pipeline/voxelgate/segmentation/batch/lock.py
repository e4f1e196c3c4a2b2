"""One run at a time in an output folder: a lock that ends with the process that holds it, however that ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxelgate.core.errors import OutputError

LOCK_NAME = ".voxelgate.lock"

PATIENCE_S = 1.0
"""How long a lock is asked for: `is_held` takes it for a moment."""


@contextmanager
def locked(out_dir: Path) -> Iterator[None]:
    """Hold the lock of an output folder.

    Raises:
        OutputError: another run holds it, or the folder cannot be written.
    """
    try:
        descriptor = os.open(out_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"{out_dir}: cannot be written ({error.strerror}); choose another output folder.") from error
    try:
        _take(descriptor, out_dir)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, out_dir: Path) -> None:
    try:
        if _took(descriptor, fcntl.LOCK_EX, PATIENCE_S):
            return
    except OSError as error:
        raise OutputError(
            f"{out_dir}: its file system keeps no locks ({error.strerror}), so that two runs could mix their results; "
            "choose a folder on another, or have locks turned on."
        ) from error
    raise OutputError(f"{out_dir}: another run works in this folder; wait for it, or choose another folder.")


def is_held(out_dir: Path) -> bool:
    """Return whether a run works in an output folder now."""
    try:
        descriptor = os.open(out_dir / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _took(descriptor, fcntl.LOCK_SH, 0.0)
    except OSError:  # a file system without locks, so nobody can hold one
        return False
    finally:
        os.close(descriptor)


def _took(descriptor: int, kind: int, patience_s: float) -> bool:
    """Try to take a lock; return whether it was taken."""
    end_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end_s:
                return False
            time.sleep(PATIENCE_S / 20)
        else:
            return True
