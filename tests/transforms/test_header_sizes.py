"""Voxel sizes of the header: an oblique image is as long as its header says, as ITK reads it."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd

from voxelgate.transforms.header_sizes import HeaderSizesd


def test_an_oblique_image_gets_the_affine_and_the_size_that_itk_gives_it(tmp_path: Path) -> None:
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([-2.25, -2.1, 7.5])
    voxels = np.random.default_rng(0).normal(size=(48, 12, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    after = [Orientationd("image", "RAS"), Spacingd("image", (1.5, 1.5, 3.0))]

    def read(reader: str, *steps: object) -> torch.Tensor:
        load = [LoadImaged("image", reader=reader), EnsureChannelFirstd("image")]
        return Compose([*load, *steps, *after])({"image": str(tmp_path / "a.nii.gz")})["image"]

    wanted, found = read("ITKReader"), read("voxelgate.VolumeReader", HeaderSizesd("image"))

    assert found.shape == wanted.shape != read("voxelgate.VolumeReader").shape
    assert np.allclose(found.affine, wanted.affine, atol=1e-5)
    assert found.as_tensor().numpy() == pytest.approx(wanted.as_tensor().numpy(), abs=1e-4)
