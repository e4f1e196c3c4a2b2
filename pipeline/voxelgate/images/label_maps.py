"""Label maps as files: what their values stand for, and how they become the values 0, 1, 2, ... of a network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import IGNORED
from voxelgate.images.pictures import is_picture, read_picture_header
from voxelgate.images.volumes import Voxels, read_channels

WHOLE_TOLERANCE = 1e-3
"""How far a label value may lie from a whole number; resampling and scaling in float32 move 255 by 0.0001."""

WHITES = (255, 65535)
"""Values of what is white in a mask of 8 or 16 bits that is black and white."""

VALUES_KEY = "label_values"
"""Key of a row of a datalist that says what the values of its label file stand for, as `LabelValues.to_mapping`."""

HIGHEST_VALUE = 2**32 - 1
"""Largest value that a structure may have in a file: what 32 bits hold."""

LARGEST_TABLE = 2**16
"""Span of values up to which a table is quicker than a search for each voxel."""

MOST_VALUES_SHOWN = 5
"""Undeclared label values that a line names."""


@dataclass(frozen=True)
class LabelValues:
    """Which values the structures of a data set have in its files.

    Args:
        values: in the files of background, label 1, label 2, ..., ascending; the background is 0.
        ignored: of voxels that nobody labelled, which neither train nor count.

    Raises:
        ValueError: values out of order, above 32 bits, or of a structure and ignored at once.

    >>> LabelValues((0, 200, 210), (255,)).numbered(np.array([210, 0, 255])).tolist()
    [2, 0, -1]
    """

    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.values[:1] != (0,) or any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(
                f"label values begin with 0 for the background and ascend, found {_shown_values(self.values)}"
            )
        if (largest := max(map(abs, (*self.values, *self.ignored)))) > HIGHEST_VALUE:
            raise ValueError(f"label values go up to {HIGHEST_VALUE}, found {largest}")
        if both := sorted(set(self.values) & set(self.ignored)):
            raise ValueError(f"the value {_shown_values(both)} is a label and to be ignored; it can be one of them")

    @classmethod
    def up_to(cls, highest: int) -> "LabelValues":
        """Return the values 0, 1, ... of files that have those of the network."""
        return cls(tuple(range(highest + 1)))

    @classmethod
    def from_mapping(cls, numbers: Mapping[str, int]) -> "LabelValues":
        """Read what `to_mapping` wrote."""
        by_number = sorted((number, int(value)) for value, number in numbers.items() if number != IGNORED)
        ignored = sorted(int(value) for value, number in numbers.items() if number == IGNORED)
        return cls(tuple(value for _, value in by_number), tuple(ignored))

    def to_mapping(self) -> dict[str, int]:
        """Return the number of each value of a file, `IGNORED` of those that are left out."""
        return {
            **{str(value): number for number, value in enumerate(self.values)},
            **{str(value): IGNORED for value in self.ignored},
        }

    @property
    def is_plain(self) -> bool:
        """Return whether the files have the values of the network, and all of them count."""
        return self.values == tuple(range(len(self.values))) and not self.ignored

    def numbered(self, voxels: Voxels) -> Voxels:
        """Return a label map with the values 0, 1, 2, ... and `IGNORED` instead of those of its file.

        Where there is one structure, white stands for it: most programs save its mask as 0 and 255.

        Args:
            voxels: of a file, any real type.

        Raises:
            InputError: values that are no whole numbers, or that nothing is said of; the sentence names no file.
        """
        whole = whole_labels(voxels)
        white = int(whole.max(initial=0))
        if self.values == (0, 1) and white not in self.ignored:
            whole = white_as_one(whole)
        if self.is_plain:
            if int(whole.min(initial=0)) < 0 or int(whole.max(initial=0)) > self.values[-1]:
                raise InputError(self._undeclared(whole))
            return whole
        return self._looked_up(whole)

    def _looked_up(self, whole: Voxels) -> Voxels:
        numbers = sorted((int(value), number) for value, number in self.to_mapping().items())
        keys, targets = np.array(numbers, np.int64).T
        found = np.empty_like(whole, np.int16 if len(self.values) < np.iinfo(np.int16).max else np.int32)
        for k in range(whole.shape[-1]):  # slice by slice, to spare memory
            part = whole[..., k].astype(np.int64)
            if part.min() < keys[0] or part.max() > keys[-1]:
                raise InputError(self._undeclared(whole))
            places = _places_in_table(keys, part)
            if not np.array_equal(keys[places], part):
                raise InputError(self._undeclared(whole))
            found[..., k] = targets[places]
        return found

    def _undeclared(self, whole: Voxels) -> str:
        found = _others(whole, (*self.values, *self.ignored))
        more = f" and {len(found) - MOST_VALUES_SHOWN} more" if len(found) > MOST_VALUES_SHOWN else ""
        is_range = self.values == tuple(range(len(self.values)))
        declared = f"0 to {self.values[-1]}" if is_range else _shown_values(self.values)
        ignored = f", and ignores {_shown_values(self.ignored)}" if self.ignored else ""
        hint = "" if more else "; name them (--labels VALUE=NAME,...), or leave them out (--ignore VALUE)"
        return f"values {_shown_values(found)}{more} are not declared; the manifest declares {declared}{ignored}{hint}."


def read_label_map(path: Path, values: LabelValues | int) -> tuple[Voxels, Grid]:
    """Read a label map (I, J, K) and number its values.

    Args:
        path: of a volume or picture.
        values: what they stand for; the largest one of a network leaves them as they are, but if that is 1, white is 1.

    Raises:
        InputError: it cannot be read, holds colours, no whole numbers, or values that nothing is said of.
    """
    channels, grid = read_channels(path)
    try:
        voxels = single_channel(path, channels)
        if isinstance(values, LabelValues):
            return values.numbered(voxels), grid
        return _of_network(whole_labels(voxels), values), grid
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error


def single_channel(path: Path, channels: Voxels) -> Voxels:
    """Return the label values (i, j, k) of a file; a mask that was saved in colours, all of them grey, is one too.

    Args:
        path: of the file.
        channels: that were read of it, (C, i, j, k).

    Raises:
        InputError: it holds colours, or is a JPEG; the sentence names no file.
    """
    if is_picture(path) and read_picture_header(path).is_lossy:
        raise InputError("a label map as JPEG, which changes values; save it as PNG from where it was drawn.")
    if any(not np.array_equal(channels[0], other) for other in channels[1:]):
        raise InputError(
            "a label map in colours, expected one number in each pixel; save it as grey values, or with a palette."
        )
    first: Voxels = channels[0]
    return first


def whole_labels(voxels: Voxels) -> Voxels:
    """Return label values as integers; those of real type are rounded within `WHOLE_TOLERANCE`.

    Raises:
        InputError: values that are no whole numbers; the sentence names no file.
    """
    if voxels.dtype.kind == "b":
        return voxels.astype(np.uint8)
    if voxels.dtype.kind in "iu":
        return voxels
    whole = np.empty_like(voxels, np.int64 if np.abs(voxels).max(initial=0) > np.iinfo(np.int32).max else np.int32)
    broken = [_rounded_into(whole[..., k], voxels[..., k]) for k in range(voxels.shape[-1])]
    if count := sum(len(found) for found in broken):
        example = next(found[0] for found in broken if len(found))
        raise InputError(f"{count} voxels are no whole number, such as {example!s}; a label map holds only those.")
    return whole


def _rounded_into(whole: Voxels, voxels: Voxels) -> Voxels:
    """Round the voxels of a slice; return those that are no whole numbers."""
    rounded = np.rint(voxels)
    with np.errstate(invalid="ignore"):
        is_whole = np.abs(voxels - rounded) <= WHOLE_TOLERANCE
    if (largest := np.abs(rounded[is_whole]).max(initial=0)) > HIGHEST_VALUE:
        raise InputError(f"holds the value {largest:g}, expected label values to {HIGHEST_VALUE}.")
    np.copyto(whole, rounded, where=is_whole, casting="unsafe")
    broken: Voxels = voxels[~is_whole]  # also those that are no numbers
    return broken


def _of_network(whole: Voxels, highest: int) -> Voxels:
    if (lowest := int(whole.min(initial=0))) < 0:
        raise InputError(f"holds the value {lowest}; a label map holds whole numbers from 0.")
    return white_as_one(whole) if highest == 1 else whole


def white_as_one(labels: Voxels) -> Voxels:
    """Return a label map of one structure in black and white as 0 and 1; others as they are.

    >>> white_as_one(np.array([0, 255, 255], np.uint8))
    array([0, 1, 1], dtype=uint8)
    """
    white = int(labels.max(initial=0))
    if white not in WHITES or _others(labels, (0, white)):
        return labels
    ones: Voxels = (labels == white).astype(np.uint8)
    return ones


def values_of(voxels: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return the values of a label map beside 0, ascending."""
    return _others(voxels, (0,))


def _places_in_table(keys: npt.NDArray[np.int64], part: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for values between the first and the last key the first key that is no less."""
    if keys[-1] - keys[0] > LARGEST_TABLE:
        return np.searchsorted(keys, part)
    table = np.searchsorted(keys, np.arange(keys[0], keys[-1] + 1))
    found: npt.NDArray[np.int64] = table[part - keys[0]]
    return found


def _others(whole: Voxels, known: Iterable[int]) -> tuple[int, ...]:
    found = set[int]().union(*(np.unique(whole[..., k]).tolist() for k in range(whole.shape[-1])))
    return tuple(sorted(found - set(known)))


def _shown_values(values: Iterable[int]) -> str:
    shown = [str(value) for value in values]
    return ", ".join(shown[:MOST_VALUES_SHOWN])
