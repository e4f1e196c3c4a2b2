"""U-Net with additive attention gates on its skip connections, in 2D and 3D.

References:
    Oktay et al. 2018, Attention U-Net, arXiv:1804.03999 (gate: equations 1 and 2; `coarse` gating, the ungated first
        skip connection and deep supervision: section 3).
    Ronneberger et al. 2015, U-Net, arXiv:1505.04597.
    Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z (strided convolutions down, strides per axis).
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from voxelgate.networks.blocks import (
    DoubleConv,
    Downsampling,
    Norm,
    PooledConv,
    Upsample,
    Upsampling,
    check_deepest_level,
    check_levels,
    conv,
    crop_to,
    initialise,
    norm_layer,
    run_checkpointed,
    strides_per_axis,
)


class Gating(StrEnum):
    """Where gating signal and skip connection reach one size.

    `before`: the gate sees the enlarged signal. `inside`: it projects the deeper signal, then enlarges it. `coarse`: it
    projects the skip connection with the stride of the level, and enlarges the coefficients (arXiv:1804.03999).
    """

    BEFORE = "before"
    INSIDE = "inside"
    COARSE = "coarse"


class GatedLogits(NamedTuple):
    """What an `AttentionUNet` returns while training if its gates are supervised; `voxelgate.networks.losses` takes it.

    Args:
        logits: finest first, one more than the levels of deep supervision.
        maps: alpha of every gate, finest first, (B, 1, size of the level, or of the deeper one with `coarse` gating).
    """

    logits: list[torch.Tensor]
    maps: list[torch.Tensor]


class AttentionGate(nn.Module):
    """Weigh a skip connection by where it agrees with a gating signal.

    `alpha = sigmoid(psi(relu(W_g g + W_x x)))`, one number a voxel for all channels (arXiv:1804.03999, equation 1).

    Args:
        skip_channels: of the skip connection.
        gate_channels: of the gating signal.
        inner_channels: both are projected to.
        spatial_dims: 2 or 3.
        norm: after each of the three convolutions.
        stride: of the projection of the skip connection, a step for each axis; 1 if not given.
    """

    def __init__(
        self,
        skip_channels: int,
        gate_channels: int,
        inner_channels: int,
        *,
        spatial_dims: int,
        norm: Norm = Norm.NONE,
        stride: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        conv_nd = conv(spatial_dims)
        step: Any = (1,) * spatial_dims if stride is None else tuple(stride)  # as many as spatial dimensions
        self.interpolation = "bilinear" if spatial_dims == 2 else "trilinear"
        self.w_x = nn.Sequential(
            conv_nd(skip_channels, inner_channels, kernel_size=1, stride=step, bias=False),
            norm_layer(norm, inner_channels, spatial_dims),
        )
        self.w_g = nn.Sequential(
            conv_nd(gate_channels, inner_channels, kernel_size=1), norm_layer(norm, inner_channels, spatial_dims)
        )
        self.psi = nn.Sequential(conv_nd(inner_channels, 1, kernel_size=1), norm_layer(norm, 1, spatial_dims))

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """Return alpha, (B, 1, i, j[, k]) in 0..1, at the size of `skip / stride`; a smaller `gating` is upsampled."""
        x = self.w_x(skip)  # (B, inner, size of skip / stride)
        g = self.resized(self.w_g(gating), x)  # (B, inner, the same)
        return torch.sigmoid(self.psi(F.relu(g + x)))  # (B, 1, the same)

    def resized(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return `x` interpolated to the size of `like`, or as it is where the sizes are equal."""
        if x.shape[2:] == like.shape[2:]:
            return x
        return F.interpolate(x, size=like.shape[2:], mode=self.interpolation, align_corners=False)


