"""Prepare an image for a bundle, and let its network say what is in it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor

from voxelgate.core.errors import UsageError
from voxelgate.core.labels import LabelTable


def flip_dice(
    image: MetaTensor,
    network: torch.nn.Module,
    inferer: Callable[[MetaTensor, torch.nn.Module], MetaTensor],
    labels: npt.NDArray[Any],
    table: LabelTable,
) -> dict[str, float]:
    """Return how well a result agrees with that of the mirrored image: Dice of each structure, NaN if in neither.

    The network sees left and right exchanged, and the two sides of paired structures are exchanged in what it says. An
    inferer that averages over this mirroring agrees with itself and should be asked without.

    Args:
        image: (1, C, i, j, k) on the network grid, as `inferer` takes it.
        network: as `inferer` takes it.
        inferer: gives labels (1, 1, I, J, K) on the source grid.
        labels: (I, J, K), what it gave for `image`.
        table: what the labels mean.

    Raises:
        UsageError: a structure has a side but no partner, so that nobody knows what its mirror image should be called.
    """
    if table.unpaired_sides:
        raise UsageError(
            f"{', '.join(table.unpaired_sides)}: has no structure of the other side to be compared with in a mirrored "
            "image; leave out --check-flips."
        )
    mirror_of = np.arange(len(table.names))
    for low, high in table.side_pairs:
        mirror_of[[low, high]] = high, low
    mirrored = inferer(_mirrored(image), network).as_tensor()[0, 0].cpu().numpy()
    sizes = np.zeros((3, len(table.names)))
    for plane, other in zip(labels, mirrored, strict=True):  # one at a time: bincount makes int64 of them
        renamed = mirror_of[other]
        for row, values in enumerate((plane, renamed, plane[plane == renamed])):
            sizes[row] += np.bincount(values.ravel(), minlength=len(table.names))
    with np.errstate(invalid="ignore"):
        dice = 2 * sizes[2] / (sizes[0] + sizes[1])
    return {name: float(dice[value]) for value, name in table.foreground.items()}


def _mirrored(image: MetaTensor) -> MetaTensor:
    """Return the image as a network sees it in a mirror; the affine tells that its voxels run the other way."""
    affine = image.affine.reshape(4, 4).clone()
    axis = int((affine[0, :3].abs() / affine[:3, :3].norm(dim=0)).argmax())  # the one that runs from left to right
    affine[:3, 3] += affine[:3, axis] * (image.shape[2 + axis] - 1)
    affine[:3, axis] *= -1
    return MetaTensor(image.as_tensor().flip(2 + axis), meta={**image.meta, "affine": affine})
