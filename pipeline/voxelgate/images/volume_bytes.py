"""The bytes of volume files: regular files and members of zips only, unpacked piece by piece, never beyond a bound."""

import errno
import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from voxelgate.core.files import open_file
from voxelgate.images.volume_header import HeaderError, Packing, Source, Stored

PIECE_BYTES = 2**16
"""Bytes that are read and unpacked at a time; unpacked they are at most a thousand times as many."""

GZIP_MAGIC = b"\x1f\x8b"

GZIP_BITS, ZLIB_BITS = 31, 15
"""`wbits` of the two formats of one compression, with their checksums (zlib.h, inflateInit2)."""

RAW_BYTES = 2**20
"""Bytes that are read at a time of what is not packed."""

MOST_RATIO = 1032
"""What Deflate packs at most into one byte (RFC 1951)."""

MOST_SURPLUS_BYTES = 2**26
"""Bytes behind the voxels up to which the rest of a packed file is unpacked, to compare its checksum."""


PLAIN_NAME = re.compile(r"[^/\\:\0-\x1f]+")
"""A name that leads to no other folder on any system."""


class ZipMember(NamedTuple):
    """A file inside an archive, named by a path that leads through the archive as if it were a folder."""

    archive: Path
    name: str


def member_of(path: Path) -> ZipMember | None:
    """Return the archive and the name in it of a path that leads through a zip; None for any other path."""
    for folder in path.parents:
        if folder.suffix.lower() == ".zip" and folder.is_file():
            return ZipMember(folder, path.relative_to(folder).as_posix())
    return None


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, or a member of a zip, and tell its size; what is none is not opened.

    Raises:
        HeaderError: it is not there, or a folder, a pipe, a device, or a link that leads nowhere.
        OSError: it cannot be read.
    """
    member = member_of(path)
    if member is not None:
        with _open_member(member) as opened:
            yield opened
        return
    refuse_irregular(path)
    with open_file(path) as file:  # another file may have got the name meanwhile
        yield file, os.fstat(file.fileno()).st_size


def refuse_irregular(path: Path, what: str = "") -> None:
    """Refuse what is no regular file before it is opened, for opening a pipe may hang and a device may act.

    Args:
        path: of the file.
        what: how to begin the sentence.

    Raises:
        HeaderError: it is none, or leads nowhere.
        OSError: nobody can tell.
    """
    try:
        _refuse_mode(path.stat().st_mode, what)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise HeaderError(f"{what}does not exist, expected an image file; check the path.") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise HeaderError(f"{what}is a link that leads to itself, expected an image file.") from error
        raise


def beside(header: Source, name: str) -> Path:
    """Return the file that a header names, if it lies beside the header; a name that leads elsewhere is not touched.

    Raises:
        HeaderError: no other file may be named, or the name stands for several, or for what is no regular file.
    """
    path = header.path
    if not header.may_name_others:
        raise HeaderError("a header whose voxels lie in another file; save it as one file.")
    if member_of(path) is not None:
        raise HeaderError("a header whose voxels lie in another file of the archive; unpack the archive first.")
    if not name or name in {".", ".."} or not PLAIN_NAME.fullmatch(name):
        raise HeaderError("a header whose voxels lie in another folder; put both files into one, or save as NIfTI.")
    if "%" in name or name.upper().split()[0] == "LIST":
        raise HeaderError("a header whose voxels lie in several files; save them as one file, such as NIfTI.")
    target = path.parent / name
    refuse_irregular(target, "the file that holds its voxels, and that its header names, ")
    if target.samefile(path):
        raise HeaderError("a header that names itself as the file of its voxels; save it as one file.")
    if target.resolve().parent != path.parent.resolve():
        raise HeaderError("a header whose voxels lie behind a link to another folder; put the file beside the header.")
    return target


def first_bytes(file: BinaryIO, count: int) -> tuple[bytes, Packing]:
    """Return the first bytes of a file, unpacked if it starts like a gzip file, whatever its name says.

    Raises:
        EOFError: the compression ends too early.
        IsalError: it is damaged.
    """
    magic = file.read(len(GZIP_MAGIC))
    file.seek(0)
    if magic != GZIP_MAGIC:
        return file.read(count), Packing.NONE
    start = b""
    for piece in _inflated(file, Packing.GZIP, piece_bytes=2 * count):
        start += piece
        if len(start) >= count:
            break
    return start[:count], Packing.GZIP


def stream_of(stored: Stored) -> Iterator[memoryview]:
    """Yield the bytes of some voxels, and all that come behind them, piece by piece.

    Raises:
        EOFError: the compression ends too early.
        IsalError: it is damaged.
        HeaderError: something else follows the compression.
    """
    left = stored.skip
    with open_regular(stored.path) as (file, _):
        file.seek(stored.starts_at)
        is_packed = stored.packing in {Packing.GZIP, Packing.ZLIB}
        for piece in _inflated(file, stored.packing) if is_packed else iter(lambda: file.read(RAW_BYTES), b""):
            if left < len(piece):
                yield memoryview(piece)[left:]
            left = max(left - len(piece), 0)


def whole_content(size: int, pieces: Iterable[memoryview]) -> tuple[npt.NDArray[np.uint8], int]:
    """Return so many bytes of a stream, and how many more there are behind them.

    Raises:
        HeaderError: the stream ends before, or goes on for ever.
    """
    found, at = np.empty(size, np.uint8), 0
    for piece in pieces:
        part = piece[: max(size - at, 0)]
        found[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(piece)
        if at - size > MOST_SURPLUS_BYTES:
            raise HeaderError(f"far more than the {size} bytes that its voxels need; export it again.")
    if at < size:
        raise too_short(size, at)
    return found, at - size


def raw_content(size: int, stored: Stored) -> npt.NDArray[np.uint8]:
    """Return so many bytes of a stream that is not packed, at the speed of the disk.

    Raises:
        HeaderError: the stream ends before.
    """
    with open_regular(stored.path) as (file, _):
        file.seek(stored.starts_at + stored.skip)
        found, at = np.empty(size, np.uint8), 0
        while count := file.readinto(found.data[at:]):  # type: ignore[attr-defined]  # typeshed knows it of raw files
            at += count
    if at < size:
        raise too_short(size, at)
    return found


def too_short(needed: int, found: int) -> HeaderError:
    """Return what to raise where voxels are missing."""
    return HeaderError(
        f"the file ends too early: its voxels need {needed} bytes, {found} are there; copy or export it again."
    )


def _inflated(file: BinaryIO, packing: Packing, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """Yield what a compressed stream holds; a gzip file may have several members, and zeros behind them."""
    rest = file.read(piece_bytes)
    is_gzip = rest.startswith(GZIP_MAGIC)
    if not is_gzip and (packing is Packing.GZIP or not _is_zlib(rest)):
        raise HeaderError("voxels that are not packed, although its header says so; export it again.")
    while True:
        packed: Any = isal_zlib.decompressobj(GZIP_BITS if is_gzip else ZLIB_BITS)
        while not packed.eof:
            if not rest:
                raise EOFError
            yield packed.decompress(rest)
            rest = b"" if packed.eof else file.read(piece_bytes)
        rest = packed.unused_data.lstrip(b"\0")
        while not rest and (more := file.read(piece_bytes)):
            rest = more.lstrip(b"\0")
        if not rest:
            return
        if not is_gzip or not rest.startswith(GZIP_MAGIC[:1]):
            raise HeaderError(
                "bytes behind the end of its compression that belong to nothing; copy or export it again."
            )


def _is_zlib(start: bytes) -> bool:
    """Return whether a stream starts like one of zlib (RFC 1950, 2.2), or is too short to tell."""
    return len(start) < 2 or (start[0] & 15 == 8 and int.from_bytes(start[:2], "big") % 31 == 0)


def _refuse_mode(mode: int, what: str = "") -> None:
    if stat.S_ISDIR(mode):
        raise HeaderError(f"{what}is a folder, expected an image file; check the path.")
    if not stat.S_ISREG(mode):
        raise HeaderError(f"{what}is a pipe, socket or device, expected a regular file; check the path.")


@contextmanager
def _open_member(member: ZipMember) -> Iterator[tuple[BinaryIO, int]]:
    try:
        with zipfile.ZipFile(member.archive) as archive, archive.open(member.name) as file:
            yield cast("BinaryIO", file), archive.getinfo(member.name).file_size
    except KeyError as error:
        raise HeaderError("is not in the archive any more; check the path.") from error
