"""A threshold bundle whose network also hangs, kills its process or wants much memory, where the image asks for it."""

import json
import os
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import nn

from tests.threshold_bundle import HIGH_HU, LOW_HU, make_threshold_bundle
from voxelgate.bundle.checksums import seal
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer

SLOW_HU, HANGING_HU, DEADLY_HU, HUNGRY_HU = 500, 600, 700, 800
"""Brightest value of an image that makes the network take 0.2 s, hang, die, or want memory for each voxel."""

HUNGRY_BYTES = 2**13
"""For each voxel of a window: 2 GiB for 64 x 64 x 64."""

AFFINE = np.array([[0.0, -2.0, 0.0, 10.0], [1.0, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 30.0], [0.0, 0.0, 0.0, 1.0]])


class MoodyNetwork(nn.Conv3d):
    """A threshold that looks at the brightest voxel first."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        brightest_hu = round(float(image.max()) * (HIGH_HU - LOW_HU) + LOW_HU)
        if brightest_hu == SLOW_HU:
            time.sleep(0.2)
        if brightest_hu == HANGING_HU:
            time.sleep(3600)
        if brightest_hu == DEADLY_HU:
            os.kill(os.getpid(), signal.SIGKILL)
        if brightest_hu == HUNGRY_HU:
            torch.empty(image.numel() * HUNGRY_BYTES, dtype=torch.uint8)
        return super().forward(image)


class ShortOfMemory(RestoringSlidingWindowInferer):
    """Never has the memory to stream."""

    def _prepared(self, *_: object) -> None:
        return None


def make_moody_bundle(root: Path) -> Path:
    """Write a sealed bundle."""
    make_threshold_bundle(root)
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text("utf-8"))
    config["network_def"]["_target_"] = "tests.batch_bundle.MoodyNetwork"
    path.write_text(json.dumps(config), encoding="utf-8")
    seal(root)
    return root


def save_case(path: Path, brightest_hu: int = 400, *, size: int = 16, seed: int = 0) -> Path:
    """Write a CT-like volume with a bright block; equal arguments give equal files."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(0, 30, (size, size, size)).astype(np.int16)
    start = rng.integers(1, size // 2, 3)
    end = start + rng.integers(3, size // 2, 3)
    voxels[tuple(map(slice, start, end))] = 300
    voxels[tuple(start)] = brightest_hu
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path
