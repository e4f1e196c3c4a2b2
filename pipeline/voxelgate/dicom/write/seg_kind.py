"""The two forms of a DICOM Segmentation, in a module that asks nothing of the DICOM libraries."""

from enum import StrEnum


class SegKind(StrEnum):
    """How the frames hold segments: one bit plane for each, or one number for each voxel (PS3.3 C.8.20.2.3)."""

    BINARY = "binary"
    LABELMAP = "labelmap"
