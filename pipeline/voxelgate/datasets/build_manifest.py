"""Make a manifest from a folder: pair images with labels, deal subjects into folds, record checksums."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from voxelgate.core.documents import read_json
from voxelgate.core.errors import InputError, ManifestError, OutputError, UsageError
from voxelgate.core.files import make_folder, write_text
from voxelgate.core.progress import Progress
from voxelgate.datasets.check_manifest import MOST_READERS, checked_manifest, checksum
from voxelgate.datasets.manifest import (
    Manifest,
    ManifestCase,
    Modality,
    manifest_from_document,
    named_values,
    schema_problem,
)
from voxelgate.evaluation.pairs import Pair, find_pairs
from voxelgate.images.label_maps import WHITES, LabelValues, single_channel, values_of, white_as_one, whole_labels
from voxelgate.images.pictures import RGB, read_picture_header
from voxelgate.images.spec import PICTURE_NAMES, ImageSpec
from voxelgate.images.volumes import SUFFIXES, read_channels, volume_stem

logger = logging.getLogger(__name__)

FOLDS = 5
"""Of a cross-validation, where there are as many subjects."""

SUBJECTS_FILE = "subjects.json"
"""File beside the images that may say which cases belong to one subject (`subject_group`), and name the `labels`."""

MOST_LABEL_VALUES = 255
"""A file with more values beside 0 is taken for no label map, so that its values get no default names."""

FEW = 3
"""Cases from which on it is told if only one of them holds a structure."""

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
    folds: int | None = None,
    labels: Mapping[str, str] | None = None,
    ignore: Sequence[int] = (),
    subjects: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Return the manifest of a folder; every file has passed `check_manifest`.

    Read are `images/` + `labels/`, `imagesTr/` + `labelsTr/`, or pairs in one folder such as `a.nii.gz` +
    `a_seg.nii.gz`; nnU-Net's `a_0000`, `a_0001`, ... are the channels of one image. The same files give the same
    manifest on every machine. What is right but unusual, such as a structure in one case only, is logged as a warning.

    Args:
        folder: data root of the manifest.
        name: name of the data set.
        modality: "CT", "MRI" or "PICTURE"; pictures are in colours if the first one is.
        licence: licence of the data.
        folds: number of folds; cases are dealt by subject. By default 5, or as many as there are subjects; with 1
            there are none, and a training sees all cases.
        labels: name of each value in the files, `{"0": "background", "200": ...}`; by default those of `subjects.json`,
            or else `label_200` and so on for the values found. A network numbers them 1, 2, ... in this order.
        ignore: values of voxels that nobody labelled; they neither train nor count.
        subjects: subject of every case id; by default those of `subjects.json`, or else each case is its own subject.
        seed: deals the subjects differently.
        progress: told how many cases have been checked.

    Raises:
        ManifestError: images without label, labels without image, cases without subject, and all that `check` refuses;
            lists all of them.
        UsageError: an unknown modality, labels without a background, or fewer subjects than folds.

    >>> manifest = vg.build_manifest("data", name="blobs", modality="MRI", licence="CC0-1.0", folds=2)
    >>> [case.case_id for case in manifest.cases]
    ['case_0', 'case_1', 'case_2', 'case_3']
    """
    _refuse_options(modality, labels, ignore)
    root = Path(folder).resolve()
    notes = _read_notes(root)
    rule = ImageSpec(is_picture=modality == Modality.PICTURE)
    pairs, problems = find_pairs(root, rule)
    if not pairs:
        raise ManifestError(problems or [_no_pairs(root, rule)])
    subject_of, without_subject = _subjects_of(pairs, subjects, notes)
    problems = [*problems, *without_subject]
    if unwritable := [*map(_unwritable_line, filter(_is_unwritable, pairs))]:
        raise ManifestError([*problems, *unwritable])
    document = {
        "name": name,
        "licence": licence,
        **_channel_fields(pairs, modality),
        "labels": dict(labels or notes.labels or _default_labels(pairs, ignore)),
        "ignore": list(ignore),
        "training": [_row_of_pair(pair, root, subject_of[pair.case_id]) for pair in pairs],
    }
    manifest = manifest_from_document(document, root)
    dealt = manifest if problems else _dealt(manifest, folds, seed)
    found = checked_manifest(manifest, progress=progress)
    if problems or found.problems:
        raise ManifestError([*problems, *found.problems])
    _tell_unusual(dealt, found.cases_with)
    return replace(dealt, cases=tuple(map(_with_checksums, dealt.cases)))


def _dealt(manifest: Manifest, folds: int | None, seed: int) -> Manifest:
    subjects = len({case.subject for case in manifest.cases})
    wanted = min(FOLDS, subjects) if folds is None else folds
    dealt = manifest.with_folds(wanted, seed)
    if wanted > 1:
        return dealt
    logger.warning(
        "%s: no folds, so that no case can measure a training on the others; train on all of them (--fold -1)",
        manifest.name,
    )
    return replace(dealt, cases=tuple(replace(case, fold=None) for case in dealt.cases))


