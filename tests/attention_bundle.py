"""A small CT bundle whose network has attention gates, trained on nothing."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.threshold_bundle import make_threshold_bundle
from voxelgate.bundle.checksums import seal
from voxelgate.networks import AttentionUNet

NETWORK = {"in_channels": 1, "out_channels": 2, "channels": [2, 4, 4], "norm": "none"}
LEVELS = (0, 1)


def make_attention_bundle(root: Path, **arguments: Any) -> Path:
    """Write a sealed bundle; arguments of `AttentionUNet` may be given."""
    make_threshold_bundle(root)
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text("utf-8"))
    config["network_def"] = {"_target_": "voxelgate.AttentionUNet", **NETWORK, **arguments}
    config["inferer"]["roi_size"] = [12, 12, 12]
    path.write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    torch.save(AttentionUNet(**(NETWORK | arguments)).state_dict(), root / "models" / "model.pt")
    seal(root)
    return root
