"""Where the voxels of a source grid lie in a network grid that becomes known slice by slice along one axis."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from voxelgate.core.geometry import Affine, Grid, Shape

Integers = npt.NDArray[np.int64]
Positions = npt.NDArray[np.floating[Any]]
PlaneBox = tuple[tuple[int, int], tuple[int, int]]
"""First and last cell along the second and third swept axis."""

SNAP_VOX = 1e-3
"""Positions this close to a voxel centre count as on it, and axes that stray less than this count as parallel.

Float32 headers and products of affines leave about 1e-4 voxel at the far corner of a 1000-slice volume; a weight below
1e-3 changes no label that means anything.
"""

OUTSIDE_VOX = 0.5 + SNAP_VOX
"""A source voxel further than this from the centres of the network grid is background.

MONAI's `Spacing` rounds the number of voxels, so that the last source voxel may lie half a voxel beyond the last one.
"""

GROUP_VOXELS = 2**20
"""Source voxels that are handled at a time; their positions and weights take about 100 MB."""


@dataclass(frozen=True, eq=False)
class Voxels:
    """Some voxels of the source grid, each with the cell of the network grid it lies in.

    A cell is named by its lowest corner. Either a mesh (three arrays of shape (n, 1, 1), (1, n, 1), (1, 1, n)), or a
    list (three arrays of one length).

    Args:
        at: index of the voxels in `Placement.view` of a result.
        low: swept index of the cell's lowest corner; the first counts from the first slice that was asked for.
        part: how far towards the next voxel, 0 to 1, float32.
    """

    at: Any
    low: tuple[Integers, Integers, Integers]
    part: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]

    def pick(self, cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the value of each voxel's cell, in the shape of `at`."""
        first, second, third = self.low
        if first.ndim == 1:
            flat = (first * cells.shape[1] + second) * cells.shape[2] + third
            picked: npt.NDArray[Any] = np.ascontiguousarray(cells).reshape(-1).take(flat)
            return picked
        return cells.take(first.ravel(), 0).take(third.ravel(), 2).take(second.ravel(), 1)

    def among(self, mask: npt.NDArray[np.bool_]) -> "Voxels":
        """Return those voxels as a list, `at` being their flat index in the mask."""
        flat = np.flatnonzero(mask)
        if self.low[0].ndim == 1:
            low, part = [axis[flat] for axis in self.low], [axis[flat] for axis in self.part]
        else:
            index = np.unravel_index(flat, mask.shape)
            low = [axis.ravel()[n] for axis, n in zip(self.low, index, strict=True)]
            part = [axis.ravel()[n] for axis, n in zip(self.part, index, strict=True)]
        return Voxels(flat, (low[0], low[1], low[2]), (part[0], part[1], part[2]))


