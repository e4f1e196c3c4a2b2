"""Offsets of the classes: found where volumes are wrong, as far as that is sure, and never at the cost of Dice."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelgate.core.geometry import Grid
from voxelgate.core.labels import IGNORED
from voxelgate.inference.restoring.class_scores import ScoreKind
from voxelgate.training.class_offsets import MOST_SHIFT, Border, Undecided, fit_offsets
from voxelgate.training.cleaning import Step
from voxelgate.training.planning import Cleaning

SIZE = 24
GRID = Grid((SIZE, SIZE, SIZE), np.eye(4))


def case(seed: int, excess: float, noise: float = 1.0, subject: str = "") -> Undecided:
    """Return a ball whose logits are too high by `excess` at its border."""
    rng = np.random.default_rng(seed)
    distance = np.linalg.norm(np.indices((SIZE,) * 3).T - rng.uniform(10, 14, 3), axis=-1).T
    truth = (distance < 7).astype(np.int32)
    lead = 1.5 * (7 - distance) + excess + noise * rng.normal(size=truth.shape)
    scores = torch.from_numpy(np.stack([np.zeros_like(lead), lead])).float()
    border = Border(truth, GRID, rng)
    for first in range(0, SIZE, 8):
        spans = (slice(first, first + 8), slice(0, SIZE), slice(0, SIZE))
        border.show(scores[:, first : first + 8], ScoreKind(), GRID.cropped(spans))
    found = border.of_case(subject or str(seed), scores.argmax(0).numpy().astype(np.int32), {})
    assert found is not None
    return found


def test_what_is_kept_of_a_case_tells_the_volumes_and_the_dice_of_all_its_voxels() -> None:
    seen = case(0, excess=0.5)
    zero = np.zeros(2)
    assert seen.volumes_ml(zero) == pytest.approx(seen.found_ml, rel=1e-6)
    assert len(seen.reference) < 0.6 * SIZE**3
    assert seen.volumes_ml(zero).sum() == pytest.approx(SIZE**3 / 1000)


@settings(max_examples=10, deadline=None)
@given(st.floats(-1.0, 1.0))
def test_volumes_that_are_off_in_all_cases_become_right_and_dice_does_not_fall(excess: float) -> None:
    found = fit_offsets([case(seed, excess) for seed in range(8)])
    assert found.values[0] == 0 if found.values else abs(found.bias_before[1]) < 0.02
    assert abs(found.bias_after[1]) < 0.02
    assert found.dice_after >= found.dice_before - 0.0005


def test_an_offset_is_opposite_to_the_bias_that_it_takes_away() -> None:
    too_large, too_small = (fit_offsets([case(seed, excess) for seed in range(8)]) for excess in (1.0, -1.0))
    assert too_large.values[1] < -0.5
    assert too_large.bias_before[1] > 0.15
    assert too_small.values[1] > 0.5


def test_a_bias_of_two_subjects_corrects_nothing() -> None:
    cases = [case(seed, excess=1.0, subject="ab"[seed % 2]) for seed in range(6)]
    assert fit_offsets(cases).values == ()
    assert fit_offsets([]).values == ()


def test_a_bias_that_subjects_disagree_about_is_corrected_less() -> None:
    unanimous = fit_offsets([case(seed, excess=0.2) for seed in range(8)])
    mixed = fit_offsets([case(seed, excess=1.0 if seed % 2 else -0.7) for seed in range(8)])
    assert abs(unanimous.bias_after[1]) < 0.1 * unanimous.bias_before[1]
    assert mixed.bias_after[1] > 0.3 * mixed.bias_before[1] > 0


def test_no_offset_is_larger_than_the_limit() -> None:
    found = fit_offsets([case(seed, excess=9.0) for seed in range(4)])
    assert all(abs(value) <= MOST_SHIFT for value in found.values)


def test_voxels_that_nobody_labelled_count_in_neither_volume() -> None:
    truth = np.full((4, 4, 4), IGNORED, np.int32)
    truth[:2] = 1
    border = Border(truth, Grid((4, 4, 4), np.eye(4)), np.random.default_rng(0))
    border.show(
        torch.stack((torch.zeros(4, 4, 4), torch.full((4, 4, 4), 9.0))), ScoreKind(), Grid((4, 4, 4), np.eye(4))
    )
    seen = border.of_case("a", np.ones((4, 4, 4), np.int32), {})
    assert seen is not None
    assert seen.found_ml[1] == seen.reference_ml[1] == seen.decided_ml[1] == pytest.approx(0.032)


def test_a_coarser_network_grid_sees_the_truth_at_its_voxel_centres() -> None:
    truth = np.zeros((8, 8, 8), np.int32)
    truth[4:] = 1
    coarse = Grid((4, 4, 4), np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1.0]]))
    border = Border(truth, Grid((8, 8, 8), np.eye(4)), np.random.default_rng(0))
    right = torch.zeros(2, 4, 4, 4)
    right[0, :2], right[1, 2:] = 9, 9
    border.show(right, ScoreKind(), coarse)
    seen = border.of_case("a", truth, {})
    assert seen is not None
    assert seen.right_ml == pytest.approx([0.256, 0.256])


def test_what_cleaning_takes_away_needs_no_offset() -> None:
    plain = [case(seed, excess=0.0, noise=0.0) for seed in range(6)]
    spotted = [
        Undecided(**{**vars(one), "found_ml": one.found_ml * 1.2, "kept": {Step.KEEP_LARGEST: np.array([1, 1 / 1.2])}})
        for one in plain
    ]
    before, after = fit_offsets(spotted), fit_offsets(spotted, Cleaning(keep_largest=(1,)))
    assert before.bias_before[1] > 0.15
    assert abs(after.bias_before[1]) < 0.02
