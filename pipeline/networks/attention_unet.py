"""U-Net with additive attention gates on its skip connections, in 2D and 3D.

References:
    Oktay et al. 2018, Attention U-Net, arXiv:1804.03999 (gate: equations 1 and 2; deep supervision: section 3).
    Ronneberger et al. 2015, U-Net, arXiv:1505.04597.
    Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z (strided convolutions down, strides per axis).
"""

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.networks.blocks import (
    DoubleConv,
    Norm,
    Upsample,
    Upsampling,
    conv,
    crop_to,
    initialise,
    norm_layer,
    run_checkpointed,
)


class Gating(StrEnum):
    """Where the gating signal reaches the size of the skip connection: before the gate, or inside, once projected."""

    BEFORE = "before"
    INSIDE = "inside"


class AttentionGate(nn.Module):
    """Weigh a skip connection by where it agrees with a gating signal.

    `alpha = sigmoid(psi(relu(W_g g + W_x x)))`, one number a voxel for all channels (arXiv:1804.03999, equation 1).
    """

    def __init__(
        self, skip_channels: int, gate_channels: int, inner_channels: int, *, spatial_dims: int, norm: Norm = Norm.NONE
    ) -> None:
        super().__init__()
        conv_nd = conv(spatial_dims)
        self.interpolation = "bilinear" if spatial_dims == 2 else "trilinear"
        self.w_x = nn.Sequential(
            conv_nd(skip_channels, inner_channels, kernel_size=1, bias=False),
            norm_layer(norm, inner_channels, spatial_dims),
        )
        self.w_g = nn.Sequential(
            conv_nd(gate_channels, inner_channels, kernel_size=1), norm_layer(norm, inner_channels, spatial_dims)
        )
        self.psi = nn.Sequential(conv_nd(inner_channels, 1, kernel_size=1), norm_layer(norm, 1, spatial_dims))

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """Return alpha, (B, 1, i, j[, k]) in 0..1, at the size of `skip`; a smaller `gating` is upsampled inside."""
        g = self.w_g(gating)  # (B, inner, size of gating)
        if g.shape[2:] != skip.shape[2:]:
            g = F.interpolate(g, size=skip.shape[2:], mode=self.interpolation, align_corners=False)
        return torch.sigmoid(self.psi(F.relu(g + self.w_x(skip))))  # (B, 1, size of skip)


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

    def attention(self, skip: torch.Tensor, deep: torch.Tensor, enlarged: torch.Tensor) -> torch.Tensor | None:
        """Return the gate map at the size of `skip`, or None in a plain U-Net."""
        if self.gate is None:
            return None
        return cast("torch.Tensor", self.gate(skip, deep if self.gating is Gating.INSIDE else enlarged))

    def forward(self, deep: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return the features of this level, (B, channels of the level, size of `skip`)."""
        enlarged = crop_to(self.up(deep), skip)
        alpha = self.attention(skip, deep, enlarged)
        gated = skip if alpha is None else skip * alpha
        return cast("torch.Tensor", self.block(torch.cat((gated, enlarged), dim=1)))


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
        gating: `before`: the gating signal is the enlarged one; `inside`: the deeper one, projected, then enlarged.
        upsampling: `transposed` convolution, or `linear` interpolation and a convolution.
        dropout: probability with which a channel is dropped in each block.
        deep_supervision: how many coarser levels return logits too, while training.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        attention: False gives the plain U-Net with everything else equal.

    Raises:
        ValueError: arguments that fit no network.
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
        upsampling: str = "transposed",
        dropout: float = 0.0,
        deep_supervision: int = 0,
        checkpointing: bool = False,
        attention: bool = True,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or len(channels) < 2 or not 0 <= deep_supervision <= len(channels) - 2:
            raise ValueError(
                "an AttentionUNet has 2 or 3 spatial dimensions, at least 2 levels and deep supervision on at most "
                f"levels - 2 of them, found {spatial_dims}, {len(channels)} and {deep_supervision}"
            )
        if not 0 < gate_fraction <= 1:
            raise ValueError(f"gate_fraction lies above 0 and at most at 1, found {gate_fraction}")
        self.strides = _strides_per_axis(strides, len(channels), spatial_dims)
        self.spatial_dims = spatial_dims
        self.checkpointing = checkpointing
        block = {"spatial_dims": spatial_dims, "norm": Norm(norm), "dropout": dropout}
        widths = (in_channels, *channels)
        self.encoder = nn.ModuleList(
            DoubleConv(width_in, width, stride=stride, **block)  # type: ignore[arg-type]  # one dict, three types
            for (width_in, width), stride in zip(pairwise(widths), (1, *self.strides), strict=True)
        )
        self.decoder = nn.ModuleList()
        for level in reversed(range(len(channels) - 1)):
            skip, deep = channels[level], channels[level + 1]
            self.decoder.append(
                DecoderLevel(
                    Upsample(
                        deep,
                        skip,
                        spatial_dims=spatial_dims,
                        stride=self.strides[level],
                        mode=Upsampling(upsampling),
                    ),
                    AttentionGate(
                        skip,
                        deep if Gating(gating) is Gating.INSIDE else skip,
                        max(1, round(skip * gate_fraction)),
                        spatial_dims=spatial_dims,
                        norm=Norm(gate_norm),
                    )
                    if attention
                    else None,
                    DoubleConv(2 * skip, skip, **block),  # type: ignore[arg-type]  # one dict, three types
                    gating=Gating(gating),
                )
            )
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

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return logits (B, out_channels, size of `image`); while training with deep supervision a list, finest first.

        Args:
            image: (B, in_channels, i, j[, k]).

        Raises:
            ValueError: the image is so small that its deepest level is a single voxel.
        """
        features = self._features(image)
        if self.training and len(self.heads) > 1:
            return [head(x) for head, x in zip(self.heads, features, strict=False)]
        return cast("torch.Tensor", self.heads[0](features[0]))

    def attention_maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return alpha of every gate, finest first, (B, 1, size of the level); an empty list in a plain U-Net."""
        skips = self._encode(image)
        deep = skips.pop()
        maps = []
        for module in self.decoder:
            level, skip = cast("DecoderLevel", module), skips.pop()
            alpha = level.attention(skip, deep, crop_to(level.up(deep), skip))
            maps += [] if alpha is None else [alpha]
            deep = level(deep, skip)
        return maps[::-1]

    def _features(self, image: torch.Tensor) -> list[torch.Tensor]:
        skips = self._encode(image)
        features = [skips.pop()]
        for level in self.decoder:
            features.append(self._run(level, features[-1], skips.pop()))
        return features[:0:-1]  # finest first, without the bottleneck

    def _encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.check_size(tuple(image.shape[2:]))
        skips = []
        x = image
        for block in self.encoder:
            x = self._run(block, x)
            skips.append(x)  # (B, channels[level], ceil(i / strides so far), ...)
        return skips

    def _run(self, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return run_checkpointed(module, *inputs)
        return cast("torch.Tensor", module(*inputs))

    def check_size(self, size: tuple[int, ...]) -> None:
        """Refuse images that leave nothing to compare at the deepest level.

        Raises:
            ValueError: the deepest level would be a single voxel.
        """
        reduction = [1] * self.spatial_dims
        for stride in self.strides:
            reduction = [r * s for r, s in zip(reduction, stride, strict=True)]
        if all(n <= r for n, r in zip(size, reduction, strict=True)):
            smallest = " or ".join(f"{r + 1} along axis {axis}" for axis, r in enumerate(reduction))
            raise ValueError(
                f"an image of {' x '.join(map(str, size))} voxels shrinks to a single voxel at the deepest level; "
                f"the smallest that works has {smallest}: pad it, or use fewer levels"
            )


def _strides_per_axis(
    strides: Sequence[int | Sequence[int]] | None, levels: int, spatial_dims: int
) -> tuple[tuple[int, ...], ...]:
    given = [2] * (levels - 1) if strides is None else strides
    per_axis = tuple((s,) * spatial_dims if isinstance(s, int) else tuple(s) for s in given)
    if len(per_axis) != levels - 1 or any(len(s) != spatial_dims or min(s) < 1 for s in per_axis):
        raise ValueError(
            f"{levels} levels need {levels - 1} strides, each a number or one for each of {spatial_dims} axes, "
            f"found {list(given)}"
        )
    return per_axis
