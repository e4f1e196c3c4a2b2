"""The files that a segmented case leaves: label map, DICOM SEG, RTSTRUCT and SR, attention maps, and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from voxelgate.core.errors import OutputError
from voxelgate.core.files import make_folder, sync, unwritable
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.dicom.read.series import Series
from voxelgate.dicom.write.rtstruct import write_rtstruct
from voxelgate.dicom.write.seg import write_seg
from voxelgate.dicom.write.segmented import Algorithm, SegmentedSeries, check_text
from voxelgate.dicom.write.sources import SourceSeries, source_of
from voxelgate.dicom.write.sr import write_sr
from voxelgate.images.volumes import write_label_map
from voxelgate.inference.attention.map_files import write_attention_map
from voxelgate.inference.attention.maps import GateMap, on_grid
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.output_names import DICOM_OUTPUTS, Output, map_kind, output_paths
from voxelgate.segmentation.preview import Sketch, write_preview


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in a case.

    Args:
        labels: (I, J, K) on the grid of the image.
        grid: RAS+ mm.
        table: what the labels mean.
        volumes_ml: of each structure.
        algorithm: what made the labels; None if there are no DICOM outputs, which name it.
        sketch: of the image; None if there are no previews.
        gates: whose attention maps are written.
    """

    labels: npt.NDArray[Any]
    grid: Grid
    table: LabelTable
    volumes_ml: Mapping[str, float]
    algorithm: Algorithm | None
    sketch: Sketch | None = None
    gates: Sequence[GateMap] = ()


def check_outputs(case: Case, outputs: Sequence[Output], table: LabelTable) -> SourceSeries | None:
    """Refuse before the network runs what could not be written after it.

    Returns:
        The source of DICOM outputs, or None if there are none.

    Raises:
        OutputError: a DICOM output is asked of what is not DICOM, its source lacks what DICOM demands, or a label has
            no code or a name that is unfit for DICOM.
    """
    if not DICOM_OUTPUTS & set(outputs) or case.image is None:
        return None
    if not isinstance(case.image, Series):
        asked = ", ".join(sorted(DICOM_OUTPUTS & set(outputs)))
        raise OutputError(
            f"{case.case_id}: {asked} can only be written for a DICOM series, but this is another file; ask for nifti."
        )
    for value, name in table.foreground.items():
        check_text(name, "a label name")
        if Output.SEG in outputs:
            table.coding(value)
    return source_of(case.image)


def write_results(
    result: Result, case: Case, outputs: Sequence[Output], source: SourceSeries | None, scratch: Path
) -> dict[str, Path]:
    """Finish the files of a case in a folder of their own, each re-read and compared; `publish` gives them their names.

    Where nothing was found there is no DICOM object to write.

    Args:
        result: what was found.
        case: what it was found in.
        outputs: what to write.
        source: from `check_outputs`.
        scratch: folder to make, on the file system of the output folder.

    Returns:
        The files that were written.

    Raises:
        OutputError: one of them could not be written or read back differently.
    """
    is_empty = not any(result.volumes_ml.values())
    wanted = [kind for kind in outputs if not is_empty or kind not in DICOM_OUTPUTS]
    names = output_paths(case, scratch, wanted, [gate.level for gate in result.gates])
    staged = {kind: scratch / path.name for kind, path in names.items()}
    make_folder(scratch)
    try:
        _write_files(result, case, staged, source)
        sync(scratch)
    except OSError as error:
        raise unwritable(case.case_id, error) from error
    return staged


def _write_files(result: Result, case: Case, paths: Mapping[str, Path], source: SourceSeries | None) -> None:
    like = case.image if isinstance(case.image, Path) else None
    if Output.NIFTI in paths:
        write_label_map(paths[Output.NIFTI], result.labels, result.grid, like=like)
    for gate in result.gates:
        write_attention_map(paths[map_kind(gate.level)], gate, result.grid, like=like)
    if Output.PREVIEW in paths and result.sketch is not None:
        attention = {gate.level: on_grid(gate, result.sketch.lattice.grid) for gate in result.gates}
        write_preview(paths[Output.PREVIEW], result.sketch, result.labels, result.table, attention)
    if source is None or result.algorithm is None or not DICOM_OUTPUTS & paths.keys():
        return
    segmented = SegmentedSeries(result.labels, result.grid, result.table, source, result.algorithm)
    if Output.RTSTRUCT in paths:
        write_rtstruct(paths[Output.RTSTRUCT], segmented)
    if Output.SEG in paths:
        seg = write_seg(paths[Output.SEG], segmented)
        if Output.SR in paths:
            write_sr(paths[Output.SR], segmented, seg)
