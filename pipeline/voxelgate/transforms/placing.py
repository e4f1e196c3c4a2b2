"""Put a label map that covers only a part of its image, or has its axes in another order, onto the image's grid."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from voxelgate.core.errors import InputError
from voxelgate.core.geometry import Grid

POSITION_TOLERANCE = 0.1
"""Largest distance in voxels of a label voxel from the image voxel that it becomes; more would need interpolation."""


class PlaceLabeld(MapTransform):  # type: ignore[misc]  # MONAI ships no types for mypy
    """Give a label map the grid of its image, voxel for voxel, with background where it says nothing.

    A label map that was fetched as DICOM SEG has only the slices with a structure (pydicom_seg `MultiClassReader`, as
    MONAI Label 0.8.5 reads them), perhaps in the other order. Nothing is interpolated: a label map whose voxels are not
    those of the image is refused, for it may belong to another image.

    Args:
        label_key: the label map, (1, i, j, k) MetaTensor.
        image_key: the image, (C, I, J, K) MetaTensor.

    Raises:
        InputError: at call, when label voxels lie between those of the image, or structures outside of it.
    """

    def __init__(self, label_key: Hashable = "label", image_key: Hashable = "image") -> None:
        super().__init__(label_key)
        self.label_key = label_key
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the label map on the grid of the image; one that lies there already is left alone."""
        image, label = data[self.image_key], data[self.label_key]
        target, source = _grid(image), _grid(label)
        if target.agrees(source):
            return dict(data)
        voxels = place_labels(label.as_tensor()[0].numpy(), source, target)
        meta = {**label.meta, "spatial_shape": np.array(target.shape), "original_affine": target.affine.copy()}
        meta.pop("affine", None)
        placed = MetaTensor(torch.from_numpy(voxels)[None], affine=image.affine.clone(), meta=meta)
        return {**data, self.label_key: placed}


def place_labels(labels: npt.NDArray[Any], source: Grid, target: Grid) -> npt.NDArray[Any]:
    """Return labels (i, j, k) on `source` as labels on `target`, whose voxels must be the same ones.

    Raises:
        InputError: voxels lie between those of `target`, or structures outside of it.
    """
    found = np.argwhere(labels)
    to_target = np.linalg.inv(target.affine) @ source.affine
    corners = np.argwhere(np.ones((2, 2, 2))) * (np.array(source.shape) - 1)
    _refuse_between(corners @ to_target[:3, :3].T + to_target[:3, 3])
    _refuse_between(to_target[:3, :3] * (np.array(source.shape) - 1))
    places = np.rint(found @ to_target[:3, :3].T + to_target[:3, 3]).astype(int)
    if (places < 0).any() or (places >= target.shape).any():
        raise InputError("a label map holds structures outside of its image; it belongs to another one.")
    placed = np.zeros(target.shape, dtype=labels.dtype)
    placed[tuple(places.T)] = labels[tuple(found.T)]
    return placed


def _refuse_between(places: npt.NDArray[np.float64]) -> None:
    away = float(np.abs(places - np.rint(places)).max())
    if away > POSITION_TOLERANCE:
        raise InputError(
            f"the voxels of a label map lie up to {away:.2f} voxels between those of its image; resample it first, and "
            "check that it belongs to it."
        )


def _grid(volume: MetaTensor) -> Grid:
    return Grid(tuple(volume.shape[1:]), volume.affine.numpy(force=True))
