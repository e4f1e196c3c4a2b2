"""Rules on how many volumes a series holds: two different images at one place are never read as one volume."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from voxelgate.core.findings import Finding, FindingCode, Severity
from voxelgate.dicom.audit.facts import SeriesFacts, refuse, warn
from voxelgate.dicom.read.stack import Slice

Value = float | str | None

MANY_POSITIONS = 0.5
"""From this share of shared positions on a series holds several volumes; below it some images are doubled."""


class Feature(NamedTuple):
    """Something that tells volumes apart.

    Args:
        noun: its name, in the plural.
        value: what a plane says of it.
        code: the finding if it differs at one position.
        mixed: how bad it is if it alternates along the stack.
        is_exact: whether a scanner sets it for a whole volume, so that no slice differs by accident.
        in_blocks: whether it is normal that some slices differ that follow one another.
    """

    noun: str
    value: Callable[[Slice], Value]
    code: FindingCode = FindingCode.SEVERAL_VOLUMES
    mixed: Severity = Severity.REFUSE
    is_exact: bool = False
    in_blocks: bool = False


FEATURES = (
    Feature("echo times", lambda part: part.plane.echo_time_ms, FindingCode.SEVERAL_ECHOES, is_exact=True),
    Feature("b-values", lambda part: part.plane.b_value, FindingCode.DIFFUSION, is_exact=True),
    Feature("temporal positions", lambda part: part.plane.temporal_position, is_exact=True),
    Feature("trigger times", lambda part: part.plane.trigger_time_ms),
    Feature("scanner settings", lambda part: part.header.acquisition),
    Feature("image types", lambda part: "\\".join(part.header.image_type), mixed=Severity.WARN),
    Feature("acquisition numbers", lambda part: part.header.acquisition_number, mixed=Severity.WARN, in_blocks=True),
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
    named = f"; their {feature.noun} differ" if feature else ", and nothing says why"
    sentence = (
        f"{len(shared)} of {len(facts.positions)} positions hold up to {most} images{named}, expected one volume; "
        "separate the volumes first."
    )
    yield refuse(feature.code if feature else FindingCode.SEVERAL_VOLUMES, sentence)


def _differs(feature: Feature, groups: Sequence[Sequence[Slice]]) -> bool:
    return sum(len({feature.value(part) for part in group}) > 1 for group in groups) >= MANY_POSITIONS * len(groups)


def single_slice(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse a single image."""
    if len(facts.slices) == 1:
        yield refuse(FindingCode.SINGLE_SLICE, "the series is a single slice, expected a volume of two at least.")


def mixed_acquisitions(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse two acquisitions whose slices alternate, so that together they look like one stack.

    Blocks that follow one another are told: settings may change on the way, but two volumes may also have been joined.
    A CT in two acquisitions is normal.
    """
    for feature in FEATURES:
        values = [feature.value(part) for part in facts.stack]
        if not _alternates(values, is_exact=feature.is_exact):
            continue
        kinds = len(set(values))
        at = next(index for index, value in enumerate(values) if value != values[0])
        sentence = (
            f"{kinds} different {feature.noun} alternate along the stack, first between slices {at} and {at + 1}, "
            "expected one acquisition; separate them first."
        )
        if feature.mixed is Severity.WARN:
            sentence = f"{kinds} different {feature.noun} alternate along the stack; check that it is one acquisition."
        yield (refuse if feature.mixed is Severity.REFUSE else warn)(FindingCode.MIXED_ACQUISITIONS, sentence)
        return
    yield from _settings_in_blocks(facts)


def _settings_in_blocks(facts: SeriesFacts) -> Iterator[Finding]:
    for feature in FEATURES:
        values = [feature.value(part) for part in facts.stack]
        kinds = len(set(values))
        if kinds == 1 or feature.in_blocks or not (feature.is_exact or kinds <= len(values) // 2):
            continue
        at = next(index for index, value in enumerate(values) if value != values[0])
        sentence = (
            f"{kinds} different {feature.noun} follow one another along the stack, first between slices {at} and "
            f"{at + 1}; check that it is one acquisition."
        )
        yield warn(FindingCode.MIXED_ACQUISITIONS, sentence)
        return


def _alternates(values: Sequence[Value], *, is_exact: bool) -> bool:
    """Return whether values come back after others; those that vary by chance must be few for that to mean anything."""
    kinds = len(set(values))
    runs = 1 + sum(value != before for before, value in pairwise(values))
    return runs > kinds and (is_exact or kinds <= len(values) // 2)
