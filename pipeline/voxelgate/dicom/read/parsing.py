"""Go through the header of one DICOM file within bounds: what is asked for, then frame by frame, then to its pixels."""

import struct
from collections.abc import Callable, Iterable, Iterator
from io import SEEK_END, BytesIO
from typing import IO, BinaryIO, NamedTuple, cast

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from voxelgate.dicom.read.bounded import MOST_HEADER_BYTES, BoundedStream, TooLargeError, inflated
from voxelgate.dicom.read.dicom_files import DICOM_MAGIC

PIXEL_DATA_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
"""Pixel Data, Float Pixel Data and Double Float Pixel Data (PS3.3 C.7.6.24)."""

FRAME_GROUPS_TAG = 0x52009230
"""Per-frame Functional Groups Sequence (PS3.3 C.7.6.16)."""

UNDEFINED_LENGTH = 0xFFFFFFFF
"""Length of sequences, and of pixel data that are encapsulated frame by frame (PS3.5 7.5, A.4)."""

LAST_COMMON_GROUP = 0x0028
"""Group up to which an object says what it is, whose it is and how large; what follows is for images alone."""

WHOLE_WORK, WHOLE_VALUE_BYTES = 20_000_000, 2**28
"""Bounds of a header that is read with all that it holds; elements that were passed over before may be long."""

_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE0DD
_HEAD_BYTES = 8
_META_BYTES = 4096
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UN")


class PixelPlace(NamedTuple):
    """Where the pixel data lie.

    Args:
        offset: byte of the file at which their value starts; None without, or where it is deflated.
        length: bytes; -1 if encapsulated or deflated; None without.
        is_float: whether they are Float or Double Float Pixel Data.
    """

    offset: int | None = None
    length: int | None = None
    is_float: bool = False


class _Head(NamedTuple):
    """Tag and length of an element or item, and where its value starts."""

    tag: int
    length: int
    value_at: int


class HeaderParser:
    """Reads a header to its pixel data: `elements`, `further_elements`, `frame_groups`, `pixel_place`, in this order.

    Elements that are not asked for are passed over, so that neither their size nor what they hold matters.

    Args:
        stream: at the start of a file.
        tags: elements that are wanted, of the header itself and of each frame.

    Raises:
        TooLargeError: here and in its methods: the header holds more than is read.
    """

    def __init__(self, stream: IO[bytes], tags: Iterable[int]) -> None:
        self._tags: list[BaseTag | int] = list(tags)
        self._deflated_meta = _meta_of_deflated(stream)
        self._is_whole = True
        if self._deflated_meta is not None:
            stream, self._is_whole = inflated(stream, MOST_HEADER_BYTES)
        self._stream = BoundedStream(stream)
        self._is_implicit, self._is_little = False, True
        self._end: int | None = 0

    @property
    def is_little_endian(self) -> bool:
        """Return the byte order, once there are elements."""
        return self._is_little

    @property
    def has_bad_character_set(self) -> bool:
        """Return whether Specific Character Set was something else."""
        return self._stream.has_bad_character_set

    @property
    def end(self) -> int | None:
        """Return where the last element ends that was met, as it says itself; None if it does not."""
        return self._end

    def elements(self) -> FileDataset:
        """Return the elements up to `LAST_COMMON_GROUP` that are wanted, with the meta header."""
        if self._deflated_meta is not None:
            found = self._read_on(lambda tag: tag >> 16 > LAST_COMMON_GROUP)
            return FileDataset("", found, bytes(128), self._deflated_meta, is_implicit_VR=False)
        found = read_partial(
            cast("BinaryIO", self._stream),
            stop_when=self._watched(lambda tag: tag >> 16 > LAST_COMMON_GROUP),
            force=True,
            specific_tags=self._tags,
        )
        raw = next((element for element in found.elements() if isinstance(element, RawDataElement)), None)
        if raw is not None:  # whatever the meta header says
            self._is_implicit, self._is_little = raw.is_implicit_VR, raw.is_little_endian
        return found

    def further_elements(self) -> Dataset:
        """Return the elements that follow, up to the groups of the frames or the pixel data."""
        return self._read_on(lambda tag: tag == FRAME_GROUPS_TAG or tag in PIXEL_DATA_TAGS)

    def frame_groups(self, most: int) -> Iterator[Dataset]:
        """Yield what is said of each frame, one at a time, and no more than so many."""
        head = self._next_head()
        if head is None or head.tag != FRAME_GROUPS_TAG:
            return
        self._stream.seek(head.value_at)
        end = None if head.length == UNDEFINED_LENGTH else head.value_at + head.length
        found = 0
        while found < most and (end is None or self._stream.tell() < end):
            group = self._next_item()
            if group is None:
                break
            found += 1
            yield group
        else:
            self._stream.seek(*((0, SEEK_END) if end is None else (end,)))
        self._end = end

    def pixel_place(self) -> PixelPlace:
        """Return where the pixel data lie."""
        self._stream.renew()
        self._tags = list(PIXEL_DATA_TAGS)
        self._read_on(lambda tag: tag in PIXEL_DATA_TAGS)
        head = self._next_head()
        if head is None or head.tag not in PIXEL_DATA_TAGS:
            if not self._is_whole:
                raise TooLargeError(f"unpacks to more than {MOST_HEADER_BYTES >> 20} MiB before its pixel data")
            return PixelPlace()
        is_float = head.tag != PIXEL_DATA_TAGS[0]
        if self._deflated_meta is not None:
            return PixelPlace(None, -1, is_float)
        return PixelPlace(head.value_at, -1 if head.length == UNDEFINED_LENGTH else head.length, is_float)

    def _read_on(self, is_end: Callable[[int], bool]) -> Dataset:
        return read_dataset(
            cast("BinaryIO", self._stream),
            self._is_implicit,
            self._is_little,
            stop_when=self._watched(is_end),
            specific_tags=self._tags,
            at_top_level=False,
        )

    def _watched(self, is_end: Callable[[int], bool]) -> Callable[[BaseTag, str | None, int], bool]:
        """Return what tells pydicom where to stop, and notes where elements end."""

        def stops(tag: BaseTag, _vr: str | None, length: int) -> bool:
            self._end = None if length == UNDEFINED_LENGTH else self._stream.tell() + length
            return is_end(tag)

        return stops

    def _next_item(self) -> Dataset | None:
        """Return the next item of a sequence, or None where it ends."""
        self._stream.renew()
        head = self._next_head()
        if head is None or head.tag not in (_ITEM, _END_OF_SEQUENCE):
            raise ValueError("no item where one should be")
        self._stream.seek(head.value_at)
        if head.tag == _END_OF_SEQUENCE:
            return None
        if head.length == 0:
            return Dataset()
        end = None if head.length == UNDEFINED_LENGTH else head.value_at + head.length
        found = self._read_on(lambda _: end is not None and self._stream.tell() - _HEAD_BYTES >= end)
        if end is not None:
            self._stream.seek(end)
        return found

    def _next_head(self) -> _Head | None:
        """Return the head of the next element without going on, or None at the end."""
        at, order = self._stream.tell(), "<" if self._is_little else ">"
        head = self._stream.read(_HEAD_BYTES)
        if len(head) < _HEAD_BYTES:
            return None
        longer = self._stream.read(4)
        self._stream.seek(at)
        group, element = struct.unpack(f"{order}HH", head[:4])
        tag = group << 16 | element
        if head[4:6] in _LONG_VRS and len(longer) == 4:  # even in an implicit encoding: such a length would be odd
            return _Head(tag, struct.unpack(f"{order}I", longer)[0], at + 12)
        if self._is_implicit or tag in (_ITEM, _END_OF_SEQUENCE):
            return _Head(tag, struct.unpack(f"{order}I", head[4:])[0], at + _HEAD_BYTES)
        return _Head(tag, struct.unpack(f"{order}H", head[6:])[0], at + _HEAD_BYTES)


