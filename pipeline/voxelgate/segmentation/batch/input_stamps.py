"""Whether the input of a case is still what it was: a SHA-256 of what its files hold, and a quick sign of change."""

import hashlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from voxelgate.dicom.read.dicom_files import FileRef
from voxelgate.segmentation.cases import Case

HEADER_BYTES = 2**16
"""Part of a MetaImage or NRRD file in which its text header is looked for."""

DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
"""The line of a MetaImage or NRRD header that names the file with the voxels."""

HEADER_SUFFIXES = (".mhd", ".mha", ".nrrd")

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

    Raises:
        OSError: a file is not there.
    """
    return stamp_of_path({file.path for file in _all_files(case)})


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


def _digest_of_files(file: FileRef) -> bytes:
    with file.open() as stream:
        return hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]  # IO of the stubs lacks readinto


def _all_files(case: Case) -> list[FileRef]:
    listed = case.input_files
    return [*listed, *(FileRef(path) for file in listed for path in _data_files(file.path))]


def _data_files(path: Path) -> list[Path]:
    """Return the files that hold the voxels of a header file, as far as it names them one by one."""
    if not path.name.lower().endswith(HEADER_SUFFIXES):
        return []
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if (line := DATA_FILE.search(header)) is None:
        return []
    is_list = line[1].upper().startswith(b"LIST")
    names = header[line.end() :].splitlines() if is_list else [line[1]]
    named = [path.parent / os.fsdecode(name.strip()) for name in names if name.strip() and b"\0" not in name]
    return [one for one in named if one.is_file()]
