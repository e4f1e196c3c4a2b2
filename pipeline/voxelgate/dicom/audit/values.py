"""Rules on what the stored numbers mean, whether they are all there, and whether results can refer to them."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from voxelgate.core.findings import Finding, FindingCode
from voxelgate.dicom.audit.facts import SeriesFacts, note, refuse, share, warn
from voxelgate.dicom.audit.planes import GEOMETRY_KEYWORDS
from voxelgate.dicom.read.headers import Header
from voxelgate.dicom.read.stack import Slice

VALID_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
LONGEST_UID = 64
"""Components of digits without leading zeros, separated by dots (PS3.5 9.1)."""

VALUE_KEYWORDS = frozenset(("BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel", "NumberOfFrames"))
RESCALE_KEYWORDS = frozenset(("RescaleSlope", "RescaleIntercept"))

CHARACTER_SET_KEYWORD = "SpecificCharacterSet"

READ_BITS_ALLOCATED = (8, 16, 32)

_LOSSY = "50 51 53 55 81 100 101 102 103 104 105 106 107 108 112"
LOSSY_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{part}" for part in _LOSSY.split())
"""JPEG baseline, extended and progressive, JPEG-LS near-lossless, MPEG and JPEG XL (PS3.5 A.4).

JPEG 2000 (.91) and high-throughput JPEG 2000 (.203) hold either; Lossy Image Compression says which.
"""

RAW_SYNTAXES = frozenset(("", *(f"1.2.840.10008.1.2{part}" for part in ("", ".1", ".1.99", ".2"))))
"""Implicit, explicit, deflated and big endian (PS3.5 A.1 to A.3, A.5); without a meta header it is one of the first."""

HU_TYPES = frozenset(("", "HU", "US"))
"""Rescale Types of plain CT (PS3.3 C.11.1.1.2); many scanners write `US`, unspecified."""

MOST_UNPACKED_BYTES = 2**30
MOST_PACKING = 500
"""Bytes to which compressed pixels may always unpack, and by how much they may be packed if there are more.

Scans pack to a half or a tenth, with loss to a fiftieth.
"""

SMALLEST_ENCODED_FRAME = 10
"""Bytes that an encapsulated frame takes at least: an item's tag and length, and two bytes (PS3.5 A.4)."""


def bad_uid(facts: SeriesFacts) -> Iterator[Finding]:
    """Warn of UIDs that are empty or invalid: images can be read, but nothing can refer to them."""
    uids = {
        "SOP Instance": [header.sop_instance_uid for header in facts.headers],
        "Series Instance": [header.series_uid for header in facts.headers],
        "Study Instance": [header.study_uid for header in facts.headers],
        "Frame of Reference": [header.frame_of_reference_uid for header in facts.headers],
    }
    counts = {noun: sum(not _is_uid(uid) for uid in found) for noun, found in uids.items()}
    bad = [f"{noun} UID of {count}" for noun, count in counts.items() if count]
    if bad:
        sentence = (
            f"empty or invalid: {', '.join(bad)} of {len(facts.headers)} files; "
            "the images can be read, but DICOM results (SEG) that refer to them cannot be written."
        )
        yield warn(FindingCode.BAD_UID, sentence)


def _is_uid(uid: str) -> bool:
    return len(uid) <= LONGEST_UID and VALID_UID.fullmatch(uid) is not None


def duplicate_uid(facts: SeriesFacts) -> Iterator[Finding]:
    """Warn of different images with one SOP Instance UID; those at one place are refused with their position."""
    counts = Counter(header.sop_instance_uid for header in facts.headers if header.sop_instance_uid)
    shared = [header for header in facts.headers if counts[header.sop_instance_uid] > 1]
    if shared:
        sentence = (
            f"{share(shared, facts.headers)} share their SOP Instance UID with a different image; "
            "DICOM results that refer to them would be ambiguous."
        )
        yield (refuse if _share_a_place(shared) else warn)(FindingCode.DUPLICATE_UID, sentence)


def _share_a_place(headers: Sequence[Header]) -> bool:
    places = Counter((header.sop_instance_uid, header.planes[0].position_lps_mm) for header in headers)
    return max(places.values()) > 1


