"""The folder that an import makes: never in place of anything but a bundle, and of that only if it is asked for."""

import os
import re
from pathlib import Path

from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.metadata import is_bundle
from voxelgate.core.errors import OutputError
from voxelgate.core.exchange import exchange_names
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


def take_name(folder: Path, out: Path, scratch: Path) -> None:
    """Give a finished folder its name; what has the name now goes to a scratch folder.

    Names are exchanged at one moment, so that a program that is killed leaves the older bundle or the new one. Where a
    file system cannot do that, the older one is moved aside first, and back if the other cannot take its name.
    """
    if not out.exists():
        folder.replace(out)
        return
    if exchange_names(folder, out):
        return
    older = new_scratch(scratch)
    out.replace(older)
    try:
        folder.replace(out)
    except BaseException:
        older.replace(out)
        raise
