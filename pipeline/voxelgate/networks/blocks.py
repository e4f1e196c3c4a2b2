"""Layers that the networks share, for two and three spatial dimensions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from math import prod
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from voxelgate.networks.bfloat16 import SoundGradients

LEAKY_SLOPE = 0.01
"""Negative slope of every activation; the initialisation is matched to it."""

MAX_GROUPS = 8
"""Groups of a group norm, or the largest divisor of the channels below that."""


class Norm(StrEnum):
    """Normalisation after a convolution.

    With `batch` the result at one place does not depend on what else lies in the window, and the norm folds into the
    convolution; with `instance` and `group` it depends on the whole window.
    """

    BATCH = "batch"
    INSTANCE = "instance"
    GROUP = "group"
    NONE = "none"


class Upsampling(StrEnum):
    """How a decoder level doubles its size: learnt, or linear interpolation followed by a convolution.

    `aligned` interpolates between the centres of the corner voxels (PyTorch's `align_corners`); where a voxel lands
    then depends on the size of the image.
    """

    TRANSPOSED = "transposed"
    LINEAR = "linear"
    ALIGNED = "aligned"


class Downsampling(StrEnum):
    """How an encoder level shrinks its input: its first convolution strides, or a max pooling stands before it."""

    STRIDED = "strided"
    POOLED = "pooled"


def conv(spatial_dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """Return the convolution class for 2 or 3 spatial dimensions."""
    return nn.Conv2d if spatial_dims == 2 else nn.Conv3d


def max_pool(spatial_dims: int, stride: Sequence[int]) -> nn.Module:
    """Return a max pooling to `ceil(n / stride)` voxels per axis."""
    step: Any = tuple(stride)  # as many as spatial dimensions
    layer = nn.MaxPool2d if spatial_dims == 2 else nn.MaxPool3d
    return layer(kernel_size=step, stride=step, ceil_mode=True)


def norm_layer(norm: Norm, channels: int, spatial_dims: int) -> nn.Module:
    """Return the normalisation layer of `channels` channels; an identity for `none`."""
    if norm is Norm.BATCH:
        return nn.BatchNorm2d(channels) if spatial_dims == 2 else nn.BatchNorm3d(channels)
    if norm is Norm.INSTANCE:
        layer = nn.InstanceNorm2d if spatial_dims == 2 else nn.InstanceNorm3d
        return layer(channels, affine=True)
    if norm is Norm.GROUP:
        groups = max(n for n in range(1, MAX_GROUPS + 1) if channels % n == 0)
        return nn.GroupNorm(groups, channels)
    return nn.Identity()


class DoubleConv(nn.Sequential):
    """Two times convolution 3, norm, activation; the first convolution may stride, dropout stands between the two."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        norm: Norm,
        stride: Sequence[int] | int = 1,
        dropout: float = 0.0,
    ) -> None:
        conv_nd = conv(spatial_dims)
        drop_nd = nn.Dropout2d if spatial_dims == 2 else nn.Dropout3d
        step: Any = stride if isinstance(stride, int) else tuple(stride)  # as many as spatial dimensions
        bias = norm is Norm.NONE
        super().__init__(
            conv_nd(in_channels, out_channels, kernel_size=3, stride=step, padding=1, bias=bias),
            norm_layer(norm, out_channels, spatial_dims),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            drop_nd(dropout) if dropout > 0 else nn.Identity(),
            conv_nd(out_channels, out_channels, kernel_size=3, padding=1, bias=bias),
            norm_layer(norm, out_channels, spatial_dims),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
        )


class PooledConv(nn.Sequential):
    """Max pooling by `stride` that keeps what is left over at an odd border, then a `DoubleConv`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int,
        norm: Norm,
        stride: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__(
            max_pool(spatial_dims, stride),
            DoubleConv(in_channels, out_channels, spatial_dims=spatial_dims, norm=norm, dropout=dropout),
        )


class Upsample(nn.Module):
    """Enlarge by `stride` per axis: to `stride * n` voxels, which the caller crops to the skip connection."""

    def __init__(
        self, in_channels: int, out_channels: int, *, spatial_dims: int, stride: Sequence[int], mode: Upsampling
    ) -> None:
        super().__init__()
        self.scale = tuple(float(s) for s in stride)
        self.interpolation = "bilinear" if spatial_dims == 2 else "trilinear"
        self.mode = mode
        if mode is Upsampling.TRANSPOSED:
            step: Any = tuple(stride)  # as many as spatial dimensions
            layer = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
            self.project: nn.Module = layer(in_channels, out_channels, kernel_size=step, stride=step)
        else:
            self.project = conv(spatial_dims)(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, deep: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, stride * i, stride * j[, stride * k])."""
        if self.mode is not Upsampling.TRANSPOSED:
            aligned = self.mode is Upsampling.ALIGNED
            deep = F.interpolate(deep, scale_factor=self.scale, mode=self.interpolation, align_corners=aligned)
        return cast("torch.Tensor", self.project(deep))


