"""DICOM Segmentation: what was written is what comes back, by position in mm, whoever reads it."""

import copy
import logging
import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, dcmread
from pydicom.config import IGNORE

from tests.derived_cases import (
    GRID,
    LABELS,
    LPS_TO_RAS,
    ORIENTATIONS,
    PHILIPS_ENHANCED,
    REAL_SERIES,
    TABLE,
    ellipsoids,
    enhanced_of,
    errors_of,
    from_file,
    headers_of,
    label_maps,
    oriented,
    real_grid,
    real_headers,
    segmented,
    source_grid,
)
from voxelgate.core.errors import OutputError
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.verdict import Quality, Verdict
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.write import seg as seg_module
from voxelgate.dicom.write.seg import write_seg
from voxelgate.dicom.write.seg_kind import SegKind
from voxelgate.dicom.write.segmented import Algorithm, person_name

KINDS = (SegKind.BINARY, SegKind.LABELMAP)
ANGLES = st.tuples(*3 * [st.floats(-0.7, 0.7)])
CANARY = "Xylophone^Zebra"
TEXT_ATTRIBUTES = (
    "AdditionalPatientHistory",
    "AdmittingDiagnosesDescription",
    "DerivationDescription",
    "ImageComments",
    "InstitutionAddress",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "Manufacturer",
    "ManufacturerModelName",
    "MedicalAlerts",
    "Occupation",
    "OperatorsName",
    "OtherPatientIDs",
    "PatientAddress",
    "PatientComments",
    "PatientMotherBirthName",
    "PerformingPhysicianName",
    "PhysiciansOfRecord",
    "ProtocolName",
    "RequestedProcedureDescription",
    "SeriesDescription",
    "StationName",
)


def read_by_highdicom(path: Path, grid: Grid) -> np.ndarray:
    """Return the label map on `grid` as highdicom's own reader places it."""
    read = highdicom.seg.segread(path)
    volume = read.get_volume(combine_segments=True, allow_missing_positions=True)
    wanted = highdicom.VolumeGeometry(
        LPS_TO_RAS @ grid.affine, grid.shape, "PATIENT", frame_of_reference_uid=read.FrameOfReferenceUID
    )
    return volume.match_geometry(wanted, tol=1e-2).array


def refusal(path: Path, labels: np.ndarray, grid: Grid, headers: list[Dataset], table: LabelTable = TABLE) -> str:
    with pytest.raises(OutputError) as caught:
        write_seg(path, segmented(labels, grid, headers, table))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert list(path.parent.iterdir()) == []
    return sentence


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=label_maps(), angles=ANGLES, turn=st.sampled_from(ORIENTATIONS), random=st.randoms(use_true_random=False))
def test_highdicom_reads_the_labels_back_from_any_grid_and_any_order_of_sources(
    tmp_path: Path, kind: SegKind, labels: np.ndarray, angles: tuple[float, ...], turn: tuple, random: object
) -> None:
    grid = source_grid(labels.shape, angles)
    headers = headers_of(grid)
    random.shuffle(headers)
    turned, turned_grid = oriented(labels, grid, *turn)

    (tmp_path / "a.dcm").unlink(missing_ok=True)
    write_seg(tmp_path / "a.dcm", segmented(turned, turned_grid, headers), kind=kind)

    assert np.array_equal(read_by_highdicom(tmp_path / "a.dcm", turned_grid), turned)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_48_orientations_give_the_same_frames_with_their_source_images(tmp_path: Path, kind: SegKind) -> None:
    headers = headers_of(GRID)
    by_position = {str(header.SOPInstanceUID): header.ImagePositionPatient[2] for header in headers}
    pixels = set()

    for turn in ORIENTATIONS:
        (tmp_path / "a.dcm").unlink(missing_ok=True)
        write_seg(tmp_path / "a.dcm", segmented(*oriented(LABELS, GRID, *turn), headers), kind=kind)
        written = dcmread(tmp_path / "a.dcm")
        pixels.add(written.PixelData)
        for frame in written.PerFrameFunctionalGroupsSequence:
            source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            assert float(frame.PlanePositionSequence[0].ImagePositionPatient[2]) == pytest.approx(by_position[source])

    assert len(pixels) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_multi_frame_source_is_referred_to_by_frame(tmp_path: Path, kind: SegKind) -> None:
    header = enhanced_of(headers_of(GRID)[::-1])

    write_seg(tmp_path / "a.dcm", segmented(LABELS, GRID, [header]), kind=kind)

    for frame in dcmread(tmp_path / "a.dcm").PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        referred = header.PerFrameFunctionalGroupsSequence[int(source.ReferencedFrameNumber) - 1]
        assert source.ReferencedSOPInstanceUID == header.SOPInstanceUID
        assert frame.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(
            list(referred.PlanePositionSequence[0].ImagePositionPatient)
        )


