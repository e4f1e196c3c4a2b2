"""What is read of one file: every encoding, nothing of a patient, and damage that is noticed."""

import os
from copy import deepcopy
from dataclasses import fields
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests import planted
from tests.planted import CANARY
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.dicom_files import FileRef
from voxelgate.dicom.read.headers import Header, UnreadableFileError, read_header

TEXT_VRS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR")
OWN = {"file", "size", "transfer_syntax_uid", "pixel_offset", "pixel_bytes", "is_little_endian"}


def header_of(content: bytes | Path, folder: Path) -> Header | None:
    path = content if isinstance(content, Path) else folder / "file"
    if isinstance(content, bytes):
        path.write_bytes(content)
    with quiet_pydicom():
        return read_header(FileRef(path))


def encoded(dataset: Dataset, syntax: str, *, has_meta: bool = True) -> bytes:
    buffer = BytesIO()
    copy = deepcopy(dataset)
    copy.file_meta.TransferSyntaxUID = syntax
    if has_meta:
        copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
        dcmwrite(buffer, copy, enforce_file_format=True)
    else:
        del copy.file_meta
        is_little = syntax != ExplicitVRBigEndian
        dcmwrite(buffer, copy, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=is_little)
    return buffer.getvalue()


def facts(header: Header | None) -> dict[str, object]:
    assert header is not None
    return {field.name: getattr(header, field.name) for field in fields(header) if field.name not in OWN}


@pytest.fixture
def ct() -> Dataset:
    return planted.ct_series()[3]


def test_a_plane_says_where_it_lies(ct: Dataset, tmp_path: Path) -> None:
    header = header_of(encoded(ct, ExplicitVRLittleEndian), tmp_path)
    assert header is not None
    (plane,) = header.planes
    assert plane.position_lps_mm == (-15.0, -12.0, 107.5)
    assert plane.orientation_lps == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert (plane.pixel_spacing_mm, plane.slope, plane.intercept) == ((0.75, 0.75), 1.0, -1024.0)
    assert (header.rows, header.columns, header.frames, header.malformed) == (32, 40, 1, ())
    content = (tmp_path / "file").read_bytes()
    assert header.pixel_offset is not None
    assert content[header.pixel_offset : header.pixel_offset + (header.pixel_bytes or 0)] == ct.PixelData


PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


@pytest.mark.parametrize(
    ("syntax", "has_meta"),
    [
        *((syntax, has_meta) for syntax in PLAIN for has_meta in (True, False)),
        (DeflatedExplicitVRLittleEndian, True),  # without a meta header nothing says that a file is deflated
    ],
)
def test_every_encoding_says_the_same(syntax: str, has_meta: bool, ct: Dataset, tmp_path: Path) -> None:
    ct.GantryDetectorTilt = "3"
    ct.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", 800)
    expected = facts(header_of(encoded(ct, ExplicitVRLittleEndian), tmp_path))
    header = header_of(encoded(ct, syntax, has_meta=has_meta), tmp_path)
    assert facts(header) == expected
    assert header is not None
    assert header.planes[0].b_value == 800
    if header.pixel_offset is not None:
        start = (tmp_path / "file").read_bytes()[header.pixel_offset :][: header.pixel_bytes]
        assert start == ct.PixelData
        assert header.is_little_endian == (syntax != ExplicitVRBigEndian)


def test_a_file_without_a_preamble_is_read(ct: Dataset, tmp_path: Path) -> None:
    whole = encoded(ct, ExplicitVRLittleEndian)
    assert facts(header_of(whole[132:], tmp_path)) == facts(header_of(whole, tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"hello world, this is a text file that goes on for a while\n" * 10,
        b"%PDF-1.7\n" + bytes(500),
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        b"PK\x03\x04" + bytes(500),
        b"\0" * 500,
        b"\x02\x00\x00\x00\x04\x00\x00\x00" + bytes(range(256)) * 2,
        b"\x08\x00\x05\x00" + b"\x10\x00\x00\x00" + b"x" * 600,
    ],
    ids=["empty", "one byte", "text", "pdf", "png", "zip", "zeros", "binary", "like implicit"],
)
def test_junk_is_no_dicom(content: bytes, tmp_path: Path) -> None:
    assert header_of(content, tmp_path) is None


