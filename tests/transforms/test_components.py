"""Small components of labels become background, as nnU-Net and TotalSegmentator do it."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from voxelgate.core.errors import UsageError
from voxelgate.transforms.components import KeepComponentsd


def kept(labels: np.ndarray, **options: object) -> np.ndarray:
    image = MetaTensor(torch.from_numpy(labels)[None], affine=torch.diag(torch.tensor([2.0, 1.0, 0.5, 1.0])))
    return KeepComponentsd("pred", **options)({"pred": image})["pred"].numpy()[0]  # type: ignore[arg-type]


def test_labels_of_a_group_hold_together_and_touch_at_corners() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0], labels[1, 1, 1], labels[3, 3, 3] = 1, 2, 1

    together, apart = kept(labels, groups=[[1, 2]]), kept(labels, groups=[[1], [2]])

    assert together.sum() == 3
    np.testing.assert_array_equal(apart, labels)  # two components of one voxel are both largest


def test_a_group_is_cleaned_of_what_the_group_before_left() -> None:
    labels = np.array([1, 1, 1, 0, 2, 2, 0, 1], np.uint8).reshape(8, 1, 1)

    assert kept(labels, groups=[[1, 2], [2]]).ravel().tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_other_labels_and_the_input_stay() -> None:
    labels = np.array([1, 1, 0, 1, 3, 0, 3, 0], np.uint8).reshape(8, 1, 1)
    before = labels.copy()

    assert kept(labels, groups=[[1]]).ravel().tolist() == [1, 1, 0, 0, 3, 0, 3, 0]
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("above_mm3", [0.5, 1.0, 2.0, 3.0])
def test_components_stay_that_are_above_a_volume_and_touch_at_faces(above_mm3: float) -> None:
    labels = (np.random.default_rng(0).random((9, 8, 7)) > 0.6).astype(np.uint8)

    found = kept(labels, groups=[[1]], above_mm3=above_mm3)

    blobs, _ = ndimage.label(labels)
    sizes = np.bincount(blobs.ravel())
    expected = labels * (sizes[blobs] > above_mm3 / 1.0)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("groups", [[], [[]], [[0, 1]]])
def test_groups_of_nothing_or_of_background_are_refused(groups: list[list[int]]) -> None:
    with pytest.raises(UsageError, match="expected at least one of labels above 0"):
        KeepComponentsd("pred", groups)
