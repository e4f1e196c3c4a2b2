"""The gates of a bundle: a trained one passes them all, and each refuses what it is there for."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_resume import tiny_job
from voxelgate.bundle.checksums import WEIGHTS, seal
from voxelgate.core.errors import BundleError
from voxelgate.datasets.manifest import load_manifest
from voxelgate.training.bundle_checks import CHECKS, TRIAL_CASES, _trial_cases, pass_checks
from voxelgate.training.configs.bundle_files import write_bundle
from voxelgate.training.planning import Plan
from voxelgate.training.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_job(tmp_path_factory.mktemp("gates")))


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copied"))


@pytest.mark.slow
def test_a_trained_bundle_passes_every_gate_and_stays_as_it_was(trained: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert [passed.name for passed in pass_checks(trained)] == list(CHECKS)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_bundle_may_have_more_labels_than_its_patch_has_voxels_along_an_axis(trained: Path, tmp_path: Path) -> None:
    made = Plan.from_json(trained / "plan.json")
    labels = ("background", *(f"organ {number}" for number in range(made.patch_vox[0] + 5)))
    write_bundle(replace(made, labels=labels, trained_on={}), tmp_path / "bundle")
    assert len(load_manifest(_trial_cases(tmp_path / "bundle", tmp_path / "data")).cases) == TRIAL_CASES


def change(root: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
    path = root / "configs" / f"{name}.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    edit(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def lose_a_file(root: Path) -> None:
    (root / "docs" / "README.md").unlink()


def lose_a_field(root: Path) -> None:
    change(root, "metadata", lambda config: config.pop("copyright"))


def forget_the_changelog(root: Path) -> None:
    change(root, "metadata", lambda config: config.update(version="9.9.9"))


def claim_another_output(root: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["network_data_format"]["outputs"]["pred"]["num_channels"] = 5

    change(root, "metadata", edit)


def prepare_otherwise(root: Path) -> None:
    change(root, "train", lambda config: config["validate"]["preprocessing"]["transforms"].pop())


def change_a_number(root: Path) -> None:
    change(root, "train", lambda config: config.update(learning_rate=0.5))


def rename_an_id(root: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["trainer"] = config["train"].pop("trainer")

    change(root, "train", edit)
    (root / "plan.json").unlink()


def save_nothing(root: Path) -> None:
    change(root, "inference", lambda config: config["postprocessing"]["transforms"].pop())
    (root / "plan.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_file, r"files: .* lacks docs/README\.md"),
        (lose_a_field, "metadata: .*'copyright' is a required property"),
        (forget_the_changelog, r"metadata: .*changelog does not say what version 9\.9\.9 changed"),
        (claim_another_output, r"network: the network gives \(2, 8, 8, 8\), metadata\.json says \(5, 8, 8, 8\)"),
        (prepare_otherwise, "configs: .*prepare images in different ways"),
        (change_a_number, r"configs: configs/train\.json is not what plan\.json generates"),
        (rename_an_id, "properties: train.json lacks the ids train::trainer"),
    ],
)
def test_a_gate_refuses_what_it_is_there_for(copied: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copied)
    seal(copied)
    with pytest.raises(BundleError, match=message):
        list(pass_checks(copied))


def test_an_inference_that_saves_nothing_does_not_pass(copied: Path) -> None:
    save_nothing(copied)
    with pytest.raises(BundleError, match=r"inference\.json wrote 0 label maps of 2"):
        CHECKS["two iterations"](copied)


def test_weights_that_are_not_finite_do_not_pass(copied: Path) -> None:
    weights = torch.load(copied / WEIGHTS, weights_only=True)
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    torch.save(weights | {name: torch.full_like(weights[name], torch.nan)}, copied / WEIGHTS)
    seal(copied)
    with pytest.raises(BundleError, match="not finite"):
        list(pass_checks(copied))
