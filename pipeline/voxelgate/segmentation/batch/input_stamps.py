"""Whether the input of a case is still what it was: a SHA-256 of what its files hold, and a quick sign of change."""

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from voxelgate.core.errors import InputError
from voxelgate.dicom.read.dicom_files import FileRef
from voxelgate.images.volumes import read_volume_header
from voxelgate.segmentation.cases import Case

HEADER_SUFFIXES = (".mhd", ".mha", ".nrrd")
"""Endings of files whose voxels may lie in another."""

SETTLED_NS = 2 * 10**9
"""Age below which a file may change without a new time stamp: file systems count in steps of up to 2 s (FAT)."""


def content_sha256(case: Case) -> str:
    """Return a SHA-256 of what the input files of a case hold, in hex; names do not count, nor order but of channels.

    Raises:
        OSError: a file cannot be read.
    """
    digests = list(map(_digest_of_files, _all_files(case)))
    return hashlib.sha256(b"".join(digests if case.further_channels else sorted(digests))).hexdigest()


def stamp_of(case: Case) -> str:
    """Return a sign that differs whenever an input file was written to, as far as the file system tells; cheap.

    The names of files that only a header names stand in it, so that `is_as_stamped` need not open any.

    Raises:
        OSError: a file is not there.
    """
    listed = {file.path for file in case.input_files}
    found = {file.path for file in _all_files(case)}
    named = [os.path.relpath(path, _folder_of(listed)) for path in sorted(found - listed)]
    return " ".join([stamp_of_path(found), *(os.fsencode(name).hex() for name in named)])


def is_as_stamped(case: Case, stamp: str) -> bool:
    """Return whether the input files are surely those of a `stamp_of`; none is opened.

    Raises:
        OSError: a file is not there.
        ValueError: the stamp is none.
    """
    digest, *named = stamp.split(" ")
    listed = {file.path for file in case.input_files}
    beside = {Path(os.path.normpath(_folder_of(listed) / os.fsdecode(bytes.fromhex(name)))) for name in named}
    return bool(digest) and stamp_of_path(listed | beside) == digest


def lasting_stamp_of(case: Case) -> str:
    """Return `stamp_of` if the files are old enough for it to tell every later change; else an empty text.

    Raises:
        OSError: a file is not there.
    """
    facts = [file.path.stat() for file in _all_files(case)]
    newest_ns = max((max(fact.st_mtime_ns, fact.st_ctime_ns) for fact in facts), default=0)
    return stamp_of(case) if newest_ns + SETTLED_NS < time.time_ns() else ""


def stamp_of_path(paths: Iterable[Path]) -> str:
    """Return names, sizes, times and numbers of some files as one text, hashed."""
    facts = [(os.fspath(path), path.stat()) for path in sorted(paths)]
    text = "\n".join(f"{name} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for name, s in facts)
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _folder_of(paths: Iterable[Path]) -> Path:
    return min(paths).parent


def _digest_of_files(file: FileRef) -> bytes:
    with file.open() as stream:
        return hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]  # IO of the stubs lacks readinto


def _all_files(case: Case) -> list[FileRef]:
    listed = case.input_files
    return [*listed, *(FileRef(path) for file in listed for path in _data_files(file.path))]


def _data_files(path: Path) -> list[Path]:
    """Return the file beside a header that holds its voxels, if it is another; none of a header that is refused."""
    if not path.name.lower().endswith(HEADER_SUFFIXES):
        return []
    try:
        stored_in = read_volume_header(path).stored.path
    except InputError:
        return []
    return [] if stored_in == path else [stored_in]
