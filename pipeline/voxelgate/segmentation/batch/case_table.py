"""The tables of an output folder, for spreadsheets: what became of each case, and where its input lies."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from voxelgate.core.csv_tables import csv_text
from voxelgate.core.errors import OutputError
from voxelgate.core.files import write_text
from voxelgate.core.verdict import NOT_CALIBRATED, PredictedDice
from voxelgate.images.pictures import PIXELS_PER_ML
from voxelgate.segmentation.batch.ledger import BETWEEN, StoredEntries, read_input_texts
from voxelgate.segmentation.batch.ledger_records import Entry, EntryState
from voxelgate.segmentation.output_names import SINGLE_FILES
from voxelgate.segmentation.report import CaseReport

TABLE_NAME = "cases.csv"

INPUTS_NAME = "inputs.csv"
"""It names patients where files and folders do."""


def write_tables(out_dir: Path) -> None:
    """Write `cases.csv` and `inputs.csv` anew: sorted by case, without times, the same for the same results.

    That takes seconds where there are many cases, so a run does it at its end only; it may go on while this is called.

    Args:
        out_dir: the output folder.

    Raises:
        OutputError: there is no ledger, or a table cannot be written; the older one stays.
    """
    _write_table(out_dir / TABLE_NAME, table_text(out_dir, StoredEntries(out_dir)))
    _write_table(out_dir / INPUTS_NAME, csv_text([("case", "input"), *read_input_texts(out_dir).items()]))


def _write_table(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free the disk or its rights.") from error


def table_text(out_dir: Path, entries: Iterable[Entry]) -> str:
    """Return the table as CSV (RFC 4180); sizes are in ml, or in pixels if all results are of pictures.

    Before the sizes stands the Dice that is foretold: the mean of a case, and of each structure with the ends of its
    interval. A case whose verdict rests on fixed rules says so in the place of the mean.

    Args:
        out_dir: the output folder.
        entries: by id; they are gone through more than once, so that not all must be in memory.
    """
    structures = {name for one in entries if one.report for name in one.report.volumes_ml}
    foretold = sorted({name for one in entries if one.report for name in _foretold_structures(one.report)})
    in_pixels = all(one.report.is_picture for one in entries if one.report and one.report.volumes_ml)
    unit = "px" if structures and in_pixels else "ml"
    volumes = [f"{name} {unit}" for name in sorted(structures)]
    dice = [f"{name} dice{end}" for name in foretold for end in ("", " low", " high")]
    header = ["case", "status", "verdict", "predicted dice", *dice, *volumes, *SINGLE_FILES, "findings", "reasons"]
    rows = (_table_row(out_dir, one, (sorted(structures), foretold), in_pixels=in_pixels) for one in entries)
    return csv_text([header, *rows])


def _table_row(
    out_dir: Path, entry: Entry, names: tuple[Sequence[str], Sequence[str]], *, in_pixels: bool
) -> Iterable[str]:
    report = entry.report
    if report is None or entry.state in {EntryState.WAITING, EntryState.RUNNING, EntryState.PUBLISHING}:
        return (entry.case_id, EntryState.WAITING)
    structures, foretold = names
    volumes = (report.volumes_ml.get(name) for name in structures)
    of_structures = _foretold_structures(report)
    dice = (of_structures.get(name) for name in foretold)
    paths = (report.outputs.get(kind) for kind in SINGLE_FILES)
    return (
        entry.case_id,
        entry.state,
        report.verdict or "",
        _shown_dice(report),
        *(text for one in dice for text in (("", "", "") if one is None else _shown_interval(one))),
        *("" if volume is None else _shown_size(volume, in_pixels=in_pixels) for volume in volumes),
        *("" if path is None else path.relative_to(out_dir).as_posix() for path in paths),
        BETWEEN.join(map(str, report.findings)),
        BETWEEN.join(() if report.quality is None else report.quality.reasons),
    )


def _foretold_structures(report: CaseReport) -> Mapping[str, PredictedDice]:
    return {} if report.quality is None else report.quality.structures


def _shown_dice(report: CaseReport) -> str:
    """Return the mean that is foretold, or that nothing is; nothing of a case without a result."""
    if report.quality is None:
        return ""
    mean = report.quality.predicted_dice
    return NOT_CALIBRATED if mean is None else f"{mean:.3f}"


def _shown_interval(one: PredictedDice) -> tuple[str, str, str]:
    return f"{one.value:.3f}", f"{one.low:.3f}", f"{one.high:.3f}"


def _shown_size(volume_ml: float, *, in_pixels: bool) -> str:
    return f"{volume_ml * PIXELS_PER_ML:.0f}" if in_pixels else f"{volume_ml:.4f}"
