"""Gate maps of an `AttentionUNet` over whole volumes, on the grid of the file, and what they say about each gate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data.utils import compute_importance_map
from scipy.ndimage import affine_transform

from pipeline.errors import InputError, UsageError
from pipeline.geometry import Grid
from pipeline.networks import AttentionUNet

Shape = tuple[int, int, int]
Floats = npt.NDArray[np.float32]

OVERLAP = 0.25
"""Part of a window that the next one repeats; maps are blended like scores, by weights that fall to the border."""

TAIL = 0.001
"""Part of the voxels at each end of a gate's values that says nothing about the gate as a whole."""

UNIFORM_RANGE = 0.1
"""A gate whose values differ by less weighs all voxels alike."""

SATURATED_BELOW = 0.05
SATURATED_ABOVE = 0.95
"""A gate whose values all lie beyond one of these passes nothing, or everything."""

SELECTIVE_CONTRAST = 0.1
"""Difference between the means inside and outside the labels from which on a gate tells them apart."""


class Verdict(StrEnum):
    """What a gate does: the same everywhere, nothing or everything, tell the labels apart, or vary without them."""

    UNIFORM = "uniform"
    SATURATED = "saturated"
    SELECTIVE = "selective"
    UNRELATED = "unrelated"


@dataclass(frozen=True, eq=False)
class GateMap:
    """The coefficients of one gate over a volume.

    Args:
        level: of its skip connection, 0 the finest.
        alpha: (i, j, k), 0..1.
        grid: of `alpha`, RAS+ mm; its voxels are larger than those of the network grid by the strides so far.
    """

    level: int
    alpha: Floats
    grid: Grid


@dataclass(frozen=True)
class GateReport:
    """What the coefficients of one gate say.

    Args:
        level: of its skip connection, 0 the finest.
        verdict: in a word.
        low: value that all but a thousandth of the voxels exceed.
        high: value that only a thousandth of the voxels exceed.
        entropy: of the coefficients as a distribution over the voxels, 1 where all are equal, 0 for a single voxel.
        mass_inside: part of the sum of the coefficients that lies inside the labels.
        label_share: part of the voxels inside the labels: `mass_inside` of a gate that is the same everywhere.
        contrast: mean inside minus mean outside the labels; 0 if one of them is empty.
    """

    level: int
    verdict: Verdict
    low: float
    high: float
    entropy: float
    mass_inside: float
    label_share: float
    contrast: float

    def __str__(self) -> str:
        return (
            f"gate {self.level} is {self.verdict}: {self.low:.2f} to {self.high:.2f}, entropy {self.entropy:.3f}, "
            f"{100 * self.mass_inside:.1f} % of its mass on {100 * self.label_share:.1f} % of the voxels, the labels"
        )


def gate_maps(network: AttentionUNet, image: torch.Tensor, grid: Grid, window_vox: Shape) -> list[GateMap]:
    """Return the coefficients of every gate over one volume, finest first; none in a plain U-Net.

    The network sees windows, as in a sliding window inference; beside a window's features only the maps are held, for
    each gate as many float32 as its level has voxels. Windows begin at multiples of the strides, where levels meet.

    Args:
        network: in eval mode, 3D.
        image: (1, C, i, j, k) on the network grid, on any device.
        grid: of `image`.
        window_vox: size of a window.

    Raises:
        UsageError: a network without gates to ask, or in training mode.
        InputError: the network refuses the size of the window.
    """
    if not isinstance(network, AttentionUNet) or network.spatial_dims != 3 or network.training:
        raise UsageError(f"gate maps are those of a 3D AttentionUNet in eval mode, found {type(network).__name__}.")
    if not network.gates:
        return []
    size = (image.shape[2], image.shape[3], image.shape[4])
    steps = network.map_reductions()
    blends = [_Blend(size, step) for step in steps]
    device = next(network.parameters()).device
    deepest = [prod(steps) for steps in zip(*network.strides, strict=True)]
    for window in _windows(size, window_vox, deepest):
        try:
            with torch.no_grad():
                maps = network.attention_maps(image[(slice(None), slice(None), *window)].to(device).float())
        except ValueError as error:
            raise InputError(f"the network cannot take this volume: {error}.") from error
        for blend, alpha in zip(blends, maps, strict=True):
            blend.add(window, alpha[0, 0].float().cpu())
    levels = range(len(network.decoder) - len(blends), len(network.decoder))
    return [
        GateMap(level, blend.result(), _coarser(grid, blend.step)) for level, blend in zip(levels, blends, strict=True)
    ]


def on_grid(gate: GateMap, target: Grid) -> Floats:
    """Return the coefficients of a gate on another grid, interpolated trilinearly through patient space.

    Args:
        gate: from `gate_maps`.
        target: RAS+ mm, such as that of the file; it may be turned. Voxels beyond the last ones get their value.

    Returns:
        (I, J, K), 0..1.
    """
    to_gate = np.linalg.inv(gate.grid.affine) @ target.affine
    values: Floats = affine_transform(
        gate.alpha, to_gate[:3, :3], to_gate[:3, 3], output_shape=target.shape, order=1, mode="nearest"
    )
    return values


