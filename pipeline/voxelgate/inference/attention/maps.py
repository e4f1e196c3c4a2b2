"""Gate maps of an `AttentionUNet` over whole volumes, on the grid of the file, and what they say about each gate.

Our own, since MONAI's sliding window makes maps of another size of odd windows: 30 voxels where there are 31.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import affine_transform
from scipy.special import xlogy
from torch import nn

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.geometry import Grid, Shape, triple
from voxelgate.inference.attention.gate_report import GateReport, GateVerdict
from voxelgate.inference.restoring.placement import SNAP_VOX
from voxelgate.networks import AttentionUNet
from voxelgate.networks.flat import FlatNetwork
from voxelgate.transforms.linear import interpolate_rows

Floats = npt.NDArray[np.float32]

OVERLAP = 0.25
"""Part of a window that the next one repeats; maps are blended like scores, by weights that fall to the border."""

WEIGHT_SIGMA = 0.125
"""Width of the bell of weights as a part of the window, as in MONAI's `compute_importance_map`."""

LEAST_WEIGHT = 1e-3
"""Of a voxel at the border of a window along one axis, so that where one window is alone its map stays what it is."""

SLAB_VOXELS = 2**22
"""Voxels that are brought to another grid at a time, at least one slice."""

QUANTILE_VOXELS = 2**22
"""Voxels from which the range of a gate is told; of larger maps every n-th counts."""

TAIL = 0.001
"""Part of the voxels at each end of a gate's values that says nothing about the gate as a whole."""

UNIFORM_RANGE = 0.1
"""A gate whose values differ by less weighs all voxels alike."""

SATURATED_BELOW = 0.05
SATURATED_ABOVE = 0.95
"""A gate whose values all lie beyond one of these passes nothing, or everything."""

SELECTIVE_CONTRAST = 0.1
"""Difference between the means inside and outside the labels from which on a gate tells them apart."""


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


def gate_levels(network: nn.Module) -> tuple[int, ...]:
    """Return the levels of the gates that `gate_maps` can show, 0 the finest skip connection.

    Raises:
        UsageError: there are none; the message says what the network is instead.
    """
    return _gated(network).levels


def gate_maps(network: nn.Module, image: torch.Tensor, grid: Grid, window_vox: Shape) -> list[GateMap]:
    """Return the coefficients of every gate over one volume, finest first.

    The network sees windows, as in a sliding window inference; beside a window's features only the maps are held, for
    each gate as many float32 as its level has voxels. Windows begin at multiples of the strides, where levels meet.

    Args:
        network: in eval mode, one that `gate_levels` takes.
        image: (1, C, i, j, k) on the network grid, on any device.
        grid: of `image`.
        window_vox: size of a window.

    Raises:
        UsageError: a network without gates to ask, or in training mode.
        InputError: the network refuses the size of the window.
    """
    gated = _gated(network)
    if network.training:
        raise UsageError("attention maps are those of a network in use; call eval() first.")
    size = triple(image.shape[2:])
    spans = _spans(size, window_vox, gated.deepest)
    blends = [_MapBlend(size, step, spans) for step in gated.reductions]
    device = next(network.parameters()).device
    for window in product(*spans):
        try:
            maps = gated.maps(image[(slice(None), slice(None), *window)].to(device).float())
        except ValueError as error:
            raise InputError(f"the network cannot take this volume: {error}.") from error
        for blend, alpha in zip(blends, maps, strict=True):
            blend.add(window, alpha.float().cpu())
    return [
        GateMap(level, blend.mean.numpy(), _coarser(grid, blend.step))
        for level, blend in zip(gated.levels, blends, strict=True)
    ]


