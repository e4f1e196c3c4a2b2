"""Where the windows of nnU-Net lie on an image, and how much each voxel of a window counts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from voxelgate.core.errors import UsageError
from voxelgate.core.geometry import Shape, triple

SIGMA = 1 / 8
"""Width of the weights as a part of the window (nnunetv2, inference/sliding_window_prediction.py)."""

PEAK = 10.0
"""Weight in the middle of a window; sums in float16 stay exact enough with it (the same file)."""


@dataclass(frozen=True)
class Tiles:
    """The windows on one image; one as large as a slice for 2D networks.

    Along each axis they are spread evenly, from one end to the other, no further apart than `step` of their size. An
    image smaller than a window is centred in one, between zeros.

    Args:
        size_vox: of the image.
        patch_vox: of a window; two sizes if the network takes slices of the first axis one by one.
        step: largest distance of two windows as a part of their size, above 0, up to 1.

    Raises:
        UsageError: a value out of its range.
    """

    size_vox: Shape
    patch_vox: tuple[int, ...]
    step: float = 0.5

    def __post_init__(self) -> None:
        check_tiles(self.patch_vox, self.step)

    @property
    def is_flat(self) -> bool:
        """Return whether the network takes slices."""
        return len(self.patch_vox) == 2

    @property
    def window_vox(self) -> Shape:
        """Return the size of a window, one voxel thick if it is a slice."""
        return triple((1, *self.patch_vox) if self.is_flat else self.patch_vox)

    @property
    def padded_vox(self) -> Shape:
        """Return the size of the image once it is at least as large as a window."""
        return triple(max(n, window) for n, window in zip(self.size_vox, self.window_vox, strict=True))

    @property
    def inside(self) -> tuple[slice, slice, slice]:
        """Return where the image lies in the padded one."""
        sizes = zip(self.size_vox, self.padded_vox, strict=True)
        return triple(slice((padded - n) // 2, (padded - n) // 2 + n) for n, padded in sizes)

    @property
    def starts(self) -> tuple[list[int], list[int], list[int]]:
        """Return where windows start along each axis of the padded image."""
        if not self.is_flat:
            sizes = zip(self.padded_vox, self.window_vox, strict=True)
            return triple(_evenly(n, window, self.step) for n, window in sizes)
        _, height, width = self.padded_vox
        rows, columns = self.patch_vox
        return list(range(self.size_vox[0])), _evenly(height, rows, self.step), _evenly(width, columns, self.step)

    @property
    def count(self) -> int:
        """Return the number of windows."""
        return math.prod(map(len, self.starts))

    def padded(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image (1, C, i, j, k) with zeros around it, itself if it needs none."""
        room: list[int] = []
        for span, padded in zip(self.inside, self.padded_vox, strict=True):
            room = [span.start, padded - span.stop, *room]
        return F.pad(image, room) if any(room) else image

    def weights(self) -> torch.Tensor:
        """Return what each voxel of a window counts, float16 of `window_vox`, above 0."""
        middle = np.zeros(self.patch_vox)
        middle[tuple(n // 2 for n in self.patch_vox)] = 1
        spread = gaussian_filter(middle, [n * SIGMA for n in self.patch_vox], mode="constant")
        spread /= spread.max() / PEAK
        weights = torch.from_numpy(spread).half()
        weights[weights == 0] = weights[weights > 0].min()
        return weights.reshape(self.window_vox)


def check_tiles(patch_vox: Sequence[int], step: float) -> None:
    """Refuse windows that cannot be.

    Raises:
        UsageError: not two or three sizes of at least 1, or a step that is not above 0 and at most 1.
    """
    if len(patch_vox) not in (2, 3) or min(patch_vox) < 1 or not 0 < step <= 1:
        raise UsageError(
            f"windows of {tuple(patch_vox)} with a step of {step}: expected two or three sizes of at least 1, and a "
            "step above 0 and at most 1."
        )


def _evenly(size: int, window: int, step: float) -> list[int]:
    count = math.ceil((size - window) / (window * step)) + 1
    apart = (size - window) / max(count - 1, 1)
    return [round(apart * index) for index in range(count)]
