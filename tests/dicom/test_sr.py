"""Structured reports: the volumes of the segments, where they come from, and what they refer to."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders import RLELosslessDecoder

from tests.derived_cases import (
    GRID,
    LABELS,
    PHILIPS_ENHANCED,
    REAL_SERIES,
    TABLE,
    ellipsoids,
    enhanced_of,
    errors_of,
    headers_of,
    real_grid,
    real_headers,
    segmented,
)
from voxelgate.core.errors import OutputError
from voxelgate.core.labels import LabelTable
from voxelgate.dicom.write import sr as sr_module
from voxelgate.dicom.write.rle import rle_frame
from voxelgate.dicom.write.seg import SegKind, write_seg
from voxelgate.dicom.write.sr import write_sr


def items_of(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", []):
        yield child
        yield from items_of(child)


def named(item: Dataset, meaning: str) -> list[Dataset]:
    return [
        child
        for child in items_of(item)
        if "ConceptNameCodeSequence" in child and child.ConceptNameCodeSequence[0].CodeMeaning == meaning
    ]


@pytest.mark.parametrize("kind", [SegKind.BINARY, SegKind.LABELMAP])
@pytest.mark.parametrize("is_multi_frame", [False, True])
def test_each_segment_has_its_volume_in_ml_and_refers_to_the_segmentation(
    tmp_path: Path, kind: SegKind, is_multi_frame: bool
) -> None:
    labels = np.where(LABELS == 1, 0, LABELS)
    headers = headers_of(GRID)
    case = segmented(labels, GRID, [enhanced_of(headers)] if is_multi_frame else headers)
    seg = write_seg(tmp_path / "seg.dcm", case, kind=kind)

    write_sr(tmp_path / "sr.dcm", case, seg)

    read = dcmread(tmp_path / "sr.dcm")
    groups = named(read, "Measurement Group")
    for group, segment in zip(groups, seg.segments, strict=True):
        measured = named(group, "Volume")[0].MeasuredValueSequence[0]
        assert float(measured.NumericValue) == pytest.approx((labels == segment.value).sum() * 0.8 * 0.7 * 2.5 / 1000)
        assert measured.MeasurementUnitsCodeSequence[0].CodeValue == "ml"
        referred = named(group, "Referenced Segment")[0].ReferencedSOPSequence[0]
        assert (referred.ReferencedSOPInstanceUID, referred.ReferencedSegmentNumber) == (
            seg.instance_uid,
            segment.number,
        )
        assert headers[0].SeriesInstanceUID == named(group, "Source Series for Segmentation")[0].UID
        assert segment.tracking_uid == named(group, "Tracking Unique Identifier")[0].UID
        assert named(group, "Algorithm Name")[0].TextValue == "abdomen model"
    evidence = {
        str(instance.ReferencedSOPInstanceUID)
        for study in read.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert evidence == {str(image.instance_uid) for image in case.source.images} | {seg.instance_uid}


def test_findings_are_coded_with_side_and_region_and_no_person_observed_them(tmp_path: Path) -> None:
    case = segmented(LABELS, GRID, headers_of(GRID))

    write_sr(tmp_path / "sr.dcm", case, write_seg(tmp_path / "seg.dcm", case))

    read = dcmread(tmp_path / "sr.dcm")
    liver, kidney, tumor, _ = named(read, "Measurement Group")
    assert named(liver, "Finding")[0].ConceptCodeSequence[0].CodeValue == "10200004"
    assert named(liver, "Finding Site") == []
    assert named(kidney, "Finding Site")[0].ConceptCodeSequence[0].CodeMeaning == "Kidney"
    assert named(kidney, "Laterality")[0].ConceptCodeSequence[0].CodeMeaning == "Left"
    assert named(tumor, "Finding Site")[0].ConceptCodeSequence[0].CodeMeaning == "Liver"
    assert named(read, "Observer Type")[0].ConceptCodeSequence[0].CodeMeaning == "Device"
    assert named(read, "Person Observer Name") == []
    assert (read.VerificationFlag, read.SeriesNumber, str(read.PatientName)) == ("UNVERIFIED", 703, "Doe^Jane")


def test_a_report_needs_the_segmentation_of_the_same_labels(tmp_path: Path) -> None:
    case = segmented(LABELS, GRID, headers_of(GRID))
    seg = write_seg(tmp_path / "seg.dcm", case)

    with pytest.raises(OutputError, match="does not hold the segments of these labels"):
        write_sr(tmp_path / "sr.dcm", case, replace(seg, segments=seg.segments[1:]))
    (tmp_path / "sr.dcm").touch()
    with pytest.raises(OutputError, match=r"sr\.dcm: exists already"):
        write_sr(tmp_path / "sr.dcm", case, seg)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seg.dcm", "sr.dcm"]


@pytest.mark.parametrize("fault", ["value", "unit", "segment", "missing"])
def test_the_comparison_finds_every_fault(tmp_path: Path, fault: str) -> None:
    path, case = tmp_path / "sr.dcm", segmented(LABELS, GRID, headers_of(GRID))
    seg = write_seg(tmp_path / "seg.dcm", case)
    write_sr(path, case, seg)
    read = dcmread(path)
    group = named(read, "Measurement Group")[1]
    if fault == "value":
        named(group, "Volume")[0].MeasuredValueSequence[0].NumericValue = "0.1"
    elif fault == "unit":
        named(group, "Volume")[0].MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue = "l"
    elif fault == "segment":
        named(group, "Referenced Segment")[0].ReferencedSOPSequence[0].ReferencedSegmentNumber = 1
    else:
        group.ContentSequence = []
    read.save_as(path)

    with pytest.raises(OutputError, match="reads back with other volumes"):
        sr_module._compare_volumes(path, path.name, case, seg)


def test_names_that_are_not_ascii_are_kept_in_the_report(tmp_path: Path) -> None:
    headers = headers_of(GRID, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen")
    table = LabelTable(("background", "肝臓"), ((1, TABLE.coding(1)),))
    case = segmented((LABELS > 0).astype(np.uint8), GRID, headers, table)

    write_sr(tmp_path / "sr.dcm", case, write_seg(tmp_path / "seg.dcm", case))

    read = dcmread(tmp_path / "sr.dcm")
    assert str(read.PatientName) == "Müller^Jürgen"
    assert named(read, "Tracking Identifier")[0].TextValue == "肝臓"


@pytest.mark.parametrize("name", [*REAL_SERIES, PHILIPS_ENHANCED])
def test_dciodvfy_finds_no_new_error_on_real_series(tmp_path: Path, real_data: Path, name: str) -> None:
    headers, files = real_headers(real_data / "dicom" / name)
    if name == PHILIPS_ENHANCED:  # has no frame of reference
        headers[0].FrameOfReferenceUID = "1.2.3.4"
    grid = real_grid(headers)
    case = segmented(ellipsoids(grid.shape, 4), grid, headers)

    write_sr(tmp_path / "sr.dcm", case, write_seg(tmp_path / "seg.dcm", case))

    assert errors_of(tmp_path / "sr.dcm") - errors_of(files[0]) == set()


@given(
    st.sampled_from((np.uint8, np.uint16)).flatmap(
        lambda kind: arrays(kind, st.tuples(st.integers(1, 5), st.integers(1, 300)), elements=st.integers(0, 255))
    )
)
def test_pydicom_decodes_every_compressed_frame(pixels: np.ndarray) -> None:
    bits = pixels.dtype.itemsize * 8
    wide = pixels if bits == 8 else (pixels * 257).astype(np.uint16)

    decoded, _ = RLELosslessDecoder.as_array(
        encapsulate([rle_frame(wide)]),
        rows=wide.shape[0],
        columns=wide.shape[1],
        samples_per_pixel=1,
        bits_allocated=bits,
        bits_stored=bits,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
        pixel_keyword="PixelData",
    )

    assert np.array_equal(decoded, wide)
