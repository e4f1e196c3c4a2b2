"""Where structures lie in a label map, and how they looked in those that a bundle was trained on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from voxelgate.core.geometry import Box, Grid, counts_pixels
from voxelgate.core.labels import LabelTable

PIECE_CELLS = 500_000
"""Cells in which pieces are told apart; a larger box is pooled, and gaps of less than a cell then count as closed."""

LEAST_PIECE = 0.005
"""Share of its structure's volume below which a piece is a speck that nobody needs to look at."""

CUT_PLANE = 0.25
"""Part of a structure's mean cross-section that must lie in the outermost plane of the image; less only grazes it."""

LEAST_PLANES = 3
"""Planes along an axis below which every structure touches its ends."""

VOLUME_DIGITS = 4
"""Decimals of a volume in ml that are kept and compared."""

_PICTURE_SIDES = [("left", "right"), ("top", "bottom"), ("front", "back")]
"""Of a picture as everybody sees it, whoever is in it."""

_SIDES = {"L": "left", "R": "right", "P": "back", "A": "front", "I": "feet", "S": "head"}


@dataclass(frozen=True)
class Structure:
    """What was measured of a structure in a label map.

    Args:
        volume_ml: above 0.
        fills: its share of all voxels.
        cut_at: sides of the image whose outermost plane cuts through it, as words.
        outside_main: share of its volume outside its largest piece.
        away_mm: largest distance of a piece, specks aside, from the largest one.
    """

    volume_ml: float
    fills: float
    cut_at: tuple[str, ...] = ()
    outside_main: float = 0.0
    away_mm: float = 0.0


def structure_boxes(labels: npt.NDArray[Any], highest: int) -> dict[int, Box]:
    """Return the box around each value of a label map, without 0 and those that are not there.

    Args:
        labels: (I, J, K) integers.
        highest: values above it are passed over.
    """
    order = np.argsort([-abs(stride) for stride in labels.strides], kind="stable")  # along memory, whatever its order
    planes = labels.transpose(order)
    corner, filled = _filled(planes)
    found = ndimage.find_objects(filled, max_label=highest)
    back = np.argsort(order).tolist()
    boxes = {value: _moved(box, corner) for value, box in enumerate(found, start=1) if box is not None}
    return {value: (box[back[0]], box[back[1]], box[back[2]]) for value, box in boxes.items()}


def _filled(planes: npt.NDArray[Any]) -> tuple[tuple[int, ...], npt.NDArray[Any]]:
    """Return the first corner of the box around all that is not 0, and the box; looking for it is quick."""
    shadow = np.bitwise_or.reduce(planes, axis=0)
    masks = np.array([plane.any() for plane in planes]), shadow.any(axis=1), shadow.any(axis=0)
    ends = [(int(hits[0]), int(hits[-1]) + 1) if len(hits := np.flatnonzero(mask)) else (0, 0) for mask in masks]
    return tuple(start for start, _ in ends), planes[tuple(slice(*end) for end in ends)]


def _moved(box: tuple[slice, ...], corner: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(span.start + by, span.stop + by) for span, by in zip(box, corner, strict=True))


