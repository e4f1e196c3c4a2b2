"""MONAI dictionary transforms that MONAI lacks; each works alone in any MONAI config."""

from voxelgate.transforms.dicom_order import OrderDicomd
from voxelgate.transforms.intensity import (
    HU_WINDOWS,
    Despeckled,
    HUWindow,
    NormalizeImaged,
    OffsetToHUd,
    WindowHUd,
    despeckle,
    from_offset,
    normalize,
    window,
    window_limits,
)
from voxelgate.transforms.io import ChannelsReader
from voxelgate.transforms.nnunet.preprocess import NnUNetPreprocessd
from voxelgate.transforms.sampling import ForegroundIndicesd, RandBalancedPatchd, foreground_indices
from voxelgate.transforms.spatial import Interpolation, Plane, RandSideSafeFlipd, ResampleToSpacingd

__all__ = [
    "HU_WINDOWS",
    "ChannelsReader",
    "Despeckled",
    "ForegroundIndicesd",
    "HUWindow",
    "Interpolation",
    "NnUNetPreprocessd",
    "NormalizeImaged",
    "OffsetToHUd",
    "OrderDicomd",
    "Plane",
    "RandBalancedPatchd",
    "RandSideSafeFlipd",
    "ResampleToSpacingd",
    "WindowHUd",
    "despeckle",
    "foreground_indices",
    "from_offset",
    "normalize",
    "window",
    "window_limits",
]
