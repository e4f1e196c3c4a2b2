"""Windows and sums of MONAI's `sliding_window_inference`, to the bit, of which only what is in work is held."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map
from monai.utils import fall_back_tuple

from voxelgate.core.errors import BundleError, InputError
from voxelgate.core.geometry import Shape, triple
from voxelgate.inference.windows import PIECE_SCORES, axis_starts, is_finite

Slab = tuple[int, torch.Tensor]
"""First slice along the swept axis, and scores (classes, n, H, W) with that axis first."""


@dataclass(frozen=True)
class BlendedWindows:
    """How windows lie and are weighted, by the words of `monai.inferers.SlidingWindowInferer`.

    Args:
        roi_size: window in voxels, one number for each axis of the network; none or below 1 for all of the image.
        overlap: part of a window that the next one repeats, one for all axes or one each.
        batch: windows for each call of the network.
        mode: "constant" or "gaussian".
        sigma_scale: of the weights, as part of the window.
        padding_mode: "constant", "reflect", "replicate" or "circular", where the image is smaller than the window.
        cval: what constant padding is made of.
        slice_axis: axis along which a network of two dimensions sees slice after slice; None for three dimensions.
    """

    roi_size: tuple[int, ...]
    overlap: tuple[float, ...]
    batch: int = 1
    mode: str = "constant"
    sigma_scale: float | tuple[float, ...] = 0.125
    padding_mode: str = "constant"
    cval: float = 0.0
    slice_axis: int | None = None

    @property
    def axis(self) -> int:
        """Return the axis along which slices become final; sums are MONAI's, whose windows run along the first one."""
        return 0 if self.slice_axis is None else self.slice_axis

    def window_vox(self, size: Shape) -> Shape:
        """Return the window on an image of a size."""
        roi = list(self.roi_size)
        if self.slice_axis is not None:
            roi.insert(self.slice_axis, 1)
        return triple(int(n) for n in fall_back_tuple(roi, size))

    def overlaps(self) -> tuple[float, float, float]:
        """Return the overlap along each axis."""
        return triple(self.overlap * 3 if len(self.overlap) == 1 else self.overlap)

    def weights(self, window_vox: Shape, device: torch.device) -> torch.Tensor:
        """Return the weight of each voxel of a window, float32."""
        map_: torch.Tensor = compute_importance_map(
            window_vox, mode=self.mode, sigma_scale=self.sigma_scale, device=device, dtype=torch.float32
        )
        return map_


def blended(
    image: torch.Tensor, network: Callable[..., Any], windows: BlendedWindows, check: Callable[[int], None]
) -> Iterator[Slab]:
    """Yield the scores of an image slab by slab, as `sliding_window_inference` would return them as a whole.

    Args:
        image: (1, C, i, j, k) float32.
        network: gives scores (B, classes, *window), which are changed.
        windows: how they lie.
        check: is told the number of classes before anything is held.

    Raises:
        BundleError: the network gives values that are not finite, or anything but one score for each class and voxel.
    """
    size = triple(image.shape[2:])
    window = windows.window_vox(size)
    padded, before = _padded(image, window, windows)
    whole = triple(padded.shape[2:])
    starts = [axis_starts(n, w, o) for n, w, o in zip(whole, window, windows.overlaps(), strict=True)]
    corners = _corners(starts, windows.axis)
    ring: _Ring | None = None
    for first in range(0, len(corners), windows.batch):
        batch = corners[first : first + windows.batch]
        parts = [padded[(slice(None), slice(None), *_window_spans(corner, window))] for corner in batch]
        scores = _scores(network, torch.cat(parts) if windows.batch > 1 else parts[0], windows.slice_axis)
        if ring is None:
            check(scores.shape[1])
            ring = _Ring(_swept(whole, windows.axis), windows.weights(window, image.device), windows.axis, scores)
        for corner, one in zip(batch, scores, strict=True):
            yield from _on_image_only(ring.finished(corner[windows.axis]), before, size, windows.axis)
            ring.add(corner, one)
    if ring is not None:
        yield from _on_image_only(ring.finished(whole[windows.axis]), before, size, windows.axis)


def at_once(image: torch.Tensor, network: Callable[..., Any], check: Callable[[int], None]) -> Iterator[Slab]:
    """Yield the scores of an image that the network sees as a whole, as MONAI's `SimpleInferer` lets it."""
    scores = _scores(network, image, None)
    check(scores.shape[1])
    yield 0, scores[0]


