"""Voxels that nobody labelled: neither loss, nor sampling, nor metric knows what stands there, up to the weights."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceFocalLoss
from torch import nn

from tests.conftest import Run
from tests.training.test_resume import SETTINGS, tiny_plan
from voxelgate.core.labels import IGNORED
from voxelgate.datasets.build_manifest import build_manifest, write_manifest
from voxelgate.datasets.manifest import load_manifest
from voxelgate.datasets.survey import survey
from voxelgate.networks import GatedLogits
from voxelgate.networks.losses import BCEDiceLoss, NetworkLoss
from voxelgate.training.configs.bundle_files import write_bundle
from voxelgate.training.train import TRAINING, TrainingJob, evaluate_fold, train
from voxelgate.transforms.sampling import foreground_indices

LOSSES = {
    "dice_ce": DiceCELoss(softmax=True, to_onehot_y=True, include_background=False),
    "batch_dice_ce": DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True),
    "dice_focal": DiceFocalLoss(softmax=True, to_onehot_y=True, include_background=True),
    "dice_bce": BCEDiceLoss(),
}


def logits_and_target(ignored: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (2, 1, 6, 5, 4), generator=generator).float()
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORED
    return torch.randn(2, 3, 6, 5, 4, generator=generator, requires_grad=True), target


@pytest.mark.parametrize("name", LOSSES)
def test_what_stands_where_nobody_labelled_changes_no_loss_and_gets_no_gradient(name: str) -> None:
    logits, target = logits_and_target(0.4)
    loss = NetworkLoss(LOSSES[name])
    value = loss(logits, target)
    value.backward()
    assert logits.grad is not None
    assert not logits.grad.masked_select(target < 0).any()
    assert logits.grad.masked_select(target >= 0).all()
    other = torch.where(target < 0, torch.full_like(logits, 7.0), logits)
    torch.testing.assert_close(loss(other, target), value, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_leaving_out_the_same_planes_everywhere_is_the_loss_of_the_rest(name: str) -> None:
    logits, target = logits_and_target(0.0)
    target[:, :, 4:] = IGNORED
    torch.testing.assert_close(
        NetworkLoss(LOSSES[name])(logits, target), LOSSES[name](logits[:, :, :4], target[:, :, :4])
    )


@pytest.mark.parametrize("name", LOSSES)
def test_where_everything_is_labelled_the_loss_is_as_before_bit_by_bit(name: str) -> None:
    logits, target = logits_and_target(0.0)
    assert torch.equal(NetworkLoss(LOSSES[name])(logits, target), LOSSES[name](logits, target))


def test_a_batch_without_any_labelled_voxel_teaches_nothing() -> None:
    logits, target = logits_and_target(1.1)
    value = NetworkLoss(LOSSES["dice_ce"])(logits, target)
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_gates_are_not_taught_where_nobody_labelled() -> None:
    logits, target = logits_and_target(0.4)
    alpha = torch.full((2, 1, 6, 5, 4), 0.5, requires_grad=True)
    NetworkLoss(LOSSES["dice_ce"])(GatedLogits([logits.detach()], [alpha]), target).backward()
    assert alpha.grad is not None
    assert torch.equal(alpha.grad == 0, target < 0)


def test_no_patch_is_drawn_around_what_is_ignored() -> None:
    label = torch.tensor([[[0, -1, 1], [-1, -1, 2]]])
    assert [found.tolist() for found in foreground_indices(label)] == [[2], [5]]


def write_cases(folder: Path, corner: int) -> Path:
    """Write balls of value 200 whose corner holds anything, and return their manifest, which ignores 255."""
    rng = np.random.default_rng(0)
    for case in range(4):
        distance = np.linalg.norm(np.indices((16, 16, 16)).T - rng.integers(6, 10, 3), axis=-1).T
        label = np.where(distance < 4, 200, 0).astype(np.int16)
        image = 100 * (distance < 4) + rng.normal(50, 10, label.shape)
        label[12:], label[0] = corner, 255
        for kind, voxels in (("images", image.astype(np.float32)), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / kind / f"case_{case}.nii.gz")
    names = {"0": "background", "200": "ball"}
    ignored = [255, 77]
    made = build_manifest(folder, name="balls", modality="MRI", licence="CC0", folds=2, labels=names, ignore=ignored)
    write_manifest(made, folder / "manifest.json")
    return folder / "manifest.json"


def test_trainings_whose_label_files_differ_in_ignored_voxels_give_the_same_weights_and_scores(tmp_path: Path) -> None:
    weights, scores = [], []
    for corner in (255, 77):
        manifest = write_cases(tmp_path / str(corner), corner)
        write_bundle(tiny_plan(manifest), tmp_path / f"bundle_{corner}")
        job = TrainingJob(tmp_path / f"bundle_{corner}", manifest, tmp_path / f"out_{corner}", overrides=SETTINGS)
        weights.append(torch.load(train(job) / "models/model.pt", weights_only=True))
        scores.append(evaluate_fold(job.out, manifest, job.out / TRAINING))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert scores[0] == scores[1]
    assert {score.label for score in scores[0]} == {"ball"}
    facts = survey(load_manifest(manifest)).fingerprint
    assert facts.structures[0].volume_ml == pytest.approx((0.22, 0.25, 0.26), abs=0.05)


def test_a_bundle_trained_on_other_values_gives_its_own(tmp_path: Path, run: Run) -> None:
    manifest = write_cases(tmp_path / "data", 255)
    write_bundle(tiny_plan(manifest), tmp_path / "bundle")
    train(TrainingJob(tmp_path / "bundle", manifest, tmp_path / "trained", overrides=SETTINGS | {"epochs": 1}))
    image = tmp_path / "data/images/case_0.nii.gz"
    result = run("segment", "trained", image, "--out", "results", "--require", "any", "--engine", "serial")
    assert result.returncode in {0, 1}, result.stderr
    found = np.unique(np.asarray(nib.load(tmp_path / "results/case_0.nii.gz").dataobj))
    assert set(found.tolist()) <= {0, 1}


def test_a_loss_of_unknown_kind_is_taken_image_by_image() -> None:
    class Mean(nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (logits.mean(dim=1, keepdim=True) - target).abs().mean()

    logits, target = logits_and_target(0.5)
    each = [(logits.mean(dim=1, keepdim=True) - target).abs()[i][target[i] >= 0].mean() for i in range(2)]
    torch.testing.assert_close(NetworkLoss(Mean())(logits, target), torch.stack(each).mean())
