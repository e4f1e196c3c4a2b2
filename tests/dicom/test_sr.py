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
from voxelgate.core.verdict import Quality, Verdict
from voxelgate.dicom.write import sr as sr_module
from voxelgate.dicom.write.rle import rle_frame
from voxelgate.dicom.write.seg import write_seg
from voxelgate.dicom.write.seg_kind import SegKind
from voxelgate.dicom.write.segmented import Algorithm
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
    for group, segment in zip(groups[:-1], seg.segments[1:], strict=True):
        measured = named(group, "Volume")[0].MeasuredValueSequence[0]
        assert float(measured.NumericValue) == pytest.approx((labels == segment.number).sum() * 0.8 * 0.7 * 2.5 / 1000)
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


@pytest.mark.parametrize("verdict", Verdict)
def test_the_verdict_stands_as_a_code_and_in_words_with_its_reasons(tmp_path: Path, verdict: Verdict) -> None:
    case = replace(segmented(LABELS, GRID, headers_of(GRID)), quality=Quality(verdict, ("too large.", "border: Käse.")))

    write_sr(tmp_path / "sr.dcm", case, write_seg(tmp_path / "seg.dcm", case))

    read = dcmread(tmp_path / "sr.dcm")
    (coded,) = named(read, "Quality Assessment")
    codes = {"accept": ("111237", "DCM"), "review": ("128201", "DCM"), "refuse": ("113001", "DCM")}
    concept = coded.ConceptCodeSequence[0]
    assert (concept.CodeValue, concept.CodingSchemeDesignator) == codes[verdict]
    words = {"accept": "accepted", "review": "for review", "refuse": "refused"}[verdict]
    texts = [item.TextValue for item in named(read, "Comment")]
    assert texts == [f"The result is {words}.", "too large.", "border: Käse."]
    assert read.SeriesDescription == f"SR {words}: abdomen model 1.2.0"
    assert (read.ContentQualification, read.SeriesDate) == ("RESEARCH", read.ContentDate)


def test_a_result_that_nobody_judged_has_no_verdict(tmp_path: Path) -> None:
    case = segmented(LABELS, GRID, headers_of(GRID))

    write_sr(tmp_path / "sr.dcm", case, write_seg(tmp_path / "seg.dcm", case))

    read = dcmread(tmp_path / "sr.dcm")
    assert named(read, "Quality Assessment") == named(read, "Presence of property") == []


def test_what_was_looked_for_and_not_found_is_listed_as_absent_with_its_codes(tmp_path: Path) -> None:
    case = segmented(np.where(LABELS == 2, 0, LABELS).astype(np.uint8), GRID, headers_of(GRID))

    write_sr(tmp_path / "sr.dcm", case, write_seg(tmp_path / "seg.dcm", case))

    *_, kidney = named(dcmread(tmp_path / "sr.dcm"), "Measurement Group")
    assert named(kidney, "Tracking Identifier")[0].TextValue == "left kidney"
    assert named(kidney, "Finding")[0].ConceptCodeSequence[0].CodeValue == "64033007"
    assert named(kidney, "Laterality")[0].ConceptCodeSequence[0].CodeMeaning == "Left"
    assert named(kidney, "Presence of property")[0].ConceptCodeSequence[0].CodeMeaning == "Absent"
    assert named(kidney, "Volume") == []


def test_where_nothing_was_found_the_report_lists_every_structure_as_absent(tmp_path: Path) -> None:
    write_sr(tmp_path / "sr.dcm", segmented(np.zeros_like(LABELS), GRID, headers_of(GRID)), None)

    read = dcmread(tmp_path / "sr.dcm")
    assert [item.TextValue for item in named(read, "Tracking Identifier")] == list(TABLE.foreground.values())
    assert len(named(read, "Presence of property")) == 4


def test_a_part_of_a_structure_is_told_by_the_modifier_of_its_site(tmp_path: Path) -> None:
    hippocampus = LabelTable(("background", "anterior hippocampus", "posterior hippocampus"))
    case = segmented((LABELS % 3).astype(np.uint8), GRID, headers_of(GRID), hippocampus)

    write_sr(tmp_path / "sr.dcm", case, write_seg(tmp_path / "seg.dcm", case))

    sites = [
        named(group, "Topographical modifier")[0] for group in named(dcmread(tmp_path / "sr.dcm"), "Measurement Group")
    ]
    assert [site.ConceptCodeSequence[0].CodeMeaning for site in sites] == ["Anterior", "Posterior"]


def test_the_person_who_corrected_the_labels_is_an_observer(tmp_path: Path) -> None:
    by_jane = Algorithm("m", "1", "f", is_corrected=True, annotator="Doe^Jane")
    case = replace(segmented(LABELS, GRID, headers_of(GRID)), algorithm=by_jane)

    write_sr(tmp_path / "sr.dcm", case, write_seg(tmp_path / "seg.dcm", case))

    read = dcmread(tmp_path / "sr.dcm")
    assert [str(item.PersonName) for item in named(read, "Person Observer Name")] == ["Doe^Jane"]
    assert read.SeriesDescription == "SR corrected: m 1"


@pytest.mark.parametrize("fault", ["code", "reason", "absent"])
def test_the_comparison_finds_another_verdict_and_what_is_not_absent(tmp_path: Path, fault: str) -> None:
    labels = np.where(LABELS == 2, 0, LABELS).astype(np.uint8)
    path, plain = tmp_path / "sr.dcm", segmented(labels, GRID, headers_of(GRID))
    case = replace(plain, quality=Quality(Verdict.REVIEW, ("too large.",)))
    seg = write_seg(tmp_path / "seg.dcm", case)
    write_sr(path, case, seg)
    read = dcmread(path)
    if fault == "code":
        named(read, "Quality Assessment")[0].ConceptCodeSequence[0].CodeValue = "111237"
    elif fault == "reason":
        named(read, "Comment")[-1].TextValue = "fine."
    else:
        named(read, "Measurement Group")[-1].ContentSequence = []
    read.save_as(path)

    with pytest.raises(OutputError, match="reads back with another verdict"):
        sr_module._compare_report(path, path.name, case, seg)


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
        sr_module._compare_report(path, path.name, case, seg)


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
    labels = ellipsoids(grid.shape, 4)
    case = segmented(np.where(labels == 3, 0, labels).astype(np.uint8), grid, headers)
    case = replace(case, quality=Quality(Verdict.REVIEW, ("missing: liver tumor.",)))

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
