"""Defects of a data set, and what is done about each so that the rest can train: named, never silent."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from voxelgate.core.errors import ManifestError
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.case_facts import STRIPE_SHARE, CaseFacts, StructureOfCase
from voxelgate.datasets.manifest import Modality
from voxelgate.images.spec import HIGHEST_AIR_HU

LEFT_OUT = "left out"
KEPT = "kept"

ISLANDS = 0.1
"""Part of a structure outside its largest piece from which it counts as broken."""

MAJORITY = 0.8
"""Part of the cases in which sides must be right before the others count as swapped."""


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


def defects_between(facts: Sequence[CaseFacts], labels: LabelTable, modality: Modality) -> tuple[Defect, ...]:
    """Return what is wrong with each case, also in comparison with the others; in their order.

    Raises:
        ManifestError: left and right lie the other way round in so many cases that names or orientation must be wrong.
    """
    swapped = _swapped(facts, labels, modality)
    doubtful = _of_doubtful_scale(facts) if modality is Modality.CT else {}
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
            defects += [*_oddities(one, labels, swapped), *doubtful.get(one.case_id, ())]
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


def _swapped(facts: Sequence[CaseFacts], labels: LabelTable, modality: Modality) -> set[tuple[str, str]]:
    """Return case and pair of names wherever the left one of a pair lies to the right of the other.

    In pictures, which do not say where the patient's left is, wherever a pair lies the other way round than in nearly
    all.
    """
    found: set[tuple[str, str]] = set()
    for pair in labels.side_pairs:
        left, right = sorted(pair, key=lambda value: labels.names[value].lower())
        is_right = {
            one.case_id: centres[left] <= centres[right]
            for one in facts
            if {left, right} <= (centres := _right_mm_of(one.structures)).keys()
        }
        wrong = sorted(case_id for case_id, is_so in is_right.items() if not is_so)
        if modality is Modality.PICTURE:
            wrong = min(wrong, sorted(is_right.keys() - set(wrong)), key=len)
        names = f"{labels.names[left]} and {labels.names[right]}"
        if len(is_right) - len(wrong) >= MAJORITY * len(is_right):
            found |= {(case_id, names) for case_id in wrong}
        elif modality is not Modality.PICTURE:
            raise ManifestError(
                [
                    f"labels: {labels.names[left]} lies to the right of {labels.names[right]} in {len(wrong)} of "
                    f"{len(is_right)} cases; mend the label maps or the orientation of the files, or choose names "
                    "without left and right."
                ]
            )
    return found


def _of_doubtful_scale(facts: Sequence[CaseFacts]) -> dict[str, list[Defect]]:
    """Return the CT images of which nobody can tell whether they hold HU, or HU plus what was added to others."""
    sound = [one for one in facts if not one.problems]
    stored = [one.case_id for one in sound if one.is_stored_with_offset]
    found: dict[str, list[Defect]] = {}
    for one in sound:
        values = f"its darkest value is {one.darkest:g} and its commonest tissue {one.tissue:g}"
        if one.darkest < 0 < one.nearest_offset_hu:
            sentence = f"{values}, as if {one.nearest_offset_hu:g} were added to HU in spite of negative values"
            found[one.case_id] = [Defect(one.case_id, sentence, f"{KEPT}: it is taken for HU")]
        elif stored and not one.is_stored_with_offset and one.darkest > HIGHEST_AIR_HU:
            sentence = f"{values}: neither HU with air nor stored without a sign, as {len(stored)} others are"
            found[one.case_id] = [Defect(one.case_id, sentence, f"{LEFT_OUT}: its scale cannot be told")]
    return found


def _right_mm_of(structures: Sequence[StructureOfCase]) -> dict[int, float]:
    return {one.value: one.right_mm for one in structures}
