"""Turn the modules of an `AttentionUNet` into the layers that stream it, with batch norms folded into convolutions."""

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from voxelgate.inference.streaming.layers import (
    Block,
    Convolution,
    Gate,
    Level,
    LinearUpsampling,
    Size,
    TransposedUpsampling,
)
from voxelgate.networks.attention_unet import AttentionGate, DecoderLevel, Gating
from voxelgate.networks.blocks import LEAKY_SLOPE, DoubleConv, Upsample, Upsampling

Pointwise = tuple[torch.Tensor, torch.Tensor]
"""Weight (out, in) and bias (out,) of a convolution of kernel 1."""


def streamed_first(numbers: tuple[int, ...], axis: int) -> Size:
    """Return three numbers, one for each axis, with that of the streamed axis in front.

    >>> streamed_first((1, 2, 3), axis=2)
    (3, 1, 2)
    """
    others = [number for index, number in enumerate(numbers) if index != axis]
    return numbers[axis], others[0], others[1]


@dataclass(frozen=True)
class Folding:
    """Folds in float64, then lays weights out for streaming along one axis. The modules stay as they are.

    Args:
        axis: the spatial axis of the network, 0 to 2, along which slices come.
        dtype: of the weights.
    """

    axis: int
    dtype: torch.dtype

    def block(self, block: DoubleConv) -> Block:
        """Return both convolutions of a block; dropout does nothing in evaluation mode."""
        return Block(self._convolution(block[0], block[1]), self._convolution(block[4], block[5]))

    def level(self, level: DecoderLevel) -> Level:
        """Return a decoder level."""
        inside = level.gating is Gating.INSIDE
        return Level(
            up=self._upsampling(level.up),
            gate=None if level.gate is None else self._gate(level.gate, inside=inside),
            block=self.block(level.block),
        )

    def pointwise(self, conv: nn.Module, norm: nn.Module | None = None) -> Pointwise:
        """Return a convolution of kernel 1, and the norm behind it, as a matrix and a bias."""
        weight, bias = _folded(conv, norm)
        return weight.flatten(1).to(self.dtype), bias.to(self.dtype)

    def _convolution(self, conv: nn.Module, norm: nn.Module | None = None, slope: float = LEAKY_SLOPE) -> Convolution:
        weight, bias = _folded(conv, norm)
        stride = streamed_first(cast("tuple[int, ...]", conv.stride), self.axis)
        return Convolution(self._laid_out(weight), bias.to(self.dtype), stride, slope)

    def _gate(self, gate: AttentionGate, *, inside: bool) -> Gate:
        (on_skip, skip_bias), (on_signal, signal_bias) = self.pointwise(*gate.w_x), self.pointwise(*gate.w_g)
        return Gate(
            weight=torch.cat((on_skip, torch.zeros_like(on_skip) if inside else on_signal), dim=1),
            bias=skip_bias if inside else skip_bias + signal_bias,
            psi=self.pointwise(*gate.psi),
            deep=(on_signal, signal_bias) if inside else None,
        )

    def _upsampling(self, up: Upsample) -> TransposedUpsampling | LinearUpsampling:
        if up.mode is Upsampling.LINEAR:
            stride = streamed_first(tuple(int(step) for step in up.scale), self.axis)
            return LinearUpsampling(stride, self._convolution(up.project, slope=1))
        weight, bias = _folded(up.project)
        streamed = weight.movedim(2 + self.axis, 2)  # (in, out, slices, rows, columns)
        rows = streamed.permute(2, 3, 4, 1, 0).flatten(2, 3).to(self.dtype).contiguous()
        return TransposedUpsampling(rows, bias.repeat(streamed.shape[4]).to(self.dtype), len(bias))

    def _laid_out(self, weight: torch.Tensor) -> torch.Tensor:
        streamed = weight.movedim(2 + self.axis, 2)
        laid_out = torch.empty_like(streamed, dtype=self.dtype, memory_format=torch.channels_last_3d)
        return laid_out.copy_(
            streamed
        )  # `contiguous` leaves one channel as it is, and features would come channels first


def fold_batch_norm(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> nn.Conv3d:
    """Return a convolution, perhaps transposed, that does what the batch norm behind it did too; a copy, float64."""
    is_transposed = isinstance(conv, nn.ConvTranspose3d)
    return fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(norm).double(), is_transposed)


def _folded(layer: nn.Module, norm: nn.Module | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias, float64, of a convolution and the batch norm behind it, if there is one."""
    conv = cast("nn.Conv3d", layer)  # or a transposed one, which has the same attributes
    conv = fold_batch_norm(conv, norm) if isinstance(norm, nn.BatchNorm3d) else copy.deepcopy(conv).double()
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    return conv.weight.detach(), bias.detach()