class DecoderLevel(nn.Module):
    """Enlarge the deeper features, gate the skip connection with them, join both."""

    def __init__(
        self, up: Upsample, gate: AttentionGate | None, block: DoubleConv, *, gating: Gating = Gating.BEFORE
    ) -> None:
        super().__init__()
        self.up = up
        self.gate = gate
        self.block = block
        self.gating = gating

    def forward(self, deep: torch.Tensor, skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return features, (B, channels of the level, size of `skip`), and the gate's map, None without a gate."""
        enlarged = crop_to(self.up(deep), skip)
        if self.gate is None:
            return self.block(torch.cat((skip, enlarged), dim=1)), None
        alpha = self.gate(skip, enlarged if self.gating is Gating.BEFORE else deep)
        gated = skip * self.gate.resized(alpha, skip)
        return self.block(torch.cat((gated, enlarged), dim=1)), alpha


@dataclass(frozen=True)
class _GateOptions:
    gating: Gating
    norm: Norm
    fraction: float

    def gate(self, skip: int, deep: int, stride: Sequence[int]) -> AttentionGate:
        """Return the gate of a skip connection of `skip` channels above a level of `deep` channels."""
        return AttentionGate(
            skip,
            skip if self.gating is Gating.BEFORE else deep,
            max(1, round(skip * self.fraction)),
            spatial_dims=len(stride),
            norm=self.norm,
            stride=stride if self.gating is Gating.COARSE else None,
        )


class AttentionUNet(nn.Module):
    """Attention U-Net for 2D and 3D images of any size.

    Odd sizes work without padding: a strided convolution rounds up, and the enlarged features are cropped to the skip.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        spatial_dims: 2 or 3.
        channels: features per level, finest first; at least two levels.
        strides: step from each level to the next, one number or one per axis; 2 everywhere if not given.
        norm: `batch`, `instance`, `group` or `none`, in the convolution blocks.
        gate_norm: the same, in the gates.
        gate_fraction: channels inside a gate as a fraction of the skip connection's; 1/2 and 1/4 are in use.
        psi_zero: start `psi` at zero, so that every gate begins at 0.5 everywhere.
        gating: `before`, `inside` or `coarse`: where gating signal and skip connection reach one size (`Gating`).
        ungated_levels: how many of the finest skip connections have no gate.
        downsampling: `strided` convolution, or `pooled`: max pooling.
        upsampling: `transposed` convolution, or `linear` or `aligned` interpolation and a convolution.
        dropout: probability with which a channel is dropped in each block.
        deep_supervision: how many coarser levels return logits too, while training.
        attention_supervision: return `GatedLogits` while training, so that a loss can look at the gates.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        attention: False gives the plain U-Net with everything else equal.

    Raises:
        ValueError: arguments that fit no network.

    >>> network = vg.AttentionUNet(in_channels=1, out_channels=3, channels=(8, 16))
    >>> network(torch.zeros(1, 1, 19, 20, 21)).shape
    torch.Size([1, 3, 19, 20, 21])
    """

    def __init__(  # noqa: PLR0913  # each is one choice of the literature, keyword-only
        self,
        *,
        in_channels: int,
        out_channels: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int | Sequence[int]] | None = None,
        norm: str = "batch",
        gate_norm: str = "none",
        gate_fraction: float = 0.25,
        psi_zero: bool = False,
        gating: str = "before",
        ungated_levels: int = 0,
        downsampling: str = "strided",
        upsampling: str = "transposed",
        dropout: float = 0.0,
        deep_supervision: int = 0,
        attention_supervision: bool = False,
        checkpointing: bool = False,
        attention: bool = True,
    ) -> None:
        super().__init__()
        levels = len(channels)
        check_levels("an AttentionUNet", spatial_dims, levels, deep_supervision)
        if not 0 < gate_fraction <= 1:
            raise ValueError(f"gate_fraction lies above 0 and at most at 1, found {gate_fraction}")
        if not 0 <= ungated_levels < levels - 1:
            raise ValueError(f"ungated_levels leaves at least one of {levels - 1} gates, found {ungated_levels}")
        self.strides = strides_per_axis(strides, levels, spatial_dims)
        self.spatial_dims = spatial_dims
        self.attention_supervision = attention_supervision
        self.checkpointing = checkpointing
        gates = _GateOptions(Gating(gating), Norm(gate_norm), gate_fraction)
        block: dict[str, Any] = {"spatial_dims": spatial_dims, "norm": Norm(norm), "dropout": dropout}
        self.encoder = nn.ModuleList([DoubleConv(in_channels, channels[0], **block)])
        shrinking = PooledConv if Downsampling(downsampling) is Downsampling.POOLED else DoubleConv
        for widths, stride in zip(pairwise(channels), self.strides, strict=True):
            self.encoder.append(shrinking(*widths, stride=stride, **block))
        self.decoder = nn.ModuleList()
        for level in reversed(range(levels - 1)):
            (skip, deep), stride = channels[level : level + 2], self.strides[level]
            up = Upsample(deep, skip, spatial_dims=spatial_dims, stride=stride, mode=Upsampling(upsampling))
            gate = gates.gate(skip, deep, stride) if attention and level >= ungated_levels else None
            self.decoder.append(DecoderLevel(up, gate, DoubleConv(2 * skip, skip, **block), gating=gates.gating))
        self.heads = nn.ModuleList(
            conv(spatial_dims)(channels[level], out_channels, kernel_size=1) for level in range(deep_supervision + 1)
        )
        initialise(self)
        if psi_zero:
            for gate in self.gates:
                nn.init.zeros_(cast("torch.Tensor", gate.psi[0].weight))

    @property
    def gates(self) -> list[AttentionGate]:
        """Return the attention gates, finest first; empty in a plain U-Net."""
        return [gate for level in reversed(self.decoder) if (gate := cast("DecoderLevel", level).gate) is not None]

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor] | GatedLogits:
        """Return logits (B, out_channels, size of `image`).

        While training with deep supervision a list of logits, finest first; with attention supervision `GatedLogits`.

        Args:
            image: (B, in_channels, i, j[, k]).

        Raises:
            ValueError: the image is so small that its deepest level is a single voxel.
        """
        features, maps = self._decode(image)
        if not self.training:
            return cast("torch.Tensor", self.heads[0](features[0]))
        logits = [head(x) for head, x in zip(self.heads, features, strict=False)]
        if self.attention_supervision:
            return GatedLogits(logits, maps)
        return logits if len(logits) > 1 else logits[0]

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what `torch.jit.script` takes in place of this network, as `monai.bundle ckpt_export` does: a trace.

        It is in evaluation mode and takes images of any size that the network takes. The sizes of the traced image
        leave a remainder at every level, so that all cropping is in the trace; elsewhere it cuts off nothing.
        """
        size = [2] * self.spatial_dims
        for stride in reversed(self.strides):
            size = [step * (n - 1) + 1 for n, step in zip(size, stride, strict=True)]
        weight = next(self.encoder.parameters())
        image = weight.new_zeros(1, weight.shape[1], *(max(n, 3) for n in size))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the sizes that it compares
            traced = torch.jit.trace(copy.deepcopy(self).eval(), image, check_trace=False)  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        return _Traced(traced)

    def attention_maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return alpha of every gate, finest first; an empty list in a plain U-Net.

        Each is (B, 1, size of the level of its skip connection), with `coarse` gating of the level below.
        """
        return self._decode(image)[1]

    def map_reductions(self) -> list[tuple[int, ...]]:
        """Return for each of `attention_maps` how many voxels of the image one of its voxels spans along each axis."""
        found, spans = [], (1,) * self.spatial_dims
        for module, stride in zip(reversed(self.decoder), self.strides, strict=True):
            level, deeper = cast("DecoderLevel", module), tuple(n * s for n, s in zip(spans, stride, strict=True))
            if level.gate is not None:
                found.append(deeper if level.gating is Gating.COARSE else spans)
            spans = deeper
        return found

    def _decode(self, image: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return features and gate maps of the decoder, finest first."""
        skips = self._encode(image)
        deep = skips.pop()
        features, maps = [], []
        for level in self.decoder:
            deep, alpha = self._run(level, deep, skips.pop())
            features.append(deep)
            maps += [] if alpha is None else [alpha]
        return features[::-1], maps[::-1]

    def _encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.check_size(tuple(image.shape[2:]))
        skips = []
        x = image
        for block in self.encoder:
            x = self._run(block, x)
            skips.append(x)  # (B, channels[level], ceil(i / strides so far), ...)
        return skips

    def _run(self, module: nn.Module, *inputs: torch.Tensor) -> Any:  # what the module returns
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return run_checkpointed(module, *inputs)
        return module(*inputs)

    def check_size(self, size: tuple[int, ...]) -> None:
        """Refuse images that leave nothing to compare at the deepest level.

        Raises:
            ValueError: the deepest level would be a single voxel.
        """
        check_deepest_level(size, self.strides)


class _Traced(nn.Module):
    """A traced network that can be scripted."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return what the network would."""
        logits: torch.Tensor = self.traced(image)
        return logits