@dataclass(frozen=True)
class StructureRange:
    """How a structure looked in the training label maps; as JSON one entry of `trained_on#structures`.

    Percentiles and `cut` are of the label maps that hold the structure.

    Args:
        volume_ml: 1st, 50th and 99th percentile; above 0 and in order.
        present: share of all label maps that hold it, above 0 to 1.
        cut: share in which the border of the image cuts it, 0 to 1.
        outside_main: 99th percentile of the share of its volume outside its largest piece, 0 to below 1.
        away_mm: 99th percentile of how far pieces lie from the largest one.
        largest_ml: its largest volume; 0 if nobody knows.

    Raises:
        ValueError: a value out of its range.

    >>> StructureRange((900.0, 1500.0, 2400.0)).volume_ml[1]
    1500.0
    """

    volume_ml: tuple[float, float, float]
    present: float = 1.0
    cut: float = 0.0
    outside_main: float = 0.0
    away_mm: float = 0.0
    largest_ml: float = 0.0

    def __post_init__(self) -> None:
        if len(self.volume_ml) != 3 or not 0 < self.volume_ml[0] <= self.volume_ml[1] <= self.volume_ml[2]:
            raise ValueError(f"volume_ml must be three percentiles above 0 in order, found {self.volume_ml}")
        if not (0 < self.present <= 1 and 0 <= self.cut <= 1 and 0 <= self.outside_main < 1 and self.away_mm >= 0):
            raise ValueError(f"shares must lie between 0 and 1 and distances not below 0, found {self}")
        if self.largest_ml and not self.largest_ml >= self.volume_ml[2]:
            raise ValueError(f"largest_ml must not be below the 99th percentile, found {self}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build it from its JSON form.

        Raises:
            ValueError: unknown or missing keys, or wrong values.
        """
        known = {field.name for field in fields(cls)}
        if not {"volume_ml"} <= values.keys() <= known:
            raise ValueError(f"a structure has volume_ml of {', '.join(sorted(known))}, found {', '.join(values)}")
        volume_ml = tuple(float(value) for value in values["volume_ml"])
        shares = {name: float(value) for name, value in values.items() if name != "volume_ml"}
        return cls(volume_ml, **shares)  # type: ignore[arg-type]  # __post_init__ refuses other lengths

    def to_mapping(self) -> dict[str, Any]:
        """Return its JSON form."""
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {"volume_ml": list(self.volume_ml)}
        return {name: value for name, value in values.items() if name != "largest_ml" or value}


def measure_structures(labels: npt.NDArray[Any], grid: Grid, table: LabelTable) -> dict[str, Structure]:
    """Return what can be measured of each structure that a label map holds, by name.

    Args:
        labels: (I, J, K) integers.
        grid: where they lie, RAS+ mm.
        table: what they mean; other values are passed over.
    """
    ends = zip(nib.aff2axcodes(-grid.affine), nib.aff2axcodes(grid.affine), strict=True)
    sides = _PICTURE_SIDES if counts_pixels(grid) else [(_SIDES[low], _SIDES[high]) for low, high in ends]
    found = {}
    for value, box in structure_boxes(labels, len(table.names) - 1).items():
        mask = labels[box] == value
        voxels = int(np.count_nonzero(mask))
        outside_main, away_mm = _pieces(mask, np.array(grid.spacing_mm))
        cut_at = tuple(_cuts(mask, box, labels.shape, sides))
        found[table.names[value]] = Structure(
            voxels * grid.voxel_ml, voxels / labels.size, cut_at, outside_main, away_mm
        )
    return found


def structure_ranges(label_maps: Iterable[Mapping[str, Structure]]) -> dict[str, StructureRange]:
    """Return how structures looked in the label maps of a data set, by name; those that none holds are absent.

    Args:
        label_maps: from `measure_structures`, one for each label map.
    """
    maps = list(label_maps)
    ranges = {}
    for name in dict.fromkeys(name for found in maps for name in found):
        seen = [found[name] for found in maps if name in found]
        low, middle, high = np.percentile([one.volume_ml for one in seen], (1, 50, 99)).tolist()
        ranges[name] = StructureRange(
            (round(low, 4), round(middle, 4), round(high, 4)),
            present=round(len(seen) / len(maps), 4),
            cut=round(sum(bool(one.cut_at) for one in seen) / len(seen), 4),
            outside_main=round(float(np.percentile([one.outside_main for one in seen], 99)), 4),
            away_mm=round(float(np.percentile([one.away_mm for one in seen], 99)), 1),
            largest_ml=round(max(one.volume_ml for one in seen), VOLUME_DIGITS),
        )
    return ranges


def _cuts(
    mask: npt.NDArray[np.bool_], box: Box, shape: tuple[int, ...], sides: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """Yield the sides of the image whose outermost plane holds a fair cross-section of a structure."""
    for axis, (span, planes) in enumerate(zip(box, shape, strict=True)):
        fair = CUT_PLANE * np.count_nonzero(mask) / mask.shape[axis]
        for side, is_there, end in zip(sides[axis], (span.start == 0, span.stop == planes), (0, -1), strict=True):
            if planes >= LEAST_PLANES and is_there and np.count_nonzero(np.moveaxis(mask, axis, 0)[end]) >= fair:
                yield side


def _pieces(mask: npt.NDArray[np.bool_], spacing_mm: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the share of a mask outside its largest piece, and how far pieces lie from that one in mm."""
    cells, cell_mm = _pooled(mask, spacing_mm)
    pieces, count = ndimage.label(cells, structure=np.ones((3, 3, 3)))
    if count == 1:
        return 0.0, 0.0
    voxels = np.bincount(pieces.ravel(), weights=cells.ravel())
    main = int(voxels.argmax())
    others = [piece for piece in range(1, count + 1) if piece != main and voxels[piece] >= LEAST_PIECE * voxels.sum()]
    if not others:
        return 1 - float(voxels[main] / voxels.sum()), 0.0
    distance_mm = ndimage.distance_transform_edt(pieces != main, sampling=cell_mm)
    away_mm = float(max(ndimage.minimum(distance_mm, pieces, others)))
    return 1 - float(voxels[main] / voxels.sum()), away_mm


def _pooled(
    mask: npt.NDArray[np.bool_], spacing_mm: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64]]:
    """Count the voxels of a mask in at most about `PIECE_CELLS` nearly cubic cells; also return the cells' sides."""
    side_mm = np.cbrt(np.prod(mask.shape * spacing_mm) / PIECE_CELLS)
    steps = np.ones(3, int) if mask.size <= PIECE_CELLS else np.clip(np.ceil(side_mm / spacing_mm), 1, 255).astype(int)
    order = np.argsort([-abs(stride) for stride in mask.strides], kind="stable").tolist()
    cells: npt.NDArray[Any] = mask.view(np.uint8)
    for axis in order:  # first along memory, where passing over the whole mask is quick
        planes, step = np.moveaxis(cells, axis, 0), int(steps[axis])
        sums: npt.NDArray[Any] = planes[::step].astype(np.uint8 if axis == order[0] else np.uint32)
        for offset in range(1, step):
            later = planes[offset::step]
            sums[: len(later)] += later
        cells = np.moveaxis(sums, 0, axis)
    return cells, steps * spacing_mm
