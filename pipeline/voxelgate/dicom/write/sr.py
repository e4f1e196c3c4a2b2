"""Write the volume of each segment as a structured report (TID 1500), and read its numbers back before it counts."""

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as PydicomCode

from voxelgate.core.errors import OutputError
from voxelgate.core.terminology import ANATOMICAL_STRUCTURE, Coding
from voxelgate.core.verdict import Quality, Verdict
from voxelgate.dicom.write.placeholders import placeholder
from voxelgate.dicom.write.seg import Segment, WrittenSeg
from voxelgate.dicom.write.segmented import (
    MANUFACTURER,
    Algorithm,
    SegmentedSeries,
    code_item,
    identify_series,
    new_uid,
    published,
    read_back,
    save_dicom,
    series_arguments,
)

Group: TypeAlias = sr.VolumetricROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations

SERIES_OFFSET = 3
"""Last two digits of the series number of a report."""

DIGITS = 10
"""Of a volume; with sign, point and exponent still 16 characters, the length of a DS (PS3.5 6.2)."""

PROCEDURES = {
    "CT": codes.LN.CTUnspecifiedBodyRegion,
    "MR": codes.LN.MRIUnspecifiedBodyRegion,
    "PT": codes.LN.PETUnspecifiedBodyRegion,
}
"""Procedure reported by modality (PS3.16 CID 100)."""

ANY_PROCEDURE = codes.SCT.ImagingProcedure
"""Procedure reported of any other modality (PS3.16 CID 100)."""

MILLILITRE = PydicomCode("ml", "UCUM", "milliliter")

SIDES = ("7771000", "24028007")
"""SNOMED CT left and right (PS3.16 CID 244)."""


QUALITATIVE_EVALUATIONS = PydicomCode("C0034375", "UMLS", "Qualitative Evaluations")
"""Container of what is said of the whole (PS3.16 TID 1500)."""

VERDICTS = {
    Verdict.ACCEPT: PydicomCode("111237", "DCM", "Usable - Meets the quality control standard"),
    Verdict.REVIEW: PydicomCode("128201", "DCM", "For Physician Review"),
    Verdict.REFUSE: PydicomCode("113001", "DCM", "Rejected for Quality Reasons"),
}
"""Code of a verdict (PS3.16 CID 6044 and 7010), the value of (111050, DCM, "Quality Assessment")."""


def write_sr(path: Path, segmented: SegmentedSeries, seg: WrittenSeg | None) -> None:
    """Write the volumes in ml as Comprehensive 3D SR: under a temporary name, read back, compared, renamed.

    Structures without voxels stand in it as absent, and the verdict as a code with the reasons as texts.

    Args:
        path: of the file to be, in a folder that exists.
        segmented: labels, grid, names and source.
        seg: the segmentation of these labels that `write_seg` wrote; each volume refers to its segment. None only if
            nothing was found.

    Raises:
        OutputError: the segmentation is one of other labels, a structure has no code, the file exists or cannot be
            written, or it reads back differently; then nothing is left behind.
    """
    uid_of = {} if seg is None else {segment.number: segment.tracking_uid for segment in seg.segments}
    if segmented.present and tuple(uid_of) != tuple(segmented.table.foreground):
        raise OutputError(f"{path.name}: the segmentation does not hold the segments of these labels; write it first.")
    codings = {value: segmented.table.coding(value) for value in segmented.table.foreground}
    with published(path) as partial:
        groups: list[Group] = [_absent_group(segmented, value, codings[value]) for value in segmented.absent]
        if seg is not None:
            found = (Segment(value, uid_of[value]) for value in segmented.present)
            groups[:0] = [_measurement_group(segmented, seg, one, codings[one.number]) for one in found]
        save_dicom(_measurement_report(segmented, seg, groups), partial)
        _compare_report(partial, path.name, segmented, seg)


def _volume_ml(segmented: SegmentedSeries, value: int) -> float:
    return float(f"{segmented.counts[value] * segmented.grid.voxel_ml:.{DIGITS}g}")


def _measurement_group(
    segmented: SegmentedSeries, seg: WrittenSeg, segment: Segment, coding: Coding
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=segment.tracking_uid, identifier=segmented.table.names[segment.number]
        ),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=seg.class_uid,
            sop_instance_uid=seg.instance_uid,
            segment_number=segment.number,
            source_series=sr.SourceSeriesForSegmentation(segmented.source.series_uid),
        ),
        finding_category=code_item(coding.category),
        finding_type=code_item(coding.type),
        finding_sites=_sites(coding),
        algorithm_id=_algorithm_of_group(segmented.algorithm),
        measurements=[
            sr.Measurement(name=codes.SCT.Volume, value=_volume_ml(segmented, segment.number), unit=MILLILITRE)
        ],
    )


def _absent_group(segmented: SegmentedSeries, value: int, coding: Coding) -> sr.MeasurementsAndQualitativeEvaluations:
    """Return what is said of a structure that was looked for and not found (PS3.16 TID 1501)."""
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=new_uid(), identifier=segmented.table.names[value]),
        finding_category=code_item(coding.category),
        finding_type=code_item(coding.type),
        finding_sites=_sites(coding),
        algorithm_id=_algorithm_of_group(segmented.algorithm),
        qualitative_evaluations=[sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, codes.DCM.Absent)],
    )


def _algorithm_of_group(algorithm: Algorithm) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        parameters=[
            f"fingerprint {algorithm.fingerprint}",
            *([f"licence {algorithm.licence}"] if algorithm.licence else []),
        ],
    )


