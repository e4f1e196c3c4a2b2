"""Scores of a validation as an ignite handler."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events

from voxelgate.core.geometry import Grid
from voxelgate.core.labels import IGNORED, LabelTable
from voxelgate.evaluation.scores import LabelScores, score
from voxelgate.evaluation.table import without_names, write_csv


class ScoreCases:
    """Handler of a MONAI evaluator: score every case on the grid of its prediction, and write the table at the end.

    Args:
        path: CSV to write; one that is there is replaced. Cases are called by a hash, for it may go with the bundle.
        names: `{"0": "background", "1": ...}`.
        pred_key: key of the prediction in the evaluator's output, one-hot (classes, I, J, K) with its affine.
        label_key: key of the reference, likewise; voxels without any class count in neither.

    >>> scores = vg.ScoreCases(path="scores.csv", names={"0": "background", "1": "blob"})
    >>> scores.attach(Engine(lambda engine, batch: None))
    """

    def __init__(
        self, *, path: str | Path, names: Mapping[str, str], pred_key: str = "pred", label_key: str = "label"
    ) -> None:
        self.path = Path(path)
        self.labels = LabelTable.from_mapping(names)
        self.pred_key = pred_key
        self.label_key = label_key
        self.scores: list[LabelScores] = []

    def attach(self, engine: Engine) -> None:
        """Listen to each case and to the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _score(self, engine: Engine) -> None:
        for row, case in zip(engine.state.output, engine.state.batch, strict=True):
            prediction, reference = row[self.pred_key], row[self.label_key]
            self.scores += score(
                values_of_channels(prediction).clip(min=0),
                values_of_channels(reference),
                Grid.of(prediction),
                self.labels,
                str(case["case_id"]),
            )

    def _write(self, engine: Engine) -> None:  # noqa: ARG002  # ignite's interface
        write_csv(without_names(self.scores), self.path, overwrite=True)


def values_of_channels(one_hot: torch.Tensor) -> npt.NDArray[np.int32]:
    """Return the label values (I, J, K) of one channel each, `IGNORED` where none is set."""
    values = one_hot.argmax(0).cpu().numpy().astype(np.int32)
    return np.where((one_hot > 0.5).any(0).cpu().numpy(), values, IGNORED)
