"""Where each structure of a label map lies, how far it reaches and how rough its surface is."""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from voxelgate.core.dice import Mask
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.structures import structure_boxes


@dataclass(frozen=True)
class Form:
    """The form of one structure.

    Args:
        volume_ml: above 0.
        centre_mm: its centre of mass, RAS+.
        extent_mm: of the box around it, left to right, back to front, foot to head.
        roughness: surface in the unit of volume to the power of two thirds; a cube has 6.
    """

    volume_ml: float
    centre_mm: tuple[float, float, float]
    extent_mm: tuple[float, float, float]
    roughness: float


def measure_forms(labels: npt.NDArray[Any], grid: Grid, table: LabelTable) -> dict[str, Form]:
    """Return the form of each structure that a label map holds, by name.

    Args:
        labels: (I, J, K) integers.
        grid: where they lie, RAS+ mm.
        table: what they mean; other values are passed over.
    """
    order = np.argsort(nib.io_orientation(grid.affine)[:, 0])
    spacing_mm = np.array(grid.spacing_mm)
    found = {}
    for value, box in structure_boxes(labels, len(table.names) - 1).items():
        mask = labels[box] == value
        volume_mm3 = np.count_nonzero(mask) * grid.voxel_ml * 1000
        centre_vox = _centre_vox(mask) + [span.start for span in box]
        extent_mm = (mask.shape * spacing_mm)[order]
        found[table.names[value]] = Form(
            volume_mm3 / 1000,
            tuple((grid.affine[:3, :3] @ centre_vox + grid.affine[:3, 3]).tolist()),
            tuple(extent_mm.tolist()),
            float(_surface_mm2(mask, spacing_mm) / volume_mm3 ** (2 / 3)),
        )
    return found


def _centre_vox(mask: Mask) -> npt.NDArray[np.float64]:
    """Return the mean index of the voxels of a mask along each axis."""
    along = [np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    return np.array([counts @ np.arange(len(counts)) / counts.sum() for counts in along])


def _surface_mm2(mask: Mask, spacing_mm: npt.NDArray[np.float64]) -> float:
    """Return the area of all faces between a voxel of a mask and one outside it, the end of the box being outside."""
    total = 0.0
    for axis in range(3):
        planes = np.moveaxis(mask, axis, 0)
        faces = np.count_nonzero(planes[1:] != planes[:-1]) + np.count_nonzero(planes[0]) + np.count_nonzero(planes[-1])
        total += faces * float(np.prod(np.delete(spacing_mm, axis)))
    return total
