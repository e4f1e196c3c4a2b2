"""Bring class scores back to the voxels before resampling, as MONAI's `Invertd` would, and decide there by slabs."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from scipy.sparse import csr_array

from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.geometry import Box, Grid, Shape, triple
from voxelgate.inference.chain.blending import Slab
from voxelgate.inference.chain.chain_steps import Decision
from voxelgate.inference.chain.way_back import Sampling, placed_like, sampling_of, turned_back, unsampled
from voxelgate.inference.windows import body_box
from voxelgate.transforms.affine_slabs import SLAB_POSITIONS, AffineSampling

Float64s = npt.NDArray[np.float64]

MIXED_SCORES = 2**22
"""Scores that are interpolated at a time, as float64: 32 MiB."""

CORNERS = tuple(product((0, 1), repeat=3))
"""Of a cell of the sampled grid, its last axis fastest, as `grid_sample` adds them up
(aten/src/ATen/native/GridSampler.cpp)."""

INTERPOLATED = ("bilinear", "area")

EDGE_VOX = 1e-6
"""Rows are given so much more than they were reckoned to need; positions are products of float64."""

INTEGER_TOLERANCE = 1e-3
"""How far turns and crops may seem to lie off the voxels: affines are products of float64."""


@dataclass(frozen=True, eq=False)
class _Turn:
    """How the grid that was sampled lies among the swept voxels of the network: turned, mirrored, and cropped.

    Args:
        axes: for each swept axis of the network, the axis of the sampled grid that runs along it.
        signs: 1 or -1, for each.
        offsets: position of the sampled grid's first voxel along each.
        ends: first and last voxel of the network along each that lies on the sampled grid; what was padded does not.
        count: slices of the network.
        sampled_size: voxels of the sampled grid along its own axes.
    """

    axes: Shape
    signs: Shape
    offsets: Shape
    ends: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    count: int
    sampled_size: Shape

    @property
    def is_cropped(self) -> bool:
        """Return whether some of the sampled grid lies outside of what the network saw; there all scores are 0."""
        return any(
            high - low + 1 < self.sampled_size[axis] for (low, high), axis in zip(self.ends, self.axes, strict=True)
        )

    @property
    def across(self) -> tuple[slice, slice]:
        """Return the rows and columns of the network that lie on the sampled grid."""
        (top, bottom), (left, right) = self.ends[1:]
        return slice(top, bottom + 1), slice(left, right + 1)

    def swept_ends(self) -> tuple[int, int]:
        """Return the first and the last position along the sweep that a voxel can have, the rim of a crop included."""
        ends = [self.signs[0] * at + self.offsets[0] for at in (0, self.sampled_size[self.axes[0]] - 1)]
        low, high = self.ends[0]
        return max(min(ends), low - 1), min(max(ends), high + 1)

    def cells(self, positions: list[torch.Tensor]) -> "_Cells":
        """Return between which voxels of the network positions lie, one array for each axis of the sampled grid."""
        corners: list[tuple[torch.Tensor, torch.Tensor]] = []
        shares: list[tuple[torch.Tensor, torch.Tensor]] = []
        for axis, place in enumerate(positions):
            swept = self.axes.index(axis)
            inside = place.clamp(0, self.sampled_size[axis] - 1)
            low, high = inside.floor(), inside.ceil()  # equal on a voxel, whose neighbours may be gone
            shares.append((low + 1 - inside, inside - low))
            sign, offset, (least, most) = self.signs[swept], self.offsets[swept], self.ends[swept]
            at_both = [(sign * end.long() + offset).clamp(least - 1, most + 1) for end in (low, high)]
            corners.append((at_both[0], at_both[1]))
        return _Cells(tuple(corners[axis] for axis in self.axes), tuple(shares[axis] for axis in self.axes), self.axes)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Between which voxels of the network some positions lie; what is beyond its ends is the rim of zeros.

    Args:
        corners: for each swept axis, the voxels on both sides, in the order of the sampled grid.
        shares: float64, for each of them.
        axes: of the sampled grid, that run along the swept ones.
    """

    corners: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    shares: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    axes: Shape

    def ends(self, axis: int) -> tuple[int, int]:
        """Return the first and the last voxel that is needed along a swept axis."""
        return min(int(one.min()) for one in self.corners[axis]), max(int(one.max()) for one in self.corners[axis])

    def flat(self, base: Shape, size: Shape) -> torch.Tensor:
        """Return the flat index of each position's cell, in a block of so many cells from a voxel on."""
        i, j, k = (
            (torch.minimum(*pair) - start).clamp(0, n - 1)
            for pair, start, n in zip(self.corners, base, size, strict=True)
        )
        return (i * size[1] + j) * size[2] + k

    def interpolated(
        self, scores: npt.NDArray[np.float64], base: Shape, size: Shape, part: torch.Tensor
    ) -> torch.Tensor:
        """Return the scores (classes, M) float32 at some of the positions, in the order and rounding of `grid_sample`.

        Args:
            scores: (n * H * W, classes) of a block.
            base: its first voxel.
            size: n, H and W.
            part: flat indices of the positions.
        """
        strides = size[1] * size[2], size[2], 1
        at = np.empty((len(part), len(CORNERS)), np.int32)
        shares = np.empty((len(part), len(CORNERS)))
        steps = [
            [((side.reshape(-1)[part] - start) * stride).numpy() for side in pair]
            for pair, start, stride in zip(self.corners, base, strides, strict=True)
        ]
        by_axis = [[side.reshape(-1)[part].numpy() for side in self.shares[self.axes.index(axis)]] for axis in range(3)]
        for column, corner in enumerate(CORNERS):
            at[:, column] = sum(pair[corner[axis]] for pair, axis in zip(steps, self.axes, strict=True))
            shares[:, column] = by_axis[2][corner[2]] * by_axis[1][corner[1]] * by_axis[0][corner[0]]
        ends = np.arange(0, at.size + 1, len(CORNERS), dtype=np.int32)
        found = csr_array((shares.reshape(-1), at.reshape(-1), ends), shape=(len(part), len(scores))) @ scores
        return torch.from_numpy(found).float().T


