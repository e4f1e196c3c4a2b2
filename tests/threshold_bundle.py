"""A small CT bundle whose network is a threshold: everything brighter than 150 HU is femur, on any machine, at once."""

import json
from pathlib import Path

import torch

from voxelgate.bundle.checksums import seal

LOW_HU, HIGH_HU = -850.0, 1150.0
"""Window whose middle, 150 HU, is the threshold."""

LABELS = {"0": "background", "1": "femur"}


def make_threshold_bundle(root: Path, labels: dict[str, str] | None = None, **metadata: object) -> Path:
    """Write a sealed bundle; further metadata such as `series_rule` may be given."""
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    names = labels or LABELS
    document = {
        "name": "bright_ct",
        "version": "1.0.0",
        "network_data_format": {
            "inputs": {"image": {"modality": "CT"}},
            "outputs": {"pred": {"channel_def": names}},
        },
        **metadata,
    }
    (root / "configs" / "metadata.json").write_text(json.dumps(document), encoding="utf-8")
    window = {"_target_": "voxelgate.WindowHUd", "keys": "image", "low_hu": LOW_HU, "high_hu": HIGH_HU}
    config = {
        "device": "$torch.device('cpu')",
        "imports": ["$import torch"],
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": len(names), "kernel_size": 1},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "voxelgate.VolumeReader"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
                window,
            ],
        },
        "inferer": {
            "_target_": "voxelgate.RestoringSlidingWindowInferer",
            "roi_size": [64, 64, 64],
            "overlap": 0.0,
        },
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    weight = torch.zeros(len(names), 1, 1, 1, 1)
    weight[1] = 1.0
    bias = torch.full((len(names),), -9.0)
    bias[:2] = torch.tensor([0.5, 0.0])
    torch.save({"weight": weight, "bias": bias}, root / "models" / "model.pt")
    seal(root)
    return root
