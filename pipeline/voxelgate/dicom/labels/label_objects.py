"""What a DICOM SEG or RTSTRUCT says of itself: on which series it was drawn, and which structures it holds."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydicom import Dataset, dcmread

from voxelgate.core.errors import InputError
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.dicom_files import FileRef
from voxelgate.dicom.read.headers import Header
from voxelgate.dicom.read.parsing import whole_header
from voxelgate.dicom.read.series import Series

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Contours that surround an area (PS3.3 C.8.8.6.2); points and open lines have none."""

FRACTIONAL = "FRACTIONAL"


class LabelKind(StrEnum):
    """Objects that hold labels."""

    SEG = "SEG"
    RTSTRUCT = "RTSTRUCT"


CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": LabelKind.SEG,
    "1.2.840.10008.5.1.4.1.1.66.7": LabelKind.SEG,
    "1.2.840.10008.5.1.4.1.1.481.3": LabelKind.RTSTRUCT,
}
"""SOP classes of Segmentation, Label Map Segmentation and RT Structure Set (PS3.4 table B.5-1)."""

Codes = tuple[str, ...]
"""Scheme and value of type, modifier, anatomic region and its modifier, in this order; empty where there is no code."""


@dataclass(frozen=True)
class LabelSegment:
    """A structure of a label object.

    Args:
        number: Segment Number or ROI Number.
        name: as it was called there; may be empty.
        codes: what it is.
    """

    number: int
    name: str
    codes: Codes


@dataclass(frozen=True)
class LabelObject:
    """A file that holds labels.

    Args:
        path: of the file.
        kind: SEG or RTSTRUCT.
        series_uids: of the series that it was drawn on; empty if it does not say.
        segments: its structures, those of a RTSTRUCT that have an outline.
    """

    path: Path
    kind: LabelKind
    series_uids: frozenset[str]
    segments: tuple[LabelSegment, ...]


def label_files(found: Iterable[Series]) -> list[FileRef]:
    """Return the files among some series that hold labels."""
    return [header.file for series in found for header in series.headers if _kind_of_header(header) is not None]


def read_label_object(path: Path) -> LabelObject:
    """Read what a file of labels says of itself.

    Raises:
        InputError: it cannot be read, or holds something else; the sentence names no value.
    """
    dataset = read_labels_dataset(path, has_pixels=False)
    kind = CLASSES[str(dataset.SOPClassUID)]
    try:
        segments = _segments_of_seg(dataset) if kind is LabelKind.SEG else _segments_of_outlines(dataset)
        return LabelObject(path, kind, frozenset(_referenced_series(dataset, kind)), tuple(segments))
    except (AttributeError, LookupError, TypeError, ValueError):
        raise _unreadable_labels(path) from None


def read_labels_dataset(path: Path, *, has_pixels: bool) -> Dataset:
    """Read a file of labels, with the pixels of its frames or without them.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        with quiet_pydicom(), FileRef(path).open() as file:
            dataset = dcmread(file) if has_pixels else whole_header(file)
            kind = CLASSES.get(str(dataset.get("SOPClassUID")))
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror}); check the file and its rights.") from error
    except Exception as error:  # pydicom raises nearly anything on damaged input
        raise _unreadable_labels(path) from error
    if kind is None:
        raise InputError(f"{path.name}: is neither DICOM SEG nor RTSTRUCT; name one of them, or a label map.")
    if dataset.get("SegmentationType") == FRACTIONAL:
        raise InputError(f"{path.name}: holds probabilities (FRACTIONAL), expected segments; export it as BINARY.")
    return dataset


def _unreadable_labels(path: Path) -> InputError:
    return InputError(f"{path.name}: is damaged, or lacks what a SEG or RTSTRUCT holds; export it again.")


def _kind_of_header(header: Header) -> LabelKind | None:
    return CLASSES.get(header.sop_class_uid)


def _referenced_series(dataset: Dataset, kind: LabelKind) -> Iterator[str]:
    if kind is LabelKind.SEG:
        yield from (str(item.SeriesInstanceUID) for item in dataset.get("ReferencedSeriesSequence") or ())
        return
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            yield from (str(item.SeriesInstanceUID) for item in study.get("RTReferencedSeriesSequence") or ())


def _segments_of_seg(dataset: Dataset) -> Iterator[LabelSegment]:
    for item in dataset.SegmentSequence:
        if int(item.SegmentNumber) > 0:  # 0 is the background of a label map
            (described,) = item.SegmentedPropertyTypeCodeSequence
            codes = (*_codes(described), *_region_codes(item))
            yield LabelSegment(int(item.SegmentNumber), _joined_words(item.get("SegmentLabel")), codes)


def _segments_of_outlines(dataset: Dataset) -> Iterator[LabelSegment]:
    drawn = {int(roi.ReferencedROINumber) for roi in dataset.get("ROIContourSequence") or () if has_outline(roi)}
    codes = {
        int(item.ReferencedROINumber): _codes(item.RTROIIdentificationCodeSequence[0])
        for item in dataset.get("RTROIObservationsSequence") or ()
        if item.get("RTROIIdentificationCodeSequence")
    }
    for item in dataset.StructureSetROISequence:
        number = int(item.ROINumber)
        if number in drawn:
            yield LabelSegment(number, _joined_words(item.get("ROIName")), codes.get(number, ()))


def has_outline(roi: Dataset) -> bool:
    """Return whether an item of ROI Contour Sequence surrounds something."""
    return any(contour.get("ContourGeometricType") in CLOSED for contour in roi.get("ContourSequence") or ())


def _codes(item: Dataset) -> Codes:
    modifier = next(iter(item.get("SegmentedPropertyTypeModifierCodeSequence") or ()), None)
    return (*_code(item), *(() if modifier is None else _code(modifier)))


def _region_codes(segment: Dataset) -> Codes:
    region = next(iter(segment.get("AnatomicRegionSequence") or ()), None)
    if region is None:
        return ()
    modifier = next(iter(region.get("AnatomicRegionModifierSequence") or ()), None)
    return (*_code(region), *(() if modifier is None else _code(modifier)))


def _code(item: Dataset) -> Codes:
    return (f"{item.CodingSchemeDesignator} {item.CodeValue}",)


def _joined_words(text: object) -> str:
    return " ".join(str(text or "").split())
