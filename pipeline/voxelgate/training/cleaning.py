"""Find out on cases that were not seen whether keeping the largest piece or filling holes makes label maps better."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean

import numpy as np
from scipy import ndimage

from voxelgate.core.dice import Mask, dice_of_masks
from voxelgate.core.labels import LabelTable
from voxelgate.training.planning.plan import Cleaning

LEAST_GAIN = 0.0005
"""Mean Dice that a step must bring before it is taken; less is noise."""

LEAST_CASES = 3
"""In which a structure was found before a step is taken."""


class Step(StrEnum):
    """What may be done to one structure."""

    KEEP_LARGEST = "keep_largest"
    FILL_HOLES = "fill_holes"


@dataclass(frozen=True)
class CleaningTrial:
    """What the steps would do to one structure of one case that the network has not seen.

    Args:
        value: of the label.
        before: Dice as the network gives it.
        after: Dice after each step alone, less what all other structures together lose by it.
        kept: part of its volume that each step leaves; above 1 where holes are filled.
    """

    value: int
    before: float
    after: Mapping[Step, float]
    kept: Mapping[Step, float] = field(default_factory=dict)


def trials_of(prediction: Mask, reference: Mask, labels: LabelTable) -> list[CleaningTrial]:
    """Try each step on each structure that either map holds.

    Args:
        prediction: one channel for each label value, (classes, I, J, K).
        reference: the same; voxels without any channel are not counted.
        labels: names of the values.
    """
    counts = reference.any(axis=0)
    found = [value for value in labels.foreground if prediction[value].any() and reference[value].any()]
    before = {value: dice_of_masks(prediction[value], reference[value]) for value in found}
    trials = []
    for value in found:
        after, kept, size = {}, {}, int((prediction[value] & counts).sum())
        for step, do in _STEPS.items():
            cleaned = do(prediction[value]) & counts
            lost = sum(
                before[other] - dice_of_masks(prediction[other] & ~cleaned, reference[other])
                for other in found
                if other != value and (prediction[other] & cleaned).any()
            )
            after[step] = dice_of_masks(cleaned, reference[value]) - lost
            kept[step] = int(cleaned.sum()) / size if size else 1.0
        trials.append(CleaningTrial(value, before[value], after, kept))
    return trials


def choose_cleaning(trials: Sequence[CleaningTrial]) -> Cleaning:
    """Return the steps that raise the mean Dice of a structure by `LEAST_GAIN`, and help more cases than they harm."""
    by_value: dict[int, list[CleaningTrial]] = defaultdict(list)
    for trial in trials:
        by_value[trial.value].append(trial)
    chosen = {step: tuple(v for v, found in sorted(by_value.items()) if _helps(step, found)) for step in Step}
    return Cleaning(keep_largest=chosen[Step.KEEP_LARGEST], fill_holes=chosen[Step.FILL_HOLES])


def _helps(step: Step, trials: Sequence[CleaningTrial]) -> bool:
    gains = [trial.after[step] - trial.before for trial in trials]
    is_known = len(gains) >= LEAST_CASES
    return is_known and fmean(gains) >= LEAST_GAIN and sum(gain > 0 for gain in gains) > sum(gain < 0 for gain in gains)


def _largest(mask: Mask) -> Mask:
    pieces, count = ndimage.label(mask, _TOUCHING)
    if count < 2:
        return mask
    largest: Mask = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    return largest


def _without_holes(mask: Mask) -> Mask:
    filled: Mask = ndimage.binary_fill_holes(mask, _TOUCHING)
    return filled


_TOUCHING = np.ones((3, 3, 3))
"""Voxels that touch by a corner are connected, as in MONAI's transforms of the same names.

Like those, filling gives a structure all that it encloses, other structures too."""

_STEPS: Mapping[Step, Callable[[Mask], Mask]] = {Step.KEEP_LARGEST: _largest, Step.FILL_HOLES: _without_holes}
