"""What scores and image say of each label, beyond which one wins: sums over the voxels of the network grid."""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from voxelgate.inference.restoring.class_scores import Codes, ScoreKind, Scores

Sums = npt.NDArray[np.float64]
"""(labels, `Sum`): a row for each label from the background, a column for each kind of sum."""

CERTAIN_LOGIT = 4.6
"""Distance of the background's logit to all others beyond which a voxel tells nothing: less than 1 % for each."""

CERTAIN_BACKGROUND = 0.99

UNSURE = (0.1, 0.9)
"""Probabilities between which a voxel may or may not belong to a structure."""


class Sum(IntEnum):
    """Columns of sums; p is the probability of the label."""

    VOXELS = 0
    """Voxels that have it."""
    OWN = 1
    """p over the voxels that have it."""
    ALL = 2
    """p over all voxels."""
    SQUARED = 3
    """p squared over all voxels."""
    WIDE = 4
    """Voxels with p above the lower bound of `UNSURE`."""
    NARROW = 5
    """Voxels with p above the upper bound of `UNSURE`."""
    VALUE = 6
    """Value of the prepared image, mean of its channels, over the voxels that have it."""
    VALUE_SQUARED = 7
    """The same squared."""
    LEAST = 8
    """Least p of all views over all voxels; 0 if there is one view."""
    MOST = 9
    """Largest p of all views over all voxels; 0 if there is one view."""


def open_voxels(kind: ScoreKind, scores: Scores, codes: Codes) -> npt.NDArray[np.int64]:
    """Return the flat indices in (n, H, W) of voxels that may be more than background.

    Args:
        kind: what the scores are.
        scores: (classes, n, H, W).
        codes: (n, H, W), the decisions.
    """
    if kind.regions is not None:
        return np.flatnonzero(codes)
    is_open = np.empty(codes.shape, bool)
    for voxels, plane in zip(is_open, scores.swapaxes(0, 1), strict=True):
        if kind.are_probabilities:
            np.less(plane[0], CERTAIN_BACKGROUND, out=voxels)
        else:
            np.greater(plane[1:].max(axis=0) + CERTAIN_LOGIT, plane[0], out=voxels)
    return np.flatnonzero(is_open)


def label_sums(kind: ScoreKind, scores: Scores, codes: Codes, values: Scores) -> Sums:
    """Return the sums over some voxels.

    Args:
        kind: what the scores are.
        scores: (classes, N); they become probabilities.
        codes: (N,), the decisions.
        values: (N,), of the prepared image.
    """
    probabilities = kind.probabilities(scores, out=scores)
    sums = np.zeros((1 + kind.highest_label(len(scores)), len(Sum)))
    if kind.regions is None:
        owned = [(label, codes == label) for label in np.unique(codes).tolist()]
        rows = list(range(len(scores)))
    else:
        owned = [(label, (codes & (1 << bit)) != 0) for bit, label in enumerate(kind.regions)]
        rows = list(kind.regions)
    for channel, label in enumerate(rows):
        p = probabilities[channel]
        sums[label, Sum.ALL] += p.sum(dtype=np.float64)
        sums[label, Sum.SQUARED] += np.square(p).sum(dtype=np.float64)
        sums[label, Sum.WIDE] += np.count_nonzero(p > UNSURE[0])
        sums[label, Sum.NARROW] += np.count_nonzero(p > UNSURE[1])
    for place, (label, has_it) in enumerate(owned):
        p = probabilities[label if kind.regions is None else place]
        own = values[has_it].astype(np.float64)
        sums[label, Sum.VOXELS] += np.count_nonzero(has_it)
        sums[label, Sum.OWN] += p[has_it].sum(dtype=np.float64)
        sums[label, Sum.VALUE] += own.sum()
        sums[label, Sum.VALUE_SQUARED] += np.square(own).sum()
    return sums
