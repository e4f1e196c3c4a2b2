"""Scores as a table: statistics by structure and over all, and CSV."""

import hashlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from voxelgate.core.csv_tables import csv_text
from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.files import make_folder, write_text
from voxelgate.evaluation.scores import IN_PIXELS, LabelScores, Measure

HASH_DIGITS = 12
"""Hexadecimal digits by which a case is called that shall not be named."""

MEAN_OVER_LABELS = "mean over labels"
"""Name of the last line of a summary, in which every label weighs the same."""


@dataclass(frozen=True)
class Statistic:
    """Mean, sample standard deviation (NaN below two values), median and number of the defined values."""

    mean: float
    sd: float
    median: float
    n: int


@dataclass(frozen=True)
class LabelSummary:
    """Statistics of one structure over all cases, or over all subjects.

    Args:
        label: name of the structure, or `MEAN_OVER_LABELS`.
        statistics: of each measure, over the values that are defined; its `n` says over how many.
        missed: cases whose reference holds the structure and whose prediction does not: Dice 0, no distances.
        invented: cases whose prediction holds the structure and whose reference does not: Dice 0, no distances.
        absent: cases in which neither holds it; they enter no overlap and no distance.
    """

    label: str
    statistics: Mapping[Measure, Statistic]
    missed: int
    invented: int
    absent: int


def summarise(scores: Sequence[LabelScores], subject_of: Mapping[str, str] | None = None) -> list[LabelSummary]:
    """Summarise scores by structure, and over all structures in a last line.

    The last line is the mean of the labels' means, each label weighing the same; its `sd`, `median` and `n` are over
    the labels, and its counts are sums.

    Args:
        scores: of all cases.
        subject_of: subject of each case id. Defined values are first averaged within each subject, so that a person
            with many scans weighs no more than one with a single scan; the counts stay counts of cases.

    Returns:
        One entry for each structure, in the order of first appearance, and one named `MEAN_OVER_LABELS`.

    Raises:
        InputError: cases without a subject, or no scores at all.
    """
    if not scores:
        raise InputError("there are no scores to summarise; evaluate at least one case.")
    strangers = sorted({item.case_id for item in scores} - subject_of.keys()) if subject_of is not None else []
    if strangers:
        raise InputError(f"cases without a subject: {', '.join(strangers)}. Name the subject of every case.")
    of_label: dict[str, list[LabelScores]] = {}
    for item in scores:
        of_label.setdefault(item.label, []).append(item)
    summaries = [_summary(label, items, subject_of) for label, items in of_label.items()]
    return [*summaries, _mean_over_labels(summaries)]


def write_csv(scores: Sequence[LabelScores], path: Path, *, overwrite: bool = False) -> None:
    """Write one line for each case and structure, of pictures in pixels; what is undefined is an empty cell.

    Args:
        scores: of all cases.
        path: the file; it appears complete or not at all.
        overwrite: replace a file that is there.

    Raises:
        OutputError: the file exists and `overwrite` is not given, or it cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; name another file, or allow it to be overwritten.")
    columns = _columns(in_pixels=all(item.counts_pixels for item in scores))
    header = [name for name, _ in columns.values()]
    rows = [[_cell(getattr(item, name), columns[name][1]) for name in columns] for item in scores]
    make_folder(path.parent)
    try:
        write_text(path, csv_text([header, *rows]), overwrite=overwrite)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); name a file in a writable folder.") from error


def without_names(scores: Iterable[LabelScores]) -> list[LabelScores]:
    """Return scores whose cases are called by a hash of their id, for tables that lie in a bundle and go with it."""
    return [replace(one, case_id=without_name(one.case_id)) for one in scores]


def without_name(case_id: str) -> str:
    """Return what a case is called in a bundle: the first digits of the SHA-256 of its id.

    >>> without_name("case_0")
    'e3c05451f17d'
    """
    return hashlib.sha256(case_id.encode()).hexdigest()[:HASH_DIGITS]


def _columns(*, in_pixels: bool) -> dict[str, tuple[str, int]]:
    """Return for each field of a score the name of its column, and by what its values are multiplied there."""
    names = [field.name for field in fields(LabelScores) if field.name != "counts_pixels"]
    return {name: IN_PIXELS.get(name, (name, 1)) if in_pixels else (name, 1) for name in names}


def _cell(value: str | float, factor: int) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value * factor:.6g}"


def _summary(label: str, items: Sequence[LabelScores], subject_of: Mapping[str, str] | None) -> LabelSummary:
    by_subject: dict[str, list[LabelScores]] = {}
    for item in items:
        subject = item.case_id if subject_of is None else subject_of[item.case_id]
        by_subject.setdefault(subject, []).append(item)
    return LabelSummary(
        label=label,
        statistics={
            measure: _statistic([_mean([getattr(item, measure) for item in cases]) for cases in by_subject.values()])
            for measure in Measure
        },
        missed=sum(item.is_missed for item in items),
        invented=sum(item.is_invented for item in items),
        absent=sum(item.is_absent for item in items),
    )


def _mean_over_labels(summaries: Sequence[LabelSummary]) -> LabelSummary:
    return LabelSummary(
        label=MEAN_OVER_LABELS,
        statistics={
            measure: _statistic([summary.statistics[measure].mean for summary in summaries]) for measure in Measure
        },
        missed=sum(summary.missed for summary in summaries),
        invented=sum(summary.invented for summary in summaries),
        absent=sum(summary.absent for summary in summaries),
    )


def _mean(values: Sequence[float]) -> float:
    return _statistic(values).mean


def _statistic(values: Sequence[float]) -> Statistic:
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return Statistic(math.nan, math.nan, math.nan, 0)
    sd = statistics.stdev(defined) if len(defined) > 1 else math.nan
    return Statistic(statistics.fmean(defined), sd, statistics.median(defined), len(defined))
