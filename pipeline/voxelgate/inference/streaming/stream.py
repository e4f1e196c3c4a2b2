"""Exact inference on volumes of any length: each slice passes through the network once, and memory stays flat.

A convolution needs only the neighbouring slices of what it computes. So the volume is fed in slab by slab; every layer
keeps the two slices that its kernel will see again, and those of skip connections wait until the decoder has caught up.
What comes out is what one forward pass over the whole volume gives, up to the rounding of floats: there are no windows,
no overlaps and no seams. It needs a network whose norms do not depend on the rest of the image (batch norm, or none).

Layers are generators chained into each other: asking the last one for a slab asks each one before it for what it lacks,
and the first takes the next slices of the image.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile
from typing import Protocol, cast

import torch
from torch import nn

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.geometry import triple
from voxelgate.inference.streaming.folding import Folding, streamed_first
from voxelgate.inference.streaming.layers import Block, Size
from voxelgate.inference.streaming.line_buffers import Buffers, Line, SkipLine, SlabTensor, at_most
from voxelgate.networks.attention_unet import AttentionUNet, DecoderLevel, Gating
from voxelgate.networks.blocks import DoubleConv, PooledConv, Upsampling
from voxelgate.networks.describe import LiveMemory

CHUNK = 8
"""Slices taken in at a time; 8 to 16 are fastest, and 8 takes a quarter less memory."""

RESERVE = 1.5
"""What glibc's allocator was seen to need at most for the buffers, as a multiple of their size."""

LOGITS_BYTES = 2**24
"""Logits come in slabs of at most this size, or of one slice where that is larger; larger ones find no hole in the heap
when they come again, so that it grows."""


class Slices(Protocol):
    """An image that need not lie in memory: as much of a tensor (1, C, i, j, k) as streaming asks for."""

    @property
    def shape(self) -> Sequence[int]:
        """Return (1, C, i, j, k)."""

    def narrow(self, dim: int, start: int, length: int) -> torch.Tensor:
        """Return `length` slices from `start` on; `dim` is 2 plus the streamed axis; no slice is asked for twice."""


def obstacles(network: nn.Module) -> list[str]:
    """Return what keeps a network from being streamed, a few words each; an empty list if nothing does."""
    if type(network) is not AttentionUNet:
        return [f"{type(network).__name__} is not an AttentionUNet"]
    found = []
    if network.spatial_dims != 3:
        found.append(f"{network.spatial_dims} spatial dimensions, not 3")
    if any(module.training for module in network.modules()):
        found.append("training mode; call eval()")
    if any(isinstance(block, PooledConv) for block in network.encoder):
        found.append("max pooling")
    levels = [cast("DecoderLevel", level) for level in network.decoder]
    if any(level.up.mode is Upsampling.ALIGNED for level in levels):
        found.append("aligned up-sampling, which depends on the size of the whole image")
    if any(level.gate is not None and level.gating is Gating.COARSE for level in levels):
        found.append("gates that compare at the coarser size")
    dependent = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)
    norms = {type(module).__name__ for module in network.modules() if isinstance(module, dependent)}
    return found + [f"{name} depends on the whole image" for name in sorted(norms)]


def can_stream(network: nn.Module) -> bool:
    """Return whether `stream` gives what the network gives; `obstacles` says why not."""
    return not obstacles(network)


def reduction(network: AttentionUNet) -> Size:
    """Return how many voxels along each axis become one at the deepest level.

    A part of a volume that begins at a multiple of these meets the strides of the network as the whole does.
    """
    return triple(math.prod(steps) for steps in zip(*network.strides, strict=True))


def streamed_axis(size_vox: Sequence[int], axes: Sequence[int]) -> int:
    """Return along which of some axes a volume passes: the longest, which leaves the smallest slices."""
    return max(axes, key=lambda axis: size_vox[axis])


def reserved_bytes(buffer_bytes: float) -> float:
    """Return the memory that there must be for buffers of a size (`StreamingCost.peak_bytes`)."""
    return RESERVE * buffer_bytes


def stream(
    network: nn.Module,
    image: torch.Tensor | Slices,
    *,
    chunk: int = CHUNK,
    axis: int = 0,
    dtype: torch.dtype | None = None,
) -> "Stream":
    """Yield the logits of a whole volume, slab by slab; see `StreamingNetwork`, which prepares weights only once.

    >>> network = vg.AttentionUNet(in_channels=1, out_channels=2, channels=(8, 16)).eval()
    >>> sum(logits.shape[1] for first, logits in vg.stream(network, torch.zeros(1, 1, 40, 16, 16)))
    40
    """
    return StreamingNetwork(network, axis=axis, dtype=dtype).stream(image, chunk=chunk)


