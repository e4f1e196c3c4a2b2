"""The frames of a DICOM Segmentation: which segment each shows, its pixels, and the voxels of a grid that it covers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.utils import iter_pixels

from voxelgate.core.geometry import AGREEMENT_TOLERANCE_MM, Affine, Grid

Voxels = npt.NDArray[Any]

POSITION_TOLERANCE = 0.25
"""Largest distance of a frame from the voxels it stands for, in voxels; `AGREEMENT_TOLERANCE_MM` limits it too."""


def segment_of(frame: Dataset, shared: Dataset) -> int:
    """Return the number of the segment that a frame of bits shows (PS3.3 C.8.20.3.1)."""
    identified = (frame if "SegmentIdentificationSequence" in frame else shared).SegmentIdentificationSequence
    return int(identified[0].ReferencedSegmentNumber)


def frame_affine(frame: Dataset, shared: Dataset) -> Affine:
    """Return (row, column) of a frame to LPS mm as (4, 4); its second column, across the frame, is empty."""
    orientation, measures, position = (
        (frame if keyword in frame else shared)[keyword].value[0]
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence", "PlanePositionSequence")
    )
    cosines = np.array(orientation.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    between_rows, between_columns = (float(value) for value in measures.PixelSpacing)
    affine = np.zeros((4, 4))
    affine[:3, 0], affine[:3, 1] = cosines[1] * between_rows, cosines[0] * between_columns
    affine[:, 3] = (*map(float, position.ImagePositionPatient), 1)
    return affine


def plane_of(labels: Voxels, to_voxels: Affine, size: tuple[int, ...], grid: Grid) -> Voxels | None:
    """Return the view of `labels` that a frame covers, or None if the frame does not lie on its voxels.

    Args:
        labels: (i, j, k).
        to_voxels: (row, column) of the frame to voxel index of `labels`.
        size: rows and columns of the frame.
        grid: of the labels, for the tolerance.
    """
    corners = np.array([(0, 0), (size[0] - 1, 0), (0, size[1] - 1), (size[0] - 1, size[1] - 1)])
    found = corners @ to_voxels[:3, :2].T + to_voxels[:3, 3]
    ends = np.rint(found).astype(int)
    tolerance_vox = np.minimum(AGREEMENT_TOLERANCE_MM / np.array(grid.spacing_mm), POSITION_TOLERANCE)
    row_axis, column_axis = np.abs(to_voxels[:3, :2]).argmax(axis=0)
    is_inside = (ends >= 0).all() and (ends < labels.shape).all()
    if not is_inside or row_axis == column_axis or (np.abs(found - ends) > tolerance_vox).any():
        return None
    index: list[Any] = ends[0].tolist()
    index[row_axis] = _index_steps(ends[0][row_axis], ends[1][row_axis])
    index[column_axis] = _index_steps(ends[0][column_axis], ends[2][column_axis])
    plane = labels[tuple(index)]
    plane = plane if row_axis < column_axis else plane.T
    return plane if plane.shape == size else None


def _index_steps(first: int, last: int) -> slice:
    if last >= first:
        return slice(first, last + 1)
    return slice(first, last - 1 if last else None, -1)


def pixel_frames(written: Dataset) -> Iterator[Voxels]:
    """Yield the pixels of each frame, (rows, columns); bits are unpacked here, other pixels by pydicom."""
    if written.BitsAllocated != 1 or written.file_meta.TransferSyntaxUID.is_compressed:
        yield from iter_pixels(written)
        return
    rows, columns, packed = written.Rows, written.Columns, np.frombuffer(written.PixelData, dtype=np.uint8)
    for frame in range(int(written.NumberOfFrames)):
        first, last = frame * rows * columns, (frame + 1) * rows * columns
        bits = np.unpackbits(packed[first // 8 : -(-last // 8)], bitorder="little")
        yield bits[first % 8 : first % 8 + rows * columns].reshape(rows, columns)
