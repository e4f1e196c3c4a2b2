"""Bring class scores that come slab by slab on the network grid back to the source grid, in memory for a few slices."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from voxelgate.core.errors import UsageError
from voxelgate.core.geometry import Grid
from voxelgate.inference.restoring.class_scores import CERTAIN_BY, Codes, ScoreKind, Scores, check_classes
from voxelgate.inference.restoring.label_sums import Sum, Sums, label_sums, open_voxels
from voxelgate.inference.restoring.placement import GROUP_VOXELS, PlaneBox, Voxels, place

BLOCK_SCORES = 2**25
"""Scores of network voxels that are interpolated at a time, at least two slices; 128 MiB for each array at most."""

ScoreSlab = tuple[int, torch.Tensor]
"""First slice along the sweep axis, and scores (classes, i, j, k): some slices along that axis, all of the others."""


@dataclass(frozen=True, eq=False)
class Restored:
    """What lies on the source grid in the end.

    Args:
        labels: (I, J, K) uint8, int32 where a label above 255 is possible.
        probabilities: (asked, I, J, K) float32; 0 outside the network grid.
        confidence: (labels,) float32, the mean probability of each label over the voxels of the network grid that have
            it; NaN for the background and for labels that no voxel has.
        sums: (labels, `Sum`), what else the scores and the image say of each label.
    """

    labels: npt.NDArray[Any]
    probabilities: npt.NDArray[np.float32]
    confidence: npt.NDArray[np.float32]
    sums: Sums


class Restorer:
    """Turn slabs of scores on the network grid into labels on the source grid as they come.

    The label of a source voxel is the likeliest class after trilinear interpolation of the probabilities at its centre
    (`ScoreKind` says what else). Interpolation keeps order: where the network voxels around it agree on a class, that
    class is the label, exactly, and nothing is computed. Elsewhere two classes nearly always hold more than half of the
    probability between them, and the others need no arithmetic either. One network slice is kept between two slabs.

    Args:
        network: grid of the scores; source voxels more than half a voxel outside become background.
        source: grid of the result, turned against the network grid in any way.
        axis: axis of the network grid along which slabs come.
        kind: what the scores are.
        probabilities_of: channels whose probability is wanted too; each costs a float32 array of the source grid.
        image: (C, i, j, k) on the network grid, of which `Sum` tells; None if nobody asks.
    """

    def __init__(
        self,
        network: Grid,
        source: Grid,
        axis: int = 2,
        *,
        kind: ScoreKind | None = None,
        probabilities_of: tuple[int, ...] = (),
        image: torch.Tensor | None = None,
    ) -> None:
        self.kind = kind or ScoreKind()
        self.probabilities_of = probabilities_of
        self.axis, self.slices = axis, network.shape[axis]
        self._plane = tuple(size for other, size in enumerate(network.shape) if other != axis)
        self._placement = place(network, source, axis)
        self._labels: npt.NDArray[Any] | None = None
        self._probabilities = self._placement.zeros(len(probabilities_of), np.float32)
        self._sums: Sums = np.zeros((0, len(Sum)))
        self._image = None if image is None else image.movedim(1 + axis, 1)
        self._known = 0
        self._kept: tuple[Scores, Codes] | None = None
        self._copy: Scores | None = None
        self._scratch = _Scratch()

    def push(self, start: int, scores: torch.Tensor) -> None:
        """Take the next slab and label all source voxels that lie before its last slice.

        Args:
            start: its first slice; the one after the last that was pushed.
            scores: (classes, i, j, k), some slices of the sweep axis and all of the others; finite, any float type,
                device and memory layout; not changed, and not to be changed before the next slab is pushed.

        Raises:
            UsageError: a slab out of order, of another plane, or classes asked for that it does not have.
            BundleError: scores that are not finite, or cannot be what `kind` says.
        """
        swept = scores.movedim(1 + self.axis, 1)
        if start != self._known or tuple(swept.shape[2:]) != self._plane or not 1 <= swept.shape[1] <= self._left():
            raise UsageError(
                f"a slab of {swept.shape[1]} slices of {tuple(swept.shape[2:])} at slice {start}, expected 1 to "
                f"{self._left()} slices of {self._plane} at slice {self._known}."
            )
        values: Scores = swept.detach().float().cpu().numpy()
        self._expect(len(values))
        codes = self.kind.codes(values)
        self._known += len(codes)
        self._count(values, codes, start)
        if self._kept is not None:
            kept, kept_codes = self._kept
            self._restore_block((kept, values[:, :1]), np.concatenate((kept_codes, codes[:1])), start - 1)
        self._restore(values, codes, start)
        self._keep(values, codes)

    def result(self) -> Restored:
        """Return what was restored.

        Raises:
            UsageError: slabs are missing.
        """
        if self._labels is None or self._left():
            raise UsageError(f"slices {self._known} to {self.slices - 1} were not pushed; the result is not whole.")
        voxels, own = self._sums[:, Sum.VOXELS], self._sums[:, Sum.OWN]
        confidence = np.where(voxels > 0, own / np.maximum(voxels, 1), np.nan).astype(np.float32)
        confidence[0] = np.nan
        return Restored(self._labels, self._probabilities, confidence, self._sums)

    def _left(self) -> int:
        return self.slices - self._known

    def _expect(self, channels: int) -> None:
        if self._labels is None:
            self.kind.check_channels(channels)
            check_classes(self.probabilities_of, channels)
            self._labels = self._placement.zeros(1, self.kind.label_type(channels))[0]
            self._sums = np.zeros((1 + self.kind.highest_label(channels), len(Sum)))

    def _keep(self, scores: Scores, codes: Codes) -> None:
        """Keep the last slice of a slab; a copy, unless it is the whole slab, so that the others can go."""
        last = scores[:, -1:]
        if scores.shape[1] > 1:
            self._copy = np.empty_like(last) if self._copy is None else self._copy
            np.copyto(self._copy, last)
            last = self._copy
        self._kept = last, codes[-1:]

    def _count(self, scores: Scores, codes: Codes, start: int) -> None:
        """Add up what is told of the structures; where the background is certain there is nothing to tell."""
        flat = open_voxels(self.kind, scores, codes)
        values = np.zeros(codes.size, np.float32)
        if self._image is not None:
            values = self._image[:, start : start + len(codes)].mean(dim=0).float().cpu().numpy().reshape(-1)
        step = max(1, BLOCK_SCORES // (4 * len(scores)))
        for first in range(0, len(flat), step):
            part = flat[first : first + step]
            columns = _gathered((scores,), part, self._scratch)
            self._sums += label_sums(self.kind, columns, codes.reshape(-1)[part], values[part])

    def _restore(self, scores: Scores, codes: Codes, start: int) -> None:
        """Restore the voxels between the slices of a slab, block by block."""
        is_whole = self.slices == 1
        voxels = self._placement.voxels_per_slice()
        at_once = max(1, int(min(BLOCK_SCORES // math.prod(scores[:, 0].shape) - 1, GROUP_VOXELS / max(voxels, 1))))
        for first in range(0, len(codes) - 1 + is_whole, at_once):
            last = min(first + at_once, len(codes) - 1)
            self._restore_block((scores[:, first : last + 1],), codes[first : last + 1], start + first)

    def _restore_block(self, scores: tuple[Scores, ...], codes: Codes, start: int) -> None:
        ends = start, start + len(codes) - 1
        block = _Block(scores, codes, self._placement.is_between, self.kind, self._scratch)
        if self._labels is not None and block.box is not None:
            target = self._placement.view(self._labels)
            for voxels in self._placement.voxels(*ends, block.box):
                target[voxels.at] = self.kind.labels(block.decide(voxels))
        if self.probabilities_of:
            values = self.kind.probabilities(np.concatenate(scores, axis=1))
            for voxels in self._placement.voxels(*ends, None):
                for channel, restored in zip(self.probabilities_of, self._probabilities, strict=True):
                    self._placement.view(restored)[voxels.at] = block.interpolate(values[channel], voxels)


def restore(slabs: Iterable[ScoreSlab], restorer: Restorer) -> Restored:
    """Push all slabs and return the result."""
    for start, scores in slabs:
        restorer.push(start, scores)
    return restorer.result()


def nothing(source: Grid, channels: int) -> Restored:
    """Return the result for an image in which nothing can be: background, and no probability."""
    probabilities = np.zeros((channels, *source.shape), np.float32)
    nobody = np.full(1, np.nan, np.float32)
    return Restored(np.zeros(source.shape, np.uint8), probabilities, nobody, np.zeros((1, len(Sum))))


class _Block:
    """Scores of a few slices, and the cells between their voxels.

    Args:
        scores: (classes, n, H, W) in one or more parts along n.
        codes: (n, H, W), the decision for each network voxel.
        is_between: axes along which cells have an extent.
        kind: what the scores are.
        scratch: memory that nobody else uses as long as the block is used.
    """

    def __init__(
        self,
        scores: tuple[Scores, ...],
        codes: Codes,
        is_between: tuple[bool, bool, bool],
        kind: ScoreKind,
        scratch: "_Scratch",
    ) -> None:
        self.scores, self.shape, self.kind = scores, codes.shape, kind
        self.corners = list(product(*((0, 1) if between else (0,) for between in is_between)))
        self.least, self.most = codes, codes
        for axis in (axis for axis in range(3) if is_between[axis]):
            lower, upper = _pairs_along(axis)
            self.least = np.minimum(self.least[lower], self.least[upper])
            self.most = np.maximum(self.most[lower], self.most[upper])
        self.is_mixed = self.least != self.most
        self._number: npt.NDArray[np.int32] | None = None
        self._probabilities = scores[0]
        if self.is_mixed.any():
            self._number, self._probabilities = self._around_mixed_cells(scratch)

    @property
    def box(self) -> PlaneBox | None:
        """Return the cells along the second and third axis that are not background only; None if all are."""
        rows = np.flatnonzero(self.most.any(axis=(0, 2)))
        columns = np.flatnonzero(self.most.any(axis=(0, 1)))
        if not len(rows):
            return None
        return (int(rows[0]), int(rows[-1])), (int(columns[0]), int(columns[-1]))

    def decide(self, voxels: Voxels) -> Codes:
        """Return the code of each voxel: that of its cell, or by interpolation where the corners disagree."""
        codes = voxels.pick(self.least)
        if self._number is not None:
            mixed = voxels.among(voxels.pick(self.is_mixed))
            if len(mixed.at):
                codes.reshape(-1)[mixed.at] = self._interpolated(mixed, self._number)
        return codes

    def interpolate(self, values: Scores, voxels: Voxels) -> Scores:
        """Interpolate one map (n, H, W) at the voxels."""
        parts = []
        for corner in self.corners:
            low = [axis + offset for axis, offset in zip(voxels.low, corner, strict=True)]
            at_corner = Voxels(None, (low[0], low[1], low[2]), voxels.part).pick(values)
            parts.append(at_corner * _weight(voxels, corner))
        total: Scores = sum(parts[1:], start=parts[0])
        return total

    def _around_mixed_cells(self, scratch: "_Scratch") -> tuple[npt.NDArray[np.int32], Scores]:
        """Return the number of each voxel (n * H * W,) among the corners of mixed cells, and their probabilities."""
        is_needed = np.zeros(self.shape, dtype=bool)
        for corner in self.corners:
            window = tuple(slice(o, o + n) for o, n in zip(corner, self.is_mixed.shape, strict=True))
            is_needed[window] |= self.is_mixed
        flat = np.flatnonzero(is_needed)
        number = np.zeros(is_needed.size, dtype=np.int32)
        number[flat] = np.arange(len(flat))
        columns = _gathered(self.scores, flat, scratch)
        return number, self.kind.probabilities(columns, out=columns)

    def _interpolated(self, voxels: Voxels, number: npt.NDArray[np.int32]) -> Codes:
        flat = (voxels.low[0] * self.shape[1] + voxels.low[1]) * self.shape[2] + voxels.low[2]
        steps = [(di * self.shape[1] + dj) * self.shape[2] + dk for di, dj, dk in self.corners]
        corners = [
            (number.take(flat + step), _weight(voxels, at)) for step, at in zip(steps, self.corners, strict=True)
        ]
        if self.kind.regions is not None:
            return self._among_all(corners)
        low, high = voxels.pick(self.least), voxels.pick(self.most)
        of_low, of_high = self._probability(low, corners), self._probability(high, corners)
        codes = np.where(of_high > of_low, high, low)
        # no other class can have more than the two leave
        is_open = np.maximum(of_low, of_high) < 1 - of_low - of_high + np.float32(CERTAIN_BY)
        still = np.flatnonzero(is_open)
        if len(still):
            codes[still] = self._among_all([(n.take(still), weight.take(still)) for n, weight in corners])
        return codes

    def _probability(self, classes: Codes, corners: list[tuple[npt.NDArray[np.int32], Scores]]) -> Scores:
        """Return the interpolated probability of one class for each voxel."""
        start = classes.astype(np.int64) * self._probabilities.shape[1]
        total = np.zeros(len(classes), np.float32)
        values = self._probabilities.reshape(-1)
        for number, weight in corners:
            total += values.take(start + number) * weight
        return total

    def _among_all(self, corners: list[tuple[npt.NDArray[np.int32], Scores]]) -> Codes:
        """Return the codes by interpolation of all classes, in parts of bounded size."""
        classes, count = len(self._probabilities), len(corners[0][0])
        step = max(1, BLOCK_SCORES // (4 * classes))
        parts = []
        for start in range(0, count, step):
            total = np.zeros((classes, min(step, count - start)), np.float32)
            for number, weight in corners:
                total += self._probabilities.take(number[start : start + step], axis=1) * weight[start : start + step]
            parts.append(self.kind.codes_of(total))
        return np.concatenate(parts)


class _Scratch:
    """Memory that is used again and again; buffers of ever other sizes would leave the heap full of holes."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.float32)

    def room(self, classes: int, count: int) -> Scores:
        """Return an array (classes, count) of anything; what was returned before is no longer to be used."""
        if self._values.size < classes * count:
            self._values = np.empty(classes * count, np.float32)
        return self._values[: classes * count].reshape(classes, count)


