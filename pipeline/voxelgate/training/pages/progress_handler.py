"""An ignite handler that shows a training while it runs: a page that needs no server, and TensorBoard."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import structure_colours
from voxelgate.evaluation.handler import values_of_channels
from voxelgate.evaluation.table import without_name
from voxelgate.training.distributed import rank
from voxelgate.training.pages.case_drawing import HIGHEST, CaseDrawing, Picture, cut_outlines, drawing_of, pictures_of
from voxelgate.training.pages.painting import painted
from voxelgate.training.pages.progress_page import TrainingState, write_progress_page
from voxelgate.training.pages.slice_frames import SliceFrame, frames_of
from voxelgate.training.pages.slice_outlines import Outlines, svg_paths
from voxelgate.training.pages.training_record import (
    LOSS_PARTS,
    EpochRecord,
    PlanePaths,
    TrainingRecord,
    ValidationRecord,
    read_record,
    write_record,
)

logger = logging.getLogger(__name__)

DRAWN_CASES = 4
"""Validation cases that are drawn, evenly spread over all."""

MOST_SHARE = 0.01
"""Of the time of a training; drawing waits where it has taken more, and so does writing."""

WRITE_EVERY_S = 30.0
"""How often the page is written within an epoch, which may last for many minutes."""

EVENTS = "events"
"""Folder beside the page, with what TensorBoard shows."""


@dataclass(frozen=True, eq=False)
class _DrawnCase:
    frames: tuple[SliceFrame, ...]
    pictures: list[Picture]
    truth: list[Outlines]
    drawing: CaseDrawing


class _Allowance:
    """Time that something may take, as a part of the time since it was made."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.spent_s = 0.0

    @property
    def is_left(self) -> bool:
        """Return whether it may take more."""
        return self.spent_s <= MOST_SHARE * (time.monotonic() - self.started_s)

    @contextmanager
    def spent(self) -> Iterator[None]:
        """Count what is done within."""
        start_s = time.monotonic()
        yield
        self.spent_s += time.monotonic() - start_s


