"""What a compressed frame says of itself, read before a decoder sees it: on some damage GDCM ends the whole process."""

import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

JPEG_START = b"\xff\xd8"

J2K_START = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream and of its marker SIZ (ITU-T T.800 A.5.1)."""

END_OF_IMAGE = b"\xff\xd9"
"""Last marker of all JPEG codestreams; their coded data cannot contain it."""

END_PADDING = 64
"""Bytes after the last marker that are taken as padding whatever they are; DICOM allows one, some writers add more.

Padding of one byte value only may be of any length, as where fragments are filled up to a block of a disk.
"""

ANOTHER_IMAGE = re.compile(rb"\xff\xd9\0*(?:\xff\xd8\xff|\xff\x4f\xff\x51)")

JPEG_SIZES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Second byte of the markers that hold the size of an image (ITU-T T.81 B.1.1.3, T.87 for 0xF7)."""

HUFFMAN_TABLES, START_OF_SCAN = 0xC4, 0xDA

SEGMENTS = frozenset((*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xF7, 0xF8, 0xFE))
"""Second byte of the markers that may stand in front of the coded data, each with a length of its own."""

BITS_OF_JPEG = range(2, 17)
"""Bits of a sample that JPEG can hold (ITU-T T.81 table B.2). GDCM writes 16 where those of 12 bits say 12."""

LONGEST_CODE = 16
MOST_CODES = 256
LARGEST_DIFFERENCE = 16
"""Limits of a Huffman table (ITU-T T.81 B.2.4.2, H.1.2.2)."""

RLE_HEADER = struct.Struct("<16I")
"""Number of segments and their offsets (PS3.5 G.5)."""

RLE_NOTHING = 128
"""Control byte that stands for no bytes; those below start literal runs, those above repeated ones."""

RLE_SURPLUS = 1
"""Bytes that a segment may unpack to beyond the image: some encoders make odd numbers even. More would hide damage."""


class Codestream(NamedTuple):
    """What the header of a JPEG, JPEG-LS or JPEG 2000 codestream says."""

    rows: int
    columns: int
    components: int
    bits: int


def up_to_end(codestream: bytes) -> bytes | None:
    """Return a JPEG, JPEG-LS or JPEG 2000 codestream up to its last marker, or None if it does not end with padding."""
    end = codestream.rfind(END_OF_IMAGE) + len(END_OF_IMAGE)
    padding = codestream[end:].strip(b"\0")
    if end < len(END_OF_IMAGE) or (len(padding) > END_PADDING and len(set(padding)) > 1):
        return None
    return codestream[:end]


def describe_codestream(codestream: bytes) -> Codestream:
    """Return what a codestream says of itself.

    Raises:
        ValueError, IndexError, struct.error: its header is damaged.
    """
    return _jpeg(codestream) if codestream.startswith(JPEG_START) else _j2k(codestream)


def _j2k(codestream: bytes) -> Codestream:
    """Read the marker SIZ (ITU-T T.800 A.5.1)."""
    at = codestream.index(J2K_START) + 4
    right, bottom, left, top, *_, components, depth = struct.unpack_from(">4x8IHB", codestream, at)
    return Codestream(bottom - top, right - left, components, (depth & 0x7F) + 1)


def _jpeg(codestream: bytes) -> Codestream:
    """Read the markers in front of the coded data (ITU-T T.81 B.2)."""
    found: list[Codestream] = []
    for marker, content in _segments(codestream):
        if marker in JPEG_SIZES:
            bits, rows, columns, components = struct.unpack_from(">BHHB", content)
            if bits not in BITS_OF_JPEG:
                raise ValueError("an impossible number of bits")
            found.append(Codestream(rows, columns, components, bits))
        elif marker == HUFFMAN_TABLES:
            _check_tables(content)
    (only,) = found
    return only


def _segments(codestream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment up to the one that starts the coded data."""
    at, marker = len(JPEG_START), 0
    while marker != START_OF_SCAN:
        if codestream[at] != 0xFF:
            raise ValueError("no marker")
        marker = codestream[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker not in SEGMENTS:
            raise ValueError("a marker out of place")
        (length,) = struct.unpack_from(">H", codestream, at + 2)
        content = codestream[at + 4 : at + 2 + length]
        if len(content) != length - 2:
            raise ValueError("a segment that ends early")
        yield marker, content
        at += 2 + length


def _check_tables(content: bytes) -> None:
    """Refuse Huffman tables that no encoder writes; a decoder may read beyond their end."""
    at = 0
    while at < len(content):
        counts = content[at + 1 : at + 1 + LONGEST_CODE]
        values = content[at + 1 + LONGEST_CODE : at + 1 + LONGEST_CODE + sum(counts)]
        used = sum(count << (LONGEST_CODE - length) for length, count in enumerate(counts, start=1))
        is_for_differences = content[at] >> 4 == 0
        if len(counts) < LONGEST_CODE or len(values) < sum(counts) or len(values) > MOST_CODES:
            raise ValueError("a table that ends early")
        if used > 1 << LONGEST_CODE or (is_for_differences and max(values, default=0) > LARGEST_DIFFERENCE):
            raise ValueError("a table of impossible codes")
        at += 1 + LONGEST_CODE + len(values)


def whole_rle(codestream: bytes, pixels: int, bits_allocated: int) -> bytes:
    """Return an RLE frame none of whose runs ends beyond the image, where the decoder in Rust panics.

    Args:
        codestream: the frame, of one grey value a pixel; padding may follow each segment.
        pixels: rows x columns.
        bits_allocated: 8, 16 or 32; each byte of it has a segment.

    Raises:
        ValueError: what is wrong with the frame, as the rest of a sentence.
    """
    if len(codestream) < RLE_HEADER.size:
        raise ValueError("end too early")
    count, *offsets = RLE_HEADER.unpack_from(codestream)
    if count != bits_allocated // 8:
        raise ValueError(f"have {count} bytes a pixel, expected {bits_allocated // 8}")
    whole = bytearray(codestream)
    for start, end in pairwise([*offsets[:count], len(codestream)]):
        length, read, last = _unpacked(codestream, start, end, pixels)
        if length < pixels or start < RLE_HEADER.size:
            raise ValueError(f"do not unpack to {pixels} pixels")
        surplus = length - pixels
        if surplus:
            whole[last] += -surplus if codestream[last] < RLE_NOTHING else surplus
        if codestream[read:end].strip(b"\0\x80"):
            surplus += _unpacked(codestream, read, end, RLE_SURPLUS + 1)[0]
        if surplus > RLE_SURPLUS:
            raise ValueError(f"unpack to more than {pixels} pixels, as if there were more than one image")
    return bytes(whole)


def _unpacked(codestream: bytes, at: int, end: int, most: int) -> tuple[int, int, int]:
    """Unpack a segment (PS3.5 G.3.2) until it has the length `most`, to the end of the run in which it is reached.

    Returns:
        Its length, -1 if a run ends beyond the segment; where reading ended; where the last run starts.
    """
    length, last = 0, at
    while length < most and at < end:
        control = codestream[at]
        if control == RLE_NOTHING:
            at += 1
            continue
        is_literal = control < RLE_NOTHING
        length += control + 1 if is_literal else 257 - control
        last, at = at, at + (control + 2 if is_literal else 2)
    return (length if at <= end else -1, at, last)