class _Ring:
    """Weighted sums of the windows that reach the slices in work; `first` is the lowest of these."""

    def __init__(self, size: Shape, weights: torch.Tensor, axis: int, scores: torch.Tensor) -> None:
        self.axis, self.size, self.first = axis, size, 0
        self.weights = weights.movedim(axis, 0)
        shape = (self.weights.shape[0], *size[1:])
        self.total = torch.zeros((scores.shape[1], *shape), device=scores.device)
        self.weight = torch.zeros(shape, device=scores.device)

    def add(self, corner: Shape, scores: torch.Tensor) -> None:
        """Add one window (classes, *window), which is weighted in place; no voxel of it lies before `first`."""
        spans = _window_spans(_swept(corner, self.axis), triple(self.weights.shape))
        target = (slice(spans[0].start - self.first, spans[0].stop - self.first), *spans[1:])
        self.total[(slice(None), *target)] += scores.movedim(1 + self.axis, 1).mul_(self.weights)
        self.weight[target] += self.weights

    def finished(self, until: int) -> Iterator[Slab]:
        """Yield the slices below `until`, in pieces that may be changed, and make room for as many new ones."""
        count = until - self.first
        step = max(1, PIECE_SCORES // self.total[:, 0].numel())
        for start in range(0, count, step):
            span = slice(start, min(start + step, count))
            yield self.first + start, self.total[:, span] / self.weight[span]
        for buffer in (self.total.movedim(1, 0), self.weight) if count else ():
            for index in range(len(buffer) - count):
                buffer[index] = buffer[index + count]
            buffer[max(0, len(buffer) - count) :] = 0
        self.first = until


def _padded(image: torch.Tensor, window: Shape, windows: BlendedWindows) -> tuple[torch.Tensor, Shape]:
    """Return the image at least as large as a window, and how many voxels lie before it along each axis."""
    missing = [max(w - n, 0) for w, n in zip(window, image.shape[2:], strict=True)]
    before = triple(n // 2 for n in missing)
    if not any(missing):
        return image, before
    padding = [side for n, low in zip(reversed(missing), reversed(before), strict=True) for side in (low, n - low)]
    value = windows.cval if windows.padding_mode == "constant" else None
    try:
        return F.pad(image, padding, mode=windows.padding_mode, value=value), before
    except RuntimeError as error:
        raise InputError(
            f"an image of {tuple(image.shape[2:])} voxels cannot be made as large as a window of {window} by padding "
            f"mode {windows.padding_mode}; it is too small for this bundle."
        ) from error


def _scores(network: Callable[..., Any], inputs: torch.Tensor, slice_axis: int | None) -> torch.Tensor:
    flat = inputs if slice_axis is None else inputs.squeeze(2 + slice_axis)
    found = network(flat)
    if not isinstance(found, torch.Tensor) or found.shape[0] != flat.shape[0] or found.shape[2:] != flat.shape[2:]:
        given = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise BundleError(
            f"the network gives {given} for windows {tuple(flat.shape)}, expected a score for each class and voxel."
        )
    if not is_finite(found):
        raise BundleError("the network gives values that are not finite; its weights are damaged or do not fit.")
    return found.float() if slice_axis is None else found.float().unsqueeze(2 + slice_axis)


def _corners(starts: Sequence[list[int]], axis: int) -> list[Shape]:
    """Return where windows begin, those along the swept axis outermost, else in MONAI's order."""
    swept = [starts[axis], *(one for other, one in enumerate(starts) if other != axis)]
    corners = []
    for first, *rest in product(*swept):
        rest.insert(axis, first)
        corners.append(triple(rest))
    return corners


def _swept(sizes: Shape, axis: int) -> Shape:
    return triple([sizes[axis], *(n for other, n in enumerate(sizes) if other != axis)])


def _window_spans(corner: Shape, window: Shape) -> tuple[slice, slice, slice]:
    return triple(slice(start, start + n) for start, n in zip(corner, window, strict=True))


def _on_image_only(slabs: Iterator[Slab], before: Shape, size: Shape, axis: int) -> Iterator[Slab]:
    """Yield what of some slabs lies on the image, not on its padding."""
    low, *across = _swept(before, axis)
    count, *extent = _swept(size, axis)
    spans = [slice(start, start + n) for start, n in zip(across, extent, strict=True)]
    for first, scores in slabs:
        kept = slice(max(0, low - first), max(0, low + count - first))
        part = scores[(slice(None), kept, *spans)]
        if part.shape[1]:
            yield max(0, first - low), part
