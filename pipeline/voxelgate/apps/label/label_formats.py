"""Hand out a label map in the format that an annotator's program reads."""

import secrets
from enum import StrEnum
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from voxelgate.core.errors import OutputError
from voxelgate.core.geometry import LPS_TO_RAS
from voxelgate.images.volumes import REWRITE_TOLERANCE_MM, read_volume


class LabelFormat(StrEnum):
    """Formats that 3D Slicer and OHIF ask for, as suffixes."""

    NIFTI = ".nii.gz"
    NRRD = ".nrrd"


def converted(label_map: Path, wanted: LabelFormat) -> Path:
    """Return a label map in a format; a new file beside the given one unless it has the format already.

    NRRD is not compressed, for OHIF reads compressed voxels as 16 bits whatever they are.

    Args:
        label_map: as `write_label_map` wrote it.
        wanted: the format.

    Raises:
        OutputError: the new file reads back differently.
    """
    if wanted is LabelFormat.NIFTI:
        return label_map
    labels, grid = read_volume(label_map)
    affine_lps = LPS_TO_RAS @ grid.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels.T))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(affine_lps[:3, 3].tolist())
    image.SetDirection((affine_lps[:3, :3] / grid.spacing_mm).ravel().tolist())
    path = label_map.with_name(f"{secrets.token_hex(8)}{wanted}")
    sitk.WriteImage(image, str(path), useCompression=False)
    voxels, read_back = read_volume(path)
    if not grid.agrees(read_back, REWRITE_TOLERANCE_MM) or not np.array_equal(voxels, labels):
        raise OutputError(f"the label map reads back differently as {wanted}; ask for .nii.gz.")
    return path
