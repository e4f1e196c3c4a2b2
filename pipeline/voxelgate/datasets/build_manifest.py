"""Make a manifest from a folder: pair images with labels, deal subjects into folds, record checksums."""

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from voxelgate.core.errors import InputError, ManifestError, OutputError, UsageError
from voxelgate.core.files import make_folder, write_text
from voxelgate.core.progress import Progress
from voxelgate.datasets.check_manifest import MOST_READERS, checked_manifest, checksum
from voxelgate.datasets.described_set import DESCRIPTION, is_described, read_described_set
from voxelgate.datasets.dicom_set import read_dicom_set
from voxelgate.datasets.found_set import FoundCase, FoundSet
from voxelgate.datasets.manifest import (
    Manifest,
    ManifestCase,
    Modality,
    manifest_from_document,
    named_values,
)
from voxelgate.datasets.notes import SUBJECTS_FILE, Notes, read_notes, subjects_by_pattern
from voxelgate.datasets.subjects_by_name import subjects_by_name
from voxelgate.dicom.labels.label_objects import label_files
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.evaluation.pairs import find_pairs
from voxelgate.images.label_maps import WHITES, LabelValues, single_channel, values_of, white_as_one, whole_labels
from voxelgate.images.pictures import RGB, read_picture_header
from voxelgate.images.spec import PICTURE_NAMES, ImageSpec
from voxelgate.images.volumes import SUFFIXES, read_channels, volume_stem

logger = logging.getLogger(__name__)

FOLDS = 5
"""Of a cross-validation, where there are as many subjects."""

MOST_LABEL_VALUES = 255
"""A file with more values beside 0 is taken for no label map, so that its values get no default names."""

FEW = 3
"""Cases from which on it is told if only one of them holds a structure."""