def on_grid(gate: GateMap, target: Grid, slices: slice | None = None) -> Floats:
    """Return the coefficients of a gate on another grid, interpolated trilinearly through patient space.

    Args:
        gate: from `gate_maps`.
        target: RAS+ mm, such as that of the file; it may be turned. Voxels beyond the last ones get their value.
        slices: part of the third axis of `target`, with both ends; all of it if not given.

    Returns:
        (I, J, K), 0..1, the first axis running fastest as in a file; of the third as many as `slices` spans.
    """
    first, last = (0, target.shape[2]) if slices is None else (slices.start, slices.stop)
    to_gate = np.linalg.inv(gate.grid.affine) @ target.affine
    to_gate[:3, 3] += to_gate[:3, 2] * first
    shape = (target.shape[0], target.shape[1], last - first)
    along = np.abs(to_gate[:3, :3]).argmax(axis=1)
    across = to_gate[:3, :3].copy()
    across[range(3), along] = 0
    if len(set(along)) < 3 or (np.abs(across) * target.shape).max() > SNAP_VOX:
        oblique: Floats = affine_transform(
            gate.alpha, to_gate[:3, :3], to_gate[:3, 3], output_shape=shape, order=1, mode="nearest"
        )
        return oblique
    order = np.argsort(along)[::-1]  # of the gate's axes, so that what is asked for comes as it lies in a file
    rows = [np.arange(shape[along[axis]]) * to_gate[axis, along[axis]] + to_gate[axis, 3] for axis in order]
    alpha = gate.alpha.transpose(order)
    low, high = (int(np.clip(end, 0, len(alpha) - 1)) for end in (np.floor(rows[0].min()), np.ceil(rows[0].max())))
    part = torch.from_numpy(np.ascontiguousarray(alpha[low : high + 1]))
    values: Floats = interpolate_rows(part[None], [rows[0] - low, *rows[1:]])[0].numpy()
    return values.transpose()


