"""Make a manifest from a folder: pair images with labels, deal subjects into folds, record checksums."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from voxelgate.core.documents import read_json
from voxelgate.core.errors import InputError, ManifestError, OutputError, UsageError
from voxelgate.core.files import write_text
from voxelgate.core.labels import LabelTable
from voxelgate.core.progress import Progress
from voxelgate.datasets.check_manifest import MOST_READERS, checksum, manifest_defects
from voxelgate.datasets.manifest import Manifest, ManifestCase, Modality, manifest_from_document, schema_problem
from voxelgate.evaluation.pairs import Pair, find_pairs
from voxelgate.images.pictures import RGB, is_picture, read_picture_header
from voxelgate.images.spec import PICTURE_NAMES, ImageSpec, binary_as_one
from voxelgate.images.volumes import SUFFIXES, read_volume, volume_stem

SUBJECTS_FILE = "subjects.json"
"""File beside the images that may say which cases belong to one subject (`subject_group`), and name the `labels`."""

MOST_LABEL_VALUES = 255
"""Highest value that is given a default name: what fits into the uint8 of a label map."""

NOTES = Draft202012Validator(
    {
        "type": "object",
        "properties": {
            "subject_group": {"type": "object", "additionalProperties": {"type": ["string", "integer"]}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    }
)
"""Layout of `subjects.json`; what else it says is left alone."""


@dataclass(frozen=True)
class _Notes:
    """What `subjects.json` says: the subject of a case id or of the number it ends with, and the label names."""

    subject_group: Mapping[str, str]
    labels: Mapping[str, str] | None


def build_manifest(  # noqa: PLR0913  # each names one field of the manifest; a record would only move them
    folder: str | Path,
    *,
    name: str,
    modality: str,
    licence: str,
    folds: int = 5,
    labels: Mapping[str, str] | None = None,
    subjects: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Return the manifest of a folder; every file has passed `check_manifest`.

    Read are `images/` + `labels/`, `imagesTr/` + `labelsTr/` (with or without nnU-Net's `_0000`), or pairs in one
    folder such as `a.nii.gz` + `a_seg.nii.gz`. The same files give the same manifest on every machine.

    Args:
        folder: data root of the manifest.
        name: name of the data set.
        modality: "CT", "MRI" or "PICTURE"; pictures are in colours if the first one is.
        licence: licence of the data.
        folds: number of folds; cases are dealt by subject.
        labels: names as `{"0": "background", "1": ...}`; by default those of `subjects.json`, or else `label_1`,
            `label_2`, ... up to the highest value found.
        subjects: subject of every case id; by default those of `subjects.json`, or else each case is its own subject.
        seed: deals the subjects differently.
        progress: told how many cases have been checked.

    Raises:
        ManifestError: images without label, labels without image, cases without subject, and all that `check` refuses;
            lists all of them.
        UsageError: an unknown modality, label values with a gap, or fewer subjects than folds.

    >>> manifest = vg.build_manifest("data", name="blobs", modality="MRI", licence="CC0-1.0", folds=2)
    >>> [case.case_id for case in manifest.cases]
    ['case_0', 'case_1', 'case_2', 'case_3']
    """
    _refuse_options(modality, labels)
    root = Path(folder).resolve()
    notes = _read_notes(root)
    rule = ImageSpec(is_picture=modality == Modality.PICTURE)
    pairs, problems = find_pairs(root, rule)
    if not pairs:
        raise ManifestError(problems or [_no_pairs(root, rule)])
    subject_of, without_subject = _subjects_of(pairs, subjects, notes)
    problems += without_subject
    document = {
        "name": name,
        "licence": licence,
        **_channel_fields(pairs, modality),
        "labels": dict(labels or notes.labels or _default_labels(pairs)),
        "training": [_row_of_pair(pair, root, subject_of[pair.case_id]) for pair in pairs],
    }
    manifest = manifest_from_document(document, root)
    dealt = manifest if problems else manifest.with_folds(folds, seed)
    problems += manifest_defects(manifest, progress=progress)
    if problems:
        raise ManifestError(problems)
    return replace(dealt, cases=tuple(map(_with_checksums, dealt.cases)))


def _no_pairs(root: Path, rule: ImageSpec) -> str:
    wanted = f"pictures ({PICTURE_NAMES})" if rule.is_picture else f"volumes ({', '.join(SUFFIXES)})"
    other = ImageSpec(is_picture=not rule.is_picture)
    has_others = any(other.admits(path) for path in root.rglob("*"))
    hint = "choose another folder" if not has_others else "give --modality CT or MRI for volumes, PICTURE for pictures"
    return f"{root.name}: holds no {wanted}; {hint}."


def _channel_fields(pairs: Sequence[Pair], modality: str) -> dict[str, Any]:
    """Return what the manifest says of the channels; each picture is compared with it by `check_manifest`."""
    if modality != Modality.PICTURE or not _is_in_colours(pairs[0].image):
        return {"modality": {"0": modality}}
    channels = {str(index): name for index, name in enumerate(RGB)}
    return {"modality": dict.fromkeys(channels, modality), "channels": channels}


