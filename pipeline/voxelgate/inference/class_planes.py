"""Scores or probabilities of an image that come plane by plane, so that those of all planes never exist."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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


def certainty_in(probabilities: Probabilities, regions: Sequence[int] | None) -> npt.NDArray[np.float64]:
    """Return (2, labels): the sum of each label's probability over the voxels that have it, and how many have it.

    Args:
        probabilities: (C, ...).
        regions: labels of channels that may overlap; None for classes that exclude each other.
    """
    if regions is None:
        highest, likeliest = probabilities.max(axis=0).ravel(), probabilities.argmax(axis=0).ravel()
        size = len(probabilities)
        return np.stack([np.bincount(likeliest, weights, size) for weights in (highest, np.ones_like(highest))])
    sums = np.zeros((2, 1 + max(regions)))
    for label, region in zip(regions, probabilities, strict=True):
        inside = region[region > 0.5]
        sums[:, label] += inside.sum(dtype=np.float64), len(inside)
    return sums


def confidence_of(certainty: Iterable[npt.NDArray[np.float64]]) -> torch.Tensor:
    """Return the mean probability (labels,) float32 of each label; NaN for the background and what is nowhere."""
    sums, counts = np.sum(list(certainty), axis=0)
    means = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    means[0] = np.nan
    return torch.from_numpy(means.astype(np.float32))


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
