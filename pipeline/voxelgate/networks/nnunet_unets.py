"""The two networks of nnU-Net, plain and with a residual encoder, in 2D and 3D, under its names of weights.

Weights trained by nnU-Net load strictly, without the second names that its state dicts hold for the same numbers, and
the logits are bit for bit those of its own network.

References:
    Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z.
    Isensee et al. 2024, nnU-Net revisited, arXiv:2404.09556 (residual encoder).
    He et al. 2019, Bag of tricks, arXiv:1812.01187 (section 4.2, ResNet-D: average pooling where a skip strides).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self, TypeAlias, cast

import torch
from torch import nn

from voxelgate.networks.blocks import (
    LEAKY_SLOPE,
    Norm,
    check_deepest_level,
    check_levels,
    conv,
    crop_to,
    initialise,
    norm_layer,
    strides_per_axis,
)

BLOCKS = 2
"""Blocks of a level if none are given."""

KERNEL = 3
"""Kernel size of a level if none is given."""

_Level: TypeAlias = tuple[tuple[int, int], int, Sequence[int], Sequence[int]]
"""Channels before and in a level, blocks, kernel size and stride of the first block."""


class ConvBlock(nn.Module):
    """Convolution, norm, and the activation or none; the size is rounded up where the convolution strides."""

    def __init__(self, convolution: nn.Module, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.conv = convolution
        self.norm = norm
        self.nonlin = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, ceil(i / stride), ...)."""
        return cast("torch.Tensor", self.nonlin(self.norm(self.conv(x))))


class ConvStack(nn.Module):
    """Convolution blocks behind each other."""

    def __init__(self, blocks: Sequence[ConvBlock]) -> None:
        super().__init__()
        self.convs = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the last block gives."""
        return cast("torch.Tensor", self.convs(x))


class ResidualBlock(nn.Module):
    """Two convolution blocks and a skip around them, added before the last activation."""

    def __init__(self, first: ConvBlock, second: ConvBlock, skip: nn.Sequential, activation: nn.Module) -> None:
        super().__init__()
        self.conv1 = first
        self.conv2 = second
        self.skip = skip
        self.nonlin2 = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, ceil(i / stride), ...)."""
        residual = self.skip(x)
        out = self.conv2(self.conv1(x))
        out += residual
        return cast("torch.Tensor", self.nonlin2(out))


class ResidualStack(nn.Module):
    """Residual blocks behind each other."""

    def __init__(self, blocks: Sequence[ResidualBlock]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the last block gives."""
        return cast("torch.Tensor", self.blocks(x))


class Encoder(nn.Module):
    """What stands before the levels, if anything, and the levels."""

    def __init__(self, stages: Sequence[nn.Module], stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Identity() if stem is None else stem
        self.stages = nn.Sequential(*stages)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of each level, finest first."""
        x, features = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)  # (B, channels[level], ceil(i / strides so far), ...)
        return features


class Decoder(nn.Module):
    """From the deepest level up: enlarge, join with the skip connection, convolve; each level has a head of its own.

    Its three lists hold one module for each level but the deepest, coarsest first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.transpconvs = nn.ModuleList()
        self.seg_layers = nn.ModuleList()

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the features of each level but the deepest, finest first; the heads make logits of them.

        Args:
            features: of each level of the encoder, finest first.
        """
        x, decoded = features[-1], []
        for skip, enlarge, stage in zip(features[-2::-1], self.transpconvs, self.stages, strict=True):
            x = stage(torch.cat((crop_to(enlarge(x), skip), skip), dim=1))
            decoded.append(x)
        return decoded[::-1]


