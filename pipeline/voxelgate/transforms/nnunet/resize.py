"""Resize an array as `skimage.transform.resize` does, in memory for its spline coefficients and some planes.

That function (mode "edge", no anti-aliasing) is `scipy.ndimage.zoom` in float64 and a clip to the range of the input.
Here the same spline filter runs in place, and the same sums are taken by `scipy.ndimage.map_coordinates` some planes at
a time, in several threads, for SciPy lets go of the interpreter. Every float64 value is the same.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

Values = npt.NDArray[Any]
Positions = npt.NDArray[np.float64]

PADDING = 12
"""Voxels that SciPy repeats at each border before it filters (`_prepad_for_spline_filter`)."""

BLOCK_VOXELS = 2**20
"""Voxels that a thread works on at a time, at least one plane; their positions take 24 MiB."""


def positions_of(new_size: int, size: int) -> Positions:
    """Return where the centres of `new_size` voxels lie among `size` voxels of the same extent, in voxels.

    >>> positions_of(2, 4).tolist()
    [0.5, 2.5]
    """
    scale = size / new_size
    return np.asarray((np.arange(new_size, dtype=np.float64) + 0.5) * scale - 0.5)


def resize_into(out: Values, values: Values, order: int, *, is_clipped: bool = True) -> None:
    """Write an array, resized, into another one.

    Args:
        out: array to be written, of the new shape; values are rounded to its type.
        values: of as many axes, at least one; any real type and memory layout, all finite.
        order: of the spline, 0 to 5.
        is_clipped: whether no value may be beyond those of `values`, as skimage has it.
    """
    if out.shape == values.shape:
        out[...] = values
        return
    limits = (values.min(), values.max()) if is_clipped else None
    rows = [positions_of(new, size) for new, size in zip(out.shape, values.shape, strict=True)]
    if order > 1:
        values, rows = coefficients(values, order), [row + PADDING for row in rows]
    interpolate_into(out, values, rows, order, limits)


def coefficients(values: Values, order: int) -> npt.NDArray[np.float64]:
    """Return the coefficients of a spline through values that are repeated at the border, with `PADDING` around."""
    padded = np.empty([size + 2 * PADDING for size in values.shape])
    inner = (slice(PADDING, -PADDING),) * values.ndim
    padded[inner] = values
    for axis in range(values.ndim):  # an axis after the other, so that corners are filled as well
        lines = np.moveaxis(padded, axis, 0)
        lines[:PADDING], lines[-PADDING:] = lines[PADDING], lines[-PADDING - 1]
    for axis in range(values.ndim):
        _filter_along(padded, axis, order)
    return padded


def _filter_along(padded: npt.NDArray[np.float64], axis: int, order: int) -> None:
    """Filter every line along an axis in place; lines know nothing of each other."""
    if padded.ndim == 1:
        ndimage.spline_filter1d(padded, order, axis, output=padded, mode="nearest")
        return
    across = 1 if axis == 0 else 0

    def work(start: int, stop: int) -> None:
        part = padded[(slice(None),) * across + (slice(start, stop),)]
        ndimage.spline_filter1d(part, order, axis, output=part, mode="nearest")

    in_parts(work, padded.shape[across], padded.size // padded.shape[across])


def interpolate_into(
    out: Values, values: Values, rows: Sequence[Positions], order: int, limits: tuple[Any, Any] | None = None
) -> None:
    """Write the values of a spline at every combination of positions along the axes; beyond the border the border's.

    Args:
        out: array to be written.
        values: coefficients of the spline; the values themselves for orders 0 and 1.
        rows: for each axis as many positions as `out` has voxels, in voxels of `values`.
        order: of the spline.
        limits: least and largest value of the result.
    """

    def work(start: int, stop: int) -> None:
        part = (rows[0][start:stop], *rows[1:])
        places = np.empty((len(part), *map(len, part)))
        for place, row, axis in zip(places, part, range(len(part)), strict=True):
            place[...] = row.reshape([-1 if other == axis else 1 for other in range(len(part))])
        found = ndimage.map_coordinates(values, places, np.float64, order, mode="nearest", prefilter=False)
        out[start:stop] = found if limits is None else np.clip(found, *limits, out=found)

    in_parts(work, len(out), out.size // len(out))


def in_parts(work: Callable[[int, int], None], count: int, voxels_each: int) -> None:
    """Call something for parts of `count` things, from a first to the one behind the last.

    It is done in as many threads as PyTorch may use in this one, if there is more than one part.

    Args:
        work: what to call; calls know nothing of each other.
        count: how many things there are.
        voxels_each: of a thing; a part has `BLOCK_VOXELS`.
    """
    edges = [*range(0, count, max(1, BLOCK_VOXELS // voxels_each)), count]
    workers = min(torch.get_num_threads(), len(edges) - 1)
    if workers == 1:
        for start, stop in pairwise(edges):
            work(start, stop)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))