class StreamingNetwork:
    """The weights of an `AttentionUNet`, laid out once to stream any number of volumes.

    `precision.keep_large_buffers` makes it faster, as it does every pass on a CPU.

    Args:
        network: in evaluation mode; it is not changed, and later changes of its weights have no effect here.
        axis: the spatial axis along which slices pass, 0 to 2; the longest saves most memory.
        dtype: of weights and features; as the network's weights if not given.

    Raises:
        UsageError: the network cannot be streamed, or there is no such axis.
    """

    def __init__(self, network: nn.Module, *, axis: int = 0, dtype: torch.dtype | None = None) -> None:
        if reasons := obstacles(network):
            raise UsageError(f"the network cannot be streamed: {', '.join(reasons)}; use a sliding window.")
        if axis not in range(3):
            raise UsageError(f"axis {axis}: expected 0, 1 or 2.")
        unet = cast("AttentionUNet", network)
        weight = cast("torch.Tensor", unet.heads[0].weight)
        self.axis = axis
        self.dtype = weight.dtype if dtype is None else dtype
        self.device = weight.device
        folding = Folding(axis, self.dtype)
        self.encoder = [folding.block(cast("DoubleConv", block)) for block in unet.encoder]
        self.decoder = [folding.level(cast("DecoderLevel", level)) for level in unet.decoder]
        self.head = folding.pointwise(unet.heads[0])
        self.strides = [streamed_first(stride, axis) for stride in unet.strides]

    def stream(self, image: torch.Tensor | Slices, *, chunk: int = CHUNK) -> "Stream":
        """Return an iterator over the logits of one volume.

        Args:
            image: (1, C, i, j, k) on any device, a tensor or what gives slices of one; of any size, also smaller than
                the network itself takes.
            chunk: slices to take in at a time; changes speed and memory, not the result.

        Raises:
            InputError: not one volume of as many channels as the network takes.
            UsageError: `chunk` is below 1.
        """
        channels = self.encoder[0].first.weight.shape[1]
        shape = tuple(image.shape)
        if len(shape) != 5 or shape[:2] != (1, channels) or min(shape) < 1:
            raise InputError(f"an image of shape {shape}, expected one volume (1, {channels}, i, j, k).")
        if chunk < 1:
            raise UsageError(f"chunk {chunk}: expected at least one slice.")
        return Stream(self, image, chunk)


