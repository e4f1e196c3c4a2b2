"""Distances between the surfaces of two masks, in mm.

Our own, since MONAI counts the volume's edge as surface: in a test its ASSD is 0.357 mm where 0.5 mm is true.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from voxelgate.core.dice import Mask
from voxelgate.core.geometry import Grid

HD_PERCENTILE = 95.0
"""Percentile of the directed surface distances that stands for the maximum; unlike it, robust to a stray voxel."""


class SurfaceDistances(NamedTuple):
    """What the distances of two surfaces come to; NaN if one has no surface.

    Args:
        hd95_mm: the larger of the two directed 95th percentiles.
        assd_mm: mean of the distances of both directions taken together.
        mssd_mm: the largest of them, the Hausdorff distance.
    """

    hd95_mm: float
    assd_mm: float
    mssd_mm: float


def surface_distances(prediction: Mask, reference: Mask, grid: Grid, ignored: Mask | None = None) -> SurfaceDistances:
    """Measure from each voxel centre of one surface to the nearest of the other; memory is that of the surfaces.

    A surface is the set of voxels of a mask with a neighbour outside it along one of the axes; beyond the edge of the
    volume the mask counts as going on. In a volume of one slice only the four neighbours in it can be outside.

    Args:
        prediction: (i, j, k), a part of the grid.
        reference: the same.
        grid: of the whole volume; its affine alone counts.
        ignored: the same; voxels in neither mask, where both count as going on.
    """
    points_mm = _surface_mm(prediction, ignored, grid)
    reference_points_mm = _surface_mm(reference, ignored, grid)
    if not len(points_mm) or not len(reference_points_mm):
        return SurfaceDistances(math.nan, math.nan, math.nan)
    to_reference_mm = KDTree(reference_points_mm).query(points_mm)[0]
    to_prediction_mm = KDTree(points_mm).query(reference_points_mm)[0]
    directed_mm = (np.percentile(to_reference_mm, HD_PERCENTILE), np.percentile(to_prediction_mm, HD_PERCENTILE))
    together_mm = np.concatenate((to_reference_mm, to_prediction_mm))
    return SurfaceDistances(float(max(directed_mm)), float(together_mm.mean()), float(together_mm.max()))


def _surface_mm(mask: Mask, ignored: Mask | None, grid: Grid) -> npt.NDArray[np.float64]:
    """Return the surface voxels' centres, (N, 3) mm along the axes of RAS+, from an origin that does not matter."""
    if not mask.size:
        return np.empty((0, 3))
    solid = mask if ignored is None else mask | ignored
    surface = mask & ~ndimage.binary_erosion(solid, border_value=1)
    points_mm: npt.NDArray[np.float64] = np.argwhere(surface) @ grid.affine[:3, :3].T
    return points_mm
