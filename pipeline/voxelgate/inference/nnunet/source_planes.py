"""From planes of logits on the network grid to labels or logits on the source grid, to nnU-Net's last bit."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from voxelgate.inference.class_planes import certainty_in, probabilities_in
from voxelgate.inference.nnunet.decisions import LogitDecision
from voxelgate.inference.nnunet.taps import Taps

VALUES_AT_ONCE = 2**17
"""Interpolated at a time, so that they stay in the cache of a processor; 1 MiB."""

FLOAT32_ERROR = 2.0**-20
"""Part of the largest logit by which a sum of eight weighted ones is wrong at most in float32; twice what it can be."""


@dataclass(frozen=True, eq=False)
class LogitPlane:
    """A plane of the network grid; what several planes of the source grid need of it is computed once.

    Args:
        number: of the plane.
        logits: (classes, H, W) float16.
        decision: how they become labels.
    """

    number: int
    logits: torch.Tensor
    decision: LogitDecision
    _turn: Lock = field(default_factory=Lock, init=False, repr=False)

    @cached_property
    def _bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.decision.bounds(self.logits)

    @cached_property
    def _columns(self) -> torch.Tensor:
        return self.logits.flatten(1).T.contiguous().float()

    @cached_property
    def _certainty(self) -> npt.NDArray[np.float64]:
        regions, is_found = self.decision.regions, self._bounds[1] != 0
        probabilities = probabilities_in(self.logits[:, is_found], are_regions=regions is not None)
        return certainty_in(probabilities, regions)

    @cached_property
    def peak(self) -> float:
        """Return the largest absolute logit."""
        return max(abs(float(extreme)) for extreme in torch.aminmax(self.logits))

    @property
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what its voxels tell of their labels (`LogitDecision.bounds`)."""
        with self._turn:
            return self._bounds

    @property
    def columns(self) -> torch.Tensor:
        """Return its logits (H * W, classes) float32, those of one voxel side by side."""
        with self._turn:
            return self._columns

    @property
    def certainty(self) -> npt.NDArray[np.float64]:
        """Return how probable what it shows is, all but the background (`certainty_in`)."""
        with self._turn:
            return self._certainty


def neighbours(planes: Iterable[torch.Tensor], taps: Taps, decision: LogitDecision) -> Iterator[tuple[LogitPlane, ...]]:
    """Yield, for each plane of the source grid, the one or two planes of the network grid it is made of.

    Args:
        planes: (classes, H, W) float16, all of the network grid in their order; no more than two are kept.
        taps: of the first axis.
        decision: how logits become labels.
    """
    coming = (LogitPlane(number, plane, decision) for number, plane in enumerate(planes))
    kept: dict[int, LogitPlane] = {}
    known = 0
    for low, high in zip(taps.low.tolist(), taps.high.tolist(), strict=True):
        while known <= high:
            kept = {index: plane for index, plane in kept.items() if index >= low}
            kept[known] = next(coming)
            known += 1
        yield (kept[low], kept[high]) if taps.is_between else (kept[low],)
    for _ in coming:  # planes beyond the last that counts are still to be run
        pass


