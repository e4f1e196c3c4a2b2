"""A training of ignite engines whose validation cases are small balls that are found better with each epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.handlers import MeanDice, from_engine

from voxelgate.training.pages.progress_handler import WriteProgressPage
from voxelgate.training.pages.training_record import read_record

NAMES = {"0": "background", "1": "left ball", "2": "right ball", "3": "never there"}
SHAPE = (20, 18, 16)
EPOCHS = 4


def balls(shift: int = 0) -> npt.NDArray[np.int64]:
    """Return two balls, the second moved to the left."""
    labels = np.zeros(SHAPE, np.int64)
    for value, centre in ((1, (5, 9, 8)), (2, (14 - shift, 9, 8))):
        labels[np.linalg.norm(np.indices(SHAPE).T - centre, axis=-1).T < 3] = value
    return labels


def one_hot(labels: npt.NDArray[np.int64]) -> MetaTensor:
    channels = torch.nn.functional.one_hot(torch.as_tensor(labels), len(NAMES)).permute(3, 0, 1, 2)
    return MetaTensor(channels.float(), affine=torch.eye(4, dtype=torch.float64))


def validation_of(truths: Sequence[npt.NDArray[np.int64]], *, are_named: bool = True) -> Engine:
    """Return a validator; after epoch 1 it finds the second ball 3 voxels beside, then nearer."""

    def step(engine: Engine, case: tuple[int, npt.NDArray[np.int64]]) -> list[dict[str, Any]]:
        number, truth = case
        found = one_hot(balls(max(0, EPOCHS - engine.state.epoch)))
        engine.state.batch = [{"case_id": f"case_{number}"} if are_named else {}]
        return [{"image": MetaTensor(100.0 * found[1:2], affine=found.affine), "label": one_hot(truth), "pred": found}]

    validator = Engine(step)
    MeanDice(include_background=False, output_transform=from_engine(["pred", "label"])).attach(validator, "val_dice")
    validator.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "truths", truths))
    return validator


def run_training(
    folder: Path,
    truths: Sequence[npt.NDArray[np.int64]],
    *,
    epochs: int = EPOCHS,
    done: int = 0,
    fold: int = 0,
    title: str = "balls",
    are_named: bool = True,
) -> list[int]:
    """Run a training that goes on after `done` epochs, and that validates after each.

    Returns:
        The steps that the page has known of after each of them.
    """
    validator, weight = validation_of(truths, are_named=are_named), torch.nn.Parameter(torch.zeros(1))
    page = WriteProgressPage(
        path=folder / "progress.html",
        validator=validator,
        optimizer=torch.optim.SGD([weight], lr=0.25),
        names=NAMES,
        title=title,
        fold=fold,
    )
    trainer = Engine(lambda engine, _batch: {"loss": torch.tensor(2.0 / engine.state.iteration)})
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", done))

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        if truths:
            validator.run(list(enumerate(truths)), epoch_length=len(truths), max_epochs=engine.state.epoch)

    page.attach(trainer)
    known: list[int] = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def look() -> None:
        known.append(read_record(folder / "progress.json").steps)

    trainer.run([0] * 6, max_epochs=epochs)
    return known
