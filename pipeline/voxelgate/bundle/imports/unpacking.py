"""Unpack a zip from elsewhere: it is looked at as a whole first, and nothing is written of one that is not safe."""

import shutil
import stat
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

from voxelgate.core.errors import InputError

MOST_RATIO = 200
"""Of all that a zip holds to its own size. Weights shrink by a tenth, texts to a twentieth; deflate reaches 1032."""

FREE_OF_SUSPICION_BYTES = 2**26
"""A zip that becomes no larger than this is no bomb whatever its ratio."""

MOST_MEMBERS = 100_000
"""In a zip; a bundle has a hundred files, an nnU-Net folder with its validation some thousand."""

SPARE_DISK_BYTES = 2**28
"""Stays free where a zip is unpacked."""

DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
"""What `zipfile` raises where bytes were changed, also for versions of the format and letters that do not exist."""

_LINK_OR_DEVICE = "a link, pipe or device"
_ENCRYPTED = 0x1
"""Bit of the general purpose flag (APPNOTE.TXT 4.4.4)."""

_OF_MACOS = ("__MACOSX/", ".DS_Store")
"""What its Finder adds to zips."""


def is_torch_archive(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, which is a zip with a folder of code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, *DAMAGED_ZIP):
        return False
    tops = {name.split("/")[0] for name in names}
    return len(tops) == 1 and f"{tops.pop()}/constants.pkl" in names


def unpack(path: Path, folder: Path) -> None:
    """Unpack a zip into a folder that is there and empty.

    Raises:
        InputError: it is no zip, it is damaged, or it holds what is not safe to unpack; nothing of it is written then.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not _is_of_macos(one.filename)]
            refuse_unsafe(members, path, folder)
            for member in members:
                _write(archive, member, folder)
    except DAMAGED_ZIP as error:
        raise InputError(f"{path.name}: is no zip that can be unpacked ({error}); copy it again.") from error
    except OSError as error:
        raise InputError(
            f"{path.name}: cannot be unpacked ({error.strerror or error}); free the disk, or set TMPDIR to another."
        ) from error


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / member.filename
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as packed, target.open("xb") as file:
        shutil.copyfileobj(packed, file)


def refuse_unsafe(members: list[zipfile.ZipInfo], path: Path, folder: Path) -> None:
    """Refuse a zip with a member that is not safe to unpack into a folder, or with more than fits.

    Raises:
        InputError: it is such a one.
    """
    if len(members) > MOST_MEMBERS:
        raise InputError(f"{path.name}: holds {len(members)} files, no model has so many; nothing of it is unpacked.")
    for member in members:
        if fault := _fault_of(member):
            raise InputError(f"{path.name}: the member {member.filename!a} {fault}; nothing of it is unpacked.")
    if twice := _name_of_several(members):
        raise InputError(f"{path.name}: the member {twice!a} stands in it twice; nothing of it is unpacked.")
    size, own = sum(member.file_size for member in members), path.stat().st_size
    if size > FREE_OF_SUSPICION_BYTES and size > MOST_RATIO * own:
        raise InputError(
            f"{path.name}: would become {size / own:.0f} times as large, and no model is packed so well; nothing of it "
            "is unpacked."
        )
    free = shutil.disk_usage(folder).free - SPARE_DISK_BYTES
    if size > free:
        raise InputError(
            f"{path.name}: holds {size / 2**20:.0f} MiB, but only {max(free, 0) / 2**20:.0f} MiB are free in "
            f"{folder.parent}; free the disk, or set TMPDIR to another."
        )


def _name_of_several(members: list[zipfile.ZipInfo]) -> str | None:
    """Return a name that two files have, or a file and a folder, on a disk that knows no upper case."""
    files = [PurePosixPath(member.filename.casefold()) for member in members if not member.is_dir()]
    folders = {parent for file in files for parent in file.parents}
    return next((str(name) for name, count in Counter(files).items() if count > 1 or name in folders), None)


def _fault_of(member: zipfile.ZipInfo) -> str | None:
    """Say what is not safe about a member, or return None."""
    name = member.orig_filename
    if "\\" in name or "\0" in name or ":" in name.split("/")[0]:
        return "has a name that other systems read as another path"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        return "leads out of the folder"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"is {_LINK_OR_DEVICE}"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    return None


def _is_of_macos(name: str) -> bool:
    return name.startswith(_OF_MACOS[0]) or PurePosixPath(name).name == _OF_MACOS[1]
