"""The outlines of structures in a slice, as closed lines: SVG for pages, points for pictures."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import find_contours

Lines = list[npt.NDArray[np.float64]]
"""Closed lines, each (points, 2): x to the right and y down, pixels; the last point is the first one."""

Outlines = Mapping[int, Lines]
"""Of each structure, by its label value."""

ROUNDED_FROM_PX = 2.0
"""Voxels from this size on show their corners, which are cut."""

TOLERANCE_PX = 0.15
"""Points are left out that are not farther from the line between their neighbours."""

THINNINGS = 6
"""How often that is tried, with every second point each time."""

TENTHS = 10
"""Paths count tenths of pixels, so that they are short whole numbers."""


def outlines_of(labels: npt.NDArray[np.integer[Any]], scale: tuple[float, float]) -> dict[int, Lines]:
    """Return the outlines of each structure in a slice, halfway between its voxels and the others.

    Args:
        labels: label values, (rows, columns); those below 1 are no structures.
        scale: pixels of a voxel, across and down.
    """
    values = np.unique(labels)
    return {int(value): _outlines(labels == value, scale) for value in values[values > 0]}


def svg_paths(outlines: Outlines) -> dict[int, str]:
    """Return the outlines of each structure as the data of an SVG path, in tenths of pixels."""
    return {value: "".join(map(_path, lines)) for value, lines in outlines.items()}


def _outlines(mask: npt.NDArray[np.bool_], scale: tuple[float, float]) -> Lines:
    lines = []
    for contour in find_contours(np.pad(mask, 1).astype(np.float32), 0.5):
        points = (contour[:, ::-1] - 0.5) * scale  # padding moved voxels by one, and their middle is at a half
        if min(scale) >= ROUNDED_FROM_PX:
            points = _corners_cut(_corners_cut(points))
        lines.append(_with_fewer_points(points))
    return lines


def _corners_cut(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cut the corners of a closed line (Chaikin 1974, doi:10.1016/0146-664X(74)90028-8)."""
    starts, ends = points[:-1], points[1:]
    cut = np.stack([0.75 * starts + 0.25 * ends, 0.25 * starts + 0.75 * ends], axis=1).reshape(-1, 2)
    return np.concatenate([cut, cut[:1]])


def _with_fewer_points(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Leave out points that a straight line replaces, all at once, for outlines of vessels have tens of thousands."""
    for turn in range(THINNINGS):
        if len(points) < 5:
            break
        middles = np.arange(1 + turn % 2, len(points) - 1, 2)
        before, after = points[middles - 1], points[middles + 1]
        chord, offset = after - before, points[middles] - before
        area = np.abs(chord[:, 0] * offset[:, 1] - chord[:, 1] * offset[:, 0])
        is_straight = area <= TOLERANCE_PX * np.maximum(np.hypot(*chord.T), TOLERANCE_PX)
        points = np.delete(points, middles[is_straight], axis=0)
    return points


def _path(points: npt.NDArray[np.float64]) -> str:
    """Return one closed line, its first point as it is and the others as steps."""
    tenths = np.rint(points[:-1] * TENTHS).astype(int)
    steps = np.diff(tenths, axis=0)
    return f"M{_numbers(tenths[:1])}l{_numbers(steps[steps.any(axis=1)])}z"


def _numbers(points: Iterable[npt.NDArray[np.int_]]) -> str:
    """Return numbers with no more between them than SVG needs."""
    return " ".join(f"{x} {y}" for x, y in points).replace(" -", "-")
