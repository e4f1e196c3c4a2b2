"""How wide a structure is, and how well a network that makes no error could draw it on coarser voxels."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Sides = npt.NDArray[np.float64]
Voxels = npt.NDArray[np.int64]

COARSER = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Sides of voxels for which ceilings are measured, as multiples of the shortest side there is."""

MEASURED_VOXELS = 2**24
"""Of a larger box the middle along its longest axis is measured."""

COMPARED_VOXELS = 500_000
"""Of a larger box this many voxels are compared; Dice is then known to better than 0.005."""

HALF = 0.5001
"""Part of a voxel above which the structure is the likelier class; just half is rounded alike on every machine."""

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


def _dice_after(mask: Mask, first_vox: Sequence[int], step_vox: Sides) -> float:
    """Return the Dice of a mask with itself after a way to voxels of so many of its own and back."""
    rng = np.random.default_rng(0)
    deep = len([n for n in mask.shape if n > 1])
    share = min(1.0, COMPARED_VOXELS / mask.size) ** (1.0 / float(max(1, deep)))
    filled, compared = mask.astype(np.float32), []
    for axis, (first, step) in enumerate(zip(first_vox, step_vox, strict=True)):
        margin = 0 if step == 1 else int(np.ceil(step))
        voxels = _drawn(np.arange(-margin, mask.shape[axis] + margin), share, rng)
        compared.append(voxels)
        filled = np.moveaxis(
            np.tensordot(_way(first, mask.shape[axis], float(step), voxels), filled, (1, axis)), 0, axis
        )
    likely, truth = filled > HALF, _taken(mask, compared)
    return 2 * float((likely & truth).sum()) / max(1.0, float(likely.sum()) + float(truth.sum()))


def _way(first: int, length: int, step_vox: float, compared: Voxels) -> npt.NDArray[np.float32]:
    """Return the matrix that takes the voxels of one axis to coarse ones and back to some places among them.

    Args:
        first: where in the image the axis begins, whose first voxel is the middle of the first coarse one.
        length: voxels.
        step_vox: side of a coarse voxel.
        compared: the places.
    """
    fine = np.arange(length)
    last = int(np.ceil((first + length) / step_vox)) + 1
    centres = np.arange(int(np.floor(first / step_vox)) - 1, last + 1) * step_vox - first
    starts, ends = (centres - step_vox / 2)[:, None], (centres + step_vox / 2)[:, None]
    averaged = np.maximum(0, np.minimum(fine + 0.5, ends) - np.maximum(fine - 0.5, starts)) / step_vox
    interpolated = np.maximum(0, 1 - np.abs(compared[:, None] - centres) / step_vox)
    return np.asarray(interpolated @ averaged, dtype=np.float32)


def _drawn(voxels: Voxels, share: float, rng: np.random.Generator) -> Voxels:
    """Return a part of voxels, at random, for every second one would always lie in the same place of a coarse one."""
    if share == 1:
        return voxels
    return np.sort(rng.choice(voxels, max(1, round(share * len(voxels))), replace=False))


def _taken(mask: Mask, positions: Sequence[Voxels]) -> Mask:
    """Return a mask at every combination of positions; outside of it there is nothing."""
    inside = [(rows >= 0) & (rows < n) for rows, n in zip(positions, mask.shape, strict=True)]
    result = np.zeros([len(rows) for rows in positions], dtype=bool)
    result[np.ix_(*inside)] = mask[np.ix_(*(rows[keep] for rows, keep in zip(positions, inside, strict=True)))]
    return result
