"""Outlines of masks along the edges of their pixels, and the way back from outlines to masks.

An outline runs where a pixel inside meets one outside, so its corners lie half a pixel from pixel centres, its area is
that of its pixels, and filling it gives them back. Pixels that touch only at a corner are separate. A hole is joined to
its outline by a channel of no width (PS3.3 C.8.8.6.3), which runs along pixel edges and meets no pixel centre.

Our own, since contours of scikit-image and OpenCV run through pixel centres, from which the mask cannot be had back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

EAST, SOUTH, WEST, NORTH = range(4)

HOLES_AT_ONCE = 256
"""Holes whose channels are sought together; each is compared with every upward edge of its slice."""

FLATNESS_VOX = 0.1
"""Largest extent of an outline across its plane; headers keep less than a thousandth of a voxel."""


class Outline(NamedTuple):
    """A closed outline: its slice, and its corners (row, column) as pixel edges; pixel centres have whole numbers."""

    plane: int
    corners: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Corners:
    """Corners of pixel edges with the way in and out; inside lies to the right, seen with rows downwards."""

    plane: Ints
    row: Ints
    column: Ints
    way_in: Ints
    way_out: Ints


def outlines(mask: Bools) -> list[Outline]:
    """Return the outlines of a mask, those of each 4-connected piece of each slice by itself.

    Args:
        mask: (slices, rows, columns).

    Returns:
        Outlines with holes joined in by channels; straight edges have no points between their ends.
    """
    corners = _corners_of(mask)
    followers = _followers(corners)
    loops, is_hole = _loops(corners, followers)
    row, column = corners.row.tolist(), corners.column.tolist()
    follower: list[int] = followers.tolist()
    starts = [loop[0] for loop, hole in zip(loops, is_hole, strict=True) if not hole]
    tops = [min(loop, key=lambda c: (row[c], column[c])) for loop, hole in zip(loops, is_hole, strict=True) if hole]
    _join_holes(corners, np.array(tops, dtype=np.int64), (row, column, follower))
    plane = corners.plane.tolist()
    return [Outline(plane[start], _closed(start, row, column, follower)) for start in starts]


def filled(contours: Sequence[npt.NDArray[np.float64]], shape: tuple[int, int, int]) -> npt.NDArray[np.int16] | None:
    """Count for each voxel how many contours surround its centre; the inverse of `outlines`, made another way.

    Args:
        contours: corners (n, 3) as voxel index of a volume; each contour lies in a plane of voxel centres.
        shape: of the volume.

    Returns:
        (i, j, k), even-odd rule for each contour alone; None if contours are not planar, between planes or outside.
    """
    sizes = [len(contour) for contour in contours]
    points = np.concatenate(contours)
    firsts = np.cumsum([0, *sizes[:-1]])
    extent = np.maximum.reduceat(points, firsts) - np.minimum.reduceat(points, firsts)
    across = int(extent.max(axis=0).argmin())
    plane = np.rint(points[firsts, across]).astype(np.int64)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    if np.abs(points[:, across] - plane[owner]).max() > FLATNESS_VOX:
        return None
    if (points.min(axis=0) < -0.75).any() or (points.max(axis=0) > np.array(shape) - 0.25).any():
        return None
    following = np.arange(1, len(points) + 1)
    following[firsts + np.array(sizes) - 1] = firsts
    along, down = (axis for axis in range(3) if axis != across)
    contour, line, crossing = _crossings(points[:, (along, down)], following, owner)
    counts = np.zeros((shape[across], shape[down], shape[along] + 1), dtype=np.int16)
    begin, end = np.ceil(crossing[0::2]).astype(np.int64), np.ceil(crossing[1::2]).astype(np.int64)
    np.add.at(counts, (plane[contour[0::2]], line[0::2], begin), 1)
    np.add.at(counts, (plane[contour[0::2]], line[0::2], end), -1)
    inside = np.cumsum(counts, axis=2, dtype=np.int16)[..., :-1]
    return np.moveaxis(inside, (0, 1, 2), (across, down, along))


def _corners_of(mask: Bools) -> _Corners:
    """Find where the edge of the mask turns, from the four pixels around each vertex of the pixel grid."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    up_left, up_right = padded[:, :-1, :-1], padded[:, :-1, 1:]
    low_left, low_right = padded[:, 1:, :-1], padded[:, 1:, 1:]
    turns = (
        (low_right & ~up_right & ~low_left, NORTH, EAST),
        (up_right & ~up_left & ~low_right, WEST, NORTH),
        (up_left & ~up_right & ~low_left, SOUTH, WEST),
        (low_left & ~up_left & ~low_right, EAST, SOUTH),
        (up_left & up_right & low_left & ~low_right, WEST, SOUTH),
        (up_left & low_left & low_right & ~up_right, SOUTH, EAST),
        (up_right & low_left & low_right & ~up_left, EAST, NORTH),
        (up_left & up_right & low_right & ~low_left, NORTH, WEST),
    )
    found = [(np.stack(np.nonzero(here)), way_in, way_out) for here, way_in, way_out in turns]
    places = np.concatenate([place for place, _, _ in found], axis=1)
    counts = [place.shape[1] for place, _, _ in found]
    ways = np.repeat([[way_in, way_out] for _, way_in, way_out in found], counts, axis=0)
    return _Corners(places[0], places[1], places[2], ways[:, 0], ways[:, 1])


