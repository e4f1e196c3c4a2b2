"""The page of a cross-validation: cases from the worst to the best, their outlines, and volumes against the truth."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any

from voxelgate.core.errors import OutputError
from voxelgate.core.files import write_text
from voxelgate.core.labels import LabelTable
from voxelgate.core.page import page_style, page_templates, policy_hash
from voxelgate.evaluation.scores import LabelScores, Measure
from voxelgate.evaluation.table import MEAN_OVER_LABELS, LabelSummary, summarise
from voxelgate.images.pictures import PIXELS_PER_ML
from voxelgate.training.pages.case_drawing import CaseDrawing
from voxelgate.training.pages.charts import ChartLine, LineChart
from voxelgate.training.pages.progress_page import PACKAGE, colour_rules
from voxelgate.training.pages.training_record import mean_of

FOLDS_PAGE = "cross_validation.html"
"""Name of the page, in the folder of a training."""

DRAWN_BYTES = 60_000_000
"""Drawings that a page holds at most, from the worst case on; browsers open larger files slowly."""

STRIP_STEP = 0.1
"""The axis of all Dice begins at a multiple of it."""

ROOM = 0.06
"""Part of a range of volumes that an axis goes on beyond either end."""


@dataclass(frozen=True)
class CrossValidationFacts:
    """What a page says of a cross-validation.

    Args:
        title: what was trained.
        labels: its structures.
        scores: of each structure of each case, by a network that has not seen it.
        drawings: of cases, by id; those without are listed without pictures.
        fold_of: fold of each case id.
        subject_of: subject of each case id.
    """

    title: str
    labels: LabelTable
    scores: Sequence[LabelScores]
    drawings: Mapping[str, CaseDrawing]
    fold_of: Mapping[str, int]
    subject_of: Mapping[str, str]

    @property
    def in_pixels(self) -> bool:
        """Return whether all cases are pictures, whose sizes are told in pixels."""
        return all(one.counts_pixels for one in self.scores)


@dataclass(frozen=True)
class ScatterDot:
    """A case in a plot: where it stands, its id, and the number of its card, to which a click leads."""

    x: float
    y: float
    case_id: str
    number: int


@dataclass(frozen=True)
class FoldsOfStructure:
    """What the page says of a structure over all cases.

    Args:
        value: of the label.
        name: of the structure.
        summary: of its scores, by subject.
        strip: where each case stands on the axis of Dice, as `LineChart.x` gives it.
        volumes: chart of found against true volumes.
        dots: its cases.
        bias: how much larger all found volumes are than all true ones, as a part of these; None without true ones.
    """

    value: int
    name: str
    summary: LabelSummary
    strip: tuple[ScatterDot, ...]
    volumes: LineChart
    dots: tuple[ScatterDot, ...]
    bias: float | None


def write_folds_page(facts: CrossValidationFacts, path: Path) -> None:
    """Write the page of a cross-validation, whole or not at all; an older one is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    style = page_style(PACKAGE, "training.css") + colour_rules(facts.labels)
    script = (files(PACKAGE) / "folds.js").read_text(encoding="utf-8")
    cases = _cases(facts)
    summaries = {one.label: one for one in summarise(facts.scores, facts.subject_of)}
    text = (
        page_templates(PACKAGE)
        .get_template("folds.html.j2")
        .render(
            facts=facts,
            cases=cases,
            structures=list(_over_structures(facts, summaries, cases)),
            overall=summaries[MEAN_OVER_LABELS],
            folds=_fold_means(facts),
            strip=_strip(facts.scores),
            Measure=Measure,
            now=datetime.now(UTC),
            style=style,
            style_hash=policy_hash(style),
            script=script,
            script_hash=policy_hash(script),
        )
    )
    try:
        write_text(path, text + "\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free the disk or its rights.") from error


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cases(facts: CrossValidationFacts) -> list[dict[str, Any]]:
    """Return what is shown of each case, the worst one first, those without any structure last."""
    of_case: dict[str, list[LabelScores]] = defaultdict(list)
    for one in facts.scores:
        of_case[one.case_id].append(one)
    values = {name: value for value, name in zip(facts.labels.foreground, facts.labels.names[1:], strict=True)}
    cases: list[dict[str, Any]] = []
    for case_id, scores in of_case.items():
        mean = mean_of(tuple(_defined(one.dice) for one in scores))
        dice = {values[one.label]: _defined(one.dice) for one in scores}
        ranks = {"mean": mean, **{str(value): of_one for value, of_one in dice.items()}}
        cases.append({"case_id": case_id, "fold": facts.fold_of[case_id], "mean": mean, "dice": dice, "ranks": ranks})
    cases.sort(key=lambda case: (case["mean"] is None, case["mean"], case["case_id"]))
    drawings = [facts.drawings.get(case["case_id"]) for case in cases]
    sizes = accumulate(0 if one is None else _drawing_bytes(one) for one in drawings)
    return [
        {**case, "number": number, "drawing": drawing if size <= DRAWN_BYTES else None}
        for number, (case, drawing, size) in enumerate(zip(cases, drawings, sizes, strict=True))
    ]


