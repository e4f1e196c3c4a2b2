"""Bring an image to canonical order and another spacing, as TotalSegmentator does before its networks see it."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.geometry import Affine, Grid
from voxelgate.transforms.io import plain_tensor


class CanonicalZoomd(MapTransform):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Bring images to the axis order nearest to RAS, and to a spacing, as TotalSegmentator 2.18 does.

    Its spacing is one in name (`resampling.change_spacing`): the first and the last voxel of an axis stay in place and
    those between them are spread evenly, while the affine says that the spacing is met. Values are interpolated
    linearly and cut to whole numbers towards zero. An image that has the spacing is reordered only.

    Args:
        keys: images, (C, I, J, K) MetaTensors of any type; they come out as float32. `meta["original_affine"]` and
            `meta["spatial_shape"]` remain as they are.
        spacing_mm: along the axes that run to the right, to the front and up; or one number for all; None to reorder
            only.

    Raises:
        UsageError: a spacing that is not positive, or neither one nor three of them.
        InputError: at call, when a key holds no 3D image with an invertible affine.

    >>> image = MetaTensor(torch.rand(1, 8, 8, 9), affine=torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])))
    >>> vg.CanonicalZoomd("image", spacing_mm=1.5)({"image": image})["image"].shape
    torch.Size([1, 5, 5, 6])
    """

    def __init__(self, keys: Hashable | Sequence[Hashable], spacing_mm: float | Sequence[float] | None = None) -> None:
        super().__init__(keys)
        given = () if spacing_mm is None else (spacing_mm,) * 3 if isinstance(spacing_mm, int | float) else spacing_mm
        if len(given) not in {0, 3} or not all(0.0 < gap_mm < np.inf for gap_mm in given):
            raise UsageError(f"spacing_mm is one positive number, three of them, or null; found {spacing_mm}.")
        self.spacing_mm = np.array(given, dtype=np.float64)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the images in canonical order and at the spacing."""
        return {**data, **{key: self._changed(key, data[key]) for key in self.key_iterator(data)}}

    def _changed(self, key: Hashable, image: MetaTensor) -> MetaTensor:
        if image.ndim != 4:
            raise InputError(f"{key}: shape {tuple(image.shape)}, expected channels and three axes.")
        channels, affine = _canonical(plain_tensor(image).numpy(force=True), Grid.of(image))
        if len(self.spacing_mm):
            channels, affine = _zoomed(channels, affine, self.spacing_mm)
        voxels = torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32))
        meta = {name: value for name, value in image.meta.items() if name not in {"affine", "pixdim"}}
        read = np.asarray(image.meta.get("original_affine", Grid.of(image).affine), np.float64).reshape(4, 4)
        meta["spacing"] = _header_mm(read).astype(np.float64)  # as the file that TotalSegmentator gives to nnU-Net
        return MetaTensor(voxels.to(image.device), affine=torch.from_numpy(affine), meta=meta)


def _canonical(channels: npt.NDArray[Any], grid: Grid) -> tuple[npt.NDArray[Any], Affine]:
    """Return a view of (C, I, J, K) whose axes run to the right, to the front and up, and its affine."""
    orientation = nib.io_orientation(grid.affine)
    affine = grid.affine @ nib.orientations.inv_ornt_aff(orientation, grid.shape)
    turned = [nib.apply_orientation(channel, orientation) for channel in channels]
    return np.stack(turned) if len(turned) > 1 else turned[0][None], affine


def _zoomed(channels: npt.NDArray[Any], affine: Affine, spacing_mm: Affine) -> tuple[npt.NDArray[Any], Affine]:
    """Return (C, i, j, k) in whole numbers at a spacing, or as it was if it has that spacing; and its affine."""
    has_mm = _header_mm(affine)
    if np.array_equal(has_mm, spacing_mm):
        return channels, affine
    zoom = has_mm / spacing_mm
    whole = [
        ndimage.zoom(channel, zoom, output=np.float64, order=1, mode="nearest").astype(np.int32) for channel in channels
    ]
    return np.stack(whole), affine @ np.diag([*1 / zoom, 1.0])


def _header_mm(affine: Affine) -> npt.NDArray[np.float32]:
    """Return the spacing as the header of a NIfTI file holds it, with the digits that it has."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0), dtype=np.float32)
