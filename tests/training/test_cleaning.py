"""Cleaning of label maps: tried on cases the network has not seen, taken only where it helps, the same in MONAI."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.training.test_planning import FACTS
from voxelgate.bundle.workflow import build_component
from voxelgate.core.dice import dice_of_masks
from voxelgate.core.labels import LabelTable
from voxelgate.training.cleaning import LEAST_GAIN, CleaningTrial, Step, choose_cleaning, trials_of
from voxelgate.training.configs.bundle_files import cleaned
from voxelgate.training.configs.steps import cleaning_steps
from voxelgate.training.planning import Cleaning, plan

LABELS = LabelTable(("background", "one", "two"))


def one_hot(label: np.ndarray) -> np.ndarray:
    return np.stack([label == value for value in range(3)])


@pytest.fixture
def reference() -> np.ndarray:
    label = np.zeros((14, 14, 14), np.uint8)
    label[2:8, 2:8, 2:8] = 1
    label[9:13, 9:13, 9:13] = 2
    return label


def island(label: np.ndarray) -> np.ndarray:
    made = label.copy()
    made[0:2, 12:14, 0:2] = 1
    return made


def hole(label: np.ndarray) -> np.ndarray:
    made = label.copy()
    made[10:12, 10:12, 10:12] = 0
    return made


def test_an_island_is_gone_and_a_hole_is_filled_on_trial(reference: np.ndarray) -> None:
    one, two = trials_of(one_hot(hole(island(reference))), one_hot(reference), LABELS)
    assert one.before < one.after[Step.KEEP_LARGEST] == 1.0
    assert one.after[Step.FILL_HOLES] == one.before
    assert two.before < two.after[Step.FILL_HOLES] == 1.0


def test_a_step_is_charged_with_what_it_takes_from_a_structure_inside(reference: np.ndarray) -> None:
    reference[reference == 2] = 0
    reference[4:6, 4:6, 4] = 2  # enclosed, as a tumour is by its organ
    prediction = reference.copy()
    prediction[3:7, 3:7, 6] = 0
    one, _ = trials_of(one_hot(prediction), one_hot(reference), LABELS)
    steps = cleaning_steps(cleaned(plan(FACTS), Cleaning(fill_holes=(1,))))
    labels = MetaTensor(torch.from_numpy(prediction.astype(np.uint8))[None])
    filled = build_component({"_target_": "Compose", "transforms": steps})({"pred": labels})["pred"][0].numpy()
    assert not (filled == 2).any()  # MONAI fills the tumour too
    before, after = (dice_of_masks(labels == 1, reference == 1) for labels in (prediction, filled))
    assert one.before == before < after
    assert one.after[Step.FILL_HOLES] == after - 1.0


def test_a_structure_that_one_of_both_lacks_is_no_trial(reference: np.ndarray) -> None:
    without = np.where(reference == 2, 0, reference)
    assert [trial.value for trial in trials_of(one_hot(without), one_hot(reference), LABELS)] == [1]


def trial(value: int, gain: float) -> CleaningTrial:
    return CleaningTrial(value, 0.8, {Step.KEEP_LARGEST: 0.8 + gain, Step.FILL_HOLES: 0.8})


@pytest.mark.parametrize(
    ("gains", "is_chosen"),
    [
        ((0.01, 0.02, -0.001), True),
        ((0.0, 0.0, 0.0), False),
        ((LEAST_GAIN / 2,) * 3, False),
        ((0.1, -0.001, -0.001), False),
        ((-0.01, -0.02, 0.001), False),
    ],
)
def test_a_step_is_taken_if_it_raises_the_mean_and_helps_more_cases_than_it_harms(
    gains: tuple[float, ...], is_chosen: bool
) -> None:
    found = choose_cleaning([trial(1, gain) for gain in gains] + [trial(2, 0.0)])
    assert found == Cleaning(keep_largest=(1,) if is_chosen else ())


def test_what_is_chosen_does_in_the_bundle_what_it_did_on_trial(reference: np.ndarray) -> None:
    steps = cleaning_steps(cleaned(plan(FACTS), Cleaning(keep_largest=(1,), fill_holes=(2,))))
    clean = build_component({"_target_": "Compose", "transforms": steps})
    labels = MetaTensor(torch.from_numpy(hole(island(reference)))[None])
    assert np.array_equal(clean({"pred": labels})["pred"][0].numpy(), reference)


def test_without_cleaning_a_bundle_has_no_step_for_it() -> None:
    assert cleaning_steps(plan(FACTS)) == []
