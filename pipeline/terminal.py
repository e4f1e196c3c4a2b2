"""What the commands print: tables of what was found or done, errors, and bars with the time left."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.batch.status import Status
from pipeline.case_report import CaseReport, CaseStatus
from pipeline.dicom.inspect import Inspected
from pipeline.evaluation import LabelScores, summarise
from pipeline.pictures import PIXELS_PER_ML
from pipeline.planning import Plan
from pipeline.planning.explain import explain
from pipeline.planning.show import Facts
from pipeline.results import is_of_picture

PIPED_WIDTH = 120
"""Columns of a table that goes to a file or another program."""

MOST_ROWS = 50
"""Cases that are listed on the screen; of more there is the table in the output folder."""

SERIES_COLUMNS = ("series", "modality", "images", "size", "spacing mm", "verdict", "reasons")

SCORE_COLUMNS = ("label", "Dice", "IoU", "HD95 mm", "ASSD mm", "MSSD mm", "RAVD %", "volume ml", "missed")

PIXEL_SCORE_COLUMNS = ("label", "Dice", "IoU", "HD95 px", "ASSD px", "MSSD px", "RAVD %", "area px", "missed")
"""Of pictures."""

errors = Console(stderr=True, highlight=False)

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


@contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left on a terminal; what is yielded takes how many are done, and of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def show(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of, visible=done < of)
            if done >= of:
                bar.stop()  # what follows, such as a training, shows its own

        yield show


def print_status(status: Status) -> None:
    """Print how far a run is."""
    console.print("A run works in this folder." if status.is_running else "No run works in this folder.")
    console.print(", ".join(f"{count} {state}" for state, count in status.counts.items() if count) or "no cases")
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in status.verdicts.items() if count)
    if verdicts:
        console.print(f"Verdicts: {verdicts}")
    if status.ended_per_hour:
        left = "" if status.left_s is None else f", about {timedelta(seconds=round(status.left_s))} left"
        console.print(f"{status.ended_per_hour:g} cases an hour{left}")
    for case in status.running:
        line = f"{case.case_id}: for {case.elapsed_s:.0f} s on {case.worker}, attempt {case.attempt}"
        console.print(line, markup=False, soft_wrap=True)
    for bad in status.bad:
        console.print(f"{bad.case_id}: {bad.status}: {bad.reason}", markup=False, soft_wrap=True)


def print_findings(report: CaseReport) -> None:
    """Print why a case ended badly, or what should be looked at."""
    if report.status is not CaseStatus.DONE:
        line = f"{report.case_id}: {report.status}: {' '.join(report.findings)}"
        errors.print(line, markup=False, soft_wrap=True)
        return
    for finding in report.findings:
        errors.print(f"{report.case_id}: {finding}", markup=False, soft_wrap=True)


def print_series(found: list[Inspected]) -> None:
    """Print a table of DICOM series, and what was found about each."""
    table = Table(*SERIES_COLUMNS, box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for one in found:
        facts = one.summary()
        shape, spacing = facts["shape"] or (), facts["spacing_mm"] or ()
        table.add_row(
            facts["series_id"],
            facts["modality"],
            str(facts["images"]),
            " x ".join(map(str, shape)),
            " x ".join(f"{value:.2f}" for value in spacing),
            "[green]usable[/]" if one.series.is_usable else "[red]refused[/]",
            ", ".join(finding.code for finding in one.series.findings),
        )
    console.print(table)
    for one in found:
        for finding in one.series.findings:
            console.print(f"{one.series.series_id}: {finding.severity}: {finding}", markup=False, soft_wrap=True)
    console.print(f"{sum(one.series.is_usable for one in found)} of {len(found)} series can be used")


def print_facts(facts: Facts) -> None:
    """Print a table of what is in a data set."""
    table = Table(*facts.columns, title=facts.title, box=box.SIMPLE_HEAD)
    for row in facts.rows:
        table.add_row(*map(escape, row))
    console.print(table)


def print_plan(made: Plan) -> None:
    """Print the choices of a plan and their reasons."""
    table = Table("choice", "value", "reason", title=made.name, box=box.SIMPLE_HEAD)
    for row in explain(made):
        table.add_row(row.name, escape(row.value), escape(row.reason))
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


def print_reports(reports: list[CaseReport], out: Path) -> None:
    """Print a table of the cases that are done, and how many there are."""
    done = [report for report in reports if report.status is CaseStatus.DONE]
    in_pixels = bool(done) and all(map(is_of_picture, done))
    table = Table(
        "case",
        *(f"{name} {'px' if in_pixels else 'ml'}" for name in (done[0].volumes_ml if done else ())),
        "verdict",
        "seconds",
        box=box.SIMPLE_HEAD,
    )
    for report in done:
        volumes = (
            f"{value * PIXELS_PER_ML:.0f}" if in_pixels else f"{value:.2f}" for value in report.volumes_ml.values()
        )
        table.add_row(report.case_id, *volumes, report.quality.verdict, f"{sum(report.seconds.values()):.1f}")
    if 0 < len(done) <= MOST_ROWS:
        console.print(table)
    console.print(f"{len(done)} of {len(reports)} volumes segmented into {out}")
