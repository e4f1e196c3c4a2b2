"""A data set as one JSON file: its cases, subjects, folds and checksums, and what its label values mean.

The layout is the Decathlon's datalist plus our fields (`manifest.schema.json`); `monai.data.load_decathlon_datalist`
reads it too. `build_manifest` makes one from a folder, `check_manifest` compares one with its files.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Self

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from voxelgate.core.documents import read_json
from voxelgate.core.errors import ManifestError, UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.folds import assign_folds, closed_up
from voxelgate.dicom.labels.label_voxels import DicomLabels
from voxelgate.dicom.read.series_paths import is_series_path
from voxelgate.images.label_maps import VALUES_KEY, LabelValues
from voxelgate.images.pictures import is_picture
from voxelgate.images.spec import PICTURE_NAMES, ImageSpec
from voxelgate.images.volumes import is_nifti, volume_stem

ALL_FOLDS = -1
"""The `fold` of `datalist` that trains on every labelled case."""

LONGEST_REASON = 200
"""Characters of a schema message that are shown; it may quote a whole list of cases."""


class Modality(StrEnum):
    """What the voxels of a data set hold.

    CT values have one scale in all images, MRI values have none. A picture is a PNG, TIFF or JPEG file: photographs,
    microscopy, ultrasound, pathology tiles; grey, or in colours that keep their relation.
    """

    CT = "CT"
    MRI = "MRI"
    PICTURE = "PICTURE"


class Split(StrEnum):
    """Which cases of a manifest a datalist names."""

    TRAINING = "training"
    VALIDATION = "validation"
    ALL = "all"
    TEST = "test"


@dataclass(frozen=True)
class ManifestCase:
    """One image, the label map drawn on it, and the subject it belongs to.

    Args:
        case_id: name in reports and output files, unique in its manifest.
        image: absolute path; of the first channel where the data set has several.
        label: absolute path, or None for a test case without one.
        subject: pseudonym of the person scanned.
        fold: cross-validation fold, or None where the data set has no folds.
        image_sha256: checksum of the image file, or None if the manifest gives none.
        label_sha256: checksum of the label file, or None if the manifest gives none.
        further_channels: absolute paths of the second channel and those that follow.
        segments: number of each segment that counts and its value among `labels`, where the label is a DICOM SEG or
            RTSTRUCT; the image then is the series that it was drawn on, as `series_path` names it.
    """

    case_id: str
    image: Path
    label: Path | None
    subject: str
    fold: int | None
    image_sha256: str | None = None
    label_sha256: str | None = None
    further_channels: tuple[Path, ...] = ()
    segments: tuple[tuple[int, int], ...] = ()

    @property
    def channels(self) -> tuple[Path, ...]:
        """Return the files of the image, one for each channel."""
        return (self.image, *self.further_channels)

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files of the image, and the label if there is one."""
        return self.channels if self.label is None else (*self.channels, self.label)

    @property
    def is_dicom(self) -> bool:
        """Return whether its image is a DICOM series."""
        return is_series_path(self.image)


