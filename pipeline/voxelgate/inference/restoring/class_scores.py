"""What the output of a network says: which class, or which overlapping regions, a voxel belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import BundleError, UsageError

Scores = npt.NDArray[np.float32]
Codes = npt.NDArray[Any]
"""Decisions as integers, uint8 or int32: index of the likeliest class, or one bit for each region."""

CERTAIN_BY = 1e-5
"""Two classes must outdo what is left for all others by this much, 100 times the rounding of float32 probabilities."""

SUM_TOLERANCE = 1e-2
"""Averages and blends of float32 probabilities sum to 1 within 1e-5; bfloat16 keeps three digits."""

BACKGROUND_LOGIT = 30.0
"""Distance of the background to all else where no network was asked; the others keep a probability of 1e-13."""

MOST_REGIONS = 30
"""Each region takes one bit of an int32."""


@dataclass(frozen=True)
class ScoreKind:
    """How scores become decisions; arithmetic that a restorer needs, without any geometry.

    Args:
        are_probabilities: scores are probabilities already, otherwise logits.
        regions: None for classes that exclude each other (softmax, the likeliest wins, the first of equals). Otherwise
            the label of each channel's region; regions may overlap (sigmoid above one half), and a later one
            overrides an earlier, like `regions_class_order` of nnU-Net.

    Raises:
        UsageError: no region, more than 30, or labels below 1.
    """

    are_probabilities: bool = False
    regions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.regions is not None and not (1 <= len(self.regions) <= MOST_REGIONS and min(self.regions) >= 1):
            raise UsageError(f"regions {self.regions}: expected 1 to {MOST_REGIONS} labels of at least 1.")

    def check_channels(self, channels: int) -> None:
        """Refuse scores that cannot be of this kind.

        Raises:
            BundleError: one class only, or not one channel for each region.
        """
        if self.regions is None and channels < 2:
            raise BundleError("the network gives one class, expected the background and at least one structure.")
        if self.regions is not None and channels != len(self.regions):
            raise BundleError(f"the network gives {channels} channels, expected {len(self.regions)}, one a region.")

    def code_type(self, channels: int) -> npt.DTypeLike:
        """Return the integer type of codes: uint8 up to 256 classes or 8 regions, else int32."""
        return np.uint8 if channels <= (256 if self.regions is None else 8) else np.int32

    def label_type(self, channels: int) -> npt.DTypeLike:
        """Return the integer type of labels: uint8 up to 255, else int32, which PyTorch can index and save."""
        return np.uint8 if self.highest_label(channels) < 256 else np.int32

    def highest_label(self, channels: int) -> int:
        """Return the highest label that can be."""
        return channels - 1 if self.regions is None else max(self.regions)

    def background(self, channels: int) -> Scores:
        """Return the scores (channels,) of a voxel in which nothing is."""
        nothing = 0.0 if self.are_probabilities else -BACKGROUND_LOGIT
        scores = np.full(channels, nothing, np.float32)
        if self.regions is None:
            scores[0] = float(self.are_probabilities)
        return scores

    def labels(self, codes: Codes) -> Codes:
        """Return the labels that codes stand for."""
        if self.regions is None:
            return codes
        labels = np.zeros(codes.shape, self.label_type(len(self.regions)))
        for bit, label in enumerate(self.regions):
            labels[(codes & (1 << bit)) != 0] = label
        return labels

    def codes(self, scores: Scores) -> Codes:
        """Decide for each voxel by itself.

        Args:
            scores: (classes, n, H, W), any memory layout.

        Returns:
            (n, H, W) of `code_type`.

        Raises:
            BundleError: a voxel without a finite score.
        """
        codes = np.zeros(scores.shape[1:], self.code_type(len(scores)))
        for voxels, plane in zip(codes, scores.swapaxes(0, 1), strict=True):
            highest = self._decide(plane, voxels)
            if not np.isfinite(highest).all():
                raise BundleError("the network gives values that are not finite; its weights are damaged or misfit.")
        return codes

    def _decide(self, plane: Scores, codes: Codes) -> Scores:
        """Write the codes of one plane (classes, H, W) in place and return its highest scores."""
        if self.regions is not None:
            threshold = 0.5 if self.are_probabilities else 0.0
            for bit, region in enumerate(plane):
                codes |= (region > threshold).astype(codes.dtype) << bit
            return np.asarray(plane.max(axis=0))
        if plane.strides[0] == plane.itemsize:  # classes lie side by side in memory
            codes[...] = plane.argmax(axis=0)
            return np.asarray(plane.max(axis=0))
        # class by class within a plane that fits the cache: four times as fast as argmax across planes
        highest: Scores = plane[0].copy()
        is_higher = np.empty(highest.shape, codes.dtype)
        for index in range(1, len(plane)):
            np.greater(plane[index], highest, out=is_higher, casting="unsafe")
            np.maximum(plane[index], highest, out=highest)
            np.multiply(is_higher, codes.dtype.type(index), out=is_higher)
            np.maximum(codes, is_higher, out=codes)
        return highest

    def probabilities(self, scores: Scores, out: Scores | None = None) -> Scores:
        """Turn scores (classes, ...) into probabilities.

        Args:
            scores: any memory layout.
            out: where they shall stand, perhaps `scores` itself; new memory if not given. Scores that are probabilities
                already are returned as they are.

        Raises:
            BundleError: scores that are called probabilities do not sum to 1.
        """
        if self.are_probabilities:
            if self.regions is None and (np.abs(scores.sum(axis=0) - 1) > SUM_TOLERANCE).any():
                raise BundleError("the probabilities of a voxel do not sum to 1; these are no probabilities.")
            return scores
        found = np.empty_like(scores) if out is None else out
        if self.regions is None:
            np.subtract(scores, scores.max(axis=0), out=found)
            np.exp(found, out=found)
            found /= found.sum(axis=0)
            return found
        above = 1 / (1 + np.exp(-np.abs(scores)))
        found[...] = np.where(scores > 0, above, 1 - above)
        return found

    def codes_of(self, probabilities: Scores) -> Codes:
        """Decide from interpolated probabilities (classes, N)."""
        if self.regions is None:
            likeliest: Codes = probabilities.argmax(axis=0).astype(self.code_type(len(probabilities)))
            return likeliest
        codes = np.zeros(probabilities.shape[1], self.code_type(len(probabilities)))
        for bit, region in enumerate(probabilities):
            codes |= (region > 0.5).astype(codes.dtype) << bit
        return codes


def check_classes(asked: Sequence[int], channels: int) -> None:
    """Refuse class numbers that the network does not give.

    Raises:
        UsageError: a number below 0 or not below `channels`.
    """
    wrong = [index for index in asked if not 0 <= index < channels]
    if wrong:
        raise UsageError(
            f"classes {wrong} are asked for, but the network gives {channels} classes, 0 to {channels - 1}."
        )