class WriteProgressPage:
    """Write a page that shows a training so far, after each epoch, and the same into TensorBoard.

    Losses, learning rate, Dice of each structure at each validation, outlines of some validation cases as they become
    better, and the time left. The page is one file that loads nothing, written whole or not at all; cases are called by
    their ids in the manifest, and their images are in it. What is known so far lies in `progress.json` beside it, from
    which a training that is taken up again goes on. Of processes that train together the first does this. The training
    goes on where the page cannot be written, and waits for it for some hundredths of its time at most.

    Args:
        path: of the page, which is replaced.
        validator: runs the validation cases, one-hot `pred` and `label` on one grid; its first measure is of Dice.
        optimizer: knows the learning rate.
        names: `{"0": "background", "1": ...}`.
        title: says on the page what is trained.
        fold: whose cases validate; below 0 they are trained on, too.

    >>> network = torch.nn.Conv3d(1, 2, 1)
    >>> validator, names = Engine(lambda engine, batch: None), {"0": "background", "1": "blob"}
    >>> page = vg.WriteProgressPage(
    ...     path="progress.html", validator=validator, optimizer=torch.optim.SGD(network.parameters()), names=names
    ... )
    >>> trainer = Engine(lambda engine, batch: {"loss": torch.tensor(0.5)})
    >>> page.attach(trainer)
    >>> _ = trainer.run([0, 0], max_epochs=2)
    >>> Path("progress.html").is_file()
    True
    """

    def __init__(
        self,
        *,
        path: str | Path,
        validator: Engine,
        optimizer: Optimizer,
        names: Mapping[str, str],
        title: str = "training",
        fold: int = 0,
    ) -> None:
        self.path = Path(path)
        self.validator = validator
        self.optimizer = optimizer
        self.labels = LabelTable.from_mapping(names)
        self.title = title
        self.fold = fold
        self._colours = structure_colours(self.labels)
        self._record: TrainingRecord | None = None
        self._writer: SummaryWriter | None = None
        self._losses: list[torch.Tensor] = []
        self._rates: list[float] = []
        self._case_ids: list[str] = []
        self._cases: dict[int, _DrawnCase] = {}
        self._found: dict[int, list[Outlines]] = {}
        self._drawing, self._writing = _Allowance(), _Allowance()
        self._before_s = self._written_s = 0.0
        self._steps = 0

    def attach(self, engine: Engine) -> None:
        """Listen to steps, epochs and validation cases; put this handler behind the one that validates."""
        if rank() != 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._note)
        engine.add_event_handler(Events.COMPLETED, self._end)
        self.validator.add_event_handler(Events.STARTED, self._forget_cases)
        self.validator.add_event_handler(Events.ITERATION_COMPLETED, self._see)

    # --- what the trainer says ------------------------------------------------------------------------------------

    def _begin(self, engine: Engine) -> None:
        self._losses, self._rates = [], []
        if self._record is not None:
            return
        self._record = read_record(self.path.with_suffix(".json")).until(engine.state.epoch - 1)
        self._before_s = self._record.epochs[-1].busy_s if self._record.epochs else 0.0
        self._writer = SummaryWriter(str(self.path.parent / EVENTS))
        self._drawing, self._writing = _Allowance(), _Allowance()
        self._write(engine, self._record)
        self._writing.spent_s = 0.0  # once, for what must be loaded
        logger.info("%s shows the training as it goes on", self.path)

    def _step(self, engine: Engine) -> None:
        loss = engine.state.output["loss"].detach()
        self._losses.append(loss)
        self._rates.append(float(self.optimizer.param_groups[0]["lr"]))
        self._steps += 1
        if self._writer is not None:
            self._writer.add_scalar("1_loss/step", loss, engine.state.iteration)
        if self._elapsed_s - self._written_s >= WRITE_EVERY_S and self._writing.is_left:
            self._write(engine, self._with_losses(engine))

    def _with_losses(self, engine: Engine) -> TrainingRecord:
        """Return what is known, the epoch that runs included."""
        record, parts = self._record or TrainingRecord(), min(LOSS_PARTS, len(self._losses))
        losses, rates = torch.stack(self._losses).double().cpu(), torch.tensor(self._rates)
        epoch = EpochRecord(
            tuple(float(part.mean()) for part in losses.tensor_split(parts)),
            tuple(float(part[-1]) for part in rates.tensor_split(parts)),
            len(losses),
            self._before_s + self._elapsed_s,
        )
        return replace(record, epochs=(*record.epochs[: engine.state.epoch - 1], epoch))

    def _note(self, engine: Engine) -> None:
        if self._record is None or not self._losses:
            return
        self._record = self._with_losses(engine)
        last = self._record.epochs[-1]
        self._tell({"1_loss/epoch": last.loss, "3_learning_rate": last.learning_rates[-1]}, engine.state.epoch)
        if self._case_ids:
            with self._drawing.spent():
                self._note_validation(engine.state.epoch)
        if self._writing.is_left or len(self._record.validations) == 1:
            self._write(engine, self._record)

    def _end(self, engine: Engine) -> None:
        if self._record is not None:
            self._write(engine, self._record, is_done=True)
            spent_s = self._drawing.spent_s + self._writing.spent_s
            logger.info("%s: took %.1f s of %.1f minutes", self.path.name, spent_s, self._elapsed_s / 60)
        if self._writer is not None:
            self._writer.close()

    # --- what the validator says ----------------------------------------------------------------------------------

    def _forget_cases(self, engine: Engine) -> None:  # noqa: ARG002  # ignite's interface
        self._case_ids, self._found = [], {}

    def _see(self, engine: Engine) -> None:
        with self._drawing.spent():
            for row, case in zip(engine.state.output, engine.state.batch, strict=True):
                number = len(self._case_ids)
                self._case_ids.append(without_name(str(case["case_id"])) if "case_id" in case else f"case {number + 1}")
                if number in _spread_over(engine.state.epoch_length) and (
                    self._drawing.is_left or number not in self._cases
                ):
                    self._draw(number, row)

    def _draw(self, number: int, row: Mapping[str, Any]) -> None:
        if number not in self._cases:
            truth, found = (values_of_channels(row[key]).clip(min=0) for key in ("label", "pred"))
            frames = frames_of(truth if truth.any() else found, Grid.of(row["label"]), HIGHEST)
            outlines = [cut_outlines(truth[frame.slab], frame) for frame in frames]
            pictures = pictures_of(row["image"], frames)
            drawing = drawing_of(pictures, frames, outlines, [{} for _ in frames])
            self._cases[number] = _DrawnCase(frames, pictures, outlines, drawing)
        cuts = [(values_of_channels(row["pred"][:, *frame.slab]), frame) for frame in self._cases[number].frames]
        self._found[number] = [cut_outlines(cut.clip(min=0), frame) for cut, frame in cuts]

    def _note_validation(self, epoch: int) -> None:
        name, mean = next(iter(self.validator.state.metrics.items()), ("", np.nan))
        details = self.validator.state.metric_details[name][: len(self._case_ids)].tolist()
        dice = tuple(tuple(value if np.isfinite(value) else None for value in row) for row in details)
        drawings = {number: case.drawing for number, case in self._cases.items()}
        paths: tuple[PlanePaths, ...] = ()
        if self._found.keys() == self._cases.keys():
            paths = tuple(tuple(map(svg_paths, found)) for found in self._found.values())
        known_steps = 0 if self._record is None else self._record.steps
        validation = ValidationRecord(epoch, known_steps, float(mean) if np.isfinite(mean) else None, dice, paths)
        record = replace(self._record or TrainingRecord(), case_ids=tuple(self._case_ids), drawings=drawings)
        self._record = record.with_validation(validation)
        known = zip(self.labels.names[1:], validation.of_structures, strict=False)
        self._tell({f"2_dice/{label}": value for label, value in [("mean", mean), *known] if value is not None}, epoch)
        self._tell_pictures(epoch)
        self._case_ids = []

    # --- where it goes --------------------------------------------------------------------------------------------

    def _tell(self, scalars: Mapping[str, float], epoch: int) -> None:
        if self._writer is not None:
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, epoch)

    def _tell_pictures(self, epoch: int) -> None:
        if self._writer is None:
            return
        for number, found in self._found.items():
            case = self._cases[number]
            picture = painted(case.pictures, case.truth, found, self._colours)
            self._writer.add_image(f"cases/{self._case_ids[number]}", picture, epoch, dataformats="HWC")
        self._writer.flush()

    def _write(self, engine: Engine, record: TrainingRecord, *, is_done: bool = False) -> None:
        with self._writing.spent():
            self._written_s = self._elapsed_s
            steps = record.steps if is_done else max(record.steps, engine.state.max_epochs * engine.state.epoch_length)
            left_s = self._elapsed_s / self._steps * (steps - record.steps) if self._steps else None
            state = TrainingState(self.title, self.fold, steps, engine.state.max_epochs, left_s, is_done=is_done)
            try:
                write_record(record, self.path.with_suffix(".json"))
                write_progress_page(record, state, self.labels, self.path)
            except OSError as error:
                logger.warning("%s: cannot be written (%s); the training goes on", self.path.name, error.strerror)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._writing.started_s


def _spread_over(cases: int) -> set[int]:
    """Return the numbers of the cases that are drawn."""
    return set(np.linspace(0, cases - 1, min(cases, DRAWN_CASES)).round().astype(int).tolist())