def test_planes_between_the_source_images_are_written_without_a_reference(tmp_path: Path) -> None:
    affine = GRID.affine.copy()
    affine[:3, 2] /= 2
    dense = Grid((9, 8, 7), affine)
    labels = np.ones(dense.shape, np.uint8)

    write_seg(tmp_path / "a.dcm", segmented(labels, dense, headers_of(GRID)))

    frames = dcmread(tmp_path / "a.dcm").PerFrameFunctionalGroupsSequence
    assert np.array_equal(read_by_highdicom(tmp_path / "a.dcm", dense), labels)
    assert len(frames) == 7
    assert all(len(frame.DerivationImageSequence) <= 1 for frame in frames)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_multi_frame", [False, True])
def test_where_a_missing_slice_was_filled_all_other_planes_still_refer_to_their_images(
    tmp_path: Path, kind: SegKind, *, is_multi_frame: bool
) -> None:
    whole = headers_of(GRID)  # ct_d2n_sliceincrement_001: highdicom names no image at all if one plane has none
    headers = [header for k, header in enumerate(whole) if k != 1]
    given = [enhanced_of(headers)] if is_multi_frame else headers

    write_seg(tmp_path / "a.dcm", segmented(LABELS, GRID, given), kind=kind)

    for frame in dcmread(tmp_path / "a.dcm").PerFrameFunctionalGroupsSequence:
        z = float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        nearest = min(whole, key=lambda header: abs(float(header.ImagePositionPatient[2]) - z))
        referred = [item for found in frame.DerivationImageSequence for item in found.SourceImageSequence]
        if nearest is whole[1]:
            assert referred == []
        elif is_multi_frame:
            assert [item.ReferencedFrameNumber for item in referred] == [headers.index(nearest) + 1]
        else:
            assert [item.ReferencedSOPInstanceUID for item in referred] == [nearest.SOPInstanceUID]
    assert errors_of(tmp_path / "a.dcm") == errors_of_whole(tmp_path, kind)


def errors_of_whole(folder: Path, kind: SegKind) -> set[str]:
    write_seg(folder / "whole.dcm", segmented(LABELS, GRID, headers_of(GRID)), kind=kind)
    return errors_of(folder / "whole.dcm")


def test_a_grid_that_has_nothing_in_common_with_the_source_is_written_where_it_lies(tmp_path: Path) -> None:
    other = source_grid((9, 8, 4), (0.3, -0.2, 0.1))

    write_seg(tmp_path / "a.dcm", segmented(LABELS, other, headers_of(source_grid((20, 16, 3)))))

    assert np.array_equal(read_by_highdicom(tmp_path / "a.dcm", other), LABELS)


def test_an_image_whose_position_jitters_is_still_the_source_of_its_plane(tmp_path: Path) -> None:
    headers = headers_of(GRID)  # mr_ge_t1_sag_deidentified: 4e-4 mm; regularised grids: up to a tenth of a millimetre
    for number, header in enumerate(headers):
        header.ImagePositionPatient = [float(x) + (-1) ** number * 0.03 for x in header.ImagePositionPatient]

    write_seg(tmp_path / "a.dcm", segmented(LABELS, GRID, headers))

    frames = dcmread(tmp_path / "a.dcm").PerFrameFunctionalGroupsSequence
    assert all(frame.DerivationImageSequence for frame in frames)


