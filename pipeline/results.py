"""The files that a segmented case leaves: a NIfTI label map, a DICOM SEG, an RTSTRUCT and a DICOM SR."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt

from pipeline.cases import Case
from pipeline.dicom.rtstruct import write_rtstruct
from pipeline.dicom.seg import write_seg
from pipeline.dicom.series import Series
from pipeline.dicom.sr import write_sr
from pipeline.dicom.writing.derived import Algorithm, SegmentedSeries, check_text, sync
from pipeline.dicom.writing.sources import SourceSeries, source_of
from pipeline.errors import OutputError
from pipeline.geometry import Grid
from pipeline.labels import LabelTable
from pipeline.volumes import write_label_map


class Output(StrEnum):
    """Kinds of files that can be written of a case."""

    NIFTI = "nifti"
    SEG = "seg"
    RTSTRUCT = "rtstruct"
    SR = "sr"


SUFFIX_OF = {
    Output.NIFTI: ".nii.gz",
    Output.SEG: ".seg.dcm",
    Output.RTSTRUCT: ".rtstruct.dcm",
    Output.SR: ".sr.dcm",
}
DICOM_OUTPUTS = frozenset(Output) - {Output.NIFTI}


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in a case.

    Args:
        labels: (I, J, K) on the grid of the image.
        grid: RAS+ mm.
        table: what the labels mean.
        volumes_ml: of each structure.
        algorithm: what made the labels; None if there are no DICOM outputs, which name it.
    """

    labels: npt.NDArray[Any]
    grid: Grid
    table: LabelTable
    volumes_ml: Mapping[str, float]
    algorithm: Algorithm | None


def output_paths(case: Case, out_dir: Path, outputs: Sequence[Output]) -> dict[Output, Path]:
    """Return where each file of a case goes."""
    return {kind: out_dir / f"{case.case_id}{SUFFIX_OF[kind]}" for kind in outputs}


def check_outputs(
    case: Case, out_dir: Path, outputs: Sequence[Output], table: LabelTable, *, overwrite: bool
) -> SourceSeries | None:
    """Refuse before the network runs what could not be written after it.

    Returns:
        The source of DICOM outputs, or None if there are none.

    Raises:
        OutputError: a file exists, a DICOM output is asked of what is not DICOM, its source lacks what DICOM demands,
            or a label has no code or a name that is unfit for DICOM.
    """
    for path in output_paths(case, out_dir, outputs).values():
        _refuse_existing(path, overwrite=overwrite)
    if not DICOM_OUTPUTS & set(outputs) or case.image is None:
        return None
    if not isinstance(case.image, Series):
        asked = ", ".join(sorted(DICOM_OUTPUTS & set(outputs)))
        raise OutputError(
            f"{case.case_id}: {asked} need a DICOM series, but this is a volume file; ask for nifti only."
        )
    for value, name in table.foreground.items():
        check_text(name, "a label name")
        if Output.SEG in outputs:
            table.coding(value)
    return source_of(case.image)


def write_results(
    result: Result,
    case: Case,
    paths: Mapping[Output, Path],
    source: SourceSeries | None,
    *,
    overwrite: bool,
) -> dict[Output, Path]:
    """Write the files of a case: all of them, or none.

    The files are finished in a hidden folder beside their places and get their names together at the end, so that a
    fault or an interruption leaves older files as they were. Where nothing was found there is no DICOM object to write:
    only the NIfTI file is left, and older DICOM objects of the case, which would contradict it, are removed.

    Args:
        result: what was found.
        case: what it was found in.
        paths: from `output_paths`; folders are made.
        source: from `check_outputs`.
        overwrite: replace files that are there.

    Returns:
        The files that were written.

    Raises:
        OutputError: one of them could not be written or read back differently.
    """
    wanted = {kind: path for kind, path in paths.items() if kind is Output.NIFTI or any(result.volumes_ml.values())}
    folder = next(iter(paths.values())).parent
    make_folder(folder)
    try:
        with TemporaryDirectory(prefix=".", suffix=".partial", dir=folder) as scratch:
            staged = {kind: Path(scratch) / path.name for kind, path in wanted.items()}
            _write(result, case, staged, source)
            _publish(staged, paths, Path(scratch) / "older", overwrite=overwrite)
    except OSError as error:
        raise OutputError(
            f"{case.case_id}: its files cannot be written ({error.strerror or type(error).__name__}); free the disk or "
            "its rights."
        ) from error
    return wanted


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another output folder.") from error


def _write(result: Result, case: Case, paths: Mapping[Output, Path], source: SourceSeries | None) -> None:
    if Output.NIFTI in paths:
        like = case.image if isinstance(case.image, Path) else None
        write_label_map(paths[Output.NIFTI], result.labels, result.grid, like=like)
    if source is None or result.algorithm is None or not DICOM_OUTPUTS & paths.keys():
        return
    segmented = SegmentedSeries(result.labels, result.grid, result.table, source, result.algorithm)
    if Output.RTSTRUCT in paths:
        write_rtstruct(paths[Output.RTSTRUCT], segmented)
    if Output.SEG in paths:
        seg = write_seg(paths[Output.SEG], segmented)
        if Output.SR in paths:
            write_sr(paths[Output.SR], segmented, seg)


def _publish(staged: Mapping[Output, Path], paths: Mapping[Output, Path], older: Path, *, overwrite: bool) -> None:
    """Give finished files their names; if one cannot have it, each name has again what it had.

    Args:
        staged: the finished files.
        paths: all names of the case; what stands under one without a finished file is removed.
        older: a folder to make, for what stood there.
        overwrite: replace files that are there.
    """
    older.mkdir()
    try:
        for kind, path in paths.items():
            _refuse_existing(path, overwrite=overwrite)
            if path.exists():
                _keep(path, older / path.name)
            if kind in staged:
                staged[kind].replace(path)
            else:
                path.unlink(missing_ok=True)
        sync(older.parent.parent)
    except BaseException:
        _put_back(staged, paths, older)
        raise


def _put_back(staged: Mapping[Output, Path], paths: Mapping[Output, Path], older: Path) -> None:
    for kind, path in paths.items():
        if (older / path.name).exists():
            (older / path.name).replace(path)
        elif kind in staged and not staged[kind].exists():
            path.unlink(missing_ok=True)


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputError(f"{path.name}: is a folder, not a file; choose another output folder.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path.name}: exists already; pass --overwrite, or choose another output folder.")


def _keep(path: Path, spare: Path) -> None:
    """Give a file a second name, or where the file system knows none, a copy."""
    try:
        os.link(path, spare)
    except OSError:
        shutil.copy2(path, spare)
