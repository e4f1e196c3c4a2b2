"""Bring intensities to a common scale: CT by HU windows, MRI image by image, ultrasound without its speckle."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from skimage.restoration import denoise_tv_chambolle

from voxelgate.core.errors import InputError, UsageError
from voxelgate.images.spec import HIGHEST_AIR_HU, PERCENTILE_LIMITS, SMALLEST_HU_RANGE, contrast_limits
from voxelgate.transforms.io import plain_tensor


class HUWindow(StrEnum):
    """Names of the windows in `HU_WINDOWS`."""

    ABDOMEN = "abdomen"
    BONE = "bone"
    BRAIN = "brain"
    HEAD_AND_NECK = "head_and_neck"
    LIVER = "liver"
    LUNG = "lung"
    MEDIASTINUM = "mediastinum"
    SOFT_TISSUE = "soft_tissue"
    SPINE = "spine"
    STROKE = "stroke"
    SUBDURAL = "subdural"
    TEMPORAL_BONE = "temporal_bone"
    WIDE = "wide"


HU_WINDOWS: Mapping[HUWindow, tuple[float, float]] = MappingProxyType(
    {
        HUWindow.ABDOMEN: (50.0, 400.0),
        HUWindow.BONE: (400.0, 1800.0),
        HUWindow.BRAIN: (40.0, 80.0),
        HUWindow.HEAD_AND_NECK: (50.0, 400.0),
        HUWindow.LIVER: (30.0, 150.0),
        HUWindow.LUNG: (-600.0, 1500.0),
        HUWindow.MEDIASTINUM: (50.0, 350.0),
        HUWindow.SOFT_TISSUE: (50.0, 400.0),
        HUWindow.SPINE: (50.0, 250.0),
        HUWindow.STROKE: (40.0, 40.0),
        HUWindow.SUBDURAL: (75.0, 215.0),
        HUWindow.TEMPORAL_BONE: (600.0, 2800.0),
        HUWindow.WIDE: (0.0, 2000.0),
    }
)
"""Level and width in HU of each window.

