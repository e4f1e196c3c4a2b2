"""Rules on how many volumes a series holds: two different images at one place are never read as one volume."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from voxelgate.core.findings import Finding, FindingCode, Severity
from voxelgate.dicom.audit.facts import SeriesFacts, refuse, warn
from voxelgate.dicom.read.headers import ACQUISITION_SETTINGS
from voxelgate.dicom.read.stack import Slice

Value = float | str | None

MANY_POSITIONS = 0.5
"""From this share of shared positions on a series holds several volumes; below it some images are doubled."""

SAME_SETTING = 1e-3
"""Largest relative difference of numbers that are one setting.

They are decimal texts (DS): archives write them anew in other forms, in single precision, or to four digits. Settings
that somebody chose differ by a percent at least.
"""

SAME_REPETITION = 0.05
"""Largest relative difference of repetition times of slices that may still be one acquisition.

A scanner that needs two packages for all slices, or waits for breath or heart, writes the effective time of each.
"""

SHOWN_VALUES = 3

LEAST_WOVEN = 6
"""Fewest slices of which it means anything that two kinds of them alternate."""

WOVEN_GAP_S = 1.0
"""Shortest time between two acquisitions; the slices of one follow one another faster, or in the order of the stack."""


class Feature(NamedTuple):
    """Something that tells volumes apart.

    Args:
        noun: its name, in the plural.
        value: what a plane says of it; floats that are nearly equal count as one.
        unit: of a number; None for texts, which are not shown.
        code: the finding if it differs at one position.
        mixed: how bad it is if it alternates along the stack.
        near: relative difference up to which that is only a warning.
        is_exact: whether a scanner sets it for a whole volume, so that no slice differs by accident.
        in_blocks: whether it is normal that some slices differ that follow one another.
    """

    noun: str
    value: Callable[[Slice], Value]
    unit: str | None = None
    code: FindingCode = FindingCode.SEVERAL_VOLUMES
    mixed: Severity = Severity.REFUSE
    near: float = 0.0
    is_exact: bool = False
    in_blocks: bool = False

    def values(self, slices: Sequence[Slice]) -> list[Value]:
        """Return what each plane says, with one value for numbers that are nearly equal."""
        found = [self.value(part) for part in slices]
        same: dict[Value, Value] = {}
        first = math.nan
        for number in sorted({value for value in found if isinstance(value, float)}):
            first = first if abs(number - first) <= SAME_SETTING * abs(number) else number
            same[number] = first
        return [same.get(value, value) for value in found]


def _setting(keyword: str) -> Callable[[Slice], Value]:
    place = ACQUISITION_SETTINGS.index(keyword)
    return lambda part: part.header.settings[place]


FEATURES = (
    Feature("echo times", lambda part: part.plane.echo_time_ms, "ms", FindingCode.SEVERAL_ECHOES, is_exact=True),
    Feature("b-values", lambda part: part.plane.b_value, "s/mm2", FindingCode.DIFFUSION, is_exact=True),
    Feature("temporal positions", lambda part: part.plane.temporal_position, "", is_exact=True),
    Feature("trigger times", lambda part: part.plane.trigger_time_ms, "ms"),
    Feature("tube voltages", _setting("KVP"), "kV"),
    Feature("kernels", _setting("ConvolutionKernel")),
    Feature("repetition times", _setting("RepetitionTime"), "ms", near=SAME_REPETITION),
    Feature("inversion times", _setting("InversionTime"), "ms"),
    Feature("flip angles", _setting("FlipAngle"), "degrees"),
    Feature("units", _setting("Units")),
    Feature("image types", lambda part: "\\".join(part.header.image_type), mixed=Severity.WARN),
    Feature(
        "acquisition numbers", lambda part: part.header.acquisition_number, "", mixed=Severity.WARN, in_blocks=True
    ),
)
"""The first that differs gives several volumes their name."""


def shared_positions(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse several images at one position: a named kind of several volumes, or doubled slices."""
    shared = [(number, group) for number, group in enumerate(facts.positions, start=1) if len(group) > 1]
    if not shared:
        return
    if len(shared) < MANY_POSITIONS * len(facts.positions):
        number, group = shared[0]
        sentence = (
            f"{len(shared)} of {len(facts.positions)} positions hold more than one image, first position {number} with "
            f"{len(group)} different images, expected one; choose which belong to the volume."
        )
        yield refuse(FindingCode.DUPLICATE_POSITION, sentence)
        return
    feature = next((kind for kind in FEATURES if _differs(kind, [group for _, group in shared])), None)
    most = max(len(group) for _, group in shared)
    named = ", and nothing says why"
    if feature:
        named = f"; their {feature.noun} differ{_differing_numbers(feature, feature.values(facts.slices))}"
    sentence = (
        f"{len(shared)} of {len(facts.positions)} positions hold up to {most} images{named}, expected one volume; "
        "separate the volumes first."
    )
    yield refuse(feature.code if feature else FindingCode.SEVERAL_VOLUMES, sentence)


def _differs(feature: Feature, groups: Sequence[Sequence[Slice]]) -> bool:
    return sum(len(set(feature.values(group))) > 1 for group in groups) >= MANY_POSITIONS * len(groups)


