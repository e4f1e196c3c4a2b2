"""How long the last training is: as long as planned, unless every fold validated clearly better before its end."""

import pytest

from voxelgate.training.schedule import chosen_schedule


def test_the_whole_schedule_is_trained_where_one_fold_validated_best_at_its_end() -> None:
    assert chosen_schedule([{10: 0.8, 20: 0.7}, {10: 0.7, 20: 0.8}]).share == 1.0


def test_a_shorter_schedule_is_trained_where_every_fold_validated_clearly_better_before_its_end() -> None:
    chosen = chosen_schedule([{10: 0.8, 20: 0.75}, {5: 0.7, 12: 0.8, 16: 0.79}])
    assert chosen.share == pytest.approx(0.5 * (10 / 20 + 12 / 16))
    assert chosen.of(80) == 50
    assert "before its end" in chosen.reason


def test_a_gain_within_noise_or_folds_without_validation_shorten_nothing() -> None:
    assert chosen_schedule([{10: 0.8001, 20: 0.8}, {10: 0.9, 20: 0.8}]).share == 1.0
    assert chosen_schedule([{}, {10: 0.9, 20: 0.8}]).share == 1.0