def _tell_unusual(manifest: Manifest, cases_with: Mapping[int, int]) -> None:
    """Warn of structures that hardly any case holds: a slip of the pen makes one."""
    for number, name in manifest.labels.foreground.items():
        cases, all_cases = cases_with.get(number, 0), len(manifest.cases)
        if cases == 0 or (cases == 1 and all_cases >= FEW):
            held = "no case" if cases == 0 else f"one of {all_cases} cases only"
            logger.warning(
                "%s (value %d) is in %s; check that it is no slip", name, manifest.values.values[number], held
            )


def _no_pairs(root: Path, rule: ImageSpec) -> str:
    wanted = f"pictures ({PICTURE_NAMES})" if rule.is_picture else f"volumes ({', '.join(SUFFIXES)})"
    other = ImageSpec(is_picture=not rule.is_picture)
    has_others = any(other.admits(path) for path in root.rglob("*"))
    hint = "choose another folder" if not has_others else "give --modality CT or MRI for volumes, PICTURE for pictures"
    return f"{root.name}: holds no {wanted}; {hint}."


def _channel_fields(pairs: Sequence[Pair], modality: str) -> dict[str, Any]:
    """Return what the manifest says of the channels; each picture is compared with it by `check_manifest`."""
    if modality != Modality.PICTURE or len(pairs[0].images) > 1 or not _is_in_colours(pairs[0].image):
        return {"modality": {str(index): modality for index in range(len(pairs[0].images))}}
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
    make_folder(path.parent)
    try:
        write_text(path, _to_text(document), overwrite=overwrite)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; choose another place.") from error


def _refuse_options(modality: str, labels: Mapping[str, str] | None, ignore: Sequence[int]) -> None:
    if modality not in set(Modality):
        raise UsageError(f"modality {modality!r} is unknown; choose {' or '.join(Modality)}.")
    try:
        LabelValues((0,), tuple(ignore)) if labels is None else named_values(labels, ignore)
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
            named_values(content["labels"], ())
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


def _default_labels(pairs: Sequence[Pair], ignore: Sequence[int]) -> dict[str, str]:
    """Name the values that are found; refuse those that may mean something else than a structure."""
    with ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1)) as pool:
        of_files = list(pool.map(partial(_values_found, ignored=frozenset(ignore)), (pair.label for pair in pairs)))
    found = sorted(set[int]().union(*(values for values in of_files if values)))
    if not found and None in of_files:
        return {"0": "background", "1": "label_1"}  # the check says what is wrong with each
    if not found:
        others = " and those to be ignored" if ignore else ""
        raise ManifestError([f"labels: no label map holds a value beside 0{others}; give label maps that were drawn."])
    if doubtful := [value for value in found if value < 0 or _is_alone_at_the_end(value, found)]:
        files = sum(not values.isdisjoint(doubtful) for values in of_files if values)
        raise ManifestError([_doubtful_line(doubtful, found, files)])
    return {"0": "background", **{str(value): f"label_{value}" for value in found}}


def _values_found(path: Path, ignored: frozenset[int]) -> frozenset[int] | None:
    """Return the values of a label map beside 0, or None for unreadable files and images, which the check refuses."""
    try:
        channels = read_channels(path)[0]
        voxels = whole_labels(single_channel(path, channels))
    except InputError:
        return None
    values = frozenset(values_of(voxels if ignored else white_as_one(voxels))) - ignored
    return values if len(values) <= MOST_LABEL_VALUES else None


def _is_alone_at_the_end(value: int, found: Sequence[int]) -> bool:
    """Return whether a value is the last of its type, far behind the others: often it marks what nobody labelled."""
    return value in WHITES and len(found) > 1 and value - 1 not in found


def _doubtful_line(doubtful: Sequence[int], found: Sequence[int], files: int) -> str:
    values = ", ".join(map(str, doubtful))
    named = ",".join(f"{value}=NAME" for value in found if value >= 0)
    return (
        f"labels: the value {values} is in {files} label map{'' if files == 1 else 's'}; if it marks voxels that "
        f"nobody labelled, say so (--ignore {','.join(map(str, doubtful))})"
        + ("." if min(doubtful) < 0 else f", and if it is a structure, name all (--labels {named}).")
    )


def _is_unwritable(pair: Pair) -> bool:
    return any("\udc80" <= letter <= "\udcff" for path in (*pair.images, pair.label) for letter in path.name)


def _unwritable_line(pair: Pair) -> str:
    name = pair.image.name.encode("ascii", "backslashreplace").decode()
    return f"{name}: the name of image or label is no UTF-8, so that a manifest cannot hold it; rename both files."


def _row_of_pair(pair: Pair, root: Path, subject: str) -> dict[str, Any]:
    files = [path.relative_to(root).as_posix() for path in pair.images]
    row = {"image": files if len(files) > 1 else files[0], "label": pair.label.relative_to(root).as_posix()}
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
