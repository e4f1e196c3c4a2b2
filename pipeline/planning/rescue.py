"""Defects of a data set, and what is done about each so that the rest can train: named, never silent."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.labels import LabelTable
from pipeline.planning.measure import STRIPE_SHARE, CaseFacts, StructureOfCase

LEFT_OUT = "left out"
KEPT = "kept"

ISLANDS = 0.1
"""Part of a structure outside its largest piece from which it counts as broken."""

MAJORITY = 0.8
"""Part of the cases that must agree on a side before the others count as swapped."""


@dataclass(frozen=True)
class Defect:
    """Something wrong with a case, and what was done.

    Args:
        case_id: the case.
        found: one sentence.
        action: one sentence that starts with "left out" or "kept".
    """

    case_id: str
    found: str
    action: str

    @property
    def is_left_out(self) -> bool:
        """Return whether the case takes no part."""
        return self.action.startswith(LEFT_OUT)


def defects_between(facts: Sequence[CaseFacts], labels: LabelTable) -> tuple[Defect, ...]:
    """Return what is wrong with each case, also in comparison with the others; in their order."""
    swapped = _swapped(facts, labels)
    first_with: dict[str, str] = {}
    defects: list[Defect] = []
    for one in facts:
        defects += [Defect(one.case_id, problem, f"{LEFT_OUT}: its files cannot be used") for problem in one.problems]
        if one.problems:
            continue
        twin = first_with.setdefault(one.content, one.case_id)
        if twin != one.case_id:
            defects.append(Defect(one.case_id, f"holds the same voxels as {twin}", f"{LEFT_OUT}: it would count twice"))
        else:
            defects += _oddities(one, labels, swapped)
    return tuple(defects)


def _oddities(one: CaseFacts, labels: LabelTable, swapped: set[tuple[str, str]]) -> Iterator[Defect]:
    if not one.structures:
        yield Defect(one.case_id, "has no structure at all", f"{KEPT}: it shows what is background")
    for case_id, pair in sorted(swapped):
        if case_id == one.case_id:
            yield Defect(
                case_id, f"{pair} lie the other way round than in most cases", f"{LEFT_OUT}: sides must be right"
            )
    for structure in one.structures:
        name = labels.names[structure.value]
        if structure.gap_share > STRIPE_SHARE:
            found = f"{name} is striped: {structure.gap_share:.0%} of it is missing between its slices"
            yield Defect(one.case_id, found, f"{KEPT}: the other cases outweigh it")
        elif structure.outside_main > ISLANDS:
            found = (
                f"{name} is in {structure.components} pieces, {structure.outside_main:.0%} of it outside the largest"
            )
            yield Defect(one.case_id, found, f"{KEPT}: it may be so")


def _swapped(facts: Sequence[CaseFacts], labels: LabelTable) -> set[tuple[str, str]]:
    """Return case and pair of names wherever a pair lies the other way round than in nearly all cases."""
    found: set[tuple[str, str]] = set()
    for first, second in labels.side_pairs:
        distance_mm = {
            one.case_id: centres[first] - centres[second]
            for one in facts
            if {first, second} <= (centres := _centres_mm(one.structures)).keys()
        }
        to_right = [case_id for case_id, distance in distance_mm.items() if distance > 0]
        to_left = sorted(distance_mm.keys() - set(to_right))
        fewer = min(to_right, to_left, key=len)
        if len(fewer) <= (1 - MAJORITY) * len(distance_mm):
            found |= {(case_id, f"{labels.names[first]} and {labels.names[second]}") for case_id in fewer}
    return found


def _centres_mm(structures: Sequence[StructureOfCase]) -> dict[int, float]:
    return {one.value: one.right_mm for one in structures}
