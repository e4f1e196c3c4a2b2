"""The audit's tolerances hold for the writers too: what it calls usable becomes SEG, RTSTRUCT and SR on its grid."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from tests.derived_cases import ALGORITHM, LPS_TO_RAS, TABLE, rotation
from tests.dicom_files import image, stack, write_all
from voxelgate.core.errors import OutputError
from voxelgate.core.findings import Allow, FindingCode, refusals
from voxelgate.dicom.inspect import InspectedSeries, inspect
from voxelgate.dicom.read.volume import read_series
from voxelgate.dicom.write.rtstruct import write_rtstruct
from voxelgate.dicom.write.seg import write_seg
from voxelgate.dicom.write.seg_kind import SegKind
from voxelgate.dicom.write.segmented import SegmentedSeries
from voxelgate.dicom.write.sources import source_of
from voxelgate.dicom.write.sr import write_sr

ROWS, COLUMNS = 12, 10

JITTER_CODES = {
    FindingCode.BAD_ORIENTATION,
    FindingCode.DUPLICATE_POSITION,
    FindingCode.GANTRY_TILT,
    FindingCode.MISSING_SLICE,
    FindingCode.MIXED_ORIENTATIONS,
    FindingCode.MIXED_PIXEL_SPACINGS,
    FindingCode.NON_UNIFORM_SPACING,
    FindingCode.SHIFTED_SLICES,
    FindingCode.SEVERAL_VOLUMES,
}

ANGLES = st.tuples(*3 * [st.floats(-0.8, 0.8)])


def amounts(least: float, most: float) -> st.SearchStrategy[float]:
    """Draw none, or a size between two, small ones as often as large ones."""
    return st.just(0.0) | st.floats(np.log10(least), np.log10(most)).map(lambda power: float(10**power))


@st.composite
def jittered_stacks(draw: st.DrawFn) -> list[Dataset]:
    """Draw a stack whose slices differ from an even one by as much as the audit tolerates, and more."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    turned = rotation(draw(ANGLES))
    pixel_mm = draw(st.sampled_from((0.7, 2.0, 40.0)))  # of the last, a cosine's fourth digit moves the rim visibly
    gap_mm = draw(st.sampled_from((0.5, 2.5, 5.0)))
    step_mm = turned @ (*(draw(amounts(1e-5, 1e-2)) * rng.uniform(-1, 1, 2)), 1.0) * gap_mm
    sizes = [draw(amounts(1e-6, 2e-2)) for _ in range(2)], draw(amounts(1e-6, 1e-2)), draw(amounts(1e-6, 1.0))
    (all_cosines, each_cosine), spacing, position_mm = sizes
    common = turned[:, :2].T.ravel() + all_cosines / 10 * rng.uniform(-1, 1, 6)
    slices = []
    for k in range(draw(st.integers(2, 6))):
        cosines = common + each_cosine / 10 * rng.uniform(-1, 1, 6)
        sides_mm = pixel_mm * (1 + spacing * rng.uniform(-1, 1, 2))
        place_mm = k * step_mm + position_mm * rng.uniform(-1, 1, 3)
        slices.append(
            image(
                rng.integers(900, 1200, (ROWS, COLUMNS)).astype(np.uint16),
                ImageOrientationPatient=[round(float(value), 9) for value in cosines],
                ImagePositionPatient=[round(float(value), 6) for value in place_mm],
                PixelSpacing=[round(float(value), 9) for value in sides_mm],
                SliceThickness=gap_mm,
                InstanceNumber=k + 1,
            )
        )
    return slices


def found_in(slices: Sequence[Dataset], folder: Path, allow: Sequence[Allow] = ()) -> InspectedSeries:
    (inspected,) = inspect([write_all(slices, folder / "images")], allow=allow, headers_only=True)
    return inspected