def test_labels_that_a_person_corrected_are_semiautomatic_and_name_who_that_was(tmp_path: Path) -> None:
    by_jane = Algorithm("m", "1", "f", is_corrected=True, annotator="Doe^Jane")

    write_seg(tmp_path / "a.dcm", replace(segmented(LABELS, GRID, headers_of(GRID)), algorithm=by_jane))

    read = dcmread(tmp_path / "a.dcm")
    assert {segment.SegmentAlgorithmType for segment in read.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert (read.ContentCreatorName, read.SeriesDescription) == ("Doe^Jane", "SEG corrected: m 1")
    assert read.ContentDescription == "Segmentation corrected by a person"


@pytest.mark.parametrize("name", ["a=b", "a^b^c^d^e^f", "x" * 65, "a\\b"])
def test_a_name_that_is_no_person_name_of_dicom_is_refused(name: str) -> None:
    with pytest.raises(OutputError, match="name of an annotator"):
        Algorithm("m", "1", "f", is_corrected=True, annotator=name)


@given(st.text(max_size=100))
def test_whoever_annotates_has_a_name_that_dicom_takes(name: str) -> None:
    assert Algorithm("m", "1", "f", is_corrected=True, annotator=person_name(name)).annotator == person_name(name)
    assert person_name("Müller, Jürgen") == "Müller, Jürgen"


@pytest.mark.parametrize("kind", KINDS)
def test_segments_carry_names_codes_sides_colours_and_the_algorithm(tmp_path: Path, kind: SegKind) -> None:
    labels = np.where(LABELS == 1, 0, LABELS)
    case = segmented(labels, GRID, headers_of(GRID))

    written = write_seg(tmp_path / "a.dcm", case, kind=kind)

    read = dcmread(tmp_path / "a.dcm")
    liver, kidney, tumor, spleen = (item for item in read.SegmentSequence if item.SegmentNumber)
    kidney_type = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kidney_type.CodeValue, kidney_type.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kidney_type.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert tumor.AnatomicRegionSequence[0].CodeMeaning == "Liver"
    for item in (liver, kidney, tumor, spleen):
        colour = highdicom.color.CIELabColor(*_lab_of(item)).to_rgb()
        assert colour == pytest.approx(case.colours[item.SegmentNumber], abs=1)
    assert spleen.SegmentAlgorithmType == "AUTOMATIC"
    assert spleen.SegmentAlgorithmName == "abdomen model"
    identified = spleen.SegmentationAlgorithmIdentificationSequence[0]
    assert (identified.AlgorithmVersion, "5e" * 32 in identified.AlgorithmParameters) == ("1.2.0", True)
    assert spleen.TrackingUID == written.segments[3].tracking_uid


def _lab_of(segment: Dataset) -> tuple[float, float, float]:
    """Return L*, a* and b* of the 16-bit integers of PS3.3 C.10.7.1.1."""
    light, a, b = (value / 0xFFFF for value in segment.RecommendedDisplayCIELabValue)
    return 100 * light, 255 * a - 128, 255 * b - 128


@pytest.mark.parametrize("kind", KINDS)
def test_the_segment_number_is_the_label_value_and_what_was_not_found_is_told(tmp_path: Path, kind: SegKind) -> None:
    labels = np.where((LABELS == 1) | (LABELS == 3), 0, LABELS)

    written = write_seg(tmp_path / "a.dcm", segmented(labels, GRID, headers_of(GRID)), kind=kind)

    read = dcmread(tmp_path / "a.dcm")
    described = {item.SegmentNumber: item for item in read.SegmentSequence if item.SegmentNumber}
    assert [segment.number for segment in written.segments] == list(described) == [1, 2, 3, 4]
    assert {number: item.SegmentLabel for number, item in described.items()} == TABLE.foreground
    told = [number for number, item in described.items() if item.get("SegmentDescription") == seg_module.NOT_FOUND]
    assert told == [1, 3]
    assert np.array_equal(read_by_highdicom(tmp_path / "a.dcm", GRID), labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verdict", Verdict)
def test_a_segmentation_says_its_verdict_with_the_reasons(tmp_path: Path, kind: SegKind, verdict: Verdict) -> None:
    case = replace(
        segmented(LABELS, GRID, headers_of(GRID)), quality=Quality(verdict, ("missing: Käse.", "too large."))
    )

    write_seg(tmp_path / "a.dcm", case, kind=kind)

    read = dcmread(tmp_path / "a.dcm")
    words = {"accept": "accepted", "review": "for review", "refuse": "refused"}[verdict]
    assert read.SeriesDescription == f"SEG {words}: abdomen model 1.2.0"
    assert read.ContentDescription == f"Automatic segmentation, {words}"
    assert read.ImageComments == f"Automatic segmentation, {words}. missing: Käse. too large."
    assert read.ContentQualification == "RESEARCH"


def test_a_series_says_when_it_was_made(tmp_path: Path) -> None:
    write_seg(tmp_path / "a.dcm", segmented(LABELS, GRID, headers_of(GRID, SeriesDate="19990101")))

    read = dcmread(tmp_path / "a.dcm")
    assert (read.SeriesDate, read.SeriesTime[:4]) == (read.ContentDate, read.ContentTime[:4])


def test_more_than_ten_structures_become_a_compressed_label_map_and_more_than_255_fit(tmp_path: Path) -> None:
    coding = TABLE.coding(1)
    table = LabelTable(
        ("background", *(f"s{n}" for n in range(1, 301))), tuple((value, coding) for value in range(1, 301))
    )
    labels = (np.arange(GRID.shape[0] * GRID.shape[1] * GRID.shape[2]).reshape(GRID.shape) % 301).astype(np.uint16)

    write_seg(tmp_path / "a.dcm", segmented(labels, GRID, headers_of(GRID), table))
    few = np.where(labels > 10, 0, labels)
    write_seg(
        tmp_path / "b.dcm", segmented(few, GRID, headers_of(GRID), LabelTable(table.names[:12], table.codings[:11]))
    )
    write_seg(
        tmp_path / "c.dcm", segmented(few, GRID, headers_of(GRID), LabelTable(table.names[:11], table.codings[:10]))
    )

    kinds = [dcmread(tmp_path / name).SegmentationType for name in ("a.dcm", "b.dcm", "c.dcm")]
    assert kinds == ["LABELMAP", "LABELMAP", "BINARY"]
    assert dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.5"


def test_each_run_has_new_uids_in_the_study_and_space_of_the_source(tmp_path: Path) -> None:
    headers = headers_of(GRID)

    first = write_seg(tmp_path / "a.dcm", segmented(LABELS, GRID, headers))
    second = write_seg(tmp_path / "b.dcm", segmented(LABELS, GRID, headers))

    read = dcmread(tmp_path / "a.dcm")
    assert first.instance_uid != second.instance_uid
    assert first.series_uid not in (second.series_uid, headers[0].SeriesInstanceUID)
    assert (read.StudyInstanceUID, read.FrameOfReferenceUID) == (
        headers[0].StudyInstanceUID,
        headers[0].FrameOfReferenceUID,
    )
    assert (read.PatientName, read.PatientID, read.PatientBirthDate) == ("Doe^Jane", "4711", "")
    assert (read.SeriesNumber, read.ContentLabel) == (701, "SEGMENTATION")


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "Иванов^Иван"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("", "Plain^Name"),
    ],
)
@pytest.mark.parametrize("label", ["liver", "Leber, groß"])
def test_names_in_any_character_set_stay_the_same(
    tmp_path: Path, character_set: str | list[str], name: str, label: str
) -> None:
    headers = headers_of(GRID, SpecificCharacterSet=character_set, PatientName=name)
    table = LabelTable(("background", label), ((1, TABLE.coding(1)),))

    write_seg(tmp_path / "a.dcm", segmented((LABELS > 0).astype(np.uint8), GRID, headers, table))

    read = dcmread(tmp_path / "a.dcm")
    assert str(read.PatientName) == name
    assert read.SegmentSequence[0].SegmentLabel == label
    if label.isascii():
        assert read.get("SpecificCharacterSet", "") == headers[0].get("SpecificCharacterSet", "")
        assert read.PatientName.original_string == headers[0].PatientName.original_string


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", ["", "1.2.x", None])
def test_a_source_without_valid_uids_is_refused(tmp_path: Path, keyword: str, value: str | None) -> None:
    headers = headers_of(GRID)
    for header in headers[1:]:
        if value is None:
            delattr(header, keyword)
        else:
            header[keyword] = DataElement(keyword, "UI", value, validation_mode=IGNORE)

    sentence = refusal(tmp_path / "a.dcm", LABELS, GRID, headers)

    assert sentence.startswith("3 of 4 source images have no valid ")


