"""Whose case it is, where only its name tells: `patient001_frame12` is one of patient001."""

import re
from collections import Counter
from collections.abc import Iterable

PART_OF_A_SUBJECT = re.compile(
    r"[_-](frame|ses|session|visit|time|timepoint|tp|scan|phase|baseline|followup|bl|fu|ed|es|left|right|l|r)"
    r"[_-]?\d*$|(?<=\d)[lr]$",
    re.IGNORECASE,
)
"""The end of a name that tells one image of a person from the others: which frame, day, phase or side it is (`01L`)."""


def subjects_by_name(case_ids: Iterable[str]) -> dict[str, str]:
    """Return the subject of every case: its name without what tells the images of one person apart.

    An ending counts only where it leaves a name with a digit that several cases share; else each case is a subject.

    >>> subjects_by_name(["patient001_frame01", "patient001_frame12", "liver_7"])
    {'patient001_frame01': 'patient001', 'patient001_frame12': 'patient001', 'liver_7': 'liver_7'}
    """
    start_of = {case_id: _name_of_person(case_id) for case_id in case_ids}
    shared = Counter(start_of.values())
    return {
        case_id: start if shared[start] > 1 and any(map(str.isdigit, start)) else case_id
        for case_id, start in start_of.items()
    }


def _name_of_person(case_id: str) -> str:
    start = case_id
    while shorter := PART_OF_A_SUBJECT.sub("", start, count=1):
        if shorter == start:
            break
        start = shorter
    return start
