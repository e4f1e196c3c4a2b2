"""A training goes on from an imported network of nnU-Net, on its own preparation, with other labels too."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.imports.nnunet_files import TRAINED, checkpoint, configuration, data_set, network, plans, write_folder
from tests.imports.parts_bundle import write_parts_bundle
from voxelgate.apps.cli.main import app
from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.nnunet import read_nnunet
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import UsageError
from voxelgate.networks import PlainConvUNet
from voxelgate.training.bundle_checks import CHECKS
from voxelgate.training.distributed import first_weights, start_from
from voxelgate.training.planning.adopted import adopted_overrides
from voxelgate.training.planning.make_bundle import make_bundle
from voxelgate.training.planning.plan import Budget
from voxelgate.training.train import TrainingJob, evaluate_fold, refuse_settings, settings_of, train

SHAPE = (24, 22, 20)
LAYERS = {
    "_target_": "voxelgate.PlainConvUNet",
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 6],
    "strides": [[2, 2, 2]],
    "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    "encoder_blocks": [2, 2],
    "decoder_blocks": [2],
}


SHORT = {"epochs": 1, "steps_per_epoch": 2, "warmup_steps": 1, "batch_size": 1, "learning_rate": 1e-9}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle that was imported from two folds."""
    root = tmp_path_factory.mktemp("nnunet")
    states = [network(LAYERS, seed).state_dict() for seed in (0, 1)]
    made = {f"fold_{fold}/checkpoint_final.pth": checkpoint(state, fold=fold) for fold, state in enumerate(states)}
    folder = write_folder(root / TRAINED, plans=plans(), data_set=data_set(), checkpoints=made)
    with opened_source(folder) as source:
        read = replace(read_nnunet(source, ImportOptions()), licence="CC BY-NC 4.0")
        write_imported(root / "blobs", read, source)
    return root / "blobs"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Return a data set of other labels than the imported model has, one file stored in another direction."""
    rng = np.random.default_rng(0)
    for case in range(3):
        label = np.zeros(SHAPE, np.uint8)
        label[4:12, 4:16, 3:14] = 1
        image = (label * 100.0 + rng.normal(0, 20, SHAPE)).astype(np.float32)
        affine = np.diag([-0.8, 0.9, 1.0, 1]) if case else np.diag([0.8, 0.9, 1.2, 1.0])
        for name, voxels in (("images", image), ("labels", label)):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "data" / name / f"{case}.nii.gz")
    done = CliRunner().invoke(app, ["manifest", str(tmp_path / "data"), "--labels", "cyst", "--folds", "3"])
    assert done.exit_code == 0, done.output
    return tmp_path / "data" / "manifest.json"


@pytest.mark.slow
def test_a_training_goes_on_from_an_imported_network_with_other_labels(
    imported: Path, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planned = make_bundle(manifest, tmp_path / "planned", Budget(minutes=1), adopted=imported)

    with caplog.at_level(logging.WARNING):
        job = TrainingJob(tmp_path / "planned", manifest, tmp_path / "tuned", overrides=SHORT)
        train(job)

    bundle = open_bundle(tmp_path / "tuned", "cpu")
    before = torch.load(imported / "models" / "model.pt", weights_only=True)
    name = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.allclose(bundle.network.state_dict()[name], before[f"0.{name}"], atol=1e-5)
    assert "layers that begin anew" in caplog.text
    assert "decoder.seg_layers.0" in caplog.text
    assert bundle.labels.names == ("background", "cyst")
    assert planned.plan.patch_vox == (16, 12, 20)
    assert Metadata.read(tmp_path / "tuned").licence == "CC BY-NC 4.0"
    scan = manifest.parent / "images" / "1.nii.gz"
    assert bundle.segment(scan).labels.shape == SHAPE


@pytest.mark.slow
def test_a_model_that_went_on_from_another_is_checked_and_measured_without_it(
    imported: Path, manifest: Path, tmp_path: Path
) -> None:
    first = Path(shutil.copytree(imported, tmp_path / "first"))
    make_bundle(manifest, tmp_path / "planned", Budget(minutes=1), adopted=first)
    tuned = train(TrainingJob(tmp_path / "planned", manifest, tmp_path / "tuned", overrides=SHORT))
    shutil.rmtree(first)

    assert CHECKS["configs"](tuned) == "one network, one preprocessing, all as plan.json says"
    assert CHECKS["two iterations"](tuned).startswith("2 steps")
    assert evaluate_fold(tuned, manifest, tmp_path / "scores")


def test_a_plan_names_the_bundle_that_training_begins_from_by_name_where_it_is_kept(
    imported: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    for kept in (tmp_path, imported.parent):
        monkeypatch.setenv("VOXELGATE_BUNDLES", str(kept))
        out = tmp_path / f"planned_{len(begun)}"
        words = ["plan", str(manifest), "--from", str(imported), "--out", str(out), "--minutes", "1"]
        printed = CliRunner().invoke(app, words, catch_exceptions=False).output
        begun.append(json.loads((out / "configs" / "train.json").read_text(encoding="utf-8"))["init_weights"])

    assert begun == [str(imported), "blobs"]
    assert "init_weights" not in printed
    assert first_weights("blobs") == imported / "models" / "model.pt"


def test_a_training_whose_first_weights_are_gone_is_refused_before_it_begins(
    imported: Path, manifest: Path, tmp_path: Path
) -> None:
    first = Path(shutil.copytree(imported, tmp_path / "first"))
    make_bundle(manifest, tmp_path / "planned", Budget(minutes=1, step_s=1), adopted=first)
    shutil.rmtree(first)

    with pytest.raises(UsageError, match=r"first: has no weights to begin from.*init_weights=null"):
        train(TrainingJob(tmp_path / "planned", manifest, tmp_path / "tuned", overrides=SHORT))

    assert not (tmp_path / "tuned").exists()
    anew = TrainingJob(tmp_path / "planned", manifest, tmp_path / "tuned", overrides=SHORT | {"init_weights": None})
    refuse_settings(anew, settings_of(anew))


def test_a_plan_takes_network_window_and_preparation_of_the_imported_model(imported: Path) -> None:
    overrides = adopted_overrides(imported)
    steps = json.loads((imported / "configs" / "inference.json").read_text(encoding="utf-8"))["preprocessing"]

    assert overrides["network"]["_target_"] == "voxelgate.PlainConvUNet"
    assert overrides["patch_vox"] == configuration()["patch_size"]
    assert overrides["adopted"]["preparation"] == steps["transforms"][2:]
    assert overrides["adopted"]["inferer"]["mirror_axes"] == []
    assert overrides["reasons"]["spacing_mm"] == "as blobs has it, from which the training goes on"


def test_a_value_that_somebody_sets_is_not_said_to_be_that_of_the_imported_model(
    imported: Path, manifest: Path, tmp_path: Path
) -> None:
    budget, own = Budget(minutes=1, step_s=1), {"overlap": 0.25}

    made = make_bundle(manifest, tmp_path / "planned", budget, adopted=imported, overrides=own).plan

    assert (made.overlap, made.reasons["overlap"]) == (0.25, "set by hand")
    assert made.reasons["patch_vox"].startswith("as blobs has it")


def test_only_a_model_of_one_configuration_can_be_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two_parts: is no model of one configuration of nnU-Net"):
        adopted_overrides(write_parts_bundle(tmp_path))


def test_layers_whose_shapes_fit_are_loaded_and_the_others_are_named(
    imported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layers = {name: value for name, value in LAYERS.items() if name != "_target_"}
    other = PlainConvUNet(**layers | {"out_channels": 7, "in_channels": 2})
    anew = other.decoder.seg_layers[0].weight.clone()

    started = start_from(other, str(imported / "models" / "model.pt"))

    first = torch.load(imported / "models" / "model.pt", weights_only=True)
    assert torch.equal(started.state_dict()["decoder.transpconvs.0.weight"], first["0.decoder.transpconvs.0.weight"])
    assert torch.equal(other.decoder.seg_layers[0].weight, anew)
    assert "encoder.stages.0.0.convs.0.conv, decoder.seg_layers.0" in caplog.text


def test_weights_of_another_network_are_refused(imported: Path) -> None:
    layers = {name: value for name, value in LAYERS.items() if name != "_target_"}
    other = PlainConvUNet(**layers | {"channels": [8, 16]})

    with pytest.raises(UsageError, match="cannot start this network, for 3 of its 18747 numbers fit"):
        start_from(other, str(imported / "models" / "model.pt"))
