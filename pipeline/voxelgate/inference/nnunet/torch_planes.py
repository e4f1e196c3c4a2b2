"""From planes of logits to the source grid as PyTorch interpolates the whole volume, to the last bit.

This is what plans ask for by `resample_torch_fornnunet`. PyTorch's own kernels do it, which are given two planes and
the place between them instead of the volume.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from voxelgate.core.geometry import Shape, triple
from voxelgate.inference.nnunet.decisions import LogitDecision
from voxelgate.inference.nnunet.source_planes import LogitPlane
from voxelgate.inference.nnunet.taps import Taps, picking_taps

SMALL_PLANE = 128
COLOURS = 3
"""A plane whose two sides are together no longer than this, or that has three channels, is made by another kernel than
others, with other last bits (`_use_vectorized_kernel_cond_2d` in ATen's UpSampleKernel.cpp)."""

VECTOR_CHANNELS = 8
"""That kernel computes so many channels together, and those that are left over one by one, with other last bits."""


def torch_taps(size: int, count: int) -> Taps:
    """Return taps from `size` to `count` voxels as PyTorch's linear interpolation has them, in float32.

    Product and difference are rounded once, as a processor with fused multiply-add does it
    (`area_pixel_compute_source_index` in ATen's UpSample.h).
    """
    if size == count:
        return picking_taps(np.arange(size))
    scale = np.float64(np.float32(size) / np.float32(count))
    positions = ((np.arange(count) + 0.5) * scale - 0.5).astype(np.float32).clip(min=0)
    low = np.minimum(positions.astype(np.int64), size - 1)
    ends = [np.minimum(low + offset, size - 1) for offset in (0, 1)]
    weight = 1.0 - (positions - low.astype(np.float32)).astype(np.float64)
    return Taps(torch.from_numpy(ends[0]), torch.from_numpy(ends[1]), torch.from_numpy(weight))


def nearest_exact_taps(size: int, count: int) -> Taps:
    """Return taps of PyTorch's "nearest-exact" interpolation."""
    index = torch.arange(size, dtype=torch.float32)[None, None]
    return picking_taps(F.interpolate(index, count, mode="nearest-exact")[0, 0].long().numpy())


@dataclass(frozen=True, eq=False)
class TorchRestorer:
    """Interpolates planes of the source grid as `resample_torch_fornnunet` does: linear, in float32, never rounded.

    Args:
        taps: of the three axes; the nearest voxel along one that is resampled apart.
        network: size of the network grid.
        apart: axis that is resampled apart from the others.
        decision: how logits become labels.
    """

    taps: tuple[Taps, Taps, Taps]
    network: Shape
    apart: int | None
    decision: LogitDecision

    @classmethod
    def of(cls, network: Shape, source: Shape, apart: int | None, decision: LogitDecision) -> "TorchRestorer":
        """Return what restores the source grid, whose size is given in the axes of the network grid."""
        taps = triple(
            (nearest_exact_taps if axis == apart else torch_taps)(n, count)
            for axis, (n, count) in enumerate(zip(network, source, strict=True))
        )
        return cls(taps, network, apart, decision)

    def labels(self, index: int, planes: tuple[LogitPlane, ...]) -> torch.Tensor:
        """Return the labels (H', W') of one plane of the source grid, given its `neighbours`."""
        highest = self.decision.highest(len(planes[0].logits))
        codes = self.decision.codes(self.logits(index, planes))
        return self.decision.labels(codes).to(torch.uint8 if highest < 256 else torch.int32)

    def logits(self, index: int, planes: tuple[LogitPlane, ...]) -> torch.Tensor:
        """Return the logits (classes, H', W') float32 of one plane of the source grid, given its `neighbours`."""
        stack = torch.stack([plane.logits for plane in planes], dim=1).float()
        if not any(taps.is_between for axis, taps in enumerate(self.taps) if axis != self.apart):
            return self._nearest(stack[:, 0])
        if self.apart is None:
            return self._linear(index, stack, self._size[1:])
        if self.apart == 0:
            return self._in_plane(index, stack[:, 0])
        rows = stack.movedim(1 + self.apart, 1)  # (classes, n, planes, m): each of the n is interpolated by itself
        found = self._linear(index, rows.flatten(0, 1), self._size[3 - self.apart :][:1])
        return self._nearest(found.reshape(*rows.shape[:2], -1).movedim(1, self.apart))

    @property
    def _size(self) -> Shape:
        return triple(len(taps.low) for taps in self.taps)

    def _linear(self, index: int, stack: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        """Return (c, *size) at the place of a plane of the source grid in the stack (c, n, ...) of its `neighbours`.

        The kernel computes the place from a scale and the number of a plane. Between later planes than the first two,
        a scale gives it as plane 0, to the last bit: places are multiples of 2**-23 there.
        """
        first, is_first_two = self.taps[0], int(self.taps[0].low[index]) == 0
        count = index + 1 if first.is_between and is_first_two else 1
        if not first.is_between:
            scale = 1.0
        elif is_first_two:
            scale = float(np.float32(self.network[0]) / np.float32(len(first.low)))
        else:
            scale = 2 * float(1 - first.weight[index]) + 1
        if first.is_between and stack.shape[1] == count:  # which would be taken for nothing to be done
            stack = torch.cat((stack, stack[:, -1:]), dim=1)
        settings: dict[str, Any] = {"align_corners": False, "scales_w": None}
        if len(size) == 1 and _is_vectorised((self._size[0], *size), len(stack)):
            settings["scales_h"] = 1 / scale
            planes: torch.Tensor = torch.ops.aten.upsample_bilinear2d(stack[None], [count, *size], **settings)
            return planes[0, :, -1]
        settings |= {"scales_d": 1 / scale, "scales_h": None}
        solid = stack[None] if len(size) == 2 else stack[None, ..., None]
        found: torch.Tensor = torch.ops.aten.upsample_trilinear3d(solid, [count, *size, 1][:3], **settings)
        return found[0, :, -1].reshape(len(stack), *size)

    def _in_plane(self, index: int, plane: torch.Tensor) -> torch.Tensor:
        """Return (classes, h, w) of a plane (classes, H, W), as if those of the whole network grid were channels."""
        size, channels = self._size[1:], len(plane) * self.network[0]
        if not _is_vectorised(size, channels):
            several = F.pad(plane, (0, 0, 0, 0, 0, int(len(plane) == COLOURS)))
            return F.interpolate(several[None], size, mode="bilinear")[0, : len(plane)]
        places = torch.arange(len(plane)) * self.network[0] + self.taps[0].low[index]
        count = int((places < channels - channels % VECTOR_CHANNELS).sum())
        together = F.pad(plane[:count], (0, 0, 0, 0, 0, -count % VECTOR_CHANNELS))
        groups = [group for group in (together, plane[count:]) if len(group)]
        found = [F.interpolate(group[None], size, mode="bilinear")[0] for group in groups]
        return torch.cat([found[0][:count], *found[1:]] if count else found)

    def _nearest(self, plane: torch.Tensor) -> torch.Tensor:
        """Return a plane (classes, h, w) with the nearest voxels along the axis that is apart, if it lies in it."""
        return plane if not self.apart else plane.index_select(self.apart, self.taps[self.apart].low)


def _is_vectorised(size: tuple[int, ...], channels: int) -> bool:
    """Return which of its two kernels PyTorch takes for a plane of some size."""
    return sum(size) <= SMALL_PLANE or channels == COLOURS
