"""Data sets of other kinds than one 3D channel: flat images, and several channels, from plan to measured weights."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from tests.manifest_files import write_document
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import InputError, ManifestError
from voxelgate.datasets.check_manifest import check_manifest
from voxelgate.datasets.manifest import load_manifest
from voxelgate.datasets.survey import survey
from voxelgate.images.spec import ImageSpec
from voxelgate.training.configs.bundle_files import write_bundle
from voxelgate.training.planning import Budget, Plan, Training, plan
from voxelgate.training.train import TrainingJob, evaluate_fold, train
from voxelgate.transforms import ChannelsReader

CASES = 4
QUICK = Training(epochs=4, steps_per_epoch=12, batch_size=4, learning_rate=0.02, warmup_steps=2, average_decay=0.8)
BETTER_THAN_CHANCE = 0.5
"""Mean Dice on cases that were not seen; a network that learned nothing stays below 0.2 on both data sets."""


def save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), path)


def disc(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    centre = [rng.integers(n // 3, n - n // 3) if n > 1 else 0 for n in shape]
    return (np.linalg.norm(np.indices(shape).T - centre, axis=-1).T < 5).astype(np.uint8)


def write_data(folder: Path, shape: tuple[int, int, int], channels: int) -> Path:
    """Write discs that only the difference of the last channel to the first shows, and their manifest."""
    rng, rows = np.random.default_rng(0), []
    for case in range(CASES):
        label = disc(shape, rng)
        base = rng.normal(50, 10, shape)
        files = [f"images/{case}_{channel}.nii.gz" for channel in range(channels)]
        for channel, name in enumerate(files):
            shown = 60 * label if channel == channels - 1 else 0
            save(folder / name, (base + shown).astype(np.float32))
        save(folder / "labels" / f"{case}.nii.gz", label)
        image = files[0] if channels == 1 else files
        rows.append({"image": image, "label": f"labels/{case}.nii.gz", "subject": f"s{case}", "fold": case % 2})
    modality = {str(channel): "MRI" for channel in range(channels)}
    document = {"name": "discs", "licence": "CC0-1.0", "modality": modality, "training": rows}
    names = {} if channels == 1 else {"channels": {str(channel): f"T{channel + 1}" for channel in range(channels)}}
    write_document(document | names | {"labels": {"0": "background", "1": "disc"}}, folder / "manifest.json")
    return folder / "manifest.json"


def trained_on(manifest: Path, folder: Path) -> tuple[Plan, float]:
    """Plan, train briefly with a small network, and return the plan and the mean Dice of the fold that was not seen."""
    made = plan(survey(load_manifest(manifest)).fingerprint, Budget(minutes=1))
    strides = made.strides[:1]
    small = replace(
        made,
        channels=(8, 16),
        strides=strides,
        network={},
        training=QUICK,
        augmentation=replace(made.augmentation, noise=0.0, gamma=0.0, contrast=0.0),
    )
    write_bundle(small, folder / "bundle")
    out = train(TrainingJob(folder / "bundle", manifest, folder / "out", overrides={"precision": "float32"}))
    scores = evaluate_fold(out, manifest, folder / "scores")
    open_bundle(out)
    return made, float(np.mean([score.dice for score in scores]))


@pytest.mark.slow
def test_flat_images_plan_and_train_as_one_slice(tmp_path: Path) -> None:
    manifest = write_data(tmp_path / "data", (40, 36, 1), channels=1)
    made, dice = trained_on(manifest, tmp_path)
    assert made.patch_vox[2] == 1
    assert all(stride[2] == 1 for stride in made.strides)
    assert made.min_slices == 1
    assert dice > BETTER_THAN_CHANCE


def test_flat_images_are_turned_in_their_plane_only(tmp_path: Path) -> None:
    manifest = write_data(tmp_path / "data", (40, 36, 1), channels=1)
    write_bundle(plan(survey(load_manifest(manifest)).fingerprint), tmp_path / "b")
    parser = ConfigParser()
    parser.read_config(tmp_path / "b" / "configs" / "train.json")
    (affine,) = [s for s in parser.get("train#random_transforms") if s["_target_"] == "RandAffined"]
    assert [angle > 0 for angle in affine["rotate_range"]] == [False, False, True]
    assert affine["scale_range"] == [0.2, 0.2, 0.0]


@pytest.mark.slow
def test_two_channels_plan_and_train_where_one_alone_would_not_do(tmp_path: Path) -> None:
    manifest = write_data(tmp_path / "data", (28, 26, 14), channels=2)
    made, dice = trained_on(manifest, tmp_path)
    assert made.image_channels == ("T1", "T2")
    assert dice > BETTER_THAN_CHANCE
    opened = open_bundle(tmp_path / "out")
    assert opened.image_spec == ImageSpec(("T1", "T2"))
    with torch.no_grad():
        assert opened.network(torch.zeros(1, 2, 16, 16, 16)).shape[1] == 2


def test_channels_on_different_grids_are_refused_by_manifest_check_and_by_reader(tmp_path: Path) -> None:
    manifest = write_data(tmp_path / "data", (28, 26, 14), channels=2)
    odd = tmp_path / "data" / "images" / "0_1.nii.gz"
    save(odd, np.zeros((28, 26, 15), np.float32))
    with pytest.raises(InputError, match=r"0_1\.nii\.gz: on another grid than 0_0\.nii\.gz"):
        ChannelsReader().get_data((odd.with_name("0_0.nii.gz"), odd))
    found = survey(load_manifest(manifest)).defects
    assert [(defect.case_id, defect.is_left_out) for defect in found] == [("0_0", True)]


def test_a_case_without_one_of_its_channels_is_refused(tmp_path: Path) -> None:
    manifest = write_data(tmp_path / "data", (28, 26, 14), channels=2)
    text = manifest.read_text(encoding="utf-8").replace(
        '["images/0_0.nii.gz", "images/0_1.nii.gz"]', '"images/0_0.nii.gz"'
    )
    manifest.write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=r"images/0_0\.nii\.gz: holds 1 volume, expected 2"):
        check_manifest(load_manifest(manifest))
