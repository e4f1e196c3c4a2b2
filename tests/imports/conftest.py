"""What tests of imports share: a folder where bundles are kept, and a small model that was read."""

from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from voxelgate.bundle.imports.imported import Imported
from voxelgate.core.labels import LabelTable
from voxelgate.networks import AttentionUNet

NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [[2, 2, 2]]}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder where bundles are kept, not there yet."""
    monkeypatch.setenv("VOXELGATE_BUNDLES", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def imported() -> Imported:
    """Return a small model as a reader returns it."""
    torch.manual_seed(0)
    return Imported(
        name="tiny",
        version="1.0.0",
        description="Finds a kidney and a blob.",
        network_def={"_target_": "voxelgate.AttentionUNet", **NETWORK},
        preparation=[
            {"_target_": "voxelgate.OrderDicomd", "keys": "image", "axcodes": "LAS"},
            {"_target_": "voxelgate.NormalizeImaged", "keys": "image"},
        ],
        inferer={"_target_": "voxelgate.RestoringSlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.5},
        state=AttentionUNet(**NETWORK).state_dict(),
        labels=LabelTable(("background", "left kidney", "blob")),
        channels=("CT",),
        modality="CT",
        spatial_shape=(16, 16, 16),
        source_files=("plans.json", "fold_0/checkpoint_final.pth"),
        origin={"trainer": "nnUNetTrainer", "folds": ["0"]},
        extra_files={"source/plans.json": b"{}\n"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that looks like one of nnU-Net's, of one configuration."""
    root = tmp_path / "results" / "Dataset004_Blob" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (root / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (root / name).write_text("{}")
    torch.save({"network_weights": {}}, root / "fold_0" / "checkpoint_final.pth")
    return root


@pytest.fixture
def repository_bundle() -> Path:
    """Return a bundle that comes with the program."""
    return REPOSITORY / "bundles" / "hippocampus_mri_segmentation"
