"""Run a 2D network on volumes of one slice, so that everything around it knows volumes only.

A 3D network computes the same with the middle plane of its kernels; but on one slice PyTorch's 3D convolutions took
seven times as long as those in 2D (training step of an `AttentionUNet` on two patches of 256x248, one core).
"""

from typing import Any, Self

import torch
from torch import nn

from voxelgate.networks.attention_unet import GatedLogits
from voxelgate.networks.guided_attention import GuidedOutput


class FlatNetwork(nn.Module):
    """A 2D network for volumes whose size along one axis is 1.

    Args:
        network: takes (B, C, i, j), and returns tensors with the same spatial axes, alone or in lists and named tuples.
        axis: spatial axis of size 1: 0, 1 or 2.

    Raises:
        ValueError: another axis.

    >>> flat = vg.FlatNetwork(network=vg.AttentionUNet(in_channels=1, out_channels=2, spatial_dims=2, channels=(8, 16)))
    >>> flat(torch.zeros(1, 1, 24, 20, 1)).shape
    torch.Size([1, 2, 24, 20, 1])
    """

    def __init__(self, *, network: nn.Module, axis: int = 2) -> None:
        super().__init__()
        if axis not in (0, 1, 2):
            raise ValueError(f"axis is 0, 1 or 2, found {axis}")
        self.network = network
        self.axis = axis

    def forward(self, image: torch.Tensor) -> Any:  # what the network returns
        """Return what the network returns, with the axis of size 1 in every tensor.

        Args:
            image: (B, C, i, j, k), one of them 1.

        Raises:
            ValueError: the image has several slices.
        """
        dim = 2 + self.axis
        if image.shape[dim] != 1:
            raise ValueError(f"a 2D network takes one slice, found {image.shape[dim]} along axis {self.axis}")
        return _expanded(self.network(image.squeeze(dim)), dim)

    def to(self, *args: Any, memory_format: torch.memory_format | None = None, **kwargs: Any) -> Self:
        """Move the network as `nn.Module.to` does; channels-last of volumes is that of images here."""
        format_2d = torch.channels_last if memory_format is torch.channels_last_3d else memory_format
        self.network.to(memory_format=format_2d)  # type: ignore[call-overload]  # PyTorch's stubs know 4D only
        return super().to(*args, **kwargs)


def _expanded(result: Any, dim: int) -> Any:  # tensors, alone or in lists and named tuples
    if isinstance(result, torch.Tensor):
        return result.unsqueeze(dim) if result.ndim >= dim else result
    if isinstance(result, GatedLogits | GuidedOutput):
        return type(result)(*(_expanded(part, dim) for part in result))
    return [_expanded(part, dim) for part in result] if isinstance(result, list) else result
