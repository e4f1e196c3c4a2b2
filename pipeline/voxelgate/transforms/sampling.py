"""Draw training patches that hold foreground often, and every structure equally often."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_dst_type

from voxelgate.core.errors import InputError, UsageError
from voxelgate.transforms.io import plain_tensor

Indices = npt.NDArray[np.int32]

INDICES_SUFFIX = "_indices"
"""The voxel indices of the label map `label` stand under the key `label_indices`."""

MAX_INDICES_PER_CLASS = 10_000
"""Voxels kept for each class; 40 kB a class in the cache.

nnU-Net keeps as many, or 1 % of a large structure (`DefaultPreprocessor._sample_foreground_locations`).
"""


def foreground_indices(label: torch.Tensor) -> list[Indices]:
    """List where each structure of a label map lies.

    Args:
        label: values, 0 for background, below 0 what is ignored, (1, I, J, K) or (1, I, J), any dtype.

    Returns:
        One array of flat voxel indices (C order, ascending) for each value present, in ascending order of the values;
        at most `MAX_INDICES_PER_CLASS` each, evenly thinned. Empty without foreground.

    Raises:
        InputError: `label` has several channels, or more voxels than an int32 can count.

    >>> foreground_indices(torch.tensor([[[0, 2], [1, 2]]]))
    [array([2], dtype=int32), array([1, 3], dtype=int32)]
    """
    if label.ndim < 2 or label.shape[0] != 1:
        raise InputError(f"a label map has one channel with one value a voxel, found the shape {tuple(label.shape)}.")
    if label.numel() > np.iinfo(np.int32).max:
        raise InputError(f"a label map of {label.numel()} voxels is too large; crop it, or resample it coarser.")
    values = plain_tensor(label).reshape(-1).numpy(force=True)
    foreground = np.flatnonzero(values > 0).astype(np.int32)
    if not foreground.size:
        return []
    order = np.argsort(values[foreground], kind="stable")
    sorted_values = values[foreground[order]]
    borders = np.flatnonzero(np.diff(sorted_values)) + 1
    return [_thinned(foreground[order[low:high]]) for low, high in pairwise((0, *borders, foreground.size))]


class ForegroundIndicesd(MapTransform):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Store under `<label_key>_indices` what `foreground_indices` finds, so that a cache holds it.

    Deterministic. Belongs directly before `RandBalancedPatchd`, with nothing between that moves voxels.

    Args:
        label_key: the label map, (1, I, J, K); may be several keys.
        allow_missing_keys: skip keys that are absent instead of refusing.

    >>> sorted(vg.ForegroundIndicesd("label")({"label": MetaTensor(torch.ones(1, 4, 4, 4))}))
    ['label', 'label_indices']
    """

    def __init__(self, label_key: Hashable | Sequence[Hashable], *, allow_missing_keys: bool = False) -> None:
        super().__init__(label_key, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the indices added."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[f"{key}{INDICES_SUFFIX}"] = foreground_indices(torch.as_tensor(data[key]))
        return out


class RandBalancedPatchd(Randomizable, MapTransform):  # type: ignore[misc]  # MONAI ships no types for mypy
    """Cut one patch out of image and label, around foreground with a given probability.

    A foreground patch is drawn in two steps: one of the structures present, then one of its voxels, both uniformly; the
    patch is centred there and moved inside the volume. Any other patch has a uniform position inside the volume, and so
    has every patch of a case without foreground. Where the volume is smaller than the patch, it stands in the middle
    and constant values surround it.

    The affine follows the patch; `meta["spatial_shape"]` and `meta["original_affine"]` remain those of the file. Uses
    the indices of `ForegroundIndicesd` if they are there, and removes them. Works on plain tensors too.

    Args:
        keys: images and label map, (C, I, J, K), all of one spatial shape.
        label_key: the label map; one of `keys`.
        patch_vox: voxels along each axis of the patch, or one number for all axes.
        foreground_probability: share of patches around foreground; nnU-Net makes sure of a third of them, which is
            little for small structures.
        margin_vox: voxels added on every side of the patch, for a rotation that follows and cuts them off again
            (`RandAffined` with `spatial_size`); where they lie outside the volume they are constant.
        pad_value: what surrounds a small image; a label is surrounded by 0.
        allow_missing_keys: skip keys that are absent instead of refusing.

    Raises:
        UsageError: `label_key` is not one of `keys`, or a number is out of its range.
        InputError: at call, when the shapes differ, or the indices belong to another label map.

    >>> both = {"image": MetaTensor(torch.rand(1, 9, 9, 9)), "label": MetaTensor(torch.ones(1, 9, 9, 9))}
    >>> vg.RandBalancedPatchd(("image", "label"), label_key="label", patch_vox=4)(both)["image"].shape
    torch.Size([1, 4, 4, 4])
    """

    def __init__(  # noqa: PLR0913  # keyword-only numbers of one config entry
        self,
        keys: Hashable | Sequence[Hashable],
        label_key: Hashable,
        patch_vox: int | Sequence[int],
        *,
        foreground_probability: float = 0.67,
        margin_vox: int | Sequence[int] = 0,
        pad_value: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if label_key not in self.keys:
            raise UsageError(f"label_key {label_key!r} must be one of keys {self.keys}, else it would not be cut.")
        if not 0.0 <= foreground_probability <= 1.0:
            raise UsageError(f"foreground_probability lies between 0 and 1, found {foreground_probability}.")
        sizes = (patch_vox,) if isinstance(patch_vox, int) else tuple(patch_vox)
        if not sizes or min(sizes) < 1:
            raise UsageError(f"patch_vox holds positive numbers of voxels, found {patch_vox}.")
        self.label_key = label_key
        margins = (margin_vox,) if isinstance(margin_vox, int) else tuple(margin_vox)
        if not margins or min(margins) < 0:
            raise UsageError(f"margin_vox holds numbers of voxels, none below 0, found {margin_vox}.")
        self.patch_vox = patch_vox
        self.margin_vox = margin_vox
        self.foreground_probability = foreground_probability
        self.pad_value = pad_value

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the patch instead of the volumes, and without the indices."""
        out = dict(data)
        indices = out.pop(f"{self.label_key}{INDICES_SUFFIX}", None)
        volumes = {key: torch.as_tensor(data[key]) for key in self.key_iterator(out)}
        if not volumes:
            return out
        shape = _common_shape(volumes)
        patch_vox, margin_vox = _per_axis(self.patch_vox, shape), _per_axis(self.margin_vox, shape)
        start = self._draw_start(shape, patch_vox, volumes.get(self.label_key), indices)
        first = tuple(s - m for s, m in zip(start, margin_vox, strict=True))
        size = tuple(p + 2 * m for p, m in zip(patch_vox, margin_vox, strict=True))
        for key, volume in volumes.items():
            out[key] = _cut(volume, first, size, 0.0 if key == self.label_key else self.pad_value)
        return out

    def _draw_start(
        self,
        shape: tuple[int, ...],
        patch_vox: tuple[int, ...],
        label: torch.Tensor | None,
        indices: Sequence[Indices] | None,
    ) -> tuple[int, ...]:
        """Draw the volume's index of the first voxel of the patch; negative where the patch begins outside."""
        room = np.subtract(shape, patch_vox)
        if self.R.random_sample() < self.foreground_probability and label is not None:
            present = foreground_indices(label) if indices is None else indices
            if len(present):
                flat_index = int(self.R.choice(present[self.R.randint(len(present))]))
                centre = _foreground_voxel(label, flat_index)
                return _inside(np.subtract(centre, np.floor_divide(patch_vox, 2)), room)
        return _inside(self.R.randint(np.maximum(room, 0) + 1), room)


def _per_axis(vox: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    numbers = (vox,) * len(shape) if isinstance(vox, int) else tuple(vox)
    if len(numbers) != len(shape):
        raise InputError(f"a patch of {numbers} voxels cannot be cut out of a volume of the shape {shape}.")
    return numbers


def _thinned(indices: Indices) -> Indices:
    if indices.size <= MAX_INDICES_PER_CLASS:
        return indices
    return indices[np.linspace(0, indices.size - 1, MAX_INDICES_PER_CLASS).round().astype(np.int64)]


def _common_shape(volumes: Mapping[Hashable, torch.Tensor]) -> tuple[int, ...]:
    shapes = {key: tuple(volume.shape[1:]) for key, volume in volumes.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"image and label must have one shape, found {shapes}; resample them to one grid first.")
    return next(iter(shapes.values()))


def _foreground_voxel(label: torch.Tensor, flat_index: int) -> tuple[int, ...]:
    """Turn a flat index into one a axis; refuse it where the label map holds background there."""
    shape = tuple(label.shape[1:])
    if flat_index < np.prod(shape):
        voxel = tuple(int(i) for i in np.unravel_index(flat_index, shape))
        if plain_tensor(label)[(0, *voxel)] > 0:
            return voxel
    raise InputError(
        f"the stored foreground index {flat_index} is no foreground of this label map of the shape {shape}; "
        "put ForegroundIndicesd directly before RandBalancedPatchd."
    )


def _inside(start: npt.NDArray[np.int64], room: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Move a patch inside the volume; where it has no room, put the volume into its middle."""
    moved = np.where(room >= 0, np.clip(start, 0, np.maximum(room, 0)), -(-room // 2))
    return tuple(int(i) for i in moved)


def _cut(volume: torch.Tensor, start: tuple[int, ...], patch_vox: tuple[int, ...], pad_value: float) -> torch.Tensor:
    source, target = [slice(None)], [slice(None)]
    for first, size, length in zip(start, patch_vox, volume.shape[1:], strict=True):
        low, high = max(first, 0), min(first + size, length)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    patch = plain_tensor(volume).new_full((volume.shape[0], *patch_vox), pad_value)
    patch[tuple(target)] = plain_tensor(volume)[tuple(source)]
    if not isinstance(volume, MetaTensor):
        return patch
    cut, *_ = convert_to_dst_type(patch, volume)
    affine = volume.affine.clone()
    rank = affine.shape[0] - 1
    shift = torch.tensor((*start, 0, 0)[:rank], dtype=affine.dtype)
    affine[:rank, rank] += affine[:rank, :rank] @ shift
    cut.affine = affine
    moved: torch.Tensor = cut
    return moved
