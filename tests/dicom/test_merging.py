"""Single images with a series UID each are offered as the stack that they make, and nothing else is."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from tests import planted
from tests.planted import Plant, chained, in_series_of_their_own, setting
from voxelgate.core.findings import Allow, FindingCode, refusals
from voxelgate.dicom.read.series import Series, scan_dicom
from voxelgate.dicom.read.volume import read_series


def scanned(datasets: list[Dataset], folder: Path, *allow: Allow) -> list[Series]:
    planted.write(datasets, folder)
    return scan_dicom(folder, allow=allow)


def test_one_sentence_says_how_many_make_a_stack_and_which_option_reads_it(tmp_path: Path) -> None:
    (series,) = scanned(in_series_of_their_own(planted.ct_series()), tmp_path)
    (finding,) = refusals(series.findings)
    assert finding.code is FindingCode.SEVERAL_SERIES
    assert finding.message.startswith("12 single images of one study, series number, frame of reference and grid")
    assert "pass --allow merge-series" in finding.message


def test_merged_they_are_the_volume_of_one_series(tmp_path: Path) -> None:
    (whole,) = scanned(planted.ct_series(), tmp_path / "whole")
    (merged,) = scanned(in_series_of_their_own(planted.ct_series())[::-1], tmp_path / "parts", Allow.MERGE_SERIES)
    assert np.array_equal(read_series(merged, allow=[Allow.MERGE_SERIES]).voxels, read_series(whole).voxels)


def test_the_stack_has_the_same_identifier_whatever_is_allowed(tmp_path: Path) -> None:
    planted.write(in_series_of_their_own(planted.ct_series()), tmp_path)
    (one,), (other,) = scan_dicom(tmp_path), scan_dicom(tmp_path, allow=[Allow.MERGE_SERIES])
    assert one.series_id == other.series_id


def test_two_stacks_of_one_study_are_told_apart_by_their_number(tmp_path: Path) -> None:
    both = in_series_of_their_own(planted.ct_series())
    second = [planted.different(dataset, 100) for dataset in both]
    for index, dataset in enumerate(second):
        dataset.update({"SeriesNumber": 2, "SeriesInstanceUID": f"{planted.ROOT}.2.{index + 1}"})
    found = scanned(both + second, tmp_path, Allow.MERGE_SERIES)
    assert [(series.number, len(series.slices)) for series in found] == [(1, 12), (2, 12)]


def test_two_stacks_that_nothing_tells_apart_are_refused_in_one_series(tmp_path: Path) -> None:
    both = in_series_of_their_own(planted.ct_series())
    second = [planted.different(dataset, 100) for dataset in both]
    for index, dataset in enumerate(second):
        dataset.SeriesInstanceUID = f"{planted.ROOT}.2.{index + 1}"
    (series,) = scanned(both + second, tmp_path, Allow.MERGE_SERIES)
    (finding,) = refusals(series.findings)
    assert finding.code is FindingCode.SEVERAL_VOLUMES
    assert "12 of 12 positions hold up to 2 images" in finding.message


APART = {
    "series numbers": setting("SeriesNumber", lambda index: index),
    "studies": setting("StudyInstanceUID", lambda index: f"{planted.ROOT}.0.{index + 1}"),
    "frames of reference": setting("FrameOfReferenceUID", lambda index: f"{planted.ROOT}.9.{index + 1}"),
    "patients": setting("PatientID", lambda index: f"phantom-{index}"),
    "places, all the same": setting("ImagePositionPatient", [0, 0, 0]),
    "planes": setting(
        "ImageOrientationPatient",
        lambda index: [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]][index % 3],
    ),
}


@pytest.mark.parametrize("name", APART)
def test_images_of_other_kinds_are_not_merged(tmp_path: Path, name: str) -> None:
    plant: Plant = chained(in_series_of_their_own, APART[name])
    found = scanned(plant(planted.ct_series(3)), tmp_path, Allow.MERGE_SERIES)
    assert len(found) == 3
    assert all(FindingCode.SINGLE_SLICE in {one.code for one in refusals(series.findings)} for series in found)


def test_two_single_images_are_no_stack(tmp_path: Path) -> None:
    assert len(scanned(in_series_of_their_own(planted.ct_series(2)), tmp_path, Allow.MERGE_SERIES)) == 2


def test_a_slice_that_came_twice_counts_once(tmp_path: Path) -> None:
    datasets = in_series_of_their_own(planted.ct_series())
    (series,) = scanned([*datasets, datasets[4]], tmp_path, Allow.MERGE_SERIES)
    assert len(series.slices) == 12
