"""What the preparation of an image may ask about its file, beyond the grid."""

from enum import StrEnum
from typing import NamedTuple

Sizes = tuple[float, float, float]
"""Of a voxel along i, j and k, mm."""


class FileFacts(NamedTuple):
    """What is known of the file that an image was read from.

    Args:
        spacing_mm: voxel sizes as the header states them, free of the rounding of an affine; None if it states none.
        is_dicom: whether it was a DICOM series.
        is_3d: whether that series says that its slices were acquired all at once, as in much MRI.
    """

    spacing_mm: Sizes | None = None
    is_dicom: bool = False
    is_3d: bool = False


NO_FACTS = FileFacts()


class StoredOrder(StrEnum):
    """Orders in which converters store the voxels of a DICOM series, by what they make of an axial one."""

    LAS = "LAS"
    """As dcm2niix writes NIfTI."""

    LPS = "LPS"
    """As SimpleITK and ITK read series."""
