"""The intensity rules of nnU-Net, in float32 and in its order of operations."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError, UsageError

Channel = npt.NDArray[np.float32]

LEAST_DEVIATION = 1e-8
"""What is divided by at least, as in nnU-Net."""

MOST_RGB = 255.0
"""Brightest value of a colour of eight bits."""


class NormalizationScheme(StrEnum):
    """The classes of nnU-Net that normalise, by the names that plans use."""

    CT = "CTNormalization"
    Z_SCORE = "ZScoreNormalization"
    NONE = "NoNormalization"
    RESCALE = "RescaleTo01Normalization"
    RGB = "RGBTo01Normalization"


@dataclass(frozen=True)
class Normalization:
    """How a channel is normalised.

    Args:
        scheme: by which rule.
        mean: that CT is centred on.
        std: that CT is divided by.
        low: least value of CT.
        high: greatest value of CT.
        only_mask: whether a z-score counts and changes only voxels that are not outside (`use_mask_for_norm`).
    """

    scheme: NormalizationScheme
    mean: float = 0.0
    std: float = 1.0
    low: float = -np.inf
    high: float = np.inf
    only_mask: bool = False

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], *, only_mask: bool = False) -> Self:
        """Return what plans say: `scheme`, and for CT the properties of the training images by nnU-Net's names.

        Raises:
            UsageError: another scheme, or CT without numbers.

        >>> Normalization.from_mapping({"scheme": "ZScoreNormalization"}).scheme
        <NormalizationScheme.Z_SCORE: 'ZScoreNormalization'>
        """
        name = given.get("scheme")
        if name not in list(NormalizationScheme):
            raise UsageError(f"the normalization {name}, expected one of {', '.join(NormalizationScheme)}.")
        if (scheme := NormalizationScheme(name)) is not NormalizationScheme.CT:
            return cls(scheme, only_mask=only_mask and scheme is NormalizationScheme.Z_SCORE)
        wanted = ("mean", "std", "percentile_00_5", "percentile_99_5")
        if missing := [key for key in wanted if not isinstance(given.get(key), int | float)]:
            raise UsageError(f"{scheme} without {', '.join(missing)}, expected numbers; they stand in the plans.")
        mean, std, low, high = (float(given[key]) for key in wanted)
        return cls(scheme, mean, std, low, high)


def normalised_channel(values: Channel, how: Normalization, mask: npt.NDArray[np.bool_] | None = None) -> Channel:
    """Return a channel, normalised.

    Args:
        values: (a, b, c). Sums in float32 depend on the memory layout, which must be that of nnU-Net.
        how: by which rule.
        mask: voxels that count, for a rule that asks.

    Raises:
        InputError: a picture in colours with values beyond 0 to 255.
    """
    if how.scheme is NormalizationScheme.CT:
        return _scaled(np.clip(values, how.low, how.high), how.mean, how.std)
    if how.scheme is NormalizationScheme.Z_SCORE and how.only_mask and mask is not None:
        out, inside = values.copy(), values[mask]
        out[mask] = _scaled(inside, inside.mean(), inside.std())
        return out
    if how.scheme is NormalizationScheme.Z_SCORE:
        return _scaled(values, values.mean(), values.std())
    if how.scheme is NormalizationScheme.RESCALE:
        low = values.min()
        return _scaled(values, low, values.max() - low)
    if how.scheme is NormalizationScheme.RGB:
        _refuse_no_colours(values)
        return _scaled(values, 0, MOST_RGB)
    return values


def _scaled(values: Channel, centre: float, divisor: float) -> Channel:
    shifted: Channel = values - centre
    shifted /= max(divisor, LEAST_DEVIATION)
    return shifted


def _refuse_no_colours(values: Channel) -> None:
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > MOST_RGB:
        raise InputError(f"a colour with values from {low:g} to {high:g}, expected 0 to 255; give pictures of 8 bits.")