Levels and widths as listed by Radiopaedia, "Windowing (CT)", https://radiopaedia.org/articles/windowing-ct. Where that
gives a range, one value of it stands here: head and neck (level 20 to 60, width 350 to 400) and subdural (50 to 100,
130 to 300). `soft_tissue` is the abdominal window, `wide` is ours: from air (-1000) to cortical bone (1000), for a
network that must see lung, fat, soft tissue and bone at once.
"""


LOG_FLOOR = 1e-3
"""Added to an image scaled to 0..1 before its logarithm, for the sake of zeros; a quarter of a grey level of 8 bits."""

DESPECKLE_ITERATIONS = 100
"""Most steps of the total variation minimiser; it stops earlier when the energy changes by less than 2e-4."""


def window_limits(preset: str) -> tuple[float, float]:
    """Return the lowest and highest HU of a named window.

    Raises:
        UsageError: no window has that name; the message names the nearest.

    >>> window_limits("lung")
    (-1350.0, 150.0)
    """
    if preset not in HU_WINDOWS:
        near = get_close_matches(preset, HU_WINDOWS)
        hint = f"did you mean {str(near[0])!r}?" if near else f"there are {', '.join(sorted(HU_WINDOWS))}."
        raise UsageError(f"no HU window is named {preset!r}; {hint}")
    level_hu, width_hu = HU_WINDOWS[HUWindow(preset)]
    return level_hu - width_hu / 2, level_hu + width_hu / 2


def window(image: torch.Tensor, low_hu: float, high_hu: float) -> torch.Tensor:
    """Map HU linearly to [0, 1]; values outside the window are clipped.

    Args:
        image: HU, any shape and dtype; a whole volume, since a patch of nothing but air looks like no CT.
        low_hu: HU that becomes 0.
        high_hu: HU that becomes 1; above `low_hu`.

    Returns:
        float32, shape and geometry of `image`.

    Raises:
        ValueError: `low_hu >= high_hu`.
        InputError: `image` cannot hold HU, since it spans less than `SMALLEST_HU_RANGE` or is not finite; windowing
            twice would pass unnoticed.
    """
    if not low_hu < high_hu:
        raise ValueError(f"a window needs low_hu < high_hu, found {low_hu} and {high_hu}")
    voxels = plain_tensor(image).to(torch.float32, copy=True)
    darkest, brightest = (float(limit) for limit in voxels.aminmax())
    if not SMALLEST_HU_RANGE <= brightest - darkest < np.inf:
        raise InputError(
            f"values from {darkest:g} to {brightest:g} cannot be HU, which span at least {SMALLEST_HU_RANGE:g}; "
            "window an image once only, before patches are cut, and use NormalizeImaged for anything but CT."
        )
    return _like(voxels.sub_(low_hu).div_(high_hu - low_hu).clamp_(0.0, 1.0), image)


def from_offset(image: torch.Tensor, offset_hu: float) -> torch.Tensor:
    """Return HU of a CT that may be stored as HU plus an offset, so that no value is negative.

    Which of the two an image is, its darkest voxel tells, since every CT shows air: at about -1000 in HU, at 0 or more
    with the offset. What was set to 0 outside the body becomes air.

    Args:
        image: HU, or HU + `offset_hu`, any shape and dtype; a whole volume.
        offset_hu: what was added, usually 1000 or 1024.

    Returns:
        HU, float32, shape and geometry of `image`.

    Raises:
        InputError: the darkest voxel lies between `HIGHEST_AIR_HU` and 0, so neither is sure, or is not finite.
    """
    darkest = float(plain_tensor(image).min())
    if not (darkest >= 0.0 or darkest <= HIGHEST_AIR_HU):
        raise InputError(
            f"the darkest voxel is {darkest:g}: neither HU, which show air below {HIGHEST_AIR_HU:g}, nor HU plus "
            f"{offset_hu:g}, which are never negative; give the scan as its scanner made it."
        )
    voxels = plain_tensor(image).to(torch.float32, copy=True)
    return _like(voxels.sub_(offset_hu) if darkest >= 0.0 else voxels, image)


def normalize(
    image: torch.Tensor,
    *,
    nonzero: bool = True,
    low_percentile: float = PERCENTILE_LIMITS[0],
    high_percentile: float = PERCENTILE_LIMITS[1],
    together: bool = False,
) -> torch.Tensor:
    """Clip an image to two percentiles and bring it to mean 0 and standard deviation 1, each channel on its own.

    Args:
        image: (C, ...), any unit and dtype.
        nonzero: take percentiles, mean and deviation from the voxels that are not 0. All voxels are mapped, those that
            are 0 too: they become what the formula gives them, about the darkest value of the others. nnU-Net and
            MONAI's `NormalizeIntensity(nonzero=True)` leave them at 0, which is the mean of the others: right or wrong
            does not matter around a skull-stripped brain, but in an image without an empty background the darkest
            voxels (fluid, air, vessels) would become mid-grey. The mapping used here keeps the order of the voxels.
        low_percentile: percentile to which darker voxels are raised.
        high_percentile: percentile to which brighter voxels are lowered.
        together: all channels as one, for colours, whose relation then stays, and of which one may be empty.

    Returns:
        float32, shape and geometry of `image`; unchanged by a positive factor on `image`.

    Raises:
        InputError: a channel holds one value only (of those taken), only zeros, or values that are not finite.
    """
    percentiles = (low_percentile, high_percentile)
    voxels = plain_tensor(image).to(torch.float32, copy=True)
    for index, channel in enumerate(voxels[None] if together else voxels):
        values = channel.numpy(force=True).reshape(-1)
        low, high, mean, deviation = _statistics(values[values != 0] if nonzero else values, percentiles, index)
        channel.clamp_(low, high).sub_(mean).div_(deviation)
    return _like(voxels, image)


def despeckle(image: torch.Tensor, weight: float, *, log_compressed: bool = False) -> torch.Tensor:
    """Reduce speckle by total variation, which smooths within tissue and keeps its borders.

    Speckle multiplies the echo, so that its logarithm carries additive noise of equal strength everywhere; there the
    minimiser of Chambolle (doi:10.1023/B:JMIV.0000011325.36760.1e, `skimage.restoration.denoise_tv_chambolle`) is
    used, channel by channel. Voxels are taken as cubes: resample to isotropic spacing first.

    Args:
        image: ultrasound, at least 0, (C, I, J) or (C, I, J, K).
        weight: strength; larger is smoother. In units of the logarithm (0.1 is 10 %), or of the brightest voxel.
        log_compressed: the scanner already took the logarithm, as for every B-mode image on its screen.

    Returns:
        float32, shape and geometry of `image`; a positive factor on `image` is one on the result.

    Raises:
        InputError: negative or not finite values, or nothing but zeros in a channel.
    """
    channels = [
        _despeckled(channel, weight, log_compressed=log_compressed)
        for channel in plain_tensor(image).float().numpy(force=True)
    ]
    return _like(torch.from_numpy(np.stack(channels)), image)


class WindowHUd(MapTransform):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Map CT by a HU window to [0, 1], float32; see `window`.

    Args:
        keys: CT volumes in HU.
        preset: a name of `HUWindow`; or else both limits.
        low_hu: HU that becomes 0.
        high_hu: HU that becomes 1.
        allow_missing_keys: skip keys that are absent instead of refusing.

    Raises:
        UsageError: preset and limits together, neither, one limit only, limits in the wrong order, or an unknown name.

    >>> WindowHUd("image", preset="liver").high_hu
    105.0
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        preset: str | None = None,
        low_hu: float | None = None,
        high_hu: float | None = None,
        *,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.low_hu, self.high_hu = _chosen_limits(preset, low_hu, high_hu)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the images windowed."""
        return _mapped(self, data, lambda image: window(image, self.low_hu, self.high_hu))


