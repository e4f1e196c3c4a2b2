"""Run a network window by window along one axis, and give away each slice as soon as no later window touches it."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map

from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.core.geometry import Box, Shape, triple
from voxelgate.inference.restoring.class_scores import ScoreKind

Predictor = Callable[[torch.Tensor], torch.Tensor]

MODES = ("gaussian", "constant")
"""Weights of overlapping windows, those of MONAI's `sliding_window_inference`; sigma is an eighth of the window."""

PIECE_SCORES = 2**25
"""Scores that are given away at a time, at least one slice; 128 MiB."""


@dataclass(frozen=True)
class WindowPlan:
    """Where windows lie on a grid and in which direction they sweep it.

    The places are those of MONAI's `sliding_window_inference`: a window larger than the grid is centred on it and
    padded with 0, others repeat `overlap` of their size, and the last one is pushed back to end with the grid.

    Args:
        size_vox: the network grid.
        window_vox: size of a window.
        overlap: part of a window that the next one repeats, 0 to below 1.
        axis: the axis of the grid along which finished slices are given away.
        mode: weight of a window, falling to its border ("gaussian") or not ("constant").
        batch: windows for each call of the network.
        steps_vox: along each axis a multiple of this lies between two windows, such as the strides of the network, so
            that all windows meet them alike; 1 for MONAI's places.

    Raises:
        UsageError: a value out of its range.
    """

    size_vox: Shape
    window_vox: Shape
    overlap: float = 0.25
    axis: int = 2
    mode: str = "gaussian"
    batch: int = 1
    steps_vox: Shape = (1, 1, 1)

    def __post_init__(self) -> None:
        if len(self.window_vox) != 3 or min(*self.size_vox, *self.window_vox, self.batch) < 1:
            raise UsageError(
                f"windows of {self.window_vox}, {self.batch} at a time, on a grid of {self.size_vox}: expected counts "
                "of at least 1."
            )
        if not 0 <= self.overlap < 1 or self.mode not in MODES or self.axis not in range(3):
            raise UsageError(
                f"overlap {self.overlap}, mode {self.mode!r}, axis {self.axis}: expected 0 to below 1, one of {MODES}, "
                "and 0 to 2."
            )

    @property
    def starts(self) -> tuple[list[int], list[int], list[int]]:
        """Return where windows start along each axis of the grid; below 0 where they are larger than it."""
        return triple(
            axis_starts(size, window, self.overlap, step)
            for size, window, step in zip(self.size_vox, self.window_vox, self.steps_vox, strict=True)
        )

    @property
    def computed_vox(self) -> int:
        """Return the voxels of all windows."""
        return math.prod(self.window_vox) * math.prod(map(len, self.starts))

    @property
    def depth_vox(self) -> int:
        """Return how many slices along the sweep axis are blended at a time."""
        return min(self.window_vox[self.axis], self.size_vox[self.axis])

    @property
    def plane_vox(self) -> tuple[int, int]:
        """Return the extent of a slice: the other two axes, in their order."""
        first, second = (size for axis, size in enumerate(self.size_vox) if axis != self.axis)
        return first, second


