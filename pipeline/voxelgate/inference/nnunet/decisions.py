"""Which label nnU-Net gives a voxel, and how much of that its neighbours on the network grid tell already.

Logits are interpolated with weights that are never negative, and every rounding keeps order. So where all network
voxels around a source voxel agree, and clearly enough for float16, it has their label, and nothing is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from voxelgate.core.errors import BundleError, UsageError

Labels = npt.NDArray[Any]

CLEAR_PART = 2.0**-9
"""Two float16 numbers are apart after rounding if they differed by twice the spacing of float16, 2**-10 of them."""

CLEAR_LEAST = 2.0**-23
"""The same near 0, where float16 numbers are 2**-24 apart."""

CLEARLY_IN = 1e-3
"""A logit whose sigmoid lies above one half in any precision."""

MOST_REGIONS = 31
"""Each region takes one bit of an int32, the sign left out."""


class LogitDecision(Protocol):
    """How logits become labels. Codes are integers, int32, that `labels` translates."""

    @property
    def regions(self) -> tuple[int, ...] | None:
        """Return the labels of channels that may overlap; None for classes."""
        ...

    def bounds(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two maps of codes for logits (classes, H, W) float16; equal where the decision is clear."""
        ...

    def codes(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the codes (H, W) of logits (classes, H, W) as they are."""
        ...

    def lower(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the lower bound of voxels between two others."""
        ...

    def upper(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the upper bound of voxels between two others."""
        ...

    def nearly(self, values: torch.Tensor, error: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes (M,) of logits (M, classes) float32 that may be wrong by `error`, and which remain open."""
        ...

    def decide(self, values: torch.Tensor) -> torch.Tensor:
        """Return the codes (M,) of logits (M, classes) float64 that nnU-Net would round to float16."""
        ...

    def labels(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the labels of codes that are no open bounds, int32."""
        ...

    def highest(self, channels: int) -> int:
        """Return the highest label that can be.

        Raises:
            BundleError: the network gives another number of channels than can be decided.
        """
        ...


@dataclass(frozen=True)
class LikeliestClass:
    """The class with the highest logit after rounding, the first of equals; its number is code and label."""

    regions: None = field(default=None, init=False)

    def bounds(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the class of each voxel, and the same or, unless it is clear of all classes before it, one beyond."""
        best = logits[0].float()
        codes = torch.zeros(best.shape, dtype=torch.int32)
        ahead = torch.full_like(best, torch.inf)
        for index, half in enumerate(logits[1:], start=1):
            score = half.float()
            is_higher = score > best
            ahead = torch.where(is_higher, score - best, ahead)
            best = torch.maximum(best, score)
            codes.masked_fill_(is_higher, index)
        is_open = ahead <= best.abs().mul_(CLEAR_PART).add_(CLEAR_LEAST)
        return codes, codes.masked_fill(is_open, len(logits))

    def codes(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the class with the highest logit, the first of equals."""
        return logits.argmax(dim=0).int()

    def lower(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the lower class."""
        return torch.minimum(one, other)

    def upper(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the higher class."""
        return torch.maximum(one, other)

    def nearly(self, values: torch.Tensor, error: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the highest class of each voxel, and where another comes so near that rounding may make them equal."""
        best = values.amax(dim=1, keepdim=True)
        is_near = (values >= best - best.abs() * CLEAR_PART - (CLEAR_LEAST + 4 * error)).numpy()
        first, behind_last = is_near.argmax(axis=1), is_near[:, ::-1].argmax(axis=1)
        return torch.from_numpy(first.astype(np.int32)), torch.from_numpy(first + behind_last < values.shape[1] - 1)

    def decide(self, values: torch.Tensor) -> torch.Tensor:
        """Return the first class whose logit rounds to the same float16 as the highest.

        The lowest number that does so is half-way to the float16 below, or the next one, as ties round to even.
        """
        best = values.amax(dim=1).numpy().astype(np.float16)
        below = np.nextafter(best, np.float16(-np.inf))
        least = (best.astype(np.float64) + below) / 2
        is_odd = (best.view(np.uint16) & 1).astype(bool)
        least[is_odd] = np.nextafter(least[is_odd], np.inf)
        is_best = values >= torch.from_numpy(least)[:, None]
        return torch.from_numpy(is_best.numpy().argmax(axis=1).astype(np.int32))

    def labels(self, codes: torch.Tensor) -> torch.Tensor:
        """Return them as they are."""
        return codes

    def highest(self, channels: int) -> int:
        """Return the last class.

        Raises:
            BundleError: there is one class only.
        """
        if channels < 2:
            raise BundleError("the network gives one class, expected the background and at least one structure.")
        return channels - 1


@dataclass(frozen=True)
class Regions:
    """Overlapping regions: each is there where its sigmoid is above one half, a later one overrides an earlier.

    A code has one bit for each region.

    Args:
        regions: label of each channel's region (`regions_class_order`).

    Raises:
        UsageError: no region, more than 31, or negative labels.
    """

    regions: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.regions) <= MOST_REGIONS or min(self.regions) < 0:
            raise UsageError(f"regions {self.regions}: expected 1 to {MOST_REGIONS} labels of at least 0.")

    def bounds(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the regions that are surely there, and those that may be."""
        return self._bits(logits > CLEARLY_IN), self._bits(logits > 0)

    def codes(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the regions whose sigmoid, in float32, is above one half."""
        return self._bits(torch.sigmoid(logits.float()) > 0.5)

    def lower(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the regions that both have."""
        return torch.bitwise_and(one, other)

    def upper(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the regions that one of them has."""
        return torch.bitwise_or(one, other)

    def nearly(self, values: torch.Tensor, error: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the regions that are surely there, and where another one may be."""
        logits = values.T
        surely = self._bits(logits > CLEARLY_IN + error)
        return surely, surely != self._bits(logits >= -error)

    def decide(self, values: torch.Tensor) -> torch.Tensor:
        """Return the regions whose sigmoid, in float32 of the rounded logit, is above one half."""
        rounded = torch.from_numpy(values.T.numpy().astype(np.float16))
        return self._bits(torch.sigmoid(rounded.float()) > 0.5)

    def labels(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the label of the last region that is there, 0 where none is."""
        labels = torch.zeros_like(codes)
        for bit, value in enumerate(self.regions):
            labels.masked_fill_(codes.bitwise_and(1 << bit) != 0, value)
        return labels

    def highest(self, channels: int) -> int:
        """Return the highest label of a region.

        Raises:
            BundleError: not one channel for each region.
        """
        if channels != len(self.regions):
            raise BundleError(f"the network gives {channels} channels, expected {len(self.regions)}, one a region.")
        return max(self.regions)

    def _bits(self, is_there: torch.Tensor) -> torch.Tensor:
        """Return codes (...) of truths (regions, ...)."""
        codes = torch.zeros(is_there.shape[1:], dtype=torch.int32)
        for bit, region in enumerate(is_there):
            codes |= region.int() << bit
        return codes


def decision_of(regions: Sequence[int] | None) -> LogitDecision:
    """Return how logits are decided: by class, or by regions with these labels."""
    return LikeliestClass() if regions is None else Regions(tuple(regions))
