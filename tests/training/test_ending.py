"""The end of a training: what helps on the validation cases goes into weights, plan and configs, and out again."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.test_resume import tiny_job
from voxelgate.bundle.checksums import CHECKSUMS, WEIGHTS, seal, verify
from voxelgate.core.errors import BundleError
from voxelgate.training.class_offsets import Offsets
from voxelgate.training.configs.bundle_files import cleaned, rewrite_bundle, write_bundle
from voxelgate.training.ending import AS_TRAINED, Ending, choose_ending
from voxelgate.training.held_out import HeldOut
from voxelgate.training.planning import Cleaning, Plan
from voxelgate.training.train import TrainingJob, train

HEAD = "heads.0.bias"
OFFSETS = Offsets((0.0, -0.5), (float("nan"), 0.25), (float("nan"), 0.01), 0.8, 0.81)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    job = tiny_job(tmp_path_factory.mktemp("ended"))
    train(job)
    return job


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


def test_the_weights_that_ship_hold_the_offsets_of_the_plan_and_those_before_are_kept(trained: TrainingJob) -> None:
    verify(trained.out)
    plan = Plan.from_json(trained.out / "plan.json")
    assert len(plan.class_offsets) == 2
    assert "volumes" in plan.reasons["class_offsets"]
    before, after = weights(trained.out / AS_TRAINED), weights(trained.out / WEIGHTS)
    assert torch.equal(after[HEAD], before[HEAD] + torch.tensor(plan.class_offsets))
    assert all(torch.equal(before[name], after[name]) for name in before if name != HEAD)


def test_a_training_that_is_taken_up_again_adds_no_offset_twice(trained: TrainingJob, tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained.out, tmp_path / "out"))
    train(replace(trained, out=out, resume=True))
    for name in (WEIGHTS, AS_TRAINED):
        first, second = weights(trained.out / name), weights(out / name)
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert (out / "plan.json").read_bytes() == (trained.out / "plan.json").read_bytes()


def stopped_while_ending(trained: TrainingJob, folder: Path) -> Path:
    """Return a training of which plan and some configs were written with the ending, and others were not."""
    out = Path(shutil.copytree(trained.out, folder / "out"))
    (out / CHECKSUMS).unlink()
    rewrite_bundle(Ending(Cleaning(keep_largest=(1,)), OFFSETS).on(Plan.from_json(trained.bundle / "plan.json")), out)
    shutil.copyfile(trained.bundle / "configs" / "evaluate.json", out / "configs" / "evaluate.json")
    return out


def test_a_training_that_stopped_while_its_ending_was_written_is_taken_up(trained: TrainingJob, tmp_path: Path) -> None:
    out = stopped_while_ending(trained, tmp_path)
    train(replace(trained, out=out, resume=True))
    assert (out / "plan.json").read_bytes() == (trained.out / "plan.json").read_bytes()


def test_configs_that_no_ending_wrote_are_not_taken_up(trained: TrainingJob, tmp_path: Path) -> None:
    out = stopped_while_ending(trained, tmp_path)
    (out / "configs" / "evaluate.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"evaluate\.json.* differ from those of bundle"):
        train(replace(trained, out=out, resume=True))


def test_a_bundle_that_is_trained_anew_starts_without_the_offsets_of_its_last_weights(
    trained: TrainingJob, tmp_path: Path
) -> None:
    out = train(replace(trained, bundle=trained.out, out=tmp_path / "out", fold=-1))
    (out / CHECKSUMS).unlink()
    train(replace(trained, bundle=trained.out, out=out, fold=-1, resume=True))
    plan = Plan.from_json(out / "plan.json")
    assert plan.class_offsets == ()
    assert "class_offsets" not in plan.reasons
    assert not (out / AS_TRAINED).exists()


def test_configs_that_were_changed_by_hand_get_no_ending(trained: TrainingJob, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(Plan.from_json(trained.bundle / "plan.json"), bundle)
    config = bundle / "configs" / "inference.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"overlap": 0.25', '"overlap": 0.5'), encoding="utf-8")
    seal(bundle)
    out = train(replace(trained, bundle=bundle, out=tmp_path / "out"))
    assert not (out / AS_TRAINED).exists()


def test_a_plan_says_what_was_added_and_reads_back(tmp_path: Path, trained: TrainingJob) -> None:
    made = Ending(Cleaning(), OFFSETS).on(Plan.from_json(trained.bundle / "plan.json"))
    (tmp_path / "plan.json").write_text(made.to_json(), encoding="utf-8")
    assert Plan.from_json(tmp_path / "plan.json") == made
    assert "ball by +1.0% instead of +25.0%; Dice +0.0100" in made.reasons["class_offsets"]
    assert "class_offsets" not in cleaned(replace(made, class_offsets=()), Cleaning()).to_json().partition("reasons")[0]


def test_without_held_out_cases_nothing_is_chosen() -> None:
    assert choose_ending([HeldOut()]) == Ending(Cleaning(), Offsets())
