"""Bring a series with missing slices or a tilted gantry onto a regular grid, on request only, and say what was done."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from voxelgate.core.findings import Allow, Finding, FindingCode, Severity
from voxelgate.core.geometry import LPS_TO_RAS, Grid
from voxelgate.dicom.read.stack import Slice, grid_of, positions_lps_mm
from voxelgate.dicom.read.stack_shape import measure_stack

Voxels = npt.NDArray[np.float32]

SNAP_PIXELS = 1e-3
"""Shifts this close to whole pixels are taken as whole, so that an axis without tilt keeps its values bit by bit."""

SHOWN_PLACES = 5
"""Places that a message names before it says how many more there are."""


class Repaired(NamedTuple):
    """A volume on a regular grid.

    Args:
        voxels: (I, J, K) float32.
        grid: where they lie, RAS+ mm.
        findings: what was done.
    """

    voxels: Voxels
    grid: Grid
    findings: tuple[Finding, ...]


def repair_needed(slices: Sequence[Slice]) -> Allow | None:
    """Return what would have to be mended before the slices make a regular grid, or None."""
    if len(slices) < 2:
        return None
    shape = measure_stack(slices)
    if shape.is_sheared:
        return Allow.TILT
    return Allow.GAPS if shape.misses_slices else None


def repair(voxels: Voxels, slices: Sequence[Slice]) -> Repaired:
    """Fill gaps or correct a tilt, whichever there is; a regular stack comes back as it is.

    Args:
        voxels: (I, J, K) float32, one plane for each slice.
        slices: in order; gaps and tilt together are refused by the audit.
    """
    fault = repair_needed(slices)
    if fault is Allow.TILT:
        return correct_tilt(voxels, slices)
    if fault is Allow.GAPS:
        return fill_gaps(voxels, slices)
    return Repaired(voxels, grid_of(slices), ())


def fill_gaps(voxels: Voxels, slices: Sequence[Slice]) -> Repaired:
    """Put missing slices between their neighbours, by linear interpolation along the normal.

    Slices that are there keep their values bit by bit. The grid is even from the first slice to the last; its gap is
    within the audit's tolerance of the usual one.

    Args:
        voxels: (I, J, K) float32.
        slices: in order, with gaps that are multiples of the usual one.
    """
    steps = measure_stack(slices).steps
    places = np.concatenate(([0], np.cumsum(steps)))
    total = int(places[-1]) + 1
    planes = voxels.transpose(2, 1, 0)
    filled = np.empty((total, *planes.shape[1:]), dtype=np.float32)
    filled[places] = planes
    for index in np.flatnonzero(steps > 1):
        for step in range(1, int(steps[index])):
            weight = np.float32(step / steps[index])
            filled[places[index] + step] = planes[index] * (1 - weight) + planes[index + 1] * weight
    return Repaired(filled.transpose(2, 1, 0), _respaced(grid_of(slices), total), (_filled_finding(steps),))


def correct_tilt(voxels: Voxels, slices: Sequence[Slice]) -> Repaired:
    """Shift every slice within its plane so that the stack's axis becomes the normal of the slices.

    Rows and columns keep their directions and spacing, and the place of each voxel in mm stays what its slice says. The
    field of view grows as far as the slices reach; what no slice covers gets the lowest value of the volume. Values are
    interpolated linearly in the plane, never between slices.

    Args:
        voxels: (I, J, K) float32.
        slices: in order, evenly spaced, of one orientation.
    """
    grid = grid_of(slices)
    shifts = _shifts_vox(grid, slices)
    low, high = np.floor(shifts.min(axis=0)).astype(int), np.ceil(shifts.max(axis=0)).astype(int)
    columns, rows, count = voxels.shape
    size = (rows + int(high[1] - low[1]), columns + int(high[0] - low[0]))
    straight = np.empty((count, *size), dtype=np.float32)
    fill = voxels.min()
    for index, plane in enumerate(voxels.transpose(2, 1, 0)):
        right, down = shifts[index] - low
        widened = _shifted(plane, float(right), size[1], fill)
        straight[index] = _shifted(widened.T, float(down), size[0], fill).T
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :2] @ low
    target = Grid((size[1], size[0], count), affine)
    return Repaired(straight.transpose(2, 1, 0), target, (_corrected(slices, grid, target),))


def _shifts_vox(grid: Grid, slices: Sequence[Slice]) -> npt.NDArray[np.float64]:
    """Return how many columns and rows each slice lies beside the first, (N, 2), whole where it nearly is."""
    homogeneous = np.column_stack((positions_lps_mm(slices), np.ones(len(slices))))
    found = (np.linalg.inv(grid.affine) @ LPS_TO_RAS @ homogeneous.T).T[:, :2]
    whole = np.rint(found)
    return np.where(np.abs(found - whole) < SNAP_PIXELS, whole, found)


def _shifted(plane: Voxels, by_vox: float, width: int, fill: np.float32) -> Voxels:
    """Return a plane of that width in which the columns of the given one start at `by_vox`, at least 0."""
    whole = int(by_vox)
    part = np.float32(by_vox - whole)
    left = np.full((plane.shape[0], width), fill, dtype=np.float32)
    left[:, whole : whole + plane.shape[1]] = plane
    if part == 0:
        return left
    right = np.full_like(left, fill)
    right[:, whole + 1 : whole + 1 + plane.shape[1]] = plane
    return left * (1 - part) + right * part


def _respaced(grid: Grid, count: int) -> Grid:
    """Return the grid with `count` slices between the same first and last."""
    affine = grid.affine.copy()
    affine[:3, 2] *= (grid.shape[2] - 1) / (count - 1)
    return Grid((*grid.shape[:2], count), affine)


def _filled_finding(steps: npt.NDArray[np.int64]) -> Finding:
    wide = np.flatnonzero(steps > 1)
    named = [f"{int(steps[index]) - 1} after slice {int(index) + 1}" for index in wide[:SHOWN_PLACES]]
    more = f" and {len(wide) - SHOWN_PLACES} more places" if len(wide) > SHOWN_PLACES else ""
    total = int((steps - 1).sum())
    sentence = f"missing slices were filled by linear interpolation: {', '.join(named)}{more}; {total} in all."
    return Finding(FindingCode.FILLED_SLICES, Severity.WARN, sentence)


def _corrected(slices: Sequence[Slice], source: Grid, target: Grid) -> Finding:
    tilt_deg = measure_stack(slices).tilt_deg
    sentence = (
        f"a tilt of {tilt_deg:.2f} degrees was corrected by shifting each slice within its plane; the "
        f"slices grew from {source.shape[0]} x {source.shape[1]} to {target.shape[0]} x {target.shape[1]} pixels."
    )
    return Finding(FindingCode.CORRECTED_TILT, Severity.WARN, sentence)
