"""Resample images and label maps to another shape with the functions that nnU-Net's plans name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from voxelgate.core.errors import UsageError
from voxelgate.transforms.nnunet.resize import (
    Positions,
    in_parts,
    interpolate_into,
    positions_of,
    resize_into,
)
from voxelgate.transforms.nnunet.spacing_rules import ANISOTROPY, separate_axis

Array = npt.NDArray[Any]
Spans = tuple[slice, ...]

SHARE = 1000
"""What a whole share of a label is in float16 (`resample_torch_simple`)."""


class ResamplingFunction(StrEnum):
    """The functions of nnU-Net that resample, by the names that plans use."""

    DEFAULT = "resample_data_or_seg_to_shape"
    TORCH = "resample_torch_fornnunet"
    NONE = "no_resampling_hack"


@dataclass(frozen=True)
class Resampling:
    """How nnU-Net resamples: a function of its plans with the arguments that it is given there.

    Args:
        function: which one.
        order: of the spline; only for `resample_data_or_seg_to_shape`, as `order_z`.
        order_z: of the spline along an axis that is resampled apart.
        force_separate_z: whether an axis is resampled apart; None to decide by the spacings.
        anisotropy: ratio of voxel sizes from which on one is.

    Raises:
        UsageError: an order other than 0 to 5.
    """

    function: ResamplingFunction = ResamplingFunction.DEFAULT
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = None
    anisotropy: float = ANISOTROPY

    def __post_init__(self) -> None:
        if not (0 <= self.order <= 5 and 0 <= self.order_z <= 5):
            raise UsageError(f"splines of order {self.order} and {self.order_z}, expected 0 to 5.")

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Return what plans say: the name of the function under `function`, and its arguments as they stand there.

        Raises:
            UsageError: another function, or arguments that are not known.

        >>> plans = {"function": "resample_data_or_seg_to_shape", "is_seg": False, "order": 1, "force_separate_z": None}
        >>> Resampling.from_mapping(plans).order
        1
        """
        rest = dict(given)
        name = rest.pop("function", None)
        if name not in list(ResamplingFunction):
            raise UsageError(f"resampling by {name}, expected one of {', '.join(ResamplingFunction)}.")
        function = ResamplingFunction(name)
        rest.pop("is_seg", None)
        arguments = {
            "force_separate_z": rest.pop("force_separate_z", None if function is ResamplingFunction.TORCH else False),
            "anisotropy": rest.pop("separate_z_anisotropy_threshold", ANISOTROPY),
        }
        if function is ResamplingFunction.DEFAULT:
            arguments |= {"order": rest.pop("order", 3), "order_z": rest.pop("order_z", 0)}
        elif rest.get("memefficient_seg_resampling") is False:
            rest.pop("memefficient_seg_resampling")
        if rest:
            raise UsageError(f"{function} with {', '.join(sorted(rest))} set, which cannot be followed here.")
        return cls(function, **arguments)

    def separate_axis(self, current_mm: Sequence[float], new_mm: Sequence[float]) -> int | None:
        """Return the axis that is resampled apart from the others, or None."""
        return separate_axis(current_mm, new_mm, force=self.force_separate_z, above=self.anisotropy)


def resize_channel(out: Array, values: Array, apart: int | None, how: Resampling) -> None:
    """Write a channel, resampled by splines.

    Args:
        out: (a, b, c) float32, to be written.
        values: (a, b, c) float32, any memory layout.
        apart: axis that is resampled apart from the others, as `Resampling.separate_axis` says.
        how: the orders.
    """
    if apart is None:
        resize_into(out, values, how.order)
    elif how.order_z == 0:
        _each_plane(out, values, apart, lambda target, source: resize_into(target, source, how.order))
    else:
        between = np.empty([n if axis == apart else out.shape[axis] for axis, n in enumerate(values.shape)])
        for target, source in zip(np.moveaxis(between, apart, 0), np.moveaxis(values, apart, 0), strict=True):
            resize_into(target, source, how.order)
        resize_into(out, between, how.order_z, is_clipped=False)


def _each_plane(out: Array, values: Array, apart: int, resize: Callable[[Array, Array], None]) -> None:
    """Fill planes across an axis from those nearest to them; one that is nearest to several is resized once."""
    size, new_size = values.shape[apart], out.shape[apart]
    nearest = np.clip(np.floor(positions_of(new_size, size) + 0.5).astype(int), 0, size - 1)
    firsts = [*np.flatnonzero(np.diff(nearest, prepend=-1)), new_size]
    targets, sources = np.moveaxis(out, apart, 0), np.moveaxis(values, apart, 0)

    def work(start: int, stop: int) -> None:
        for first, end in pairwise(firsts[start : stop + 1]):
            resize(targets[first], sources[nearest[first]])
            targets[first + 1 : end] = targets[first]

    in_parts(work, len(firsts) - 1, max(sources[0].size, targets[0].size))


def resample_by_torch(values: Array, shape: Sequence[int], apart: int | None) -> npt.NDArray[np.float32]:
    """Return an image, resampled by PyTorch.

    Args:
        values: (C, a, b, c) float32. PyTorch's sums depend on the memory layout, so it counts.
        shape: of a channel of the result.
        apart: axis that is resampled apart from the others.
    """
    given, size = torch.from_numpy(values), tuple(shape)
    return values if size == values.shape[1:] else np.asarray(_torch_image(given, size, apart))