def slabs(grid: Grid) -> Iterator[slice]:
    """Yield parts of the third axis of a grid, each of a size that fits in memory beside a volume."""
    step = max(1, SLAB_VOXELS // (grid.shape[0] * grid.shape[1]))
    for start in range(0, grid.shape[2], step):
        yield slice(start, min(start + step, grid.shape[2]))


def diagnose(gates: Sequence[GateMap], labels: npt.NDArray[Any], grid: Grid) -> tuple[GateReport, ...]:
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
    return tuple(_report(gate, labels, grid) for gate in gates)


@dataclass(frozen=True)
class _Gated:
    """A network with gates, as it is for volumes.

    Args:
        unet: 3D, or 2D.
        flat_axis: of size 1, which a 2D network does not see; None in 3D.
    """

    unet: AttentionUNet
    flat_axis: int | None

    @property
    def levels(self) -> tuple[int, ...]:
        """Return the levels with a gate; those without are the finest."""
        levels = len(self.unet.decoder)
        return tuple(range(levels - len(self.unet.gates), levels))

    @property
    def reductions(self) -> list[Shape]:
        """Return how many voxels of the image a voxel of each map spans along each axis."""
        return [self._in_3d(steps) for steps in self.unet.map_reductions()]

    @property
    def deepest(self) -> Shape:
        """Return the same for the deepest level."""
        return self._in_3d([prod(steps) for steps in zip(*self.unet.strides, strict=True)])

    @torch.no_grad()
    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps (i, j, k) for an image (1, C, i, j, k)."""
        if self.flat_axis is None:
            return [alpha[0, 0] for alpha in self.unet.attention_maps(image)]
        maps = self.unet.attention_maps(image.squeeze(2 + self.flat_axis))
        return [alpha[0, 0].unsqueeze(self.flat_axis) for alpha in maps]

    def _in_3d(self, steps: Sequence[int]) -> Shape:
        flat = len(steps) if self.flat_axis is None else self.flat_axis
        return triple([*steps[:flat], 1, *steps[flat:]][:3])


def _gated(network: nn.Module) -> _Gated:
    if isinstance(network, nn.ModuleList):
        raise UsageError("an ensemble has the gates of several networks; ask for attention maps without --ensemble.")
    flat = network if isinstance(network, FlatNetwork) else None
    unet = network if flat is None else flat.network
    if not isinstance(unet, AttentionUNet) or unet.spatial_dims != (3 if flat is None else 2) or not unet.gates:
        raise UsageError(
            f"attention maps are those of an AttentionUNet with gates, and this {type(unet).__name__} has none for "
            "volumes; leave out --attention, or take another bundle."
        )
    return _Gated(unet, None if flat is None else flat.axis)


def _report(gate: GateMap, labels: npt.NDArray[Any], grid: Grid) -> GateReport:
    total, within, count, voxels = 0.0, 0.0, 0, labels.size
    for span in slabs(grid):
        alpha, inside = on_grid(gate, grid, span), labels[..., span] > 0
        total += float(alpha.sum(dtype=np.float64))
        within += float(alpha.sum(dtype=np.float64, where=inside))
        count += int(inside.sum())
    contrast = within / count - (total - within) / (voxels - count) if 0 < count < voxels else 0.0
    low, high = _range(gate.alpha)
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


def _range(alpha: Floats) -> tuple[float, float]:
    step = -(-alpha.size // QUANTILE_VOXELS)
    low, high = np.quantile(alpha.reshape(-1)[::step], (TAIL, 1 - TAIL)).tolist()
    return low, high


def _verdict(low: float, high: float, contrast: float) -> GateVerdict:
    if high < SATURATED_BELOW or low > SATURATED_ABOVE:
        return GateVerdict.SATURATED
    if high - low < UNIFORM_RANGE:
        return GateVerdict.UNIFORM
    return GateVerdict.SELECTIVE if abs(contrast) >= SELECTIVE_CONTRAST else GateVerdict.UNRELATED


def _entropy(alpha: Floats) -> float:
    """Return the entropy of `alpha / sum(alpha)`, as a part of its largest value, log(voxels)."""
    total = float(alpha.sum(dtype=np.float64))
    if total == 0 or alpha.size == 1:
        return 0.0
    weighted = sum(float(xlogy(plane, plane).sum(dtype=np.float64)) for plane in alpha)
    return float((np.log(total) - weighted / total) / np.log(alpha.size))


def _spans(size: Shape, window_vox: Shape, multiple: Sequence[int]) -> list[list[slice]]:
    """Return for each axis windows that begin at multiples of `multiple`; the last one reaches to the far end."""
    spans = []
    for n, window, step in zip(size, window_vox, multiple, strict=True):
        last = max(0, n - window) // step * step
        interval = max(1, int(window * (1 - OVERLAP)) // step) * step
        starts = [*range(0, last, interval), last]
        spans.append([slice(start, n if start == last else start + max(window, step)) for start in starts])
    return spans


class _MapBlend:
    """Weighted mean of the maps of one gate from many windows; whole when every window was added once.

    The weight of a voxel is a product of one number for each axis, and so is the sum of all its weights.

    Args:
        size: of the image.
        step: voxels of the image that a voxel of the map spans along each axis.
        spans: for each axis, the windows.
    """

    def __init__(self, size: Shape, step: tuple[int, ...], spans: Sequence[Sequence[slice]]) -> None:
        self.step = step
        self.mean = torch.zeros([-(-n // s) for n, s in zip(size, step, strict=True)])
        self.weights = [torch.zeros(n) for n in self.mean.shape]
        for axis, windows in enumerate(spans):
            for place in (self._place(window, axis) for window in windows):
                self.weights[axis][place] += _bell(place)

    def add(self, window: tuple[slice, ...], alpha: torch.Tensor) -> None:
        """Add the map of one window."""
        place = tuple(self._place(span, axis) for axis, span in enumerate(window))
        shares = [_bell(one) / weights[one] for one, weights in zip(place, self.weights, strict=True)]
        self.mean[place] += alpha * torch.einsum("i,j,k->ijk", *shares)

    def _place(self, span: slice, axis: int) -> slice:
        return slice(span.start // self.step[axis], -(-span.stop // self.step[axis]))


def _bell(place: slice) -> torch.Tensor:
    """Return weights that fall from 1 in the middle of a window to its border."""
    length = place.stop - place.start
    from_middle = torch.arange(length) - (length - 1) / 2
    return torch.exp(-0.5 * (from_middle / (WEIGHT_SIGMA * length)) ** 2).clamp(min=LEAST_WEIGHT)


def _coarser(grid: Grid, step: tuple[int, ...]) -> Grid:
    """Return the grid of voxels that each span `step` voxels; the last ones may reach beyond the volume."""
    affine = grid.affine.copy()
    affine[:3, :3] = affine[:3, :3] * np.array(step)
    affine[:3, 3] += grid.affine[:3, :3] @ ((np.array(step) - 1) / 2)
    return Grid(triple(-(-n // s) for n, s in zip(grid.shape, step, strict=True)), affine)
