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
    STRUCTURES = "structures"
    """A mask of each structure, in a folder of the case."""
    PROBABILITIES = "probabilities"
    """The probability of each structure, in a folder of the case."""
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

ONE_A_STRUCTURE = (Output.STRUCTURES, Output.PROBABILITIES)
"""What consists of a file for each structure, as TotalSegmentator writes them: `CASE.structures/liver.nii.gz`."""

SINGLE_FILES = tuple(kind for kind in Output if kind not in ONE_A_STRUCTURE)

PREVIEW_FOLDER = "previews"
"""Where the previews lie, so that they do not stand among the results."""


def output_paths(
    case: Case, out_dir: Path, outputs: Sequence[Output], attention: Sequence[int] = (), structures: Sequence[str] = ()
) -> dict[str, Path]:
    """Return where each file of a case goes, by its kind.

    The kind is an `Output`, `attention-LEVEL` for the map of a gate, or `structures-NAME` and `probabilities-NAME` for
    the files of one of the structures that are named.
    """
    single = [kind for kind in outputs if kind not in ONE_A_STRUCTURE]
    folders = {kind: out_dir / PREVIEW_FOLDER if kind is Output.PREVIEW else out_dir for kind in single}
    suffix_of = SUFFIX_OF | {Output.NIFTI: _label_map_suffix(case)}
    paths: dict[str, Path] = {kind: folder / f"{case.case_id}{suffix_of[kind]}" for kind, folder in folders.items()}
    of_structures = {
        structure_kind(kind, name): out_dir / f"{case.case_id}.{kind}" / f"{stem_of_structure(name)}.nii.gz"
        for kind in ONE_A_STRUCTURE
        if kind in outputs
        for name in structures
    }
    maps = {map_kind(level): out_dir / f"{case.case_id}.{map_kind(level)}.nii.gz" for level in attention}
    return paths | maps | of_structures


def structure_kind(kind: Output, name: str) -> str:
    """Return the kind of the output that is the mask, or the probability, of a structure."""
    return f"{kind}-{name}"


def set_of_kind(kind: str) -> str:
    """Return the output of which a file of this kind is one of many: masks or probabilities; empty for other kinds."""
    output = kind.partition("-")[0]
    return output if output in ONE_A_STRUCTURE else ""


def staged_place(scratch: Path, path: Path) -> Path:
    """Return where a file is finished in a folder of its case before it gets its path; structures keep their folder."""
    is_of_structure = STRUCTURE_FOLDER.search(path.parent.name) is not None
    return scratch / path.parent.suffix[1:] / path.name if is_of_structure else scratch / path.name


def stem_of_structure(name: str) -> str:
    """Return the name of a structure as a file can have it anywhere; as TotalSegmentator's are, it is kept."""
    return re.sub(r"[^\w-]+", "_", name.strip())


def _label_map_suffix(case: Case) -> str:
    if isinstance(case.image, Path) and is_picture(case.image):
        return label_suffix(case.image)
    return SUFFIX_OF[Output.NIFTI]


def map_kind(level: int) -> str:
    """Return the kind of the output that is the map of a gate."""
    return f"attention-{level}"


ATTENTION_MAP = re.compile(r"\.attention-\d+\.nii\.gz$")
"""How the map of a gate is called."""

STRUCTURE_FOLDER = re.compile(rf"\.({'|'.join(ONE_A_STRUCTURE)})$")
"""How the folder is called in which a case has a file for each structure."""


def is_no_label_map(path: Path) -> bool:
    """Return whether a file lies among label maps and is none: the map of a gate, or of one structure alone."""
    return ATTENTION_MAP.search(path.name) is not None or STRUCTURE_FOLDER.search(path.parent.name) is not None
