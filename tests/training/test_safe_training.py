"""What a training refuses before it runs anything: changed bundles, settings of one side only, a folder in use."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_resume import SETTINGS, tiny_job
from voxelgate.bundle.checksums import CHECKSUMS, seal
from voxelgate.core.errors import BundleError, OutputError, UsageError
from voxelgate.core.files import locked
from voxelgate.training.cross_validation import train_folds
from voxelgate.training.train import TrainingJob, epochs_done, train

SHORT = SETTINGS | {"steps_per_epoch": 1, "warmup_steps": 1, "epochs": 1}
Train = Callable[[TrainingJob], object]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    return replace(tiny_job(tmp_path_factory.mktemp("safe")), overrides=SHORT)


@pytest.fixture
def job(planned: TrainingJob, tmp_path: Path) -> TrainingJob:
    """Return a job on a bundle of its own, into a folder that is not there."""
    shutil.copytree(planned.bundle, tmp_path / "bundle")
    return replace(planned, bundle=tmp_path / "bundle", out=tmp_path / "out")


def plant(root: Path, config: str, canary: Path) -> None:
    """Change a config so that running it leaves a file behind."""
    path = root / "configs" / f"{config}.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["device"] = f"$(__import__('pathlib').Path({str(canary)!r}).write_text('x'), torch.device('cpu'))[1]"
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize("config", ["train", "inference", "evaluate"])
@pytest.mark.parametrize("do", [train, lambda job: train_folds(job, 2)], ids=["one fold", "all folds"])
def test_a_bundle_that_was_changed_is_not_trained(job: TrainingJob, tmp_path: Path, config: str, do: Train) -> None:
    plant(job.bundle, config, tmp_path / "canary")
    with pytest.raises(BundleError, match=rf"configs/{config}\.json changed since the bundle was sealed"):
        do(job)
    assert not (tmp_path / "canary").exists()
    assert not job.out.exists()


@pytest.mark.parametrize("do", [train, lambda job: train_folds(job, 2)], ids=["one fold", "all folds"])
def test_a_bundle_whose_seal_was_taken_away_is_not_trained(job: TrainingJob, do: Train) -> None:
    (job.bundle / CHECKSUMS).unlink()
    with pytest.raises(BundleError, match=r"checksums\.json is missing"):
        do(job)


@pytest.mark.parametrize("config", ["train", "inference", "metadata"])
def test_a_training_is_not_taken_up_with_configs_that_were_changed_meanwhile(
    job: TrainingJob, tmp_path: Path, config: str
) -> None:
    train(job)
    (job.out / CHECKSUMS).unlink()  # as if it had been killed
    plant(job.out, config, tmp_path / "canary")
    with pytest.raises(BundleError, match=rf"configs/{config}\.json differ from those of bundle"):
        train(replace(job, resume=True))
    assert not (tmp_path / "canary").exists()
    seal(job.out)
    with (job.out / "configs" / "train.json").open("a") as file:
        file.write("\n")
    with pytest.raises(BundleError, match=r"train\.json changed since"):
        train(replace(job, resume=True))


@pytest.mark.slow
def test_two_trainings_do_not_work_in_one_folder(job: TrainingJob) -> None:
    train(job)
    with locked(job.out), pytest.raises(OutputError, match="another run works in this folder"):
        train(replace(job, resume=True))
    with locked(job.out), pytest.raises(OutputError, match="another run works in this folder"):
        train_folds(replace(job, resume=True), 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train#deterministic_transforms#5#spacing_mm", [2.0, 2.0, 2.0]),
        ("validate#preprocessing#transforms#5#spacing_mm", [2.0, 2.0, 2.0]),
        ("train#deterministic_transforms", []),
        ("train#random_transforms#0#patch_vox", [16, 16, 16]),
        ("train#random_transforms#0", {}),
        ("validate#inferer#roi_size", [8, 8, 8]),
        ("train#random_transforms#1#prob", 0.0),
        ("train#random_transforms#1#axes", ["coronal"]),
        ("network_def#channels", [4, 4]),
        ("network_def#attention", False),
        ("network_def", {"_target_": "voxelgate.AttentionUNet"}),
        ("network", "$torch.nn.Identity()"),
        ("train_network", "$torch.nn.Identity()"),
        ("train#trainer#network", "$torch.nn.Identity()"),
        ("train#dataset#transform", "$torch.nn.Identity()"),
        ("validate#dataset#transform", "$torch.nn.Identity()"),
        ("validate#postprocessing#classes", 3),
        ("validate#evaluator#inferer", "$torch.nn.Identity()"),
    ],
)
def test_a_setting_that_inference_shares_is_refused(job: TrainingJob, name: str, value: Any) -> None:
    config = json.loads((job.bundle / "configs" / "train.json").read_text(encoding="utf-8"))
    assert config["train"]["deterministic_transforms"][5]["_target_"] == "voxelgate.ResampleToSpacingd"
    for do in (train, lambda one: train_folds(one, 2)):
        with pytest.raises(UsageError, match=f"setting {name}: inference shares this .*voxelgate plan --override"):
            do(replace(job, overrides={name: value}))
    assert not job.out.exists()


@pytest.mark.parametrize(
    "name",
    [
        "train#dataset#data",
        "train#dataloader#dataset",
        "validate#evaluator#val_data_loader",
        "validate#dataset",
        "train",
    ],
)
def test_other_cases_than_those_of_the_manifest_are_no_setting(job: TrainingJob, name: str) -> None:
    value: Any = {} if name in {"validate#dataset", "train"} else "$[]"
    with pytest.raises(UsageError, match=f"setting {name}: says otherwise which cases are trained on"):
        train(replace(job, overrides={name: value}))


@pytest.mark.parametrize(("name", "value"), [("run", []), ("train#keep_best#path", "elsewhere.pt")])
def test_a_training_that_would_leave_no_weights_is_not_begun(job: TrainingJob, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"setting {name}: says otherwise what is run, or where the weights go"):
        train(replace(job, overrides={name: value}))
    assert not job.out.exists()


def test_settings_of_the_training_alone_are_taken(job: TrainingJob) -> None:
    own = {"learning_rate": 0.001, "train#dataloader#num_workers": 0, "train#random_transforms#1#prob": 0.25}
    assert epochs_done(train(replace(job, overrides=SHORT | own))) == 1
