"""Data sets whose folder holds a `dataset.json`: those of the Decathlon, and raw ones of nnU-Net, as they are."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from voxelgate.core.documents import read_json
from voxelgate.core.errors import ManifestError
from voxelgate.datasets.found_set import FoundCase, FoundSet
from voxelgate.datasets.manifest import Modality, schema_problem
from voxelgate.datasets.subjects_by_name import subjects_by_name
from voxelgate.evaluation.pairs import CHANNEL_ENDING, find_pairs
from voxelgate.images.pictures import PICTURE_SUFFIXES
from voxelgate.images.spec import ImageSpec
from voxelgate.images.volumes import volume_stem

DESCRIPTION = "dataset.json"

IGNORE_LABEL = "ignore"
"""Name by which nnU-Net knows the value of voxels that nobody labelled."""

BACKGROUND = "background"

COPIES_OF_A_MAC = "._"
"""Start of the names of files in which macOS keeps what its archives cannot; the Decathlon's hold many."""

_TEXTS = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
_FILE = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
_ROW = {"type": "object", "required": ["image", "label"], "properties": {"image": _FILE, "label": {"type": "string"}}}
_TEST = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["image"], "properties": {"image": _FILE}}]}
_EXPLICIT = {
    "type": "object",
    "required": ["images", "label"],
    "properties": {
        "images": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "label": {"type": "string"},
    },
}
_VALUE = {"type": "integer"}
_LABEL = {"anyOf": [{"type": "string"}, _VALUE, {"type": "array", "items": _VALUE, "minItems": 1}]}

LAYOUT = Draft202012Validator(
    {
        "type": "object",
        "required": ["labels"],
        "properties": {
            "labels": {"type": "object", "minProperties": 1, "additionalProperties": _LABEL},
            "modality": _TEXTS,
            "channel_names": _TEXTS,
            "file_ending": {"type": "string"},
            "training": {"type": "array", "items": _ROW},
            "test": {"type": "array", "items": _TEST},
            "dataset": {"type": "object", "additionalProperties": _EXPLICIT},
            "numTraining": {"type": "integer"},
        },
    }
)
"""Layout of the fields that are read; others of either format are left alone."""


@dataclass(frozen=True)
class _StatedLabels:
    """What the values of label files mean; `regions` are those of several values."""

    names: Mapping[str, str]
    ignored: tuple[int, ...] = ()
    regions: Mapping[str, tuple[int, ...]] | None = None


def is_described(folder: Path) -> bool:
    """Return whether a folder holds a description of a data set."""
    return (folder / DESCRIPTION).is_file()


def read_described_set(folder: Path, modality: str = "") -> FoundSet:
    """Return the cases that a `dataset.json` and its folder tell of, and all else that it says.

    The Decathlon's lists its cases under `training`, a `dataset` of nnU-Net names the files of each; without either
    they are found in `imagesTr` and `labelsTr`. Training knows no regions: the values of label files are the classes.

    Args:
        folder: that holds the description.
        modality: what the voxels hold, whatever the description says; empty for that.

    Raises:
        ManifestError: it cannot be read, says what cannot be understood, or names files outside of the folder.
    """
    stated = _read_description(folder)
    labels = _labels_stated(stated["labels"])
    channels = _channel_names(stated)
    held = Modality(modality) if modality else _modality_of(stated, channels)
    cases, tests, problems = _cases_of(stated, folder, held)
    subject_of = subjects_by_name(case.case_id for case in (*cases, *tests))
    return FoundSet(
        cases=tuple(_of_subject(case, subject_of) for case in cases),
        tests=tuple(_of_subject(case, subject_of) for case in tests),
        problems=tuple(problems),
        remarks=tuple(_what_to_know(stated, labels, channels, len(cases))),
        name=_text_of(stated, "name"),
        description=_text_of(stated, "description"),
        reference=_text_of(stated, "reference"),
        licence=_text_of(stated, "licence", "license"),
        modality=held,
        channels=channels if len(channels) > 1 and held is not Modality.PICTURE else (),
        labels=labels.names,
        ignored=labels.ignored,
    )


def _read_description(folder: Path) -> Mapping[str, Any]:
    try:
        stated = read_json(folder / DESCRIPTION)
        LAYOUT.validate(stated)
    except (OSError, ValueError) as error:
        raise ManifestError([f"{DESCRIPTION}: {error}."]) from error
    except ValidationError as error:
        raise ManifestError([f"{DESCRIPTION}: {schema_problem(error)}"]) from error
    return dict(stated)


def _text_of(stated: Mapping[str, Any], *keys: str) -> str:
    """Return the first of some fields that is a text and not empty; the formats demand none of them."""
    texts = (stated[key].strip() for key in keys if isinstance(stated.get(key), str))
    return next(filter(None, texts), "")


