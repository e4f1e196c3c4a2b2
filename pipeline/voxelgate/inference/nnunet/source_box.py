"""Where the image of an nnU-Net network lies in the grid that was read: which axes, turned which way, cropped how."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError
from voxelgate.core.geometry import Box, Grid, Shape, triple

STRAY_VOX = 0.1
"""How far, in voxels of the source grid, an axis of the network grid may stray from it by rounding of affines."""


@dataclass(frozen=True)
class SourceBox:
    """The part of the source grid that was resampled for the network.

    Args:
        axes: axis of the source grid along each axis of the network grid.
        is_flipped: whether the network's axis runs the other way.
        box: the part, in the axes of the source grid.
    """

    axes: Shape
    is_flipped: tuple[bool, bool, bool]
    box: Box

    @property
    def size_vox(self) -> Shape:
        """Return the size of the part, in the axes of the network grid."""
        return triple(self.box[axis].stop - self.box[axis].start for axis in self.axes)

    def view(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the part of an array (..., I, J, K) as a view in the axes of the network grid."""
        kept = array.ndim - 3
        part = array[(..., *self.box)].transpose(*range(kept), *(kept + axis for axis in self.axes))
        return np.flip(part, tuple(kept + axis for axis, flipped in enumerate(self.is_flipped) if flipped))


def source_box(source: Grid, network: Grid) -> SourceBox:
    """Return which part of the source grid the network grid covers, voxel edges on voxel edges.

    Raises:
        InputError: its axes are not those of the source grid, or it does not cover whole voxels of it.
    """
    to_source = np.linalg.inv(source.affine) @ network.affine
    steps = to_source[:3, :3]
    axes = np.abs(steps).argmax(axis=0)
    along = steps[axes, range(3)]
    across = steps.copy()
    across[axes, range(3)] = 0
    counts = np.abs(along) * network.shape
    first = to_source[axes, 3] - (np.abs(along) - 1) / 2 * np.sign(along)  # centre of the first source voxel
    starts = np.where(along > 0, first, first - counts + 1)
    strays = max(np.abs(across * network.shape).max(), *(np.abs(n - np.rint(n)).max() for n in (counts, starts)))
    stops = np.rint(starts + counts)
    limits = np.array(source.shape)[axes]
    if len(set(axes.tolist())) != 3 or strays > STRAY_VOX or (np.rint(starts) < 0).any() or (stops > limits).any():
        raise InputError(
            "the prepared image is turned against the file, or covers no whole voxels of it; prepare it with "
            "voxelgate.NnUNetPreprocessd."
        )
    spans = {int(axis): slice(round(a), round(b)) for axis, a, b in zip(axes, starts, stops, strict=True)}
    return SourceBox(triple(map(int, axes)), triple(bool(step < 0) for step in along), (spans[0], spans[1], spans[2]))
