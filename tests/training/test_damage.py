"""Damaged copies: something is wrong with each, and image and truth still belong together."""

import numpy as np
import pytest

from voxelgate.core.geometry import Grid
from voxelgate.training.damage import DAMAGES, LabelledImage, damaged


def labelled() -> LabelledImage:
    rng = np.random.default_rng(0)
    truth = np.zeros((12, 13, 14), np.uint8)
    truth[3:8, 4:9, 5:10] = 1
    return LabelledImage(
        (rng.normal(size=(1, 12, 13, 14)) + truth).astype(np.float32), Grid(truth.shape, np.eye(4)), truth
    )


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("seed", range(3))
def test_a_damage_changes_an_image_and_leaves_what_it_was_given(kind: str, seed: int) -> None:
    image, before = labelled(), labelled()

    changed = damaged(image, kind, np.random.default_rng(seed))

    np.testing.assert_array_equal(image.voxels, before.voxels)
    np.testing.assert_array_equal(image.truth, before.truth)
    assert changed.voxels.shape[1:] == changed.truth.shape == changed.grid.shape
    assert changed.voxels.dtype == np.float32
    is_same = changed.voxels.shape == image.voxels.shape and np.array_equal(changed.voxels, image.voxels)
    assert not is_same or not changed.grid.agrees(image.grid)


def test_the_same_draw_damages_alike() -> None:
    one, other = (damaged(labelled(), "noise", np.random.default_rng(5)).voxels for _ in range(2))

    np.testing.assert_array_equal(one, other)


def test_left_and_right_are_never_exchanged() -> None:
    for seed in range(20):
        changed = damaged(labelled(), "flip", np.random.default_rng(seed))
        assert np.array_equal(changed.truth.any(axis=(1, 2)), labelled().truth.any(axis=(1, 2)))


def test_a_picture_is_damaged_within_its_plane() -> None:
    flat = LabelledImage(labelled().voxels[..., :1], Grid((12, 13, 1), np.eye(4)), labelled().truth[..., 6:7])

    for kind in DAMAGES:
        assert damaged(flat, kind, np.random.default_rng(1)).grid.shape[2] == 1
