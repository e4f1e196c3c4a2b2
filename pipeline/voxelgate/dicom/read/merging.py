"""Single images that make a stack although each has a series UID of its own, as some scanners write them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from voxelgate.dicom.read.headers import Header
from voxelgate.dicom.read.stack import SAME_POSITION_MM, normal_lps

LEAST_STACK = 3
"""Places from which on a common study, series number, frame of reference and grid of single images are no accident."""

DIGITS = 2
"""Of direction cosines and mm, to which images of one stack agree at least; how well they do is for the audit."""


def merged_stacks(families: Iterable[Sequence[Header]]) -> list[Sequence[Header]]:
    """Return families of headers in which single images that make a stack are one family; all others as they are.

    Args:
        families: headers of one series UID each.
    """
    whole: list[Sequence[Header]] = []
    stacks: dict[tuple[object, ...], list[Sequence[Header]]] = defaultdict(list)
    for family in families:
        place = _place_in_stack(family)
        if place is None:
            whole.append(family)
        else:
            stacks[place].append(family)
    for parts in stacks.values():
        merged = [header for part in parts for header in part]
        whole += [merged] if _count_places(parts) >= LEAST_STACK else parts
    return whole


def _place_in_stack(family: Sequence[Header]) -> tuple[object, ...] | None:
    """Return what a single image shares with the others of its stack, or None if it is none or does not say it."""
    header, plane = family[0], family[0].planes[0]
    is_single = {(one.frames, one.planes[0].position_lps_mm) for one in family} == {(1, plane.position_lps_mm)}
    known = (header.series_uid, header.study_uid, header.frame_of_reference_uid, header.series_number)
    geometry = (plane.position_lps_mm, plane.orientation_lps, plane.pixel_spacing_mm)
    if not is_single or not all(known[:3]) or header.series_number is None or None in geometry:
        return None
    rounded = tuple(
        round(value, DIGITS) + 0.0 for value in (plane.orientation_lps or ()) + (plane.pixel_spacing_mm or ())
    )
    whose = (*header.patient, header.sop_class_uid, header.modality)
    return (*known[1:], *whose, header.rows, header.columns, *rounded)


def _count_places(parts: Sequence[Sequence[Header]]) -> int:
    """Return at how many places along the normal images lie; that several lie at one is for the audit to say."""
    planes = [part[0].planes[0] for part in parts]
    normal = normal_lps(planes[0].orientation_lps or ())
    along_mm = np.sort([float(normal @ (plane.position_lps_mm or ())) for plane in planes])
    return 1 + int((np.diff(along_mm) > SAME_POSITION_MM).sum())
