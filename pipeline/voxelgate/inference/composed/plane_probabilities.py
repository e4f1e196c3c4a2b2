"""Probabilities of an image that come plane by plane, and those of some classes in all planes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from voxelgate.core.geometry import Shape
from voxelgate.inference.restoring.class_scores import check_classes

Probabilities = npt.NDArray[Any]
"""(C, ...) float32, a channel for each class or region."""


class ProbablePlane(NamedTuple):
    """The probabilities of one plane of an image.

    Args:
        view: gives the planes of an array (..., i, j, k) on the grid of the image as (..., a, b, c), writable.
        number: of the plane.
        values: (C, b, c).
    """

    view: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    number: int
    values: Probabilities


def probabilities_in(scores: torch.Tensor, *, are_regions: bool) -> Probabilities:
    """Return probabilities (C, ...) of logits: of regions that may overlap, or of classes that exclude each other."""
    logits = scores.float()
    return (torch.sigmoid(logits) if are_regions else torch.softmax(logits, 0)).numpy(force=True)


def gathered(
    planes: Iterable[ProbablePlane], shape: Shape, channels: Sequence[int], *, are_regions: bool
) -> Probabilities:
    """Return the probabilities (channels, i, j, k) of some channels in all planes; background where there is no plane.

    Raises:
        UsageError: the planes have no such channel.
    """
    found = np.zeros((len(channels), *shape), np.float32)
    if not are_regions:
        found += np.equal(channels, 0)[:, None, None, None]
    for view, number, values in planes:
        check_classes(channels, len(values))
        view(found)[:, number] = values[list(channels)]
    return found
