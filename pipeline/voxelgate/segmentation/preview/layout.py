"""How the slices of a preview lie in its picture and what they show: records that are checked when they are made."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from voxelgate.core.view_planes import PLANES, PlaneName
from voxelgate.segmentation.preview.cells import FLAT_PX
from voxelgate.segmentation.preview.slices import Shown

MOST_SLICES = 64
"""More than any plane has."""

MOST_SOURCE_SLICES = 2**31
"""No image has more voxels along an axis."""

Count = Annotated[int, Field(ge=1, le=FLAT_PX)]
Cell = Annotated[int, Field(ge=0, lt=FLAT_PX)]
SourceSlice = Annotated[int, Field(ge=1, le=MOST_SOURCE_SLICES)]
Byte = Annotated[int, Field(ge=0, le=255)]
Mm = Annotated[float, Field(gt=0)]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_VIEW_OF = {plane.name: plane for plane in PLANES}


@dataclass(frozen=True, config=_STRICT)
class PlaneLayout:
    """The slices of one plane, which lie below each other.

    Args:
        name: of the plane.
        edges: letters at the left, right, upper and lower edge; none of a picture, which shows no sides of a patient.
        x: left edge in the picture of all planes, pixels.
        width: of a slice, pixels.
        height: of a slice, pixels.
        size_mm: width and height of a slice.
        cells: of each slice, along the axis that the plane cuts, of the shown ones.
        shown: how many those are.
        source: number of each slice in the source, from 1.
        source_slices: how many the source has.
        start: slice to begin with.

    Raises:
        ValueError: they contradict each other.
    """

    name: PlaneName
    edges: Annotated[str, Field(pattern="^([RLAPSI]{4})?$")]
    x: Annotated[int, Field(ge=0)]
    width: Count
    height: Count
    size_mm: tuple[Mm, Mm]
    cells: Annotated[tuple[Cell, ...], Field(min_length=1, max_length=MOST_SLICES)]
    shown: Count
    source: tuple[SourceSlice, ...]
    source_slices: SourceSlice
    start: Cell

    def __post_init__(self) -> None:
        """Refuse slices that contradict each other."""
        is_rising = all(one < other for one, other in pairwise(self.cells))
        are_there = self.cells[-1] < self.shown and self.start < len(self.cells) == len(self.source)
        if not (is_rising and are_there and max(self.source) <= self.source_slices):
            raise ValueError(f"the slices of the {self.name} plane contradict each other")


@dataclass(frozen=True, config=_STRICT)
class Layout:
    """What lies where in a preview; it says nothing of the patient.

    Args:
        planes: side by side, from the left.
        lattice: all cells of the image, towards right, front and head.
        first: the first shown one of each axis.
        bits: of a pixel's label, 8 or 16.
        names: of the structures, from label 1; empty where there is none.
        window: values of the image that are black and white.
        is_hu: whether those are HU.
        gates: levels of the gates whose attention there is.
        is_picture: whether the image is a picture, which is measured in pixels.
        colours: of the structures; none if it does not say.

    Raises:
        ValueError: the planes contradict each other.
    """

    planes: Annotated[tuple[PlaneLayout, ...], Field(min_length=1, max_length=3)]
    lattice: tuple[Count, Count, Count]
    first: tuple[Cell, Cell, Cell]
    bits: Literal[8, 16]
    names: tuple[str, ...]
    window: tuple[float, float]
    is_hu: bool
    gates: tuple[Cell, ...] = ()
    is_picture: bool = False
    colours: tuple[tuple[Byte, Byte, Byte], ...] = ()

    def __post_init__(self) -> None:
        """Refuse planes that contradict each other."""
        edges = [0, *(plane.x + plane.width for plane in self.planes)]
        lengths = {
            (axis, length)
            for plane in self.planes
            for axis, length in zip(
                (_VIEW_OF[plane.name].axis, *_VIEW_OF[plane.name].others),
                (plane.shown, plane.width, plane.height),
                strict=True,
            )
        }
        is_box = len(lengths) == len(self.first)
        if not is_box or any(span[-1] >= cells for span, cells in zip(self.shown, self.lattice, strict=True)):
            raise ValueError("the planes show more cells than there are, or not the same ones")
        if [plane.x for plane in self.planes] != edges[:-1] or len(set(self.plane_of)) != len(self.planes):
            raise ValueError("the planes do not lie side by side")
        if len(self.colours) not in {0, len(self.names)}:
            raise ValueError(f"{len(self.colours)} colours of {len(self.names)} structures")

    @property
    def plane_of(self) -> dict[str, PlaneLayout]:
        """Return each plane by its name."""
        return {plane.name: plane for plane in self.planes}

    @property
    def shown(self) -> Shown:
        """Return the cells that are shown, along each axis."""
        plane = self.planes[0]
        across, down = _VIEW_OF[plane.name].others
        count = {_VIEW_OF[plane.name].axis: plane.shown, across: plane.width, down: plane.height}
        x, y, z = (range(first, first + count[axis]) for axis, first in enumerate(self.first))
        return x, y, z

    @property
    def size_px(self) -> tuple[int, int]:
        """Return the width and the height of the picture in which all slices lie."""
        return sum(plane.width for plane in self.planes), max(plane.height * len(plane.cells) for plane in self.planes)
