"""Archives of DICOM studies as data sets: each series that a SEG or RTSTRUCT was drawn on is a case."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxelgate.core.errors import InputError, ManifestError
from voxelgate.core.findings import refusals
from voxelgate.core.terminology import find_coding, normalised
from voxelgate.datasets.found_set import FoundCase, FoundSet
from voxelgate.datasets.manifest import Modality
from voxelgate.dicom.labels.label_objects import Codes, LabelObject, LabelSegment, label_files, read_label_object
from voxelgate.dicom.read.dicom_files import FileRef
from voxelgate.dicom.read.series import Series
from voxelgate.dicom.read.series_paths import series_path

MOST_NAMES_SHOWN = 8
"""Names of structures that a sentence lists."""

ID_LETTERS = 12
"""Digits of the hash of a patient ID by which a manifest tells people apart."""


@dataclass(frozen=True)
class _Drawn:
    """A series that can be read, and the only file of labels that was drawn on it."""

    series: Series
    labels: LabelObject

    @property
    def modality(self) -> Modality:
        return Modality.CT if self.series.modality == "CT" else Modality.MRI


def read_dicom_set(found: Sequence[Series], labels: Mapping[str, str] | None = None, modality: str = "") -> FoundSet:
    """Return the cases of an archive: series with a SEG or RTSTRUCT that names them.

    Segments are of one structure if they have one name, or one code where no file holds both. Without `labels` all
    structures are taken, with the numbers that they have in every file, or else 1, 2, ... What is left out is told.

    Args:
        found: every series of the archive, those of labels too, as `scan_dicom` finds them.
        labels: name of each value; segments of this name or its code are taken, all others are background.
        modality: take series of this one only; empty if there is one.

    Raises:
        ManifestError: nothing can be taken, or the series are of several modalities.
    """
    drawn, remarks = _drawn_series(found)
    kinds = {one.modality for one in drawn}
    if not modality and len(kinds) > 1:
        raise ManifestError([f"images of {' and '.join(sorted(kinds))}; say which of them to take (--modality)."])
    taken = [one for one in drawn if not modality or one.modality == modality]
    objects = [one.labels for one in taken]
    numbers, names = _wanted_structures(objects, labels) if labels else _all_structures(objects)
    cases = [_case_of(one, numbers) for one in taken]
    with_labels = tuple(case for case in cases if case.segments)
    if not with_labels:
        raise ManifestError(remarks or ["no SEG or RTSTRUCT holds a structure that is wanted; name others (--labels)."])
    if len(with_labels) < len(cases):
        remarks.append(f"{len(cases) - len(with_labels)} series without any of the structures were left out")
    return FoundSet(
        with_labels,
        remarks=(*remarks, *_background(objects, numbers)),
        modality=kinds.pop() if len(kinds) == 1 else None,
        labels=names,
    )


def _drawn_series(found: Sequence[Series]) -> tuple[list[_Drawn], list[str]]:
    """Return the series that labels were drawn on, and why each other file of labels is left out."""
    remarks: list[str] = []
    objects = [one for file in label_files(found) if (one := _object_of(file, remarks)) is not None]
    by_uid = {uid: series for series in found for uid in series.series_uids}
    drawn_on: dict[str, list[LabelObject]] = defaultdict(list)
    for one in objects:
        named = {by_uid[uid].series_id for uid in one.series_uids if uid in by_uid}
        if len(named) == 1:
            drawn_on[named.pop()].append(one)
        else:
            what = "several series" if named else "no series that is here"
            remarks.append(f"{one.path.name} ({one.kind}) was left out: it names {what}")
    kept = []
    for series in found:
        here = drawn_on.get(series.series_id, [])
        if here and (refused := refusals(series.findings)):
            remarks.append(f"{series.series_id} was left out: {str(refused[0]).rstrip('.')}")
        elif len(here) > 1:
            listed = ", ".join(one.path.name for one in here)
            remarks.append(f"{series.series_id} was left out: {len(here)} files were drawn on it ({listed}); keep one")
        elif here:
            kept.append(_Drawn(series, here[0]))
    return kept, remarks


def _object_of(file: FileRef, remarks: list[str]) -> LabelObject | None:
    if file.member:
        remarks.append(f"{file.name} was left out: it lies in an archive; unpack that")
        return None
    try:
        return read_label_object(file.path)
    except InputError as error:
        remarks.append(f"{str(error).rstrip('.')}; it was left out")
        return None


Numbers = dict[tuple[Path, int], int]
"""Label value of each segment that is taken, by its file and its number there."""


def _all_structures(objects: Sequence[LabelObject]) -> tuple[Numbers, dict[str, str]]:
    """Return the values of all segments, and the name of each value."""
    groups = _grouped_segments(objects)
    numbers_of = [{segment.number for _, segment in group} for group in groups]
    are_kept = all(len(numbers) == 1 for numbers in numbers_of) and len(set.union(set(), *numbers_of)) == len(groups)
    ordered = sorted(groups, key=lambda group: (min(segment.number for _, segment in group), _name_of(group)))
    values = [group[0][1].number if are_kept else place for place, group in enumerate(ordered, start=1)]
    numbers = {
        (path, segment.number): value for value, group in zip(values, ordered, strict=True) for path, segment in group
    }
    names = {str(value): _name_of(group) for value, group in zip(values, ordered, strict=True)}
    return numbers, {"0": "background", **names}


SegmentOf = tuple[Path, LabelSegment]


def _grouped_segments(objects: Sequence[LabelObject]) -> list[list[SegmentOf]]:
    """Return the segments of each structure: those of one name, and of one code where no file holds two of them."""
    by_name: dict[str, list[SegmentOf]] = defaultdict(list)
    for one in objects:
        for segment in one.segments:
            by_name[normalised(segment.name) or f"segment {segment.number}"].append((one.path, segment))
    groups: list[list[SegmentOf]] = []
    of_code: dict[Codes, list[list[SegmentOf]]] = defaultdict(list)
    for _, segments in sorted(by_name.items()):
        codes, *others = {segment.codes for _, segment in segments}
        alike = of_code[codes] if codes and not others else []
        same = next((group for group in alike if _are_of_other_files(group, segments)), None)
        if same is None:
            groups.append(segments)
            alike.append(segments)
        else:
            same.extend(segments)
    return groups


def _are_of_other_files(group: Sequence[SegmentOf], others: Sequence[SegmentOf]) -> bool:
    return {path for path, _ in group}.isdisjoint(path for path, _ in others)


def _name_of(group: Sequence[SegmentOf]) -> str:
    """Return the spelling that most files have; of several, the first by the alphabet."""
    spellings = Counter(segment.name for _, segment in group if segment.name)
    if not spellings:
        return f"segment {group[0][1].number}"
    return min(spellings, key=lambda name: (-spellings[name], name))


def _wanted_structures(objects: Sequence[LabelObject], labels: Mapping[str, str]) -> tuple[Numbers, dict[str, str]]:
    """Return the values of those segments that have one of some names, or its code."""
    value_of_name = {normalised(name): int(value) for value, name in labels.items() if int(value)}
    value_of_code = {
        codes: int(value) for value, name in labels.items() if int(value) and (codes := _codes_of_name(name))
    }
    numbers = {
        (one.path, segment.number): value
        for one in objects
        for segment in one.segments
        if (value := value_of_name.get(normalised(segment.name), value_of_code.get(segment.codes))) is not None
    }
    return numbers, dict(labels)


def _codes_of_name(name: str) -> tuple[str, ...]:
    coding = find_coding(name)
    if coding is None:
        return ()
    parts = (coding.type, coding.modifier, coding.region, coding.region_modifier)
    return tuple(f"{code.scheme} {code.value}" for code in parts if code is not None)


def _case_of(drawn: _Drawn, numbers: Numbers) -> FoundCase:
    series, labels = drawn.series, drawn.labels
    segments = {
        segment.number: numbers[labels.path, segment.number]
        for segment in labels.segments
        if (labels.path, segment.number) in numbers
    }
    person = "".join(sorted(series.patient_ids))[:ID_LETTERS] or series.study_id or series.series_id
    return FoundCase(series.series_id, (series_path(series),), labels.path, person, segments)


def _background(objects: Sequence[LabelObject], numbers: Numbers) -> Iterable[str]:
    """Say which structures were not taken."""
    left = {segment.name for one in objects for segment in one.segments if (one.path, segment.number) not in numbers}
    if left:
        shown = ", ".join(sorted(left)[:MOST_NAMES_SHOWN]) + (", ..." if len(left) > MOST_NAMES_SHOWN else "")
        yield f"{len(left)} structures count as background: {shown}"
