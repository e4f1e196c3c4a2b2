"""Which slices of a case are drawn, and how large: those in which its structures are cut widest, and what is around."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from voxelgate.core.geometry import Box, Grid, Shape, counts_pixels
from voxelgate.core.structures import structure_boxes
from voxelgate.core.view_planes import PLANES, ViewPlane

Labels = npt.NDArray[np.integer[Any]]

VIEW_PX = 320
"""Longest side of a slice; three of them stand side by side on a page."""

PICTURE_PX = 720
"""The same of a picture, which has but one plane."""

MOST_PX_PER_VOXEL = 16.0

MARGIN = 0.3
"""Part of the structures' extent that is shown beyond either end."""

LEAST_MARGIN_MM = 10.0
LEAST_EXTENT_MM = 60.0
"""A lesion of some mm alone would not tell anybody where it is."""


@dataclass(frozen=True, eq=False)
class SliceFrame:
    """A slice through a case, cut to what is shown.

    Args:
        plane: of the patient.
        slab: the voxels of the slice that are shown, on the grid of the case; one along an axis.
        grid: of the case.
        px_per_mm: pixels of a millimetre.
    """

    plane: ViewPlane
    slab: Box
    grid: Grid
    px_per_mm: float

    @property
    def scale(self) -> tuple[float, float]:
        """Return the pixels of a voxel, across and down."""
        spacing_mm = _turned_spacing(self.grid)
        across, down = self.plane.others
        return self.px_per_mm * spacing_mm[across], self.px_per_mm * spacing_mm[down]

    def as_seen(self, cut: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn what was cut out by `slab`, (I, J, K), to rows and columns as a person sees them."""
        turned = nib.apply_orientation(cut, nib.io_orientation(self.grid.affine))
        seen: npt.NDArray[Any] = turned.take(0, axis=self.plane.axis)[::-1, ::-1].T
        return seen

    @property
    def size_px(self) -> tuple[int, int]:
        """Return width and height."""
        axes = _source_axes(self.grid)
        voxels = [self.slab[axes[axis]].stop - self.slab[axes[axis]].start for axis in self.plane.others]
        width, height = (max(1, round(count * side)) for count, side in zip(voxels, self.scale, strict=True))
        return width, height

    @property
    def place(self) -> tuple[int, int]:
        """Return the number of the slice, from 1, and how many there are."""
        source = _source_axes(self.grid)[self.plane.axis]
        return self.slab[source].start + 1, self.grid.shape[source]

    def points_mm(self) -> npt.NDArray[np.float64]:
        """Return where the middle of each pixel lies, (3, rows, columns) RAS+ mm."""
        width, height = self.size_px
        across, down = self.plane.others
        steps = {
            across: (np.arange(width) + 0.5) / self.scale[0] - 0.5,
            down: ((np.arange(height) + 0.5) / self.scale[1] - 0.5)[:, None],
        }
        points = np.empty((3, height, width))
        for source, (axis, sign) in enumerate(nib.io_orientation(self.grid.affine).astype(int).tolist()):
            span = self.slab[source]
            first = span.stop - 1 if sign > 0 else span.start  # a slice is seen from its right or upper end
            points[source] = first - sign * steps.get(axis, 0.0)
        placed = np.tensordot(self.grid.affine[:3, :3], points, 1)
        return np.asarray(placed + self.grid.affine[:3, 3, None, None])


def frames_of(labels: Labels, grid: Grid, highest: int) -> tuple[SliceFrame, ...]:
    """Return the slices of a case that show its structures best: of a picture the whole, else one of each plane.

    Args:
        labels: label values, (I, J, K); those below 1 and above `highest` are no structures. Without any, the middle
            of the image is shown.
        grid: where they lie.
        highest: label value.
    """
    orientation = nib.io_orientation(grid.affine)
    turned = np.asarray(nib.apply_orientation(labels, orientation))
    structures = list(_slice_shares(turned, highest))
    spacing = _turned_spacing(grid)
    shape = (turned.shape[0], turned.shape[1], turned.shape[2])
    is_picture = counts_pixels(grid)
    shown = _box_drawn([] if is_picture else structures, shape, spacing)
    longest_px = PICTURE_PX if is_picture else VIEW_PX
    longest_mm = max(len(span) * mm for span, mm in zip(shown, spacing, strict=True))
    px_per_mm = min(longest_px / longest_mm, MOST_PX_PER_VOXEL / min(spacing))
    frames = []
    for plane in _planes_drawn(shape):
        at = _widest(structures, plane.axis, shown[plane.axis])
        spans = [range(at, at + 1) if axis == plane.axis else span for axis, span in enumerate(shown)]
        frames.append(SliceFrame(plane, _source_box(spans, shape, orientation), grid, px_per_mm))
    return tuple(frames)


def _source_axes(grid: Grid) -> list[int]:
    """Return the grid's axis that runs to the right, to the front and to the head, as nearly as they do."""
    return [int(axis) for axis in np.argsort(nib.io_orientation(grid.affine)[:, 0])]


def _turned_spacing(grid: Grid) -> list[float]:
    return [grid.spacing_mm[axis] for axis in _source_axes(grid)]


def _planes_drawn(shape: Shape) -> Sequence[ViewPlane]:
    """Return the planes that are drawn: of an image of one slice, that of the slice."""
    flat = [plane for plane in PLANES if shape[plane.axis] == 1]
    return flat[:1] or PLANES


@dataclass(frozen=True, eq=False)
class _SliceShares:
    """How much of a structure each slice of each axis holds, relative to the widest, from the first of its slices."""

    starts: tuple[int, int, int]
    shares: tuple[npt.NDArray[np.float64], ...]

    def share(self, axis: int, at: int) -> float:
        inside = at - self.starts[axis]
        return float(self.shares[axis][inside]) if 0 <= inside < len(self.shares[axis]) else 0.0


def _slice_shares(turned: Labels, highest: int) -> Iterator[_SliceShares]:
    for value, box in structure_boxes(turned.clip(min=0), highest).items():
        inside = turned[box] == value
        counts = [inside.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
        starts = (box[0].start, box[1].start, box[2].start)
        yield _SliceShares(starts, tuple(np.asarray(count / count.max()) for count in counts))


def _box_drawn(structures: Sequence[_SliceShares], shape: Shape, spacing: Sequence[float]) -> list[range]:
    """Return what is shown along each axis: the structures, and something around them."""
    if not structures:
        return [range(count) for count in shape]
    spans = []
    for axis, (count, mm) in enumerate(zip(shape, spacing, strict=True)):
        low = min(one.starts[axis] for one in structures)
        high = max(one.starts[axis] + len(one.shares[axis]) for one in structures)
        extent_mm = (high - low) * mm
        margin_mm = max(LEAST_MARGIN_MM, MARGIN * extent_mm, (LEAST_EXTENT_MM - extent_mm) / 2)
        margin = round(margin_mm / mm)
        spans.append(range(max(0, low - margin), min(count, high + margin)))
    return spans


def _widest(structures: Sequence[_SliceShares], axis: int, span: range) -> int:
    """Return which slice cuts most structures widely; by their roots, the middle one of equals."""
    widths = [sum(one.share(axis, at) ** 0.5 for one in structures) for at in span]
    widest = [at for at, width in zip(span, widths, strict=True) if width == max(widths)]
    return widest[len(widest) // 2]


def _source_box(spans: Sequence[range], shape: Shape, orientation: npt.NDArray[np.float64]) -> Box:
    """Return spans of axes to the right, front and head as a box of the grid's own axes."""
    sides = []
    for axis, sign in orientation.astype(int).tolist():
        span, count = spans[axis], shape[axis]
        sides.append(slice(span.start, span.stop) if sign > 0 else slice(count - span.stop, count - span.start))
    return sides[0], sides[1], sides[2]
