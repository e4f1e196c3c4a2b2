"""The MONAI transform that prepares an image as nnU-Net v2 does before its network."""

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.geometry import Box, Grid, triple
from voxelgate.core.labels import IGNORED
from voxelgate.core.machine import refuse_too_fine
from voxelgate.transforms.nnunet.crop import Mask, is_nonzero, nonzero_box, without_holes
from voxelgate.transforms.nnunet.normalise import Channel, Normalization, normalised_channel
from voxelgate.transforms.nnunet.resample import (
    Array,
    Resampling,
    ResamplingFunction,
    resample_by_torch,
    resample_labels,
    resize_channel,
)
from voxelgate.transforms.nnunet.source_layout import NnUNetReader, SourceLayout
from voxelgate.transforms.nnunet.spacing_rules import resized_shape
from voxelgate.transforms.spatial import checked_grid

SOURCE_SPACING = "source_spacing"
"""Metadata of a prepared image: (3,) float64, the spacing of its source along the axes of the prepared image."""

OUTSIDE = -1
"""Label of voxels that are zero in every channel and lie in no hole, while labels are resampled."""

LABEL_RESAMPLING = {"function": "resample_data_or_seg_to_shape", "order": 1, "order_z": 0, "force_separate_z": None}
IMAGE_RESAMPLING = LABEL_RESAMPLING | {"order": 3}
"""What plans without a word on resampling mean."""


class _Frame(NamedTuple):
    """What becomes of the grid of an image.

    Args:
        source: its grid.
        layout: from its axes to those of the array.
        box: of the array that is kept.
        shape: of the box after resampling.
        new_mm: spacing of the voxels then.
    """

    source: Grid
    layout: SourceLayout
    box: Box
    shape: tuple[int, ...]
    new_mm: tuple[float, ...]