def whole_header(stream: IO[bytes]) -> Dataset:
    """Return all that a file says up to its pixels; of a file whose header was found to be in bounds.

    Args:
        stream: at the start of the file.
    """
    meta = _meta_of_deflated(stream)
    if meta is not None:
        stream, _ = inflated(stream, MOST_HEADER_BYTES)
    bounded = BoundedStream(stream, most_work=WHOLE_WORK, most_value_bytes=WHOLE_VALUE_BYTES)
    source = cast("BinaryIO", bounded)
    if meta is not None:
        return read_dataset(source, False, True, stop_when=_is_at_pixels)  # noqa: FBT003 - pydicom's own order
    return read_partial(source, stop_when=_is_at_pixels, force=True)


def _is_at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag in PIXEL_DATA_TAGS


def inflated_pixels(stream: IO[bytes], most_bytes: int) -> BytesIO:
    """Return the pixel data of a deflated file, or where they are far too long, more of them than they may have.

    Args:
        stream: at the start of the file.
        most_bytes: what they may have.

    Raises:
        ValueError: there are none, or the file is not deflated.
    """
    if _meta_of_deflated(stream) is None:
        raise ValueError("not deflated")
    content, _ = inflated(stream, MOST_HEADER_BYTES + most_bytes)
    place = HeaderParser(content, PIXEL_DATA_TAGS).pixel_place()
    if place.offset is None or place.length is None or place.length < 0:
        raise ValueError("no pixel data")
    content.seek(place.offset)
    return BytesIO(content.read(place.length))


def _meta_of_deflated(stream: IO[bytes]) -> FileMetaDataset | None:
    """Return the meta header of a deflated file, behind which the stream then stands; else None, at its start."""
    start = stream.read(_META_BYTES)
    stream.seek(0)
    if start[128:132] != DICOM_MAGIC or DeflatedExplicitVRLittleEndian.encode() not in start:
        return None
    stream.seek(132)
    meta = FileMetaDataset(
        read_dataset(
            cast("BinaryIO", BoundedStream(stream)),
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, _vr, _length: tag >> 16 != 2,
        )
    )
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return meta
    stream.seek(0)
    return None
