"""Voxel sizes and values as the readers of nnU-Net have them, in every format: those of SimpleITK and nibabel."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # as everybody calls it
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged
from nibabel.eulerangles import euler2mat

from voxelgate.images.spec import read_image_with_findings
from voxelgate.transforms.io import as_image, file_facts_of
from voxelgate.transforms.nnunet.source_layout import header_spacing

SIZES = (0.7, 0.8, 3.1)
OBLIQUE = euler2mat(0.3, 0.2, 0.1) @ np.diag(SIZES)


def volume(values: np.ndarray) -> sitk.Image:
    made = sitk.GetImageFromArray(values)
    made.SetSpacing(SIZES)
    made.SetDirection((OBLIQUE / SIZES).ravel().tolist())
    return made


def read(path: Path) -> MetaTensor:
    found = read_image_with_findings(path)
    return as_image(found.voxels, found.grid, found.facts)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_sizes_and_values_are_those_of_simpleitk(ending: str, dtype: type, tmp_path: Path) -> None:
    path = tmp_path / f"scan{ending}"
    values = np.random.default_rng(0).normal(500, 300, (3, 4, 5)).clip(0).astype(dtype)
    sitk.WriteImage(volume(values), str(path))

    image = read(path)

    theirs = sitk.ReadImage(str(path))
    assert header_spacing(image) == theirs.GetSpacing()
    assert np.array_equal(image.numpy()[0].T, sitk.GetArrayFromImage(theirs).astype(np.float32))


@pytest.mark.parametrize("pixdim", [SIZES, (0.71, 0.8, 3.1), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1)])
def test_pixdim_counts_in_a_nifti_file_whatever_the_forms_say(
    pixdim: tuple[float, float, float], codes: tuple[int, int], tmp_path: Path
) -> None:
    path, affine = tmp_path / "scan.nii", np.eye(4)
    affine[:3, :3] = OBLIQUE
    nifti = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), affine)
    nifti.set_sform(affine, codes[0])
    nifti.set_qform(affine, codes[1])
    nifti.header["pixdim"][1:4] = pixdim
    nifti.to_filename(path)
    stored = bytearray(path.read_bytes())  # nibabel writes its own pixdim
    stored[80:92] = np.array(pixdim, "<f4").tobytes()
    path.write_bytes(stored)

    found = header_spacing(read(path))

    assert found == sitk.ReadImage(str(path)).GetSpacing()
    assert found == tuple(map(float, nib.load(path).header.get_zooms()))


@pytest.mark.parametrize(("slope", "inter"), [(1.0, -1024.0), (0.37, 0.1), (2.0, 0.0)])
def test_scaled_values_are_those_of_simpleitk_and_nibabel(slope: float, inter: float, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    nifti = nib.Nifti1Image(np.random.default_rng(1).integers(-1000, 3000, (5, 4, 3)).astype(np.int16), np.eye(4))
    nifti.header.set_slope_inter(slope, inter)
    nifti.to_filename(path)

    values = read(path).numpy()[0]

    assert np.array_equal(values, sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T.astype(np.float32))
    assert np.array_equal(values, nib.load(path).get_fdata().astype(np.float32))


@pytest.mark.parametrize("reader", ["voxelgate.VolumeReader", "voxelgate.ChannelsReader", "ITKReader", "NibabelReader"])
def test_readers_of_monai_hand_the_sizes_on(reader: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(volume(np.ones((3, 4, 5), np.float32)), str(path))

    image = LoadImaged("image", reader=reader, ensure_channel_first=True)({"image": str(path)})["image"]

    assert header_spacing(image) == tuple(float(np.float32(size)) for size in SIZES)


def test_what_an_image_in_memory_tells_of_its_file_is_kept() -> None:
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"spacing": (0.7, 0.8, 3.1), "is_dicom": True})

    assert file_facts_of(image) == ((0.7, 0.8, 3.1), True, False)