def check_that_it_is_written(inspected: InspectedSeries, folder: Path, allow: Sequence[Allow] = ()) -> None:
    """Write a usable series in all forms, each of which reads itself back on the grid, and have highdicom read SEG."""
    volume = read_series(inspected.series, allow=allow)
    labels = np.random.default_rng(0).integers(0, len(TABLE.names), volume.grid.shape).astype(np.uint8)
    segmented = SegmentedSeries(labels, volume.grid, TABLE, source_of(inspected.series), ALGORITHM)
    for kind in SegKind:
        path = folder / f"{kind}.dcm"
        seg = write_seg(path, segmented, kind=kind)
        read = highdicom.seg.segread(path)
        wanted = highdicom.VolumeGeometry(
            LPS_TO_RAS @ volume.grid.affine, labels.shape, "PATIENT", frame_of_reference_uid=read.FrameOfReferenceUID
        )
        placed = read.get_volume(combine_segments=True, allow_missing_positions=True).match_geometry(wanted, tol=0.1)
        assert np.array_equal(placed.array, labels)
    write_rtstruct(folder / "rtstruct.dcm", segmented)
    write_sr(folder / "sr.dcm", segmented, seg)


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(slices=jittered_stacks(), allow=st.sampled_from(((), tuple(Allow))))
def test_what_the_audit_calls_usable_is_written_and_what_it_refuses_has_a_code(
    slices: list[Dataset], allow: tuple[Allow, ...]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        inspected = found_in(slices, Path(name), allow)

        if inspected.series.is_usable:
            check_that_it_is_written(inspected, Path(name), allow)
        else:
            refused = refusals(inspected.series.findings)
            assert {finding.code for finding in refused} <= JITTER_CODES
            with pytest.raises(OutputError, match=refused[0].code):
                source_of(inspected.series)


def test_a_slice_turned_by_half_the_tolerance_is_written_and_every_frame_names_its_image(tmp_path: Path) -> None:
    pixels = np.arange(ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS)
    slices = stack(np.stack([pixels + k for k in range(4)]))
    slices[2].ImageOrientationPatient = [1, 5e-4, 0, -5e-4, 1, 0]
    inspected = found_in(slices, tmp_path)
    assert not refusals(inspected.series.findings)

    check_that_it_is_written(inspected, tmp_path)

    frames = dcmread(tmp_path / f"{SegKind.LABELMAP}.dcm").PerFrameFunctionalGroupsSequence
    named = [frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID for frame in frames]
    assert sorted(named) == sorted(one.SOPInstanceUID for one in slices)


def test_a_slice_turned_beyond_the_tolerance_is_refused_by_the_audit_alone(tmp_path: Path) -> None:
    slices = stack(np.arange(4 * ROWS * COLUMNS, dtype=np.uint16).reshape(4, ROWS, COLUMNS))
    slices[2].ImageOrientationPatient = [1, 2e-3, 0, -2e-3, 1, 0]

    inspected = found_in(slices, tmp_path)

    assert [finding.code for finding in refusals(inspected.series.findings)] == [FindingCode.MIXED_ORIENTATIONS]
    with pytest.raises(OutputError, match="MIXED_ORIENTATIONS: 1 of 4"):
        source_of(inspected.series)


@pytest.mark.parametrize(
    ("keyword", "one", "other"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 0, 1, 0], [1, 3e-4, 0, -3e-4, 1, 0]),
        ("ImageOrientationPatient", [1, 0, 0, 0, 1, 0], [1, 0, 9e-4, 0, 1, 0]),
        ("PixelSpacing", [0.9766, 0.9766], [0.9763, 0.9763]),
        ("PixelSpacing", ["0.9766", "0.9766"], ["0.97656250", "0.97656250"]),
    ],
)
def test_what_an_archive_rounded_is_written_in_every_form(
    tmp_path: Path, keyword: str, one: list[float], other: list[float]
) -> None:
    slices = stack(np.arange(4 * ROWS * COLUMNS, dtype=np.uint16).reshape(4, ROWS, COLUMNS))
    for index, dataset in enumerate(slices):
        setattr(dataset, keyword, (one, other)[index % 2])

    inspected = found_in(slices, tmp_path)

    assert not refusals(inspected.series.findings)
    check_that_it_is_written(inspected, tmp_path)


@pytest.mark.parametrize("name", [b"ISO_IR\x00100", b"\t\0\x0c\0\r\xff\x0b\0\t\0", b"ISO_IR 999"])
def test_a_damaged_character_set_stops_no_form_and_the_name_keeps_its_bytes(tmp_path: Path, name: bytes) -> None:
    pixels = np.arange(4 * ROWS * COLUMNS, dtype=np.uint16).reshape(4, ROWS, COLUMNS)
    folder = write_all(stack(pixels, SpecificCharacterSet="ISO_IR 100", PatientName="M\xfcller"), tmp_path / "images")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", name))

    (inspected,) = inspect([folder])

    assert inspected.series.is_usable
    assert FindingCode.CHARACTER_SET in {finding.code for finding in inspected.series.findings}
    check_that_it_is_written(inspected, tmp_path)
    assert b"M\xfcller" in (tmp_path / "sr.dcm").read_bytes()


def test_merged_series_are_read_but_nothing_is_written_that_refers_to_one(tmp_path: Path) -> None:
    slices = stack(np.arange(4 * ROWS * COLUMNS, dtype=np.uint16).reshape(4, ROWS, COLUMNS), SeriesNumber=3)
    for index, dataset in enumerate(slices):
        dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.7.{index + 1}"
    inspected = found_in(slices, tmp_path, [Allow.MERGE_SERIES])
    assert inspected.series.is_usable
    assert inspected.summary()["series_uid"] == sorted(dataset.SeriesInstanceUID for dataset in slices)
    with pytest.raises(OutputError, match="4 different series instance UIDs, expected one"):
        source_of(inspected.series)
