"""What a header may take: a stream that refuses too much before it is unpacked, and mends texts that stop pydicom."""

import zlib
from io import SEEK_SET, BytesIO
from typing import IO

from pydicom.charset import python_encoding

MOST_VALUE_BYTES = 2**20
"""Length of one value of a header that is read; those that are looked at have some kB, all others are passed over."""

MOST_WORK = 200_000
"""Reads that one header may take, of which each 64 bytes count once more; headers of one image take some thousand."""

WORK_BYTES = 64

MOST_HEADER_BYTES = 32 * 2**20
"""What the deflated header of a file may unpack to; those of some thousand frames have 10 MB."""

INFLATED_AT_ONCE = 2**20

_CHARACTER_SET = (b"\x08\0\x05\0", b"\0\x08\0\x05")
"""Tag of Specific Character Set, little and big endian."""

_ELEMENT_BYTES = 8
"""Tag, type and length of a short element, which pydicom reads at a time."""


class TooLargeError(Exception):
    """A header holds more than is read.

    Args:
        reason: what of it, as the rest of a sentence that starts with the header.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BoundedStream:
    """A stream of DICOM for pydicom, which reads whatever a file says is there.

    Specific Character Set is replaced by spaces where it is none: pydicom raises at some, and texts count as Latin-1
    here anyway.

    Args:
        stream: seekable.
        most_work: reads and further 64 bytes until it refuses.
        most_value_bytes: longest value.
    """

    def __init__(
        self, stream: IO[bytes], *, most_work: int = MOST_WORK, most_value_bytes: int = MOST_VALUE_BYTES
    ) -> None:
        self.has_bad_character_set = False
        self._stream = stream
        self._most_work, self._work_left = most_work, most_work
        self._most_value_bytes = most_value_bytes
        self._character_set_bytes = 0

    def renew(self) -> None:
        """Let it take as much again, for the next frame."""
        self._work_left = self._most_work

    def read(self, count: int = -1) -> bytes:
        """Return so many bytes, or fewer at the end.

        Raises:
            TooLargeError: beyond the limits.
        """
        if not 0 <= count <= self._most_value_bytes:
            raise TooLargeError(f"holds an element of more than {self._most_value_bytes >> 20} MiB")
        self._work_left -= 1 + count // WORK_BYTES
        if self._work_left < 0:
            raise TooLargeError("holds more elements than any scanner writes")
        content = self._stream.read(count)
        if count == self._character_set_bytes:
            content = self._mended(content)
        self._character_set_bytes = _length_of_character_set(content) if count == _ELEMENT_BYTES else 0
        return content

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Go somewhere."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return where it stands."""
        return self._stream.tell()

    def _mended(self, character_set: bytes) -> bytes:
        text = character_set.strip(b" \0")
        is_known = all(map(_is_character_set, text.split(b"\\")))
        self.has_bad_character_set |= not is_known
        return (text if is_known else b"").ljust(len(character_set))


def _length_of_character_set(element: bytes) -> int:
    """Return the length of the value that follows if the element is Specific Character Set, else 0."""
    if not element.startswith(_CHARACTER_SET):
        return 0
    if element[4:6] != b"CS":
        return int.from_bytes(element[4:], "little")
    return int.from_bytes(element[6:], "little" if element.startswith(_CHARACTER_SET[0]) else "big")


def _is_character_set(name: bytes) -> bool:
    """Return whether a name is that of a character set, in DICOM's spelling, Python's, or nearly so."""
    if not name.isascii() or b"\0" in name:
        return False
    return not name.strip() or _letters_and_digits(name.decode()) in _CHARACTER_SETS


def _letters_and_digits(name: str) -> str:
    return "".join(filter(str.isalnum, name)).upper()


_CHARACTER_SETS = frozenset(map(_letters_and_digits, (*python_encoding, *python_encoding.values(), "ISO_IR 203"))) - {
    ""
}
"""Those that pydicom knows, and Latin 9, which is newer (PS3.3 C.12.1.1.2)."""


def inflated(stream: IO[bytes], most_bytes: int) -> tuple[BytesIO, bool]:
    """Unpack a deflated data set (PS3.5 A.5), at whose start the stream stands, up to a length.

    Returns:
        What there is, and whether that is all of it.

    Raises:
        zlib.error: it is damaged.
    """
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    found = BytesIO()
    packed = stream.read(INFLATED_AT_ONCE)
    while packed and not unpacker.eof and found.tell() < most_bytes:
        found.write(unpacker.decompress(packed, min(INFLATED_AT_ONCE, most_bytes - found.tell())))
        packed = unpacker.unconsumed_tail or stream.read(INFLATED_AT_ONCE)
    found.seek(0)
    return found, unpacker.eof
