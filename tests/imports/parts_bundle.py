"""A small imported bundle of two networks whose labels are joined: each is a threshold, on any machine, at once."""

import json
from pathlib import Path
from typing import Any

import torch

from voxelgate.bundle.imports.imported import Imported
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.core.labels import LabelTable

NAMES = ("background", "liver", "spleen", "left kidney", "right kidney")
WINDOW = {"_target_": "voxelgate.RestoringSlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.5}
NETWORK = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "kernel_size": 1}


def thresholds(*limits: float) -> dict[str, torch.Tensor]:
    """Return weights of a network that gives label n to what is brighter than the n-th limit, background below all."""
    weight = torch.arange(len(limits) + 1.0).reshape(-1, 1, 1, 1, 1)
    bias = -torch.tensor([0.0, *limits]).cumsum(0)
    return {"weight": weight, "bias": bias}


def parts_model(**changes: Any) -> Imported:
    """Return a model of two parts: above 100 lies the liver, above 200 the spleen; above 300 and 400 the kidneys."""
    parts = [
        {"_target_": "voxelgate.Part", "inferer": WINDOW, "networks": [0], "labels": [0, 1, 2]},
        {"_target_": "voxelgate.Part", "inferer": WINDOW, "networks": [1], "labels": [0, 3, 4]},
    ]
    states = thresholds(100, 200), thresholds(300, 400)
    fields = {
        "name": "two_parts",
        "version": "2.1.0",
        "description": "Finds four organs in two parts.",
        "network_def": {"_target_": "torch.nn.ModuleList", "modules": [{**NETWORK, "out_channels": 3}] * 2},
        "preparation": [],
        "inferer": {"_target_": "voxelgate.PartsInferer", "parts": parts},
        "state": {f"{place}.{name}": value for place, state in enumerate(states) for name, value in state.items()},
        "labels": LabelTable(NAMES),
        "channels": ("CT",),
        "modality": "CT",
        "spatial_shape": (16, 16, 16),
        "source_files": ("plans.json",),
        "licence": "CC BY-NC 4.0",
        "origin": {"trainer": "nnUNetTrainer"},
    }
    return Imported(**{**fields, **changes})


def write_parts_bundle(folder: Path, **changes: Any) -> Path:
    """Write the model as a bundle, with a made-up source."""
    source = folder / "source" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (source / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (source / name).write_text(json.dumps({}))
    torch.save({"network_weights": {}}, source / "fold_0" / "checkpoint_final.pth")
    with opened_source(source) as opened:
        write_imported(folder / "two_parts", parts_model(**changes), opened)
    return folder / "two_parts"
