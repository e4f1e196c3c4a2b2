"""Images that came from DICOM in the order of converters; what dcm2niix does was seen on CT and 2D and 3D MR series."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged
from nibabel.orientations import aff2axcodes

from tests.dicom_files import stack, write_all
from voxelgate.core.errors import UsageError
from voxelgate.core.geometry import Grid
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.read.volume import read_series
from voxelgate.transforms.dicom_order import OrderDicomd
from voxelgate.transforms.io import as_image

SAGITTAL = np.array([[0, 0, -3.0, 50], [-1.0, 0, 0, 90], [0, -1.0, 0, 80], [0, 0, 0, 1]])
AXIAL = np.diag([-1.0, -1.0, 3.0, 1.0])


def image(affine: np.ndarray, **meta: Any) -> MetaTensor:
    values = torch.arange(120, dtype=torch.float32).reshape(1, 6, 5, 4)
    told = {"is_dicom": True, "original_affine": affine, "spatial_shape": np.array((6, 5, 4))} | meta
    return MetaTensor(values, affine=torch.from_numpy(affine), meta=told)


def ordered(one: MetaTensor, axcodes: str = "LAS") -> MetaTensor:
    result: MetaTensor = OrderDicomd("image", axcodes=axcodes)({"image": one})["image"]
    return result


def test_rows_of_a_series_come_from_the_last_to_the_first() -> None:
    one = image(AXIAL)

    found = ordered(one)

    assert torch.equal(found.as_tensor(), one.as_tensor().flip(2))
    assert aff2axcodes(found.affine) == ("L", "A", "S")


def test_axes_of_a_series_stay_where_they_are() -> None:
    found = ordered(image(SAGITTAL))

    assert aff2axcodes(found.affine) == ("P", "S", "L")
    assert found.shape == (1, 6, 5, 4)


@pytest.mark.parametrize("affine", [AXIAL, SAGITTAL])
def test_mri_acquired_all_at_once_is_turned_to_ras(affine: np.ndarray) -> None:
    assert aff2axcodes(ordered(image(affine, is_3d=True)).affine) == ("R", "A", "S")


@pytest.mark.parametrize(("affine", "is_3d"), [(AXIAL, False), (SAGITTAL, False), (SAGITTAL, True)])
def test_every_voxel_of_a_reordered_image_keeps_its_place(affine: np.ndarray, is_3d: bool) -> None:
    one = image(affine, is_3d=is_3d)

    found = ordered(one)

    for value in (0, 7, 119):
        places = [Grid.of(each).affine @ [*np.argwhere(each.numpy()[0] == value)[0], 1.0] for each in (one, found)]
        assert np.allclose(*places)
    assert np.array_equal(found.meta["original_affine"], affine)
    assert found.meta["spatial_shape"].tolist() == [6, 5, 4]


def test_an_image_that_was_no_dicom_stays_as_it_is() -> None:
    one = image(AXIAL, is_dicom=False)

    assert ordered(one) is one


def test_the_order_in_which_series_are_read_can_be_kept() -> None:
    one = image(AXIAL)

    assert ordered(one, "LPS") is one


def test_another_order_is_refused() -> None:
    with pytest.raises(UsageError, match="DICOM in the order RAS, expected one of LAS, LPS"):
        OrderDicomd("image", axcodes="RAS")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    stored = np.random.default_rng(0).integers(0, 2000, (4, 6, 5)).astype(np.int16)
    return write_all(stack(stored, gap_mm=2.1, PixelSpacing=[0.7, 0.7]), tmp_path / "study")


def test_a_series_is_told_from_other_images_by_both_ways_of_reading(study: Path) -> None:
    by_monai = LoadImaged("image", reader="voxelgate.VolumeReader", ensure_channel_first=True)({"image": str(study)})
    (series,) = scan_dicom(study)
    read = read_series(series)
    by_us = as_image(read.voxels[None], read.grid, read.facts)

    for one in (by_monai["image"], by_us):
        assert bool(one.meta["is_dicom"])
        assert not one.meta["is_3d"]
        assert one.meta["spacing"].tolist() == [float(np.float32(size)) for size in (0.7, 0.7, 2.1)]
        assert aff2axcodes(ordered(one).affine) == ("L", "A", "S")