def _assessment(quality: Quality) -> sr.ContainerContentItem:
    """Return the verdict on the whole result as a code, and in words with its reasons."""
    contains = sr.RelationshipTypeValues.CONTAINS
    container = sr.ContainerContentItem(QUALITATIVE_EVALUATIONS, relationship_type=contains)
    texts = [f"The result is {quality.verdict.in_words}.", *quality.reasons]
    container.ContentSequence = sr.ContentSequence(
        [
            sr.CodeContentItem(codes.DCM.QualityAssessment, VERDICTS[quality.verdict], contains),
            *(sr.TextContentItem(codes.DCM.Comment, text, contains) for text in texts),
        ]
    )
    return container


def _sites(coding: Coding) -> list[sr.FindingSite] | None:
    """Return where a finding lies: the region that is coded, or the structure itself if it has a side or is a part."""
    if coding.region is not None:
        side = None if coding.region_modifier is None else code_item(coding.region_modifier)
        return [sr.FindingSite(code_item(coding.region), laterality=side)]
    if coding.modifier is None or coding.category.value != ANATOMICAL_STRUCTURE:
        return None
    modifier = code_item(coding.modifier)
    if coding.modifier.value in SIDES:
        return [sr.FindingSite(code_item(coding.type), laterality=modifier)]
    return [sr.FindingSite(code_item(coding.type), topographical_modifier=modifier)]


def _measurement_report(segmented: SegmentedSeries, seg: WrittenSeg | None, groups: Sequence[Group]) -> Dataset:
    source = segmented.source
    images = [placeholder(source, image.class_uid, image.instance_uid, source.series_uid) for image in source.instances]
    content = sr.MeasurementReport(
        observation_context=_observed_by(segmented),
        procedure_reported=PROCEDURES.get(images[0].Modality, ANY_PROCEDURE),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    if segmented.quality is not None:
        content[0].ContentSequence.append(_assessment(segmented.quality))
    written = [] if seg is None else [placeholder(source, seg.class_uid, seg.instance_uid, seg.series_uid)]
    report = sr.Comprehensive3DSR(
        evidence=[*images, *written],
        content=content,
        is_complete=True,
        **series_arguments(segmented, SERIES_OFFSET),
    )
    identify_series(report, segmented, "SR")
    source.stamp(report, segmented.texts)
    return report


def _observed_by(segmented: SegmentedSeries) -> sr.ObservationContext:
    """Name the bundle as the observer, and the person who corrected what it gave."""
    algorithm = segmented.algorithm
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, algorithm.fingerprint).int}",
        name=algorithm.name,
        manufacturer_name=MANUFACTURER,
        model_name=algorithm.name,
        serial_number=algorithm.fingerprint,
    )
    person = None
    if algorithm.annotator:
        name = sr.PersonObserverIdentifyingAttributes(algorithm.annotator)
        person = sr.ObserverContext(observer_type=codes.DCM.Person, observer_identifying_attributes=name)
    return sr.ObservationContext(
        observer_person_context=person,
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        ),
    )


def _compare_report(path: Path, name: str, segmented: SegmentedSeries, seg: WrittenSeg | None) -> None:
    """Refuse a report whose content tree does not hold volumes in ml, absent structures and verdict as they are."""
    written = read_back(path)
    unit = MILLILITRE.value, MILLILITRE.scheme_designator
    volumes = [] if seg is None else [(seg.instance_uid, v, _volume_ml(segmented, v), *unit) for v in segmented.present]
    if list(_read_volumes(written)) != volumes:
        raise OutputError(f"{name}: reads back with other volumes; report this.")
    absent = [segmented.table.names[value] for value in segmented.absent]
    quality = segmented.quality
    verdict = [] if quality is None else [VERDICTS[quality.verdict].value]
    texts = () if quality is None else quality.reasons
    if (list(_read_absent(written)), *_read_assessment(written)) != (absent, verdict, list(texts)):
        raise OutputError(f"{name}: reads back with another verdict or other absent structures; report this.")


def _children(item: Dataset) -> dict[str, Dataset]:
    """Return the content items right below another one by the code of their name, of equal names the last."""
    children = item.get("ContentSequence", [])
    return {
        child.ConceptNameCodeSequence[0].CodeValue: child for child in children if "ConceptNameCodeSequence" in child
    }


def _read_absent(item: Dataset) -> Iterator[str]:
    """Yield the name of each structure that is said to be absent below an item."""
    named = _children(item)
    if codes.DCM.PresenceOfProperty.value in named:
        yield str(named[codes.DCM.TrackingIdentifier.value].TextValue)
    for child in item.get("ContentSequence", []):
        yield from _read_absent(child)


def _read_assessment(report: Dataset) -> tuple[list[str], list[str]]:
    """Return the code of the verdict, if there is one, and the reasons."""
    container = _children(report).get(QUALITATIVE_EVALUATIONS.value)
    if container is None:
        return [], []
    coded, _, *reasons = container.ContentSequence
    return [str(coded.ConceptCodeSequence[0].CodeValue)], [str(reason.TextValue) for reason in reasons]


def _read_volumes(item: Dataset) -> Iterator[tuple[str, int, float, str, str]]:
    """Yield segmentation, segment number, volume and unit of each measurement group below an item."""
    named = _children(item)
    if {codes.DCM.ReferencedSegment.value, codes.SCT.Volume.value} <= set(named):
        segment = named[codes.DCM.ReferencedSegment.value].ReferencedSOPSequence[0]
        measured = named[codes.SCT.Volume.value].MeasuredValueSequence[0]
        unit = measured.MeasurementUnitsCodeSequence[0]
        yield (
            str(segment.ReferencedSOPInstanceUID),
            int(segment.ReferencedSegmentNumber),
            float(measured.NumericValue),
            str(unit.CodeValue),
            str(unit.CodingSchemeDesignator),
        )
    for child in item.get("ContentSequence", []):
        yield from _read_volumes(child)