def _labels_stated(stated: Mapping[str, Any]) -> _StatedLabels:
    """Return names by value, from names by value as in the Decathlon, or from values by name as in nnU-Net."""
    if all(key.isdecimal() and isinstance(name, str) for key, name in stated.items()):
        return _StatedLabels({"0": BACKGROUND} | {str(int(key)): name for key, name in stated.items()})
    if wrong := [name for name, value in stated.items() if isinstance(value, str)]:
        line = f"{DESCRIPTION}: labels: {wrong[0]!r} has no value; give each name one, or each value a name."
        raise ManifestError([line])
    values_of = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in stated.items()}
    ignored = values_of.pop(IGNORE_LABEL, ())
    regions = {name: values for name, values in values_of.items() if len(values) > 1}
    found = sorted({value for values in values_of.values() for value in values} - {0, *ignored})
    name_of = {values[0]: name for name, values in values_of.items() if len(values) == 1}
    names = {str(value): name_of.get(value, f"label_{value}") for value in found}
    return _StatedLabels({"0": name_of.get(0, BACKGROUND), **names}, ignored, regions)


def _channel_names(stated: Mapping[str, Any]) -> tuple[str, ...]:
    named = stated.get("channel_names") or stated.get("modality") or {"0": "image"}
    if sorted(named, key=lambda key: (len(key), key)) != [str(index) for index in range(len(named))]:
        found = ", ".join(sorted(named))
        raise ManifestError([f"{DESCRIPTION}: channels are numbered 0, 1, 2, ..., found {found}."])
    return tuple(str(named[str(index)]).strip() or f"channel {index}" for index in range(len(named)))


def _modality_of(stated: Mapping[str, Any], channels: Sequence[str]) -> Modality:
    """Return CT only if every channel is called so, as nnU-Net decides; what else there is has no common scale."""
    if str(stated.get("file_ending", "")).lower() in PICTURE_SUFFIXES:
        return Modality.PICTURE
    return Modality.CT if all(name.lower() == "ct" for name in channels) else Modality.MRI


def _cases_of(
    stated: Mapping[str, Any], folder: Path, modality: Modality
) -> tuple[list[FoundCase], list[FoundCase], list[str]]:
    """Return the cases, those for testing, and a line for each file that is in no case, or lacks."""
    rows: Iterable[tuple[str, Sequence[str], str]]
    if "dataset" in stated:
        rows = [(case_id, files["images"], files["label"]) for case_id, files in stated["dataset"].items()]
    elif stated.get("training"):
        named = [(_as_list(row["image"]), row["label"]) for row in stated["training"]]
        rows = [("", images, label) for images, label in named if not _is_copy_of_mac(images[0])]
    else:
        pairs, problems = find_pairs(folder, ImageSpec(is_picture=modality is Modality.PICTURE))
        return [FoundCase(pair.case_id, pair.images, pair.label) for pair in pairs], [], problems
    cases = [
        _case_of_files(case_id, [_file_inside(folder, name) for name in images], _file_inside(folder, label))
        for case_id, images, label in rows
    ]
    tests = [_as_list(row if isinstance(row, str) else row["image"]) for row in stated.get("test", [])]
    kept = [
        _case_of_files("", [_file_inside(folder, name) for name in row], None)
        for row in tests
        if not _is_copy_of_mac(row[0])
    ]
    there = [case for case in kept if all(path.is_file() for path in case.images)]
    return cases, there, []


def _as_list(named: str | list[str]) -> list[str]:
    return [named] if isinstance(named, str) else named


def _is_copy_of_mac(name: str) -> bool:
    return PurePosixPath(name).name.startswith(COPIES_OF_A_MAC)


def _file_inside(folder: Path, name: str) -> Path:
    """Return the file that a path means, which starts from the folder.

    Raises:
        ManifestError: it leads out of the folder.
    """
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder) or path == folder:
        raise ManifestError([f"{DESCRIPTION}: {name!r} leads out of its folder; keep the files of a data set in it."])
    return path


def _case_of_files(case_id: str, images: Sequence[Path], label: Path | None) -> FoundCase:
    """Return the case of files that are named; where the first nnU-Net named `a`, `a_0000`, `a_0001`, ... lie."""
    first = images[0]
    stem = volume_stem(first)
    files = list(images)
    if len(files) == 1 and not first.is_file():
        ending = first.name[len(stem) :]
        channels = (first.with_name(f"{stem}_{number:04d}{ending}") for number in range(100))
        found = [path for path in channels if path.is_file()]
        files = found or files
    return FoundCase(case_id or (CHANNEL_ENDING.sub("", stem) if len(files) > 1 else stem), tuple(files), label)


def _of_subject(case: FoundCase, subject_of: Mapping[str, str]) -> FoundCase:
    return FoundCase(case.case_id, case.images, case.label, subject_of[case.case_id])


def _what_to_know(
    stated: Mapping[str, Any], labels: _StatedLabels, channels: Sequence[str], cases: int
) -> Iterable[str]:
    if labels.regions:
        told = ", ".join(f"{name} ({'+'.join(map(str, values))})" for name, values in labels.regions.items())
        yield f"regions overlap, and training takes the values of the label files instead: {told}"
    if len({name.lower() == "ct" for name in channels}) > 1:
        yield f"channels {', '.join(channels)} are not all CT: each is normalised by its own values, CT too"
    if stated.get("numTraining", cases) != cases:
        yield f"{DESCRIPTION} tells of {stated['numTraining']} cases for training, and {cases} are here"
