"""Sums of overlapping windows in float16, as nnU-Net rounds them, for the planes that a row of windows covers."""

from collections import deque
from functools import partial

import torch

from voxelgate.core.geometry import Shape
from voxelgate.inference.threads import LoneWorkers


class HalfSums:
    """Add parts of an image up in a ring of planes, and give each plane away once it is complete.

    A sum is rounded to float16 after each part, so their order matters; the product with the weights is float32. Planes
    follow each other in the ring, each in the place of one that was given away.

    Args:
        shape: classes, planes that are summed up at a time, and the other two sizes of the image.
    """

    def __init__(self, *shape: int) -> None:
        classes, self._depth, *plane = shape
        self._sums = torch.zeros((self._depth, classes, *plane), dtype=torch.half)

    def add(self, corner: Shape, values: torch.Tensor, weights: torch.Tensor, workers: LoneWorkers) -> None:
        """Add a part, weighted.

        Args:
            corner: its first voxel in the image.
            values: (classes, n, h, w) float32, n planes.
            weights: (n, h, w) float32.
            workers: add plane by plane.
        """
        planes = zip(values.unbind(1), weights, strict=True)
        calls = (partial(self._add, corner, offset, *plane) for offset, plane in enumerate(planes))
        deque(workers.in_order(calls), maxlen=0)

    def taken(self, index: int) -> torch.Tensor:
        """Return a copy of the sums (classes, j, k) of one plane, and make its place ready for another."""
        place = self._sums[index % self._depth]
        sums = place.clone()
        place.zero_()
        return sums

    def _add(self, corner: Shape, offset: int, values: torch.Tensor, weights: torch.Tensor) -> None:
        plane, row, column = corner
        height, width = weights.shape
        place = self._sums[(plane + offset) % self._depth, :, row : row + height, column : column + width]
        place.copy_(place.float().add_(values * weights))
