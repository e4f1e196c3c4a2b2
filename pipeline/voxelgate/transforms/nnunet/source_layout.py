"""The array and the spacing that a reader of nnU-Net would have made of an image, and where each voxel of it lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from nibabel.orientations import io_orientation

from voxelgate.core.geometry import Affine, Box, Grid, triple

Spacing = tuple[float, float, float]

PICTURE_SPACING = (1.0, 1.0, 999.0)
"""Of a picture along i, j, k for `NaturalImage2DIO`."""

PARALLEL_TOLERANCE = 1e-3
"""Largest sine of an angle between axes, and relative deviation of voxel sizes, that count as none."""


class NnUNetReader(StrEnum):
    """The classes of nnU-Net that read images, by the names that plans use."""

    SITK = "SimpleITKIO"
    SITK_RAS = "SimpleITKIOWithReorient"
    NIBABEL = "NibabelIO"
    NIBABEL_RAS = "NibabelIOWithReorient"
    PICTURE = "NaturalImage2DIO"

    @property
    def reorients(self) -> bool:
        """Return whether images are brought to RAS first."""
        return self in {NnUNetReader.SITK_RAS, NnUNetReader.NIBABEL_RAS}


@dataclass(frozen=True)
class SourceLayout:
    """How the axes of an image become those of nnU-Net's transposed array.

    Args:
        reader: that nnU-Net would read the image with.
        order: for x, y and z of that reader the spatial axis of the image.
        is_flipped: for each of these, whether it runs against the image's.
        sizes_mm: for each of these, the size of a voxel that the reader tells.
        transposed: `transpose_forward` of the plans, of z, y and x.
    """

    reader: NnUNetReader
    order: tuple[int, int, int]
    is_flipped: tuple[bool, bool, bool]
    sizes_mm: Spacing
    transposed: tuple[int, int, int]

    @classmethod
    def of(cls, image: MetaTensor, reader: NnUNetReader, transposed: tuple[int, int, int]) -> Self:
        """Return the layout of an image (C, i, j, k)."""
        affine = Grid.of(image).affine
        turn = io_orientation(affine) if reader.reorients else np.array([(axis, 1) for axis in range(3)])
        order = triple(int(axis) for axis in np.argsort(turn[:, 0]))
        is_flipped = triple(bool(turn[axis, 1] < 0) for axis in order)
        sizes_mm = header_spacing(image)
        if reader is NnUNetReader.PICTURE:
            sizes_mm = PICTURE_SPACING
        elif reader is NnUNetReader.NIBABEL_RAS and (order != (0, 1, 2) or any(is_flipped)):
            sizes_mm = triple(float(np.float32(size)) for size in _lengths(affine))  # nibabel writes a new header
        return cls(reader, order, is_flipped, triple(sizes_mm[axis] for axis in order), transposed)

    @property
    def spacing_mm(self) -> Spacing:
        """Return the size of a voxel along each axis of the array."""
        return triple(self.sizes_mm[2 - axis] for axis in self.transposed)

    def array(self, image: torch.Tensor, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
        """Return the voxels (C, i, j, k) of an image in nnU-Net's transposed axes and memory layout.

        It is dense in the order z, y, x, but after nibabel's turning to RAS in that of the file, and shares the memory
        of the image if that is so already. Not to be changed.
        """
        flips = tuple(1 + axis for axis, flip in zip(self.order, self.is_flipped, strict=True) if flip)
        stored = np.flip(image.numpy(force=True), flips).transpose(0, 3, 2, 1)
        turned = (0, *(3 - self.order[2 - axis] for axis in range(3)))
        if self.reader is NnUNetReader.NIBABEL_RAS:
            read = np.require(stored, dtype, "C").transpose(turned)
        else:
            read = np.require(stored.transpose(turned), dtype, "C")
        return read.transpose(0, *(1 + axis for axis in self.transposed))

    def grid(self, source: Grid, box: Box, shape: Sequence[int]) -> Grid:
        """Return where a box of the array lies that was resampled to a shape.

        Args:
            source: grid of the image.
            box: of the array.
            shape: of the box afterwards.
        """
        to_source = np.zeros((4, 4))
        to_source[3, 3] = 1
        for axis, (span, size) in enumerate(zip(box, shape, strict=True)):
            along, flip = self.order[2 - self.transposed[axis]], self.is_flipped[2 - self.transposed[axis]]
            scale = (span.stop - span.start) / size
            first = span.start + 0.5 * scale - 0.5
            to_source[along, axis] = -scale if flip else scale
            to_source[along, 3] = source.shape[along] - 1 - first if flip else first
        return Grid(triple(shape), source.affine @ to_source)


def header_spacing(image: MetaTensor) -> Spacing:
    """Return the voxel sizes along i, j, k that the header of the file states, free of the rounding of an affine.

    They are the `spacing` of its metadata, which our readers give and MONAI's `ITKReader`, or the `pixdim` of MONAI's
    `NibabelReader`; they belong to the axes of `original_affine`, and follow axes that changed places since. Where the
    image was resampled since, or nothing is stated, it is the length of the affine's columns.
    """
    affine, stated = Grid.of(image).affine, image.meta.get("spacing")
    if stated is None and (pixdim := image.meta.get("pixdim")) is not None:
        stated = np.asarray(pixdim).ravel()[1:4]
    if stated is None:
        return _lengths(affine)
    sizes = np.abs(np.asarray(stated, dtype=np.float64).ravel())
    original = np.asarray(image.meta.get("original_affine", affine), dtype=np.float64).reshape(4, 4)
    steps = np.abs(np.linalg.solve(original[:3, :3], affine[:3, :3]))
    source_of = steps.argmax(axis=0)
    is_kept = np.allclose(steps, np.eye(3)[source_of].T, rtol=0, atol=PARALLEL_TOLERANCE)
    if not is_kept or len(sizes) != 3 or not (sizes > 0).all():
        return _lengths(affine)
    return triple(float(sizes[axis]) for axis in source_of)


def _lengths(affine: Affine) -> Spacing:
    return triple(float(size) for size in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
