"""`Bundle.segment`: what it gives in memory is what `segment` writes, whatever form the image comes in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.conftest import REPOSITORY
from tests.planted import ct_series, write
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.predict import Bundle
from voxelgate.core.errors import InputError, UsageError
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.read.volume import read_series
from voxelgate.images.volumes import read_volume
from voxelgate.segmentation.batch.run_batch import segment
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.report import CaseReport

HIPPOCAMPUS = REPOSITORY / "bundles" / "hippocampus_mri_segmentation"
HEAD_NECK = REPOSITORY / "bundles" / "head_neck_ct_segmentation"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(make_threshold_bundle(tmp_path_factory.mktemp("bundles") / "bright_ct"), "cpu")


def written(root: Path, image: Path, out: Path) -> CaseReport:
    (report,) = segment(root, image, out, workers="serial", device="cpu", require="any")
    return report


def test_a_file_gives_in_memory_what_is_written_of_it(hippocampus: Path, tmp_path: Path) -> None:
    image = sorted((hippocampus / "images").iterdir())[0]
    report = written(HIPPOCAMPUS, image, tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))

    found = open_bundle(HIPPOCAMPUS, "cpu").segment(image)

    labels, grid = read_volume(report.outputs[Output.NIFTI])
    assert labels.any()
    np.testing.assert_array_equal(found.labels, labels)
    assert found.grid.agrees(grid, 1e-3)
    assert found.volumes_ml == report.volumes_ml
    assert found.review == report.quality
    assert sorted(tmp_path.rglob("*")) == before


def test_an_array_and_a_tensor_give_what_their_file_gives(hippocampus: Path) -> None:
    image, opened = sorted((hippocampus / "images").iterdir())[1], open_bundle(HIPPOCAMPUS, "cpu")
    voxels, grid = read_volume(image)
    tensor = MetaTensor(
        torch.from_numpy(np.array(voxels, np.float32))[None], affine=torch.from_numpy(grid.affine.copy())
    )

    of_file, of_array, of_tensor = map(opened.segment, (image, (voxels, grid.affine), tensor))

    assert of_file.labels.any()
    np.testing.assert_array_equal(of_array.labels, of_file.labels)
    np.testing.assert_array_equal(of_tensor.labels, of_file.labels)
    assert of_array.volumes_ml == of_tensor.volumes_ml == of_file.volumes_ml


@pytest.mark.parametrize("study", ["ct_philips_study_mixed"])
def test_a_real_study_gives_in_memory_what_is_written_of_it(real_data: Path, tmp_path: Path, study: str) -> None:
    report = written(HEAD_NECK, real_data / "dicom" / study, tmp_path / "out")

    found = open_bundle(HEAD_NECK, "cpu").segment(real_data / "dicom" / study)

    labels, _ = read_volume(report.outputs[Output.NIFTI])
    np.testing.assert_array_equal(found.labels, labels)
    assert found.volumes_ml == report.volumes_ml
    assert found.review == report.quality


def test_a_series_and_its_folder_give_the_same(tmp_path: Path, bundle: Bundle) -> None:
    write(ct_series(), tmp_path / "in")
    (series,) = scan_dicom(tmp_path / "in")

    of_series, of_folder = bundle.segment(series), bundle.segment(str(tmp_path / "in"))

    assert of_series.labels.any()
    np.testing.assert_array_equal(of_series.labels, of_folder.labels)
    assert of_series.grid.agrees(read_series(series).grid)


def test_a_folder_without_dicom_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "note.txt").write_text("nothing")
    with pytest.raises(InputError, match="in: holds no series that the bundle can use: there is no DICOM image"):
        bundle.segment(tmp_path / "in")


def test_two_studies_are_refused_by_memory(tmp_path: Path, bundle: Bundle) -> None:
    write(ct_series(), tmp_path / "in" / "a")
    other = ct_series()
    for number, dataset in enumerate(other):
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
    write(other, tmp_path / "in" / "b")
    with pytest.raises(InputError, match="in: holds several studies, expected one"):
        bundle.segment(tmp_path / "in")


@pytest.mark.parametrize(
    ("voxels", "affine", "words"),
    [
        (np.zeros((4, 4)), np.eye(4), r"the shape \(4, 4\), but the bundle takes images of 1"),
        (np.random.default_rng(0).random((2, 4, 4, 4)), np.eye(4), r"the shape \(2, 4, 4, 4\)"),
        (np.random.default_rng(0).random((4, 4, 4)), np.zeros((4, 4)), "no usable grid"),
        (np.full((4, 4, 4), np.nan), np.eye(4), "the image: 64 voxels are NaN or infinite"),
        (np.ones((4, 4, 4)), np.eye(4), r"the image: all voxels are 1\.0"),
    ],
)
def test_an_array_that_is_no_image_is_refused(
    bundle: Bundle, voxels: np.ndarray, affine: np.ndarray, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        bundle.segment((voxels, affine))


def test_a_flipped_view_of_an_array_gives_what_its_copy_gives(bundle: Bundle) -> None:
    voxels = np.random.default_rng(0).normal(0, 300, (9, 8, 7)).astype(np.int16)
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])

    view, copy = bundle.segment((voxels[::-1], affine)), bundle.segment((voxels[::-1].copy(), affine))

    assert np.array_equal(view.labels, copy.labels)


@pytest.mark.parametrize("wrong", [(), None, 3, np.zeros((4, 4, 4)), (np.zeros((4, 4, 4)),), b"scan.nii.gz"])
def test_what_is_not_an_image_is_refused_in_one_sentence(bundle: Bundle, wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"an image is a path|no image is given"):
        bundle.segment(wrong)


@pytest.mark.parametrize("dtype", [bool, complex, object])
def test_an_array_of_other_than_numbers_is_refused(bundle: Bundle, dtype: type) -> None:
    with pytest.raises(InputError, match="expected integers or real numbers"):
        bundle.segment((np.arange(64).reshape(4, 4, 4).astype(dtype), np.eye(4)))
