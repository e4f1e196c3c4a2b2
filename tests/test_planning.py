"""Plans: a pure function of the data's facts, kept as JSON, and written as a bundle or not at all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from pipeline.errors import OutputError, UsageError
from pipeline.labels import LabelTable
from pipeline.manifest import Modality
from pipeline.networks import AttentionUNet
from pipeline.planning import Fingerprint, Intensity, Plan, plan, write_bundle
from pipeline.planning.plan import MAX_PATCH_VOX, SMALLEST_BOTTLENECK_VOX
from pipeline.planning.train_config import LOSSES

FACTS = Fingerprint(
    name="organs",
    modality=Modality.CT,
    labels=LabelTable(("background", "left kidney", "right kidney", "liver")),
    shapes=((200, 180, 90), (220, 190, 100)),
    spacings_mm=((1.0, 1.0, 3.0), (0.9, 0.9, 2.5)),
)
sizes = st.tuples(*(st.integers(8, 600) for _ in range(3)))
spacings = st.tuples(*(st.floats(0.3, 8.0) for _ in range(3)))


@given(st.lists(st.tuples(sizes, spacings), min_size=1, max_size=5))
def test_any_data_set_gets_a_patch_that_fits_memory_and_a_network_that_takes_it(
    rows: list[tuple[tuple[int, int, int], tuple[float, float, float]]],
) -> None:
    made = plan(replace(FACTS, shapes=tuple(s for s, _ in rows), spacings_mm=tuple(m for _, m in rows)))
    assert np.prod(made.patch_vox) <= MAX_PATCH_VOX
    assert len(made.channels) == len(made.strides) + 1 >= 2
    bottleneck = np.array(made.patch_vox)
    for stride in made.strides:
        assert all(s == 1 or n // 2 >= SMALLEST_BOTTLENECK_VOX for s, n in zip(stride, bottleneck, strict=True))
        bottleneck = -(-bottleneck // np.array(stride))


def test_equal_facts_give_equal_plans() -> None:
    assert plan(FACTS) == plan(FACTS)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    made = plan(FACTS, data={"name": "n", "licence": "CC0-1.0"})
    (tmp_path / "plan.json").write_text(made.to_json(), encoding="utf-8")
    assert Plan.from_json(tmp_path / "plan.json") == made


@pytest.mark.parametrize("text", ["", "{}", '{"name": 3}', "[1]"])
def test_a_file_that_is_no_plan_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"plan\.json"):
        Plan.from_json(tmp_path / "plan.json")


def test_ct_gets_a_window_and_mri_its_own_values() -> None:
    assert plan(FACTS).intensity.low_hu is not None
    assert plan(replace(FACTS, modality=Modality.MRI)).intensity == Intensity()


def test_half_a_window_is_refused() -> None:
    with pytest.raises(UsageError, match="two limits"):
        Intensity(low_hu=-100.0)


def test_paired_sides_are_swapped_by_flips_in_training_and_inference(tmp_path: Path) -> None:
    write_bundle(plan(FACTS), tmp_path / "b")
    for name, path in (("train", "train#random_transforms#1#side_pairs"), ("inference", "inferer#side_pairs")):
        parser = ConfigParser()
        parser.read_config(tmp_path / "b" / "configs" / f"{name}.json")
        assert parser.get(path) == [[1, 2]]


def test_a_side_without_partner_is_never_mirrored(tmp_path: Path) -> None:
    write_bundle(plan(replace(FACTS, labels=LabelTable(("background", "left lung")))), tmp_path / "b")
    for name in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config(tmp_path / "b" / "configs" / f"{name}.json")
        assert "RandSideSafeFlipd" not in str(parser.get())
        assert "'flip_axes': [0]" not in str(parser.get())


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


def test_the_planned_network_runs_on_the_planned_patch() -> None:
    made = plan(replace(FACTS, shapes=((20, 30, 12),), spacings_mm=((1.0, 1.0, 2.0),)))
    network = AttentionUNet(
        in_channels=1, out_channels=4, channels=made.channels, strides=made.strides, **made.network
    ).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *made.patch_vox)).shape == (1, 4, *made.patch_vox)
