"""The kinds and the names of the files that a segmented case leaves."""

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from voxelgate.images.pictures import is_picture, label_suffix
from voxelgate.segmentation.cases import Case


class Output(StrEnum):
    """Kinds of files that can be written of a case.

    >>> vg.Output("seg").name
    'SEG'
    """

    NIFTI = "nifti"
    """The label map, of a picture as PNG or TIFF."""
    SEG = "seg"
    RTSTRUCT = "rtstruct"
    SR = "sr"
    PREVIEW = "preview"
    """Small pictures of image and labels, for the report page."""


SUFFIX_OF = {
    Output.NIFTI: ".nii.gz",
    Output.SEG: ".seg.dcm",
    Output.RTSTRUCT: ".rtstruct.dcm",
    Output.SR: ".sr.dcm",
    Output.PREVIEW: ".webp",
}

DICOM_OUTPUTS = frozenset({Output.SEG, Output.RTSTRUCT, Output.SR})
"""What can only be made of DICOM."""

NEED_CODES = frozenset({Output.SEG, Output.SR})
"""What cannot be made where a structure has no code."""

NEED_STRUCTURES = frozenset({Output.SEG, Output.RTSTRUCT})
"""What cannot be made where nothing was found."""

PREVIEW_FOLDER = "previews"
"""Where the previews lie, so that they do not stand among the results."""


def output_paths(
    case: Case, out_dir: Path, outputs: Sequence[Output], attention: Sequence[int] = ()
) -> dict[str, Path]:
    """Return where each file of a case goes, by its kind: an `Output`, or `attention-LEVEL` for the map of a gate."""
    folders = {kind: out_dir / PREVIEW_FOLDER if kind is Output.PREVIEW else out_dir for kind in outputs}
    suffix_of = SUFFIX_OF | {Output.NIFTI: _label_map_suffix(case)}
    paths: dict[str, Path] = {kind: folder / f"{case.case_id}{suffix_of[kind]}" for kind, folder in folders.items()}
    return paths | {map_kind(level): out_dir / f"{case.case_id}.{map_kind(level)}.nii.gz" for level in attention}


def _label_map_suffix(case: Case) -> str:
    if isinstance(case.image, Path) and is_picture(case.image):
        return label_suffix(case.image)
    return SUFFIX_OF[Output.NIFTI]


def map_kind(level: int) -> str:
    """Return the kind of the output that is the map of a gate."""
    return f"attention-{level}"


ATTENTION_MAP = re.compile(r"\.attention-\d+\.nii\.gz$")
"""How the map of a gate is called."""


def is_attention_map(path: Path) -> bool:
    """Return whether a file is called like the map of a gate, which lies among label maps and is none."""
    return ATTENTION_MAP.search(path.name) is not None