def axis_starts(size: int, window: int, overlap: float, step: int = 1) -> list[int]:
    """Return the first voxel of each window along one axis.

    As MONAI places them (`_get_scan_interval` and `dense_patch_slices`), much faster, since a plan tries
    thousands. With a step, a multiple of it lies between two windows, but for the last, which ends with the grid; a
    window larger than the grid starts with it.
    """
    if window >= size:
        return [-((window - size) // 2) if step == 1 else 0]
    interval = max(step, int(window * (1 - overlap)) // step * step)
    count = math.ceil((size - window) / interval) + 1
    return [min(index * interval, size - window) for index in range(count)]


def sweep(
    image: torch.Tensor,
    predict: Predictor,
    plan: WindowPlan,
    *,
    skip_below: float | None = None,
    kind: ScoreKind | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the blended scores of an image slab by slab.

    What comes out is what `sliding_window_inference` returns for the same numbers; only the active windows along the
    sweep axis are held in memory.

    Args:
        image: (1, C, i, j, k) float32, of the size of the plan.
        predict: gives scores (B, classes, *window) for windows (B, C, *window).
        plan: where windows lie.
        skip_below: windows in which no voxel of any channel lies above this value are not run, and voxels in no other
            window become background. Exact only where the network would find nothing in them: a part of a structure
            that reaches into such a window is lost. The first window is always run.
        kind: what the scores are, needed to say "background" in them.

    Yields:
        First slice, and scores (classes, i, j, k) float32: some slices along the sweep axis, all along the others.

    Raises:
        BundleError: the network gives values that are not finite, or another shape than its window.
        InputError: the network refuses the window with a ValueError.
    """
    across = [plan.starts[axis] for axis in range(3) if axis != plan.axis]
    blend: _WindowBlend | None = None
    along = plan.starts[plan.axis]
    for start, following in pairwise((*along, plan.size_vox[plan.axis])):
        corners = [_corner(start, plan.axis, rest) for rest in product(*across)]
        if skip_below is not None:
            seen = [corner for corner in corners if _has_content(image, corner, plan, skip_below)]
            corners = seen if seen or blend is not None else corners[:1]
        for first in range(0, len(corners), plan.batch):
            batch = corners[first : first + plan.batch]
            scores = _checked(predict, torch.cat([_window_of(image, corner, plan) for corner in batch]))
            blend = blend or _WindowBlend(plan, scores, kind or ScoreKind())
            for corner, window in zip(batch, scores, strict=True):
                blend.add(corner, window)
        if blend is not None:
            yield from blend.finished(following)


def body_box(image: torch.Tensor, skip_below: float) -> Box | None:
    """Return the smallest box with all voxels above a value.

    Args:
        image: (1, C, i, j, k).
        skip_below: voxels up to this value are air.

    Returns:
        Slices of the three axes; None if there is nothing but air.
    """
    size = image.shape[2:]
    occupied = [torch.zeros(n, dtype=torch.bool, device=image.device) for n in size]
    for i in range(size[0]):
        plane = (image[0, :, i] > skip_below).any(dim=0)
        occupied[0][i] = plane.any()
        occupied[1] |= plane.any(dim=1)
        occupied[2] |= plane.any(dim=0)
    if not occupied[0].any():
        return None
    hits = [line.nonzero() for line in occupied]
    spans = [slice(int(found[0]), int(found[-1]) + 1) for found in hits]
    return spans[0], spans[1], spans[2]


def widened(box: Box, size: Shape, window_vox: Shape, multiples: Shape) -> Box:
    """Return a box with room for a window, as far as the grid has it.

    It keeps its place in the steps of the network, and ends, where the grid allows, so that the last window does too.
    """
    spans = []
    for span, n, window, step in zip(box, size, window_vox, multiples, strict=True):
        stop = min(n, max(span.stop, span.start + window))
        start = max(0, min(span.start, (stop - window) // step * step))
        beyond = -(stop - start - window) % step
        spans.append(slice(start, stop + beyond if stop + beyond <= n else stop))
    return spans[0], spans[1], spans[2]


def with_margin(box: Box, size: Shape, margin_vox: int, multiples: Shape, mirrored: Collection[int] = ()) -> Box:
    """Return a box with a margin, beginning at a multiple of a step along each axis and longer than the step.

    Where the grid ends, so does the box. Along mirrored axes it also ends a multiple of the step before the grid.
    """
    spans = []
    for axis, (span, n, step) in enumerate(zip(box, size, multiples, strict=True)):
        start = max(0, span.start - margin_vox) // step * step
        stop = min(n, max(span.stop + margin_vox, start + step + 1))
        spans.append(slice(start, n - (n - stop) // step * step if axis in mirrored else stop))
    return spans[0], spans[1], spans[2]


def is_finite(values: torch.Tensor) -> bool:
    """Return whether all values are numbers, without a mask of their size."""
    in_memory_order = sorted(range(values.ndim), key=values.stride, reverse=True)  # six times as fast channels-last
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(values.permute(in_memory_order)))


class _WindowBlend:
    """Weighted sums of the windows that reach the slices in work; `first` is the lowest of these."""

    def __init__(self, plan: WindowPlan, scores: torch.Tensor, kind: ScoreKind) -> None:
        self.plan, self.first = plan, 0
        shape = (plan.depth_vox, *plan.plane_vox)
        self.total = torch.zeros((scores.shape[1], *shape), device=scores.device)
        self.weight = torch.zeros(shape, device=scores.device)
        window = compute_importance_map(plan.window_vox, mode=plan.mode, device=scores.device)
        self.window_weight = window.movedim(plan.axis, 0)
        self.background = torch.as_tensor(kind.background(scores.shape[1]), device=scores.device)[:, None]

    def add(self, corner: Shape, scores: torch.Tensor) -> None:
        """Add one window, (classes, *window)."""
        swept = [corner[self.plan.axis], *(start for axis, start in enumerate(corner) if axis != self.plan.axis)]
        size = (self.plan.size_vox[self.plan.axis], *self.plan.plane_vox)
        kept, target = [], []
        for start, length, n in zip(swept, self.window_weight.shape, size, strict=True):
            low, high = max(0, start), min(n, start + length)
            kept.append(slice(low - start, high - start))
            target.append(slice(low, high))
        target[0] = slice(target[0].start - self.first, target[0].stop - self.first)
        weight = self.window_weight[tuple(kept)]
        self.weight[tuple(target)] += weight
        inside = scores.movedim(1 + self.plan.axis, 1)[(slice(None), *kept)]
        self.total[(slice(None), *target)].addcmul_(inside, weight)

    def finished(self, until: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the slices below `until` and make room for as many new ones."""
        count = until - self.first
        step = max(1, PIECE_SCORES // self.total[:, 0].numel())
        for start in range(0, count, step):
            weight = self.weight[start : min(start + step, count)]
            piece = self.total[:, start : min(start + step, count)] / weight
            is_bare = weight == 0
            if is_bare.any():
                piece[:, is_bare] = self.background
            yield self.first + start, piece.movedim(1, 1 + self.plan.axis)
        for buffer in (self.total.movedim(1, 0), self.weight):
            for index in range(len(buffer) - count):
                buffer[index] = buffer[index + count]
            buffer[max(0, len(buffer) - count) :] = 0
        self.first = until


def _corner(start: int, axis: int, rest: tuple[int, ...]) -> Shape:
    corner = list(rest)
    corner.insert(axis, start)
    return corner[0], corner[1], corner[2]


def _inside_volume(image: torch.Tensor, corner: Shape, plan: WindowPlan) -> torch.Tensor:
    """Return the part of a window that lies on the grid."""
    spans = (slice(max(0, start), start + n) for start, n in zip(corner, plan.window_vox, strict=True))
    return image[(slice(None), slice(None), *spans)]


def _has_content(image: torch.Tensor, corner: Shape, plan: WindowPlan, skip_below: float) -> bool:
    return bool(_inside_volume(image, corner, plan).amax() > skip_below)


def _window_of(image: torch.Tensor, corner: Shape, plan: WindowPlan) -> torch.Tensor:
    """Return a window (1, C, *window), padded with 0 around the grid."""
    inside = _inside_volume(image, corner, plan)
    padding: list[int] = []
    for start, window, n in zip(corner, plan.window_vox, inside.shape[2:], strict=True):
        before = max(0, -start)
        padding = [before, window - n - before, *padding]
    return F.pad(inside, padding) if any(padding) else inside


def _checked(predict: Predictor, windows: torch.Tensor) -> torch.Tensor:
    try:
        scores = predict(windows)
    except ValueError as error:
        raise InputError(f"the network cannot take this volume: {error}.") from error
    if scores.ndim != 5 or scores.shape[0] != windows.shape[0] or scores.shape[2:] != windows.shape[2:]:
        raise BundleError(
            f"the network gives {tuple(scores.shape)} for windows {tuple(windows.shape)}, expected one score for each "
            "class and voxel."
        )
    if not is_finite(scores):
        raise BundleError("the network gives values that are not finite; its weights are damaged or do not fit.")
    return scores.float()