def test_other_unfit_sources_are_refused(tmp_path: Path) -> None:
    path, twice = tmp_path / "a.dcm", headers_of(GRID)
    twice[1].SOPInstanceUID = twice[0].SOPInstanceUID
    nowhere, foreign = headers_of(GRID), headers_of(GRID)
    del nowhere[2].ImagePositionPatient
    foreign[1].FrameOfReferenceUID = "1.2.3"

    assert "share one SOP instance UID" in refusal(path, LABELS, GRID, twice)
    assert "no usable position" in refusal(path, LABELS, GRID, nowhere)
    assert "2 different frame of reference UIDs" in refusal(path, LABELS, GRID, foreign)
    assert "has no images" in refusal(path, LABELS, GRID, [])
    one, other = enhanced_of(headers_of(GRID)), enhanced_of(headers_of(GRID))
    other.StudyInstanceUID, other.SeriesInstanceUID = one.StudyInstanceUID, one.SeriesInstanceUID
    other.FrameOfReferenceUID = one.FrameOfReferenceUID
    assert "several multi-frame images" in refusal(path, LABELS, GRID, [one, other])


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path, headers = tmp_path / "a.dcm", headers_of(GRID)

    assert "nothing was segmented" in refusal(path, np.zeros_like(LABELS), GRID, headers)
    assert "label values from 0 to 9, expected 0 to 4" in refusal(
        path, np.full_like(LABELS, 9) * (LABELS > 0), GRID, headers
    )
    assert "expected integers" in refusal(path, LABELS.astype(np.float32), GRID, headers)
    assert "label values from -1" in refusal(path, LABELS.astype(np.int16) - 1, GRID, headers)
    assert "of shape (9, 8, 3)" in refusal(path, LABELS[..., :3], GRID, headers)
    anterior = LabelTable(("background", "anterior", "b", "c", "d"))
    assert "label 1 (anterior): no code is known" in refusal(path, LABELS, GRID, headers, anterior)
    long = LabelTable(("background", "x" * 65, "b", "c", "d"))
    assert "a label name must be 1 to 64 characters" in refusal(path, LABELS, GRID, headers, long)
    with pytest.raises(OutputError, match="name, version and fingerprint"):
        Algorithm("", "1", "f")


