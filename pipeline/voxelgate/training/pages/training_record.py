"""What is known of a training so far, as plain values: losses, Dice, drawings of validation cases."""

import math
from dataclasses import field, replace
from pathlib import Path
from statistics import fmean

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from voxelgate.core.files import read_text, write_text
from voxelgate.training.pages.case_drawing import CaseDrawing

PlanePaths = tuple[dict[int, str], ...]
"""Outlines of what was found in each slice of a case, as `DrawnPlane.result`."""

LOSS_PARTS = 10
"""Mean losses that are kept of an epoch."""

MOST_PATHS = 3_000_000
"""Signs of all outlines that are kept; of more, every second validation loses its own."""


@dataclass(frozen=True)
class EpochRecord:
    """An epoch of a training.

    Args:
        losses: means of its parts, in their order.
        learning_rates: the same.
        steps: that it had.
        busy_s: that the training took until here, breaks left out.
    """

    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]
    steps: int
    busy_s: float

    @property
    def loss(self) -> float:
        """Return the mean of its parts."""
        return fmean(self.losses)


@dataclass(frozen=True)
class ValidationRecord:
    """A validation.

    Args:
        epoch: after which it came.
        step: the same.
        mean_dice: by which the best weights are chosen; None if no case holds any structure.
        dice: of each case, in their order, and each structure, in the order of the labels; None if a case lacks it.
        paths: outlines of what was found, of each case that is drawn; empty if they were dropped.
    """

    epoch: int
    step: int
    mean_dice: float | None
    dice: tuple[tuple[float | None, ...], ...]
    paths: tuple[PlanePaths, ...] = ()

    @property
    def of_structures(self) -> list[float | None]:
        """Return the mean Dice of each structure over the cases that have it."""
        return [mean_of(column) for column in zip(*self.dice, strict=True)]

    @property
    def of_cases(self) -> list[float | None]:
        """Return the mean Dice of each case over its structures."""
        return [mean_of(row) for row in self.dice]


@dataclass(frozen=True)
class TrainingRecord:
    """A training so far.

    Args:
        epochs: those that are done, from the first.
        validations: in their order.
        case_ids: of all validation cases.
        drawings: of some of them, without what was found, by the number of the case.
    """

    epochs: tuple[EpochRecord, ...] = ()
    validations: tuple[ValidationRecord, ...] = ()
    case_ids: tuple[str, ...] = ()
    drawings: dict[int, CaseDrawing] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Return the steps of all epochs."""
        return sum(epoch.steps for epoch in self.epochs)

    @property
    def best(self) -> ValidationRecord | None:
        """Return the validation whose weights are kept: the first with the highest mean Dice."""
        known = [one for one in self.validations if one.mean_dice is not None]
        return max(known, key=lambda one: one.mean_dice or 0.0, default=None)

    def until(self, epoch: int) -> "TrainingRecord":
        """Return what was known after an epoch, to go on from there."""
        validations = tuple(one for one in self.validations if one.epoch <= epoch)
        return replace(self, epochs=self.epochs[:epoch], validations=validations)

    def with_validation(self, validation: ValidationRecord) -> "TrainingRecord":
        """Return the record with one more validation; where outlines become too many, older ones are dropped."""
        return replace(self, validations=_with_fewer_paths((*self.validations, validation)))


RECORD = TypeAdapter(TrainingRecord)
"""Reads and writes records as JSON."""


def read_record(path: Path) -> TrainingRecord:
    """Read what an earlier run of a training has noted; nothing if there is none that can be read."""
    try:
        return RECORD.validate_json(read_text(path))
    except (OSError, ValueError):
        return TrainingRecord()


def write_record(record: TrainingRecord, path: Path) -> None:
    """Write a record, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, RECORD.dump_json(record).decode() + "\n")


def mean_of(values: tuple[float | None, ...]) -> float | None:
    """Return the mean of the values that are defined; None if none is."""
    defined = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(defined) if defined else None


def _with_fewer_paths(validations: tuple[ValidationRecord, ...]) -> tuple[ValidationRecord, ...]:
    drawn = [number for number, one in enumerate(validations) if one.paths]
    signs = sum(len(path) for one in validations for case in one.paths for plane in case for path in plane.values())
    if signs <= MOST_PATHS:
        return validations
    dropped = set(drawn[-2::-2])
    return tuple(replace(one, paths=()) if number in dropped else one for number, one in enumerate(validations))
