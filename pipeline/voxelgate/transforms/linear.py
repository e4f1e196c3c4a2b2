"""Linear interpolation of a volume at positions that lie in rows, axis by axis: ten times as fast as voxel by voxel."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

Positions = npt.NDArray[np.float64]

BLOCK_VOXELS = 2**21
"""Voxels that are interpolated at a time, at least one plane: what the processor's cache holds."""


def interpolate_rows(values: torch.Tensor, positions_vox: Sequence[Positions]) -> torch.Tensor:
    """Return values at every combination of positions along the three spatial axes; beyond the border the border's.

    Runs along the axis whose neighbours lie furthest apart in memory, some planes at a time, so that nothing but the
    result takes memory. Of all axes those that shrink come first, so that the others have less to do.

    Args:
        values: (C, i, j, k), any real type and memory layout.
        positions_vox: for each spatial axis where to sample it, in voxels from the centre of the first; not empty.

    Returns:
        (C, I, J, K) float32 with as many voxels along each axis as positions.
    """
    out = values.new_empty((len(values), *map(len, positions_vox)), dtype=torch.float32)
    order = sorted(range(3), key=lambda axis: values.stride(1 + axis), reverse=True)
    steps = sorted(order[:2], key=lambda axis: out.shape[1 + axis] / values.shape[1 + axis]) + order[2:]
    along = order[0]
    last = values.shape[1 + along] - 1
    plane = max(values[0].numel(), out[0].numel()) // min(last + 1, len(positions_vox[along]))
    count = max(1, BLOCK_VOXELS // plane)
    for channel, target in zip(values, out, strict=True):
        for start, stop in pairwise([*range(0, len(positions_vox[along]), count), len(positions_vox[along])]):
            part = np.clip(positions_vox[along][start:stop], 0, last)
            low, high = int(part.min()), min(int(part.max()) + 1, last)
            rows = [part - low if axis == along else positions_vox[axis] for axis in range(3)]
            block = channel.narrow(along, low, high + 1 - low).permute(order).float().contiguous()
            for axis in steps:
                block = _interpolated(block, order.index(axis), rows[axis])
            target.permute(order)[start:stop] = block
    return out


def _interpolated(values: torch.Tensor, dim: int, positions_vox: Positions) -> torch.Tensor:
    """Return values at positions along one dimension; no arithmetic where all positions lie on voxels."""
    last = values.shape[dim] - 1
    clipped = np.clip(positions_vox, 0, last)
    lower = np.floor(clipped).astype(np.int64)
    weight = (clipped - lower).astype(np.float32)
    if np.array_equal(lower, np.arange(last + 1)) and not weight.any():
        return values
    if dim == values.ndim - 1:  # a matrix product: `index_select` of single numbers takes ten times as long
        matrix = np.zeros((last + 1, len(lower)), dtype=np.float32)
        np.add.at(matrix, (lower, np.arange(len(lower))), 1 - weight)
        np.add.at(matrix, (np.minimum(lower + 1, last), np.arange(len(lower))), weight)
        return values @ torch.as_tensor(matrix, device=values.device)
    at_lower = values.index_select(dim, torch.as_tensor(lower, device=values.device))
    if not weight.any():
        return at_lower
    upper = torch.as_tensor(np.minimum(lower + 1, last), device=values.device)
    shape = [-1 if axis == dim else 1 for axis in range(values.ndim)]
    weights = torch.as_tensor(weight, device=values.device).reshape(shape)
    return at_lower.lerp_(values.index_select(dim, upper), weights)