def _gathered(scores: tuple[Scores, ...], flat: npt.NDArray[np.int64], scratch: _Scratch) -> Scores:
    """Return scores (classes, M) of voxels given by their index in (classes, n, H, W), which may lie in parts."""
    columns = scratch.room(len(scores[0]), len(flat))
    before = filled = 0
    for part in scores:
        wanted = flat[(flat >= before) & (flat < before + part[0].size)] - before
        out = columns[:, filled : filled + len(wanted)]
        if part.strides[0] == part.itemsize:  # classes lie side by side in memory
            out[...] = np.moveaxis(part, 0, -1).reshape(-1, len(part))[wanted].T
        else:
            for plane, row in zip(part, out, strict=True):
                plane.reshape(-1).take(wanted, out=row, mode="clip")  # with mode "raise" it would be copied
        before, filled = before + part[0].size, filled + len(wanted)
    return columns


def _pairs_along(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return indices of all voxels but the last, and all but the first, along an axis."""
    before = (slice(None),) * axis
    return (*before, slice(None, -1)), (*before, slice(1, None))


def _weight(voxels: Voxels, corner: tuple[int, ...]) -> Scores:
    """Return the trilinear weight of one corner, in the shape of the voxels."""
    first, second, third = (part if at else 1 - part for part, at in zip(voxels.part, corner, strict=True))
    weight: Scores = first * second * third
    return weight
