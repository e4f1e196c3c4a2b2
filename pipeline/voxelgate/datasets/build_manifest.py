"""Make a manifest from a folder: pair images with labels, deal subjects into folds, record checksums."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from voxelgate.core.errors import InputError, ManifestError, OutputError, UsageError
from voxelgate.core.files import write_text
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.check_manifest import MOST_READERS, Progress, checksum, manifest_defects
from voxelgate.datasets.manifest import Modality, closed_up, manifest_from_document, schema_problem
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
) -> dict[str, Any]:
    """Return the manifest of a folder, as decoded JSON for `write_manifest`; every file has passed `check_manifest`.

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
    """
    _refuse_options(modality, labels)
    root = Path(folder).resolve()
    notes = _read_notes(root)
    rule = ImageSpec(is_picture=modality == Modality.PICTURE)
    pairs, problems = find_pairs(root, rule)
    if not pairs:
        raise ManifestError(problems or [_nothing_found(root, rule)])
    subject_of, without_subject = _subjects_of(pairs, subjects, notes)
    problems += without_subject
    fold_of = {} if problems else assign_folds(subject_of, folds, seed)
    rows = [_row(pair, root, subject_of[pair.case_id]) for pair in pairs]
    document = {
        "name": name,
        "licence": licence,
        **_channels(pairs, modality),
        "labels": dict(labels or notes.labels or _default_labels(pairs)),
        "training": rows,
    }
    problems += manifest_defects(manifest_from_document(document, root), progress=progress)
    if problems:
        raise ManifestError(problems)
    dealt = [{**row, "fold": fold_of[pair.case_id]} for row, pair in zip(rows, pairs, strict=True)]
    return {**document, "training": [{**row, "sha256": _checksums(row, root)} for row in dealt]}


def _nothing_found(root: Path, rule: ImageSpec) -> str:
    wanted = f"pictures ({PICTURE_NAMES})" if rule.is_picture else f"volumes ({', '.join(SUFFIXES)})"
    other = ImageSpec(is_picture=not rule.is_picture)
    has_others = any(other.admits(path) for path in root.rglob("*"))
    hint = "choose another folder" if not has_others else "give --modality CT or MRI for volumes, PICTURE for pictures"
    return f"{root.name}: holds no {wanted}; {hint}."


def _channels(pairs: Sequence[Pair], modality: str) -> dict[str, Any]:
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


def leave_out(path: Path, case_ids: Collection[str]) -> dict[str, Any]:
    """Return the document of a manifest without some of its cases; folds that lose all of theirs are closed up.

    Args:
        path: of a manifest that `load` accepts.
        case_ids: to leave out.

    Raises:
        UsageError: no labelled case would remain.
    """
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in document["training"] if _case_id(row) not in case_ids]
    if not rows:
        raise UsageError(f"{path.name}: no case would remain; mend the files first.")
    number = closed_up(row.get("fold") for row in rows)
    closed = [row | ({"fold": number[row["fold"]]} if "fold" in row else {}) for row in rows]
    return document | {"training": closed}


def with_folds(path: Path, folds: int) -> dict[str, Any]:
    """Return the document of a manifest whose cases are dealt into folds anew, by subject."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    fold_of = assign_folds({_case_id(row): row["subject"] for row in document["training"]}, folds)
    return document | {"training": [row | {"fold": fold_of[_case_id(row)]} for row in document["training"]]}


def assign_folds(subject_of: Mapping[str, str], folds: int, seed: int = 0) -> dict[str, int]:
    """Deal cases into folds 0 to `folds - 1` so that no subject is split and the folds are as equal as that allows.

    Subjects with many cases are dealt first, the others in the order of a hash, each to the fold that has the fewest
    cases; so two folds never differ by more cases than the largest subject has, whatever the order of the cases.

    Args:
        subject_of: subject of every case id.
        folds: number of folds.
        seed: part of the hash.

    Raises:
        UsageError: fewer than one fold, or more folds than subjects.

    >>> assign_folds({"a": "s1", "b": "s1", "c": "s2"}, 2) == {"a": 0, "b": 0, "c": 1}
    True
    """
    size = Counter(subject_of.values())
    if not 1 <= folds <= len(size):
        raise UsageError(f"{folds} folds asked for, but there are {len(size)} subjects; choose 1 to {len(size)} folds.")
    cases_in = [0] * folds
    fold_of_subject: dict[str, int] = {}
    for subject in sorted(size, key=lambda subject: (-size[subject], _hash(f"{seed}/{subject}"), subject)):
        fold = cases_in.index(min(cases_in))
        fold_of_subject[subject] = fold
        cases_in[fold] += size[subject]
    return {case_id: fold_of_subject[subject] for case_id, subject in subject_of.items()}


def write_manifest(document: Mapping[str, Any], path: str | Path, *, overwrite: bool = False) -> None:
    """Write a manifest with one line for each case, so that two versions can be compared line by line.

    Args:
        document: the manifest as decoded JSON, for instance from `build_manifest`.
        path: file to write; appears complete or not at all.
        overwrite: replace a file that is there.

    Raises:
        ManifestError: `manifest.load` would refuse the document.
        OutputError: the file is there, or cannot be written.
    """
    path = Path(path)
    manifest_from_document(document, path.parent)
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
        content = json.loads(path.read_text(encoding="utf-8"))
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


def _row(pair: Pair, root: Path, subject: str) -> dict[str, Any]:
    row = {"image": pair.image.relative_to(root).as_posix(), "label": pair.label.relative_to(root).as_posix()}
    named = {} if pair.case_id == volume_stem(pair.image) else {"case_id": pair.case_id}
    return {**named, **row, "subject": subject}


def _case_id(row: Mapping[str, Any]) -> str:
    image = row["image"] if isinstance(row["image"], str) else row["image"][0]
    return str(row.get("case_id", volume_stem(Path(image))))


def _checksums(row: Mapping[str, Any], root: Path) -> dict[str, str]:
    return {kind: checksum(root / row[kind]) for kind in ("image", "label")}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _to_text(document: Mapping[str, Any]) -> str:
    fields = (f"  {json.dumps(key)}: {_field_text(field)}" for key, field in document.items())
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _field_text(field: object) -> str:
    if not isinstance(field, list) or not field:
        return json.dumps(field, ensure_ascii=False)
    rows = (f"    {json.dumps(row, ensure_ascii=False)}" for row in field)
    return "[\n" + ",\n".join(rows) + "\n  ]"
