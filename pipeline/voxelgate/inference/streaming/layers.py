"""The layers of an `AttentionUNet` made ready for streaming: each takes slabs as they come, yields what is finished.

Batch norms are folded into the convolutions, weights lie channels-last, and the streamed axis comes first. `SlabTensor`
and `Line` are those of `voxelgate.inference.streaming.line_buffers`.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product, starmap, tee

import torch
from torch.nn import functional as F

from voxelgate.inference.streaming.line_buffers import (
    Buffers,
    Line,
    PlaneSize,
    SkipLine,
    SlabTensor,
    at_most,
    first_slices,
    in_step,
)
from voxelgate.networks.blocks import LEAKY_SLOPE

Size = tuple[int, int, int]
"""Slices, rows and columns of a volume; the streamed axis is the first, whichever it is in the network."""

REACH = 1
"""Slices that a convolution of kernel 3 sees before and behind its own; as many zeros stand at both ends."""

HAS_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
"""Whether this PyTorch convolves with oneDNN on a CPU."""


@dataclass(frozen=True, eq=False)
class Convolution:
    """Convolution of kernel 3, padded by zeros on all sides, and its activation.

    Args:
        weight: (out, in, 3, 3, 3), channels last.
        bias: (out,).
        stride: step along each axis, streamed one first.
        slope: negative slope of the activation; 1 for none.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    stride: Size
    slope: float = LEAKY_SLOPE

    @property
    def channels(self) -> int:
        """Return how many channels come out."""
        return self.weight.shape[0]

    def run(self, line: Line, filled: Iterator[None]) -> Iterator[SlabTensor]:
        """Yield (n, ceil(h / stride), ceil(w / stride), out) for every slice, as soon as `filled` has put it on `line`.

        Args:
            line: empty; slices of the input, (n, h, w, in).
            filled: writes some slices on the line each time it is asked.
        """
        line.append_zeros(REACH)
        for _ in filled:
            yield from self._finished(line)
        line.append_zeros(REACH)
        yield from self._finished(line)

    def _finished(self, line: Line) -> Iterator[SlabTensor]:
        step, kernel = self.stride[0], 2 * REACH + 1
        count = (len(line) - kernel) // step + 1
        if count > 0:
            window = line.oldest((count - 1) * step + kernel)
            line.drop(count * step)
            yield self._convolved(window)

    def _convolved(self, window: torch.Tensor) -> SlabTensor:
        x = _as_image(window)
        padding = [0, REACH, REACH]
        if HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32:
            # conv3d would take a slow path for many windows of one volume (`use_mkldnn` in ATen's Convolution.cpp);
            # this is what `torch.compile` calls, which brings the activation along
            activation = ("none", [], "") if self.slope == 1 else ("leaky_relu", [self.slope], "")
            fused = torch.ops.mkldnn._convolution_pointwise  # noqa: SLF001  # the only name it has
            return _as_slab(fused(x, self.weight, self.bias, padding, self.stride, [1, 1, 1], 1, *activation))
        y = F.conv3d(x, self.weight, self.bias, self.stride, padding)
        return _as_slab(y if self.slope == 1 else F.leaky_relu_(y, self.slope))


@dataclass(frozen=True, eq=False)
class Block:
    """Two convolutions; the first may stride."""

    first: Convolution
    second: Convolution

    def run(self, line: Line, filled: Iterator[None], buffers: Buffers, plane: PlaneSize) -> Iterator[SlabTensor]:
        """Yield features, (n, *plane, out), of the slices that `filled` puts on `line`."""
        second_line = buffers.line(plane, self.first.channels)
        return self.second.run(second_line, map(second_line.append, self.first.run(line, filled)))


