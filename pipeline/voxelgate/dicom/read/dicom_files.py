"""The files below a path: a folder and its sub-folders, a zip, a DICOMDIR or a single file; nothing is unpacked."""

import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from pydicom import DataElement, Dataset, dcmread
from pydicom.dataelem import RawDataElement

from voxelgate.core.errors import InputError
from voxelgate.core.files import open_file
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.bounded import BoundedStream

ZIP_MOST_FILES = 200_000
ZIP_MOST_BYTES = 64 * 2**30
ZIP_MOST_FILE_BYTES = 8 * 2**30
ZIP_MOST_RATIO = 100
"""Limits of an archive: a study has some thousand files, and packs to a half or a quarter, never to a hundredth."""

DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage (PS3.4 table I.4-1)."""

DICOMDIR_ELEMENT = b"\x02\0\x02\0UI\x14\0" + DICOMDIR_CLASS.encode()
"""The element of the meta header that says so: tag, type and length (PS3.10 7.1), and no longer UID."""

DICOMDIR_MOST_RECORDS = 200_000
DICOMDIR_MOST_BYTES = 2**26
DICOMDIR_MOST_WORK = 4_000_000
"""Limits of a DICOMDIR: a medium has some thousand files, each with a record of some hundred bytes."""

RECORD_START = b"\xfe\xff\0\xe0"
"""Tag of an item, little endian (PS3.5 7.5)."""

DICOM_MAGIC = b"DICM"


@dataclass(frozen=True, order=True)
class FileRef:
    """A file, or a member of a zip archive, which is read in place.

    Args:
        path: the file, or the archive.
        member: name inside the archive; empty for a file of its own.
    """

    path: Path
    member: str = ""

    def open(self) -> IO[bytes]:
        """Open for reading; a member of an archive is seekable too, but slowly.

        Raises:
            OSError: it cannot be read, or is a pipe or a device, as a DICOMDIR may name one.
        """
        return _archive(self.path).open(self.member) if self.member else open_file(self.path)

    def read(self) -> bytes:
        """Return the whole content."""
        with self.open() as file:
            return file.read()

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        if self.member:
            return _archive(self.path).getinfo(self.member).file_size
        return self.path.stat().st_size

    @property
    def is_missing(self) -> bool:
        """Return whether it was named, by a DICOMDIR or a link, but is not there."""
        return not self.member and not self.path.exists()

    @property
    def name(self) -> str:
        """Return its name without folders."""
        return PurePosixPath(self.member).name if self.member else self.path.name

    @property
    def is_archive(self) -> bool:
        """Return whether it is named like a zip; as a file of its own, one that was not looked into."""
        return self.name.lower().endswith(".zip")

    @property
    def folder(self) -> tuple[Path, str]:
        """Return what files of one folder share."""
        return (self.path, str(PurePosixPath(self.member).parent)) if self.member else (self.path.parent, "")


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"a folder cannot be listed ({error.strerror}); its images would be missed.") from error


def list_files(root: Path, on_closed: Callable[[OSError], None] = _refuse_folder) -> list[FileRef]:
    """Return every regular file below `root`, sorted; files of archives and those that a DICOMDIR names too.

    Hidden files (`.DS_Store`) and links to folders are passed over. A DICOMDIR that is given by itself is followed; in
    a folder it is a file like any other, since the folder is searched anyway. An archive in a folder that is refused
    stands for itself, so that it is told as unreadable and does not hide the rest.

    Args:
        root: folder or file.
        on_closed: told of each folder that cannot be listed; without it such a folder is refused.

    Raises:
        InputError: nothing is there, a folder cannot be listed, the archive is damaged, encrypted or beyond the limits,
            holds links, paths that leave it or several files of one name, or a DICOMDIR names files outside its folder.
    """
    if root.is_dir():
        return [ref for path in _below(root, on_closed) for ref in _members_or_archive(path)]
    if not root.is_file():
        found = "is a pipe, a device or a link that leads nowhere" if os.path.lexists(root) else "does not exist"
        raise InputError(f"{root.name}: {found}, expected a file, a folder or a zip of files; check the path.")
    return _named_by_dicomdir(root) if _is_dicomdir(root) else _with_members(root)


def _below(folder: Path, on_closed: Callable[[OSError], None]) -> Iterator[Path]:
    for directory, subfolders, names in os.walk(folder, onerror=on_closed):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(directory, name)
            if not name.startswith(".") and (path.is_file() or _is_lost(path, names)):
                yield path


def _is_lost(path: Path, names: Iterable[str]) -> bool:
    """Return whether a path is a link to a file that is not there, while a neighbour of such a name is."""
    if not path.is_symlink() or path.exists():
        return False
    return any(like(name) == like(path.name) and path.with_name(name).is_file() for name in names)


def like(name: str) -> str:
    """Return what the names of files share that were numbered.

    >>> like("IM0012") == like("IM0001")
    True
    """
    return re.sub(r"[0-9]+", "0", name)


def _members_or_archive(path: Path) -> list[FileRef]:
    try:
        return _with_members(path)
    except InputError:
        return [FileRef(path)]


def _with_members(path: Path) -> list[FileRef]:
    is_zip = path.suffix.lower() == ".zip" and path.exists() and zipfile.is_zipfile(path)
    return _members(path) if is_zip else [FileRef(path)]


def _members(path: Path) -> list[FileRef]:
    try:
        members = [info for info in _archive(path).infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise InputError(f"{path.name}: the archive is damaged; copy it again.") from error
    if (reason := _why_refused(members)) is not None:
        raise InputError(f"{path.name}: {reason}; unpack it yourself if you trust it.")
    visible = [info for info in members if not any(part.startswith(".") for part in PurePosixPath(info.filename).parts)]
    return sorted(FileRef(path, info.filename) for info in visible)


def _why_refused(members: list[zipfile.ZipInfo]) -> str | None:
    unpacked, packed = sum(info.file_size for info in members), sum(info.compress_size for info in members)
    checks = (
        (len(members) > ZIP_MOST_FILES, f"the archive holds {len(members)} files, expected at most {ZIP_MOST_FILES}"),
        (unpacked > ZIP_MOST_BYTES, f"the archive unpacks to {unpacked / 2**30:.0f} GiB, more than is accepted"),
        (any(info.file_size > ZIP_MOST_FILE_BYTES for info in members), "a file of the archive is too large"),
        (unpacked > ZIP_MOST_RATIO * max(packed, 1), f"it unpacks to more than {ZIP_MOST_RATIO} times its size"),
        (any(info.flag_bits & 1 for info in members), "the archive is encrypted"),
        (any(stat.S_ISLNK(info.external_attr >> 16) for info in members), "the archive holds links"),
        (any(_leaves(info.filename) for info in members), "the archive holds paths that leave it"),
        (len({info.filename for info in members}) < len(members), "the archive holds several files of one name"),
    )
    return next((reason for is_bad, reason in checks if is_bad), None)


def _leaves(name: str) -> bool:
    """Return whether a path points out of the folder it is relative to, on any system."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name.startswith(("/", "\\")) or name[1:2] == ":"


