"""The law that makes resuming safe: a training that is killed and taken up again ends with the same weights."""

import json
import multiprocessing
import random
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from voxelgate.bundle.checksums import verify
from voxelgate.core.errors import UsageError
from voxelgate.datasets import build_manifest as manifest_build
from voxelgate.datasets.manifest import load_manifest
from voxelgate.datasets.survey import survey
from voxelgate.inference import precision
from voxelgate.training.configs.bundle_files import write_bundle
from voxelgate.training.cross_validation import train_folds
from voxelgate.training.planning import Plan, Training, plan
from voxelgate.training.train import TRAINING, TrainingJob, epochs_done, train

STATE = f"{TRAINING}/state.pt"
FOLDS = 2
EPOCHS = 3
SETTINGS = {"precision": "float32"}
"""Explicit, since `auto` asks the clock."""

PATIENCE_S = 300.0
"""How long to wait for an epoch before the test fails."""


def write_cases(folder: Path, cases: int = 5) -> Path:
    """Write volumes with one bright ball each, and their manifest; return its path."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for case in range(cases):
        shape = tuple(rng.integers(16, 21, size=3))
        distance_vox = np.linalg.norm(np.indices(shape).T - rng.integers(6, 10, size=3), axis=-1).T
        ball = (distance_vox < 4).astype(np.uint8)
        image = 100 * ball + rng.normal(50, 10, size=shape)
        for kind, voxels in (("images", image.astype(np.float32)), ("labels", ball)):
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / kind / f"case_{case}.nii.gz")
    document = manifest_build.build_manifest(
        folder, name="balls", modality="MRI", licence="CC0", folds=FOLDS, labels={"0": "background", "1": "ball"}
    )
    manifest_build.write_manifest(document, folder / "manifest.json")
    return folder / "manifest.json"


def tiny_plan(manifest: Path) -> Plan:
    """Return a plan whose training takes seconds, with all its random changes of patches."""
    return replace(
        plan(survey(load_manifest(manifest)).fingerprint),
        channels=(4, 8),
        strides=((2, 2, 2),),
        patch_vox=(8, 8, 8),
        window_vox=(16, 16, 16),
        network={"dropout": 0.1},
        training=Training(epochs=EPOCHS, steps_per_epoch=2, warmup_steps=2, average_decay=0.5, validate_every=1),
    )


def tiny_job(folder: Path) -> TrainingJob:
    """Make cases and a bundle in `folder`, and return the training of the one on the other."""
    manifest = write_cases(folder / "data")
    write_bundle(tiny_plan(manifest), folder / "bundle")
    return TrainingJob(bundle=folder / "bundle", manifest=manifest, out=folder / "whole", overrides=SETTINGS)


def train_alone(job: TrainingJob) -> None:
    """Train in a process of its own, with as many threads as any other that must give the same numbers."""
    torch.set_num_threads(1)
    train(job)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Return a maker of processes that have everything imported when they start, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["voxelgate.training.train", "voxelgate.training.planning", "tests.training.test_resume"]
    )
    return context


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, processes: ForkServerContext) -> TrainingJob:
    """Return a training that ran to its end without a break."""
    job = tiny_job(tmp_path_factory.mktemp("resume"))
    finish(processes, job)
    return job


def finish(processes: ForkServerContext, job: TrainingJob) -> None:
    process = processes.Process(target=train_alone, args=(job,))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0


def kill_after_epoch(processes: ForkServerContext, job: TrainingJob, epoch: int, delay_s: float) -> None:
    """Start a training and kill it some time after the state of an epoch has appeared."""
    process = processes.Process(target=train_alone, args=(job,))
    process.start()
    deadline_s = time.monotonic() + PATIENCE_S
    while saved_epoch(job) < epoch:
        assert time.monotonic() < deadline_s
        # it may end between the two looks
        assert process.is_alive() or saved_epoch(job) >= epoch, f"ended ({process.exitcode}) after {saved_epoch(job)}"
        time.sleep(0.01)
    time.sleep(delay_s)
    process.kill()
    process.join(PATIENCE_S)
    assert process.exitcode in {-signal.SIGKILL, 0}  # 0: it was done already, which must be right as well


def saved_epoch(job: TrainingJob) -> int:
    path = job.out / STATE
    return int(torch.load(path, weights_only=True)["epoch"]) if path.is_file() else 0


def weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(job.out / "models" / "model.pt", weights_only=True)
    return found


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_and_resumed_training_ends_with_the_weights_of_an_unbroken_one(
    processes: ForkServerContext, whole: TrainingJob, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)  # noqa: S311  # moments, no secrets
    killed = replace(whole, out=tmp_path / "killed")
    kill_after_epoch(processes, killed, 1, delay_s=rng.choice([0.0, 0.05, 0.1, 0.2]) * rng.random())
    resumed = replace(killed, resume=True)
    kill_after_epoch(processes, resumed, 2, delay_s=0.1 * rng.random())
    finish(processes, resumed)
    assert are_equal(weights(killed), weights(whole))
    states = [torch.load(job.out / STATE, weights_only=True) for job in (killed, whole)]
    assert states[0]["epoch"] == states[1]["epoch"] == EPOCHS
    for name in ("network", "averaged"):
        assert are_equal(states[0][name], states[1][name])


@pytest.mark.slow
def test_resuming_a_finished_training_changes_nothing(processes: ForkServerContext, whole: TrainingJob) -> None:
    before = {name: (whole.out / name).read_bytes() for name in ("models/model.pt", STATE, "checksums.json")}
    finish(processes, replace(whole, resume=True))
    assert {name: (whole.out / name).read_bytes() for name in before} == before


def test_a_training_is_not_resumed_with_other_settings(whole: TrainingJob) -> None:
    with pytest.raises(UsageError, match=r"made with learning_rate=0\.002, not 0\.1"):
        train(replace(whole, resume=True, overrides=SETTINGS | {"learning_rate": 0.1}))


def test_a_training_is_not_resumed_on_other_cases(whole: TrainingJob, tmp_path: Path) -> None:
    document = json.loads(whole.manifest.read_text(encoding="utf-8"))
    document["training"] = [row | {"fold": 1 - row["fold"]} for row in document["training"]]
    other = tmp_path / "manifest.json"
    other.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match=r"made with cases=. cases \w+, not . cases"):
        train(replace(whole, resume=True, manifest=other, data_root=whole.manifest.parent))


def test_a_finished_training_is_lengthened_on_the_schedule_of_its_new_length(
    whole: TrainingJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = replace(whole, out=tmp_path / "longer", overrides=SETTINGS | {"epochs": EPOCHS + 2})
    shutil.copytree(whole.out, longer.out)
    train(replace(longer, resume=True))
    state = torch.load(longer.out / STATE, weights_only=True)
    assert state["epoch"] == state["identity"]["epochs"] == EPOCHS + 2
    assert state["lr_scheduler"]["t_total"] == 2 * (EPOCHS + 2)
    assert f"goes on to epoch {EPOCHS + 2} instead of {EPOCHS}" in caplog.text
    verify(longer.out)
    with pytest.raises(UsageError, match=f"holds {EPOCHS + 2} epochs, more than 1: give as many at least"):
        train(replace(longer, resume=True, overrides=SETTINGS | {"epochs": 1}))


def test_a_cross_validation_is_lengthened_in_every_fold(whole: TrainingJob, tmp_path: Path) -> None:
    short = SETTINGS | {"epochs": 1, "steps_per_epoch": 1, "warmup_steps": 1}
    job = replace(whole, out=tmp_path / "folds", overrides=short)
    train_folds(job, FOLDS)
    train_folds(replace(job, resume=True, overrides=short | {"epochs": 2}), FOLDS)
    assert [epochs_done(job.out / TRAINING / f"fold_{fold}") for fold in range(FOLDS)] == [2, 2]


def test_a_training_goes_on_in_the_number_format_that_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(tiny_job(tmp_path), overrides={"epochs": 1})
    monkeypatch.setattr(precision, "_convolution_s", lambda dtype: 1.0 if dtype is torch.bfloat16 else 2.0)
    train(job)
    monkeypatch.setattr(precision, "_convolution_s", lambda _: 1.0)
    train(replace(job, resume=True, overrides={"epochs": 2}))
    state = torch.load(job.out / STATE, weights_only=True)
    assert (state["epoch"], state["identity"]["precision"]) == (2, "bfloat16")
