"""Training from manifest to sealed bundle, what is refused before it starts, and what is refused afterwards."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.bundle import WEIGHTS, open_bundle, seal, verify
from pipeline.errors import BundleError, OutputError, UsageError
from pipeline.manifest import load
from pipeline.networks import AttentionUNet
from pipeline.training import Job, evaluate_fold, train
from tests.test_resume import EPOCHS, STATE, tiny_job

TIME_LIMIT_S = 900


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return tiny_job(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def trained(job: Job) -> Path:
    return train(job)


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained bundle that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))


# --- before work starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"), [("epoch", "epochs"), ("train#dataloader#num_worker", "train#dataloader#num_workers")]
)
def test_an_unknown_setting_is_refused_with_what_was_meant(job: Job, tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"no setting '{name}'; did you mean .*{meant}"):
        train(replace(job, out=tmp_path / "out", overrides={name: 5}))
    assert not (tmp_path / "out").exists()


def test_other_labels_than_the_bundle_s_are_refused(job: Job, tmp_path: Path) -> None:
    document = json.loads(job.manifest.read_text(encoding="utf-8"))
    other = tmp_path / "manifest.json"
    other.write_text(json.dumps(document | {"labels": {"0": "background", "1": "cube"}}), encoding="utf-8")
    with pytest.raises(UsageError, match="segments background, ball, but the labels of balls are background, cube"):
        train(replace(job, manifest=other, data_root=job.manifest.parent, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_fold_is_refused(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has the folds \(0, 1\), not 2"):
        train(replace(job, fold=2, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_refused_and_left_alone(job: Job, tmp_path: Path) -> None:
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


def test_the_scores_of_a_fold_are_those_of_its_validation_cases(trained: Path, job: Job, tmp_path: Path) -> None:
    manifest = load(job.manifest)
    for fold in manifest.folds:
        scores = evaluate_fold(trained, job.manifest, tmp_path / str(fold), fold=fold)
        assert sorted(score.case_id for score in scores) == sorted(
            case.case_id for case in manifest.cases if case.fold == fold
        )
        assert (tmp_path / str(fold) / "scores.csv").is_file()
    verify(trained)


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


def run_plainly(command: Sequence[str], bundle: Path, job: Job) -> None:
    """Run a command of the bundle's README in the folder of the bundle."""
    options = ["--manifest", job.manifest, "--data_root", job.manifest.parent, "--precision", "float32"]
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
    assert torch.load(bundle / STATE, weights_only=True)["epoch"] == EPOCHS
    seal(bundle)
    open_bundle(bundle)


@pytest.fixture
def untrained(job: Job, tmp_path: Path) -> Path:
    return Path(shutil.copytree(job.bundle, tmp_path / "bundle"))


@pytest.mark.slow
def test_plain_monai_trains_a_bundle(untrained: Path, job: Job) -> None:
    run_plainly(["monai.bundle", "run", "--config_file", "configs/train.json"], untrained, job)


@pytest.mark.slow
def test_two_processes_train_a_bundle_together(untrained: Path, job: Job) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    configs = "['configs/train.json','configs/multi_gpu_train.json']"
    run_plainly([*launcher, "monai.bundle", "run", "--config_file", configs], untrained, job)