def _torch_image(values: torch.Tensor, shape: tuple[int, ...], apart: int | None) -> torch.Tensor:
    if apart is None:
        return F.interpolate(values[None].float(), shape, mode="trilinear")[0]
    planes, size = _planes(values, apart), tuple(n for axis, n in enumerate(shape) if axis != apart)
    if size != tuple(planes.shape[1:]):
        planes = F.interpolate(planes[None].float(), size, mode="bilinear")[0]
    between = planes.reshape(len(values), -1, *size).movedim(1, 1 + apart)
    if between.shape[1:] == shape:
        return between
    return F.interpolate(between[None], shape, mode="nearest-exact")[0]


def _planes(values: torch.Tensor, apart: int) -> torch.Tensor:
    """Return the planes across an axis of all channels, one after the other; a view if there is one channel."""
    return values.movedim(1 + apart, 1).flatten(0, 1)


def resample_labels(labels: Array, shape: Sequence[int], apart: int | None, how: Resampling) -> Array:
    """Return a label map, resampled so that each voxel has one of its labels.

    Args:
        labels: (a, b, c), whole numbers in any real type.
        shape: of the result.
        apart: axis that is resampled apart from the others.
        how: function and orders.

    Returns:
        (a, b, c) of the type of `labels`; `labels` itself where nothing is to be done.

    Raises:
        UsageError: splines of order 2 or more, or any but the nearest plane along an axis apart.
    """
    if tuple(shape) == labels.shape or how.function is ResamplingFunction.NONE:
        return labels
    if how.function is ResamplingFunction.TORCH:
        return _torch_labels(torch.from_numpy(labels), tuple(shape), apart).numpy().astype(labels.dtype)
    if how.order > 1 or how.order_z > 0:
        raise UsageError(f"labels by splines of order {how.order} and {how.order_z}, expected 1 or 0, and 0.")
    out = np.empty(shape, labels.dtype)
    if apart is None:
        _resize_labels(out, labels, how.order)
        return out
    _each_plane(out, labels, apart, lambda target, source: _resize_labels(target, source, how.order))
    return out


def _torch_labels(labels: torch.Tensor, shape: tuple[int, ...], apart: int | None) -> torch.Tensor:
    if apart is None:
        return _largest_share(labels[None, None], shape, "trilinear")[0, 0]
    size = tuple(n for axis, n in enumerate(shape) if axis != apart)
    planes = _largest_share(_planes(labels[None], apart)[None], size, "bilinear")[0]
    return _largest_share(planes.movedim(0, apart)[None, None], shape, "nearest-exact")[0, 0]


def _largest_share(labels: torch.Tensor, shape: tuple[int, ...], mode: str) -> torch.Tensor:
    """Return for each voxel the label with the largest share in float16, the smallest of equals."""
    if tuple(labels.shape[2:]) == shape:
        return labels
    values = torch.unique(labels)
    winner = torch.full((*labels.shape[:2], *shape), values[0].item(), dtype=labels.dtype)
    best = torch.zeros(winner.shape, dtype=torch.float16)
    for value in values:
        share = F.interpolate((labels == value).float() * SHARE, shape, mode=mode).half()
        winner[share > best] = value
        best = torch.maximum(best, share)
    return winner


def _resize_labels(out: Array, labels: Array, order: int) -> None:
    """Write the label that has the largest interpolated share of each voxel (batchgenerators 0.25.5).

    Among equal shares the label of the nearest voxel wins, if it is one of them, else the smallest.
    """
    resize_into(out, labels, 0)
    if order == 0 or out.shape == labels.shape:
        return
    boxes = _boxes_of(labels)
    rows = [positions_of(new, size) for new, size in zip(out.shape, labels.shape, strict=True)]
    best, winner, nearest = np.zeros(out.shape), np.full_like(out, min(boxes)), np.zeros(out.shape)
    for value, box in boxes.items():
        spans, source = _reach(box, rows, labels.shape)
        share = np.empty([span.stop - span.start for span in spans])
        if share.size == 0:
            continue
        part = [row[span] - start.start for row, span, start in zip(rows, spans, source, strict=True)]
        interpolate_into(share, (labels[source] == value).astype(np.uint8), part, 1, (0, 1))
        winner[spans][share > best[spans]] = value
        np.maximum(best[spans], share, out=best[spans])
        np.copyto(nearest[spans], share, where=out[spans] == value)
    np.copyto(out, winner, where=nearest != best)


def _boxes_of(labels: Array) -> dict[int, Spans]:
    """Return the box around each label, in the order of the labels."""
    low, numbered = int(labels.min()), labels.astype(np.int32)
    numbered -= low - 1
    boxes = ndimage.find_objects(numbered)
    return {low + number: box for number, box in enumerate(boxes) if box is not None}


def _reach(box: Spans, rows: Sequence[Positions], shape: Sequence[int]) -> tuple[Spans, Spans]:
    """Return which positions have a share of a label that lies in a box, and the voxels that decide about it."""
    spans = []
    for span, row, size in zip(box, rows, shape, strict=True):
        first = 0 if span.start == 0 else np.searchsorted(row, span.start - 1, "right")
        last = len(row) if span.stop == size else np.searchsorted(row, span.stop)
        spans.append(slice(int(first), int(last)))
    return tuple(spans), tuple(slice(max(span.start - 1, 0), span.stop + 1) for span in box)