def crop_to(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cut `x` at the far end of each spatial axis to the size of `like`; nothing happens where the sizes are even."""
    for axis in range(2, x.ndim):
        if x.shape[axis] != like.shape[axis]:
            x = x.narrow(axis, 0, like.shape[axis])
    return x


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return for each position of `query` the mean of `value`, weighted by the softmax of its products with `key`.

    `scaled_dot_product_attention` without its scale, as in arXiv:1711.07971 (embedded Gaussian) and arXiv:1809.02983
    (position attention). The fused kernels of CPUs and GPUs need memory for the positions, not for their square.

    Args:
        query: (B, c, i, j[, k]).
        key: (B, c, l, m[, n]), of any spatial size; `c` at most as many channels as `value` has.
        value: (B, C, l, m[, n]).

    Returns:
        (B, C, i, j[, k]).
    """
    lacking = value.shape[1] - query.shape[1]  # zeros change no product, and fused kernels want equal widths
    q, k, v = (x.flatten(2).transpose(1, 2)[:, None].contiguous() for x in (query, key, value))
    q, k = F.pad(q, (0, lacking)), F.pad(k, (0, lacking))  # (B, 1, positions, C), as `v`
    mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return mixed[:, 0].transpose(1, 2).reshape(-1, value.shape[1], *query.shape[2:])


def initialise(module: nn.Module) -> None:
    """Draw convolution weights as Kaiming normal (He 2015, arXiv:1502.01852) for the leaky slope; biases are zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(layer.weight, a=LEAKY_SLOPE, nonlinearity="leaky_relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def check_levels(name: str, spatial_dims: int, levels: int, deep_supervision: int) -> None:
    """Refuse a U-Net that is none.

    Args:
        name: of the kind of network, with its article.
        spatial_dims: 2 or 3.
        levels: at least 2.
        deep_supervision: how many coarser levels return logits too; the deepest never does.

    Raises:
        ValueError: other numbers.
    """
    if spatial_dims not in (2, 3) or levels < 2 or not 0 <= deep_supervision <= levels - 2:
        raise ValueError(
            f"{name} has 2 or 3 spatial dimensions, at least 2 levels and deep supervision on at most levels - 2 of "
            f"them, found {spatial_dims}, {levels} and {deep_supervision}"
        )


def strides_per_axis(
    strides: Sequence[int | Sequence[int]] | None, levels: int, spatial_dims: int
) -> tuple[tuple[int, ...], ...]:
    """Return the step along each axis from each level to the next; 2 everywhere if none are given.

    Raises:
        ValueError: not one less than `levels`, not as many axes as `spatial_dims`, or below 1.
    """
    given = [2] * (levels - 1) if strides is None else strides
    per_axis = tuple((s,) * spatial_dims if isinstance(s, int) else tuple(s) for s in given)
    if len(per_axis) != levels - 1 or any(len(s) != spatial_dims or min(s) < 1 for s in per_axis):
        raise ValueError(
            f"{levels} levels need {levels - 1} strides, each a number or one for each of {spatial_dims} axes, "
            f"found {list(given)}"
        )
    return per_axis


def check_deepest_level(size: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
    """Refuse images that leave nothing to compare at the deepest level.

    Args:
        size: voxels of the image along each axis.
        strides: step along each axis from each level to the next.

    Raises:
        ValueError: the deepest level would be a single voxel.
    """
    reduction = [prod(steps) for steps in zip(*strides, strict=True)]
    if all(n <= r for n, r in zip(size, reduction, strict=True)):
        smallest = " or ".join(f"{r + 1} along axis {axis}" for axis, r in enumerate(reduction))
        raise ValueError(
            f"an image of {' x '.join(map(str, size))} voxels shrinks to a single voxel at the deepest level; "
            f"the smallest that works has {smallest}: pad it, or use fewer levels"
        )


def run_checkpointed(module: nn.Module, *inputs: torch.Tensor) -> Any:
    """Run `module` without keeping its activations; the backward pass computes them again.

    The second pass leaves the running statistics of batch norms alone: otherwise each batch would count twice.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return SoundGradients(), _second_pass(module)

    run = cast("Callable[..., Any]", checkpoint)
    return run(module, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _second_pass(module: nn.Module) -> Iterator[None]:
    with _statistics_frozen(module), SoundGradients():
        yield


@contextmanager
def _statistics_frozen(module: nn.Module) -> Iterator[None]:
    """Let batch norms update copies of their statistics; without any they would save fewer tensors, and that fails."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d)]
    kept = [(layer, name, buffer) for layer in norms for name, buffer in layer.named_buffers()]
    for layer, name, buffer in kept:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
