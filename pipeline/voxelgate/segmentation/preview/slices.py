"""Which slices of a sketch are shown: evenly spread over the labels, moved to where structures are widest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.labels import LabelTable
from voxelgate.core.structures import structure_boxes
from voxelgate.core.view_planes import PLANES, ViewPlane
from voxelgate.segmentation.preview.cells import Lattice, Sketch

Cuts = npt.NDArray[np.float64]

SLICES = {"axial": 18, "coronal": 14, "sagittal": 14}
"""Most slices of each plane."""

LEAST_SEEN = 0.03
"""Share of a plane that is not black where there is a body; the table and the head rest are less."""

MARGIN = 0.1
"""Part of the labels' extent that is shown beyond either end."""

Shown = tuple[range, range, range]
"""Cells of a sketch that are shown, along each of its axes."""


def planes_of(lattice: Lattice) -> tuple[ViewPlane, ...]:
    """Return the planes that are shown: of an image of one slice, that of the slice."""
    flat = [plane for plane in PLANES if lattice.weights[plane.axis].shape[1] == 1]
    return tuple(flat[:1]) or PLANES


@dataclass(frozen=True, eq=False)
class SlicePlace:
    """Where a structure lies in the cells of a sketch.

    Args:
        voxels: about how many cells it fills.
        spans: the cells it touches, along each axis.
        cuts: for each of these cells, the size of its cut there, relative to the largest one.
    """

    voxels: int
    spans: Shown
    cuts: tuple[Cuts, Cuts, Cuts]

    def widest(self, axis: int) -> int:
        """Return the cell in which it is cut widest."""
        return self.spans[axis][int(self.cuts[axis].argmax())]

    def cut(self, axis: int, cell: int) -> float:
        """Return the relative size of its cut in any cell."""
        span = self.spans[axis]
        return float(self.cuts[axis][span.index(cell)]) if cell in span else 0.0


def places_of(lattice: Lattice, labels: npt.NDArray[Any], table: LabelTable) -> list[SlicePlace]:
    """Return the place of each structure in a label map, small ones first."""
    turned = labels.transpose(lattice.axes)
    centres = [[lattice.source_index(axis, cell) for cell in range(len(lattice.weights[axis]))] for axis in range(3)]
    cells = turned[np.ix_(*centres)]
    places = []
    for value, box in structure_boxes(turned, len(table.names) - 1).items():
        touched = [np.flatnonzero(lattice.weights[axis][:, box[axis]].any(axis=1)) for axis in range(3)]
        x, y, z = (range(int(cell[0]), int(cell[-1]) + 1) for cell in touched)
        inside = cells[np.ix_(x, y, z)] == value
        cuts = [_relative(inside.sum(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        places.append(SlicePlace(int(inside.sum()), (x, y, z), (cuts[0], cuts[1], cuts[2])))
    return sorted(places, key=lambda place: place.voxels)


def _relative(cut: npt.NDArray[np.int64]) -> Cuts:
    """Return cuts relative to the largest; where no centre of a cell met the structure, its middle counts."""
    if not cut.any():
        cut = np.eye(len(cut), dtype=np.int64)[len(cut) // 2]
    relative: Cuts = cut / cut.max()
    return relative


def shown_box(sketch: Sketch, places: Sequence[SlicePlace]) -> Shown:
    """Return the cells that are shown along each axis: those of the labels, and what is not black all around."""
    spans = []
    for axis in range(3):
        seen = np.flatnonzero((sketch.cells > 0).mean(axis=tuple({0, 1, 2} - {axis})) > LEAST_SEEN)
        ends = [*seen[:1], *seen[-1:], *(place.spans[axis][end] for place in places for end in (0, -1))]
        spans.append(range(int(min(ends, default=0)), int(max(ends, default=sketch.cells.shape[axis] - 1)) + 1))
    return spans[0], spans[1], spans[2]


def chosen_cells(plane: ViewPlane, shown: range, places: Sequence[SlicePlace]) -> list[int]:
    """Return the cells whose slices are shown, evenly spread and then moved to where structures are widest."""
    low = min((place.spans[plane.axis][0] for place in places), default=shown[0])
    high = max((place.spans[plane.axis][-1] for place in places), default=shown[-1])
    margin = round(MARGIN * (high - low + 1)) + 1
    low, high = max(shown[0], low - margin), min(shown[-1], high + margin)
    count = min(SLICES[plane.name], high - low + 1)
    free = sorted(set(np.linspace(low, high, count).round().astype(int).tolist()))
    fixed: list[int] = []
    for cell in dict.fromkeys(place.widest(plane.axis) for place in places):
        if free:
            free.remove(min(free, key=lambda other: (abs(other - cell), other)))
            fixed.append(cell)
    return sorted({*free, *fixed})


def start_of(plane: ViewPlane, cells: Sequence[int], places: Sequence[SlicePlace]) -> int:
    """Return which slice cuts most structures widely; by their roots, so that two fair cuts beat one large one."""
    if not places:
        return len(cells) // 2
    return int(np.argmax([sum(place.cut(plane.axis, cell) ** 0.5 for place in places) for cell in cells]))
