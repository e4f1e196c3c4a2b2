"""Multi-scale guided attention on a residual backbone, in 2D and 3D.

References:
    Sinha and Dolz 2020, Multi-scale self-guided attention, arXiv:1906.02849, doi:10.1109/JBHI.2020.2986926.
    Fu et al. 2019, Dual attention network, arXiv:1809.02983 (position and channel attention, each from a factor of 0).
"""

from math import prod
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from voxelgate.networks.blocks import (
    LEAKY_SLOPE,
    DoubleConv,
    Norm,
    Upsample,
    Upsampling,
    attend,
    conv,
    crop_to,
    initialise,
    norm_layer,
)

SCALES = 4
"""Stages of a residual network whose features are used."""

MAX_KEYS = 4096
"""Positions that each one is compared with: all of a 256 x 256 image at a quarter of its size, as in the paper."""

KEY_REDUCTION = 8
"""Keys and queries of the position attention have an eighth of the channels (arXiv:1809.02983, public code)."""


class GuidedOutput(NamedTuple):
    """What a `GuidedAttentionNet` returns while training; `voxelgate.networks.losses` takes it.

    Args:
        predictions: logits at the size of the image, of each scale before attention, then of each after it.
        latents: of each scale the encodings of its two semantic guides; the guided loss brings them together.
        reconstructions: of each attention module what was encoded, and what was decoded from that.
    """

    predictions: list[torch.Tensor]
    latents: list[tuple[torch.Tensor, torch.Tensor]]
    reconstructions: list[tuple[torch.Tensor, torch.Tensor]]


class PositionAttention(nn.Module):
    """Add to each position a mean of all others, weighted by their likeness; `gamma` starts at 0.

    The paper compares every position with every other. Here keys and values are averaged over cubes of the smallest
    side that leaves at most `max_keys`, which is 1 for the images of the paper, and the weights are never laid out as a
    matrix: memory grows with the positions, time with positions times keys.

    Args:
        channels: of the features.
        spatial_dims: 2 or 3.
        max_keys: most positions to compare each with.
    """

    def __init__(self, channels: int, *, spatial_dims: int, max_keys: int) -> None:
        super().__init__()
        conv_nd, inner = conv(spatial_dims), max(1, channels // KEY_REDUCTION)
        self.max_keys = max_keys
        self.average = F.avg_pool2d if spatial_dims == 2 else F.avg_pool3d
        self.query = conv_nd(channels, inner, kernel_size=1)
        self.key = conv_nd(channels, inner, kernel_size=1)
        self.value = conv_nd(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, channels, i, j[, k])."""
        keys = self._pooled(x)
        return x + self.gamma * attend(self.query(x), self.key(keys), self.value(keys))

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        side = 1
        while prod(-(-n // side) for n in x.shape[2:]) > self.max_keys:
            side += 1
        return x if side == 1 else self.average(x, side, ceil_mode=True)


class ChannelAttention(nn.Module):
    """Add to each channel a mean of all others, weighted by their likeness; `gamma` starts at 0.

    Likeness is the mean product over the positions; the paper sums, which would depend on the size of the image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, channels, i, j[, k])."""
        rows = x.flatten(2)  # (B, C, positions)
        likeness = torch.softmax(rows @ rows.transpose(1, 2) / rows.shape[2], dim=-1)  # (B, C, C)
        return x + self.gamma * (likeness @ rows).reshape(x.shape)


class SemanticGuide(nn.Module):
    """Encode features to a quarter of their size and decode them again."""

    def __init__(self, channels: int, *, spatial_dims: int, norm: Norm) -> None:
        super().__init__()
        stride = (2,) * spatial_dims
        block: dict[str, Any] = {"spatial_dims": spatial_dims, "norm": norm, "stride": stride}
        up: dict[str, Any] = {"spatial_dims": spatial_dims, "stride": stride, "mode": Upsampling.LINEAR}
        self.first_down = DoubleConv(channels, channels, **block)
        self.second_down = DoubleConv(channels, 2 * channels, **block)
        self.first_up = Upsample(2 * channels, channels, **up)
        self.second_up = Upsample(channels, channels, **up)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the encoding, (B, 2 channels, i / 4, j / 4[, k / 4]), and what was decoded, as `x`."""
        half = self.first_down(x)
        latent = self.second_down(half)
        widened = F.leaky_relu(crop_to(self.first_up(latent), half), LEAKY_SLOPE)
        return latent, crop_to(self.second_up(widened), x)


