"""Writing through MONAI's `SaveImaged`: on the grid of the image, re-read, never over another file."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, SaveImaged

from voxelgate.core.errors import OutputError, UsageError
from voxelgate.transforms.io import LabelMapWriter

AFFINE = np.array([[0, -1.5, 0, 4], [0, 0, 2.0, -3], [-0.8, 0, 0, 7], [0, 0, 0, 1.0]])


def save_copy(image: Path, out: Path) -> None:
    """Load an image and save its voxels as a label map."""
    saving = SaveImaged("image", output_dir=out, resample=False, separate_folder=False, writer=LabelMapWriter)
    Compose([LoadImaged("image", reader="voxelgate.VolumeReader", ensure_channel_first=True), saving])(
        {"image": str(image)}
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "patient_a").mkdir()
    path = tmp_path / "patient_a" / "ct.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.int16)
    nifti = nib.Nifti1Image(voxels, AFFINE)
    nifti.set_sform(AFFINE, code=2)
    nib.save(nifti, path)
    return path


def test_a_label_map_is_saved_with_the_grid_and_codes_of_its_image(image: Path, tmp_path: Path) -> None:
    save_copy(image, tmp_path / "out")
    saved = nib.load(tmp_path / "out" / "ct_trans.nii.gz")
    np.testing.assert_array_equal(saved.get_fdata(), nib.load(image).get_fdata())
    np.testing.assert_array_equal(saved.affine, nib.load(image).affine)
    assert int(saved.header["sform_code"]) == 2
    assert saved.get_data_dtype() == np.uint8


def test_two_patients_with_one_file_name_do_not_end_in_one_file(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "patient_b" / "ct.nii.gz"
    other.parent.mkdir()
    other.write_bytes(image.read_bytes())
    save_copy(image, tmp_path / "out")
    with pytest.raises(RuntimeError) as error:
        save_copy(other, tmp_path / "out")
    assert "exists already" in str(error.value.__cause__)


def test_probabilities_are_no_label_map() -> None:
    with pytest.raises(OutputError, match="whole numbers"):
        LabelMapWriter().set_data_array(np.full((1, 2, 2, 2), 0.5))


def test_resampling_labels_is_refused() -> None:
    with pytest.raises(UsageError, match="resample=False"):
        LabelMapWriter().set_metadata(MetaTensor(np.zeros((1, 2, 2, 2))).meta, resample=True)
