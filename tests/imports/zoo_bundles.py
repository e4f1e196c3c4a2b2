"""Bundles laid out as those of MONAI's zoo, small and made on the spot, and where the real configs lie if they do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from voxelgate.bundle.imports.imported import Imported, ImportOptions
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.imports.zoo import read_zoo

ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"
"""Configs of the zoo's own bundles, beside the checkout where somebody has put them."""

NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
}

IMAGE = {"keys": "@image_key"}

PREPROCESSING = [
    {"_target_": "LoadImaged", **IMAGE},
    {"_target_": "EnsureChannelFirstd", **IMAGE},
    {"_target_": "Orientationd", **IMAGE, "axcodes": "RAS"},
    {"_target_": "Spacingd", **IMAGE, "pixdim": [2.0, 2.0, 2.0], "mode": "bilinear"},
    {"_target_": "ScaleIntensityRanged", **IMAGE, "a_min": -100, "a_max": 200, "b_min": 0, "b_max": 1, "clip": True},
    {"_target_": "EnsureTyped", **IMAGE, "device": "@device"},
]

SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
INVERSE = {
    "_target_": "Invertd",
    "keys": "pred",
    "transform": "@preprocessing",
    "orig_keys": "@image_key",
    "nearest_interp": False,
    "to_tensor": True,
}
SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}


def compose(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": steps}


def zoo_config(**changes: Any) -> dict[str, Any]:
    """Return an inference config as the zoo's are, with changed entries."""
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": "/workspace/bundle",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$list(sorted(glob.glob('/data/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": NETWORK,
        "network": "$@network_def.to(@device)",
        "preprocessing": compose(PREPROCESSING),
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 2, "overlap": 0.5},
        "postprocessing": compose([SOFTMAX, INVERSE, ARGMAX, SAVE]),
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "run": ["$@evaluator.run()"],
        **changes,
    }


def zoo_metadata(**output: Any) -> dict[str, Any]:
    names = {"0": "background", "1": "liver", "2": "spleen"}
    return {
        "version": "0.4.2",
        "monai_version": "1.4.0",
        "required_packages_version": {"nothing-that-is-here": "1.0"},
        "name": "Some organs",
        "description": "Finds organs",
        "authors": "somebody",
        "network_data_format": {
            "inputs": {"image": {"modality": "CT", "num_channels": 1, "channel_def": {"0": "image"}}},
            "outputs": {"pred": {"num_channels": 3, "channel_def": names, **output}},
        },
    }


def write_zoo_bundle(
    root: Path, config: dict[str, Any] | str | None = None, metadata: dict[str, Any] | None = None, name: str = ""
) -> Path:
    """Write a bundle with the weights of `NETWORK`; a text as config is written as it is."""
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    text = config if isinstance(config, str) else json.dumps(config or zoo_config())
    (root / "configs" / (name or "inference.json")).write_text(text)
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata or zoo_metadata()))
    (root / "LICENSE").write_text("MIT License\n\nCopyright somebody\n")
    torch.manual_seed(0)
    network = UNet(**{key: value for key, value in NETWORK.items() if key != "_target_"})
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


def imported_from(root: Path, **options: Any) -> Imported:
    with opened_source(root) as source:
        return read_zoo(source, ImportOptions(**options))


def zoo_bundle(name: str, out: Path) -> Path:
    """Return a copy of the configs and scripts of a bundle of the zoo, or skip the test."""
    if not (ZOO / name).is_dir():
        pytest.skip(f"the configs of {name} are not in {ZOO}")
    root = out / name
    for path in sorted((ZOO / name).rglob("*")):
        if path.is_file():
            (root / path.relative_to(ZOO / name)).parent.mkdir(parents=True, exist_ok=True)
            (root / path.relative_to(ZOO / name)).write_bytes(path.read_bytes())
    (root / "models").mkdir()
    return root


def write_search_code(path: Path) -> None:
    """Write a search code of DiNTS: four chains that go straight through twelve blocks."""
    code_a = np.zeros((12, 10))
    code_a[:, [0, 3, 6, 9]] = 1
    torch.save(
        {"arch_code_a": code_a, "arch_code_c": np.ones((12, 10)), "node_a": np.ones((13, 4)), "best": None}, path
    )