class ScoresBack:
    """Take slabs of scores along an axis of the network grid, and give labels on the grid before the sampling.

    Where all network voxels around a voxel decide alike, so does it, since interpolation keeps order; elsewhere scores
    are interpolated in float64 and rounded to float32, as MONAI does it.

    Args:
        image: (C, i, j, k) as the network got it, with its operations.
        axis: of the network grid, along which slabs come.
        decision: what scores become.

    Raises:
        BundleError: turns and crops after the sampling do not lie on its voxels.
    """

    def __init__(self, image: MetaTensor, axis: int, decision: Decision) -> None:
        self.decision = decision
        probe = turned_back(placed_like(torch.ones(image.shape[1:], dtype=torch.uint8), image))
        self.sampling = sampling_of(probe)
        seen = body_box(probe.as_tensor()[None], 0)
        if seen is None:
            raise BundleError("what the network saw was cropped and padded away; use --faithful.")
        self._turn = _turn_between(Grid.of(image), Grid.of(probe), axis, seen)
        self._rows = _Rows.of(self.sampling, self._turn) if self.sampling is not None else None
        self._probe = probe[:, :1, :1, :1].clone()

    @property
    def interpolates(self) -> bool:
        """Return whether scores change on their way; if not, labels can go it as well."""
        return self.sampling is not None and self.sampling.mode in INTERPOLATED

    @property
    def held_slices(self) -> int:
        """Return how many slices of the network are held for one row; all of them, if the grids are turned so."""
        return 0 if self._rows is None else int(1 + np.ptp(self._rows.needed, axis=1).max())

    def labels(self, slabs: Iterator[Slab]) -> MetaTensor:
        """Return labels (1, i, j, k) before the sampling, with the operations that are still to be taken back.

        Args:
            slabs: scores after the first activation; all of the network grid, in order.
        """
        if self.sampling is None or self._rows is None:
            raise UsageError("nothing was resampled, so there are no scores to bring back.")
        places, rows = self.sampling.places, replace(self._rows)
        planes, out = _Planes(self._turn.count, self.decision), None
        for _, scores in slabs:
            planes.push(scores)
            for span in rows.ready(planes.known):
                codes = self._codes(rows, span, planes)
                out = torch.empty(places.new_size, dtype=codes.dtype) if out is None else out
                out.movedim(rows.axis, 0)[span] = codes.movedim(rows.axis, 0)
            planes.let_go(rows.least_needed)
        if out is None or not rows.are_done:
            raise UsageError("slabs are missing; the result is not whole.")
        return unsampled(self._probe, self.decision.labels(out)[None], self.sampling.affine)

    def _codes(self, rows: "_Rows", span: slice, planes: "_Planes") -> torch.Tensor:
        if rows.is_pooled:
            return self._pooled_codes(rows, span, planes)
        box = [slice(0, n) for n in rows.places.new_size]
        box[rows.axis] = span
        positions = rows.places.positions_vox(triple(box))
        return _interpolated_codes(self._turn.cells(positions), planes, self.decision, self._turn)

    def _pooled_codes(self, rows: "_Rows", span: slice, planes: "_Planes") -> torch.Tensor:
        low, high = rows.needed[span.start]
        scores = planes.between(int(low), int(high))[0][(slice(None), slice(None), *self._turn.across)]
        height, width = (rows.places.new_size[axis] for axis in self._turn.axes[1:])
        pooled = F.adaptive_avg_pool3d(scores[None], (1, height, width))[0]
        return self.decision.codes(pooled).movedim(0, rows.axis)