class OffsetToHUd(MapTransform):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Bring CT to HU where it may be stored as HU plus an offset, float32; see `from_offset`.

    Args:
        keys: CT volumes, all in HU or all with the offset, or each as it likes.
        offset_hu: what was added to the HU.
        allow_missing_keys: skip keys that are absent instead of refusing.

    Raises:
        UsageError: the offset is not positive.

    >>> stored = {"image": MetaTensor(torch.full((1, 2, 2, 2), 1024.0))}
    >>> float(vg.OffsetToHUd("image", offset_hu=1024)(stored)["image"].max())
    0.0
    """

    def __init__(
        self, keys: Hashable | Sequence[Hashable], offset_hu: float, *, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not offset_hu > 0.0:
            raise UsageError(f"offset_hu must be positive, found {offset_hu}.")
        self.offset_hu = offset_hu

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the images in HU."""
        return _mapped(self, data, lambda image: from_offset(image, self.offset_hu))


class NormalizeImaged(MapTransform):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Normalise each image by its own percentiles, mean and standard deviation, float32; see `normalize`.

    Args:
        keys: images, (C, I, J, K).
        nonzero: take the statistics from the voxels that are not 0; all voxels are mapped.
        low_percentile: percentile to which darker voxels are raised.
        high_percentile: percentile to which brighter voxels are lowered.
        together: all channels as one, for colours.
        allow_missing_keys: skip keys that are absent instead of refusing.

    Raises:
        UsageError: the percentiles are not 0 <= low < high <= 100.

    >>> image = vg.NormalizeImaged("image")({"image": MetaTensor(torch.arange(1.0, 65.0).reshape(1, 4, 4, 4))})["image"]
    >>> round(float(image.mean()), 3) + 0.0
    0.0
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        *,
        nonzero: bool = True,
        low_percentile: float = PERCENTILE_LIMITS[0],
        high_percentile: float = PERCENTILE_LIMITS[1],
        together: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 0.0 <= low_percentile < high_percentile <= 100.0:
            raise UsageError(f"percentiles need 0 <= low < high <= 100, found {low_percentile} and {high_percentile}.")
        self.nonzero = nonzero
        self.low_percentile = low_percentile
        self.high_percentile = high_percentile
        self.together = together

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the images normalised."""
        change = partial(
            normalize,
            nonzero=self.nonzero,
            low_percentile=self.low_percentile,
            high_percentile=self.high_percentile,
            together=self.together,
        )
        return _mapped(self, data, change)


class Despeckled(MapTransform):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Reduce the speckle of ultrasound, float32; see `despeckle`.

    Args:
        keys: ultrasound images, (C, I, J) or (C, I, J, K), at least 0.
        weight: strength; larger is smoother. The default takes speckle of one look from 52 % of the mean to 10 %.
        log_compressed: the scanner already took the logarithm, as for every B-mode image on its screen; a weight of 0.1
            is then enough.
        allow_missing_keys: skip keys that are absent instead of refusing.

    Raises:
        UsageError: `weight` is not positive.

    >>> calm = vg.Despeckled("image")({"image": MetaTensor(torch.rand(1, 8, 8, 8))})["image"]
    >>> calm.shape
    torch.Size([1, 8, 8, 8])
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        *,
        weight: float = 0.3,
        log_compressed: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not weight > 0.0:
            raise UsageError(f"weight must be positive, found {weight}.")
        self.weight = weight
        self.log_compressed = log_compressed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the images smoothed."""
        return _mapped(self, data, partial(despeckle, weight=self.weight, log_compressed=self.log_compressed))