def _followers(corners: _Corners) -> Ints:
    """Return for each corner the next one along the edge.

    Edges of one direction on one line do not overlap, so the n-th that leaves meets the n-th that arrives.
    """
    followers = np.empty(len(corners.row), dtype=np.int64)
    for way in (EAST, SOUTH, WEST, NORTH):
        line, along = (corners.row, corners.column) if way in (EAST, WEST) else (corners.column, corners.row)
        order = np.lexsort((along, line, corners.plane))
        followers[order[corners.way_out[order] == way]] = order[corners.way_in[order] == way]
    return followers


def _loops(corners: _Corners, followers: Ints) -> tuple[list[list[int]], list[bool]]:
    """Return the corners of each closed loop, and whether it runs around a hole: against the clock."""
    row, column = corners.row, corners.column
    turned = (column * row[followers] - column[followers] * row).tolist()
    follower = followers.tolist()
    is_seen = bytearray(len(follower))
    loops, is_hole = [], []
    for start in range(len(follower)):
        if is_seen[start]:
            continue
        loop, doubled_area, corner = [], 0, start
        while not is_seen[corner]:
            is_seen[corner] = 1
            loop.append(corner)
            doubled_area += turned[corner]
            corner = follower[corner]
        loops.append(loop)
        is_hole.append(doubled_area < 0)
    return loops, is_hole


def _join_holes(corners: _Corners, tops: Ints, chain: tuple[list[int], list[int], list[int]]) -> None:
    """Cut a channel from the upper left corner of each hole to the left, up to the first edge; lengthens the chain.

    Around that corner all but the hole's own pixel are inside, so the channel starts inside; the edge it meets has its
    inside to the right, so it runs upwards, and it belongs to the outline or to a hole above or further left: every
    hole ends up joined to an outline.

    Args:
        corners: of all loops.
        tops: for each hole its uppermost corner, the leftmost of these.
        chain: row, column and follower of each corner; changed in place.
    """
    row, column, follower = chain
    edges = _edges_left_of(corners, tops, np.array(follower, dtype=np.int64))
    tails: dict[int, int] = {}
    for top, edge in sorted(zip(tops.tolist(), edges, strict=True), key=lambda pair: -row[pair[0]]):
        tail = tails.get(edge, edge)
        arrival, departure, back = len(row), len(row) + 1, len(row) + 2
        row += [row[top]] * 3
        column += [column[edge], column[top], column[edge]]
        follower += [departure, follower[top], follower[tail]]
        follower[tail], follower[top], tails[edge] = arrival, back, back


def _edges_left_of(corners: _Corners, tops: Ints, followers: Ints) -> list[int]:
    """Return for each corner the upward edge next to its left in its row, named by the corner where the edge begins."""
    upward = np.nonzero(corners.way_out == NORTH)[0]
    upward = upward[np.argsort(corners.plane[upward], kind="stable")]
    nearest = np.empty(len(tops), dtype=np.int64)
    for plane in np.unique(corners.plane[tops]):
        edges = upward[slice(*np.searchsorted(corners.plane[upward], (plane, plane + 1)))]
        x, low, high = corners.column[edges], corners.row[edges], corners.row[followers[edges]]
        here = np.nonzero(corners.plane[tops] == plane)[0]
        for some in np.array_split(here, -(-len(here) // HOLES_AT_ONCE)):
            top_row, top_column = corners.row[tops[some], None], corners.column[tops[some], None]
            is_met = (x < top_column) & (high <= top_row) & (top_row <= low)
            nearest[some] = edges[np.where(is_met, x, -1).argmax(axis=1)]
    return [int(edge) for edge in nearest]


def _closed(start: int, row: list[int], column: list[int], follower: list[int]) -> npt.NDArray[np.float64]:
    """Return the corners of a loop, each once where a channel begins at a corner."""
    points = np.array(list(_walk(start, row, column, follower)), dtype=np.float64)
    is_new = (points != np.roll(points, 1, axis=0)).any(axis=1)
    corners: npt.NDArray[np.float64] = points[is_new] - 0.5
    return corners


def _walk(start: int, row: list[int], column: list[int], follower: list[int]) -> Iterator[tuple[int, int]]:
    corner = start
    while True:
        yield row[corner], column[corner]
        corner = follower[corner]
        if corner == start:
            return


def _crossings(points: npt.NDArray[np.float64], following: Ints, owner: Ints) -> tuple[Any, Any, Any]:
    """Return where contours cross lines of voxel centres: contour, line and place, sorted, so that pairs are inside."""
    (begin_along, begin_down), (end_along, end_down) = points.T, points[following].T
    low, high = np.ceil(np.minimum(begin_down, end_down)), np.ceil(np.maximum(begin_down, end_down))
    count = (high - low).astype(np.int64)
    edge = np.repeat(np.arange(len(points)), count)
    line = low[edge].astype(np.int64) + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    part = (line - begin_down[edge]) / (end_down - begin_down)[edge]
    crossing = begin_along[edge] + part * (end_along - begin_along)[edge]
    order = np.lexsort((crossing, line, owner[edge]))
    return owner[edge][order], line[order], crossing[order]
