"""How a prepared image looks, in a few numbers by which images of another kind, or damaged ones, stand out."""

import math

import numpy as np
import torch

from voxelgate.core.geometry import Grid

PERCENTILES = (5, 25, 50, 75, 95, 99)

SAMPLED = 200_000
"""Voxels from which percentiles are taken; more change the third digit."""

TINY = 1e-6


MOST_PLANES = 64
"""Places along an axis at which neighbouring planes are compared."""


def look_of(image: torch.Tensor, grid: Grid) -> dict[str, float]:
    """Return numbers that say how an image looks to a network.

    Brightness of what is not at the lowest value, how much that is, how rough the image is along each axis (noise,
    blur, a wrong spacing), how much brighter one half is than the other (turned and cut images), and its size.

    Args:
        image: (C, i, j, k) as the network gets it; channels are averaged.
        grid: of the image.
    """
    voxels = (image[0] if len(image) == 1 else image.mean(dim=0)).float().cpu()
    lowest = float(voxels.min())
    sampled = voxels.reshape(-1)[:: max(1, voxels.numel() // SAMPLED)]
    is_body = sampled > lowest + TINY
    body = sampled[is_body] if int(is_body.sum()) > 1 else sampled
    spread = float(body.std()) + TINY
    percentiles = np.percentile(body.numpy(), PERCENTILES).tolist()
    found = {f"percentile {rank}": value for rank, value in zip(PERCENTILES, percentiles, strict=True)}
    found |= {"body": float(is_body.float().mean()), "spread": spread}
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        found |= _along(voxels.movedim(axis, 0), name, spread)
        found[f"{name} size"] = math.log(grid.shape[axis] * grid.spacing_mm[axis])
    return found


def _along(planes: torch.Tensor, name: str, spread: float) -> dict[str, float]:
    """Return what changes along the first axis."""
    count = len(planes)
    if count < 3:  # no plane has two neighbours
        return {f"{name} steps": 0.0, f"{name} noise": 0.0, f"{name} halves": 0.0}
    places = torch.linspace(0, count - 3, min(MOST_PLANES, count - 2)).long()
    first, second, third = (planes[places + offset] for offset in range(3))
    step = float((second - first).abs().mean())
    bend = float((third - 2 * second + first).abs().mean())
    halves = float(planes[: count // 2].mean()) - float(planes[-(count // 2) :].mean())
    return {
        f"{name} steps": math.log(step / spread + TINY),
        f"{name} noise": math.log((bend + TINY) / (step + TINY)),
        f"{name} halves": halves / spread,
    }