class Stream(Iterator[tuple[int, torch.Tensor]]):
    """Finished slabs of one volume, in order and without gaps: first slice, and logits as float32.

    Logits are (classes, i, j, k) in the network's order of axes: some slices of the streamed axis, all of the others.
    `torch.cat([logits for _, logits in slabs], dim=1 + axis)` is the whole.

    Args:
        network: prepared weights.
        image: (1, C, i, j, k).
        chunk: slices to take in at a time.
    """

    def __init__(self, network: StreamingNetwork, image: torch.Tensor | Slices, chunk: int) -> None:
        self._network = network
        self._image = image
        self._chunk = chunk
        self._buffers = Buffers(network.dtype, network.device)
        self.taken_slices = 0
        self.given_slices = 0
        self._features = self._decoded()

    @property
    def buffered_bytes(self) -> int:
        """Return the memory held between two slabs, weights apart; it does not grow with the number of slices."""
        return self._buffers.nbytes

    def __next__(self) -> tuple[int, torch.Tensor]:
        with torch.no_grad(), _one_format(self._network.device.type):
            logits = self._logits(next(self._features))
        start = self.given_slices
        self.given_slices += logits.shape[1]
        return start, logits.movedim(1, 1 + self._network.axis)

    def _taken(self) -> Iterator[torch.Tensor]:
        """Yield the image in pieces (n, h, w, C)."""
        dim = 2 + self._network.axis
        depth = self._image.shape[dim]
        for start in range(0, depth, self._chunk):
            self.taken_slices = min(start + self._chunk, depth)
            piece = self._image.narrow(dim, start, self.taken_slices - start).as_subclass(torch.Tensor)
            yield piece.movedim(dim, 2)[0].permute(1, 2, 3, 0)

    def _sizes(self) -> list[Size]:
        """Return the size of every level, finest first; a strided convolution rounds up."""
        image = streamed_first(tuple(self._image.shape[2:]), self._network.axis)
        return list(accumulate(self._network.strides, _reduced_size, initial=image))

    def _decoded(self) -> Iterator[SlabTensor]:
        """Chain all layers, and return the features in front of the head, cut to what logits may take."""
        network, buffers = self._network, self._buffers
        sizes = self._sizes()
        line = buffers.line(sizes[0][1:], network.encoder[0].first.weight.shape[1])
        slabs = self._encoded(network.encoder[0], line, self._taken(), sizes[0])
        skips: list[SkipLine] = []
        for block, (size, deep_size) in zip(network.encoder[1:], pairwise(sizes), strict=True):
            skips.append(buffers.skip_line(size[1:], block.first.weight.shape[1]))
            slabs = self._encoded(block, skips[-1], slabs, deep_size)
        for level, (deep_size, size) in zip(network.decoder, pairwise(reversed(sizes)), strict=True):
            slabs = level.run(slabs, skips.pop(), (size, deep_size), buffers, self._chunk)
        slice_bytes = 4 * len(network.head[1]) * math.prod(sizes[0][1:])
        return at_most(slabs, max(1, LOGITS_BYTES // slice_bytes))

    def _encoded(self, block: Block, line: Line, slabs: Iterator[torch.Tensor], reduced: Size) -> Iterator[SlabTensor]:
        return block.run(line, map(line.append, slabs), self._buffers, reduced[1:])

    def _logits(self, slab: SlabTensor) -> torch.Tensor:
        """Return (classes, n, h, w) float32 of features (n, h, w, c)."""
        weight, bias = self._network.head
        logits = torch.addmm(bias[:, None], weight, slab.flatten(0, 2).T)
        return logits.float().reshape(-1, *slab.shape[:3])


@dataclass(frozen=True)
class StreamingCost:
    """What streaming needs, however long the volume.

    Args:
        lag_slices: how many slices at most have been taken in and not been given out; shorter volumes save no memory.
        peak_bytes: peak of weights, buffers and all on the way, without the image and the logits given out before.
            What an allocator loses between blocks comes on top; up to half as much was measured with glibc.
    """

    lag_slices: int
    peak_bytes: int


def streaming_cost(
    network: nn.Module,
    plane: tuple[int, int],
    *,
    chunk: int = CHUNK,
    axis: int = 0,
    dtype: torch.dtype | None = None,
) -> StreamingCost:
    """Measure streaming on PyTorch's meta device: nothing is computed, it takes a fraction of a second.

    Args:
        network: one that `can_stream`.
        plane: voxels of a slice along the two axes that are not streamed.
        chunk: slices to take in at a time.
        axis: the streamed axis.
        dtype: of weights and features.

    Raises:
        UsageError: the network cannot be streamed.
    """
    prepared = StreamingNetwork(copy.deepcopy(network).to("meta"), axis=axis, dtype=dtype)
    reduction = math.prod(stride[0] for stride in prepared.strides)
    period = max(chunk, reduction)  # of what is held, once slabs have begun to come
    size = [*plane]
    size.insert(axis, 4 * (period + reduction * len(prepared.encoder)))  # more than the lag, so the end is far
    image = _Blank((1, prepared.encoder[0].first.weight.shape[1], *size))
    slabs = prepared.stream(image, chunk=chunk)
    with LiveMemory() as memory:
        lags = [slabs.taken_slices - start for start, _ in takewhile(lambda slab: slab[0] < 2 * period, slabs)]
    weight_bytes = sum(p.numel() for p in network.parameters()) * prepared.dtype.itemsize
    return StreamingCost(max(lags), memory.peak_bytes + weight_bytes)


@dataclass(frozen=True)
class _Blank:
    """An image without voxels.

    Args:
        shape: (1, C, i, j, k).
    """

    shape: tuple[int, ...]

    def narrow(self, dim: int, start: int, length: int) -> torch.Tensor:  # noqa: ARG002  # `Slices` asks so
        """Return slices on the meta device."""
        return torch.empty(*self.shape[:dim], length, *self.shape[dim + 1 :], device="meta")


def _one_format(device_type: str) -> AbstractContextManager[object]:
    """Hold off an autocast around the caller's loop, which would give some features another format than the buffers."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _reduced_size(size: Size, stride: Size) -> Size:
    return triple(-(-n // step) for n, step in zip(size, stride, strict=True))
