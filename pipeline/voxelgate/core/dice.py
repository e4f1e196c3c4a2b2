"""The Dice coefficient: twice what two masks share by what they hold together; Dice 1945, doi:10.2307/1932409."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.labels import LabelTable

Mask = npt.NDArray[np.bool_]


def dice_of_sizes(common: int, size: int, other_size: int) -> float:
    """Return the Dice of two masks of these sizes, NaN if both are empty.

    >>> dice_of_sizes(2, 3, 5)
    0.5
    """
    return 2 * common / (size + other_size) if size + other_size else math.nan


def dice_of_masks(mask: Mask, other: Mask) -> float:
    """Return the Dice of two masks of one shape, NaN if both are empty."""
    return dice_of_sizes(*(int(np.count_nonzero(one)) for one in (mask & other, mask, other)))


def dice_of_labels(
    labels: Iterable[npt.NDArray[Any]], others: Iterable[npt.NDArray[Any]], table: LabelTable
) -> dict[str, float]:
    """Return the Dice of each structure by name, NaN if neither map holds it; `evaluate` measures surfaces too.

    Args:
        labels: planes of label values up to 65535, such as an array (I, J, K); those without a name are passed over.
        others: the same number of planes, of the same shapes.
        table: what the values mean.
    """
    names = len(table.names)
    sizes = np.zeros((3, names), dtype=np.int64)
    for plane, other in zip(labels, others, strict=True):  # one at a time: bincount makes int64 of them
        one, two = plane.astype(np.uint16, copy=False), other.astype(np.uint16, copy=False)
        for row, values in enumerate((one[one == two], one, two)):
            sizes[row] += np.bincount(values.ravel(), minlength=names)[:names]
    return {name: dice_of_sizes(*sizes[:, value].tolist()) for value, name in table.foreground.items()}
