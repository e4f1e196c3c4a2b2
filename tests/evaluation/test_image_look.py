"""How images look: what is done to them shows."""

import math

import numpy as np
import torch
from scipy import ndimage

from voxelgate.core.geometry import Grid
from voxelgate.evaluation.image_look import look_of

GRID = Grid((20, 24, 28), np.diag([1.0, 1.0, 2.0, 1.0]))
SMOOTH = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(1, *GRID.shape)), (0, 3, 3, 3)).astype(
    np.float32
)


def look(voxels: np.ndarray, grid: Grid = GRID) -> dict[str, float]:
    return look_of(torch.from_numpy(np.ascontiguousarray(voxels)), grid)


def test_noise_makes_an_image_rough_along_every_axis() -> None:
    noise = np.random.default_rng(1).normal(0, SMOOTH.std(), SMOOTH.shape).astype(np.float32)
    plain, noisy = look(SMOOTH), look(SMOOTH + noise)

    for name in ("sagittal", "coronal", "axial"):
        assert noisy[f"{name} steps"] > plain[f"{name} steps"]
        assert noisy[f"{name} noise"] > plain[f"{name} noise"]


def test_an_axis_that_is_turned_round_is_brighter_at_the_other_end() -> None:
    ramp = SMOOTH + np.linspace(0, 1, GRID.shape[2], dtype=np.float32)

    assert look(ramp)["axial halves"] == -look(ramp[..., ::-1])["axial halves"]


def test_sizes_are_those_of_the_patient() -> None:
    assert math.isclose(look(SMOOTH)["axial size"], math.log(56))


def test_flat_and_empty_images_have_a_look_too() -> None:
    flat = look(np.zeros((2, 5, 5, 1), np.float32), Grid((5, 5, 1), np.eye(4)))

    assert all(map(math.isfinite, flat.values()))
