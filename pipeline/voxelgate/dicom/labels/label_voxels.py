"""DICOM SEG and RTSTRUCT as label maps on the grid of the series that they were drawn on; nothing is resampled."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from voxelgate.core.errors import InputError
from voxelgate.core.geometry import LPS_TO_RAS, Affine, Grid, triple
from voxelgate.dicom.labels.label_objects import (
    CLASSES,
    CLOSED,
    LabelKind,
    read_labels_dataset,
)
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.seg_frames import frame_affine, pixel_frames, plane_of, segment_of
from voxelgate.dicom.read.series_paths import series_at
from voxelgate.dicom.write.outlines import filled
from voxelgate.dicom.write.seg_kind import SegKind

logger = logging.getLogger(__name__)

Labels = npt.NDArray[np.int32]

FARTHEST_OUTSIDE = 1.0
"""How far an outline may lead out of its image, as a part of the image: that of a body does, by some pixels."""


@dataclass(frozen=True)
class DicomLabels:
    """The labels of a file on the grid of a series.

    Args:
        path: of a SEG or RTSTRUCT.
        image: the series, as `series_path` names it.
        numbers: label value of each segment that counts; others are background.
    """

    path: Path
    image: Path
    numbers: Mapping[int, int]

    def __str__(self) -> str:
        """Return the path of the file."""
        return str(self.path)

    def grid(self) -> Grid:
        """Return the grid of the series.

        Raises:
            InputError: the series is not there.
        """
        return series_at(self.image).grid

    def read(self) -> tuple[Labels, Grid]:
        """Return the label map (I, J, K) on the grid of the series.

        Raises:
            InputError: as for `labels_on`, or the series is not there.
        """
        grid = self.grid()
        return labels_on(grid, self.path, self.numbers), grid


def labels_on(grid: Grid, path: Path, numbers: Mapping[int, int]) -> Labels:
    """Return the segments of a SEG or RTSTRUCT as a label map; of those that overlap the highest value stands.

    A voxel belongs to a structure of a RTSTRUCT if an odd number of its outlines surround the centre of the voxel, so
    that an outline within another is a hole; what `write_rtstruct` wrote comes back as it was.

    Args:
        grid: of the series, RAS+ mm.
        path: of the file.
        numbers: label value of each segment that counts, all of them from 1; others are background.

    Raises:
        InputError: it cannot be read, or does not lie on the voxels of the grid.
    """
    dataset = read_labels_dataset(path, has_pixels=True)
    canvas = _Canvas(np.zeros(grid.shape, np.int32, order="F"), Counter())
    paint = _paint_frames if CLASSES[str(dataset.SOPClassUID)] is LabelKind.SEG else _paint_outlines
    try:
        with quiet_pydicom():
            paint(dataset, grid, numbers, canvas)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    except Exception as error:  # pydicom and its decoders raise nearly anything on damaged input
        raise InputError(f"{path.name}: its segments cannot be read; export it again.") from error
    for (low, high), voxels in sorted(canvas.overlaps.items()):
        logger.warning("%s: %d voxels are both %d and %d; they count as %d.", path.name, voxels, low, high, high)
    return canvas.labels


@dataclass(frozen=True)
class _Canvas:
    """A label map to paint on, and how many voxels two values share."""

    labels: Labels
    overlaps: Counter[tuple[int, int]]

    def paint(self, part: npt.NDArray[Any], mask: npt.NDArray[np.bool_], value: int) -> None:
        """Give a value to the voxels of a mask, in a part of the labels, where they have no higher one."""
        before = part[mask]
        shared = before[(before != 0) & (before != value)]
        for other, voxels in zip(*np.unique(shared, return_counts=True), strict=True):
            self.overlaps[min(int(other), value), max(int(other), value)] += int(voxels)
        part[mask] = np.maximum(before, value)


def _paint_frames(seg: Dataset, grid: Grid, numbers: Mapping[int, int], canvas: _Canvas) -> None:
    shared = seg.SharedFunctionalGroupsSequence[0]
    to_voxels = np.linalg.inv(grid.affine) @ LPS_TO_RAS
    is_label_map = seg.SegmentationType == SegKind.LABELMAP.upper()
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, pixel_frames(seg), strict=True):
        present = np.unique(pixels).tolist() if is_label_map else [segment_of(frame, shared)]
        wanted = [number for number in present if number in numbers]
        if not wanted or not pixels.any():
            continue
        plane = plane_of(canvas.labels, to_voxels @ frame_affine(frame, shared), pixels.shape, grid)
        if plane is None:
            raise InputError("a frame does not lie on the voxels of its series; export it again, unresampled.")
        for number in wanted:
            canvas.paint(plane, pixels == number if is_label_map else pixels != 0, numbers[number])


def _paint_outlines(structures: Dataset, grid: Grid, numbers: Mapping[int, int], canvas: _Canvas) -> None:
    to_voxels = np.asarray(np.linalg.inv(grid.affine) @ LPS_TO_RAS, np.float64)
    for roi in structures.get("ROIContourSequence") or ():
        value = numbers.get(int(roi.ReferencedROINumber))
        closed = [c for c in roi.get("ContourSequence") or () if c.get("ContourGeometricType") in CLOSED]
        if value is None or not closed:
            continue
        _paint_structure([_corners_in_voxels(contour, to_voxels) for contour in closed], grid, value, canvas)


def _corners_in_voxels(contour: Dataset, to_voxels: Affine) -> npt.NDArray[np.float64]:
    """Return the corners of an outline as voxel index, (n, 3)."""
    raw = contour.get_item("ContourData").value
    texts = raw.split(b"\\") if isinstance(raw, bytes) else raw  # pydicom spends microseconds on each number it reads
    points_lps_mm = np.array(texts, np.float64).reshape(-1, 3)
    corners: npt.NDArray[np.float64] = points_lps_mm @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    return corners


def _paint_structure(contours: list[npt.NDArray[np.float64]], grid: Grid, value: int, canvas: _Canvas) -> None:
    points = np.concatenate(contours)
    shape = np.array(grid.shape)
    if not np.isfinite(points).all() or (np.abs(points - shape / 2) > shape / 2 + FARTHEST_OUTSIDE * shape).any():
        raise InputError("an outline lies far outside of its series; export it again.")
    low = np.floor(points.min(axis=0)).astype(int)
    high = np.ceil(points.max(axis=0)).astype(int) + 1
    counts = filled([contour - low for contour in contours], triple(map(int, high - low)))
    if counts is None:
        raise InputError("outlines do not lie in the slices of its series; export them on it again.")
    first, last = np.maximum(low, 0), np.minimum(high, shape)
    if (first >= last).any():
        return
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    inner = tuple(slice(int(a), int(b)) for a, b in zip(first - low, last - low, strict=True))
    canvas.paint(canvas.labels[box], counts[inner] % 2 == 1, value)