@dataclass(frozen=True)
class Manifest:
    """A data set whose rows agree with each other; whether they agree with the files, `check_manifest` knows.

    Args:
        name: name of the data set.
        modality: what the voxels hold.
        labels: names of the label values.
        licence: licence of the data.
        cases: labelled cases for training and cross-validation.
        test_cases: cases kept apart from training.
        data_root: absolute folder that holds every file.
        description: where the data come from and what to know of them.
        reference: publications to cite.
        channel_names: what each channel of an image is, such as T1 and FLAIR.
        label_values: values of background and structures in the label files; 0, 1, 2, ... if empty.
        ignored: values in the label files of voxels that neither train nor count.

    Raises:
        ManifestError: a file outside of `data_root` or named twice, a case id used twice, a case with more or fewer
            files than channels (a picture in colours is one file for three), a file of another kind, a subject in two
            folds or in training and test, folds that are incomplete or not 0, 1, 2, ...; all of them at once.

    >>> manifest = vg.load_manifest("data/manifest.json")
    >>> len(manifest.cases), manifest.folds
    (4, (0, 1))
    """

    name: str
    modality: Modality
    labels: LabelTable
    licence: str
    cases: tuple[ManifestCase, ...]
    test_cases: tuple[ManifestCase, ...]
    data_root: Path
    description: str = ""
    reference: str = ""
    channel_names: tuple[str, ...] = ("image",)
    label_values: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rules = (
            _path_problems,
            _channel_problems,
            _segment_problems,
            _case_id_problems,
            _subject_problems,
            _fold_problems,
        )
        problems = [problem for rule in rules for problem in rule(self)]
        if problems:
            raise ManifestError(problems)

    @property
    def folds(self) -> tuple[int, ...]:
        """Return the numbers of the folds, ascending; empty if the data set has none."""
        return tuple(sorted({case.fold for case in self.cases if case.fold is not None}))

    @property
    def images(self) -> ImageSpec:
        """Return what every image consists of."""
        return ImageSpec(self.channel_names, self.modality is Modality.PICTURE)

    @property
    def values(self) -> LabelValues:
        """Return what the values of the label files stand for."""
        return LabelValues(self.label_values or tuple(range(len(self.labels.names))), self.ignored)

    def reference_of(self, case: ManifestCase) -> Path | DicomLabels | None:
        """Return what the labels of a case are read from; those of DICOM have the values 0, 1, 2, ... already."""
        if case.label is None or not case.segments:
            return case.label
        return DicomLabels(case.label, case.image, self.numbers_of_segments(case))

    def numbers_of_segments(self, case: ManifestCase) -> dict[int, int]:
        """Return the number, 1, 2, ..., of the structure that each segment of a DICOM label is."""
        return {segment: self.values.values.index(value) for segment, value in case.segments}

    @property
    def all_cases(self) -> tuple[ManifestCase, ...]:
        """Return the training cases, then the test cases."""
        return self.cases + self.test_cases

    def without(self, case_ids: Collection[str]) -> Self:
        """Return a manifest without some of its labelled cases; folds that lose all of theirs are closed up."""
        cases = [case for case in self.cases if case.case_id not in case_ids]
        number = closed_up(case.fold for case in cases)
        return replace(self, cases=tuple(replace(case, fold=number[case.fold]) for case in cases))

    def with_folds(self, folds: int, seed: int = 0) -> Self:
        """Return a manifest whose labelled cases are dealt into folds anew, by subject, as `assign_folds` does.

        Raises:
            UsageError: fewer than one fold, or more folds than subjects.
        """
        fold_of = assign_folds({case.case_id: case.subject for case in self.cases}, folds, seed)
        return replace(self, cases=tuple(replace(case, fold=fold_of[case.case_id]) for case in self.cases))

    def to_document(self) -> dict[str, Any]:
        """Return the manifest as JSON, from which `manifest_from_document` makes it again; what is empty is left out.

        >>> table = LabelTable(("background", "liver"))
        >>> case = ManifestCase("a", Path("/d/a.nii"), Path("/d/a_seg.nii"), "s1", 0)
        >>> Manifest("livers", Modality.CT, table, "CC0-1.0", (case,), (), Path("/d")).to_document()["training"]
        [{'image': 'a.nii', 'label': 'a_seg.nii', 'subject': 's1', 'fold': 0}]
        """
        channels = {str(index): name for index, name in enumerate(self.channel_names)}
        return {
            "name": self.name,
            **({"description": self.description} if self.description else {}),
            "licence": self.licence,
            **({"reference": self.reference} if self.reference else {}),
            "modality": dict.fromkeys(channels, str(self.modality)),
            **({"channels": channels} if channels != _default_names(channels) else {}),
            "labels": {str(value): name for value, name in zip(self.values.values, self.labels.names, strict=True)},
            **({"ignore": list(self.ignored)} if self.ignored else {}),
            "training": [self._row(case) for case in self.cases],
            **({"test": [self._row(case) for case in self.test_cases]} if self.test_cases else {}),
        }

    def _row(self, case: ManifestCase) -> dict[str, Any]:
        files = [self.relative(path) for path in case.channels]
        optional = {
            "label": case.label and self.relative(case.label),
            "segments": {str(segment): value for segment, value in case.segments},
            "subject": case.subject,
            "fold": case.fold,
            "sha256": {
                kind: sum_ for kind, sum_ in (("image", case.image_sha256), ("label", case.label_sha256)) if sum_
            },
        }
        return {
            **({} if case.case_id == volume_stem(case.image) else {"case_id": case.case_id}),
            "image": files if case.further_channels else files[0],
            **{name: value for name, value in optional.items() if value not in (None, {})},
        }

    def relative(self, path: Path) -> str:
        """Return a file's path as the manifest writes it: relative to the data root, with forward slashes."""
        return path.relative_to(self.data_root).as_posix() if path.is_relative_to(self.data_root) else str(path)


