"""MONAI's `SpatialResample`, bit for bit, for a part of the new grid at a time: positions never exist as a whole."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.networks.utils import to_norm_affine

from voxelgate.core.geometry import Box, Shape

SLAB_POSITIONS = 2**20
"""Positions that are computed at a time; as they are made they take 56 bytes each."""


@dataclass(frozen=True, eq=False)
class AffineSampling:
    """Where the voxels of a new grid lie in an old one.

    The arithmetic is that of `torch.nn.functional.affine_grid` (aten/src/ATen/native/AffineGridGenerator.cpp), whose
    rows do not depend on each other.

    Args:
        theta: (1, 3, 4), new to old grid in coordinates from -1 to 1, last axis first, as `affine_grid` takes it.
        old_size: voxels of the old grid.
        new_size: voxels of the new grid.
        is_corner_aligned: -1 and 1 are the centres of the first and last voxel, not their outer borders.
    """

    theta: torch.Tensor
    old_size: Shape
    new_size: Shape
    is_corner_aligned: bool

    @classmethod
    def of(
        cls, to_old: torch.Tensor, old_size: Shape, new_size: Shape, *, is_corner_aligned: bool = False
    ) -> "AffineSampling":
        """Return it for a matrix (4, 4), float64 or float32, from voxel indices of the new grid to those of the old."""
        theta = to_norm_affine(to_old[None], old_size, new_size, is_corner_aligned)
        order = [2, 1, 0]
        return cls(theta[:, order][:, :, [*order, 3]], old_size, new_size, is_corner_aligned)

    def grid(self, box: Box) -> torch.Tensor:
        """Return the positions of a box of the new grid, (1, n, m, l, 3), as `grid_sample` takes them."""
        lines = [self._line(size)[span] for size, span in zip(self.new_size, box, strict=True)]
        base = torch.ones((*map(len, lines), 4), dtype=self.theta.dtype)
        base[..., 0] = lines[2]
        base[..., 1] = lines[1][:, None]
        base[..., 2] = lines[0][:, None, None]
        positions = base.view(1, -1, 4).bmm(self.theta.transpose(1, 2))
        return positions.view(1, *base.shape[:3], 3)

    def positions_vox(self, box: Box) -> list[torch.Tensor]:
        """Return the positions of a box of the new grid as voxels of the old one, an array (n, m, l) for each axis."""
        grid = self.grid(box)[0]
        return [self._voxels(grid[..., 2 - axis], size) for axis, size in enumerate(self.old_size)]

    def sampled(self, image: torch.Tensor, mode: str, padding_mode: str) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield an image on the new grid, some slices along its first axis at a time.

        Args:
            image: (C, i, j, k) on the old grid, of the type of `theta`.
            mode: "bilinear" or "nearest".
            padding_mode: "border", "zeros" or "reflection".

        Yields:
            The slices, and (C, n, J, K).
        """
        count, height, width = self.new_size
        step = max(1, SLAB_POSITIONS // (height * width))
        for start in range(0, count, step):
            span = slice(start, min(start + step, count))
            grid = self.grid((span, slice(0, height), slice(0, width)))
            yield span, sample_points(image, grid, mode, padding_mode, is_corner_aligned=self.is_corner_aligned)

    def _line(self, size: int) -> torch.Tensor:
        if size == 1:
            return torch.zeros(1, dtype=self.theta.dtype)
        line = torch.linspace(-1, 1, size, dtype=self.theta.dtype)
        return line if self.is_corner_aligned else line * (size - 1) / size

    def _voxels(self, line: torch.Tensor, size: int) -> torch.Tensor:
        return (line + 1) / 2 * (size - 1) if self.is_corner_aligned else ((line + 1) * size - 1) / 2


def sample_points(
    image: torch.Tensor, grid: torch.Tensor, mode: str, padding_mode: str, *, is_corner_aligned: bool
) -> torch.Tensor:
    """Return what `grid_sample` gives, with all threads: of itself it takes one for each image of a batch.

    Args:
        image: (C, i, j, k).
        grid: (1, n, m, l, 3) positions.
        mode: "bilinear" or "nearest".
        padding_mode: "border", "zeros" or "reflection".
        is_corner_aligned: as `align_corners`.

    Returns:
        (C, n, m, l).
    """
    count = math.prod(grid.shape[1:4])
    parts = torch.get_num_threads() if count >= torch.get_num_threads() else 1
    even = -(-count // parts) * parts
    points = F.pad(grid.reshape(-1, 3), (0, 0, 0, even - count)).view(parts, 1, 1, -1, 3).to(image.device)
    images = image.expand(parts, *image.shape)
    found = F.grid_sample(images, points, mode, padding_mode, align_corners=is_corner_aligned)
    return found.movedim(0, 1).reshape(len(image), -1)[:, :count].view(len(image), *grid.shape[1:4])