def _mapped(
    step: MapTransform, data: Mapping[Hashable, Any], change: Callable[[torch.Tensor], torch.Tensor]
) -> dict[Hashable, Any]:
    """Return `data` with the images of a step changed, one by one.

    Raises:
        InputError: as `change` does, with the case of a training.
    """
    try:
        return {**data, **{key: change(torch.as_tensor(data[key])) for key in step.key_iterator(data)}}
    except InputError as error:
        raise InputError(f"{data['case_id']}: {error}" if "case_id" in data else str(error)) from error


def _like(voxels: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Give new voxels the type, device and geometry of `image`."""
    result: torch.Tensor = convert_to_dst_type(voxels, image, dtype=torch.float32)[0]
    return result


def _chosen_limits(preset: str | None, low_hu: float | None, high_hu: float | None) -> tuple[float, float]:
    if preset is not None and low_hu is None and high_hu is None:
        return window_limits(preset)
    if preset is not None or low_hu is None or high_hu is None:
        raise UsageError(
            f"give either a preset or both low_hu and high_hu, found preset {preset}, {low_hu} and {high_hu}."
        )
    if not low_hu < high_hu:
        raise UsageError(f"a window needs low_hu < high_hu, found {low_hu} and {high_hu}.")
    return low_hu, high_hu


def _statistics(
    values: npt.NDArray[np.float32], percentiles: tuple[float, float], channel: int
) -> tuple[float, float, float, float]:
    """Return both percentiles, and mean and standard deviation of the values clipped to them."""
    low, high = contrast_limits(values, percentiles, channel)
    clipped = values.clip(low, high)
    return low, high, float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64))


def _despeckled(channel: npt.NDArray[np.float32], weight: float, *, log_compressed: bool) -> npt.NDArray[np.float32]:
    darkest, brightest = float(channel.min()), float(channel.max())
    if not (darkest >= 0.0 and 0.0 < brightest < np.inf):
        raise InputError(f"ultrasound holds values from 0 upwards, found {darkest:g} to {brightest:g}.")
    scaled = channel / brightest
    echo = scaled if log_compressed else np.log(scaled + LOG_FLOOR)
    smooth = denoise_tv_chambolle(echo, weight=weight, max_num_iter=DESPECKLE_ITERATIONS)
    echo_again = smooth if log_compressed else np.exp(smooth) - LOG_FLOOR
    result: npt.NDArray[np.float32] = (echo_again.clip(0.0, 1.0) * brightest).astype(np.float32)
    return result