def load_manifest(path: str | Path, data_root: str | Path | None = None) -> Manifest:
    """Read a manifest and compare its rows with each other; the files it names are not opened.

    Args:
        path: the JSON file.
        data_root: folder the paths inside are relative to; the manifest's own folder if None.

    Raises:
        ManifestError: no such file, not JSON, not of the schema, or rows that contradict each other; lists
            all problems.

    >>> vg.load_manifest("data/manifest.json").labels.names
    ('background', 'blob')
    """
    path = Path(path)
    document = _read_document(path)
    try:
        return manifest_from_document(document, path.parent if data_root is None else Path(data_root))
    except ManifestError as error:
        raise ManifestError([f"{path.name}: {problem}" for problem in error.problems]) from error


def manifest_from_document(document: object, data_root: Path) -> Manifest:
    """Return the manifest that a decoded JSON document describes, its paths below `data_root`.

    Raises:
        ManifestError: the document is not of the schema, or rows contradict each other; lists all problems.
    """
    problems = [schema_problem(error) for error in _schema_errors(document)]
    if problems or not isinstance(document, dict):
        raise ManifestError(problems)
    try:
        labels, values = named_values(document["labels"], document.get("ignore", ()))
    except ValueError as error:
        raise ManifestError([f"labels: {error}."]) from error
    modality = document["modality"]
    if list(modality) != [str(index) for index in range(len(modality))] or len(set(modality.values())) > 1:
        raise ManifestError(
            ["modality: channels are 0, 1, 2, ... in this order, and all CT or all MRI or all PICTURE."]
        )
    names = document.get("channels", _default_names(modality))
    if names.keys() != modality.keys():
        raise ManifestError([f"channels: expected a name for each of {', '.join(modality)}, as in modality."])
    root = data_root.resolve()
    return Manifest(
        name=document["name"],
        modality=Modality(modality["0"]),
        labels=labels,
        licence=document["licence"],
        cases=tuple(_case_of_row(row, root) for row in document["training"]),
        test_cases=tuple(_case_of_row(row, root) for row in document.get("test", [])),
        data_root=root,
        description=document.get("description", ""),
        reference=document.get("reference", ""),
        channel_names=tuple(names[key] for key in modality),
        label_values=() if values.values == tuple(range(len(values.values))) else values.values,
        ignored=values.ignored,
    )


def named_values(names: Mapping[str, str], ignored: Iterable[int]) -> tuple[LabelTable, LabelValues]:
    """Return names and file values of the labels of a data set, both in the order of the values.

    Args:
        names: name of each value of the files, 0 the background.
        ignored: values of voxels that neither train nor count.

    Raises:
        ValueError: no background, a value twice, or names that make no table.
    """
    values = LabelValues(tuple(sorted(int(value) for value in names)), tuple(sorted(set(ignored))))
    return LabelTable(tuple(names[str(value)] for value in values.values)), values


