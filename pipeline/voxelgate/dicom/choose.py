"""Which series of a study a bundle wants, and why each of the others was not taken."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Self

import numpy as np

from voxelgate.core.findings import refusals
from voxelgate.dicom.read.series import Series
from voxelgate.dicom.read.series_paths import IDENTIFIER
from voxelgate.dicom.read.stack import distances_mm

UID_END = re.compile(r"(?:\.\.\.|\u2026)([0-9.]+)|([0-9]*(?:\.[0-9]+)+)")
"""The end of a UID behind dots that stand for the rest, or a UID, or an end of it with a dot."""

READABLE_MODALITIES = ("CT", "MR", "PT")
"""Modalities whose images make volumes, as DICOM names them."""


@dataclass(frozen=True)
class SeriesRule:
    """What a bundle asks of a series; as JSON it is `series_rule` in the bundle's `metadata.json`.

    Args:
        modality: DICOM modalities that may be taken.
        min_slices: fewest slices.
        spacing_mm: least and largest distance between slices, or None for any.
        thickness_mm: least and largest Slice Thickness, or None for any.
        description: regular expression that Series Description must contain, regardless of case; empty for any.
        contrast: whether a contrast agent must be named (true), must not be (false), or does not matter (None).
        asked: what the one who segments calls the series, as for `is_called`; empty for any. No bundle asks for it.

    Raises:
        ValueError: values that make no rule.

    >>> SeriesRule.from_mapping({"modality": ["CT"], "thickness_mm": [0.5, 3]}).thickness_mm
    (0.5, 3.0)
    """

    modality: tuple[str, ...] = READABLE_MODALITIES
    min_slices: int = 2
    spacing_mm: tuple[float, float] | None = None
    thickness_mm: tuple[float, float] | None = None
    description: str = ""
    contrast: bool | None = None
    asked: str = ""

    def __post_init__(self) -> None:
        if not self.modality or not set(self.modality) <= set(READABLE_MODALITIES):
            raise ValueError(f"modality must be of {', '.join(READABLE_MODALITIES)}, found {self.modality}")
        for name in ("spacing_mm", "thickness_mm"):
            limits = getattr(self, name)
            if limits is not None and (len(limits) != 2 or limits[0] > limits[1]):
                raise ValueError(f"{name} must be a least and a largest value, found {limits}")
        try:
            re.compile(self.description)
        except re.error as error:
            raise ValueError(f"description must be a regular expression, found {self.description!r}") from error

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build a rule from its JSON form.

        Raises:
            ValueError: unknown keys, or values that make no rule.
        """
        known = {field.name for field in fields(cls)} - {"asked"}
        if not values.keys() <= known:
            raise ValueError(f"a series rule knows {', '.join(sorted(known))}, found {', '.join(sorted(values))}")
        limits = {name: tuple(map(float, values[name])) for name in ("spacing_mm", "thickness_mm") if values.get(name)}
        modality = values.get("modality", READABLE_MODALITIES)
        return cls(**{**values, **limits, "modality": (modality,) if isinstance(modality, str) else tuple(modality)})

    def objection(self, series: Series) -> str | None:
        """Say in a few words why a series is not what is asked for and what the bundle wants, or return None."""
        if self.asked and not is_called(series, self.asked):
            return "is not the series that was asked for"
        if not series.is_usable:
            return "; ".join(map(str, refusals(series.findings)))
        if series.modality not in self.modality:
            return f"is {series.modality}, the bundle wants {' or '.join(self.modality)}"
        if len(series.slices) < self.min_slices:
            return f"has {len(series.slices)} slices, the bundle wants at least {self.min_slices}"
        return self._objection_to_kind(series)

    def _objection_to_kind(self, series: Series) -> str | None:
        header, plane = series.slices[0]
        if not _is_within(spacing_mm(series), self.spacing_mm):
            return f"has slices every {spacing_mm(series):.2f} mm, the bundle wants {_wanted_range(self.spacing_mm)}"
        if not _is_within(plane.thickness_mm, self.thickness_mm):
            found = "of unknown thickness" if plane.thickness_mm is None else f"{plane.thickness_mm:.2f} mm thick"
            return f"has slices {found}, the bundle wants {_wanted_range(self.thickness_mm)}"
        if self.description and not re.search(self.description, header.description, re.IGNORECASE):
            return "has a description that does not match the bundle's rule"
        if self.contrast is not None and header.has_contrast is not self.contrast:
            return f"is {'without' if self.contrast else 'with'} contrast agent, the bundle wants the other"
        return None


def is_called(series: Series, name: str) -> bool:
    """Return whether a series has a name, as `voxelgate inspect` shows it.

    Args:
        series: any.
        name: its UID or the end of it, its identifier, its number, or its description, in which `*` stands for any
            letters, in capitals or not.
    """
    end_of_uid = UID_END.fullmatch(name.strip())
    if end_of_uid is not None:
        return any(uid.endswith(end_of_uid[1] or end_of_uid[2]) for uid in series.series_uids)
    if name.strip().isdecimal():
        return series.number == int(name)
    described, wanted = (" ".join(text.casefold().split()) for text in (series.description, name))
    return name.strip() == series.series_id or described == wanted or fnmatchcase(described, wanted)


def names_one(name: str) -> bool:
    """Return whether a name is a UID or an identifier, which one series has, and not one of each study."""
    return UID_END.fullmatch(name.strip()) is not None or IDENTIFIER.fullmatch(name.strip()) is not None


def spacing_mm(series: Series) -> float:
    """Return the usual distance between the slices of a usable series."""
    return float(np.median(np.diff(distances_mm(series.slices))))


def choose(study: Sequence[Series], rule: SeriesRule) -> tuple[Series | None, dict[str, str]]:
    """Return the series of a study that fits a rule best, and by series id why each other was not taken.

    Of several that fit, the one with the thinnest slices is taken, then the one with the most, then the lowest series
    number: it holds what the others hold.

    Args:
        study: all series of one study, in any order.
        rule: of the bundle.
    """
    objections = {series.series_id: rule.objection(series) for series in study}
    fitting = sorted((series for series in study if objections[series.series_id] is None), key=_preference)
    taken = fitting[0] if fitting else None
    reasons = {name: reason for name, reason in objections.items() if reason is not None}
    for series in fitting[1:]:
        reasons[series.series_id] = f"fits too, but {taken.series_id if taken else ''} has thinner or more slices"
    return taken, reasons


def _preference(series: Series) -> tuple[float, int, int, str]:
    number = min(header.series_number or 0 for header in series.headers)
    return (round(spacing_mm(series), 2), -len(series.slices), number, series.series_id)


def _is_within(value: float | None, limits: tuple[float, float] | None) -> bool:
    return limits is None or (value is not None and limits[0] <= value <= limits[1])


def _wanted_range(limits: tuple[float, float] | None) -> str:
    return "any" if limits is None else f"{limits[0]:g} to {limits[1]:g} mm"