@given(content=st.binary(max_size=400))
@settings(deadline=None)
def test_any_bytes_are_junk_or_unreadable(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    for start in (b"", b"\x08\x00", bytes(128) + b"DICM"):
        try:
            header = header_of(start + content, folder)
        except UnreadableFileError:
            continue
        assert header is None or header.rows is None


@pytest.mark.slow
def test_a_file_that_ends_anywhere_in_its_header_is_unreadable(ct: Dataset, tmp_path: Path) -> None:
    whole = encoded(ct, ExplicitVRLittleEndian)
    at_pixels = len(whole) - len(ct.PixelData) - 12
    for length in range(132, at_pixels):
        try:
            header = header_of(whole[:length], tmp_path)
        except UnreadableFileError:
            continue
        assert header is not None
        assert header.rows == planted.ROWS
        assert header.pixel_bytes is None


def test_a_file_that_may_not_be_read_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError):
        header_of(tmp_path / "gone", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user other than root, who may read everything")
def test_a_file_without_permission_is_unreadable(ct: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "locked"
    path.write_bytes(encoded(ct, ExplicitVRLittleEndian))
    path.chmod(0)
    with pytest.raises(UnreadableFileError):
        header_of(path, tmp_path)


def test_no_text_of_any_attribute_is_shown(tmp_path: Path) -> None:
    dataset = planted.mr_series()[0]
    from pydicom.datadict import DicomDictionary  # noqa: PLC0415

    for tag in DicomDictionary:
        if 0x00080005 < tag < 0x00600000 and dictionary_VR(tag) in TEXT_VRS and keyword_for_tag(tag):
            dataset.add_new(tag, dictionary_VR(tag), CANARY)
    for keyword in ("PatientID", "SeriesDescription", "Modality", "PhotometricInterpretation", "ImageType"):
        assert CANARY in str(dataset[keyword].value)
    header = header_of(encoded(dataset, ExplicitVRLittleEndian), tmp_path)
    shown = f"{header!r} {header} {[header]} {header.planes if header else ''}".lower()
    for part in (*CANARY.lower().split("^"), planted.ROOT, str(tmp_path).lower()):
        assert part not in shown


def test_a_patient_is_the_same_in_other_letters_and_spacing(ct: Dataset, tmp_path: Path) -> None:
    first = header_of(encoded(ct, ExplicitVRLittleEndian), tmp_path)
    ct.PatientName, ct.PatientID = "TEST^Phantom^^^", " Phantom-1 "
    second = header_of(encoded(ct, ExplicitVRLittleEndian), tmp_path)
    assert first is not None
    assert second is not None
    assert first.patient == second.patient
    ct.PatientID = "phantom-2"
    third = header_of(encoded(ct, ExplicitVRLittleEndian), tmp_path)
    assert third is not None
    assert third.patient[0] != first.patient[0]


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ("0.75\\0.75", True),
        (" 0.75 \\7.5e-1 ", True),
        ("", None),
        ("0.75", False),
        ("0.75\\", False),
        ("0,75\\0,75", False),
        ("nan\\0.75", False),
        ("1e999\\0.75", False),
        ("0x1\\0.75", False),
        ("7_5\\0.75", False),
        (CANARY, False),
    ],
)
def test_numbers_are_numbers_or_malformed(text: str, is_good: bool | None, ct: Dataset, tmp_path: Path) -> None:
    ct["PixelSpacing"]._value = text
    header = header_of(encoded(ct, ExplicitVRLittleEndian), tmp_path)
    assert header is not None
    assert (header.planes[0].pixel_spacing_mm is not None) == bool(is_good)
    assert header.malformed == (("PixelSpacing",) if is_good is False else ())


@pytest.mark.parametrize("count", [0, -3])
def test_a_number_of_frames_below_1_is_malformed(count: int, ct: Dataset, tmp_path: Path) -> None:
    ct.NumberOfFrames = count
    header = header_of(encoded(ct, ExplicitVRLittleEndian), tmp_path)
    assert header is not None
    assert header.frames == 1
    assert header.malformed == ("NumberOfFrames",)


def test_a_frames_own_groups_stand_before_the_shared_ones(tmp_path: Path) -> None:
    (dataset,) = planted.enhanced_series()
    measures = Dataset()
    measures.PixelSpacing = [0.5, 0.5]
    dataset.PerFrameFunctionalGroupsSequence[2].PixelMeasuresSequence = [measures]
    header = header_of(encoded(dataset, ExplicitVRLittleEndian), tmp_path)
    assert header is not None
    assert [plane.frame for plane in header.planes] == list(range(12))
    assert [plane.pixel_spacing_mm for plane in header.planes[1:3]] == [(0.75, 0.75), (0.5, 0.5)]
    assert [plane.slope for plane in header.planes[:3]] == [1.25, 1.5, 1.75]
    assert {plane.echo_time_ms for plane in header.planes} == {30.0}


@pytest.mark.parametrize(
    ("vr", "value", "expected"), [("IS", 800, 800.0), ("FD", float("nan"), None), ("LO", "x", None)]
)
def test_a_vendors_element_is_found_in_any_block(
    vr: str, value: object, expected: float | None, ct: Dataset, tmp_path: Path
) -> None:
    ct.add_new(0x00190010, "LO", "Somebody else")
    ct.add_new(0x00190013, "LO", "SIEMENS MR HEADER")
    ct.add_new(0x0019130C, vr, value)
    header = header_of(encoded(ct, ExplicitVRLittleEndian), tmp_path)
    assert header is not None
    assert header.planes[0].b_value == expected


def test_a_deflated_report_has_no_pixels(ct: Dataset, tmp_path: Path) -> None:
    planted.as_class("1.2.840.10008.5.1.4.1.1.88.33", "SR", keeps_pixels=False)([ct])
    header = header_of(encoded(ct, DeflatedExplicitVRLittleEndian), tmp_path)
    assert header is not None
    assert header.pixel_bytes is None


def test_a_header_without_pixels_that_ends_with_a_sequence_is_whole(ct: Dataset, tmp_path: Path) -> None:
    del ct.PixelData
    item = Dataset()
    item.LUTExplanation = "x"
    ct.VOILUTSequence = [item]
    for is_undefined in (True, False):
        ct["VOILUTSequence"].is_undefined_length = is_undefined
        header = header_of(encoded(ct, ExplicitVRLittleEndian), tmp_path)
        assert header is not None
        assert header.pixel_bytes is None


def test_values_are_those_that_pydicom_reads(real_data: Path) -> None:
    for path in sorted((real_data / "dicom").glob("*/*"))[::25]:
        if not path.is_file() or path.suffix not in ("", ".dcm"):
            continue
        dataset = dcmread(path, stop_before_pixels=True)
        header = header_of(path, path.parent)
        if header is None or "ImagePositionPatient" not in dataset:
            continue
        assert header.planes[0].position_lps_mm == tuple(map(float, dataset.ImagePositionPatient))
        assert (header.rows, header.series_uid) == (dataset.Rows, dataset.SeriesInstanceUID)
