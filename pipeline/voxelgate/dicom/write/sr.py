"""Write the volume of each segment as a structured report (TID 1500), and read its numbers back before it counts."""

import uuid
from collections.abc import Iterator
from pathlib import Path

from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as PydicomCode

from voxelgate.core.errors import OutputError
from voxelgate.core.terminology import ANATOMICAL_STRUCTURE, Coding
from voxelgate.dicom.write.placeholders import placeholder
from voxelgate.dicom.write.seg import Segment, WrittenSeg
from voxelgate.dicom.write.segmented import (
    MANUFACTURER,
    SegmentedSeries,
    code_item,
    published,
    read_back,
    save_dicom,
    series_arguments,
)

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


def write_sr(path: Path, segmented: SegmentedSeries, seg: WrittenSeg) -> None:
    """Write the volumes in ml as Comprehensive 3D SR: under a temporary name, read back, compared, renamed.

    Args:
        path: of the file to be, in a folder that exists.
        segmented: labels, grid, names and source.
        seg: the segmentation of these labels that `write_seg` wrote; each volume refers to its segment.

    Raises:
        OutputError: the segmentation is one of other labels, a structure has no code, the file exists or cannot be
            written, or it reads back differently; then nothing is left behind.
    """
    if tuple(segment.value for segment in seg.segments) != segmented.present:
        raise OutputError(f"{path.name}: the segmentation does not hold the segments of these labels; write it first.")
    codings = {segment.value: segmented.table.coding(segment.value) for segment in seg.segments}
    with published(path) as partial:
        groups = [_measurement_group(segmented, seg, segment, codings[segment.value]) for segment in seg.segments]
        save_dicom(_measurement_report(segmented, seg, groups), partial)
        _compare_volumes(partial, path.name, segmented, seg)


def _volume_ml(segmented: SegmentedSeries, value: int) -> float:
    return float(f"{segmented.counts[value] * segmented.grid.voxel_ml:.{DIGITS}g}")


def _measurement_group(
    segmented: SegmentedSeries, seg: WrittenSeg, segment: Segment, coding: Coding
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    algorithm = segmented.algorithm
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=segment.tracking_uid, identifier=segmented.table.names[segment.value]
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
        algorithm_id=sr.AlgorithmIdentification(
            name=algorithm.name, version=algorithm.version, parameters=[f"fingerprint {algorithm.fingerprint}"]
        ),
        measurements=[
            sr.Measurement(name=codes.SCT.Volume, value=_volume_ml(segmented, segment.value), unit=MILLILITRE)
        ],
    )


def _sites(coding: Coding) -> list[sr.FindingSite] | None:
    """Return where a finding lies: the region that is coded, or the structure itself if it has a side."""
    if coding.region is not None:
        side = None if coding.region_modifier is None else code_item(coding.region_modifier)
        return [sr.FindingSite(code_item(coding.region), laterality=side)]
    is_sided = coding.modifier is not None and coding.modifier.value in SIDES
    if coding.modifier is not None and is_sided and coding.category.value == ANATOMICAL_STRUCTURE:
        return [sr.FindingSite(code_item(coding.type), laterality=code_item(coding.modifier))]
    return None


def _measurement_report(
    segmented: SegmentedSeries,
    seg: WrittenSeg,
    groups: list[sr.VolumetricROIMeasurementsAndQualitativeEvaluations],
) -> Dataset:
    source = segmented.source
    images = [placeholder(source, image.class_uid, image.instance_uid, source.series_uid) for image in source.instances]
    content = sr.MeasurementReport(
        observation_context=_observed_by(segmented),
        procedure_reported=PROCEDURES.get(images[0].Modality, ANY_PROCEDURE),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    report = sr.Comprehensive3DSR(
        evidence=[*images, placeholder(source, seg.class_uid, seg.instance_uid, seg.series_uid)],
        content=content,
        is_complete=True,
        **series_arguments(segmented, SERIES_OFFSET),
    )
    source.stamp(report, segmented.texts)
    return report


def _observed_by(segmented: SegmentedSeries) -> sr.ObservationContext:
    """Name the bundle as the observer; no person has looked at the numbers."""
    algorithm = segmented.algorithm
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, algorithm.fingerprint).int}",
        name=algorithm.name,
        manufacturer_name=MANUFACTURER,
        model_name=algorithm.name,
        serial_number=algorithm.fingerprint,
    )
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def _compare_volumes(path: Path, name: str, segmented: SegmentedSeries, seg: WrittenSeg) -> None:
    """Refuse a report whose content tree does not hold the volume of each segment, in ml."""
    meant = [
        (
            seg.instance_uid,
            segment.number,
            _volume_ml(segmented, segment.value),
            MILLILITRE.value,
            MILLILITRE.scheme_designator,
        )
        for segment in seg.segments
    ]
    if list(_read_volumes(read_back(path))) != meant:
        raise OutputError(f"{name}: reads back with other volumes; report this.")


def _read_volumes(item: Dataset) -> Iterator[tuple[str, int, float, str, str]]:
    """Yield segmentation, segment number, volume and unit of each measurement group below an item."""
    children = item.get("ContentSequence", [])
    named = {
        child.ConceptNameCodeSequence[0].CodeValue: child for child in children if "ConceptNameCodeSequence" in child
    }
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
    for child in children:
        yield from _read_volumes(child)