class NnUNetPreprocessd(MapTransform):  # type: ignore[misc]  # MONAI ships no types for mypy
    """Prepare an image as nnU-Net v2 does: crop to what is not zero, normalise, resample; the same float32 values.

    The image keeps its place: what comes out lies in nnU-Net's transposed axes and has an affine that says where.
    `meta["original_affine"]` and `meta["spatial_shape"]` remain those of the file, or become those of the image if it
    has none; `meta["source_spacing"]` is the spacing of the source along the axes of the result.

    nnU-Net takes voxel sizes from the header of a file, where they are not rounded as an affine is. They are looked for
    in `meta["spacing"]` (readers of this package, and MONAI's `ITKReader`), then `meta["pixdim"]` (`NibabelReader`).

    Args:
        keys: the image, (C, i, j, k) MetaTensor as the file stores it, in any real type; one key.
        spacing: of the configuration in the plans, three numbers, or two if slices are left as they are (2D).
        transpose_forward: of the plans.
        normalization: for each channel the scheme, and for CT the intensity properties, by the names that plans use.
        use_mask_for_norm: for each channel whether a z-score counts only what is not outside; by default none does.
        resampling: `resampling_fn_data` of the plans as `function`, with its arguments.
        label_resampling: `resampling_fn_seg` likewise.
        label_key: a label map (1, i, j, k) on the grid of the image, which is cropped and resampled with it.
        previous: `{"key": ..., "foreground": [1, 2, ...]}`, labels of the first stage of a cascade on the grid of the
            image: they become further channels, one for each of these values.
        reader: of the plans (`image_reader_writer`); two of them turn images to RAS first.
        allow_missing_keys: skip keys that are absent instead of refusing.

    Raises:
        UsageError: settings that contradict each other, or that nnU-Net does not know.
        InputError: at call, for another number of channels, an image that is too small, or labels on another grid.

    >>> prepare = vg.NnUNetPreprocessd("image", (2.0, 2.0, 2.0), normalization=[{"scheme": "ZScoreNormalization"}])
    >>> prepare({"image": MetaTensor(torch.rand(1, 6, 8, 10) + 1)})["image"].shape
    torch.Size([1, 5, 4, 3])
    """

    def __init__(  # noqa: PLR0913  # as many settings as nnU-Net's plans have
        self,
        keys: Hashable | Sequence[Hashable],
        spacing: Sequence[float],
        transpose_forward: Sequence[int] = (0, 1, 2),
        normalization: Sequence[Mapping[str, Any]] = ({"scheme": "ZScoreNormalization"},),
        *,
        use_mask_for_norm: Sequence[bool] = (),
        resampling: Mapping[str, Any] | None = None,
        label_resampling: Mapping[str, Any] | None = None,
        label_key: Hashable | None = None,
        previous: Mapping[str, Any] | None = None,
        reader: str = NnUNetReader.SITK,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise UsageError(
                f"the keys {self.keys}, expected that of one image; label maps have a setting of their own."
            )
        self.spacing = _checked_spacing(spacing)
        self.transposed = _checked_transposition(transpose_forward)
        masks = list(use_mask_for_norm) or [False] * len(normalization)
        if len(masks) != len(normalization):
            raise UsageError(f"{len(masks)} of use_mask_for_norm for {len(normalization)} channels; give one for each.")
        self.rules = tuple(
            Normalization.from_mapping(rule, only_mask=bool(mask))
            for rule, mask in zip(normalization, masks, strict=True)
        )
        self.resampling = Resampling.from_mapping(IMAGE_RESAMPLING if resampling is None else resampling)
        self.label_resampling = Resampling.from_mapping(
            LABEL_RESAMPLING if label_resampling is None else label_resampling
        )
        self.label_key = label_key
        self.previous_key = None if previous is None else previous["key"]
        self.foreground = () if previous is None else tuple(map(int, previous["foreground"]))
        self.reader = _known_reader(reader)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the image prepared, and its label map if there is one."""
        out = dict(data)
        for key in self.key_iterator(out):
            out |= self._prepared(key, data)
        return out

    def _prepared(self, key: Hashable, data: Mapping[Hashable, Any]) -> dict[Hashable, MetaTensor]:
        image, source = data[key], checked_grid(key, data[key])
        if len(image) != len(self.rules):
            raise InputError(f"an image of {len(image)} channels, expected {len(self.rules)}; give those of the model.")
        layout = SourceLayout.of(image, self.reader, self.transposed)
        is_something = is_nonzero(layout.array(image.as_tensor()))
        frame = self._frame(source, layout, nonzero_box(is_something))
        labels = {name: _label_array(name, data[name], frame) for name in self._label_keys(data)}
        inside, needs_mask = is_something[frame.box], any(rule.only_mask for rule in self.rules)
        if labels or needs_mask:
            inside = without_holes(inside)
        found = {name: self._resampled_labels(one, frame, inside) for name, one in labels.items()}
        counts = functools.reduce(np.logical_or, [one != 0 for one in labels.values()], inside) if needs_mask else None
        del is_something, inside, labels
        channels = self._channels(image.as_tensor(), frame, counts)
        for channel, value in zip(channels[len(image) :], self.foreground, strict=True):
            np.equal(found[self.previous_key], value, out=channel, casting="unsafe")
        out = {key: _with_place(torch.from_numpy(channels), image, frame)}
        if self.label_key in found:
            label = torch.from_numpy(found[self.label_key])[None].to(data[self.label_key].dtype)
            out[self.label_key] = _with_place(label, data[self.label_key], frame)
        return out

    def _frame(self, source: Grid, layout: SourceLayout, box: Box) -> _Frame:
        before, new_mm = [span.stop - span.start for span in box], self.spacing
        if len(new_mm) == 2:
            new_mm = (layout.spacing_mm[0], *new_mm)
        is_kept = self.resampling.function is ResamplingFunction.NONE
        shape = tuple(before) if is_kept else resized_shape(before, layout.spacing_mm, new_mm)
        return _Frame(source, layout, box, shape, new_mm)

    def _label_keys(self, data: Mapping[Hashable, Any]) -> list[Hashable]:
        wanted = [name for name in (self.label_key, self.previous_key) if name is not None]
        missing = [name for name in wanted if name not in data]
        if missing and not (self.allow_missing_keys and missing == [self.label_key]):
            raise InputError(f"no {' and no '.join(map(repr, missing))} beside the image; load it first.")
        return [name for name in wanted if name in data]

    def _channels(self, image: torch.Tensor, frame: _Frame, counts: Mask | None) -> npt.NDArray[np.float32]:
        """Return the image (C, a, b, c) normalised and resampled, with room for a channel for each previous label."""
        apart = self.resampling.separate_axis(frame.layout.spacing_mm, frame.new_mm)
        channels = len(image) + len(self.foreground)
        refuse_too_fine(image.shape[1:], frame.shape, 4 * channels * math.prod(frame.shape))
        out = np.empty((channels, *frame.shape), np.float32)
        if self.resampling.function is ResamplingFunction.TORCH:
            staged = np.empty_like(frame.layout.array(image, np.float32))  # PyTorch's sums depend on the layout
            cropped = staged[(slice(None), *frame.box)]
            for index, target in enumerate(cropped):
                target[...] = self._normalised(image, index, frame, counts)
            out[: len(image)] = resample_by_torch(cropped, frame.shape, apart)
            return out
        for index, target in enumerate(out[: len(image)]):
            resize_channel(target, self._normalised(image, index, frame, counts), apart, self.resampling)
        return out

    def _normalised(self, image: torch.Tensor, index: int, frame: _Frame, counts: Mask | None) -> Channel:
        values = frame.layout.array(image[index : index + 1], np.float32)[0][frame.box]
        return normalised_channel(values, self.rules[index], counts)

    def _resampled_labels(self, labels: Array, frame: _Frame, inside: Mask) -> Array:
        """Return labels (a, b, c), resampled; what is outside of the image competes with the background, as there."""
        ignored = int(labels.max()) + 1
        marked = np.where(labels < 0, ignored, labels).astype(labels.dtype)
        marked[(labels == 0) & ~inside] = OUTSIDE
        apart = self.label_resampling.separate_axis(frame.layout.spacing_mm, frame.new_mm)
        found = resample_labels(marked, frame.shape, apart, self.label_resampling)
        return np.select([found == OUTSIDE, found == ignored], [0, IGNORED], found).astype(labels.dtype)


def _label_array(name: Hashable, label: MetaTensor, frame: _Frame) -> Array:
    """Return a label map (1, i, j, k) as whole numbers in the axes and the box of the array."""
    grid = checked_grid(name, label)
    if len(label) != 1 or (difference := frame.source.difference(grid)) is not None:
        found = f"of {len(label)} channels" if len(label) != 1 else f"on another grid than its image: {difference}"
        raise InputError(f"{name!r} is {found}; give one label map on the grid of the image.")
    array: Array = frame.layout.array(label.as_tensor())[0]
    return array[frame.box].astype(np.int16 if array.max() < np.iinfo(np.int16).max else np.int32)


def _with_place(voxels: torch.Tensor, source: MetaTensor, frame: _Frame) -> MetaTensor:
    """Return voxels (C, a, b, c) with their place, and with the metadata of what they were made of."""
    meta = {
        "original_affine": frame.source.affine.copy(),
        "spatial_shape": np.array(frame.source.shape),
        **{name: value for name, value in source.meta.items() if name != "affine"},
        SOURCE_SPACING: np.array(frame.layout.spacing_mm),
    }
    grid = frame.layout.grid(frame.source, frame.box, frame.shape)
    return MetaTensor(voxels, affine=torch.from_numpy(grid.affine.copy()), meta=meta)


def _checked_spacing(spacing: Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(size) for size in spacing)
    if len(found) not in {2, 3} or not all(0 < size < np.inf for size in found):
        raise UsageError(f"a spacing of {list(spacing)}, expected two or three positive numbers.")
    return found


def _checked_transposition(axes: Sequence[int]) -> tuple[int, int, int]:
    if sorted(axes) != [0, 1, 2]:
        raise UsageError(f"transpose_forward {list(axes)}, expected 0, 1 and 2 in some order.")
    return triple(map(int, axes))


def _known_reader(name: str) -> NnUNetReader:
    if name not in list(NnUNetReader):
        raise UsageError(f"images read by {name}, expected one of {', '.join(NnUNetReader)}.")
    return NnUNetReader(name)
