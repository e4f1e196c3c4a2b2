"""The page of a training that runs: how far it is, its losses, the Dice of each structure, and validation cases."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from jinja2 import Template

from voxelgate.core.files import write_text
from voxelgate.core.labels import LabelTable
from voxelgate.core.page import page_style, page_templates, policy_hash
from voxelgate.core.palette import structure_colours
from voxelgate.training.pages.charts import ChartLine, LineChart, Point, smoothed, thinned_out
from voxelgate.training.pages.training_record import TrainingRecord

PACKAGE = "voxelgate.training.pages"

MOST_POINTS = 400
"""Of a line of losses; more than the pixels that it has."""

SMOOTHING = 0.03
"""By which part of itself the line through the losses lags."""

DICE_STEP = 0.1
"""The axis of Dice begins at a multiple of it."""


@dataclass(frozen=True)
class TrainingState:
    """How far a training is.

    Args:
        title: what is trained.
        fold: whose cases validate; below 0 all cases are trained on.
        steps: that it shall have.
        epochs: the same.
        left_s: how long it will still take; None if nobody knows.
        is_done: whether it has ended.
    """

    title: str
    fold: int
    steps: int
    epochs: int
    left_s: float | None
    is_done: bool = False


@dataclass(frozen=True)
class StructureRow:
    """What the page says of a structure: its Dice now, at the best validation, and that of its worst case now."""

    value: int
    name: str
    now: float | None
    best: float | None
    worst: float | None
    worst_case: str


def write_progress_page(record: TrainingRecord, state: TrainingState, labels: LabelTable, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    style = page_style(PACKAGE, "training.css") + colour_rules(labels)
    script = (files(PACKAGE) / "progress.js").read_text(encoding="utf-8")
    text = _template().render(
        record=record,
        state=state,
        rows=_structure_rows(record, labels),
        charts=_charts(record, state, labels),
        cases=_drawn_cases(record),
        history=_history(record),
        shown=shown_time,
        now=datetime.now(UTC),
        style=style,
        style_hash=policy_hash(style),
        script=script,
        script_hash=policy_hash(script),
    )
    write_text(path, text + "\n")


@cache
def _template() -> Template:
    """Return the template, which is compiled once for all epochs."""
    return page_templates(PACKAGE).get_template("progress.html.j2")


def colour_rules(labels: LabelTable) -> str:
    """Return style rules that give each structure its colour, as `--structure` of the class `s` and its value."""
    colours = structure_colours(labels)
    return "".join(f".s{value} {{ --structure: rgb{colour}; }}\n" for value, colour in colours.items())


def shown_time(time_s: float | None) -> str:
    """Say a time as a person would.

    >>> shown_time(8), shown_time(95), shown_time(8000)
    ('8 s', '2 min', '2 h 13 min')
    """
    if time_s is None:
        return "unknown"
    if time_s < 60:
        return f"{time_s:.0f} s"
    hours, minutes = divmod(round(time_s / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _structure_rows(record: TrainingRecord, labels: LabelTable) -> list[StructureRow]:
    if not record.validations:
        return []
    now, best = record.validations[-1], record.best
    rows = []
    for column, (value, name) in enumerate(zip(labels.foreground, labels.names[1:], strict=True)):
        known = [(row[column], case) for row, case in zip(now.dice, record.case_ids, strict=False)]
        defined = [(dice, case) for dice, case in known if dice is not None]
        worst, case = min(defined, default=(None, ""))
        of_best = None if best is None else best.of_structures[column]
        rows.append(StructureRow(value, name, now.of_structures[column], of_best, worst, case))
    return rows


def _charts(record: TrainingRecord, state: TrainingState, labels: LabelTable) -> dict[str, LineChart]:
    span = (0.0, float(max(state.steps, 1)))
    starts = accumulate((epoch.steps for epoch in record.epochs), initial=0)
    steps = [
        start + epoch.steps * (part + 1) / len(epoch.losses)
        for start, epoch in zip(starts, record.epochs, strict=False)
        for part in range(len(epoch.losses))
    ]
    losses = list(zip(steps, chain.from_iterable(epoch.losses for epoch in record.epochs), strict=True))
    rates = list(zip(steps, chain.from_iterable(epoch.learning_rates for epoch in record.epochs), strict=True))
    return {
        "loss": _loss_chart(losses, span),
        "rate": LineChart(
            (ChartLine("", "rate", thinned_out(rates, MOST_POINTS)),),
            span,
            (0.0, max((rate for _, rate in rates), default=1.0)),
            "step",
            height=92,
        ),
        "dice": _dice_chart(record, span, labels),
    }


def _loss_chart(losses: Sequence[Point], span: Point) -> LineChart:
    points = thinned_out(losses, MOST_POINTS)
    values = [loss for _, loss in points] or [0.0, 1.0]
    low, high = min(0.0, *values), max(values)
    lines = (ChartLine("", "raw", points), ChartLine("", "smooth", smoothed(points, SMOOTHING * len(points))))
    return LineChart(lines, span, (low, high), "step", height=220)


def _dice_chart(record: TrainingRecord, span: Point, labels: LabelTable) -> LineChart:
    lines = []
    for column, (value, name) in enumerate(zip(labels.foreground, labels.names[1:], strict=True)):
        values = [(float(one.step), one.of_structures[column]) for one in record.validations]
        lines.append(ChartLine(name, f"s{value}", tuple((x, dice) for x, dice in values if dice is not None)))
    mean = tuple((float(one.step), one.mean_dice) for one in record.validations if one.mean_dice is not None)
    if len(lines) > 1:
        lines.append(ChartLine("mean", "mean", mean))
    later = [y for line in lines for _, y in line.points[len(line.points) // 2 :]]
    low = max(0.0, DICE_STEP * (min(later, default=0.0) // DICE_STEP))
    names = max((len(line.name) for line in lines), default=0)
    return LineChart(
        tuple(lines), span, (low, 1.0), "step", height=326, margins=(48, min(190, 22 + 6.2 * names), 10, 34)
    )


def _drawn_cases(record: TrainingRecord) -> list[dict[str, Any]]:
    """Return what is shown of each drawn case as it was when it was drawn last, the worst one first."""
    last = next((one for one in reversed(record.validations) if one.paths), None)
    if last is None:
        return []
    cases = [
        {
            "number": number,
            "case_id": record.case_ids[number],
            "dice": last.of_cases[number],
            "drawing": drawing,
            "paths": last.paths[place],
        }
        for place, (number, drawing) in enumerate(record.drawings.items())
    ]
    return sorted(cases, key=lambda case: 2.0 if case["dice"] is None else case["dice"])


def _history(record: TrainingRecord) -> dict[str, Any]:
    """Return the outlines and the Dice of each drawn case at each validation that has kept them."""
    kept = [one for one in record.validations if one.paths]
    return {
        "steps": [one.step for one in kept],
        "cases": {
            number: [{"dice": one.of_cases[number], "paths": one.paths[place]} for one in kept]
            for place, number in enumerate(record.drawings)
        },
    }
