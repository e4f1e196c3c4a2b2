"""Canonical order and a spacing in name, as TotalSegmentator prepares images."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.transforms.canonical_zoom import CanonicalZoomd
from voxelgate.transforms.io import as_image

OBLIQUE = nib.affines.from_matvec(np.array([[0.0, 0.1, 1.1], [-0.9, 0.05, 0.1], [0.1, -1.2, 0.0]]), [4.0, -3.0, 11.0])
AFFINES = {
    "RAS": np.diag([0.8, 0.9, 1.3, 1.0]),
    "LPS": np.diag([-0.8, -0.9, 2.5, 1.0]),
    "turned and oblique": OBLIQUE,
}


def recipe(voxels: np.ndarray, affine: np.ndarray, spacing_mm: float) -> nib.Nifti1Image:
    """Do by hand what `alignment.as_closest_canonical` and `resampling.change_spacing` of TotalSegmentator 2.18 do."""
    image = nib.as_closest_canonical(nib.Nifti1Image(voxels.astype(np.float64), affine))
    zoom = np.array(image.header.get_zooms()) / np.array([spacing_mm] * 3)
    zoomed = ndimage.zoom(image.get_fdata(), zoom, mode="nearest", order=1).astype(np.int32)
    return nib.Nifti1Image(zoomed, image.affine @ np.diag([*1 / zoom, 1]))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_voxels_and_affine_are_those_of_totalsegmentator(affine: np.ndarray, dtype: type) -> None:
    voxels = np.random.default_rng(0).normal(0, 400, (17, 12, 23)).astype(dtype)
    image = as_image(voxels[None], Grid(voxels.shape, affine))

    changed = CanonicalZoomd("image", 1.5)({"image": image})["image"]

    expected = recipe(voxels, affine, 1.5)
    assert changed.dtype == torch.float32
    np.testing.assert_array_equal(changed.numpy()[0], expected.get_fdata())
    np.testing.assert_allclose(changed.affine.numpy(), expected.affine, atol=1e-6)
    np.testing.assert_array_equal(changed.meta["original_affine"], affine)
    assert tuple(changed.meta["spatial_shape"]) == voxels.shape


def test_an_image_of_that_spacing_keeps_its_fractions() -> None:
    image = MetaTensor(torch.rand(2, 5, 6, 7), affine=torch.diag(torch.tensor([-1.5, 1.5, 1.5, 1.0])))

    changed = CanonicalZoomd("image", 1.5)({"image": image})["image"]

    torch.testing.assert_close(changed.as_tensor(), image.as_tensor().flip(1), rtol=0, atol=0)


def test_without_a_spacing_only_the_order_changes() -> None:
    image = MetaTensor(torch.rand(1, 5, 6, 7), affine=torch.diag(torch.tensor([1.0, -2.0, 1.5, 1.0])))

    changed = CanonicalZoomd("image")({"image": image})["image"]

    torch.testing.assert_close(changed.as_tensor(), image.as_tensor().flip(2), rtol=0, atol=0)
    assert changed.affine[1, 1] == 2


@pytest.mark.parametrize("spacing_mm", [0.0, (1.0, 1.0), (1.0, -1.0, 1.0)])
def test_a_spacing_that_is_none_is_refused(spacing_mm: object) -> None:
    with pytest.raises(UsageError, match="spacing_mm is one positive number"):
        CanonicalZoomd("image", spacing_mm)  # type: ignore[arg-type]


def test_what_is_no_volume_is_refused() -> None:
    with pytest.raises(InputError, match="expected channels and three axes"):
        CanonicalZoomd("image", 1.5)({"image": MetaTensor(torch.rand(5, 6, 7))})