def datalist(
    path: str | Path, *, data_root: str | Path | None = None, fold: int, part: str = Split.TRAINING
) -> list[dict[str, Any]]:
    """Return the rows a bundle config hands to MONAI's `Dataset`: "image", "label", "case_id", "subject".

    "image" is one path, or a list of them where images have several channels. Where label files have other values than
    0, 1, 2, ..., or some to be ignored, "label_values" tells `LoadLabeld` the number of each. A DICOM label is named
    together with its series, and "label_values" tells the number of each segment.

    Args:
        path: the manifest.
        data_root: folder the paths inside are relative to; the manifest's own folder if None.
        fold: the fold that validates; the others train. With -1 every labelled case trains, and the cases of fold 0
            (all cases, if there are no folds) are the validation part only so that progress can be watched: the network
            has seen them, so their Dice is no estimate of its accuracy. Without meaning for the parts "all" and "test".
        part: "training", "validation", "all" (every labelled case), or "test" (no "label" where there is none).

    Raises:
        ManifestError: see `load_manifest`.
        UsageError: an unknown part or fold, or a part without cases.

    >>> rows = vg.datalist("data/manifest.json", fold=0, part="validation")
    >>> sorted(rows[0])
    ['case_id', 'image', 'label', 'subject']
    """
    if part not in set(Split):
        raise UsageError(f"part {part!r} is unknown; the parts are {', '.join(Split)}.")
    manifest = load_manifest(path, data_root)
    cases = part_cases(manifest, fold, Split(part))
    if not cases:
        raise UsageError(f"{Path(path).name}: part {part} of fold {fold} holds no case; choose another fold or part.")
    return [_datalist_row(case, manifest) for case in cases]


def schema_problem(error: ValidationError) -> str:
    """Say in one line where a document breaks its schema, and how."""
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    if error.validator == "pattern" and isinstance(error.schema, Mapping) and "description" in error.schema:
        return f"{where.lstrip('.')}: found {error.instance!r}, expected: {error.schema['description']}"
    reason = error.message if len(error.message) <= LONGEST_REASON else f"...{error.message[-LONGEST_REASON:]}"
    return f"{where.lstrip('.') or 'the document'}: {reason}."


def _default_names(channels: Collection[str]) -> dict[str, str]:
    return {key: "image" if len(channels) == 1 else f"channel {key}" for key in channels}


def _read_document(path: Path) -> object:
    try:
        return read_json(path)
    except OSError as error:
        raise ManifestError([f"{path}: cannot be read as a manifest: {error.strerror}; check the path."]) from error
    except ValueError as error:
        raise ManifestError([f"{path.name}: not valid JSON: {error}."]) from error


