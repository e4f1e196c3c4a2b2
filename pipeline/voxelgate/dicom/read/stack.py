"""The planes of a series in the order in which they lie in the patient, and the grid that they make."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from voxelgate.core.geometry import LPS_TO_RAS, Grid
from voxelgate.dicom.read.headers import Header, ImagePlane

Vectors = npt.NDArray[np.float64]

SAME_POSITION_MM = 0.01
"""Planes closer than this along the normal lie at one position; no scanner makes slices this thin."""


class Slice(NamedTuple):
    """One plane together with the header of its file."""

    header: Header
    plane: ImagePlane


def slices_of(headers: Iterable[Header]) -> tuple[Slice, ...]:
    """Return every plane of every file."""
    return tuple(Slice(header, plane) for header in headers for plane in header.planes)


def normal_lps(orientation_lps: Sequence[float]) -> Vectors:
    """Return the unit normal of a plane, row direction x column direction."""
    row, column = np.asarray(orientation_lps[:3]), np.asarray(orientation_lps[3:])
    normal = np.cross(row, column)
    length = float(np.linalg.norm(normal))
    return normal / length if length > 0 else normal


def positions_lps_mm(slices: Sequence[Slice]) -> Vectors:
    """Return the positions of planes that all have one, (N, 3)."""
    return np.array([part.plane.position_lps_mm for part in slices], dtype=np.float64).reshape(-1, 3)


def in_order(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """Return planes sorted along the normal of the first; all must have position and orientation.

    Planes at one position follow by instance number, SOP instance UID and frame, so that the order of the files never
    matters.
    """
    ordered = sorted(slices, key=_slice_order)
    orientation = ordered[0].plane.orientation_lps
    distances_mm = positions_lps_mm(ordered) @ normal_lps(orientation or ())
    steps = np.argsort(distances_mm, kind="stable")
    return tuple(ordered[index] for index in steps)


def distances_mm(slices: Sequence[Slice]) -> npt.NDArray[np.float64]:
    """Return how far along the normal of the first each plane lies."""
    return positions_lps_mm(slices) @ normal_lps(slices[0].plane.orientation_lps or ())


def by_position(slices: Sequence[Slice]) -> tuple[tuple[Slice, ...], ...]:
    """Return planes grouped by position along the normal, in order; more than one in a group share it."""
    ordered = in_order(slices)
    along_mm = distances_mm(ordered)
    starts = np.flatnonzero(np.diff(along_mm, prepend=-np.inf) > SAME_POSITION_MM)
    bounds = [*starts.tolist(), len(ordered)]
    return tuple(ordered[low:high] for low, high in pairwise(bounds))


def grid_of(slices: Sequence[Slice]) -> Grid:
    """Return the grid of planes in order, each at a position of its own and evenly spaced.

    The first index runs along a row (columns of the image), the second along a column, the third along the normal.
    Its axes are made exactly rectangular: what jitter and rounding leave of a shear is far below a voxel, and audited.

    Args:
        slices: at least two planes of one size, orientation and pixel spacing.
    """
    first = slices[0]
    row, column = _rectangular(first.plane.orientation_lps or ())
    between_rows_mm, between_columns_mm = first.plane.pixel_spacing_mm or ()
    normal = np.cross(row, column)
    along_mm = positions_lps_mm(slices) @ normal
    affine_lps = np.eye(4)
    affine_lps[:3, 0] = row * between_columns_mm
    affine_lps[:3, 1] = column * between_rows_mm
    affine_lps[:3, 2] = normal * (along_mm[-1] - along_mm[0]) / (len(slices) - 1)
    affine_lps[:3, 3] = first.plane.position_lps_mm
    return Grid((first.header.columns or 0, first.header.rows or 0, len(slices)), LPS_TO_RAS @ affine_lps)


def _rectangular(orientation_lps: Sequence[float]) -> tuple[Vectors, Vectors]:
    """Return unit row and column directions at a right angle; headers hold them to a few digits."""
    row = np.asarray(orientation_lps[:3], dtype=np.float64)
    row = row / np.linalg.norm(row)
    column = np.asarray(orientation_lps[3:], dtype=np.float64)
    column = column - row * (column @ row)
    return row, column / np.linalg.norm(column)


def _slice_order(part: Slice) -> tuple[int, int, str, int, str]:
    number = part.header.instance_number
    return (number is None, number or 0, part.header.sop_instance_uid, part.plane.frame, str(part.header.file.path))
