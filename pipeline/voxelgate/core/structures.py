"""Where structures lie in a label map, and how they looked in those that a bundle was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Box = tuple[slice, slice, slice]


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

    def __post_init__(self) -> None:
        if len(self.volume_ml) != 3 or not 0 < self.volume_ml[0] <= self.volume_ml[1] <= self.volume_ml[2]:
            raise ValueError(f"volume_ml must be three percentiles above 0 in order, found {self.volume_ml}")
        if not (0 < self.present <= 1 and 0 <= self.cut <= 1 and 0 <= self.outside_main < 1 and self.away_mm >= 0):
            raise ValueError(f"shares must lie between 0 and 1 and distances not below 0, found {self}")

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
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"volume_ml": list(self.volume_ml)}
