"""What an nnU-Net `dataset.json` says: channels, and what the values of the network's result mean."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass as record

from voxelgate.bundle.imports.foreign_records import as_record, licence_in
from voxelgate.core.errors import BundleError
from voxelgate.core.labels import LabelTable

BACKGROUND, IGNORE = "background", "ignore"

MOST_LABEL = 2**15 - 1
"""Largest value that nnU-Net writes for a region; it counts in 16 bits with a sign."""

MOST_HEADS = 2**11


def _number(value: Any) -> Any:  # nnU-Net takes a value written as a text for a number
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value) else value


_Value = Annotated[int, Field(strict=True, ge=0, le=MOST_LABEL), BeforeValidator(_number)]
_Values = Annotated[list[_Value], Field(min_length=1)]

_MR = re.compile(
    r"\b(mri?|t1|t2|t1w|t2w|t1ce|t1c|t1n|t2f|t1gd|flair|adc|dwi|dti|swi|pd|bold|dixon|ute|tof)\b", re.IGNORECASE
)
_PET = re.compile(r"\b(pet|pt|suv|fdg)\b", re.IGNORECASE)
"""Words in the names of channels that tell the modality."""


@record(frozen=True)
class _DataSetFile:
    labels: dict[str, _Value | _Values]
    channel_names: dict[str, str] | None = None
    modality: dict[str, str] | None = None
    regions_class_order: list[_Value] | None = None


@dataclass(frozen=True)
class DataSet:
    """What a model was trained to find, in what.

    Args:
        channels: name of each, in the order of the network.
        labels: what the values of the result mean.
        regions: value of each region in the order of the network's heads; None where heads are classes.
        heads: channels that come out of the network.
        foreground: label values of the training, without background and `ignore`.
        licence: as stated; empty if it is not.
    """

    channels: tuple[str, ...]
    labels: LabelTable
    regions: tuple[int, ...] | None
    heads: int
    foreground: tuple[int, ...]
    licence: str = ""

    @property
    def modality(self) -> str:
        """Return the modality that the names of the channels tell: `CT`, `MRI`, `PET` or `unknown`."""
        kinds = {_told_modality(name) for name in self.channels}
        return kinds.pop() if len(kinds) == 1 else "unknown"


def _told_modality(name: str) -> str:
    if name.strip().casefold() in ("ct", "cbct"):
        return "CT"
    words = name.replace("_", " ")
    if _MR.search(words):
        return "MRI"
    return "PET" if _PET.search(words) else "unknown"


def read_data_set(document: Mapping[str, Any], where: str) -> DataSet:
    """Check what a data set says of channels and labels.

    Args:
        document: content of `dataset.json`.
        where: file that it was read from, for messages.

    Raises:
        BundleError: something is missing, of another type or out of its limits, or labels have gaps.
    """
    stated = as_record(_DataSetFile, document, where)
    named = {name: value for name, value in stated.labels.items() if name != IGNORE}
    if named.get(BACKGROUND) != 0:
        raise BundleError(f"{where}: labels name no {BACKGROUND!r} with the value 0; restore the file.")
    values = sorted({value for one in named.values() for value in _each(one)})
    if values != list(range(len(values))) or len(values) < 2 or len(values) > MOST_HEADS:
        raise BundleError(
            f"{where}: the label values are not 0, 1, 2, ... without a gap, at most {MOST_HEADS} of them; "
            "restore the file."
        )
    channels = _channels(stated, where)
    if not any(isinstance(one, list) and len(one) > 1 for one in named.values()):
        names = {_each(one)[0]: name for name, one in named.items()}
        table = _table_of(names, where)
        return DataSet(channels, table, None, len(values), tuple(values[1:]), licence_in(document))
    regions = [name for name, one in named.items() if set(_each(one)) != {0}]
    order = stated.regions_class_order or []
    if len(order) != len(regions):
        raise BundleError(
            f"{where}: regions_class_order has {len(order)} values for {len(regions)} regions; restore the file."
        )
    table = _region_table(regions, order, where)
    return DataSet(channels, table, tuple(order), len(regions), tuple(values[1:]), licence_in(document))


def _each(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


def _channels(stated: _DataSetFile, where: str) -> tuple[str, ...]:
    names = stated.modality or stated.channel_names or {}
    if not names or sorted(names) != sorted(str(number) for number in range(len(names))):
        raise BundleError(f"{where}: channel_names are not numbered 0, 1, 2, ...; restore the file.")
    return tuple(names[str(number)].strip() or f"channel {number}" for number in range(len(names)))


def _region_table(regions: Sequence[str], order: Sequence[int], where: str) -> LabelTable:
    """Return what values mean where heads are regions: each is the value of a region, and later ones write over it."""
    names: dict[int, str] = {0: BACKGROUND}
    for name, value in zip(regions, order, strict=True):
        if value:
            names[value] = f"{names[value]} or {name}" if value in names else name
    return _table_of(names, where)


def _table_of(names: Mapping[int, str], where: str) -> LabelTable:
    """Return a table of these values; what stands for two of them gets its value behind it."""
    plain = {value: name.strip() or f"label {value}" for value, name in names.items()}
    times = Counter(name.lower() for name in plain.values())
    told = {value: name if times[name.lower()] == 1 else f"{name} ({value})" for value, name in plain.items()}
    try:
        return LabelTable(tuple(told.get(value, "") for value in range(max(told) + 1)))
    except ValueError as error:
        raise BundleError(f"{where}: {error}; restore the file.") from error
