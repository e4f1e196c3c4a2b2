"""The files that a segmented case leaves: label map, DICOM SEG, RTSTRUCT and SR, attention maps, and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import BundleError, OutputError
from voxelgate.core.files import make_folder, sync, unwritable
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.verdict import Quality
from voxelgate.dicom.read.series import Series
from voxelgate.dicom.write.rtstruct import write_rtstruct
from voxelgate.dicom.write.seg import write_seg
from voxelgate.dicom.write.seg_kind import SegKind
from voxelgate.dicom.write.segmented import MOST_CHARACTERS, Algorithm, SegmentedSeries, is_text
from voxelgate.dicom.write.sources import SourceSeries, source_of
from voxelgate.dicom.write.sr import write_sr
from voxelgate.images.value_maps import write_value_map
from voxelgate.images.volumes import write_label_map
from voxelgate.inference.attention.map_files import write_attention_map
from voxelgate.inference.attention.maps import GateMap, on_grid
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.output_names import (
    DICOM_OUTPUTS,
    NEED_CODES,
    NEED_STRUCTURES,
    Output,
    map_kind,
    output_paths,
    staged_place,
    structure_kind,
)
from voxelgate.segmentation.preview import Sketch, write_preview


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in a case.

    Args:
        labels: (I, J, K) on the grid of the image.
        grid: RAS+ mm.
        table: what the labels mean.
        volumes_ml: of each structure.
        quality: whether it can be taken as it is.
        algorithm: what made the labels; None if there are no DICOM outputs, which name it.
        sketch: of the image; None if there are no previews.
        gates: whose attention maps are written.
        probabilities: (I, J, K) of each structure by name, if they are written.
    """

    labels: npt.NDArray[Any]
    grid: Grid
    table: LabelTable
    volumes_ml: Mapping[str, float]
    quality: Quality
    algorithm: Algorithm | None
    sketch: Sketch | None = None
    gates: Sequence[GateMap] = ()
    probabilities: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


def unwritable_kinds(outputs: Sequence[Output], table: LabelTable) -> tuple[frozenset[Output], str]:
    """Return which outputs cannot be written of any case, and the sentence on it; nothing if all can.

    Raises:
        BundleError: none but previews are left.
    """
    misnamed = [name for name in table.foreground.values() if not is_text(name)]
    uncoded = [name for value, name in table.foreground.items() if table.find_coding(value) is None]
    needing = DICOM_OUTPUTS if misnamed else NEED_CODES if uncoded else frozenset()
    kinds = needing & set(outputs)
    if misnamed:
        reason = f"DICOM takes no name like {misnamed[0][:MOST_CHARACTERS]!r}; shorten it in the bundle's metadata"
    else:
        reason = f"no code is known for {', '.join(uncoded)}; write codes with `voxelgate bundle codes`"
    if not kinds:
        return frozenset(), ""
    named = " and ".join(sorted(kind.upper() for kind in kinds))
    sentence = f"{named} cannot be written, since {reason}"
    if not set(outputs) - kinds - {Output.PREVIEW}:
        raise BundleError(f"{sentence}, or ask for nifti.")
    return kinds, f"{sentence}; all else is written."


def check_outputs(case: Case, outputs: Sequence[Output]) -> SourceSeries | None:
    """Refuse before the network runs what could not be written after it.

    Returns:
        The source of DICOM outputs, or None if there are none.

    Raises:
        OutputError: a DICOM output is asked of what is not DICOM, or its source lacks what DICOM demands.
    """
    if not DICOM_OUTPUTS & set(outputs) or case.image is None:
        return None
    if not isinstance(case.image, Series):
        asked = ", ".join(sorted(DICOM_OUTPUTS & set(outputs)))
        raise OutputError(
            f"{case.case_id}: {asked} can only be written for a DICOM series, but this is another file; ask for nifti."
        )
    return source_of(case.image)


def write_results(
    result: Result, case: Case, options: Options, source: SourceSeries | None, scratch: Path
) -> dict[str, Path]:
    """Finish the files of a case in a folder of their own, each re-read and compared; `publish` gives them their names.

    Where nothing was found there is neither SEG nor RTSTRUCT. Of a result that is not as it is required to be there is
    the preview alone.

    Args:
        result: what was found.
        case: what it was found in.
        options: what to write.
        source: from `check_outputs`.
        scratch: folder to make, on the file system of the output folder.

    Returns:
        The files that were written.

    Raises:
        OutputError: one of them could not be written or read back differently.
    """
    left_out, _ = unwritable_kinds(options.outputs, result.table)
    wanted, gates = set(options.outputs) - left_out, [gate.level for gate in result.gates]
    if not any(result.volumes_ml.values()):
        wanted -= NEED_STRUCTURES
    if not options.require.admits(result.quality.verdict):
        wanted, gates = wanted & {Output.PREVIEW}, []
    kinds = [kind for kind in options.outputs if kind in wanted]
    names = output_paths(case, scratch, kinds, gates, options.structures)
    staged = {kind: staged_place(scratch, path) for kind, path in names.items()}
    for folder in {scratch, *(path.parent for path in staged.values())}:
        make_folder(folder)
    try:
        _write_files(result, case, staged)
        if source is not None and result.algorithm is not None and DICOM_OUTPUTS & staged.keys():
            _write_dicom(
                SegmentedSeries(result.labels, result.grid, result.table, source, result.algorithm, result.quality),
                staged,
                options.seg_type,
            )
        sync(scratch)
    except OSError as error:
        raise unwritable(case.case_id, error) from error
    return staged


def _write_files(result: Result, case: Case, paths: Mapping[str, Path]) -> None:
    like = case.image if isinstance(case.image, Path) else None
    if Output.NIFTI in paths:
        write_label_map(paths[Output.NIFTI], result.labels, result.grid, like=like)
    for value, name in result.table.foreground.items():
        if (path := paths.get(structure_kind(Output.STRUCTURES, name))) is not None:
            write_label_map(path, (result.labels == value).astype(np.uint8), result.grid, like=like)
        if (path := paths.get(structure_kind(Output.PROBABILITIES, name))) is not None:
            write_value_map(path, result.probabilities[name], result.grid, like=like)
    for gate in result.gates:
        if (path := paths.get(map_kind(gate.level))) is not None:
            write_attention_map(path, gate, result.grid, like=like)
    if Output.PREVIEW in paths and result.sketch is not None:
        attention = {gate.level: on_grid(gate, result.sketch.lattice.grid) for gate in result.gates}
        write_preview(paths[Output.PREVIEW], result.sketch, result.labels, result.table, attention)


def _write_dicom(segmented: SegmentedSeries, paths: Mapping[str, Path], seg_type: SegKind | None) -> None:
    if Output.RTSTRUCT in paths:
        write_rtstruct(paths[Output.RTSTRUCT], segmented)
    seg = None
    if Output.SEG in paths:
        seg = write_seg(paths[Output.SEG], segmented, kind=seg_type)
    if Output.SR in paths:
        write_sr(paths[Output.SR], segmented, seg)
