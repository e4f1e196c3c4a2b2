"""Dice of sizes, masks and label maps is one number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from voxelgate.core.dice import dice_of_labels, dice_of_masks, dice_of_sizes
from voxelgate.core.labels import LabelTable

TABLE = LabelTable(("background", "liver", "spleen"))
MAPS = arrays(np.int16, (3, 4, 5), elements=st.integers(-1, 4))


@given(MAPS, MAPS)
def test_the_dice_of_label_maps_is_that_of_the_masks_of_each_structure(labels: np.ndarray, others: np.ndarray) -> None:
    for kind in (np.int16, np.float64):
        found = dice_of_labels(labels.astype(kind), others, TABLE)
        for value, name in TABLE.foreground.items():
            assert found[name] == pytest.approx(dice_of_masks(labels == value, others == value), abs=0, nan_ok=True)


def test_dice_is_twice_what_is_shared_by_the_sum_of_both() -> None:
    mask, other = np.arange(10) < 6, np.arange(10) >= 4

    assert dice_of_masks(mask, other) == dice_of_sizes(2, 6, 6) == pytest.approx(1 / 3)


def test_dice_of_nothing_and_nothing_is_undefined() -> None:
    assert np.isnan(dice_of_masks(np.zeros(3, bool), np.zeros(3, bool)))
