"""How long the network that ships is trained on all cases: as long as validated best in the cross-validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from voxelgate.training.distributed import STATE

CLEARLY_BETTER = 0.002
"""Dice by which an earlier epoch must have validated better than the last one, in every fold; less is noise."""


SELDOM = 1_000_000
"""Epochs between validations, so that the last epoch alone validates, whatever the length: all cases have been seen."""


@dataclass(frozen=True)
class Schedule:
    """How long a training is, as a part of what was planned; its learning rates fall to 0 in that time.

    Args:
        share: of the planned epochs, or minutes.
        reason: one half sentence.
    """

    share: float
    reason: str

    def of(self, epochs: int) -> int:
        """Return how many of some planned epochs there are."""
        return max(1, round(self.share * epochs))


def validations_of(trained: Path) -> dict[int, float]:
    """Return epoch and Dice of each validation of a training, as far as its state tells."""
    state: Mapping[str, Any] = torch.load(trained / "training" / STATE, map_location="cpu", weights_only=True)
    return {int(epoch): value for epoch, value in state.get("keep_best", {}).get("history", [])}


def chosen_schedule(validations: Sequence[Mapping[int, float]]) -> Schedule:
    """Return the whole schedule, or a shorter one where the folds validated clearly better before their end.

    Args:
        validations: Dice by epoch, of each fold; the last is its end.
    """
    whole = Schedule(1.0, "the whole schedule, since no earlier end validated clearly better in the folds")
    if not all(validations):
        return whole
    gains = [max(fold.values()) - fold[max(fold)] for fold in validations]
    if not gains or min(gains) < CLEARLY_BETTER:
        return whole
    shares = [max(fold, key=lambda epoch: fold[epoch]) / max(fold) for fold in validations]
    return Schedule(fmean(shares), f"every fold validated better before its end, by {fmean(gains):.4f} on average")
