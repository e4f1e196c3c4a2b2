"""Tables that more than one command prints."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from voxelgate.apps.cli.terminal import console
from voxelgate.evaluation.scores import LabelScores
from voxelgate.evaluation.table import summarise
from voxelgate.images.pictures import PIXELS_PER_ML

if TYPE_CHECKING:
    from voxelgate.datasets.page import FactsTable

SCORE_COLUMNS = ("label", "Dice", "IoU", "HD95 mm", "ASSD mm", "MSSD mm", "RAVD %", "volume ml", "missed")

PIXEL_SCORE_COLUMNS = ("label", "Dice", "IoU", "HD95 px", "ASSD px", "MSSD px", "RAVD %", "area px", "missed")
"""Of pictures."""


def print_facts(facts: "FactsTable") -> None:
    """Print a table of what is in a data set."""
    table = Table(*facts.columns, title=facts.title, box=box.SIMPLE_HEAD)
    for row in facts.rows:
        table.add_row(*row)
    console.print(table)


def print_scores(scores: list[LabelScores], title: str, subject_of: Mapping[str, str] | None = None) -> None:
    """Print a table of means by label; of subjects, if it is known whose each case is."""
    summaries = summarise(scores, subject_of or None)
    if subject_of:
        title += f", means by subject of {len({subject_of[row.case_id] for row in scores})}"
    in_pixels = all(row.counts_pixels for row in scores)
    table = Table(*(PIXEL_SCORE_COLUMNS if in_pixels else SCORE_COLUMNS), title=title, box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for row in summaries:
        values = {measure.value: statistic.mean for measure, statistic in row.statistics.items()}
        table.add_row(
            row.label,
            f"{values['dice']:.3f}",
            f"{values['iou']:.3f}",
            *(f"{values[name]:.2f}" for name in ("hd95_mm", "assd_mm", "mssd_mm")),
            f"{values['ravd_percent']:.3f}",
            f"{values['volume_ml'] * PIXELS_PER_ML:.1f}" if in_pixels else f"{values['volume_ml']:.2f}",
            str(row.missed),
        )
    console.print(table)
