"""U-Net whose decoder looks at the whole image at once: non-local blocks at its coarse levels, in 2D and 3D.

References:
    Wang et al. 2018, Non-local neural networks, arXiv:1711.07971 (embedded Gaussian: section 3.2; residual block and
        pooled keys: section 3.3; the block starts as an identity: section 4.1).
"""

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import torch
from torch import nn

from voxelgate.networks.attention_unet import AttentionUNet, DecoderLevel
from voxelgate.networks.blocks import Norm, attend, conv, initialise, max_pool, norm_layer

MAX_TOKENS = 2**15
"""Positions that a block compares with those of its pooled keys: 32 x 32 x 32, about 15 GFLOP at 32 channels."""

FINEST_ATTENDED = 2
"""Finest decoder level with a block if none is named: a quarter of the image along each axis."""


class NonLocalBlock(nn.Module):
    """Add to each position what all others hold, weighted by how well they match: `x + W attend(theta, phi, g)`.

    Keys and values are max-pooled, and the matrix of weights is never laid out: memory grows with the positions.

    Args:
        channels: of the features; half as many inside.
        spatial_dims: 2 or 3.
        norm: behind `W`; its weights start at zero, and with them the block.
        pool: along each axis, for keys and values.
        max_tokens: most positions of an image.
    """

    def __init__(self, channels: int, *, spatial_dims: int, norm: Norm, pool: int, max_tokens: int) -> None:
        super().__init__()
        conv_nd, inner = conv(spatial_dims), max(1, channels // 2)
        self.max_tokens = max_tokens
        self.theta = conv_nd(channels, inner, kernel_size=1)
        self.phi = conv_nd(channels, inner, kernel_size=1)
        self.g = conv_nd(channels, inner, kernel_size=1)
        self.pool = max_pool(spatial_dims, (pool,) * spatial_dims)
        self.w = nn.Sequential(conv_nd(inner, channels, kernel_size=1), norm_layer(norm, channels, spatial_dims))
        initialise(self)
        last = self.w[0] if norm is Norm.NONE else self.w[1]
        nn.init.zeros_(cast("torch.Tensor", last.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, channels, i, j[, k]), as `x`.

        Raises:
            ValueError: more positions than `max_tokens`.
        """
        if prod(x.shape[2:]) > self.max_tokens:
            raise ValueError(
                f"a non-local block meets {' x '.join(map(str, x.shape[2:]))} = {prod(x.shape[2:])} positions, at most "
                f"{self.max_tokens} are allowed: use a smaller window, coarser attention_levels, or raise max_tokens"
            )
        mixed = attend(self.theta(x), self.pool(self.phi(x)), self.pool(self.g(x)))  # (B, channels / 2, i, j[, k])
        return x + cast("torch.Tensor", self.w(mixed))


class NonLocalUNet(AttentionUNet):
    """U-Net with ungated skip connections and a non-local block behind some decoder levels.

    The blocks see the whole window: like an instance norm they make the result depend on it. `describe` estimates their
    memory too.

    Args:
        channels: as in `AttentionUNet`.
        attention_levels: decoder levels with a block, 0 the finest; from a quarter of the image's size on if not given,
            the coarsest where there is none that coarse.
        pool: along each axis, of keys and values; 1 for none.
        max_tokens: most positions of a level with a block; larger images are refused.
        arguments: the others of `AttentionUNet`, except those of its gates.

    Raises:
        ValueError: arguments that fit no network.

    >>> network = vg.NonLocalUNet(in_channels=1, out_channels=2, channels=(8, 16)).eval()
    >>> network(torch.zeros(1, 1, 16, 16, 16)).shape
    torch.Size([1, 2, 16, 16, 16])
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (32, 64, 128, 256),
        attention_levels: Sequence[int] | None = None,
        pool: int = 2,
        max_tokens: int = MAX_TOKENS,
        **arguments: Any,
    ) -> None:
        super().__init__(channels=channels, attention=False, **arguments)
        coarsest = len(channels) - 2
        default = range(min(FINEST_ATTENDED, coarsest), coarsest + 1)
        attended = set(default if attention_levels is None else attention_levels)
        if not attended or not attended <= set(range(coarsest + 1)) or pool < 1 or max_tokens < 1:
            raise ValueError(
                f"attention_levels are some of 0 to {coarsest}, pool and max_tokens at least 1, found "
                f"{sorted(attended)}, {pool} and {max_tokens}"
            )
        norm = Norm(arguments.get("norm", Norm.BATCH))
        for index in attended:
            level = cast("DecoderLevel", self.decoder[coarsest - index])
            level.block.append(
                NonLocalBlock(
                    channels[index], spatial_dims=self.spatial_dims, norm=norm, pool=pool, max_tokens=max_tokens
                )
            )
