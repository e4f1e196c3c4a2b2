"""What the label values and channels of a zoo bundle mean, as far as its files say; no name moves to another value."""

from collections.abc import Mapping, Sequence
from typing import Any

from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.labels import HIGHEST, LabelTable


def labels_of(
    metadata: Mapping[str, Any], classes: int, merges: Sequence[tuple[int, int]] | None, told: Mapping[int, str]
) -> tuple[LabelTable, tuple[str, ...]]:
    """Return the names of the label values that a bundle writes, and sentences on those that are not sure.

    Args:
        metadata: of the bundle.
        classes: channels of the network.
        merges: channel and value of each region, the first that is on wins; empty where labels are an argmax,
            None where nobody knows which values come out.
        told: names by value that the one who imports gave; they win.

    Raises:
        UsageError: a name is told for a value that the bundle never writes.
        BundleError: names are no table, for instance two alike, or nobody says which values come out.
    """
    stated = {} if merges is None else _stated_names(metadata)
    if merges is None and not told:
        raise BundleError(
            "the bundle's own steps do not say which values come out; name them with --labels 1=NAME,2=NAME"
        )
    if max([classes, *(value for _, value in merges or ())]) > HIGHEST:
        raise BundleError(f"the bundle writes label values above {HIGHEST}, which no label map holds; correct it")
    value_of = dict(merges) if merges else {value: value for value in (range(classes) if merges is not None else told)}
    if unknown := sorted(set(told) - set(value_of.values())):
        raise UsageError(
            f"--labels {unknown[0]}: the bundle writes {', '.join(map(str, sorted(value_of.values())))}; name these."
        )
    names = {0: told.get(0, "background")}
    for channel, value in value_of.items():
        if value:
            names[value] = told.get(value) or stated.get(channel) or f"label_{value}"
    unnamed = [
        str(value) for channel, value in value_of.items() if value and value not in told and not stated.get(channel)
    ]
    try:
        table = LabelTable(tuple(names.get(value, "") for value in range(max(names) + 1)))
    except ValueError as error:
        raise BundleError(
            f"the bundle's labels are no table ({error}); name them with --labels 1=NAME,2=NAME"
        ) from error
    return table, (*_on_unnamed(unnamed), *_on_regions(names, merges or (), told))


def channels_of(metadata: Mapping[str, Any], images: Sequence[str], count: int) -> tuple[str, ...]:
    """Return a name for each channel that is read.

    Args:
        metadata: of the bundle.
        images: names of the images that its config reads; a single one may hold several channels.
        count: channels that the network takes, clicks aside.

    Raises:
        BundleError: the images are not as many as the network's channels.
    """
    if len(images) not in {1, count}:
        raise BundleError(f"the bundle reads {len(images)} images ({', '.join(images)}), its network takes {count}")
    stated = part_of(metadata, "inputs", "image").get("channel_def")
    names = _texts_by_number(stated) if isinstance(stated, Mapping) else {}
    if sorted(names) == list(range(count)):
        return tuple(names[number] for number in range(count))
    return tuple(images) if len(images) == count else tuple(f"channel {number}" for number in range(count))


def _stated_names(metadata: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of output channels: `channel_def`, which some bundles call `label_def`."""
    output = part_of(metadata, "outputs", "pred")
    for key in ("channel_def", "label_def"):
        if isinstance(output.get(key), Mapping) and (names := _texts_by_number(output[key])):
            return names
    return {}


def part_of(metadata: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return what stands under some keys of `network_data_format`; nothing where that is no object."""
    found: Any = metadata.get("network_data_format")
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _texts_by_number(stated: Mapping[Any, Any]) -> dict[int, str]:
    return {
        int(key): " ".join(name.split())
        for key, name in stated.items()
        if str(key).isdecimal() and isinstance(name, str) and name.strip()
    }


def _on_unnamed(values: Sequence[str]) -> list[str]:
    if not values:
        return []
    return [f"The bundle does not name {', '.join(values)}: --labels {values[0]}=NAME,... does."]


def _on_regions(names: Mapping[int, str], merges: Sequence[tuple[int, int]], told: Mapping[int, str]) -> list[str]:
    """Say that a value is what is left of a region where another wins, unless the names were told."""
    if len(merges) < 2 or {value for _, value in merges} <= set(told):
        return []
    order = ", ".join(f"{value} ({names[value]})" for _, value in merges)
    return [
        f"Its regions may overlap, and the first that is found wins: {order}. --labels renames what is left of them."
    ]