def attention_volumes(gates: Sequence[GateMap], target: Grid) -> Iterator[tuple[int, Floats]]:
    """Yield the level and the map of each gate on `target`, one float32 volume at a time, to be written and let go."""
    for gate in gates:
        yield gate.level, on_grid(gate, target)


def diagnose(gates: Sequence[GateMap], labels: npt.NDArray[Any], grid: Grid) -> list[GateReport]:
    """Say of each gate whether it learnt anything.

    Args:
        gates: from `gate_maps`.
        labels: (I, J, K), the true ones or those that were found; all above 0 are inside.
        grid: of `labels`.

    Raises:
        UsageError: labels of another size than their grid.
    """
    if labels.shape != grid.shape:
        raise UsageError(f"labels of shape {labels.shape} on a grid of {grid.shape}; pass the grid they lie on.")
    inside = labels > 0
    return [_report(gate, on_grid(gate, grid), inside) for gate in gates]


def _report(gate: GateMap, alpha: Floats, inside: npt.NDArray[np.bool_]) -> GateReport:
    low, high = (float(value) for value in np.quantile(gate.alpha, (TAIL, 1 - TAIL)))
    count, voxels = int(inside.sum()), inside.size
    total, within = float(alpha.sum(dtype=np.float64)), float(alpha.sum(dtype=np.float64, where=inside))
    contrast = within / count - (total - within) / (voxels - count) if 0 < count < voxels else 0.0
    return GateReport(
        level=gate.level,
        verdict=_verdict(low, high, contrast),
        low=low,
        high=high,
        entropy=_entropy(gate.alpha),
        mass_inside=within / total if total > 0 else 0.0,
        label_share=count / voxels,
        contrast=contrast,
    )


def _verdict(low: float, high: float, contrast: float) -> Verdict:
    if high < SATURATED_BELOW or low > SATURATED_ABOVE:
        return Verdict.SATURATED
    if high - low < UNIFORM_RANGE:
        return Verdict.UNIFORM
    return Verdict.SELECTIVE if abs(contrast) >= SELECTIVE_CONTRAST else Verdict.UNRELATED


def _entropy(alpha: Floats) -> float:
    """Return the entropy of `alpha / sum(alpha)`, as a part of its largest value, log(voxels)."""
    total = float(alpha.sum(dtype=np.float64))
    if total == 0 or alpha.size == 1:
        return 0.0
    share = alpha[alpha > 0].astype(np.float64) / total
    return float(-(share * np.log(share)).sum() / np.log(alpha.size))


def _windows(size: Shape, window_vox: Shape, multiple: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Yield windows that begin at multiples of `multiple`; those at the far end reach to it."""
    spans = []
    for n, window, step in zip(size, window_vox, multiple, strict=True):
        last = max(0, n - window) // step * step
        interval = max(1, int(window * (1 - OVERLAP)) // step) * step
        starts = [*range(0, last, interval), last]
        spans.append([slice(start, n if start == last else start + max(window, step)) for start in starts])
    return product(*spans)


class _Blend:
    """Weighted sum of the maps of one gate from many windows.

    Args:
        size: of the image.
        step: voxels of the image that a voxel of the map spans along each axis.
    """

    def __init__(self, size: Shape, step: tuple[int, ...]) -> None:
        self.step = step
        shape = [-(-n // s) for n, s in zip(size, step, strict=True)]
        self.total, self.weight = torch.zeros(shape), torch.zeros(shape)

    def add(self, window: tuple[slice, ...], alpha: torch.Tensor) -> None:
        """Add the map of one window; of its far end as much as lies in the image."""
        weight = compute_importance_map(tuple(alpha.shape), mode="gaussian", device="cpu", dtype=torch.float32)
        place = tuple(
            slice(span.start // step, span.start // step + n)
            for span, step, n in zip(window, self.step, alpha.shape, strict=True)
        )
        self.total[place] += weight * alpha
        self.weight[place] += weight

    def result(self) -> Floats:
        """Return the mean, weighted."""
        mean: Floats = (self.total / self.weight).numpy()
        return mean


def _coarser(grid: Grid, step: tuple[int, ...]) -> Grid:
    """Return the grid of voxels that each span `step` voxels; the last ones may reach beyond the volume."""
    affine = grid.affine.copy()
    affine[:3, :3] = affine[:3, :3] * np.array(step)
    affine[:3, 3] += grid.affine[:3, :3] @ ((np.array(step) - 1) / 2)
    i, j, k = (-(-n // s) for n, s in zip(grid.shape, step, strict=True))
    return Grid((i, j, k), affine)