class GuidedModule(nn.Module):
    """Position and channel attention side by side, multiplied by what the semantic guide decodes."""

    def __init__(self, width: int, *, spatial_dims: int, norm: Norm, max_keys: int) -> None:
        super().__init__()
        self.reduce = DoubleConv(2 * width, width, spatial_dims=spatial_dims, norm=norm)
        self.position = PositionAttention(width, spatial_dims=spatial_dims, max_keys=max_keys)
        self.channel = ChannelAttention()
        self.guide = SemanticGuide(2 * width, spatial_dims=spatial_dims, norm=norm)
        self.project = conv(spatial_dims)(2 * width, width, kernel_size=1)
        self.merge = _activated(width, width, spatial_dims=spatial_dims, norm=norm)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return attention (B, width, ...), the guide's encoding, and what it decoded, of `x` (B, 2 width, ...)."""
        latent, decoded = self.guide(x)
        features = self.reduce(x)
        attended = self.position(features) + self.channel(features)
        return self.merge(attended * self.project(decoded)), latent, decoded


class GuidedScale(nn.Module):
    """Two guided modules in a row on one scale, and the refinement behind them."""

    def __init__(self, width: int, *, spatial_dims: int, norm: Norm, max_keys: int) -> None:
        super().__init__()
        guided: dict[str, Any] = {"spatial_dims": spatial_dims, "norm": norm, "max_keys": max_keys}
        self.first = GuidedModule(width, **guided)
        self.second = GuidedModule(width, **guided)
        self.refine = DoubleConv(2 * width, width, spatial_dims=spatial_dims, norm=norm)

    def forward(
        self, scale: torch.Tensor, fused: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Return refined features (B, width, ...), both encodings, and both pairs of features and their reconstruction.

        Args:
            scale: features of this scale, (B, width, i, j[, k]).
            fused: features of all scales, of the same shape.
        """
        first_in = torch.cat((scale, fused), dim=1)  # (B, 2 width, i, j[, k])
        first, first_latent, first_decoded = self.first(first_in)
        second_in = torch.cat((scale, first * fused), dim=1)
        second, second_latent, second_decoded = self.second(second_in)
        refined = self.refine(torch.cat((scale, second * fused), dim=1))
        return refined, (first_latent, second_latent), [(first_in, first_decoded), (second_in, second_decoded)]


class GuidedAttentionNet(nn.Module):
    """Guided attention on four scales of a residual backbone; the mean of the four refined predictions is the result.

    Args:
        out_channels: classes, background included.
        backbone: a MONAI `ResNet` or a module with its `conv1`, `bn1`, `act`, `maxpool` and `layer1` to `layer4`; in a
            config a `_target_` such as `monai.networks.nets.resnet18`. What else it has is left out.
        in_channels: channels of the image, to be compared with those of the backbone; not checked if not given.
        width: channels to which every scale is reduced.
        norm: `batch`, `instance`, `group` or `none`, in what is not the backbone.
        max_keys: most positions that the position attention compares each with.

    Raises:
        ValueError: a backbone that lacks a part, or for images of other channels.

    >>> from monai.networks.nets import resnet18
    >>> backbone = resnet18(n_input_channels=1)
    >>> network = vg.GuidedAttentionNet(out_channels=2, backbone=backbone, width=8).eval()
    >>> network(torch.zeros(1, 1, 16, 16, 16)).shape
    torch.Size([1, 2, 16, 16, 16])
    """

    def __init__(
        self,
        *,
        out_channels: int,
        backbone: nn.Module,
        in_channels: int | None = None,
        width: int = 64,
        norm: str = "batch",
        max_keys: int = MAX_KEYS,
    ) -> None:
        super().__init__()
        self.stem, self.stages = _parts(backbone)
        first = cast("nn.Conv2d | nn.Conv3d", self.stem[0])
        spatial_dims, found = len(first.kernel_size), first.in_channels
        if in_channels not in {None, found}:
            raise ValueError(f"the backbone takes {found} channels, the network {in_channels}: set n_input_channels")
        self.interpolation = "bilinear" if spatial_dims == 2 else "trilinear"
        options: dict[str, Any] = {"spatial_dims": spatial_dims, "norm": Norm(norm)}
        self.reduce = nn.ModuleList(_activated(_width(stage), width, **options) for stage in self.stages)
        self.fuse = DoubleConv(SCALES * width, width, **options)
        self.scales = nn.ModuleList(GuidedScale(width, max_keys=max_keys, **options) for _ in range(SCALES))
        heads = [conv(spatial_dims)(width, out_channels, kernel_size=1) for _ in range(2 * SCALES)]
        self.early_heads, self.heads = nn.ModuleList(heads[:SCALES]), nn.ModuleList(heads[SCALES:])
        for part in (self.reduce, self.fuse, self.scales, self.early_heads, self.heads):
            initialise(part)

    def forward(self, image: torch.Tensor) -> torch.Tensor | GuidedOutput:
        """Return logits (B, out_channels, size of `image`), while training `GuidedOutput`.

        Args:
            image: (B, channels of the backbone, i, j[, k]), of any size.
        """
        scales = self._features(image)
        fused = self.fuse(torch.cat(scales, dim=1))
        predictions, latents, reconstructions = [], [], []
        for module, head, scale in zip(self.scales, self.heads, scales, strict=True):
            refined, codes, pairs = module(scale, fused)
            predictions.append(self._enlarged(head(refined), image))
            latents.append(codes)
            reconstructions += pairs
        if not self.training:
            return torch.stack(predictions).mean(dim=0)
        early = [self._enlarged(head(x), image) for head, x in zip(self.early_heads, scales, strict=True)]
        return GuidedOutput(early + predictions, latents, reconstructions)

    def load_backbone(self, path: str | Path) -> None:
        """Load a state dict of the backbone, such as MedicalNet's, whose last layer does not count.

        Raises:
            ValueError: the file holds other layers than the backbone.
        """
        content = torch.load(path, map_location="cpu", weights_only=True)
        renamed: dict[str, torch.Tensor] = {}
        for name, tensor in content.get("state_dict", content).items():
            part, _, rest = name.removeprefix("module.").partition(".")
            renamed |= {} if part == "fc" else {f"{_PLACES.get(part, part)}.{rest}": tensor}
        own = {name for name in self.state_dict() if name.startswith(("stem.", "stages."))}
        if other := sorted(own ^ renamed.keys()):
            raise ValueError(f"{Path(path).name} holds another backbone: {len(other)} layers differ, as {other[0]}")
        self.load_state_dict(renamed, strict=False)

    def _features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of every stage, (B, width, size of the finest)."""
        found = []
        x = self.stem(image)
        for stage, reduce in zip(self.stages, self.reduce, strict=True):
            x = stage(x)
            found.append(reduce(x))
        return [found[0], *(self._enlarged(scale, found[0]) for scale in found[1:])]

    def _enlarged(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=like.shape[2:], mode=self.interpolation, align_corners=False)


_STEM = ("conv1", "bn1", "act", "maxpool")
_STAGES = tuple(f"layer{index + 1}" for index in range(SCALES))
_PLACES = {name: f"stem.{index}" for index, name in enumerate(_STEM)} | {
    name: f"stages.{index}" for index, name in enumerate(_STAGES)
}
"""Where the parts of a backbone are kept."""


def _parts(backbone: nn.Module) -> tuple[nn.Sequential, nn.ModuleList]:
    """Return what stands before the stages of a residual network, and the stages."""
    children = dict(backbone.named_children())
    if missing := [name for name in (*_STEM, *_STAGES) if name not in children]:
        raise ValueError(f"a backbone has the parts of MONAI's ResNet, found none called {', '.join(missing)}")
    stem = _STEM[:-1] if getattr(backbone, "no_max_pool", False) else _STEM
    return nn.Sequential(*(children[name] for name in stem)), nn.ModuleList(children[name] for name in _STAGES)


def _width(stage: nn.Module) -> int:
    """Return the channels that a stage gives: those of its last convolution."""
    return [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)][-1].out_channels


def _activated(in_channels: int, out_channels: int, *, spatial_dims: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        conv(spatial_dims)(in_channels, out_channels, kernel_size=1, bias=norm is Norm.NONE),
        norm_layer(norm, out_channels, spatial_dims),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    )