@dataclass(frozen=True, eq=False)
class TransposedUpsampling:
    """Transposed convolution whose kernel is its stride: every voxel becomes a block of its own, by one product a row.

    Args:
        rows: (stride of slices, stride of rows, stride of columns * out, in), what each row of its block gets.
        bias: (stride of columns * out,).
        channels: out.
    """

    rows: torch.Tensor
    bias: torch.Tensor
    channels: int

    @property
    def factor(self) -> int:
        """Return how many slices one slice becomes."""
        return self.rows.shape[0]

    def run(self, deep: Iterator[SlabTensor], _deep_size: Size, _buffers: Buffers) -> Iterator[SlabTensor]:
        """Yield (n, stride * h, stride * w, out), `stride * deep_size[0]` slices in total."""
        return map(self._enlarged, deep)

    def write(self, slab: SlabTensor, out: torch.Tensor) -> None:
        """Write what a slab (n, h, w, in) becomes into `out`, which may be smaller at the far ends."""
        slices, rows, columns = *self.rows.shape[:2], len(self.bias) // self.channels
        for index in product(range(slices), range(rows)):
            block = out[index[0] :: slices, index[1] :: rows]
            products = F.linear(slab[: len(block), : block.shape[1]], self.rows[index], self.bias)
            whole = products.view(*products.shape[:2], slab.shape[2] * columns, self.channels)
            block.copy_(whole[:, :, : block.shape[2]])

    def _enlarged(self, slab: SlabTensor) -> SlabTensor:
        n, h, w, _ = slab.shape
        slices, rows = self.rows.shape[:2]
        enlarged = slab.new_empty(n * slices, h * rows, w * (len(self.bias) // self.channels), self.channels)
        self.write(slab, enlarged)
        return enlarged


@dataclass(frozen=True, eq=False)
class LinearUpsampling:
    """Linear interpolation to `stride` times the size, then a convolution.

    Args:
        stride: factor along each axis, streamed one first.
        convolution: what follows, without activation.
    """

    stride: Size
    convolution: Convolution

    @property
    def factor(self) -> int:
        """Return how many slices one slice becomes."""
        return self.stride[0]

    def run(self, deep: Iterator[SlabTensor], deep_size: Size, buffers: Buffers) -> Iterator[SlabTensor]:
        """Yield (n, stride * h, stride * w, out), `stride * deep_size[0]` slices in total."""
        depth, height, width = (step * n for step, n in zip(self.stride, deep_size, strict=True))
        channels = self.convolution.weight.shape[1]
        enlarged = interpolated(deep, deep_size, (depth, height, width), buffers.line((height, width), channels))
        line = buffers.line((height, width), channels)
        return self.convolution.run(line, map(line.append, enlarged))


def interpolated(slabs: Iterator[SlabTensor], size: Size, target: Size, line: Line) -> Iterator[SlabTensor]:
    """Yield (n, h, w, c) of `target` size, as `F.interpolate(..., align_corners=False)` would for the whole volume.

    Trilinear interpolation is bilinear within the planes, then linear between two neighbouring planes; a slice of the
    result is finished when the upper one of its two has come. Any ratio of sizes streams, not only whole factors.

    Args:
        slabs: (n, *size[1:], c).
        size: of the whole input.
        target: of the whole result.
        line: empty, of the plane of `target`.
    """
    lower, upper, weight = _neighbours(size[0], target[0])
    arrived, done, oldest = 0, 0, 0
    for slab in slabs:
        plane = F.interpolate(slab.permute(0, 3, 1, 2), size=target[1:], mode="bilinear", align_corners=False)
        line.append(plane.permute(0, 2, 3, 1))
        arrived += len(slab)
        ready = bisect_left(upper, arrived)
        if ready == done:
            continue
        held = line.oldest(len(line))
        below = torch.tensor(lower[done:ready], device=held.device) - oldest
        above = torch.tensor(upper[done:ready], device=held.device) - oldest
        share = weight[done:ready, None, None, None].to(held)
        yield torch.lerp(held[below], held[above], share)
        line.drop(lower[ready - 1] - oldest)
        done, oldest = ready, lower[ready - 1]


def _neighbours(size: int, target: int) -> tuple[list[int], list[int], torch.Tensor]:
    """Return for each of `target` slices the two of `size` slices around it, and the weight of the upper one.

    Formula and float32 arithmetic of `area_pixel_compute_source_index` in ATen's UpSample.h.
    """
    position = ((torch.arange(target, dtype=torch.float32) + 0.5) * (size / target) - 0.5).clamp(min=0)
    lower = position.floor()
    upper = (lower + 1).clamp(max=size - 1)
    return lower.int().tolist(), upper.int().tolist(), position - lower


@dataclass(frozen=True, eq=False)
class Gate:
    """Attention gate that works in place on [skip connection | enlarged features], side by side in one slab.

    One product then gives the sum of both projections. A gate that interpolates inside has no weight on the enlarged
    features; it projects the deeper ones and brings them to size itself.

    Args:
        weight: (inner, 2 * channels), of `w_x`, then of `w_g` or zero.
        bias: (inner,), the sum of both.
        psi: (1, inner) and (1,).
        deep: weight (inner, deep channels) and bias (inner,) of `w_g` on the deeper features, if it works inside.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    psi: tuple[torch.Tensor, torch.Tensor]
    deep: tuple[torch.Tensor, torch.Tensor] | None

    def apply(self, joined: torch.Tensor, signal: SlabTensor | None) -> None:
        """Weigh the skip connection in `joined`, (n, h, w, 2 * channels), given the signal from inside, if any."""
        inner = F.linear(joined, self.weight, self.bias)  # (n, h, w, inner)
        if signal is not None:
            inner += signal
        alpha = F.linear(inner.relu_(), *self.psi).sigmoid_()  # (n, h, w, 1)
        joined[..., : joined.shape[-1] // 2] *= alpha

    def signals(self, deep: Iterator[SlabTensor], sizes: tuple[Size, Size], buffers: Buffers) -> Iterator[SlabTensor]:
        """Yield the deeper features projected and brought from `sizes[1]` to `sizes[0]`, (n, h, w, inner)."""
        size, deep_size = sizes
        line = buffers.line(size[1:], len(self.bias))
        return interpolated(map(self._projected, deep), deep_size, size, line)

    def _projected(self, slab: SlabTensor) -> SlabTensor:
        if self.deep is None:
            raise ValueError("this gate takes its signal at the size of the skip connection")
        return F.linear(slab, *self.deep)


@dataclass(frozen=True, eq=False)
class Level:
    """Decoder level: enlarge the deeper features, gate the skip connection with them, join both, convolve twice."""

    up: TransposedUpsampling | LinearUpsampling
    gate: Gate | None
    block: Block

    def run(
        self, deep: Iterator[SlabTensor], skips: SkipLine, sizes: tuple[Size, Size], buffers: Buffers, chunk: int
    ) -> Iterator[SlabTensor]:
        """Yield features, (n, h, w, channels).

        Args:
            deep: the level below.
            skips: gives every slice of this level's skip connection by the time it is needed.
            sizes: of the whole volume at this level and below it.
            buffers: where lines are kept.
            chunk: slices to enlarge at a time, or as many as one deep slice gives.
        """
        (depth, height, width), deep_size = sizes
        line = buffers.line((height, width), self.block.first.weight.shape[1])
        join = partial(self._join, line, skips)
        deep = at_most(deep, max(1, chunk // self.up.factor))
        filled: Iterator[None]
        if isinstance(self.up, TransposedUpsampling) and (self.gate is None or self.gate.deep is None):
            filled = self._enlarged_in_place(self.up, line, skips, deep, depth)
        elif self.gate is None or self.gate.deep is None:
            filled = map(join, first_slices(self.up.run(deep, deep_size, buffers), depth))
        else:
            deep, for_gate = tee(deep)  # the gate sees one slab further, since interpolation looks ahead
            enlarged = first_slices(self.up.run(deep, deep_size, buffers), depth)
            filled = starmap(join, in_step(enlarged, self.gate.signals(for_gate, sizes, buffers)))
        return self.block.run(line, filled, buffers, (height, width))

    def _enlarged_in_place(
        self, up: TransposedUpsampling, line: Line, skips: SkipLine, deep: Iterator[SlabTensor], depth: int
    ) -> Iterator[None]:
        """Put joined slices on the line, one deep slice at a time: what the gate reads is still in the cache then."""
        for slab in deep:
            room = line.room(min(len(slab) * up.factor, depth))
            depth -= len(room)
            channels = room.shape[-1] // 2
            for deep_slice, joined in zip(torch.split(slab, 1), torch.split(room, up.factor), strict=True):
                skips.pour(joined[..., :channels])
                up.write(deep_slice, joined[..., channels:])
                if self.gate is not None:
                    self.gate.apply(joined, None)
            yield

    def _join(self, line: Line, skips: SkipLine, enlarged: SlabTensor, signal: SlabTensor | None = None) -> None:
        room = line.room(len(enlarged))
        channels = room.shape[-1] // 2
        skips.pour(room[..., :channels])
        room[..., channels:] = enlarged[:, : room.shape[1], : room.shape[2]]
        if self.gate is not None:
            self.gate.apply(room, signal)


def _as_image(slab: torch.Tensor) -> torch.Tensor:
    """Return the same memory as (1, c, n, h, w), channels last."""
    return slab.permute(3, 0, 1, 2)[None]


def _as_slab(image: torch.Tensor) -> SlabTensor:
    """Return the same memory as (n, h, w, c)."""
    return image[0].permute(1, 2, 3, 0)
