"""MONAI dictionary transforms that MONAI lacks; each works alone in any MONAI config."""

from pipeline.transforms.intensity import (
    HU_WINDOWS,
    Despeckled,
    HUWindow,
    NormalizeImaged,
    WindowHUd,
    despeckle,
    normalize,
    window,
    window_limits,
)
from pipeline.transforms.sampling import ForegroundIndicesd, RandBalancedPatchd, foreground_indices
from pipeline.transforms.spatial import Interpolation, Plane, RandSideSafeFlipd, ResampleToSpacingd

__all__ = [
    "HU_WINDOWS",
    "Despeckled",
    "ForegroundIndicesd",
    "HUWindow",
    "Interpolation",
    "NormalizeImaged",
    "Plane",
    "RandBalancedPatchd",
    "RandSideSafeFlipd",
    "ResampleToSpacingd",
    "WindowHUd",
    "despeckle",
    "foreground_indices",
    "normalize",
    "window",
    "window_limits",
]
