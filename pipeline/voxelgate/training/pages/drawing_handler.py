"""An ignite handler that draws every case of an evaluation."""

from pathlib import Path

from ignite.engine import Engine, Events
from pydantic import TypeAdapter

from voxelgate.core.files import make_folder, read_text, write_text
from voxelgate.core.geometry import Grid
from voxelgate.evaluation.handler import values_of_channels
from voxelgate.evaluation.table import without_name
from voxelgate.training.pages.case_drawing import CaseDrawing, draw_case

DRAWINGS = TypeAdapter(dict[str, CaseDrawing])
"""Reads and writes the drawings of many cases, by case id, as JSON."""

DRAWINGS_NAME = "drawings.json"
"""File in the folder of a training with the drawings of the cases that its network has not seen."""


class DrawCases:
    """Handler of a MONAI evaluator: draw every case in some slices, and write the drawings at the end.

    Args:
        path: JSON to write; one that is there is replaced. It holds parts of the images, and ids of the manifest.
        pred_key: key of the prediction in the evaluator's output, one-hot (classes, I, J, K) with its affine.
        label_key: key of the reference, likewise.

    >>> drawings = vg.DrawCases(path="drawings.json")
    >>> drawings.attach(Engine(lambda engine, batch: None))
    """

    def __init__(self, *, path: str | Path, pred_key: str = "pred", label_key: str = "label") -> None:
        self.path = Path(path)
        self.pred_key = pred_key
        self.label_key = label_key
        self.drawings: dict[str, CaseDrawing] = {}

    def attach(self, engine: Engine) -> None:
        """Listen to each case and to the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw_rows)
        engine.add_event_handler(Events.COMPLETED, self._write_drawings)

    def _draw_rows(self, engine: Engine) -> None:
        for row, case in zip(engine.state.output, engine.state.batch, strict=True):
            found, truth = (values_of_channels(row[key]).clip(min=0) for key in (self.pred_key, self.label_key))
            drawing = draw_case(row["image"], found, truth, Grid.of(row[self.pred_key]))
            self.drawings[without_name(str(case["case_id"]))] = drawing

    def _write_drawings(self, engine: Engine) -> None:  # noqa: ARG002  # ignite's interface
        make_folder(self.path.parent)
        write_text(self.path, DRAWINGS.dump_json(self.drawings).decode() + "\n")


def read_drawings(path: Path) -> dict[str, CaseDrawing]:
    """Read what `DrawCases` has written; nothing if there is none that can be read, for then a page has no pictures."""
    try:
        return DRAWINGS.validate_json(read_text(path))
    except (OSError, ValueError):
        return {}