def single_slice(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse a single image."""
    if len(facts.slices) == 1:
        yield refuse(FindingCode.SINGLE_SLICE, "the series is a single slice, expected a volume of two at least.")


def mixed_acquisitions(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse two acquisitions whose slices alternate, so that together they look like one stack.

    Blocks that follow one another are told: settings may change on the way, but two volumes may also have been joined.
    A CT in two acquisitions is normal.
    """
    found = [finding for feature in FEATURES if (finding := _alternating(feature, facts.stack)) is not None]
    found += _woven_times(facts)
    if found:
        yield next((finding for finding in found if finding.severity is Severity.REFUSE), found[0])
    else:
        yield from _settings_in_blocks(facts)


def _alternating(feature: Feature, stack: Sequence[Slice]) -> Finding | None:
    values = feature.values(stack)
    if not _alternates(values, is_exact=feature.is_exact):
        return None
    at = next(index for index, value in enumerate(values) if value != values[0])
    named = (
        f"{len(set(values))} different {feature.noun}{_differing_numbers(feature, values)} alternate along the stack"
    )
    if feature.mixed is Severity.WARN or _are_near(values, feature.near):
        return warn(FindingCode.MIXED_ACQUISITIONS, f"{named}; check that it is one acquisition.")
    sentence = f"{named}, first between slices {at} and {at + 1}, expected one acquisition; give each of them alone."
    return refuse(FindingCode.MIXED_ACQUISITIONS, sentence)


def _are_near(values: Sequence[Value], near: float) -> bool:
    numbers = [value for value in values if isinstance(value, float)]
    return len(numbers) == len(values) and max(numbers) - min(numbers) <= near * abs(max(numbers))


def _differing_numbers(feature: Feature, values: Sequence[Value]) -> str:
    """Return the numbers that differ, as they stand in a sentence; texts are not shown, whatever they hold."""
    numbers = sorted({value for value in values if isinstance(value, float | int)})
    if feature.unit is None or not numbers:
        return ""
    unit = f" {feature.unit}" if feature.unit else ""
    if len(numbers) > SHOWN_VALUES:
        return f" (from {numbers[0]:.8g} to {numbers[-1]:.8g}{unit})"
    none = " or none" if None in values else ""
    return f" ({' and '.join(f'{number:.8g}' for number in numbers)}{unit}{none})"


def _woven_times(facts: SeriesFacts) -> list[Finding]:
    """Return what tells by their times that slices of two acquisitions alternate.

    The slices of one MR acquisition often are acquired in turns, odd ones first, unless it is one of a whole volume.
    """
    if facts.modality == "MR" and not all(header.is_3d for header in facts.headers):
        return []
    found = []
    acquired_s = _seconds_between_woven([part.plane.acquired_s for part in facts.stack])
    made_s = _seconds_between_woven([part.plane.made_s for part in facts.stack])
    if acquired_s is not None:
        sentence = (
            f"slices of two acquisitions, {acquired_s:.0f} s apart, alternate along the stack, expected one; give "
            "those of each Acquisition Time alone."
        )
        found.append(refuse(FindingCode.MIXED_ACQUISITIONS, sentence))
    elif made_s is not None:
        sentence = (
            f"slices whose Content Times lie {made_s:.0f} s apart alternate along the stack; check that it is one "
            "acquisition."
        )
        found.append(warn(FindingCode.MIXED_ACQUISITIONS, sentence))
    return found


def _seconds_between_woven(times_s: Sequence[float | None]) -> float | None:
    """Return the time between two groups of slices that alternate along the stack, or None.

    The groups lie on either side of the longest time in which there was no slice; slices without a time do not count.
    """
    told_s = [time_s for time_s in times_s if time_s is not None]
    if len(set(told_s)) < 2:
        return None
    gap_s, start_s = max((after - before, after) for before, after in pairwise(sorted(set(told_s))))
    is_late = [time_s >= start_s for time_s in told_s]
    is_woven = len(is_late) >= LEAST_WOVEN and 2 * _count_runs(is_late) >= len(is_late)
    return gap_s if is_woven and gap_s >= WOVEN_GAP_S else None


def _settings_in_blocks(facts: SeriesFacts) -> Iterator[Finding]:
    for feature in FEATURES:
        values = feature.values(facts.stack)
        kinds = len(set(values))
        if kinds == 1 or feature.in_blocks or not (feature.is_exact or kinds <= len(values) // 2):
            continue
        at = next(index for index, value in enumerate(values) if value != values[0])
        named = f"{kinds} different {feature.noun}{_differing_numbers(feature, values)}"
        sentence = (
            f"{named} follow one another along the stack, first between slices {at} and {at + 1}; check that it is one "
            "acquisition."
        )
        yield warn(FindingCode.MIXED_ACQUISITIONS, sentence)
        return


def _alternates(values: Sequence[Value], *, is_exact: bool) -> bool:
    """Return whether values come back after others; those that vary by chance must be few for that to mean anything."""
    kinds = len(set(values))
    return _count_runs(values) > kinds and (is_exact or kinds <= len(values) // 2)


def _count_runs(values: Sequence[Value]) -> int:
    return 1 + sum(value != before for before, value in pairwise(values))
