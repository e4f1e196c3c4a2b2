"""The folder that an import makes: never in place of anything but a bundle, and of that only if it is asked for."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.metadata import is_bundle
from voxelgate.core.errors import OutputError
from voxelgate.core.files import new_scratch

_NOT_OF_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


def name_of_kept(text: str) -> str:
    """Return the name of a bundle that can be one of a folder, too.

    >>> name_of_kept("../my blob!")
    'my_blob'
    """
    return _NOT_OF_A_NAME.sub("_", text).strip("._-") or "imported"


def refuse_taken(out: Path, source: ImportSource, *, overwrite: bool) -> None:
    """Refuse a folder that may not be made.

    Raises:
        OutputError: something is there that is no bundle, or is one and may not be replaced; or source and folder lie
            in each other.
    """
    if os.path.lexists(out) and (out.is_symlink() or not is_bundle(out)):
        raise OutputError(f"{out}: is there already and no bundle; choose another folder with --out.")
    if os.path.lexists(out) and not overwrite:
        raise OutputError(f"{out}: exists already; pass --overwrite, or choose another folder with --out.")
    target, root = out.resolve(), (source.file or source.root).resolve()
    if target.is_relative_to(root) or root.is_relative_to(target):
        raise OutputError(f"{out}: lies in what is imported, or holds it; choose another folder with --out.")


@contextmanager
def moved_aside(out: Path, scratch: Path) -> Iterator[None]:
    """Move what has a name to a scratch folder while another takes the name, and back if that fails."""
    older = new_scratch(scratch)
    if not out.exists():
        yield
        return
    out.replace(older)
    try:
        yield
    except BaseException:
        older.replace(out)
        raise
