"""Damage images on purpose, as scanners, exports and people do, so that a model of quality has seen bad results too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from voxelgate.core.geometry import Grid, triple


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image and its true labels.

    Args:
        voxels: (C, I, J, K) float32.
        grid: of both, RAS+ mm.
        truth: (I, J, K) label values.
    """

    voxels: npt.NDArray[np.float32]
    grid: Grid
    truth: npt.NDArray[Any]


NOISE = (0.03, 1.0)
"""Standard deviation of noise, in those of the image."""

BLUR_VOX = (0.7, 3.0)

SCALE = (1.15, 2.2)
"""By what the header gives a spacing too large or too small."""

LOST = (0.15, 0.7)
"""Part of an image that is lost along an axis."""

SHIFT = (0.05, 1.5)
"""By what all values are too high or too low, in standard deviations of the image."""

GAMMA = (1.3, 4.0)


def damaged(image: LabelledImage, kind: str, rng: np.random.Generator) -> LabelledImage:
    """Return an image with one of `DAMAGES`, and what is then true of it.

    Args:
        image: sound; it is not changed.
        kind: a name in `DAMAGES`.
        rng: draws how much.
    """
    return DAMAGES[kind](image, rng)


def _drawn_amount(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """Draw a number between limits above 0, as likely below as above their geometric mean."""
    low, high = limits
    return float(low * (high / low) ** rng.random())


def _noisy(image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    sd = _drawn_amount(rng, NOISE) * image.voxels.std()
    return replace(image, voxels=(image.voxels + rng.normal(0, sd, image.voxels.shape)).astype(np.float32))


def _blurred(image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    sigma = _drawn_amount(rng, BLUR_VOX)
    return replace(image, voxels=ndimage.gaussian_filter(image.voxels, (0, sigma, sigma, sigma)))


def _misscaled(image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    """Change the spacing along one axis, or along all."""
    factor = _drawn_amount(rng, SCALE) ** rng.choice((-1, 1))
    factors = np.ones(4)
    axis = rng.integers(4)
    factors[[0, 1, 2] if axis == 3 else axis] = factor
    return replace(image, grid=Grid(image.grid.shape, image.grid.affine @ np.diag(factors)))


def _emptied(image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    """Lose what the image shows in a part of it, whose structures are still there in truth."""
    axis, part = _lost(image, rng)
    voxels = image.voxels.copy()
    np.moveaxis(voxels, 1 + axis, 0)[part] = voxels.min()
    return replace(image, voxels=voxels)


def _cropped_away(image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    """Lose a part of the image and of the truth."""
    axis, part = _lost(image, rng)
    size = image.grid.shape[axis]
    kept = slice(part.stop, size) if part.start == 0 else slice(0, part.start)
    box = triple(kept if other == axis else slice(0, n) for other, n in enumerate(image.grid.shape))
    return LabelledImage(image.voxels[(slice(None), *box)], image.grid.cropped(box), image.truth[box])


def _lost(image: LabelledImage, rng: np.random.Generator) -> tuple[int, slice]:
    axis = int(rng.choice([axis for axis, size in enumerate(image.grid.shape) if size > 1]))
    size = image.grid.shape[axis]
    count = min(size - 1, max(1, round(size * _drawn_amount(rng, LOST))))
    return axis, slice(0, count) if rng.random() < 0.5 else slice(size - count, size)


def _value_shifted(image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    """Add something to all values, as a wrong rescale intercept does."""
    return replace(
        image, voxels=image.voxels + np.float32(rng.choice((-1, 1)) * _drawn_amount(rng, SHIFT) * image.voxels.std())
    )


def _regraded(image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    """Turn black to white, or bend the scale of grey values."""
    low, high = float(image.voxels.min()), float(image.voxels.max())
    if rng.random() < 0.5:
        return replace(image, voxels=low + high - image.voxels)
    part = (image.voxels - low) / (high - low)
    return replace(
        image, voxels=low + (high - low) * part ** np.float32(_drawn_amount(rng, GAMMA) ** rng.choice((-1, 1)))
    )


def _turned_round(image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    """Turn an axis round without telling the header, so that up is down, or front is back.

    Left and right are not exchanged: a network that learnt from mirrored images cannot see it, nor can what it says.
    """
    sagittal = int(np.abs(image.grid.affine[0, :3]).argmax())
    axis = int(rng.choice([axis for axis, size in enumerate(image.grid.shape) if size > 1 and axis != sagittal]))
    return LabelledImage(np.flip(image.voxels, 1 + axis).copy(), image.grid, np.flip(image.truth, axis).copy())


DAMAGES: Mapping[str, Callable[[LabelledImage, np.random.Generator], LabelledImage]] = {
    "noise": _noisy,
    "spacing": _misscaled,
    "cut": _emptied,
    "shift": _value_shifted,
    "flip": _turned_round,
    "blur": _blurred,
    "crop": _cropped_away,
    "grades": _regraded,
}
