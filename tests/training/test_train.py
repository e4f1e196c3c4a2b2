"""Training from manifest to sealed bundle, what is refused before it starts, and what is refused afterwards."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_resume import EPOCHS, SETTINGS, STATE, tiny_job
from voxelgate.bundle.checksums import CHECKSUMS, WEIGHTS, seal, verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.workflow import run_workflow
from voxelgate.core.errors import BundleError, OutputError, UsageError
from voxelgate.datasets.manifest import ALL_FOLDS, load_manifest
from voxelgate.networks import AttentionUNet
from voxelgate.training.train import TRAINING, TrainingJob, evaluate_fold, train

TIME_LIMIT_S = 900


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    return tiny_job(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def trained(job: TrainingJob) -> Path:
    return train(job)


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained bundle that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))


# --- before work starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"), [("epoch", "epochs"), ("train#dataloader#num_worker", "train#dataloader#num_workers")]
)
def test_an_unknown_setting_is_refused_with_what_was_meant(
    job: TrainingJob, tmp_path: Path, name: str, meant: str
) -> None:
    with pytest.raises(UsageError, match=rf"no setting '{name}'; did you mean .*{meant}"):
        train(replace(job, out=tmp_path / "out", overrides={name: 5}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["fold", "manifest", "data_root", "resume", "output_dir", "model_path"])
def test_a_setting_that_says_otherwise_what_the_job_says_is_refused(job: TrainingJob, name: str) -> None:
    with pytest.raises(UsageError, match=f"setting {name}: says again"):
        replace(job, overrides={"epochs": 1, name: 1})


def test_a_fold_that_leaves_no_case_to_train_on_is_refused_before_anything_is_made(
    job: TrainingJob, tmp_path: Path
) -> None:
    document = json.loads(job.manifest.read_text(encoding="utf-8"))
    document["training"] = [row | {"fold": 0} for row in document["training"]]
    single = tmp_path / "manifest.json"
    single.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match="part training of fold 0 holds no case"):
        train(replace(job, manifest=single, data_root=job.manifest.parent, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_labels_than_the_bundle_s_are_refused(job: TrainingJob, tmp_path: Path) -> None:
    document = json.loads(job.manifest.read_text(encoding="utf-8"))
    other = tmp_path / "manifest.json"
    other.write_text(json.dumps(document | {"labels": {"0": "background", "1": "cube"}}), encoding="utf-8")
    with pytest.raises(UsageError, match="segments background, ball, but the labels of balls are background, cube"):
        train(replace(job, manifest=other, data_root=job.manifest.parent, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_fold_is_refused(job: TrainingJob, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has the folds \(0, 1\), not 2"):
        train(replace(job, fold=2, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_refused_and_left_alone(job: TrainingJob, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="exists already"):
        train(replace(job, out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- the trained bundle -------------------------------------------------------------------------------------------


def test_a_trained_bundle_verifies_and_opens_with_its_weights(trained: Path) -> None:
    opened = open_bundle(trained)
    assert opened.fingerprint == verify(trained)
    assert not opened.network.training
    assert opened.labels.names == ("background", "ball")
    weights = torch.load(trained / WEIGHTS, weights_only=True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in opened.network.state_dict().items())
    assert torch.load(trained / STATE, weights_only=True)["epoch"] == EPOCHS


def test_a_trained_bundle_says_the_dice_of_its_validation_cases_and_none_where_all_cases_trained(
    job: TrainingJob, trained: Path, tmp_path: Path
) -> None:
    short = {**SETTINGS, "epochs": 1, "steps_per_epoch": 1, "warmup_steps": 1}
    other = train(replace(job, bundle=trained, out=tmp_path / "all", fold=ALL_FOLDS, overrides=short))

    best = torch.load(trained / STATE, weights_only=True)["keep_best"]["best"]
    known = Metadata.read(trained).expected
    assert known is not None
    assert known.validation_dice == pytest.approx(best, abs=1e-4)
    assert "eval_metrics" not in Metadata.read(other).document  # nor that of the bundle it began from


def test_a_training_that_is_lengthened_and_killed_is_taken_up_again(job: TrainingJob, copied: Path) -> None:
    (copied / CHECKSUMS).unlink()  # as a kill leaves it, beside the measure of the first training

    train(replace(job, out=copied, resume=True))

    verify(copied)


def test_the_scores_of_a_fold_are_those_of_its_validation_cases(
    trained: Path, job: TrainingJob, tmp_path: Path
) -> None:
    manifest = load_manifest(job.manifest)
    for fold in manifest.folds:
        scores = evaluate_fold(trained, job.manifest, tmp_path / str(fold), fold=fold)
        assert sorted(score.case_id for score in scores) == sorted(
            case.case_id for case in manifest.cases if case.fold == fold
        )
        assert (tmp_path / str(fold) / "scores.csv").is_file()
    verify(trained)


def test_scores_of_cases_that_were_seen_in_training_come_with_a_warning(
    trained: Path, job: TrainingJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate_fold(trained, job.manifest, tmp_path / "unseen", fold=0)
    assert "seen in training" not in caplog.text
    evaluate_fold(trained, job.manifest, tmp_path / "seen", fold=1)
    assert "2 of the 2 cases of fold 1, or others of their subjects, were seen in training" in caplog.text


@pytest.mark.parametrize("name", ["configs/inference.json", "configs/train.json", "plan.json", WEIGHTS])
def test_an_altered_file_is_refused_by_name(copied: Path, name: str) -> None:
    with (copied / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(BundleError, match=rf"copied: {name} changed since the bundle was sealed"):
        open_bundle(copied)


def test_a_missing_weight_file_is_refused(copied: Path) -> None:
    (copied / WEIGHTS).unlink()
    with pytest.raises(BundleError, match=f"{WEIGHTS} changed"):
        open_bundle(copied)
    seal(copied)
    with pytest.raises(BundleError, match=f"{WEIGHTS} is missing; train the bundle first"):
        open_bundle(copied)


def other_network(path: Path) -> None:
    torch.save(AttentionUNet(in_channels=1, out_channels=2, channels=(4, 8, 16)).state_dict(), path)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def two_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2])


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("these are no weights\n", encoding="utf-8")


def numbers(path: Path) -> None:
    torch.save([1, 2, 3], path)


@pytest.mark.parametrize("damage", [other_network, half, two_bytes, nothing, text, numbers])
def test_weights_that_do_not_fit_are_refused_with_a_sentence(copied: Path, damage: Callable[[Path], None]) -> None:
    damage(copied / WEIGHTS)
    seal(copied)
    with pytest.raises(BundleError, match=f"copied: {WEIGHTS} does not fit the network") as refusal:
        open_bundle(copied)
    assert "\n" not in str(refusal.value)


# --- without our commands -----------------------------------------------------------------------------------------


def run_plainly(command: Sequence[str], bundle: Path, job: TrainingJob, *more: object) -> dict[str, Any]:
    """Run a command of the bundle's README in the folder of the bundle; return the state that it leaves."""
    options = ["--manifest", job.manifest, "--data_root", job.manifest.parent, "--precision", "float32", *more]
    done = subprocess.run(
        [sys.executable, "-m", *command, *map(str, options)],
        cwd=bundle,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seal(bundle)
    open_bundle(bundle)
    return dict(torch.load(bundle / STATE, weights_only=True))


@pytest.fixture
def untrained(job: TrainingJob, tmp_path: Path) -> Path:
    return Path(shutil.copytree(job.bundle, tmp_path / "bundle"))


def test_a_second_training_in_a_bundle_keeps_the_first_beside_and_resume_goes_on_with_the_last(
    untrained: Path, job: TrainingJob
) -> None:
    settings: dict[str, object] = {"manifest": str(job.manifest), "data_root": str(job.manifest.parent), **SETTINGS}
    short = settings | {"steps_per_epoch": 1, "warmup_steps": 1, "epochs": 1}
    run_workflow(untrained, ["train"], short)
    first = (untrained / WEIGHTS).read_bytes()
    events = [path.name for path in (untrained / TRAINING / "events").iterdir()]
    run_workflow(untrained, ["train", "evaluate"], settings)
    run_workflow(untrained, ["train"], short | {"seed": 1})
    second = (untrained / WEIGHTS).read_bytes()
    assert second != first
    kept = untrained / f"{TRAINING}_1"
    assert (kept / "model.pt").read_bytes() == first
    assert [path.name for path in (kept / "events").iterdir()] == events
    assert (kept / "scores.csv").is_file()
    assert torch.load(untrained / STATE, weights_only=True)["identity"]["seed"] == 1

    run_workflow(untrained, ["train"], short | {"seed": 1, "resume": True})
    assert (untrained / WEIGHTS).read_bytes() == second
    assert not (untrained / f"{TRAINING}_2").exists()


@pytest.mark.slow
def test_plain_monai_trains_a_bundle(untrained: Path, job: TrainingJob) -> None:
    state = run_plainly(["monai.bundle", "run", "--config_file", "configs/train.json"], untrained, job)
    assert state["epoch"] == EPOCHS


TWO_PROCESSES = (
    *("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "monai.bundle", "run", "--config_file"),
    "['configs/train.json','configs/multi_gpu_train.json']",
)


@pytest.mark.slow
def test_two_processes_train_a_bundle_together(untrained: Path, job: TrainingJob) -> None:
    assert run_plainly(TWO_PROCESSES, untrained, job)["epoch"] == EPOCHS


@pytest.mark.slow
def test_two_processes_end_together_when_their_minutes_are_over(untrained: Path, job: TrainingJob) -> None:
    minutes, epochs = 0.1, 1000
    state = run_plainly(TWO_PROCESSES, untrained, job, "--minutes", minutes, "--epochs", epochs)
    steps_per_epoch = state["identity"]["steps_per_epoch"]
    assert state["keep_time"]["steps"] != epochs * steps_per_epoch
    assert state["epoch"] == -(-state["keep_time"]["steps"] // steps_per_epoch)
    assert state["lr_scheduler"]["_last_lr"][0] < 1e-3 * state["identity"]["learning_rate"]