@dataclass(eq=False)
class _Rows:
    """Rows of the new grid in the order in which the network's slices reach them.

    Args:
        places: where the new voxels lie in the sampled grid.
        axis: of the new grid, along which rows are counted.
        order: the rows.
        needed: first and last slice of the network that each of them needs.
        is_pooled: rows are averages, made one by one.
    """

    places: AffineSampling
    axis: int
    order: npt.NDArray[np.int64]
    needed: npt.NDArray[np.int64]
    is_pooled: bool
    done: int = 0

    @classmethod
    def of(cls, sampling: Sampling, turn: _Turn) -> "_Rows":
        """Return the rows of a sampling.

        Raises:
            BundleError: averages are turned or cropped.
        """
        return (
            cls._pooled(sampling.places, turn) if sampling.mode == "area" else cls._interpolated(sampling.places, turn)
        )

    @classmethod
    def _interpolated(cls, places: AffineSampling, turn: _Turn) -> "_Rows":
        last = np.array(places.new_size) - 1
        origin = _swept_position(places, turn, (0, 0, 0))
        spread = np.array([_swept_position(places, turn, triple(end)) - origin for end in np.diag(last).tolist()])
        steps = spread / np.maximum(last, 1)
        axis = int(np.abs(steps).argmax())
        line, across = origin + steps[axis] * np.arange(places.new_size[axis]), np.delete(spread, axis)
        ends = turn.swept_ends()
        first = np.floor(np.clip(line + across.clip(max=0).sum() - EDGE_VOX, *ends))
        final = np.ceil(np.clip(line + across.clip(min=0).sum() + EDGE_VOX, *ends))
        order = np.arange(len(line)) if steps[axis] >= 0 else np.arange(len(line))[::-1]
        return cls(places, axis, order, np.stack([first, final], axis=1).astype(np.int64), is_pooled=False)

    @classmethod
    def _pooled(cls, places: AffineSampling, turn: _Turn) -> "_Rows":
        """Return rows whose voxels are averages, as those of `adaptive_avg_pool3d`."""
        axis, *across = turn.axes
        if across != sorted(across) or turn.signs != (1, 1, 1) or turn.is_cropped:
            raise BundleError(
                "what Resize averaged was turned or cropped afterwards; import the bundle with --faithful."
            )
        old, new = places.old_size[axis], places.new_size[axis]
        rows = np.arange(new)
        needed = np.stack([rows * old // new, -(-(rows + 1) * old // new) - 1], axis=1) + turn.offsets[0]
        return cls(places, axis, rows, needed, is_pooled=True)

    @property
    def are_done(self) -> bool:
        """Return whether no row is left."""
        return self.done == len(self.order)

    @property
    def least_needed(self) -> int:
        """Return the first slice that a row to come still needs."""
        left = self.order[self.done :]
        return int(self.needed[left, 0].min()) if len(left) else sys.maxsize

    def ready(self, known: int) -> Iterator[slice]:
        """Yield spans of rows that need no slice from `known` on."""
        in_row = math.prod(self.places.new_size) // self.places.new_size[self.axis]
        most = 1 if self.is_pooled else max(1, SLAB_POSITIONS // in_row)
        while not self.are_done:
            left = self.order[self.done : self.done + most]
            waits = self.needed[left, 1] >= known
            count = int(waits.argmax()) if waits.any() else len(left)
            if not count:
                return
            rows = left[:count]
            self.done += count
            yield slice(int(rows.min()), int(rows.max()) + 1)


class _Planes:
    """Slices of the network that rows to come still need, and what is decided at each of their voxels."""

    def __init__(self, count: int, decision: Decision) -> None:
        self.count, self.decision, self.first = count, decision, 0
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def known(self) -> int:
        """Return the first slice that is not known; beyond the grid, if all are."""
        known = self.first + sum(len(codes) for _, codes in self._parts)
        return known if known < self.count else sys.maxsize

    def push(self, scores: torch.Tensor) -> None:
        """Take the slices (classes, n, H, W) that follow the last ones."""
        self._parts.append((scores.cpu(), self.decision.codes(scores).cpu()))

    def let_go(self, until: int) -> None:
        """Forget slices before `until`."""
        while self._parts and self.first + len(self._parts[0][1]) <= until:
            self.first += len(self._parts.pop(0)[1])
        if self._parts and until > self.first:
            scores, codes = self._parts[0]
            self._parts[0] = scores[:, until - self.first :].clone(), codes[until - self.first :]
            self.first = until

    def between(self, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (classes, n, H, W) and codes (n, H, W) of the slices from `low` to `high`.

        Raises:
            UsageError: some of them are gone, or are still to come.
        """
        if low < self.first or high >= min(self.known, self.count):
            raise UsageError(f"slices {low} to {high} are needed, but they are not all at hand, from {self.first} on.")
        at, scores, codes = self.first, [], []
        for values, decided in self._parts:
            span = slice(max(0, low - at), max(0, high + 1 - at))
            scores.append(values[:, span])
            codes.append(decided[span])
            at += len(decided)
        return torch.cat(scores, dim=1), torch.cat(codes)


def _interpolated_codes(cells: _Cells, planes: _Planes, decision: Decision, turn: _Turn) -> torch.Tensor:
    """Return codes at positions, an array of their shape."""
    low, high = cells.ends(0)
    first, last = turn.ends[0]
    scores, codes = planes.between(max(low, first), min(high, last))
    base = (low, 0, 0)
    if turn.is_cropped:
        rim = (1, 1, 1, 1, int(low < first), int(high > last))
        scores = F.pad(scores[(slice(None), slice(None), *turn.across)], rim)
        background = int(decision.codes(torch.zeros(len(scores), 1)))
        codes = F.pad(codes[(slice(None), *turn.across)][None], rim, value=background)[0]
        base = (low, turn.ends[1][0] - 1, turn.ends[2][0] - 1)
    least, most = _around(codes)
    cell = cells.flat(base, triple(least.shape))
    found = least.reshape(-1)[cell]
    mixed = (found != most.reshape(-1)[cell]).reshape(-1).nonzero()[:, 0]
    if len(mixed):
        columns = scores.movedim(0, -1).reshape(-1, len(scores)).double().contiguous().numpy()
        for part in torch.split(mixed, max(1, MIXED_SCORES // len(scores))):
            found.view(-1)[part] = decision.codes(cells.interpolated(columns, base, triple(codes.shape), part))
    return found


def _around(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least and the highest code at the corners of each cell; along one voxel cells have no extent."""
    least = most = codes
    for axis, count in enumerate(codes.shape):
        if count > 1:
            before, after = (least.narrow(axis, start, count - 1) for start in (0, 1))
            least = torch.minimum(before, after)
            before, after = (most.narrow(axis, start, count - 1) for start in (0, 1))
            most = torch.maximum(before, after)
    return least, most


def _swept_position(places: AffineSampling, turn: _Turn, at: Shape) -> float:
    """Return where a voxel of the new grid lies along the sweep, on and beyond the network's slices."""
    point = triple(slice(n, n + 1) for n in at)
    along = places.positions_vox(point)[turn.axes[0]]
    return float(turn.signs[0] * along + turn.offsets[0])


def _turn_between(network: Grid, sampled: Grid, axis: int, seen: Box) -> _Turn:
    """Return how a sampled grid, of which the network saw a box, lies among the voxels of the network."""
    to_network = np.linalg.inv(network.affine) @ sampled.affine
    whole = np.rint(to_network)
    if np.abs(to_network - whole).max() > INTEGER_TOLERANCE or not (np.abs(whole[:3, :3]).sum(axis=1) == 1).all():
        raise BundleError("what was cropped or turned after resampling lies between its voxels; use --faithful.")
    order = [axis, *(other for other in range(3) if other != axis)]
    axes = triple(int(np.abs(whole[one, :3]).argmax()) for one in order)
    signs = triple(int(whole[one, along]) for one, along in zip(order, axes, strict=True))
    offsets = triple(int(whole[one, 3]) for one in order)
    ends = [
        sorted((sign * seen[along].start + offset, sign * (seen[along].stop - 1) + offset))
        for along, sign, offset in zip(axes, signs, offsets, strict=True)
    ]
    return _Turn(axes, signs, offsets, triple((low, high) for low, high in ends), network.shape[axis], sampled.shape)