def _is_dicomdir(path: Path) -> bool:
    """Return whether a file is a DICOMDIR; its meta header says so, whatever its name is."""
    with path.open("rb") as file:
        start = file.read(1024)
    return start[128:132] == DICOM_MAGIC and DICOMDIR_ELEMENT in start


def _named_by_dicomdir(path: Path) -> list[FileRef]:
    with quiet_pydicom(), path.open("rb") as file:
        stream = BoundedStream(file, most_work=DICOMDIR_MOST_WORK, most_value_bytes=DICOMDIR_MOST_BYTES)
        try:
            records = _records(dcmread(cast("BinaryIO", stream)))
            named = [_file_id(record) for record in records if "ReferencedFileID" in record]
        except Exception as error:  # pydicom raises nearly anything on damaged input
            raise InputError(f"{path.name}: the DICOMDIR is damaged or too large; give its folder instead.") from error
    if any(_leaves("/".join(parts)) for parts in named):
        raise InputError(f"{path.name}: the DICOMDIR names files outside its folder; give the folder instead.")
    return sorted({FileRef(_on_disk(path.parent, parts)) for parts in named})


def _records(dicomdir: Dataset) -> Iterable[Dataset]:
    """Return the records of a DICOMDIR.

    Raises:
        ValueError: they are cut off, which pydicom takes as it is without a word, or too many.
    """
    element: DataElement | RawDataElement | None = dicomdir.get_item("DirectoryRecordSequence")
    if isinstance(element, RawDataElement) and (element.value or b"").count(RECORD_START) > DICOMDIR_MOST_RECORDS:
        raise ValueError("too many directory records")
    if element is None or (isinstance(element, RawDataElement) and len(element.value or b"") != element.length):
        raise ValueError("no directory records, or not all")
    return dicomdir.get("DirectoryRecordSequence") or ()


def _file_id(record: Dataset) -> tuple[str, ...]:
    value = record.ReferencedFileID
    return (value,) if isinstance(value, str) else tuple(str(part) for part in value)


def _on_disk(folder: Path, parts: tuple[str, ...]) -> Path:
    """Return the file that a DICOMDIR means; media that were copied often have lower-case names."""
    path = folder.joinpath(*parts)
    lower = folder.joinpath(*(part.lower() for part in parts))
    return lower if not path.exists() and lower.exists() else path


def _archive(path: Path) -> zipfile.ZipFile:
    return _opened_archive(path, path.stat().st_mtime_ns, os.getpid())


@lru_cache(maxsize=8)
def _opened_archive(path: Path, _mtime_ns: int, _process: int) -> zipfile.ZipFile:
    """Return the open archive; one that changed is opened anew, and processes must not share a file position."""
    return zipfile.ZipFile(path)
