"""Sums of overlapping windows in float16, as nnU-Net rounds them, for the slices that a row of windows covers."""

import torch

from voxelgate.core.geometry import Shape


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

    def add(self, corner: Shape, scores: torch.Tensor) -> None:
        """Add a window.

        Args:
            corner: its first voxel in the padded image.
            scores: (classes, depth, h, w) float32.
        """
        start, row, column = corner
        height, width = scores.shape[2:]
        for offset, weights in enumerate(self.weights):
            place = self._sums[(start + offset) % self.depth]
            part = place[:, row : row + height, column : column + width]
            part.copy_(part.float().add_(scores[:, offset] * weights))

    def taken(self, index: int) -> torch.Tensor:
        """Return a copy of the sums of one slice of the padded image, and make its place ready for another."""
        place = self._sums[index % self.depth]
        sums = place.clone()
        place.zero_()
        return sums