class Placement(Protocol):
    """How a source grid lies in a swept network grid."""

    @property
    def is_between(self) -> tuple[bool, bool, bool]:
        """Return whether voxels lie between those of the network along each swept axis; cells have no extent else."""
        ...

    def zeros(self, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return arrays (count, I, J, K) on the source grid, each in the order of a NIfTI file: I runs fastest."""
        ...

    def view(self, result: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of one of these arrays that `Voxels.at` indexes."""
        ...

    def voxels(self, first: int, last: int, box: PlaneBox | None) -> Iterator[Voxels]:
        """Yield, in groups, the voxels from slice `first` to below slice `last`; also on it if it is the final one.

        Over all slices each voxel within the network grid comes exactly once, those outside never. With a `box`,
        voxels in cells outside it may be left out.
        """
        ...

    def voxels_per_slice(self) -> float:
        """Return about how many source voxels lie between two slices."""
        ...


def place(network: Grid, source: Grid, axis: int) -> Placement:
    """Say how `source` lies in `network` swept along `axis`.

    The swept order of the network's axes is `axis` first, then the others in their own order.
    """
    order = [axis, *(other for other in range(3) if other != axis)]
    to_network = (np.linalg.inv(network.affine) @ source.affine)[order]
    size = (network.shape[order[0]], network.shape[order[1]], network.shape[order[2]])
    axis_of = np.abs(to_network[:, :3]).argmax(axis=1)
    across = to_network[:, :3].copy()
    across[range(3), axis_of] = 0
    if len(set(axis_of)) == 3 and (np.abs(across) * source.shape).max() <= SNAP_VOX:
        lines = [
            _line(np.arange(source.shape[along]) * float(row[along]) + float(row[3]), length)
            for row, along, length in zip(to_network, axis_of, size, strict=True)
        ]
        axes = (int(axis_of[0]), int(axis_of[1]), int(axis_of[2]))
        return _Parallel(axes, (lines[0], lines[1], lines[2]), size, source.shape)
    return _Oblique(to_network, source.shape, size)


@dataclass(frozen=True, eq=False)
class _Line:
    """Where the voxels along one source axis lie along the swept axis parallel to it, those inside only."""

    start: int
    low: Integers
    part: npt.NDArray[np.float32]
    is_between: bool


def in_file_order(count: int, shape: Shape, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros (count, I, J, K), each in the order of a NIfTI file: I runs fastest."""
    return np.zeros((count, *reversed(shape)), dtype).transpose(0, 3, 2, 1)


def _line(position: Positions, size: int) -> _Line:
    nearest = np.rint(position)
    snapped = np.where(np.abs(position - nearest) < SNAP_VOX, nearest, position)
    inside = np.flatnonzero((snapped >= -OUTSIDE_VOX) & (snapped <= size - 1 + OUTSIDE_VOX))
    clipped = np.clip(snapped[inside], 0, size - 1)
    is_between = bool((clipped != np.rint(clipped)).any())
    low, part = _cells(clipped, size, is_between=is_between)
    return _Line(int(inside[0]) if len(inside) else 0, low, part, is_between)


def _cells(position: Positions, size: int, *, is_between: bool) -> tuple[Integers, npt.NDArray[np.float32]]:
    """Return lowest corner and weight of the next, so that the next corner always exists."""
    low = np.minimum(position.astype(np.int64), size - 1 - is_between)
    return low, (position - low).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Parallel:
    """A source whose axes run along those of the network, in any order and direction: three lines say it all."""

    source_axes: Shape
    lines: tuple[_Line, _Line, _Line]
    size: Shape
    shape: Shape

    @property
    def is_between(self) -> tuple[bool, bool, bool]:
        return self.lines[0].is_between, self.lines[1].is_between, self.lines[2].is_between

    def zeros(self, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return in_file_order(count, self.shape, dtype)

    def view(self, result: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return result.transpose(self.source_axes)

    def voxels_per_slice(self) -> float:
        first, second, third = (len(line.low) for line in self.lines)
        return first * second * third / self.size[0]

    def voxels(self, first: int, last: int, box: PlaneBox | None) -> Iterator[Voxels]:
        beyond = last + (last == self.size[0] - 1)
        ranges = [(first, beyond), *((low, high + 1) for low, high in box or ((0, self.size[1]), (0, self.size[2])))]
        planes, rows, columns = (_within(line.low, *ends) for line, ends in zip(self.lines, ranges, strict=True))
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        if area == 0:
            return
        step = max(1, GROUP_VOXELS // area)
        for start in range(planes.start, planes.stop, step):
            spans = (slice(start, min(start + step, planes.stop)), rows, columns)
            at = tuple(
                slice(line.start + span.start, line.start + span.stop)
                for line, span in zip(self.lines, spans, strict=True)
            )
            low = np.ix_(*(line.low[span] for line, span in zip(self.lines, spans, strict=True)))
            part = np.ix_(*(line.part[span] for line, span in zip(self.lines, spans, strict=True)))
            yield Voxels(at, (low[0] - first, low[1], low[2]), (part[0], part[1], part[2]))


def _within(low: Integers, start: int, stop: int) -> slice:
    """Return where a rising or falling line of cells lies in [start, stop)."""
    hits = np.flatnonzero((low >= start) & (low < stop))
    return slice(int(hits[0]), int(hits[-1]) + 1) if len(hits) else slice(0, 0)


class _Oblique:
    """A source that is turned against the network in any way.

    Along one source axis, the one that runs most along the sweep, the voxels of each column pass the slices in order;
    those between two slices are an interval of the column, so none is looked at twice.
    """

    def __init__(self, to_swept: Affine, shape: Shape, size: Shape) -> None:
        self.size, self.shape = size, shape
        self.is_between = (size[0] > 1, size[1] > 1, size[2] > 1)
        self.along = int(np.abs(to_swept[0, :3]).argmax())
        strides = np.array((1, shape[0], shape[0] * shape[1]))
        across = [axis for axis in range(3) if axis != self.along]
        grid = np.indices([shape[axis] for axis in across]).reshape(2, -1)
        self.start = to_swept[:3, across] @ grid + to_swept[:3, 3:]  # swept position of each column's voxel 0
        self.step = to_swept[:3, self.along]
        self.flat = strides[across] @ grid
        self.stride = int(strides[self.along])

    def zeros(self, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return in_file_order(count, self.shape, dtype)

    def view(self, result: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return result.T.reshape(-1)

    def voxels_per_slice(self) -> float:
        return float(min(math.prod(self.shape) / self.size[0], self.flat.size / abs(self.step[0])))

    def voxels(self, first: int, last: int, box: PlaneBox | None) -> Iterator[Voxels]:
        start = self._passed(first if first > 0 else -OUTSIDE_VOX)
        stop = self._passed(last if last < self.size[0] - 1 else last + OUTSIDE_VOX)
        counts = np.where(self._may_reach(box, start, stop), stop - start, 0) if box else stop - start
        total = np.concatenate(([0], counts.cumsum()))
        edges = np.searchsorted(total, np.arange(0, total[-1] + GROUP_VOXELS, GROUP_VOXELS))
        for low, high in pairwise(edges):
            columns = np.arange(low, min(high, len(counts)))
            columns = np.repeat(columns, counts[columns])
            order = np.arange(total[low], total[low] + len(columns)) - total[columns] + start[columns]
            index = order if self.step[0] > 0 else self.shape[self.along] - 1 - order
            yield self._inside(columns, index, (first, last), box)

    def _may_reach(self, box: PlaneBox, start: Integers, stop: Integers) -> npt.NDArray[np.bool_]:
        """Return which columns may reach a box between two of their voxels, both in sweep order."""
        is_near = np.ones(len(start), dtype=bool)
        for (low, high), origin, step in zip(box, self.start[1:], self.step[1:], strict=True):
            ends = [origin + step * (n if self.step[0] > 0 else self.shape[self.along] - 1 - n) for n in (start, stop)]
            is_near &= (np.maximum(*ends) >= low - OUTSIDE_VOX) & (np.minimum(*ends) <= high + 1 + OUTSIDE_VOX)
        return is_near

    def _passed(self, slice_vox: float) -> Integers:
        """Return for each column how many of its voxels lie before a swept position, counted in sweep order."""
        count = self.shape[self.along]
        crossing = (slice_vox - self.start[0]) / self.step[0]
        passed = np.ceil(crossing) if self.step[0] > 0 else count - 1 - np.floor(crossing)
        whole: Integers = np.clip(passed, 0, count).astype(np.int64)
        return whole

    def _inside(self, columns: Integers, index: Integers, slices: tuple[int, int], box: PlaneBox | None) -> Voxels:
        """Return the voxels of these columns and indices that lie in the network grid and the box."""
        is_kept = np.ones(len(columns), dtype=bool)
        positions = [start.take(columns) + step * index for start, step in zip(self.start, self.step, strict=True)]
        limits = ((0, self.size[0]), *(box or ((0, self.size[1]), (0, self.size[2]))))
        for position, (low, high), size in zip(positions, limits, self.size, strict=True):
            is_kept &= (position >= low - OUTSIDE_VOX) & (position <= min(high + 1, size - 1) + OUTSIDE_VOX)
        kept = np.flatnonzero(is_kept)
        positions[0] -= slices[0]
        known = (slices[1] - slices[0] + 1, self.size[1], self.size[2])
        cells = [
            _cells(np.clip(position.take(kept), 0, size - 1), size, is_between=is_between)
            for position, size, is_between in zip(positions, known, self.is_between, strict=True)
        ]
        (low_0, part_0), (low_1, part_1), (low_2, part_2) = cells
        at = self.flat.take(columns.take(kept)) + index.take(kept) * self.stride
        return Voxels(at, (low_0, low_1, low_2), (part_0, part_1, part_2))
