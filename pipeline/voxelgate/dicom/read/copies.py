"""Tell apart copies of one image, which are harmless, and different images at one place, which are not."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from voxelgate.core.findings import Finding, FindingCode, Severity
from voxelgate.dicom.read.decoding import PixelError, stored_pixels
from voxelgate.dicom.read.headers import Header, ImagePlane


def without_copies(headers: Sequence[Header]) -> tuple[tuple[Header, ...], tuple[Finding, ...]]:
    """Return headers without those whose image, place and pixels are those of another, and what was found.

    Only files at one place are opened for their pixels. As soon as two differ all are kept, and the audit refuses the
    series: a volume over time is told by its first two images, however long it is.

    Args:
        headers: of one series, in any order.
    """
    families: dict[tuple[object, ...], list[Header]] = defaultdict(list)
    for header in sorted(headers, key=_header_order):
        families[_place_of_header(header)].append(header)
    kept: list[Header] = []
    for family in families.values():
        if any(not _is_copy(header, family[0]) for header in family[1:]):
            return tuple(sorted(headers, key=_header_order)), ()
        kept.append(family[0])
    dropped = len(headers) - len(kept)
    if dropped == 0:
        return tuple(kept), ()
    sentence = f"{dropped} of {len(headers)} files are copies of another with equal pixels; they count once."
    same = len({header.sop_instance_uid for header in headers}) == len({header.sop_instance_uid for header in kept})
    return tuple(kept), (Finding(FindingCode.DUPLICATE_FILE, Severity.NOTE if same else Severity.WARN, sentence),)


def _place_of_header(header: Header) -> tuple[object, ...]:
    """Return what two copies of an image share; without any position they are told by their UID alone."""
    planes = tuple((plane.position_lps_mm, plane.orientation_lps) for plane in header.planes)
    has_place = any(plane.position_lps_mm for plane in header.planes)
    return planes if has_place else (header.sop_instance_uid, header.file if not header.sop_instance_uid else "")


def _is_copy(header: Header, other: Header) -> bool:
    if _kind(header) != _kind(other) or any(
        _meaning_of_header(a) != _meaning_of_header(b) for a, b in zip(header.planes, other.planes, strict=False)
    ):
        return False
    try:
        return all(
            np.array_equal(stored_pixels(header, frame), stored_pixels(other, frame)) for frame in range(header.frames)
        )
    except PixelError:
        return False


def _kind(header: Header) -> tuple[object, ...]:
    shape = (header.rows, header.columns, header.frames, len(header.planes))
    whose = (header.patient, header.study_uid, header.frame_of_reference_uid)
    part = header.concatenation.number if header.concatenation else None
    return (*shape, part, header.modality, header.photometric, header.has_modality_lut, *whose)


def _meaning_of_header(plane: ImagePlane) -> tuple[object, ...]:
    return (plane.slope, plane.intercept, plane.rescale_type, plane.pixel_spacing_mm)


def _header_order(header: Header) -> tuple[bool, int, str, str]:
    number = header.instance_number
    return (number is None, number or 0, header.sop_instance_uid, str(header.file))
