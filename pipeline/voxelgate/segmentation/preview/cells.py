"""A small copy of an image in cells that are nearly cubes, with axes to the patient's right, front and head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from voxelgate.core.geometry import Grid, Shape, counts_pixels
from voxelgate.dicom.plausibility import AIR_HU, LEAST_AIR, LEAST_TISSUE, SOFT_TISSUE_HU

Picture = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]

LONGEST_PX = 128
MOST_CELLS = 750_000
"""Cells along the longest side of an image, and in all: what fits `IMAGE_BYTES` and still shows small organs."""

FLAT_PX = 512
"""The same of a picture, which has but one plane."""

WINDOW_HU = (-160.0, 240.0)
"""The usual abdominal window: level 40 HU, width 400 HU."""

WINDOW_PERCENTILES = (1.0, 99.5)
"""Of an image whose values are not HU: what becomes black and white."""

SMALLEST_WINDOW = 1e-6
"""Added where all cells are equal, so that they become black."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """Cells on the grid of an image, with axes to the patient's right, front and head, as nearly as the grid's run.

    Args:
        cell_mm: sides of a cell.
        weights: for each of these axes, the share of each voxel of the source in each cell, (cells, voxels).
        axes: for each of these axes, the axis of the source.
        grid: of the cells, RAS+ mm.
        is_picture: whether the source is a picture, whose cells are as long as its pixels are many.
    """

    cell_mm: tuple[float, float, float]
    weights: tuple[Weights, Weights, Weights]
    axes: tuple[int, int, int]
    grid: Grid
    is_picture: bool = False

    @property
    def source_shape(self) -> tuple[int, int, int]:
        """Return the voxels of the source along its own axes."""
        voxels = {axis: weights.shape[1] for axis, weights in zip(self.axes, self.weights, strict=True)}
        return voxels[0], voxels[1], voxels[2]

    def source_index(self, axis: int, cell: int) -> int:
        """Return the voxel of the source in the middle of a cell, along an axis of the lattice."""
        weights = self.weights[axis][cell]
        return int(weights @ np.arange(len(weights)) / weights.sum() + 0.5)


@dataclass(frozen=True, eq=False)
class Sketch:
    """A small copy of an image, ready to be shown.

    Args:
        cells: (x, y, z) grey values, on the lattice.
        lattice: where they lie.
        window: source values that became black and white.
        is_hu: whether those are HU.
    """

    cells: Picture
    lattice: Lattice
    window: tuple[float, float]
    is_hu: bool


def sketch(voxels: npt.NDArray[Any], grid: Grid) -> Sketch:
    """Return a small copy of an image, to be made before the network runs; the image is then not needed any more.

    Every cell is the mean of its voxels, windowed for soft tissue if they are HU, else by percentiles. Axes are only
    turned by right angles and reduced, never tilted: an oblique image is shown in the planes it was taken in.

    Args:
        voxels: (I, J, K), any real type, finite.
        grid: where they lie, RAS+ mm.
    """
    laid = lattice(grid)
    means = _reduced(voxels, [laid.weights[laid.axes.index(axis)] for axis in range(3)]).transpose(laid.axes)
    window, is_hu = _window(means)
    grey = np.clip((means - window[0]) / (window[1] - window[0]), 0, 1)
    return Sketch(np.rint(255 * grey).astype(np.uint8), laid, window, is_hu)


def lattice(grid: Grid, counts: Shape | None = None) -> Lattice:
    """Return the cells of an image that are nearly cubes.

    Args:
        grid: of the image, RAS+ mm.
        counts: cells towards right, front and head, of a lattice that was made of the same grid before; a header's
            rounding might give one more or less.
    """
    orientation = nib.io_orientation(grid.affine)
    axes = [int(np.flatnonzero(orientation[:, 0] == side)[0]) for side in range(3)]
    sides_mm = np.array(grid.shape) * grid.spacing_mm
    longest_px = FLAT_PX if min(grid.shape) == 1 else LONGEST_PX
    cell_mm = max(float(sides_mm.max()) / longest_px, float(np.cbrt(sides_mm.prod() / MOST_CELLS)))
    usual = [max(1, min(grid.shape[axis], round(sides_mm[axis] / cell_mm))) for axis in axes]
    weights = []
    for axis, count in zip(axes, counts or usual, strict=True):
        shares = _shares(grid.shape[axis], count)
        weights.append(shares if orientation[axis, 1] > 0 else shares[:, ::-1])
    sides = [float(sides_mm[axis]) / len(shares) for axis, shares in zip(axes, weights, strict=True)]
    laid = (len(weights[0]), len(weights[1]), len(weights[2]))
    return Lattice(
        (sides[0], sides[1], sides[2]),
        (weights[0], weights[1], weights[2]),
        (axes[0], axes[1], axes[2]),
        _cell_grid(grid, orientation, axes, laid),
        counts_pixels(grid),
    )


def _cell_grid(grid: Grid, orientation: npt.NDArray[np.float64], axes: Sequence[int], cells: tuple[int, ...]) -> Grid:
    """Return where the middles of the cells lie; along each axis they span all voxels of the source."""
    to_source = np.zeros((4, 4))
    to_source[3, 3] = 1
    for side, (axis, count) in enumerate(zip(axes, cells, strict=True)):
        voxels, is_along = grid.shape[axis], orientation[axis, 1] > 0
        to_source[axis, side] = voxels / count if is_along else -voxels / count
        to_source[axis, 3] = (voxels - 1) / 2 - to_source[axis, side] * (count - 1) / 2
    return Grid((cells[0], cells[1], cells[2]), grid.affine @ to_source)


def _shares(voxels: int, cells: int) -> Weights:
    """Return the share of each voxel in each of equally wide cells, (cells, voxels); the shares of a cell sum to 1."""
    edges = np.linspace(0, voxels, cells + 1)
    starts = np.arange(voxels)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    shares: Weights = (np.clip(overlap, 0, None) * cells / voxels).astype(np.float32)
    return shares


def _reduced(voxels: npt.NDArray[Any], weights: Sequence[Weights]) -> npt.NDArray[np.float32]:
    """Return the means of cells, float32; a few planes of the source at a time become float32."""
    order = np.argsort([-abs(stride) for stride in voxels.strides], kind="stable").tolist()
    swept = voxels.transpose(order)
    slow, middle, fast = (weights[axis] for axis in order)
    means = np.empty((len(slow), len(middle), len(fast)), np.float32)
    for row, mean in zip(slow, means, strict=True):
        used = np.flatnonzero(row)
        planes = swept[used[0] : used[-1] + 1].astype(np.float32)
        mean[...] = middle @ np.tensordot(row[used[0] : used[-1] + 1], planes, 1) @ fast.T
    return means.transpose(np.argsort(order))


def _window(means: npt.NDArray[np.float32]) -> tuple[tuple[float, float], bool]:
    """Return the values that become black and white, and whether they are HU: then some are of air and soft tissue."""
    air, tissue = (float(np.mean((means >= low) & (means <= high))) for low, high in (AIR_HU, SOFT_TISSUE_HU))
    if air >= LEAST_AIR and tissue >= LEAST_TISSUE:
        return WINDOW_HU, True
    low, high = np.percentile(means, WINDOW_PERCENTILES).tolist()
    if low == high:
        low, high = float(means.min()), float(means.max()) + SMALLEST_WINDOW
    return (low, high), False
