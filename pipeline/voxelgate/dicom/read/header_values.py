"""Values of DICOM headers, taken from the bytes as they stand; nothing else of a header is unpacked."""

import hashlib
import math
import re
import struct
from collections.abc import Iterable
from datetime import date
from functools import cache
from io import BytesIO
from typing import BinaryIO, cast

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, decode_bytes, default_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_sequence_item
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import TEXT_VR_DELIMS

from voxelgate.dicom.read.bounded import BoundedStream

_BINARY_FORMATS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}

_TIME = re.compile(r"([0-9]{8}| {8})([0-9]{2})([0-9]{2})([0-9]{2}(?:\.[0-9]{1,6})?)?")
"""Date, if any, hours, minutes and seconds of a DT, or of DA and TM (PS3.5 6.2)."""

Vector = tuple[float, ...]
Element = DataElement | RawDataElement


class HeaderValues:
    """Values of a data set, or of a frame's groups, the shared groups and the data set behind them.

    Texts and numbers are taken from the bytes as they stand, since pydicom's own conversion warns with the value in
    the text, and takes twice the time.

    Args:
        datasets: where to look, in this order.
        behind: where to look then.
    """

    def __init__(self, *datasets: Dataset, behind: "HeaderValues | None" = None) -> None:
        self.datasets: tuple[Dataset, ...] = (*datasets, *(behind.datasets if behind else ()))
        self.malformed: set[str] = behind.malformed if behind else set()
        self._behind, self._own = behind, len(datasets)
        self._items: dict[tuple[int, int], Dataset] = {}

    def text(self, keyword: str, *, inside: str = "") -> str:
        """Return a text, stripped; empty if missing."""
        return _as_text(self._element(keyword, inside))

    def decoded(self, keyword: str) -> str:
        """Return a text in the letters of its character set; as Latin-1 if that is not known."""
        text, element = self.text(keyword), self._element(keyword, "")
        if element is None or not isinstance(element.value, bytes) or (text.isascii() and text.isprintable()):
            return text
        try:
            encodings = convert_encodings(self.text("SpecificCharacterSet").split("\\"))
            return decode_bytes(element.value, encodings, TEXT_VR_DELIMS).strip(" \0")
        except (LookupError, ValueError):
            return text

    def hashed(self, *keywords: str) -> str:
        """Return a hash of texts, regardless of case and spacing; empty if all are."""
        texts = [" ".join(self.text(keyword).replace("^", " ").casefold().split()) for keyword in keywords]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16] if any(texts) else ""

    def numbers(self, keyword: str, count: int, *, inside: str = "") -> Vector | None:
        """Return `count` finite numbers, or None."""
        element = self._element(keyword, inside)
        try:
            found = _as_numbers(element)
        except (ValueError, struct.error):
            found = (math.nan,)
        if not found:
            return None
        if len(found) != count or not all(math.isfinite(value) for value in found):
            self.malformed.add(keyword)
            return None
        return found

    def number(self, keyword: str, *, inside: str = "") -> float | None:
        """Return the only number, or None."""
        found = self.numbers(keyword, 1, inside=inside)
        return None if found is None else found[0]

    def integer(self, keyword: str, *, inside: str = "") -> int | None:
        """Return the only number, if it is whole, or None."""
        found = self.number(keyword, inside=inside)
        if found is not None and found != int(found):
            self.malformed.add(keyword)
            return None
        return None if found is None else int(found)

    def number_or_hash(self, keyword: str) -> float | str | None:
        """Return the only number, a hash of any other text, or None where there is nothing."""
        try:
            (found,) = _as_numbers(self._element(keyword, ""))
        except (ValueError, struct.error):
            found = math.nan
        return found if math.isfinite(found) else self.hashed(keyword) or None

    def own_number(self, tag: int) -> float | None:
        """Return the first number of an element of the data set itself, or None; whatever else it holds."""
        dataset = self.datasets[0]
        try:
            return next(iter(_as_numbers(dataset.get_item(tag), "US")), None) if tag in dataset else None
        except (ValueError, struct.error):
            return None

    def seconds(self, *keywords: str, inside: str = "") -> float | None:
        """Return a time in seconds since some day, of date and time in one text or in two; None without a time."""
        *dates, time = (self.text(keyword, inside=inside).replace(":", "") for keyword in keywords)
        text = f"{dates[0]:8.8}{time}" if dates and time else time if not dates else ""
        found = _TIME.match(text)
        if found is None:
            return None
        day, hours, minutes, seconds = found.groups()
        try:
            days = date(int(day[:4]), int(day[4:6]), int(day[6:])).toordinal() if day.strip() else 0
        except ValueError:
            days = 0
        return ((days * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(seconds or 0)

    def private_number(self, creator: str, group: int, element: int, vr: str) -> float | None:
        """Return the first number of a private element, or None; implicit encodings do not say its type `vr`."""
        for dataset in self.datasets:
            tag = _private_tag(dataset, creator, group, element)
            if tag is not None and tag in dataset:
                try:
                    found = next(iter(_as_numbers(dataset.get_item(tag), vr)), math.nan)
                except (ValueError, struct.error):
                    return None
                return found if math.isfinite(found) else None
        return None

    def _element(self, keyword: str, inside: str) -> Element | None:
        tag = _tag(keyword)
        for index, dataset in enumerate(self.datasets):
            place = self.item(index, _tag(inside)) if inside and _tag(inside) in dataset else dataset
            if tag in place:
                return place.get_item(tag)
        return None

    def item(self, index: int, tag: int) -> Dataset:
        """Return the first item of a sequence of one of the data sets, which is unpacked once for all frames."""
        if self._behind is not None and index >= self._own:
            return self._behind.item(index - self._own, tag)
        if (index, tag) not in self._items:
            self._items[index, tag] = first_item(self.datasets[index], tag)
        return self._items[index, tag]


def first_item(dataset: Dataset, tag: int) -> Dataset:
    """Return the first item of a sequence, empty without one; however many follow, they are left packed."""
    element: Element | None = dataset.get_item(tag) if tag in dataset else None
    if element is None or not element.value:
        return Dataset()
    if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
        return cast("Dataset", next(iter(element.value)))
    stream = cast("BinaryIO", BoundedStream(BytesIO(element.value)))
    found = read_sequence_item(stream, element.is_implicit_VR, element.is_little_endian, default_encoding)
    return Dataset() if found is None else found


def _private_tag(dataset: Dataset, creator: str, group: int, element: int) -> int | None:
    """Return the tag of a private element; its block is where the creator's name stands (PS3.5 7.8.1)."""
    tags = dataset.keys()
    blocks = [tag & 0xFF for tag in tags if tag >> 16 == group and 0x10 <= tag & 0xFFFF <= 0xFF]
    named = (block for block in blocks if _as_text(dataset.get_item(group << 16 | block)) == creator)
    return next((group << 16 | block << 8 | element for block in named), None)


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def _as_text(element: Element | None) -> str:
    if element is None or element.value is None:
        return ""
    if isinstance(element.value, bytes):
        return element.value.decode("latin-1").strip(" \0")
    if isinstance(element.value, MultiValue):
        return "\\".join(str(part) for part in element.value)
    return str(element.value).strip()


def _as_numbers(element: Element | None, private_vr: str = "") -> Vector:
    """Return all numbers of an element.

    Raises:
        ValueError: it holds none.
    """
    if element is None or element.value is None:
        return ()
    if not isinstance(element.value, bytes):
        several = isinstance(element.value, Iterable) and not isinstance(element.value, str)
        return tuple(float(part) for part in (element.value if several else (element.value,)))
    code = _BINARY_FORMATS.get(_vr(element, private_vr))
    if code is not None:
        order = "<" if isinstance(element, RawDataElement) and element.is_little_endian else ">"
        return tuple(float(part) for (part,) in struct.iter_unpack(f"{order}{code}", element.value))
    text = element.value.decode("latin-1").strip(" \0")
    if "_" in text:
        raise ValueError("an underscore, which Python's numbers may have")
    return tuple(float(part) for part in text.split("\\")) if text else ()


def _vr(element: Element, private_vr: str) -> str:
    """Return the type of an element, from the dictionary where the encoding does not say it."""
    if element.VR not in (None, "UN"):
        return str(element.VR)
    if private_vr:
        return private_vr
    vr = dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else "UN"
    return vr.split(" ", maxsplit=1)[0]