def _drawing_bytes(drawing: CaseDrawing) -> int:
    """Return about how many signs of the page a drawing takes."""
    paths = (path for plane in drawing.planes for part in (plane.truth, plane.result) for path in part.values())
    return sum(len(plane.picture) for plane in drawing.planes) + sum(map(len, paths))


def _over_structures(
    facts: CrossValidationFacts, summaries: Mapping[str, LabelSummary], cases: Sequence[Mapping[str, Any]]
) -> Iterator[FoldsOfStructure]:
    number_of = {case["case_id"]: case["number"] for case in cases}
    strip, unit = _strip(facts.scores), PIXELS_PER_ML if facts.in_pixels else 1
    for value, name in zip(facts.labels.foreground, facts.labels.names[1:], strict=True):
        scores = [one for one in facts.scores if one.label == name]
        strips = tuple(
            ScatterDot(strip.x(one.dice), one.dice, one.case_id, number_of[one.case_id])
            for one in scores
            if math.isfinite(one.dice)
        )
        dots = tuple(
            ScatterDot(unit * one.reference_ml, unit * one.volume_ml, one.case_id, number_of[one.case_id])
            for one in scores
            if not one.is_absent
        )
        true = [(dot.x, dot.y) for dot in dots if dot.x > 0]
        bias = sum(y for _, y in true) / sum(x for x, _ in true) - 1 if true else None
        yield FoldsOfStructure(value, name, summaries[name], strips, _volume_chart(dots), dots, bias)


def _volume_chart(dots: Sequence[ScatterDot]) -> LineChart:
    ends = [size for dot in dots for size in (dot.x, dot.y)] or [0.0, 1.0]
    room = ROOM * (max(ends) - min(ends)) or 0.5 * max(ends) or 1.0
    span = (max(0.0, min(ends) - room), max(ends) + room)
    equal = ChartLine("", "equal", ((span[0], span[0]), (span[1], span[1])))
    return LineChart((equal,), span, span, "true", height=262, width=300, margins=(48, 8, 8, 34))


def _strip(scores: Sequence[LabelScores]) -> LineChart:
    """Return the axis on which all Dice stand, from a round value below the least."""
    least = min((one.dice for one in scores if math.isfinite(one.dice)), default=0.0)
    low = max(0.0, math.floor(least / STRIP_STEP) * STRIP_STEP)
    return LineChart((), (low, 1.0), (0.0, 1.0), "", height=26, width=260, margins=(8, 8, 0, 0))


def _fold_means(facts: CrossValidationFacts) -> dict[int, float | None]:
    """Return the mean Dice of each fold over its subjects and the labels."""
    of_fold: dict[int, list[LabelScores]] = defaultdict(list)
    for one in facts.scores:
        of_fold[facts.fold_of[one.case_id]].append(one)
    means = {}
    for fold, scores in sorted(of_fold.items()):
        overall = summarise(scores, facts.subject_of)[-1]
        means[fold] = _defined(overall.statistics[Measure.DICE].mean)
    return means