@cache
def _validator() -> Draft202012Validator:
    schema = resources.files("voxelgate.datasets").joinpath("manifest.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(schema))


def _schema_errors(document: object) -> list[ValidationError]:
    """Return all breaches in the order of the document's rows; padding sorts 9 before 10."""
    return sorted(_validator().iter_errors(document), key=lambda error: [f"{step:>9}" for step in error.absolute_path])


def _case_of_row(row: Mapping[str, Any], root: Path) -> ManifestCase:
    named = row["image"]
    image, *further = (root / path for path in ([named] if isinstance(named, str) else named))
    checksums = row.get("sha256", {})
    return ManifestCase(
        case_id=row.get("case_id", volume_stem(image)),
        image=image,
        label=root / row["label"] if "label" in row else None,
        subject=row["subject"],
        fold=int(row["fold"]) if "fold" in row else None,
        image_sha256=checksums.get("image"),
        label_sha256=checksums.get("label"),
        further_channels=tuple(further),
        segments=tuple((int(number), value) for number, value in row.get("segments", {}).items()),
    )


def _path_problems(manifest: Manifest) -> Iterator[str]:
    times = Counter(path for case in manifest.all_cases for path in case.files)
    for path, count in times.items():
        relative = manifest.relative(path)
        if not path.is_relative_to(manifest.data_root) or ".." in Path(relative).parts:
            yield f"{relative}: leaves the data root; paths are relative to it and have no '..'."
        if count > 1:
            yield f"{relative}: named {count} times; a file belongs to one case, as its image or its label."


def _channel_problems(manifest: Manifest) -> Iterator[str]:
    rule = manifest.images
    for case in manifest.all_cases:
        holds_all = len(case.channels) == 1 and rule.may_be_one_file and (rule.is_picture or is_nifti(case.image))
        if len(case.channels) != rule.files and not holds_all:
            yield (
                f"{manifest.relative(case.image)}: {len(case.channels)} files for an image of {rule.files} "
                "channels; name one file for each channel of modality."
            )
        for path in case.channels if case.segments else case.files:
            if is_picture(path) != rule.is_picture:
                kind = f"{PICTURE_NAMES} pictures" if rule.is_picture else "volumes"
                yield f"{manifest.relative(path)}: is of another kind than {kind}, as modality says; convert it."


def _segment_problems(manifest: Manifest) -> Iterator[str]:
    known = set(manifest.values.values[1:])
    for case in manifest.all_cases:
        if case.segments and case.label is None:
            yield f"{manifest.relative(case.image)}: has segments, but no label; name the file that holds them."
        if others := sorted({value for _, value in case.segments} - known):
            found = ", ".join(map(str, others))
            yield f"{manifest.relative(case.image)}: segments of the value {found}, which labels do not name; name it."


def _case_id_problems(manifest: Manifest) -> Iterator[str]:
    for case_id, cases in _grouped((case.case_id, case) for case in manifest.all_cases).items():
        images = {manifest.relative(case.image) for case in cases}
        if len(images) > 1:
            yield f"{', '.join(sorted(images))}: all have the case id {case_id}; give each row a case_id of its own."


def _subject_problems(manifest: Manifest) -> Iterator[str]:
    tested = {case.subject for case in manifest.test_cases}
    for subject, cases in _grouped((case.subject, case) for case in manifest.cases).items():
        images = ", ".join(manifest.relative(case.image) for case in cases)
        folds = sorted({case.fold for case in cases if case.fold is not None})
        if len(folds) > 1:
            yield f"{images}: subject {subject} is in folds {', '.join(map(str, folds))}; it belongs to one."
        if subject in tested:
            yield f"{images}: subject {subject} is in training and in test; it belongs to one of them."


def _fold_problems(manifest: Manifest) -> Iterator[str]:
    without = [manifest.relative(case.image) for case in manifest.cases if case.fold is None]
    if without and len(without) < len(manifest.cases):
        yield f"{', '.join(without)}: without a fold, while other cases have one; give a fold to all cases or to none."
    if manifest.folds != tuple(range(len(manifest.folds))):
        yield f"training: folds are {', '.join(map(str, manifest.folds))}; number them 0, 1, 2, ... without a gap."


def _grouped(pairs: Iterable[tuple[str, ManifestCase]]) -> dict[str, list[ManifestCase]]:
    groups: dict[str, list[ManifestCase]] = defaultdict(list)
    for key, case in pairs:
        groups[key].append(case)
    return groups


def part_cases(manifest: Manifest, fold: int, part: Split) -> list[ManifestCase]:
    """Return the cases of a part, as `datalist` says.

    Raises:
        UsageError: an unknown fold.
    """
    if part is Split.TEST:
        return list(manifest.test_cases)
    if part is Split.ALL or (fold == ALL_FOLDS and (part is Split.TRAINING or not manifest.folds)):
        return list(manifest.cases)
    validating = 0 if fold == ALL_FOLDS else fold
    if validating not in manifest.folds:
        names = ", ".join(map(str, manifest.folds)) or "none"
        raise UsageError(
            f"manifest {manifest.name} has no fold {fold}; its folds are {names}, and {ALL_FOLDS} for all."
        )
    return [case for case in manifest.cases if (case.fold == validating) == (part is Split.VALIDATION)]


def _datalist_row(case: ManifestCase, manifest: Manifest) -> dict[str, Any]:
    files = [str(path) for path in case.channels]
    row: dict[str, Any] = {
        "image": files if case.further_channels else files[0],
        "case_id": case.case_id,
        "subject": case.subject,
    }
    if case.label is None:
        return row
    if case.segments:
        numbers = {str(segment): number for segment, number in manifest.numbers_of_segments(case).items()}
        return {**row, "label": [str(case.label), str(case.image)], VALUES_KEY: numbers}
    values = {} if manifest.values.is_plain else {VALUES_KEY: manifest.values.to_mapping()}
    return {**row, "label": str(case.label), **values}


def is_manifest(given: Path) -> bool:
    """Return whether an input is named like a manifest."""
    return given.suffix.lower() == ".json"