@dataclass(frozen=True, eq=False)
class PlaneRestorer:
    """Interpolates planes of the source grid.

    Values are those of scikit-image's order-1 `resize` in float64, products and sums in its order, rounded to float16:
    what nnU-Net's `resample_data_or_seg_to_shape` stores.

    Args:
        taps: of the three axes.
        decision: how logits become labels.
    """

    taps: tuple[Taps, Taps, Taps]
    decision: LogitDecision

    def labels(self, index: int, planes: tuple[LogitPlane, ...]) -> torch.Tensor:
        """Return the labels (H', W') of one plane of the source grid, given its `neighbours`."""
        highest = self.decision.highest(len(planes[0].logits))
        lower, upper = (self._around([plane.bounds[side] for plane in planes], side) for side in (0, 1))
        codes = self._picked(lower)
        is_open = codes != self._picked(upper)
        open_voxels = torch.from_numpy(np.flatnonzero(is_open.numpy()))
        if len(open_voxels):
            groups = torch.split(open_voxels, max(1, VALUES_AT_ONCE // len(planes[0].logits)))
            codes.view(-1)[open_voxels] = torch.cat([self._codes(index, planes, group) for group in groups])
        return self.decision.labels(codes).to(torch.uint8 if highest < 256 else torch.int32)

    def logits(self, index: int, planes: tuple[LogitPlane, ...]) -> torch.Tensor:
        """Return the logits (classes, H', W') float16 of one plane of the source grid, given its `neighbours`."""
        height, width = (len(taps.low) for taps in self.taps[1:])
        if not any(taps.is_between for taps in self.taps):
            return self._picked(planes[0].logits)
        groups = torch.split(torch.arange(height * width), max(1, VALUES_AT_ONCE // len(planes[0].logits)))
        parts = [self._exactly(index, planes, group).numpy().astype(np.float16) for group in groups]
        return torch.from_numpy(np.concatenate(parts).T.reshape(-1, height, width))

    def _around(self, bounds: list[torch.Tensor], side: int) -> torch.Tensor:
        """Return the lower (0) or upper (1) bounds of all voxels between one of the network grid and the next ones."""
        merge = self.decision.upper if side else self.decision.lower
        merged = bounds[0]
        for other in bounds[1:]:
            merged = merge(merged, other)
        for axis, taps in enumerate(self.taps[1:]):
            if taps.is_between:
                before, behind = (merged.narrow(axis, first, merged.shape[axis] - 1) for first in (0, 1))
                last = merged.narrow(axis, merged.shape[axis] - 1, 1)
                merged = torch.cat((merge(before, behind), last), dim=axis)
        return merged

    def _picked(self, plane: torch.Tensor) -> torch.Tensor:
        """Return the value of the first network voxel of each source voxel of a plane (..., H, W)."""
        _, rows, columns = self.taps
        return plane.index_select(-2, rows.low).index_select(-1, columns.low)

    def _codes(self, index: int, planes: tuple[LogitPlane, ...], voxels: torch.Tensor) -> torch.Tensor:
        """Return the codes of some voxels of a plane; float32 suffices for nearly all."""
        error = FLOAT32_ERROR * max(plane.peak for plane in planes)
        codes, is_open = self.decision.nearly(self._roughly(index, planes, voxels), error)
        still = is_open.nonzero()[:, 0]
        if len(still):
            codes[still] = self.decision.decide(self._exactly(index, planes, voxels[still]))
        return codes

    def _roughly(self, index: int, planes: tuple[LogitPlane, ...], voxels: torch.Tensor) -> torch.Tensor:
        """Return values (M, classes) float32 of some voxels, given by their flat index in a plane."""
        first, rows, columns = self.taps
        row, column = voxels // len(columns.low), voxels % len(columns.low)
        corners = list(product(rows.sides(), columns.sides()))
        width = planes[0].logits.shape[2]
        places = torch.stack([at_row[row] * width + at_column[column] for (at_row, _), (at_column, _) in corners], 1)
        weights = torch.stack([of_row[row] * of_column[column] for (_, of_row), (_, of_column) in corners], 1)
        found = [
            F.embedding_bag(places, plane.columns, mode="sum", per_sample_weights=(weights * weight[index]).float())
            for plane, (_, weight) in zip(planes, first.sides(), strict=True)
        ]
        return found[0] if len(found) == 1 else found[0].add_(found[1])

    def _exactly(self, index: int, planes: tuple[LogitPlane, ...], voxels: torch.Tensor) -> torch.Tensor:
        """Return values (M, classes) float64, before they are rounded, of some voxels of a plane.

        Each logit is multiplied by the weights of the three axes one after the other, then all are added up.
        """
        first, rows, columns = self.taps
        row, column = voxels // len(columns.low), voxels % len(columns.low)
        width = planes[0].logits.shape[2]
        weighted = [(plane, float(weight[index])) for plane, (_, weight) in zip(planes, first.sides(), strict=True)]
        total = torch.zeros((len(voxels), len(planes[0].logits)), dtype=torch.float64)
        for (plane, weight), (at_row, of_row), (at_column, of_column) in product(
            weighted, rows.sides(), columns.sides()
        ):
            value = plane.columns.index_select(0, at_row[row] * width + at_column[column]).double()
            total += value.mul_(weight).mul_(of_row[row, None]).mul_(of_column[column, None])
        return total
