"""A MONAI inferer whose result lies on the grid of the file that was read, so that no caller inverts anything."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import collate_meta_tensor
from monai.inferers import Inferer, sliding_window_inference

from pipeline.errors import BundleError, InputError, UsageError
from pipeline.geometry import Affine, Grid

Predictor = Callable[[torch.Tensor], torch.Tensor]
Positions = npt.NDArray[np.float64]

SNAP_VOX = 1e-3
"""Positions this close to a voxel centre count as on it, and axes that stray less than this count as parallel.

Float32 headers and products of affines leave about 1e-4 voxel at the far corner of a 1000-slice volume; a weight below
1e-3 changes no label that means anything.
"""

OUTSIDE_VOX = 0.5 + SNAP_VOX
"""A source voxel further than this from the centres of the network grid is background.

MONAI's `Spacing` rounds the number of voxels, so that the last source voxel may lie half a voxel beyond the last one.
"""

SLAB_VOXELS = 2**21
"""Source voxels that are restored at a time; 6 classes then need 50 MB for each array, whatever the volume's size."""

MODES = ("gaussian", "constant")
"""Weights of overlapping windows that `sliding_window_inference` knows."""


class RestoringSlidingWindowInferer(Inferer):  # type: ignore[misc]  # MONAI ships no stubs
    """Slide a window over the network grid and return labels on the source grid.

    The window is clipped to the volume, and padded (by MONAI, with 0) only to a multiple of `window_multiple`.
    Probabilities, not labels, are brought back, by trilinear interpolation; where the two grids differ by no more than
    swapped, turned or cropped axes, nothing is interpolated and every label is the network's own.

    Args:
        roi_size: window in voxels of the network grid.
        overlap: part of the window that the next one repeats, 0 to below 1.
        sw_batch_size: windows for each call of the network.
        mode: weight of a window, falling to its border ("gaussian") or not ("constant").
        flip_axes: spatial axes of the network grid; the network also sees the image mirrored along every combination
            of them, and the probabilities are averaged.
        side_pairs: class values of the two sides of a structure (`LabelTable.side_pairs`), swapped back after a
            mirroring along axis 0, which must then be the one from left to right.
        compute_dtype: "bfloat16" runs the network under `torch.autocast`; None as its weights are.
        channels_last: hand windows to the network in channels-last layout; changes the speed only.
        window_multiple: sizes the network accepts, e.g. 16 for four halvings without padding inside; 1 for any.

    Raises:
        UsageError: a value out of its range.
    """

    def __init__(  # noqa: PLR0913 - one keyword for each number of the bundle's config
        self,
        *,
        roi_size: Sequence[int],
        overlap: float = 0.5,
        sw_batch_size: int = 1,
        mode: str = "gaussian",
        flip_axes: Sequence[int] = (),
        side_pairs: Sequence[Sequence[int]] = (),
        compute_dtype: str | None = None,
        channels_last: bool = True,
        window_multiple: int = 1,
    ) -> None:
        super().__init__()
        if len(roi_size) != 3 or min(*roi_size, sw_batch_size, window_multiple) < 1:
            raise UsageError(
                f"roi_size {tuple(roi_size)}, sw_batch_size {sw_batch_size}, window_multiple {window_multiple}: "
                "expected three sizes, and counts of at least 1."
            )
        if not 0 <= overlap < 1:
            raise UsageError(f"overlap {overlap}: expected 0 to below 1.")
        if mode not in MODES or compute_dtype not in {None, "bfloat16"}:
            raise UsageError(
                f"mode {mode!r}, compute_dtype {compute_dtype!r}: expected one of {MODES}, and null or 'bfloat16'."
            )
        if not set(flip_axes) <= {0, 1, 2} or any(len(pair) != 2 or min(pair) < 1 for pair in side_pairs):
            raise UsageError(
                f"flip_axes {tuple(flip_axes)}, side_pairs {tuple(side_pairs)}: expected axes 0 to 2, and pairs of "
                "class values above 0."
            )
        self.roi_size = tuple(roi_size)
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self.mode = mode
        self.flip_axes = tuple(sorted(set(flip_axes)))
        self.side_pairs = tuple((int(low), int(high)) for low, high in side_pairs)
        self.compute_dtype = compute_dtype
        self.channels_last = channels_last
        self.window_multiple = window_multiple

    def __call__(
        self, inputs: MetaTensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> MetaTensor:
        """Return the label map of one image on the grid it was read from.

        Args:
            inputs: `MetaTensor` (1, C, i, j, k) on the network grid, float; its metadata name the source grid
                (`original_affine`, `spatial_shape`, as MONAI's `LoadImage` records them).
            network: gives logits (B, classes, i, j, k) for windows (B, C, i, j, k); in eval mode.
            args: passed to the network.
            kwargs: passed to the network.

        Returns:
            (1, 1, I, J, K) on the source grid, on the device of `inputs`; uint8, int32 for more than 256 classes.

        Raises:
            InputError: more than one volume, or metadata without the source grid.
            UsageError: sides to swap, but axis 0 does not run from left to right, or there are fewer classes.
            BundleError: the network gives one class only, or values that are not finite.
        """
        source, network_grid = _source_grid(inputs), _network_grid(inputs)
        if self.side_pairs and 0 in self.flip_axes:
            _check_sagittal(network_grid)

        def predict(windows: torch.Tensor) -> torch.Tensor:
            return self._logits(windows, lambda window: network(window, *args, **kwargs))

        with torch.no_grad():
            probabilities = self._probabilities(inputs.as_tensor().float(), predict)
            labels = restore_labels(probabilities[0], network_grid, source)
        return _label_image(labels, inputs, source)

    def _logits(self, window: torch.Tensor, network: Predictor) -> torch.Tensor:
        if self.channels_last:
            window = window.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(window.device.type, dtype=torch.bfloat16, enabled=self.compute_dtype is not None):
            return network(window).float()  # MONAI weighs windows in place, which would round in bfloat16

    def _probabilities(self, image: torch.Tensor, predict: Predictor) -> torch.Tensor:
        """Average over all mirrorings, (1, classes, i, j, k) float32."""
        total = self._one_view(image, predict)
        mirrorings = [axes for n in range(1, len(self.flip_axes) + 1) for axes in combinations(self.flip_axes, n)]
        for axes in mirrorings:
            dims = [axis + 2 for axis in axes]
            mirrored = self._one_view(image.flip(dims), predict).flip(dims)
            total += mirrored[:, self._sides_swapped(mirrored.shape[1])] if 0 in axes else mirrored
        return total.div_(1 + len(mirrorings))

    def _one_view(self, image: torch.Tensor, predict: Predictor) -> torch.Tensor:
        size = image.shape[2:]
        clipped = (-(-n // self.window_multiple) * self.window_multiple for n in size)
        try:
            logits = sliding_window_inference(
                image,
                roi_size=tuple(min(pair) for pair in zip(self.roi_size, clipped, strict=True)),
                sw_batch_size=self.sw_batch_size,
                predictor=predict,
                overlap=self.overlap,
                mode=self.mode,
            )
        except ValueError as error:
            raise InputError(f"the network cannot take this volume: {error}.") from error
        return _softmax_in_place(logits)

    def _sides_swapped(self, classes: int) -> list[int]:
        order = list(range(classes))
        for low, high in self.side_pairs:
            if max(low, high) >= classes:
                raise UsageError(f"side_pairs name class {max(low, high)}, but the network gives {classes} classes.")
            order[low], order[high] = order[high], order[low]
        return order


def restore_labels(probabilities: torch.Tensor, network_grid: Grid, source: Grid) -> torch.Tensor:
    """Interpolate probabilities at the voxels of the source grid and take the likeliest class, slab by slab.

    Args:
        probabilities: (classes, i, j, k) on the network grid, float32.
        network_grid: where they lie; voxels of the source more than half a voxel outside become background.
        source: the grid of the result.

    Returns:
        (I, J, K) uint8, int32 for more than 256 classes.
    """
    dtype = torch.uint8 if len(probabilities) <= 256 else torch.int32
    labels = torch.zeros(source.shape, dtype=dtype, device=probabilities.device)
    to_network = np.linalg.inv(network_grid.affine) @ source.affine
    lines = _parallel_lines(to_network, probabilities, source)
    if lines is None:
        for slab in _slabs(slice(0, source.shape[0]), source.shape[1] * source.shape[2]):
            labels[slab] = _label_oblique_slab(probabilities, to_network, source, slab)
        return labels
    values = probabilities.permute(0, *(1 + line.network_axis for line in lines))
    first, second, third = (line.span for line in lines)
    for slab in _slabs(first, (second.stop - second.start) * (third.stop - third.start)):
        parts = (lines[0].positions(slab), lines[1].positions(second), lines[2].positions(third))
        labels[slab, second, third] = _label_parallel_slab(values, parts).to(dtype)
    return labels


@dataclass(frozen=True, eq=False)
class _Line:
    """Where the voxels along one source axis lie along the one network axis that is parallel to it.

    Args:
        network_axis: the parallel axis.
        step_vox: network voxels for each source voxel, negative if the axes run against each other.
        offset_vox: position of source voxel 0.
        span: the source voxels that may hold anything but background.
    """

    network_axis: int
    step_vox: float
    offset_vox: float
    span: slice

    def positions(self, voxels: slice) -> Positions:
        return _positions(self.step_vox, self.offset_vox, voxels)


def _positions(step_vox: float, offset_vox: float, voxels: slice) -> Positions:
    position = step_vox * np.arange(voxels.start, voxels.stop) + offset_vox
    nearest = np.rint(position)
    return np.where(np.abs(position - nearest) < SNAP_VOX, nearest, position)


def _parallel_lines(to_network: Affine, probabilities: torch.Tensor, source: Grid) -> tuple[_Line, _Line, _Line] | None:
    """Return one line for each source axis if the axes of both grids are parallel, else None."""
    steps = to_network[:3, :3]
    axis_of = np.abs(steps).argmax(axis=0)
    across = steps.copy()
    across[axis_of, range(3)] = 0
    if len(set(axis_of)) != 3 or (np.abs(across) * source.shape).max() > SNAP_VOX:
        return None
    bounds = _foreground_bounds(probabilities)
    lines = []
    for index, axis in enumerate(axis_of):
        step, offset = float(steps[axis, index]), float(to_network[axis, 3])
        position = _positions(step, offset, slice(0, source.shape[index]))
        low, high = bounds[axis]
        size = probabilities.shape[1 + axis]
        within = (position > low - 1) & (position < high + 1)
        within &= (position >= -OUTSIDE_VOX) & (position <= size - 1 + OUTSIDE_VOX)
        hits = np.flatnonzero(within)
        lines.append(_Line(int(axis), step, offset, slice(hits[0], hits[-1] + 1) if len(hits) else slice(0, 0)))
    return lines[0], lines[1], lines[2]


def _foreground_bounds(probabilities: torch.Tensor) -> list[tuple[float, float]]:
    """Return first and last voxel along each network axis where the background is not the likeliest class.

    Where it is at all neighbours, it is at every point between them: interpolation keeps the order of two values.
    """
    foreground = probabilities[1:].amax(dim=0) > probabilities[0]
    bounds = []
    for axis in range(3):
        hits = foreground.any(dim=[other for other in range(3) if other != axis]).nonzero()
        bounds.append((float(hits.min()), float(hits.max())) if len(hits) else (math.inf, -math.inf))
    return bounds


def _slabs(voxels: slice, area: int) -> list[slice]:
    """Cut a range of slices of `area` voxels into ranges of at most `SLAB_VOXELS`, at least one slice each."""
    if area == 0:
        return []
    thickness = max(1, SLAB_VOXELS // area)
    return [slice(start, min(start + thickness, voxels.stop)) for start in range(voxels.start, voxels.stop, thickness)]


def _label_parallel_slab(probabilities: torch.Tensor, positions: Sequence[Positions]) -> torch.Tensor:
    """Label a slab whose axes run along those of `probabilities`: three linear interpolations do."""
    values = probabilities
    for dim in (1, 3, 2):  # the costly last axis while the second is still short
        values = _sample(values, dim, positions[dim - 1])
    return values.max(dim=0).indices  # the first of equals, as argmax, but several times faster along this axis


def _sample(values: torch.Tensor, dim: int, position_vox: Positions) -> torch.Tensor:
    """Interpolate (classes, i, j, k) along `dim`; no arithmetic where all positions lie on voxels."""
    last = values.shape[dim] - 1
    clipped = np.clip(position_vox, 0, last)
    lower = np.floor(clipped)
    index = lower.astype(np.int64)
    if np.array_equal(lower, clipped):
        return _pick(values, dim, index)
    upper = np.minimum(index + 1, last)
    weight = (clipped - lower).astype(np.float32)
    if dim == values.ndim - 1:  # a matrix product, for `index_select` of single numbers takes ten times as long
        matrix = np.zeros((last + 1, len(index)), dtype=np.float32)
        np.add.at(matrix, (index, np.arange(len(index))), 1 - weight)
        np.add.at(matrix, (upper, np.arange(len(index))), weight)
        return values @ torch.as_tensor(matrix, device=values.device)
    at_lower, at_upper = (values.index_select(dim, torch.as_tensor(n, device=values.device)) for n in (index, upper))
    weights = torch.as_tensor(weight, device=values.device).reshape([-1 if axis == dim else 1 for axis in range(4)])
    return at_lower.add_(at_upper.sub_(at_lower).mul_(weights))


def _pick(values: torch.Tensor, dim: int, index: npt.NDArray[np.int64]) -> torch.Tensor:
    """Take evenly spaced voxels along `dim`, upwards or downwards."""
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    part = values.narrow(dim, int(index.min()), int(np.ptp(index)) + 1)
    upwards = part if step > 0 else part.flip(dim)
    return upwards[(slice(None),) * dim + (slice(None, None, abs(step)),)]


def _label_oblique_slab(probabilities: torch.Tensor, to_network: Affine, source: Grid, slab: slice) -> torch.Tensor:
    """Label a slab of a source grid that is turned against the network grid in any way."""
    voxels = (np.arange(slab.start, slab.stop), np.arange(source.shape[1]), np.arange(source.shape[2]))
    is_inside = torch.ones([len(axis) for axis in voxels], dtype=torch.bool, device=probabilities.device)
    points = []
    for row, size in zip(to_network[:3], probabilities.shape[1:], strict=True):
        i, j, k = (torch.as_tensor(step * axis) for step, axis in zip(row[:3], voxels, strict=True))
        position = ((i + row[3])[:, None, None] + j[None, :, None] + k).float().to(probabilities.device)
        is_inside &= (position >= -OUTSIDE_VOX) & (position <= size - 1 + OUTSIDE_VOX)
        points.append(position * (2 / (size - 1)) - 1 if size > 1 else torch.zeros_like(position))
    coordinates = torch.stack(points[::-1], dim=-1)[None]  # (1, I, J, K, 3), last network axis first
    values = F.grid_sample(probabilities[None], coordinates, padding_mode="border", align_corners=True)
    return values[0].max(dim=0).indices * is_inside


def _softmax_in_place(logits: torch.Tensor) -> torch.Tensor:
    """Turn logits (1, classes, i, j, k) into probabilities without a second array of their size."""
    if logits.shape[1] < 2:
        raise BundleError("the network gives one class, expected the background and at least one structure.")
    for plane in logits.unbind(dim=2):
        if not torch.isfinite(plane).all():
            raise BundleError("the network gives values that are not finite; its weights are damaged or do not fit.")
        plane.copy_(torch.softmax(plane, dim=1))
    return logits


def _source_grid(image: MetaTensor) -> Grid:
    """Return the grid of the file that was read, from metadata as they are or collated to a batch of one."""
    if image.ndim != 5 or image.shape[0] != 1:
        raise InputError(f"an image of shape {tuple(image.shape)}, expected one volume (1, C, i, j, k) at a time.")
    meta = image.meta if isinstance(image, MetaTensor) else {}
    missing = [key for key in ("original_affine", "spatial_shape") if key not in meta]
    if missing:
        raise InputError(f"an image without {' and '.join(missing)} in its metadata; load it with MONAI's LoadImage.")
    shape = np.asarray(meta["spatial_shape"]).reshape(-1)[:3]
    affine = np.asarray(meta["original_affine"], dtype=np.float64).reshape(4, 4)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _network_grid(image: MetaTensor) -> Grid:
    affine = image.affine.reshape(4, 4).cpu().numpy()
    return Grid((image.shape[2], image.shape[3], image.shape[4]), affine)


def _check_sagittal(grid: Grid) -> None:
    towards_right = np.abs(grid.affine[0, :3]) / grid.spacing_mm
    if towards_right.argmax() != 0:
        raise UsageError(
            f"side_pairs with mirroring along axis 0, but axis {towards_right.argmax()} runs from left to right; "
            "reorient the image to RAS in preprocessing."
        )


def _label_image(labels: torch.Tensor, inputs: MetaTensor, source: Grid) -> MetaTensor:
    """Return labels (1, 1, I, J, K) with the source grid as their only grid; a batch if `inputs` is one."""
    affine = torch.as_tensor(source.affine.copy())
    meta: dict[str, Any] = {
        "original_affine": affine.clone(),
        "spatial_shape": torch.tensor(source.shape),
        "affine": affine,
    }
    name = inputs.meta.get("filename_or_obj")
    if name is not None:
        meta["filename_or_obj"] = name if isinstance(name, str) else name[0]
    image = MetaTensor(labels[None], meta=meta)
    return collate_meta_tensor([image]) if inputs.is_batch else image[None]
