"""The files that a segmented case leaves: a NIfTI label map, a DICOM SEG, an RTSTRUCT and a DICOM SR."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.cases import Case
from pipeline.dicom.rtstruct import write_rtstruct
from pipeline.dicom.seg import write_seg
from pipeline.dicom.series import Series
from pipeline.dicom.sr import write_sr
from pipeline.dicom.writing.derived import Algorithm, SegmentedSeries
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
        algorithm: what made the labels.
    """

    labels: npt.NDArray[Any]
    grid: Grid
    table: LabelTable
    volumes_ml: Mapping[str, float]
    algorithm: Algorithm


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
            or a label has no code.
    """
    for path in output_paths(case, out_dir, outputs).values():
        if path.exists() and not overwrite:
            raise OutputError(f"{path.name}: exists already; pass --overwrite, or choose another output folder.")
    if not DICOM_OUTPUTS & set(outputs) or case.image is None:
        return None
    if not isinstance(case.image, Series):
        asked = ", ".join(sorted(DICOM_OUTPUTS & set(outputs)))
        raise OutputError(
            f"{case.case_id}: {asked} need a DICOM series, but this is a volume file; ask for nifti only."
        )
    if Output.SEG in outputs:
        for value in table.foreground:
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

    Where nothing was found there is no DICOM object to write, and only the NIfTI file is left.

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
    existed = {kind for kind, path in wanted.items() if path.exists()}
    try:
        _write(result, case, wanted, source, overwrite=overwrite)
    except OutputError:
        for kind in wanted.keys() - existed:
            wanted[kind].unlink(missing_ok=True)
        raise
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


def _write(
    result: Result, case: Case, paths: Mapping[Output, Path], source: SourceSeries | None, *, overwrite: bool
) -> None:
    for path in paths.values():
        make_folder(path.parent)
    if Output.NIFTI in paths:
        like = case.image if isinstance(case.image, Path) else None
        write_label_map(paths[Output.NIFTI], result.labels, result.grid, like=like)
    if source is None or not DICOM_OUTPUTS & paths.keys():
        return
    segmented = SegmentedSeries(result.labels, result.grid, result.table, source, result.algorithm)
    if Output.RTSTRUCT in paths:
        write_rtstruct(paths[Output.RTSTRUCT], segmented, overwrite=overwrite)
    if Output.SEG in paths:
        seg = write_seg(paths[Output.SEG], segmented, overwrite=overwrite)
        if Output.SR in paths:
            write_sr(paths[Output.SR], segmented, seg, overwrite=overwrite)
