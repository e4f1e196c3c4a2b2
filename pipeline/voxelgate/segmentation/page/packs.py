"""Files beside a page that hold the previews of its cases; its script loads the one that it needs.

A page that is opened from a disk may read no file, but it may load a script. A file is called by a hash of what it
holds, so that a page never shows pictures of another one: neither while it is made again, nor after.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from voxelgate.core.errors import OutputError
from voxelgate.core.files import make_folder, write_text

PACK_BYTES = 2_000_000
"""Text of a file, unless one preview is longer: some 25 cases, which a browser loads in no time."""

CALLED = "voxelgatePreviews"
"""Function of the page's script to which a file hands its previews."""

NAME = re.compile(r"[0-9a-f]{16}\.js")


def pack_folder(page: Path) -> Path:
    """Return the folder beside a page in which its previews lie.

    >>> pack_folder(Path("results/report.html")).name
    'report_files'
    """
    return page.with_name(f"{page.stem}_files")


def write_packs(folder: Path, previews: Iterable[tuple[int, Mapping[str, object]]]) -> dict[int, str]:
    """Write previews, many in a file and one file at a time in memory; other files stay.

    Args:
        folder: of the files; made if need be.
        previews: number of a case, and its preview as JSON values.

    Returns:
        The name of its file, without the ending, by the number of each case.

    Raises:
        OutputError: the folder is a link or a file, or cannot be made.
        OSError: a file cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder}: is a link or a file, expected a folder for the pictures of the page; remove it.")
    make_folder(folder)
    name_of: dict[int, str] = {}
    for pack in _packed(previews):
        text = f"{CALLED}({json.dumps(pack)});\n"
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        write_text(folder / f"{name}.js", text)
        name_of |= dict.fromkeys(pack, name)
    return name_of


def pack_names(folder: Path) -> set[str]:
    """Return the names of all files of previews in a folder; none if there is no such folder."""
    if folder.is_symlink() or not folder.is_dir():
        return set()
    return {path.stem for path in folder.iterdir() if NAME.fullmatch(path.name)}


def remove_packs(folder: Path, needed: Collection[str]) -> None:
    """Remove the files that no page needs, and a folder that is then empty; what somebody else put there stays."""
    with suppress(OSError):  # they harm nobody, and the next page tries again
        for name in pack_names(folder) - set(needed):
            (folder / f"{name}.js").unlink()
        folder.rmdir()


def _packed(previews: Iterable[tuple[int, Mapping[str, object]]]) -> Iterator[Mapping[int, str]]:
    """Yield as many previews as a file holds, each as the text of its JSON, which no browser takes for a program."""
    pack: dict[int, str] = {}
    for number, preview in previews:
        text = json.dumps(preview)
        if pack and sum(map(len, pack.values())) + len(text) > PACK_BYTES:
            yield pack
            pack = {}
        pack[number] = text
    if pack:
        yield pack
