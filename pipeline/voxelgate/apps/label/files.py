"""Write files that are whole when they have their names, however the process ends and whoever reads meanwhile."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text; a file of that name is replaced."""
    with _partial(path) as partial:
        partial.write_text(text, encoding="utf-8")


def place_copy(path: Path, to: Path) -> None:
    """Copy a file; one that has the name already is replaced."""
    with _partial(to) as partial:
        shutil.copyfile(path, partial)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # others may write it at the same time
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
