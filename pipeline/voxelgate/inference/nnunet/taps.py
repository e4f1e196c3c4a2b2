"""Between which voxels of the network grid those of the source grid lie, with weights to the last bit of nnU-Net's."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from voxelgate.core.geometry import Shape, triple
from voxelgate.transforms.nnunet.resize import positions_of


@dataclass(frozen=True, eq=False)
class Taps:
    """For each of n voxels along one axis, the two voxels of another grid it lies between.

    Args:
        low: index of the first, (n,) int64.
        high: index of the second, (n,) int64.
        weight: of the first, (n,) float64; the second has what is missing to 1.
        is_between: whether there is anything to interpolate; `low` alone counts else.
    """

    low: torch.Tensor
    high: torch.Tensor
    weight: torch.Tensor
    is_between: bool = True

    def sides(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return index and weight of each voxel that counts, in the order in which they are summed."""
        if not self.is_between:
            return [(self.low, torch.ones_like(self.weight))]
        return [(self.low, self.weight), (self.high, 1.0 - self.weight)]


def picking_taps(index: npt.NDArray[np.int64]) -> Taps:
    """Return taps of voxels that are those with an index (n,) in the other grid."""
    low = torch.from_numpy(index)
    return Taps(low, low, torch.ones(len(index), dtype=torch.float64), is_between=False)


def linear_taps(size: int, count: int) -> Taps:
    """Return taps of an order-1 zoom from `size` to `count` voxels, as scipy's `zoom` in grid mode has them.

    Beyond the first and last centre both taps are the voxel at the edge (`NI_ZoomShift` in its ni_interpolation.c).
    """
    if size == count:
        return picking_taps(np.arange(size))
    position = positions_of(count, size)
    low = np.floor(position)
    weight = 1.0 - (position - low)
    ends = [np.clip(low + offset, 0, size - 1).astype(np.int64) for offset in (0, 1)]
    return Taps(torch.from_numpy(ends[0]), torch.from_numpy(ends[1]), torch.from_numpy(weight))


def nearest_taps(size: int, count: int) -> Taps:
    """Return taps of an order-0 resampling as `map_coordinates` of scipy has them, the upper of two equally near."""
    return picking_taps(np.floor(np.clip(positions_of(count, size), 0, size - 1) + 0.5).astype(np.int64))


def restoring_taps(network: Shape, source: Shape, apart: int | None) -> tuple[Taps, Taps, Taps]:
    """Return the taps of each axis from the network grid to the source grid.

    Args:
        network: size of the network grid.
        source: size of the source grid, in the axes of the network grid.
        apart: axis that is resampled apart from the others, by the nearest voxel.
    """
    sizes = zip(network, source, strict=True)
    return triple(
        nearest_taps(n, count) if axis == apart else linear_taps(n, count) for axis, (n, count) in enumerate(sizes)
    )