def build_manifest(  # noqa: PLR0913  # each names one field of the manifest; a record would only move them
    folder: str | Path,
    *,
    name: str = "",
    modality: str = "",
    licence: str = "",
    folds: int | None = None,
    labels: Mapping[str, str] | None = None,
    ignore: Sequence[int] = (),
    subjects: Mapping[str, str] | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Return the manifest of a folder; every file has passed `check_manifest`.

    Read are `images/` + `labels/`, `imagesTr/` + `labelsTr/`, or pairs in one folder such as `a.nii.gz` +
    `a_seg.nii.gz`; nnU-Net's `a_0000`, `a_0001`, ... are the channels of one image. What a `dataset.json` of nnU-Net or
    of the Decathlon says is taken, unless it is said here. In a folder of DICOM studies the cases are the series that a
    SEG or RTSTRUCT was drawn on, and their structures have the names, or codes, of `labels`. The same files give the
    same manifest on every machine. What is right but unusual, such as a structure in one case only, is logged as a
    warning.

    Args:
        folder: data root of the manifest, or the `dataset.json` in it.
        name: name of the data set; by default that of the folder.
        modality: "CT", "MRI" or "PICTURE", by default "CT"; pictures are in colours if the first one is.
        licence: licence of the data; by default "not stated".
        folds: number of folds; cases are dealt by subject. By default 5, or as many as there are subjects; with 1
            there are none, and a training sees all cases.
        labels: name of each value in the files, `{"0": "background", "200": ...}`; by default those of `labels.json` or
            `subjects.json`, or else `label_200` and so on for the values found. A network numbers them 1, 2, ... in
            this order.
        ignore: values of voxels that nobody labelled; they neither train nor count.
        subjects: subject of every case id, or a regular expression whose first group is it; by default those of
            `subjects.json`, or those that names tell of (`p1_left` and `p1_right`), or else each case is its own.
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
    root = _root_of(Path(folder))
    notes = read_notes(root)
    found = _found_in(root, modality, labels or notes.labels)
    subject_of, without_subject = _subjects_of(found, subjects, notes)
    problems = [*found.problems, *without_subject]
    if unwritable := [*map(_unwritable_line, filter(_is_unwritable, (*found.cases, *found.tests)))]:
        raise ManifestError([*problems, *unwritable])
    ignored = ignore or found.ignored
    document = {
        "name": name or found.name or root.name,
        **({"description": found.description} if found.description else {}),
        "licence": licence or found.licence or "not stated",
        **({"reference": found.reference} if found.reference else {}),
        **_channel_fields(found, modality or found.modality or Modality.CT),
        "labels": dict(labels or notes.labels or found.labels or _default_labels(found.cases, ignored)),
        "ignore": list(ignored),
        "training": [_row_of_case(case, root, subject_of[case.case_id]) for case in found.cases],
        **(
            {"test": [_row_of_case(case, root, subject_of[case.case_id]) for case in found.tests]}
            if found.tests
            else {}
        ),
    }
    manifest = manifest_from_document(document, root)
    dealt = manifest if problems else _dealt(manifest, folds, seed)
    checked = checked_manifest(manifest, progress=progress)
    if problems or checked.problems:
        raise ManifestError([*problems, *checked.problems])
    _tell_unusual(dealt, checked.cases_with, found.remarks)
    return replace(
        dealt,
        cases=tuple(map(_with_checksums, dealt.cases)),
        test_cases=tuple(map(_with_checksums, dealt.test_cases)),
    )


def _root_of(given: Path) -> Path:
    """Return the folder of a data set, also where its description was named."""
    return (given.parent if given.name == DESCRIPTION and given.is_file() else given).resolve()


def _found_in(root: Path, modality: str, labels: Mapping[str, str] | None) -> FoundSet:
    """Return the cases of a folder by what it says of itself, or else by what its files are called.

    Raises:
        ManifestError: there are none.
    """
    if is_described(root):
        found = read_described_set(root, modality)
    else:
        pairs, problems = find_pairs(root, ImageSpec(is_picture=modality == Modality.PICTURE))
        cases = tuple(FoundCase(pair.case_id, pair.images, pair.label) for pair in pairs)
        found = FoundSet(cases, problems=tuple(problems))
    if not found.cases and not found.problems and root.is_dir() and label_files(series := scan_dicom(root)):
        return read_dicom_set(series, labels, modality)
    if not found.cases:
        raise ManifestError(found.problems or [_no_pairs(root, ImageSpec(is_picture=modality == Modality.PICTURE))])
    return found


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


def _tell_unusual(manifest: Manifest, cases_with: Mapping[int, int], remarks: Sequence[str]) -> None:
    """Warn of what was understood in another way than it is said, and of structures that hardly any case holds."""
    for remark in remarks:
        logger.warning("%s", remark)
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


def _channel_fields(found: FoundSet, modality: str) -> dict[str, Any]:
    """Return what the manifest says of the channels; each image is compared with it by `check_manifest`."""
    if found.channels:
        named = {str(index): name for index, name in enumerate(found.channels)}
        return {"modality": dict.fromkeys(named, modality), "channels": named}
    images = found.cases[0].images
    if modality != Modality.PICTURE or len(images) > 1 or not _is_in_colours(images[0]):
        return {"modality": {str(index): modality for index in range(len(images))}}
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
    if modality and modality not in set(Modality):
        raise UsageError(f"modality {modality!r} is unknown; choose {' or '.join(Modality)}.")
    try:
        LabelValues((0,), tuple(ignore)) if labels is None else named_values(labels, ignore)
    except ValueError as error:
        raise UsageError(f"labels: {error}.") from error


def _subjects_of(
    found: FoundSet, given: Mapping[str, str] | str | None, notes: Notes
) -> tuple[dict[str, str], list[str]]:
    """Return the subject of every case, and one line for each case whose subject is not known."""
    case_ids = [case.case_id for case in (*found.cases, *found.tests)]
    if isinstance(given, str):
        return subjects_by_pattern(case_ids, given), []
    known = notes.subject_group if given is None else given
    if given is None and not known:
        return _subjects_by_themselves(found), []
    told = {case_id: known.get(case_id, known.get(_last_number(case_id))) for case_id in case_ids}
    without = [case.images[0].name for case in (*found.cases, *found.tests) if told[case.case_id] is None]
    source = SUBJECTS_FILE if given is None else "the subjects given"
    problems = [
        f"{name}: its subject is not in {source}; add it, or its sides may be split over folds." for name in without
    ]
    return {case_id: subject or case_id for case_id, subject in told.items()}, problems


def _subjects_by_themselves(found: FoundSet) -> dict[str, str]:
    """Return the subjects that the data set tells of, or else those that the names of its cases tell of."""
    cases = (*found.cases, *found.tests)
    by_name = subjects_by_name(case.case_id for case in cases)
    subject_of = {case.case_id: case.subject or by_name[case.case_id] for case in cases}
    shared = Counter(subject_of.values())
    if example := [case_id for case_id, subject in subject_of.items() if shared[subject] > 1]:
        same = [case_id for case_id in example if subject_of[case_id] == subject_of[example[0]]]
        logger.warning(
            "%d cases of %d subjects, by their names: %s are of one; say otherwise with --subjects",
            len(cases),
            len(shared),
            " and ".join(same[:2]),
        )
    return subject_of


def _last_number(case_id: str) -> str:
    """Return the digits a case id ends with: the Decathlon's `hippocampus_003` is case 003."""
    return case_id[len(case_id.rstrip("0123456789")) :]


def _default_labels(cases: Sequence[FoundCase], ignore: Sequence[int]) -> dict[str, str]:
    """Name the values that are found; refuse those that may mean something else than a structure."""
    with ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1)) as pool:
        labels = (case.label for case in cases if case.label is not None)
        of_files = list(pool.map(partial(_values_found, ignored=frozenset(ignore)), labels))
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


def _is_unwritable(case: FoundCase) -> bool:
    names = [path.name for path in (*case.images, case.label) if path is not None]
    return any("\udc80" <= letter <= "\udcff" for name in names for letter in name)


def _unwritable_line(case: FoundCase) -> str:
    name = case.images[0].name.encode("ascii", "backslashreplace").decode()
    return f"{name}: the name of image or label is no UTF-8, so that a manifest cannot hold it; rename both files."


def _row_of_case(case: FoundCase, root: Path, subject: str) -> dict[str, Any]:
    files = [path.relative_to(root).as_posix() for path in case.images]
    return {
        **({} if case.case_id == volume_stem(case.images[0]) else {"case_id": case.case_id}),
        "image": files if len(files) > 1 else files[0],
        **({} if case.label is None else {"label": case.label.relative_to(root).as_posix()}),
        **({"segments": {str(number): value for number, value in case.segments.items()}} if case.segments else {}),
        "subject": subject,
    }


def _with_checksums(case: ManifestCase) -> ManifestCase:
    label = None if case.label is None else checksum(case.label)
    return replace(case, image_sha256=None if case.is_dicom else checksum(case.image), label_sha256=label)


def _to_text(document: Mapping[str, Any]) -> str:
    fields = (f"  {json.dumps(key)}: {_field_text(field)}" for key, field in document.items())
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _field_text(field: object) -> str:
    if not isinstance(field, list) or not field:
        return json.dumps(field, ensure_ascii=False)
    rows = (f"    {json.dumps(row, ensure_ascii=False)}" for row in field)
    return "[\n" + ",\n".join(rows) + "\n  ]"
