"""Images as they come to nnU-Net's networks, made on the spot: their grid lies in that of a file in a known way."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from voxelgate.core.geometry import Shape, triple

TURNED = np.array([[0.8, -0.6, 0.0, 12.0], [0.6, 0.8, 0.0, -7.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Prepared:
    """How an image was prepared, all but its own sizes in nnU-Net's axes (z, y, x) of the file.

    Args:
        source_vox: size of the file, in nnU-Net's axes.
        spacing_mm: of the file, in nnU-Net's axes.
        network_vox: size of the prepared image, in transposed axes.
        box: what was kept of the file, in transposed axes.
        forward: `transpose_forward`.
        channels: of the image.
    """

    source_vox: Shape
    spacing_mm: tuple[float, float, float]
    network_vox: Shape
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    forward: Shape = (0, 1, 2)
    channels: int = 1

    def image(self, seed: int = 0) -> MetaTensor:
        """Return the prepared image (1, C, a, b, c), smooth noise."""
        source = TURNED @ np.diag((*reversed(self.spacing_mm), 1.0))
        affine = np.eye(4)
        corner = np.zeros(3)
        for axis, (span, n) in enumerate(zip(self.box, self.network_vox, strict=True)):
            along, step = 2 - self.forward[axis], (span[1] - span[0]) / n
            affine[:3, axis] = source[:3, along] * step
            corner[along] = span[0] + (step - 1) / 2
        affine[:3, 3] = source[:3, :3] @ corner + source[:3, 3]
        rng = torch.Generator().manual_seed(seed)
        coarse = torch.randn((1, self.channels, *(max(2, n // 3) for n in self.network_vox)), generator=rng)
        voxels = torch.nn.functional.interpolate(coarse, self.network_vox, mode="trilinear")
        meta = {
            "original_affine": torch.from_numpy(source),
            "spatial_shape": torch.tensor(self.source_vox[::-1]),
            "affine": torch.from_numpy(affine),
            "source_spacing": torch.tensor(self.transposed_mm, dtype=torch.float64),
        }
        return MetaTensor(voxels, meta=meta)

    @property
    def transposed_mm(self) -> tuple[float, float, float]:
        """Return the spacing of the file in transposed axes."""
        return triple(self.spacing_mm[axis] for axis in self.forward)

    @property
    def properties(self) -> dict[str, Any]:
        """Return what nnU-Net's preprocessor remembers of it."""
        return {
            "spacing": list(self.spacing_mm),
            "shape_before_cropping": triple(self.source_vox[axis] for axis in self.forward),
            "bbox_used_for_cropping": [list(span) for span in self.box],
            "shape_after_cropping_and_before_resampling": triple(stop - start for start, stop in self.box),
        }
