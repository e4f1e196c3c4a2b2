"""How wide a structure is, and how well a network that makes no error could draw it on coarser voxels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from voxelgate.transforms.linear import interpolate_rows

Mask = npt.NDArray[np.bool_]
Sides = npt.NDArray[np.float64]
Voxels = npt.NDArray[np.int64]

COARSER = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Sides of voxels for which ceilings are measured, as multiples of the shortest side there is."""

MEASURED_VOXELS = 2**24
"""Of a larger box the middle along its longest axis is measured."""

COMPARED_VOXELS = 500_000
"""Of a larger box this many voxels are compared; Dice is then known to better than 0.005."""

WIDTH_CELLS = 200_000
"""Of a larger box every second, third ... voxel counts for the width."""


def coarser_sides_mm(spacing_mm: npt.ArrayLike, factor: float, *, moved: npt.ArrayLike = True) -> Sides:
    """Return the sides of voxels made coarser until none is shorter than a multiple of the shortest; long ones stay.

    Args:
        spacing_mm: of the voxels.
        factor: multiple of the shortest side among the axes that may be moved.
        moved: for each axis whether it may be.
    """
    sides = np.asarray(spacing_mm, dtype=np.float64)
    may = np.broadcast_to(np.asarray(moved, dtype=bool), sides.shape)
    return np.where(may, np.maximum(sides, factor * sides[may].min(initial=np.inf)), sides)


def measure_ceilings(mask: Mask, first_vox: Sequence[int], spacing_mm: npt.ArrayLike) -> tuple[float, ...]:
    """Return how well a structure can be drawn on voxels of each size of `COARSER`: Dice of what comes back with it.

    A network without errors says of a coarse voxel which part of it the structure fills; its output comes back by
    linear interpolation, and the likelier class counts. The first voxels of both grids lie on each other, as where
    images are resampled for training. An axis with one voxel stays as it is.

    Args:
        mask: (I, J, K), the box around the structure, which is not empty.
        first_vox: where in the image the box begins.
        spacing_mm: of its voxels.
    """
    longest = int(np.argmax(mask.shape))
    planes = max(1, mask.shape[longest] * MEASURED_VOXELS // mask.size)
    skipped = max(0, mask.shape[longest] - planes) // 2
    part = np.moveaxis(np.moveaxis(mask, longest, 0)[skipped : skipped + planes], 0, longest)
    first = [start + skipped * (axis == longest) for axis, start in enumerate(first_vox)]
    moved = np.array(mask.shape) > 1
    sides = np.asarray(spacing_mm, dtype=np.float64)
    steps = [coarser_sides_mm(sides, factor, moved=moved) / sides for factor in COARSER]
    return tuple(round(_dice_after(part, first, step_vox), 4) for step_vox in steps)


def measure_width_mm(mask: Mask, spacing_mm: npt.ArrayLike) -> float:
    """Return the diameter of the largest ball (in flat images: disc) inside a structure.

    Args:
        mask: (I, J, K), the box around the structure, which is not empty.
        spacing_mm: of its voxels.
    """
    sides, deep = np.asarray(spacing_mm, dtype=np.float64), np.array(mask.shape) > 1
    if not deep.any():
        return float(sides.min())
    cell_mm = (np.prod((mask.shape * sides)[deep]) / WIDTH_CELLS) ** (1 / deep.sum())
    steps = np.where(deep & (mask.size > WIDTH_CELLS), np.maximum(1, np.round(cell_mm / sides)), 1).astype(int)
    thinned = mask[tuple(slice(step // 2, None, step) for step in steps)]
    padded = np.pad(thinned.reshape([n for n, is_deep in zip(thinned.shape, deep, strict=True) if is_deep]), 1)
    return round(2 * float(ndimage.distance_transform_edt(padded, sampling=(sides * steps)[deep]).max()), 2)


@dataclass(frozen=True)
class _Axis:
    """One axis of the way to coarse voxels and back.

    Args:
        filled: (coarse, fine) part of each coarse voxel that each fine one fills.
        compared: fine voxels that are compared.
        places: of these among the coarse ones.
    """

    filled: npt.NDArray[np.float32]
    compared: Voxels
    places: Sides


def _dice_after(mask: Mask, first_vox: Sequence[int], step_vox: Sides) -> float:
    """Return the Dice of a mask with itself after a way to voxels of so many of its own and back."""
    rng = np.random.default_rng(0)
    deep = len([n for n in mask.shape if n > 1])
    share = min(1.0, COMPARED_VOXELS / mask.size) ** (1.0 / float(max(1, deep)))
    axes = [_axis(first, n, step, share, rng) for first, n, step in zip(first_vox, mask.shape, step_vox, strict=True)]
    coarse = mask.astype(np.float32)
    for number, axis in enumerate(axes):
        coarse = np.moveaxis(np.tensordot(axis.filled, coarse, (1, number)), 0, number)
    likely = interpolate_rows(torch.from_numpy(coarse.copy())[None], [axis.places for axis in axes])[0].numpy() > 0.5
    truth = _taken(mask, [axis.compared for axis in axes])
    return 2 * float((likely & truth).sum()) / max(1.0, float(likely.sum()) + float(truth.sum()))


def _axis(first: int, length: int, step_vox: float, share: float, rng: np.random.Generator) -> _Axis:
    """Return the way along one axis; one coarse voxel more is taken on both sides.

    Which voxels are compared is drawn, for every second one would always lie in the same place of a coarse voxel.
    """
    fine = np.arange(length)
    if step_vox == 1:
        compared = _drawn(fine, share, rng)
        return _Axis(np.eye(length, dtype=np.float32), compared, compared.astype(np.float64))
    last = int(np.ceil((first + length) / step_vox)) + 1
    centres = np.arange(int(np.floor(first / step_vox)) - 1, last + 1) * step_vox - first
    starts, ends = (centres - step_vox / 2)[:, None], (centres + step_vox / 2)[:, None]
    filled = np.maximum(0, np.minimum(fine + 0.5, ends) - np.maximum(fine - 0.5, starts)) / step_vox
    margin = int(np.ceil(step_vox))
    compared = _drawn(np.arange(-margin, length + margin), share, rng)
    return _Axis(filled.astype(np.float32), compared, (compared - centres[0]) / step_vox)


def _drawn(voxels: Voxels, share: float, rng: np.random.Generator) -> Voxels:
    if share == 1:
        return voxels
    return np.sort(rng.choice(voxels, max(1, round(share * len(voxels))), replace=False))


def _taken(mask: Mask, positions: Sequence[Voxels]) -> Mask:
    """Return a mask at every combination of positions; outside of it there is nothing."""
    inside = [(rows >= 0) & (rows < n) for rows, n in zip(positions, mask.shape, strict=True)]
    result = np.zeros([len(rows) for rows in positions], dtype=bool)
    result[np.ix_(*inside)] = mask[np.ix_(*(rows[keep] for rows, keep in zip(positions, inside, strict=True)))]
    return result
