"""Parts of a multi-frame image are one volume wherever and in whatever order they lie, or none at all."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from tests import planted
from tests.derived_cases import ALGORITHM, TABLE
from voxelgate.core.findings import FindingCode, Severity, refusals
from voxelgate.dicom.read.series import Series, scan_dicom
from voxelgate.dicom.read.volume import read_series
from voxelgate.dicom.write.rtstruct import write_rtstruct
from voxelgate.dicom.write.seg import SegKind, write_seg
from voxelgate.dicom.write.segmented import SegmentedSeries
from voxelgate.dicom.write.sources import source_of
from voxelgate.dicom.write.sr import write_sr

SIZES = (5, 3, 4)


def parts() -> list[Dataset]:
    return planted.in_parts(*SIZES)(planted.enhanced_series())


def only_series(datasets: list[Dataset], folder: Path) -> Series:
    planted.write(datasets, folder)
    (series,) = scan_dicom(folder)
    return series


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0), (0, 1, 2)])
def test_parts_in_any_order_and_folder_are_the_whole(tmp_path: Path, order: tuple[int, ...]) -> None:
    whole = read_series(only_series(planted.enhanced_series(), tmp_path / "whole"))
    datasets = parts()
    for folder, number in enumerate(order):
        planted.write([datasets[number]], tmp_path / "parts" / str(folder))
    (series,) = scan_dicom(tmp_path / "parts")
    volume = read_series(series)
    assert np.array_equal(volume.voxels, whole.voxels)
    assert volume.grid.difference(whole.grid) is None


@pytest.mark.parametrize("lost", range(len(SIZES)))
def test_a_part_that_is_missing_is_named(tmp_path: Path, lost: int) -> None:
    series = only_series([part for number, part in enumerate(parts()) if number != lost], tmp_path)
    (finding,) = refusals(series.findings)
    assert finding.code is FindingCode.CONCATENATION
    assert f"of the 3 parts of the image 1 part is missing (number {lost + 1})" in finding.message


def test_one_part_alone_says_which_others_belong_to_it(tmp_path: Path) -> None:
    (finding,) = refusals(only_series(parts()[1:2], tmp_path).findings)
    assert "2 parts are missing (number 1, 3)" in finding.message


def test_parts_with_equal_pixels_at_one_place_are_no_copies(tmp_path: Path) -> None:
    one, other = planted.in_parts(6, 6)(planted.enhanced_series())
    other.PerFrameFunctionalGroupsSequence = one.PerFrameFunctionalGroupsSequence
    other.PixelData = one.PixelData
    found = only_series([one, other], tmp_path)
    assert FindingCode.SEVERAL_VOLUMES in {finding.code for finding in refusals(found.findings)}


def test_a_slice_is_named_by_its_number_in_the_whole_image(tmp_path: Path) -> None:
    found = parts()
    for group in found[1].PerFrameFunctionalGroupsSequence[1:2]:
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 1e17]
    (finding,) = refusals(only_series(found, tmp_path).findings)
    assert "1 of 12 images (number 7)" in finding.message


@pytest.mark.parametrize("kind", list(SegKind))
def test_results_of_a_concatenation_name_file_and_frame_of_each_image(tmp_path: Path, kind: SegKind) -> None:
    datasets = parts()
    series = only_series(datasets, tmp_path / "parts")
    grid = read_series(series).grid
    labels = np.zeros(grid.shape, np.uint8)
    labels[5:20, 5:20, :] = 1
    segmented = SegmentedSeries(labels, grid, TABLE, source_of(series), ALGORITHM)
    seg = write_seg(tmp_path / "seg.dcm", segmented, kind=kind)
    write_rtstruct(tmp_path / "rtstruct.dcm", segmented)
    write_sr(tmp_path / "sr.dcm", segmented, seg)

    places = {
        (str(part.SOPInstanceUID), number): [
            float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient
        ]
        for part in datasets
        for number, group in enumerate(part.PerFrameFunctionalGroupsSequence, start=1)
    }
    written = dcmread(tmp_path / "seg.dcm")
    uids = {str(part.SOPInstanceUID) for part in datasets}
    (referred,) = written.ReferencedSeriesSequence
    assert {str(item.ReferencedSOPInstanceUID) for item in referred.ReferencedInstanceSequence} == uids
    for frame in written.PerFrameFunctionalGroupsSequence:
        (item,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = places[str(item.ReferencedSOPInstanceUID), int(item.ReferencedFrameNumber)]
        assert np.allclose(place, [float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient])
    outlined = dcmread(tmp_path / "rtstruct.dcm")
    study = outlined.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    images = study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert {str(item.ReferencedSOPInstanceUID) for item in images} == uids
    evidence = str(dcmread(tmp_path / "sr.dcm").CurrentRequestedProcedureEvidenceSequence)
    assert all(uid in evidence for uid in uids)


def test_parts_without_a_total_are_read_with_a_warning(tmp_path: Path) -> None:
    datasets = planted.deleting("InConcatenationTotalNumber")(parts())
    series = only_series(datasets, tmp_path)
    assert series.is_usable
    warnings = [finding.code for finding in series.findings if finding.severity is Severity.WARN]
    assert warnings == [FindingCode.CONCATENATION]