@dataclass(frozen=True)
class _Blocks:
    """Makes the blocks of one network from what they have in common."""

    spatial_dims: int
    norm: Norm
    has_bias: bool
    slope: float

    def block(
        self, widths: tuple[int, int], kernel: Sequence[int], stride: Sequence[int], *, is_activated: bool = True
    ) -> ConvBlock:
        """Return a convolution block from `widths[0]` to `widths[1]` channels."""
        size, step, padding = cast("Any", (tuple(kernel), tuple(stride), tuple(n // 2 for n in kernel)))
        return ConvBlock(
            conv(self.spatial_dims)(*widths, kernel_size=size, stride=step, padding=padding, bias=self.has_bias),
            norm_layer(self.norm, widths[1], self.spatial_dims),
            nn.LeakyReLU(self.slope, inplace=True) if is_activated else nn.Identity(),
        )

    def stack(self, widths: tuple[int, int], count: int, kernel: Sequence[int], stride: Sequence[int]) -> ConvStack:
        """Return `count` convolution blocks, of which the first strides."""
        rest = [self.block((widths[1], widths[1]), kernel, self.ones) for _ in range(count - 1)]
        return ConvStack([self.block(widths, kernel, stride), *rest])

    def residual_stack(
        self, widths: tuple[int, int], count: int, kernel: Sequence[int], stride: Sequence[int]
    ) -> ResidualStack:
        """Return `count` residual blocks, of which the first strides."""
        rest = [self._residual((widths[1], widths[1]), kernel, self.ones) for _ in range(count - 1)]
        return ResidualStack([self._residual(widths, kernel, stride), *rest])

    def _residual(self, widths: tuple[int, int], kernel: Sequence[int], stride: Sequence[int]) -> ResidualBlock:
        skip: list[nn.Module] = []
        if max(stride) > 1:
            pool = nn.AvgPool2d if self.spatial_dims == 2 else nn.AvgPool3d
            skip.append(pool(cast("Any", tuple(stride)), ceil_mode=True))
        if widths[0] != widths[1]:
            skip.append(replace(self, has_bias=False).block(widths, self.ones, self.ones, is_activated=False))
        second = self.block((widths[1], widths[1]), kernel, self.ones, is_activated=False)
        if self.norm is not Norm.NONE:
            nn.init.zeros_(cast("torch.Tensor", second.norm.weight))  # an untrained block adds nothing to its skip
        activation = nn.LeakyReLU(self.slope, inplace=True)
        return ResidualBlock(self.block(widths, kernel, stride), second, nn.Sequential(*skip), activation)

    def enlarger(self, widths: tuple[int, int], stride: Sequence[int]) -> nn.Module:
        """Return the transposed convolution from one level to the next finer one."""
        layer = nn.ConvTranspose2d if self.spatial_dims == 2 else nn.ConvTranspose3d
        step: Any = tuple(stride)  # as many as spatial dimensions
        return layer(*widths, kernel_size=step, stride=step, bias=self.has_bias)

    @property
    def ones(self) -> tuple[int, ...]:
        """Return the stride that keeps the size, which is the kernel that sees one voxel."""
        return (1,) * self.spatial_dims


class PlainConvUNet(nn.Module):
    """The U-Net of nnU-Net: convolution, norm and leaky activation, strided convolutions down, transposed ones up.

    Images of any size work: a strided convolution rounds up, and the enlarged features are cropped to the skip. The
    network keeps the memory format it was made in, since sums in another order are not those of nnU-Net.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included, or regions.
        spatial_dims: 2 or 3.
        channels: features per level, finest first; at least two levels.
        strides: step from each level to the next, one number or one per axis; 2 everywhere if not given.
        kernel_sizes: of the convolutions of each level, odd, one number or one per axis; 3 everywhere if not given.
        encoder_blocks: convolutions of each level of the encoder; 2 everywhere if not given.
        decoder_blocks: convolutions of each level of the decoder, coarsest first; 2 everywhere if not given.
        norm: `instance`, `batch`, `group` or `none`.
        conv_bias: whether convolutions and enlargements have a bias.
        negative_slope: of the activations; 0 for ReLU.
        deep_supervision: how many coarser levels return logits too, while training; heads are there for all.

    Raises:
        ValueError: arguments that fit no network.

    >>> network = vg.PlainConvUNet(in_channels=1, out_channels=3, channels=(8, 16)).eval()
    >>> network(torch.zeros(1, 1, 16, 16, 16)).shape
    torch.Size([1, 3, 16, 16, 16])
    """

    def __init__(  # noqa: PLR0913  # each is a number of nnU-Net's plans, keyword-only
        self,
        *,
        in_channels: int,
        out_channels: int,
        spatial_dims: int = 3,
        channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_sizes: Sequence[int | Sequence[int]] | None = None,
        encoder_blocks: Sequence[int] | None = None,
        decoder_blocks: Sequence[int] | None = None,
        norm: str = "instance",
        conv_bias: bool = True,
        negative_slope: float = LEAKY_SLOPE,
        deep_supervision: int = 0,
    ) -> None:
        super().__init__()
        levels = len(channels)
        check_levels("a U-Net of nnU-Net", spatial_dims, levels, deep_supervision)
        self.strides = strides_per_axis(strides, levels, spatial_dims)
        self.deep_supervision = deep_supervision
        kernels = _kernels_per_axis(kernel_sizes, levels, spatial_dims)
        make = _Blocks(spatial_dims, Norm(norm), conv_bias, negative_slope)
        steps = (make.ones, *self.strides)
        widths = list(pairwise((in_channels, *channels)))
        down = _block_counts("encoder_blocks", encoder_blocks, levels)
        self.encoder = self._encoder(make, list(zip(widths, down, kernels, steps, strict=True)))
        up = _block_counts("decoder_blocks", decoder_blocks, levels - 1)
        self.decoder = Decoder()
        for (skip, deep), count, kernel, step in zip(widths[:0:-1], up, kernels[-2::-1], steps[:0:-1], strict=True):
            self.decoder.transpconvs.append(make.enlarger((deep, skip), step))
            self.decoder.stages.append(make.stack((2 * skip, skip), count, kernel, make.ones))
            self.decoder.seg_layers.append(conv(spatial_dims)(skip, out_channels, kernel_size=1))
        initialise(self)

    def _encoder(self, make: _Blocks, levels: Sequence[_Level]) -> Encoder:
        return Encoder([nn.Sequential(make.stack(*level)) for level in levels])

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return logits (B, out_channels, size of `image`); while training with deep supervision a list, finest first.

        Args:
            image: (B, in_channels, i, j[, k]).

        Raises:
            ValueError: the image is so small that its deepest level is a single voxel.
        """
        decoded = self._decoded(image)
        if not self.training or not self.deep_supervision:
            return cast("torch.Tensor", self.head(decoded[0]))
        heads = reversed(self.decoder.seg_layers)
        return [head(x) for head, x, _ in zip(heads, decoded, range(1 + self.deep_supervision), strict=False)]

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return what `head` makes logits of, (B, channels[0], size of `image`): a head may run in groups of classes.

        Raises:
            ValueError: as `forward`.
        """
        return self._decoded(image)[0]

    @property
    def head(self) -> nn.Module:
        """Return the layer that makes logits of `features`, a convolution of kernel 1."""
        return self.decoder.seg_layers[-1]

    def _decoded(self, image: torch.Tensor) -> list[torch.Tensor]:
        check_deepest_level(image.shape[2:], self.strides)
        decoded: list[torch.Tensor] = self.decoder(self.encoder(image))
        return decoded

    def to(self, *args: Any, memory_format: torch.memory_format | None = None, **kwargs: Any) -> Self:  # noqa: ARG002
        """Move the network as `nn.Module.to` does, and leave its memory format as it is."""
        return super().to(*args, **kwargs)


class ResidualEncoderUNet(PlainConvUNet):
    """The U-Net of nnU-Net with residual blocks in its encoder, behind one convolution that widens the image.

    Args:
        arguments: those of `PlainConvUNet`; `encoder_blocks` are residual blocks, of two convolutions each.

    Raises:
        ValueError: arguments that fit no network.

    >>> network = vg.ResidualEncoderUNet(in_channels=1, out_channels=3, channels=(8, 16)).eval()
    >>> network(torch.zeros(1, 1, 16, 16, 16)).shape
    torch.Size([1, 3, 16, 16, 16])
    """

    def _encoder(self, make: _Blocks, levels: Sequence[_Level]) -> Encoder:
        (image, finest), _, kernel, _ = levels[0]
        stages = [make.residual_stack(*level) for level in [((finest, finest), *levels[0][1:]), *levels[1:]]]
        return Encoder(stages, make.stack((image, finest), 1, kernel, make.ones))


def _block_counts(name: str, counts: Sequence[int] | None, levels: int) -> Sequence[int]:
    given = [BLOCKS] * levels if counts is None else counts
    if len(given) != levels or min(given) < 1:
        raise ValueError(f"{name} is a number of at least 1 for each of {levels} levels, found {list(given)}")
    return given


def _kernels_per_axis(
    kernel_sizes: Sequence[int | Sequence[int]] | None, levels: int, spatial_dims: int
) -> list[tuple[int, ...]]:
    given = [KERNEL] * levels if kernel_sizes is None else kernel_sizes
    per_axis = [(n,) * spatial_dims if isinstance(n, int) else tuple(n) for n in given]
    if len(per_axis) != levels or any(len(k) != spatial_dims or any(n % 2 == 0 for n in k) for k in per_axis):
        raise ValueError(
            f"{levels} levels need {levels} kernel sizes, each an odd number or one for each of {spatial_dims} axes, "
            f"found {list(given)}"
        )
    return per_axis