def test_a_sheared_grid_is_refused(tmp_path: Path) -> None:
    affine = GRID.affine.copy()
    affine[:3, 2] += (0, 0.6, 0)  # gantry tilt of 14 degrees, ct_d2n_gantrytilt

    assert "not at right angles" in refusal(tmp_path / "a.dcm", LABELS, Grid(GRID.shape, affine), headers_of(GRID))


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    path, case = tmp_path / "a.dcm", segmented(LABELS, GRID, headers_of(GRID))
    path.write_bytes(b"old")

    with pytest.raises(OutputError, match=r"a\.dcm: exists already"):
        write_seg(path, case)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.dcm: cannot be written \(No such file or directory\)"):
        write_seg(tmp_path / "nowhere" / "a.dcm", segmented(LABELS, GRID, headers_of(GRID)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["pixel", "position", "spacing", "name", "orientation"])
def test_the_comparison_finds_every_fault(tmp_path: Path, kind: SegKind, fault: str) -> None:
    path, case = tmp_path / "a.dcm", segmented(LABELS, GRID, headers_of(GRID))
    written = write_seg(path, case, kind=kind)
    read = dcmread(path)
    if kind is SegKind.LABELMAP:
        read.decompress()
    shared = read.SharedFunctionalGroupsSequence[0]
    frame = read.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    if fault == "pixel":
        read.PixelData = bytes([read.PixelData[0] ^ 1]) + read.PixelData[1:]
    elif fault == "position":
        frame.ImagePositionPatient = [float(x) + 0.3 for x in frame.ImagePositionPatient]
    elif fault == "spacing":
        shared.PixelMeasuresSequence[0].PixelSpacing = [0.8, 0.8]
    elif fault == "orientation":
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
    else:
        read.SegmentSequence[-1].SegmentLabel = "pancreas"
    read.save_as(path)

    with pytest.raises(OutputError, match="reads back with"):
        seg_module._compare_segments(path, path.name, case, written.segments)


def test_no_text_of_the_source_leaves_it_but_patient_and_study(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with quiet_pydicom():
        headers = headers_of(GRID, **dict.fromkeys(TEXT_ATTRIBUTES, CANARY))
        for header in headers:
            header.PatientName = header.PatientID = CANARY
            header.add_new("PatientSex", "CS", CANARY)
            header.add_new("PatientBirthDate", "DA", CANARY)
            header.add_new("PatientWeight", "LO", CANARY)
    caplog.set_level(logging.DEBUG)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        written = write_seg(tmp_path / "a.dcm", segmented(LABELS, GRID, headers))
        sentences = [refusal_of(headers, tmp_path, keyword) for keyword in ("StudyInstanceUID", "Rows", "PixelSpacing")]

        spoken = [*sentences, caplog.text, *(str(warning.message) for warning in warned), repr(written)]
        read = dcmread(tmp_path / "a.dcm")
        kept = {element.keyword for element in read.iterall() if element.VR != "SQ" and CANARY in str(element.value)}

    assert kept == {"PatientName", "PatientID", "PatientSex", "PatientBirthDate", "PatientWeight"}
    assert not any("Xylophone" in text for text in spoken)
    assert [path.name for path in tmp_path.iterdir()] == ["a.dcm"]


def refusal_of(headers: list[Dataset], folder: Path, keyword: str) -> str:
    broken = [copy.deepcopy(header) for header in headers]
    for header in broken:
        header.add_new(keyword, "LO", CANARY)
    with pytest.raises(OutputError) as caught:
        write_seg(folder / "b.dcm", segmented(LABELS, GRID, broken))
    return str(caught.value)


def test_what_highdicom_refuses_is_reworded_without_its_text(tmp_path: Path) -> None:
    headers = headers_of(GRID, SOPClassUID="1.2.840.99.1234")

    assert "do not fit a DICOM object (" in refusal(tmp_path / "a.dcm", LABELS, GRID, headers)


def test_a_source_that_was_compressed_with_loss_says_so_in_the_segmentation(tmp_path: Path) -> None:
    headers = headers_of(GRID, LossyImageCompression="01", LossyImageCompressionRatio="8")

    write_seg(tmp_path / "a.dcm", segmented(LABELS, GRID, headers))

    assert dcmread(tmp_path / "a.dcm").LossyImageCompression == "01"


@pytest.mark.parametrize("name", REAL_SERIES[:2])
def test_dcmqi_reads_a_compressed_label_map(tmp_path: Path, real_data: Path, name: str) -> None:
    headers, _ = real_headers(real_data / "dicom" / name)
    grid = real_grid(headers)
    labels = ellipsoids(grid.shape, 4)

    write_seg(tmp_path / "a.dcm", segmented(labels, grid, headers), kind=SegKind.LABELMAP)

    (image,) = _images_by_dcmqi(tmp_path / "a.dcm", tmp_path)
    assert np.bincount(sitk.GetArrayFromImage(image).ravel())[1:].tolist() == np.bincount(labels.ravel())[1:].tolist()


def test_dciodvfy_finds_no_error_where_structures_are_absent_and_the_verdict_is_told(
    tmp_path: Path, real_data: Path
) -> None:
    headers, files = real_headers(real_data / "dicom" / "ct_torchio_small")
    grid = real_grid(headers)
    labels = np.where(ellipsoids(grid.shape, 4) == 2, 2, 0).astype(np.uint8)
    case = replace(segmented(labels, grid, headers), quality=Quality(Verdict.REVIEW, ("missing: liver, spleen.",)))

    write_seg(tmp_path / "a.dcm", case, kind=SegKind.BINARY)  # it does not know label maps (Supplement 243)

    assert errors_of(tmp_path / "a.dcm") - errors_of(files[0]) == set()


@pytest.mark.parametrize("name", [*REAL_SERIES, PHILIPS_ENHANCED])
def test_dciodvfy_finds_no_new_error_and_dcmqi_the_same_voxels_on_real_series(
    tmp_path: Path, real_data: Path, name: str
) -> None:
    headers, files = real_headers(real_data / "dicom" / name)
    if name == PHILIPS_ENHANCED:  # has no frame of reference
        assert "have no valid frame of reference UID" in refusal(tmp_path / "a.dcm", LABELS, GRID, headers)
        headers[0].FrameOfReferenceUID = "1.2.3.4"
    grid = real_grid(headers)
    labels = ellipsoids(grid.shape, 4)

    written = write_seg(tmp_path / "a.dcm", segmented(labels, grid, headers))

    assert np.array_equal(read_by_highdicom(tmp_path / "a.dcm", grid), labels)
    assert all(f.DerivationImageSequence for f in dcmread(tmp_path / "a.dcm").PerFrameFunctionalGroupsSequence)
    assert errors_of(tmp_path / "a.dcm") - errors_of(files[0]) == set()
    counts = [
        int((sitk.GetArrayFromImage(image) != 0).sum()) for image in _images_by_dcmqi(tmp_path / "a.dcm", tmp_path)
    ]
    assert counts == [int((labels == segment.number).sum()) for segment in written.segments]


def _images_by_dcmqi(path: Path, folder: Path) -> list[sitk.Image]:
    """Return what dcmqi reads: an image for each binary segment, or the label map; skips where it is absent."""
    if (tool := shutil.which("segimage2itkimage")) is None:
        pytest.skip("needs segimage2itkimage (dcmqi)")
    (folder / "itk").mkdir()
    command = [tool, "--inputDICOM", str(path), "--outputDirectory", str(folder / "itk"), "--outputType", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    return [
        sitk.ReadImage(str(file))
        for file in sorted((folder / "itk").glob("*.nrrd"), key=lambda file: int(file.stem.split("-")[-1]))
    ]


def test_a_real_series_without_uids_is_refused(tmp_path: Path, real_data: Path) -> None:
    headers, _ = real_headers(real_data / "dicom" / "ct_siemens_body_j2k")

    assert "no valid study instance UID, so no DICOM object can refer to them" in refusal(
        tmp_path / "a.dcm", LABELS, GRID, headers
    )


@pytest.mark.slow
def test_a_hundred_structures_of_a_full_size_ct_take_few_megabytes(tmp_path: Path) -> None:
    grid = source_grid((512, 512, 300))
    coding = TABLE.coding(1)
    table = LabelTable(
        ("background", *(f"s{n}" for n in range(1, 101))), tuple((value, coding) for value in range(1, 101))
    )
    labels, headers = ellipsoids(grid.shape, 100), [from_file(header) for header in headers_of(grid)]

    write_seg(tmp_path / "a.dcm", segmented(labels, grid, headers, table))

    assert (tmp_path / "a.dcm").stat().st_size < 5e6


def test_values_with_a_gap_become_a_label_map_whose_segments_keep_their_numbers(tmp_path: Path) -> None:
    labels = np.where(LABELS == 2, 0, LABELS)
    table = LabelTable((*TABLE.names[:2], "", *TABLE.names[3:]))

    write_seg(tmp_path / "a.dcm", segmented(labels, GRID, headers_of(GRID), table))

    assert np.array_equal(read_by_highdicom(tmp_path / "a.dcm", GRID), labels)
    assert [item.SegmentNumber for item in dcmread(tmp_path / "a.dcm").SegmentSequence] == [0, 1, 3, 4]


def test_a_value_in_a_gap_of_the_names_is_refused(tmp_path: Path) -> None:
    table = LabelTable((*TABLE.names[:2], "", *TABLE.names[3:]))

    assert "label values without a name" in refusal(tmp_path / "a.dcm", LABELS, GRID, headers_of(GRID), table)