def _is_in_colours(path: Path) -> bool:
    try:
        return read_picture_header(path).channels > 1
    except InputError:
        return False  # `check_manifest` says why it cannot be read


def write_manifest(manifest: Manifest, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a manifest with one line for each case, so that two versions can be compared line by line.

    Args:
        manifest: whose paths are written relative to its data root.
        path: file to write; appears complete or not at all.
        overwrite: replace a file that is there.

    Raises:
        ManifestError: `load_manifest` would refuse what was written.
        OutputError: the file is there, or cannot be written.

    >>> manifest = vg.build_manifest("data", name="blobs", modality="MRI", licence="CC0-1.0", folds=2)
    >>> vg.write_manifest(manifest, "data/blobs.json")
    """
    path = Path(path)
    document = manifest.to_document()
    manifest_from_document(document, manifest.data_root)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; choose another name or allow overwriting.")
    try:
        write_text(path, _to_text(document), overwrite=overwrite)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; choose another place.") from error


def _refuse_options(modality: str, labels: Mapping[str, str] | None) -> None:
    if modality not in set(Modality):
        raise UsageError(f"modality {modality!r} is unknown; choose {' or '.join(Modality)}.")
    if labels is not None:
        try:
            LabelTable.from_mapping(labels)
        except ValueError as error:
            raise UsageError(f"labels: {error}.") from error


def _read_notes(root: Path) -> _Notes:
    path = root / SUBJECTS_FILE
    if not path.is_file():
        return _Notes({}, None)
    try:
        content = read_json(path)
        NOTES.validate(content)
        if "labels" in content:
            LabelTable.from_mapping(content["labels"])
    except (OSError, ValueError) as error:
        raise ManifestError([f"{SUBJECTS_FILE}: {error}."]) from error
    except ValidationError as error:
        raise ManifestError([f"{SUBJECTS_FILE}: {schema_problem(error)}"]) from error
    groups = {key: str(group) for key, group in content.get("subject_group", {}).items()}
    return _Notes(groups, content.get("labels"))


def _subjects_of(
    pairs: Sequence[Pair], subjects: Mapping[str, str] | None, notes: _Notes
) -> tuple[dict[str, str], list[str]]:
    """Return the subject of every case, and one line for each case whose subject is not known."""
    known = notes.subject_group if subjects is None else subjects
    if subjects is None and not known:
        return {pair.case_id: pair.case_id for pair in pairs}, []
    found = {pair.case_id: known.get(pair.case_id, known.get(_last_number(pair.case_id))) for pair in pairs}
    without = [pair.image.name for pair in pairs if found[pair.case_id] is None]
    source = SUBJECTS_FILE if subjects is None else "the subjects given"
    problems = [
        f"{name}: its subject is not in {source}; add it, or its sides may be split over folds." for name in without
    ]
    return {case_id: subject or case_id for case_id, subject in found.items()}, problems


def _last_number(case_id: str) -> str:
    """Return the digits a case id ends with: the Decathlon's `hippocampus_003` is case 003."""
    return case_id[len(case_id.rstrip("0123456789")) :]


def _default_labels(pairs: Sequence[Pair]) -> dict[str, str]:
    with ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1)) as pool:
        highest = max(pool.map(_highest_value, (pair.label for pair in pairs)))
    return {"0": "background", **{str(value): f"label_{value}" for value in range(1, highest + 1)}}


def _highest_value(path: Path) -> int:
    """Return the highest label value that can have a default name, at least 1; unreadable files are for the check."""
    try:
        voxels = read_volume(path)[0]
    except InputError:
        return 1
    if is_picture(path):
        voxels = binary_as_one(voxels, 1)
    return int(voxels[(voxels >= 1) & (voxels <= MOST_LABEL_VALUES)].max(initial=1))


def _row_of_pair(pair: Pair, root: Path, subject: str) -> dict[str, Any]:
    row = {"image": pair.image.relative_to(root).as_posix(), "label": pair.label.relative_to(root).as_posix()}
    named = {} if pair.case_id == volume_stem(pair.image) else {"case_id": pair.case_id}
    return {**named, **row, "subject": subject}


def _with_checksums(case: ManifestCase) -> ManifestCase:
    label = None if case.label is None else checksum(case.label)
    return replace(case, image_sha256=checksum(case.image), label_sha256=label)


def _to_text(document: Mapping[str, Any]) -> str:
    fields = (f"  {json.dumps(key)}: {_field_text(field)}" for key, field in document.items())
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _field_text(field: object) -> str:
    if not isinstance(field, list) or not field:
        return json.dumps(field, ensure_ascii=False)
    rows = (f"    {json.dumps(row, ensure_ascii=False)}" for row in field)
    return "[\n" + ",\n".join(rows) + "\n  ]"