def bad_values(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse numbers that decoding needs and that are none; warn of others."""
    found = {keyword for header in facts.headers for keyword in header.malformed}
    for keyword in sorted(found - GEOMETRY_KEYWORDS - RESCALE_KEYWORDS - {CHARACTER_SET_KEYWORD}):
        headers = [header for header in facts.headers if keyword in header.malformed]
        if keyword in VALUE_KEYWORDS:
            yield refuse(FindingCode.BAD_VALUE, f"{share(headers, facts.headers)}: {keyword} holds no valid number.")
        else:
            yield warn(
                FindingCode.BAD_VALUE,
                f"{share(headers, facts.headers)}: {keyword} holds no valid number; it is ignored.",
            )


def character_set(facts: SeriesFacts) -> Iterator[Finding]:
    """Warn of texts whose letters nobody knows; the pixels are sound all the same."""
    found = [header for header in facts.headers if CHARACTER_SET_KEYWORD in header.malformed]
    if found:
        sentence = (
            f"{share(found, facts.headers)}: Specific Character Set is damaged or unknown, so names and other texts "
            "may be misread; pixels and geometry are not concerned."
        )
        yield warn(FindingCode.CHARACTER_SET, sentence)


def bad_format(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse pixel formats that are not read."""
    found = [header for header in facts.headers if header.pixel_bytes is not None and not _is_known_format(header)]
    if found:
        sentence = (
            f"{share(found, facts.headers)}: pixel format missing or not read, expected 8, 16 or 32 bits allocated, "
            "no more bits stored, the High Bit among them, and a Pixel Representation of 0 or 1."
        )
        yield refuse(FindingCode.BAD_VALUE, sentence)


def _is_known_format(header: Header) -> bool:
    if VALUE_KEYWORDS & set(header.malformed):
        return True
    allocated, stored = header.bits_allocated, header.bits_stored
    if allocated not in READ_BITS_ALLOCATED or stored is None or header.pixel_representation not in (0, 1):
        return False
    return 1 <= stored <= allocated and (header.high_bit is None or header.high_bit < stored)


def float_pixels(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse floating point numbers, which no CT, MR or PET image may hold."""
    found = [header for header in facts.headers if header.has_float_pixels]
    if found:
        sentence = f"{share(found, facts.headers)}: Float Pixel Data, which are not read, expected integers."
        yield refuse(FindingCode.BAD_VALUE, sentence)


def unknown_encoding(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse raw pixels under a transfer syntax that does not say their byte order, such as GE's private one."""
    found = [
        header
        for header in facts.headers
        if header.pixel_bytes is not None and header.pixel_bytes >= 0 and header.transfer_syntax_uid not in RAW_SYNTAXES
    ]
    if found:
        sentence = (
            f"{share(found, facts.headers)}: raw pixels under a private or compressed transfer syntax, so their "
            "encoding is unknown."
        )
        yield refuse(FindingCode.UNDECODABLE, sentence)


def mixed_pixel_formats(facts: SeriesFacts) -> Iterator[Finding]:
    """Note formats that differ from slice to slice, each of which is decoded by its own; warn where the sign does."""
    formats = {(part.bits_allocated, part.bits_stored, part.pixel_representation) for part in facts.headers}
    if len({sign for _, _, sign in formats}) > 1:
        yield warn(
            FindingCode.MIXED_PIXEL_FORMATS,
            "some images store signed and some unsigned numbers; each is read by its own.",
        )
    elif len(formats) > 1:
        yield note(
            FindingCode.MIXED_PIXEL_FORMATS, f"the images store {len(formats)} pixel formats; each is read by its own."
        )


def no_pixels(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse images without pixel data."""
    found = [header for header in facts.headers if not header.pixel_bytes]
    if found:
        yield refuse(
            FindingCode.NO_PIXELS, f"{share(found, facts.headers)}: no pixel data, only a header; send them again."
        )


def truncated(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse pixel data shorter or longer than rows, columns and frames say, or shorter than the file holds."""
    found = [header for header in facts.headers if header.pixel_bytes and _is_truncated(header)]
    if found:
        sentence = f"{share(found, facts.headers)}: pixel data end early, the file is truncated; send them again."
        yield refuse(FindingCode.TRUNCATED, sentence)
    longer = [header for header in facts.headers if 0 < 2 * _expected_bytes(header) <= (header.pixel_bytes or 0)]
    if longer:
        sentence = f"{share(longer, facts.headers)}: pixel data of more frames than the header says; send them again."
        yield refuse(FindingCode.MULTI_FRAME, sentence)
    else:
        yield from _wrong_size(facts)


def _wrong_size(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse pixel data that rows and columns do not explain; a line too much shears the whole image."""
    found = [
        header
        for header in facts.headers
        if not header.is_padded and 0 < _expected_bytes(header) <= (header.pixel_bytes or 0) - _edge_bytes(header)
    ]
    if found and not any(_is_truncated(header) for header in found):
        sentence = f"{share(found, facts.headers)}: more pixel data than Rows x Columns; the header is wrong."
        yield refuse(FindingCode.BAD_VALUE, sentence)


def _edge_bytes(header: Header) -> int:
    """Return the bytes of the shorter edge of the image; less than that is padding."""
    return max(2, min(header.rows or 0, header.columns or 0) * ((header.bits_allocated or 0) // 8))


def _is_truncated(header: Header) -> bool:
    if header.pixel_offset is None or header.pixel_bytes is None:
        return False
    if header.pixel_bytes < 0:
        return header.size - header.pixel_offset < 8 + header.frames * SMALLEST_ENCODED_FRAME
    expected = _expected_bytes(header)
    return header.pixel_bytes < expected or header.size < header.pixel_offset + expected


def _expected_bytes(header: Header) -> int:
    pixels = (header.rows or 0) * (header.columns or 0) * (header.samples_per_pixel or 1) * header.frames
    return pixels * ((header.bits_allocated or 0) // 8)


def unpacks_too_far(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse compressed pixels that would fill the memory: more than images without any content pack."""
    packed = sum(header.size for header in facts.headers if (header.pixel_bytes or 0) < 0)
    unpacked = sum(_expected_bytes(header) for header in facts.headers if (header.pixel_bytes or 0) < 0)
    if unpacked > max(MOST_UNPACKED_BYTES, MOST_PACKING * packed):
        sentence = (
            f"compressed pixels of {packed / 2**20:.1f} MiB would unpack to {unpacked / 2**30:.0f} GiB, more than "
            f"{MOST_PACKING} times as much; look where they come from."
        )
        yield refuse(FindingCode.UNDECODABLE, sentence)


def lossy(facts: SeriesFacts) -> Iterator[Finding]:
    """Warn of images that were compressed with loss, by their flag or their transfer syntax."""
    found = [header for header in facts.headers if header.is_lossy or header.transfer_syntax_uid in LOSSY_SYNTAXES]
    if found:
        yield warn(
            FindingCode.LOSSY,
            f"{share(found, facts.headers)}: compressed with loss; fine detail and values may be off.",
        )


def modality_lut(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse values that a table gives their meaning."""
    found = [header for header in facts.headers if header.has_modality_lut]
    if found:
        sentence = f"{share(found, facts.headers)}: a Modality LUT, which is not applied, expected slope and intercept."
        yield refuse(FindingCode.MODALITY_LUT, sentence)


def bad_rescale(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse slopes of 0 and rescaling that is no number; warn of slopes below 0."""
    slices = facts.slices
    broken = [part for part in slices if part.plane.slope == 0 or RESCALE_KEYWORDS & set(part.header.malformed)]
    negative = [part for part in slices if (part.plane.slope or 0.0) < 0]
    if broken:
        sentence = f"{share(broken, slices)}: Rescale Slope of 0, or no valid numbers, expected a slope above 0."
        yield refuse(FindingCode.BAD_RESCALE, sentence)
    elif negative:
        yield warn(
            FindingCode.BAD_RESCALE, f"{share(negative, slices)}: Rescale Slope below 0; check that bright is bright."
        )


def no_rescale(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse CT without slope and intercept (1024 HU off), and any series in which only some images have them."""
    if any(header.has_modality_lut or RESCALE_KEYWORDS & set(header.malformed) for header in facts.headers):
        return
    slices = facts.slices
    without = [part for part in slices if part.plane.slope is None or part.plane.intercept is None]
    is_partial = len(without) < len(slices) or any(_has_either(part) for part in without)
    if not without:
        return
    if facts.modality == "CT" or is_partial:
        sentence = (
            f"{share(without, slices)}: Rescale Slope or Intercept is missing, so what their values mean is unknown."
        )
        yield refuse(FindingCode.NO_RESCALE, sentence)
    elif facts.modality == "PT":
        yield warn(
            FindingCode.NO_RESCALE,
            f"{share(without, slices)}: Rescale Slope and Intercept are missing; values have no unit.",
        )


def _has_either(part: Slice) -> bool:
    return part.plane.slope is not None or part.plane.intercept is not None


def no_hounsfield_units(facts: SeriesFacts) -> Iterator[Finding]:
    """Warn of CT whose rescaled values are said to be something else, as in maps of two energies."""
    found = [part for part in facts.slices if part.plane.rescale_type not in HU_TYPES]
    if facts.modality == "CT" and found:
        yield warn(
            FindingCode.NOT_HU,
            f"{share(found, facts.slices)}: Rescale Type says that the values are no Hounsfield units.",
        )


def slope_per_slice(facts: SeriesFacts) -> Iterator[Finding]:
    """Note that slices are rescaled differently, which is usual for PET and MR; warn of it in CT."""
    pairs = {(part.plane.slope, part.plane.intercept) for part in facts.slices if _has_either(part)}
    if len(pairs) > 1:
        sentence = f"slices have {len(pairs)} different rescalings; each is read by its own."
        yield (warn if facts.modality == "CT" else note)(FindingCode.SLOPE_PER_SLICE, sentence)


def padding_value(facts: SeriesFacts) -> Iterator[Finding]:
    """Warn of padding that no pixel can have: what lies outside the image would pass for tissue."""
    found = [header for header in facts.headers if not _can_store(header, header.padding_value)]
    if found:
        sentence = (
            f"{share(found, facts.headers)}: Pixel Padding Value outside the stored range; padding is not masked."
        )
        yield warn(FindingCode.PADDING_VALUE, sentence)


def _can_store(header: Header, value: int | None) -> bool:
    """Return whether pixels can have a value; in an implicit encoding negative ones read as unsigned."""
    if value is None or not _is_known_format(header) or header.bits_stored is None or header.bits_allocated is None:
        return True
    if header.pixel_representation == 0:
        return 0 <= value < 1 << header.bits_stored
    signed = value - (1 << header.bits_allocated) if value >= 1 << (header.bits_allocated - 1) else value
    half = 1 << (header.bits_stored - 1)
    return -half <= signed < half
