"""Scores or probabilities of an image that come plane by plane, so that those of all planes never exist."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from voxelgate.core.geometry import Shape
from voxelgate.inference.restoring.class_scores import check_classes
from voxelgate.inference.restoring.placement import in_file_order

Probabilities = npt.NDArray[Any]
"""(C, ...) float32, a channel for each class or region."""


class Planes(NamedTuple):
    """What is known of an image, one plane after another.

    Args:
        view: gives the planes of an array (..., i, j, k) on the grid of the image as (..., a, b, c), writable.
        values: of each plane, in order: logits (C, b, c), or their probabilities.
    """

    view: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    values: Iterator[Any]


def probabilities_in(logits: torch.Tensor, *, are_regions: bool) -> Probabilities:
    """Return probabilities (C, ...) of logits: of regions that may overlap, or of classes that exclude each other."""
    scores = logits.float()
    return (torch.sigmoid(scores) if are_regions else torch.softmax(scores, 0)).numpy(force=True)


def probable(planes: Planes, *, are_regions: bool) -> Planes:
    """Return the probabilities of logits; see `probabilities_in`."""
    return planes._replace(values=(probabilities_in(logits, are_regions=are_regions) for logits in planes.values))


def gathered(planes: Planes, shape: Shape, channels: Sequence[int], *, are_regions: bool) -> Probabilities:
    """Return the probabilities (channels, i, j, k) of some channels in all planes; background where there is no plane.

    Raises:
        UsageError: the planes have no such channel.
    """
    found = in_file_order(len(channels), shape, np.float32)
    if not are_regions:
        found += np.equal(channels, 0)[:, None, None, None]
    view = planes.view(found)
    for number, values in enumerate(planes.values):
        check_classes(channels, len(values))
        view[:, number] = values[list(channels)]
    return found
