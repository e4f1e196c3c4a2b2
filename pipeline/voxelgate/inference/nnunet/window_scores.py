"""What one network of nnU-Net says about a window, over all its mirror images, a group of classes at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from voxelgate.networks.nnunet_unets import PlainConvUNet

Layer = Callable[[torch.Tensor], torch.Tensor]

CLASSES_AT_ONCE = 16
"""Of the head; the last ones are up to twice as many. oneDNN computes 16 together; with fewer it takes other kernels,
and the last bit of a logit changes."""


@dataclass(frozen=True, eq=False)
class WindowNetwork:
    """A network and its head in pieces, so that the logits of all classes never exist together.

    Args:
        body: gives features for windows (1, C, ...).
        heads: each gives the logits of the next classes for them, float32.
        mirror_axes: spatial axes; windows are also shown mirrored along every combination of them, and the logits are
            averaged in nnU-Net's order.
    """

    body: Layer
    heads: Sequence[Layer]
    mirror_axes: tuple[int, ...] = ()

    def logits(self, window: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield logits (1, c, ...) float32 of a window (1, C, ...), group by group of its classes."""
        if not self.mirror_axes:
            features = self.body(window)
            for head in self.heads:
                yield head(features)
            return
        features = self.body(window)
        totals = [head(features) for head in self.heads]
        mirrorings = [axes for n in range(len(self.mirror_axes)) for axes in combinations(self.mirror_axes, n + 1)]
        for axes in mirrorings:
            dims = [axis + 2 for axis in axes]
            features = self.body(window.flip(dims))
            for total, head in zip(totals, self.heads, strict=True):
                total.add_(head(features).flip(dims))
        for total in totals:
            yield total.div_(len(mirrorings) + 1)


def window_network(network: nn.Module, mirror_axes: tuple[int, ...] = (), body: Layer | None = None) -> WindowNetwork:
    """Return a network with its head in pieces if it is one of nnU-Net's and has many classes.

    Args:
        network: in evaluation mode.
        mirror_axes: as of `WindowNetwork`.
        body: runs in place of the network itself, up to its head if it is one of nnU-Net's.
    """
    if not isinstance(network, PlainConvUNet):
        return WindowNetwork(body or network, [_same], mirror_axes)
    head = cast("nn.Conv3d", network.head)
    ends = [*range(CLASSES_AT_ONCE, head.out_channels - CLASSES_AT_ONCE + 1, CLASSES_AT_ONCE), head.out_channels]
    return WindowNetwork(body or network.features, [_part(head, *group) for group in pairwise((0, *ends))], mirror_axes)


def _same(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _part(head: nn.Conv3d, first: int, end: int) -> Layer:
    convolve = F.conv2d if head.weight.ndim == 4 else F.conv3d
    weight, bias = head.weight[first:end], None if head.bias is None else head.bias[first:end]
    return lambda features: convolve(features, weight, bias)
