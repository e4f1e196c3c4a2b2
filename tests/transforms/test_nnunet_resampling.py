"""Resampling as nnU-Net does it, compared with scikit-image and SciPy, which nnU-Net calls."""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage
from skimage.transform import resize

from voxelgate.core.errors import InputError, UsageError
from voxelgate.transforms.nnunet import resize as resizing
from voxelgate.transforms.nnunet.resample import Resampling, resample_labels, resize_channel
from voxelgate.transforms.nnunet.spacing_rules import resized_shape, separate_axis

PLANS: dict[str, Any] = {"function": "resample_data_or_seg_to_shape", "is_seg": False, "order": 3, "order_z": 0}


unaliased = partial(resize, mode="edge", anti_aliasing=False)


def noise(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)


def blobs(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[Any]:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1)
    return np.digitize(smooth, (-0.2, 0.0, 0.15)).astype(np.int8) - 1


def resampled(values: npt.NDArray[Any], shape: tuple[int, ...], apart: int | None, how: Resampling) -> npt.NDArray[Any]:
    out = np.empty(shape, np.float32)
    resize_channel(out, values, apart, how)
    return out


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("shape", [(9, 13, 7), (4, 20, 11), (8, 9, 23)])
def test_every_spline_gives_the_very_values_of_scikit_image(
    order: int, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "BLOCK_VOXELS", 150)
    values, out = noise((8, 9, 11)), np.empty(shape)

    resizing.resize_into(out, values.transpose(2, 0, 1).transpose(1, 2, 0), order)

    wanted = unaliased(values.astype(float), shape, order)
    assert np.array_equal(out, wanted)


def test_an_axis_apart_takes_the_nearest_planes_each_resized_for_itself() -> None:
    values, how = noise((6, 9, 11)), Resampling()

    found = resampled(values, (15, 12, 8), 0, how)

    planes = [unaliased(plane.astype(float), (12, 8), 3) for plane in values]
    nearest = [min(5, int(np.floor((k + 0.5) * 6 / 15))) for k in range(15)]
    assert np.array_equal(found, np.array([planes[index] for index in nearest], np.float32))


@pytest.mark.parametrize("axis", range(3))
def test_the_axis_apart_may_be_any(axis: int) -> None:
    values, shape = noise((6, 9, 11)), (13, 7, 5)
    moved, moved_shape = np.moveaxis(values, 0, axis), np.moveaxis(np.empty(shape), 0, axis).shape

    found = resampled(moved, moved_shape, axis, Resampling())

    assert np.array_equal(np.moveaxis(found, axis, 0), resampled(values, shape, 0, Resampling()))


def test_a_spline_along_the_axis_apart_is_not_clipped() -> None:
    values = noise((6, 5, 5))

    found = resampled(values, (12, 5, 5), 0, Resampling(order_z=3))

    wanted = resize(values.astype(float), (12, 5, 5), 3, mode="edge", clip=False)
    assert np.array_equal(found, wanted.astype(np.float32))


@pytest.mark.parametrize("apart", [None, 0])
def test_nothing_is_changed_where_shapes_are_equal(apart: int | None) -> None:
    values = noise((4, 5, 6))

    assert np.array_equal(resampled(values, (4, 5, 6), apart, Resampling()), values)


@pytest.mark.parametrize("seed", range(4))
def test_a_resampled_label_has_the_largest_share_and_the_nearest_voxel_decides_between_equals(seed: int) -> None:
    labels, shape = blobs((8, 9, 11), seed), (16, 7, 22)

    found = resample_labels(labels, shape, None, Resampling(order=1))

    values = np.unique(labels)
    shares = np.array([unaliased((labels == one).astype(float), shape, 1) for one in values])
    nearest = unaliased(labels.astype(float), shape, 0)
    of_nearest = np.take_along_axis(shares, np.searchsorted(values, nearest)[None], 0)[0]
    wanted = np.where(of_nearest == shares.max(axis=0), nearest, values[shares.argmax(axis=0)])
    assert np.array_equal(found, wanted)
    assert found.dtype == labels.dtype


def test_the_nearest_label_wins_over_an_equal_one_of_a_lower_number() -> None:
    labels = np.array([2, 1, 1, 2], np.uint8)[:, None, None]

    assert resample_labels(labels, (3, 1, 1), None, Resampling(order=1)).ravel().tolist() == [2, 1, 2]


def test_half_voxels_are_rounded_to_even() -> None:
    assert resized_shape((5, 7, 9), (0.75, 0.75, 0.75), (1.5, 1.5, 1.5)) == (2, 4, 4)


def test_an_image_of_less_than_half_a_voxel_is_refused() -> None:
    with pytest.raises(InputError, match="less than half a voxel"):
        resized_shape((1, 7, 9), (0.5, 1.0, 1.0), (3.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("current", "new", "force", "axis"),
    [
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None, None),
        ((3.1, 1.0, 1.0), (1.0, 1.0, 1.0), None, 0),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 3.1), None, 2),
        ((1.0, 4.0, 1.0), (4.0, 1.0, 1.0), None, 1),
        ((4.0, 4.0, 1.0), (1.0, 1.0, 4.0), None, None),
        ((1.0, 1.5, 1.0), (1.0, 1.0, 1.0), True, 1),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), True, None),
        ((9.0, 1.0, 1.0), (1.0, 1.0, 1.0), False, None),
    ],
)
def test_the_longest_axis_is_apart_if_it_is_the_only_one(
    current: tuple[float, ...], new: tuple[float, ...], force: bool | None, axis: int | None
) -> None:
    assert separate_axis(current, new, force=force) == axis


def test_plans_without_a_word_on_separate_axes_have_none_but_with_torch() -> None:
    assert Resampling.from_mapping(PLANS).force_separate_z is False
    assert Resampling.from_mapping({"function": "resample_torch_fornnunet"}).force_separate_z is None
    assert Resampling.from_mapping({**PLANS, "force_separate_z": None}).force_separate_z is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"function": "my_resampling"}, "resampling by my_resampling, expected one of"),
        ({"interpolation": 5}, "with interpolation set, which cannot be followed"),
        ({"order": 6}, "expected 0 to 5"),
    ],
)
def test_a_resampling_that_cannot_be_followed_is_refused(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Resampling.from_mapping({**PLANS, **changed})
