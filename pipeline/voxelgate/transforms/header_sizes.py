"""Voxel sizes as the header of a file states them, for models that were trained on images read by ITK."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from voxelgate.core.geometry import Grid
from voxelgate.transforms.nnunet.source_layout import header_spacing


class HeaderSizesd(MapTransform):  # type: ignore[misc]  # MONAI ships no stubs
    """Give the axes of an image the voxel sizes of its header, as MONAI's `ITKReader` does.

    The columns of a NIfTI affine are float32; an oblique image of 2.25 mm has 2.24999994 mm by them. `Spacingd` rounds
    sizes in voxels, and where one lies between two numbers, as with half the spacing, it then becomes another.

    Args:
        keys: images as read, with the header's sizes as `spacing` in their metadata.

    >>> image = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([0.7, 0.7, 2.0, 1.0])))
    >>> vg.HeaderSizesd("image")({"image": image.clone()})["image"].affine.diagonal()
    tensor([0.7000, 0.7000, 2.0000, 1.0000], dtype=torch.float64)
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with images of the same voxels."""
        out = dict(data)
        for key in self.key_iterator(out):
            image: MetaTensor = out[key]
            affine = Grid.of(image).affine.copy()
            affine[:3, :3] *= np.array(header_spacing(image)) / np.linalg.norm(affine[:3, :3], axis=0)
            out[key] = MetaTensor(image.as_tensor(), affine=torch.from_numpy(affine), meta=dict(image.meta))
            out[key].applied_operations = list(image.applied_operations)
        return out
