"""Where an image is not zero: the box that nnU-Net crops to, and the voxels that count for its normalisation."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from voxelgate.core.geometry import Box, triple

Mask = npt.NDArray[np.bool_]


def is_nonzero(image: npt.NDArray[Any]) -> Mask:
    """Return where any channel (C, a, b, c) is not zero, (a, b, c)."""
    mask: Mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask


def nonzero_box(mask: Mask) -> Box:
    """Return the smallest box around what is True, or all of it if nothing is (`get_bbox_from_mask`).

    nnU-Net fills holes first, which lie inside of any box.

    >>> nonzero_box(np.arange(24).reshape(2, 3, 4) > 17)
    (slice(1, 2, None), slice(1, 3, None), slice(0, 4, None))
    """
    return triple(_nonzero_span(mask, axis) for axis in range(3))


def _nonzero_span(mask: Mask, axis: int) -> slice:
    found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, mask.shape[axis])


def without_holes(mask: Mask) -> Mask:
    """Return a mask, cropped or not, with its holes filled (`create_nonzero_mask`).

    Outside of the box that holds all of a mask nothing of it is left to enclose a hole, so that cropping comes first.
    """
    return mask if mask.all() else ndimage.binary_fill_holes(mask)
