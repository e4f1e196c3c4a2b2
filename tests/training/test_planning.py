"""Plans: a pure function of facts and budget, kept as JSON, open to overrides, written as a bundle or not at all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from voxelgate.bundle.workflow import build_component, read_configs
from voxelgate.core.errors import OutputError, UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.manifest import Modality
from voxelgate.datasets.survey import Fingerprint, StructureFacts
from voxelgate.networks import AttentionUNet
from voxelgate.training.configs import steps as parts
from voxelgate.training.configs.bundle_files import bundle_files, cleaned, write_bundle
from voxelgate.training.configs.train_config import LOSSES
from voxelgate.training.planning import Budget, Cleaning, Device, Intensity, Plan, plan, read_overrides
from voxelgate.training.planning.explain import explain
from voxelgate.training.planning.grid_rules import MOST_PATCH_VOX
from voxelgate.training.planning.rules import (
    ANISOTROPY,
    FORWARD_SHARE,
    READ_S_PER_VOXEL,
    SMALLEST_BOTTLENECK_VOX,
    STEPS_PER_EPOCH,
    USED_SHARE,
    VALIDATIONS,
)


def structure(name: str, *percentiles: float) -> StructureFacts:
    return StructureFacts(name, 20, (1.0, 2.0, 3.0), 0.3, 1.0, (percentiles,))


FACTS = Fingerprint(
    name="organs",
    modality=Modality.CT,
    labels=LabelTable(("background", "left kidney", "right kidney", "liver")),
    cases=20,
    subjects=20,
    channel_names=("image",),
    shape_vox=(200.0, 180.0, 90.0),
    spacing_mm=(1.0, 1.0, 3.0),
    spacing_range_mm=((0.9, 1.0), (0.9, 1.0), (2.5, 3.0)),
    extent_range_mm=((190.0, 210.0), (170.0, 190.0), (240.0, 280.0)),
    fewest_slices=80,
    foreground_vox=(150.0, 100.0, 60.0),
    body_share=0.7,
    hu_offset=0.0,
    structures=(
        structure("left kidney", -40.0, 10.0, 30.0, 60.0, 160.0),
        structure("right kidney", -40.0, 10.0, 30.0, 60.0, 160.0),
        structure("liver", 0.0, 60.0, 90.0, 110.0, 200.0),
    ),
    licence="CC0-1.0",
)
SHIPPED = sorted((Path(__file__).parents[2] / "bundles").glob("*/plan.json"))
sizes = st.tuples(*(st.floats(1, 600) for _ in range(3)))
spacings = st.tuples(*(st.floats(0.3, 8.0) for _ in range(3)))


# --- the rules ----------------------------------------------------------------------------------------------------


@given(sizes, sizes, spacings, st.sampled_from(Device), st.floats(0.5, 80))
def test_any_data_set_gets_a_patch_that_fits_and_a_network_that_takes_it(
    shape: tuple[float, float, float],
    box: tuple[float, float, float],
    spacing: tuple[float, float, float],
    device: Device,
    memory_gb: float,
) -> None:
    made = plan(
        replace(FACTS, shape_vox=shape, foreground_vox=box, spacing_mm=spacing), Budget(device, memory_gb=memory_gb)
    )
    assert np.prod(made.patch_vox) <= MOST_PATCH_VOX[device]
    assert len(made.channels) == len(made.strides) + 1 >= 2
    bottleneck = np.array(made.patch_vox)
    for stride in made.strides:
        assert all(s == 1 or n // 2 >= SMALLEST_BOTTLENECK_VOX for s, n in zip(stride, bottleneck, strict=True))
        bottleneck = -(-bottleneck // np.array(stride))


@given(spacings)
def test_an_axis_with_much_longer_voxels_is_not_halved_before_the_others_caught_up(
    spacing: tuple[float, float, float],
) -> None:
    made = plan(replace(FACTS, spacing_mm=spacing, foreground_vox=(300.0, 300.0, 300.0)), Budget(Device.GPU, 40.0))
    first = np.array(made.strides[0])
    assert (first[np.array(spacing) >= ANISOTROPY * min(spacing)] == 1).all()


@given(st.floats(1, 600), st.floats(0.05, 5))
def test_the_steps_fit_the_minutes(minutes: float, step_s: float) -> None:
    pace = plan(FACTS, Budget(minutes=minutes, step_s=step_s)).training
    steps = pace.epochs * pace.steps_per_epoch
    assert steps * step_s <= max(60 * USED_SHARE * minutes, VALIDATIONS * step_s)
    assert pace.warmup_steps < max(2, steps)
    assert pace.steps_per_epoch <= STEPS_PER_EPOCH


@given(st.floats(1, 600), st.floats(0.05, 5), st.integers(1, 2000))
def test_validations_take_no_more_than_their_share_of_the_minutes(minutes: float, step_s: float, cases: int) -> None:
    made = plan(replace(FACTS, cases=cases), Budget(minutes=minutes, step_s=step_s))
    pace, step_vox = made.training, float(np.prod(made.patch_vox)) * made.training.batch_size
    validation_s = FORWARD_SHARE * step_s / step_vox * float(np.prod(FACTS.shape_vox)) * cases / 5
    validations = -(-pace.epochs // pace.validate_every)
    assert 1 <= validations <= VALIDATIONS
    assert validations == 1 or validations * validation_s <= 60 * minutes / 3


def test_reading_many_large_cases_is_part_of_the_minutes() -> None:
    few, many = (plan(replace(FACTS, cases=cases), Budget(minutes=20, step_s=1e-3)) for cases in (1, 200))
    voxels = 199 * float(np.prod(FACTS.shape_vox))
    steps = [made.training.epochs * made.training.steps_per_epoch for made in (few, many)]
    assert (steps[0] - steps[1]) * 1e-3 >= voxels * READ_S_PER_VOXEL


def test_a_training_keeps_the_minutes_of_the_budget_unless_its_length_was_set_by_hand() -> None:
    budget = Budget(minutes=20)
    assert plan(FACTS, budget).training.minutes == 20
    assert plan(FACTS, budget, {"training": {"learning_rate": 1e-3}}).training.minutes == 20
    assert plan(FACTS, budget, {"training": {"steps_per_epoch": 10}}).training.minutes is None
    assert plan(FACTS, budget, {"training": {"epochs": 10, "minutes": 5}}).training.minutes == 5


def test_a_busy_machine_is_said_to_be_busy_and_costs_no_steps() -> None:
    free, busy = (plan(FACTS, Budget(minutes=20, step_s=0.42, clock_s=clock_s)) for clock_s in (0.0, 1.59))
    assert busy.training == free.training
    assert "by the clock it was 1.59 s, for the machine was busy" in busy.reasons["training"]


def test_another_length_than_the_planned_one_is_no_matter_of_minutes(tmp_path: Path) -> None:
    write_bundle(plan(FACTS, Budget(minutes=20)), tmp_path / "bundle")
    given = [{}, {"epochs": 1}, {"train#trainer#max_epochs": 1}, {"epochs": 1, "minutes": 3}]
    found = [read_configs(tmp_path / "bundle", ["train"], one).get_parsed_content("minutes") for one in given]
    assert found == [20, None, None, 3]


def test_minutes_that_are_too_few_are_said_to_be() -> None:
    enough, too_few = (plan(FACTS, Budget(minutes=minutes, step_s=30.0)) for minutes in (600, 1))
    assert "steps fit into 600 min" in enough.reasons["training"]
    assert "they do not fit into 1 min" in too_few.reasons["training"]


@pytest.mark.parametrize(
    ("spacing", "turned"),
    [
        ((1.0, 1.0, 1.0), [True, True, True]),
        ((4.2, 4.2, 2.5), [True, True, True]),
        ((1.0, 1.0, 5.0), [False, False, True]),
        ((4.0, 0.8, 0.8), [True, False, False]),
        ((1.0, 2.0, 4.0), [False, False, False]),
    ],
)
def test_long_voxels_are_not_turned_into_short_ones(spacing: tuple[float, float, float], turned: list[bool]) -> None:
    steps = parts.augmentation_steps(plan(replace(FACTS, spacing_mm=spacing)))
    (affine,) = [step for step in steps if step["_target_"] == "RandAffined"]
    assert [angle > 0 for angle in affine["rotate_range"]] == turned


def test_the_ct_window_spans_the_values_of_every_channel() -> None:
    two = tuple(replace(one, intensity=(*one.intensity, (300.0,) * 5)) for one in FACTS.structures)
    made = plan(replace(FACTS, structures=two, channel_names=("venous", "arterial")))
    assert made.intensity.high_hu is not None
    assert made.intensity.high_hu >= 300.0


def test_more_minutes_are_more_steps_and_nothing_else_but_the_pace() -> None:
    short, long = (plan(FACTS, Budget(minutes=minutes)) for minutes in (10, 60))
    assert long.training.epochs > 4 * short.training.epochs
    kept = {"training": short.training, "budget": short.budget, "reasons": short.reasons}
    assert replace(long, **kept) == short


def test_equal_facts_and_budgets_give_equal_plans() -> None:
    assert plan(FACTS, Budget(minutes=20)) == plan(FACTS, Budget(minutes=20))


def test_a_larger_machine_gets_larger_patches_and_more_channels() -> None:
    small, large = plan(FACTS, Budget(Device.CPU)), plan(FACTS, Budget(Device.GPU, memory_gb=40.0))
    assert np.prod(large.patch_vox) > np.prod(small.patch_vox)
    assert large.channels[0] > small.channels[0]


def test_the_ct_window_spans_the_structures_and_mri_takes_its_own_values() -> None:
    rule = plan(FACTS).intensity
    assert rule == Intensity(low_hu=-90.0, high_hu=250.0)
    assert plan(replace(FACTS, modality=Modality.MRI)).intensity == Intensity()


@pytest.mark.parametrize(
    ("values", "window"),
    [
        ((-960.0, -900.0, -860.0, -780.0, -300.0), (-1090.0, -170.0)),  # lungs: their vessels are not white
        ((20.0, 85.0, 105.0, 125.0, 180.0), (-10.0, 210.0)),  # a liver is darker than the kidneys beside it
        ((0.0, 320.0, 670.0, 1050.0, 1560.0), (-60.0, 380.0)),  # a mandible; all that is brighter is bone too
    ],
    ids=["lungs", "liver", "mandible"],
)
def test_a_window_holds_all_values_of_a_structure_but_those_of_bone(
    values: tuple[float, ...], window: tuple[float, float]
) -> None:
    rule = plan(replace(FACTS, structures=(structure("one", *values),))).intensity
    assert (rule.low_hu, rule.high_hu) == window


def test_blur_and_coarse_voxels_can_be_asked_for_and_leave_plans_of_before_as_they_were() -> None:
    made = plan(FACTS, overrides={"augmentation": {"blur": 1.0, "low_resolution": 1.0, "gamma_inverted": 1.0}})
    assert "blur" not in plan(FACTS).to_json()
    for patch in ((16, 16, 8), (16, 16, 1)):
        steps = parts.augmentation_steps(replace(made, patch_vox=patch))
        names = [step["_target_"] for step in steps]
        assert {"RandGaussianSmoothd", "RandSimulateLowResolutiond"} <= set(names)
        assert names.count("RandAdjustContrastd") == 2
        both = {
            "image": MetaTensor(torch.rand(1, 20, 20, patch[2])),
            "label": MetaTensor(torch.ones(1, 20, 20, patch[2])),
        }
        out = build_component({"_target_": "Compose", "transforms": steps})(both)
        assert out["image"].shape == out["label"].shape == (1, *patch)


def test_an_offset_of_the_stored_values_moves_no_window() -> None:
    stored = tuple(
        replace(one, intensity=tuple(tuple(v + 1024 for v in row) for row in one.intensity)) for one in FACTS.structures
    )
    made = plan(replace(FACTS, structures=stored, hu_offset=1024.0))
    assert replace(made.intensity, offset_hu=0.0) == plan(FACTS).intensity
    steps = json.loads(bundle_files(made)["configs/inference.json"])["preprocessing"]["transforms"]
    names = [step["_target_"].rpartition(".")[2] for step in steps]
    assert names.index("OffsetToHUd") + 1 == names.index("WindowHUd")


def test_half_a_window_is_refused() -> None:
    with pytest.raises(UsageError, match="two limits"):
        Intensity(low_hu=-100.0)


@pytest.mark.parametrize("values", [{"minutes": 0.0}, {"memory_gb": -1.0}])
def test_a_budget_of_nothing_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"^(minutes|memory_gb) is (0.0|-1.0), expected a number above 0$"):
        Budget(**values)  # type: ignore[arg-type]  # a dict of floats


def test_every_choice_has_a_reason() -> None:
    rows = explain(plan(FACTS))
    assert len(rows) >= 12
    assert all(row.value and row.reason for row in rows)


# --- overrides ----------------------------------------------------------------------------------------------------


def test_an_override_changes_its_value_alone_and_says_so() -> None:
    made = plan(FACTS, overrides={"patch_vox": [16, 16, 8], "training": {"epochs": 3}})
    assert made.patch_vox == (16, 16, 8)
    assert made.training == replace(plan(FACTS).training, epochs=3, minutes=None)
    assert made.spacing_mm == plan(FACTS).spacing_mm
    assert made.reasons["patch_vox"] == made.reasons["training"] == "set by hand"
    assert plan(FACTS, made.budget, made.overrides) == made


RESNET = {
    "_target_": "monai.networks.nets.ResNet",
    "block": "basic",
    "layers": [1, 1, 1, 1],
    "block_inplanes": [4, 8, 16, 32],
    "n_input_channels": 1,
}


@pytest.mark.parametrize(
    ("network", "multiple"),
    [
        ({"_target_": "voxelgate.networks.presets.unet"}, 1),
        ({"_target_": "voxelgate.NonLocalUNet"}, 1),
        ({"_target_": "voxelgate.GuidedAttentionNet", "width": 4, "backbone": RESNET}, 1),
        ({"_target_": "monai.networks.nets.AttentionUnet"}, 8),
        ({"_target_": "monai.networks.nets.UNet"}, 8),
    ],
    ids=lambda value: value["_target_"].rpartition(".")[2] if isinstance(value, dict) else str(value),
)
@torch.no_grad()
def test_one_line_exchanges_the_network_and_the_inferer_runs_it(network: dict[str, Any], multiple: int) -> None:
    levels = {"channels": [4, 8, 16, 32], "strides": [[2, 2, 2]] * 3, "window_vox": [48, 48, 48]}
    made = plan(FACTS, overrides={"network": network, **levels})
    inferer, module = build_component(parts.inferer_config(made)), build_component(parts.network_config(made)).eval()
    size = (33, 21, 18)
    meta = {"original_affine": np.eye(4), "spatial_shape": np.array(size)}
    image = MetaTensor(torch.rand(1, 1, *size), affine=torch.eye(4), meta=meta)
    assert inferer(image, module).shape == (1, 1, *size)
    assert inferer.window_multiple == multiple


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patch": [8, 8, 8]}, "override patch: a plan has no such value; did you mean patch_vox"),
        ({"training": {"epoch": 3}}, r"override training\.epoch: a plan has no such value; did you mean epochs"),
        ({"channels": [8, 16]}, "override channels and strides together"),
        ({"modality": "PET"}, "modality is 'PET', expected 'CT', 'MRI' or 'PICTURE'"),
        ({"budget": {"minutes": 5}}, "override budget: it says what was asked for"),
        ({"spacing_mm": [1, 1]}, r"spacing_mm is \[1, 1\], expected a number for each of three axes"),
        ({"spacing_mm": [1, 1, 0]}, r"spacing_mm\[2\] is 0, expected a number above 0"),
        ({"spacing_mm": [1, 1, "3"]}, r"spacing_mm\[2\] is '3', expected a number above 0"),
        ({"patch_vox": [16, 16, 0]}, r"patch_vox\[2\] is 0, expected a whole number from 1"),
        ({"patch_vox": [16, 16, 8.5]}, r"patch_vox\[2\] is 8.5, expected a whole number from 1"),
        ({"patch_vox": 16}, "patch_vox is 16, expected a valid tuple"),
        ({"training": 3}, "training is 3, expected a dictionary or an instance of Training"),
        ({"flip_test": "no"}, "flip_test is 'no', expected a valid boolean"),
        ({"intensity": {"low_hu": "air"}}, "low_hu is 'air', expected a number or null"),
        ({"intensity": {"low_hu": True}}, "low_hu is True, expected a number or null"),
        ({"intensity": {"low_hu": float("nan")}}, "low_hu is nan, expected a number or null"),
        (
            {"strides": [[2, 2]], "channels": [8, 16]},
            r"strides\[0\] is \[2, 2\], expected a number for each of three axes",
        ),
        ({"overlap": 1.0}, "overlap is 1.0, expected a number from 0 to below 1"),
        ({"training": {"epochs": 0}}, "epochs is 0, expected a whole number from 1"),
        ({"training": {"epochs": "20"}}, "epochs is '20', expected a whole number from 1"),
        ({"training": {"learning_rate": -1}}, "learning_rate is -1, expected a number above 0"),
        ({"training": {"average_decay": 1.0}}, "average_decay is 1.0"),
        ({"training": {"foreground_probability": float("nan")}}, "foreground_probability is nan"),
        ({"augmentation": {"affine": 70}}, "affine is 70, expected a number from 0 to 1"),
        ({"augmentation": {"flip_sagittal": 0}}, "flip_test shows the network mirror images, which it never saw"),
    ],
)
def test_an_override_of_nothing_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        plan(FACTS, overrides=overrides)
    assert "\n" not in str(refused.value)
    assert "pydantic" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[1]", "nothing"])
def test_a_file_without_overrides_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"mine\.json"):
        read_overrides(tmp_path / "mine.json")


def test_mirroring_can_be_left_out_of_training_and_test_together() -> None:
    made = plan(FACTS, overrides={"augmentation": {"flip_sagittal": 0}, "flip_test": False})
    assert parts.inferer_config(made)["flip_axes"] == []
    assert "RandSideSafeFlipd" not in str(parts.augmentation_steps(made))


PICTURES = replace(FACTS, modality=Modality.PICTURE, labels=LabelTable(("background", "vessel", "disc")))


def test_pictures_of_no_side_are_mirrored_along_both_axes_in_training_and_inference() -> None:
    made = plan(PICTURES)
    (flip,) = (one for one in parts.augmentation_steps(made) if one["_target_"].endswith("RandSideSafeFlipd"))
    assert flip["axes"] == ["sagittal", "coronal"]
    assert parts.inferer_config(made)["flip_axes"] == [0, 1]
    assert parts.inferer_config(replace(made, flip_test=False))["flip_axes"] == []


def test_volumes_pictures_with_sides_and_older_plans_are_mirrored_along_one_axis() -> None:
    with_sides = replace(PICTURES, labels=FACTS.labels)
    for made in (plan(FACTS), plan(with_sides), replace(plan(PICTURES), plan_version=2)):
        assert parts.inferer_config(made)["flip_axes"] == [0]


# --- files --------------------------------------------------------------------------------------------------------


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    made = plan(FACTS, Budget(minutes=7), {"training": {"seed": 3}})
    made = cleaned(made, Cleaning(keep_largest=(1,)))
    (tmp_path / "plan.json").write_text(made.to_json(), encoding="utf-8")
    assert Plan.from_json(tmp_path / "plan.json") == made


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_the_plan_of_a_shipped_bundle_is_written_as_it_was(path: Path) -> None:
    assert Plan.from_json(path).to_json() == path.read_text(encoding="utf-8")


def test_numbers_are_written_as_they_were_given() -> None:
    values = {"spacing_mm": [1, 1, 2.5], "overlap": 0, "training": {"weight_decay": 0}, "intensity": {"low_hu": -90}}
    written = json.loads(plan(FACTS, overrides=values).to_json())
    kept = {"spacing_mm": written["spacing_mm"], "overlap": written["overlap"]}
    kept["training"] = {"weight_decay": written["training"]["weight_decay"]}
    kept["intensity"] = {"low_hu": written["intensity"]["low_hu"]}
    assert json.dumps(kept) == json.dumps(values)


def test_facts_survive_their_file(tmp_path: Path) -> None:
    (tmp_path / "fingerprint.json").write_text(FACTS.to_json(), encoding="utf-8")
    assert Fingerprint.from_json(tmp_path / "fingerprint.json") == FACTS


@pytest.mark.parametrize("text", ["", "{}", '{"name": 3}', "[1]"])
def test_a_file_that_is_no_plan_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"plan\.json"):
        Plan.from_json(tmp_path / "plan.json")
    with pytest.raises(UsageError, match=r"^plan\.json [^\n]*$"):
        Fingerprint.from_json(tmp_path / "plan.json")


def test_paired_sides_are_swapped_by_flips_in_training_and_inference(tmp_path: Path) -> None:
    write_bundle(plan(FACTS), tmp_path / "b")
    for name, path in (("train", "train#random_transforms#1#side_pairs"), ("inference", "inferer#side_pairs")):
        parser = ConfigParser()
        parser.read_config(tmp_path / "b" / "configs" / f"{name}.json")
        assert parser.get(path) == [[1, 2]]


def test_a_side_without_partner_is_never_mirrored(tmp_path: Path) -> None:
    one = replace(FACTS, labels=LabelTable(("background", "left lung")), structures=FACTS.structures[:1])
    write_bundle(plan(one), tmp_path / "b")
    for name in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config(tmp_path / "b" / "configs" / f"{name}.json")
        assert "RandSideSafeFlipd" not in str(parser.get())
        assert "'flip_axes': [0]" not in str(parser.get())


def test_a_side_without_partner_is_told_with_the_way_out_and_a_chamber_of_the_heart_is_mirrored() -> None:
    made = {
        name: plan(replace(FACTS, labels=LabelTable(("background", name)), structures=FACTS.structures[:1]))
        for name in ("left lung", "left atrium")
    }
    assert made["left atrium"].augmentation.flip_sagittal == 0.5
    assert made["left atrium"].flip_test
    assert (
        made["left lung"]
        .reasons["augmentation"]
        .startswith(
            "no mirroring, since left lung has no partner to change sides with (label it too, or call it otherwise if"
        )
    )


def test_what_cross_validation_found_to_help_stands_before_the_label_map_is_saved() -> None:
    made = cleaned(plan(FACTS), Cleaning(keep_largest=(1, 3), fill_holes=(2,)))
    files = bundle_files(made)
    steps = json.loads(files["configs/inference.json"])["postprocessing"]["transforms"]
    assert [step["_target_"] for step in steps] == ["KeepLargestConnectedComponentd", "FillHolesd", "SaveImaged"]
    assert steps[0]["applied_labels"] == [1, 3]
    measured = json.loads(files["configs/evaluate.json"])["validate#postprocessing"]["transforms"]
    assert measured[:2] == steps[:2]


def test_a_bundle_is_never_written_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="exists"):
        write_bundle(plan(FACTS), tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_when_the_logits_turn_right(name: str) -> None:
    parser = ConfigParser({"loss": {"_target_": "DeepSupervisionLoss", "loss": LOSSES[name]}})
    loss = parser.get_parsed_content("loss")
    label = torch.zeros(1, 1, 8, 8, 8)
    label[..., 2:6, 2:6, 2:6] = 1
    right = torch.cat((1 - label, label), dim=1) * 20 - 10
    half = torch.nn.functional.interpolate(right, scale_factor=0.5)
    assert loss([right, half], label) < loss([torch.zeros_like(right), torch.zeros_like(half)], label)
    assert loss([torch.zeros_like(right)], label) < loss([-right], label)


def test_a_loss_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no loss 'dice'; choose of dice_ce"):
        write_bundle(plan(FACTS, overrides={"training": {"loss": "dice"}}), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_planned_network_runs_on_the_planned_patch() -> None:
    made = plan(replace(FACTS, foreground_vox=(20.0, 30.0, 12.0), spacing_mm=(1.0, 1.0, 2.0)))
    network = AttentionUNet(
        in_channels=1, out_channels=4, channels=made.channels, strides=made.strides, **made.network
    ).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *made.patch_vox)).shape == (1, 4, *made.patch_vox)


@pytest.mark.parametrize("limits", [(100.0, -100.0), (1.0, 1.0)], ids=["reversed", "empty"])
def test_a_window_without_width_is_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="low_hu of a HU window lies below high_hu"):
        Intensity(*limits)
