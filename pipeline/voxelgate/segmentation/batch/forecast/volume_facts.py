"""What the header of a case says of its voxels; without PyTorch, for a process that is there at once."""

from pathlib import Path
from typing import Any

import numpy as np

from voxelgate.core.errors import InputError
from voxelgate.core.geometry import Grid
from voxelgate.dicom.read.series import Series
from voxelgate.images.volumes import is_nifti, read_grid, read_volume_header
from voxelgate.segmentation.cases import Case


def volume_of(case: Case) -> tuple[Grid, "np.dtype[Any]"] | None:
    """Return grid and type of the voxels of a case, from headers; None for what will be refused."""
    if isinstance(case.image, Series):
        return case.image.grid, np.dtype(np.float32)
    if case.image is None:
        return None
    try:
        return read_grid(case.image), _type_of(case)
    except InputError:
        return None


def _type_of(case: Case) -> "np.dtype[Any]":
    """Return the type of the voxels that are read; of several channels and other formats than NIfTI a usual one."""
    if not isinstance(case.image, Path) or case.further_channels or not is_nifti(case.image):
        return np.dtype(np.float32)
    return read_volume_header(case.image, several=True).voxel_type
