"""Sums of overlapping windows in float16, as nnU-Net rounds them, for the slices that a row of windows covers."""

from collections import deque
from functools import partial

import torch

from voxelgate.core.geometry import Shape
from voxelgate.inference.threads import LoneWorkers


class HalfSums:
    """Add windows up in a ring of slices, and give each slice away once it is complete.

    A sum is rounded to float16 after each window, so the order of windows matters; the product with the weights is
    float32. Slices of one image follow each other in the ring, each over the place of one that is done.

    Args:
        classes: channels of the windows.
        plane_vox: the other two sizes of the padded image.
        weights: of a window's voxels, (depth, h, w) float32.
    """

    def __init__(self, classes: int, plane_vox: tuple[int, int], weights: torch.Tensor) -> None:
        self.weights = weights
        self.depth = len(weights)
        self._sums = torch.zeros((self.depth, classes, *plane_vox), dtype=torch.half)

    def add(self, corner: Shape, scores: torch.Tensor, workers: LoneWorkers) -> None:
        """Add a window.

        Args:
            corner: its first voxel in the padded image.
            scores: (classes, depth, h, w) float32.
            workers: add slice by slice.
        """
        deque(
            workers.in_order(partial(self._add, corner, offset, scores[:, offset]) for offset in range(self.depth)), 0
        )

    def taken(self, index: int) -> torch.Tensor:
        """Return a copy of the sums of one slice of the padded image, and make its place ready for another."""
        place = self._sums[index % self.depth]
        sums = place.clone()
        place.zero_()
        return sums

    def _add(self, corner: Shape, offset: int, scores: torch.Tensor) -> None:
        start, row, column = corner
        _, height, width = scores.shape
        place = self._sums[(start + offset) % self.depth, :, row : row + height, column : column + width]
        place.copy_(place.float().add_(scores * self.weights[offset]))
