"""The networks of the literature as arguments of one `AttentionUNet`: each a name that a config can call.

Every argument of `AttentionUNet` may be given besides and wins, so that sizes can be made equal for a comparison:
`{"_target_": "voxelgate.presets.oktay", "in_channels": 1, "out_channels": 3, "channels": [16, 32, 64]}`. All
use the activation and the initialisation of `AttentionUNet`, and take images of any size, in 2D and 3D.

>>> network = vg.presets.unet(in_channels=1, out_channels=2, channels=[8, 16])
>>> network(torch.zeros(1, 1, 16, 16, 16)).shape
torch.Size([1, 2, 16, 16, 16])
"""

from collections.abc import Sequence
from typing import Any

from voxelgate.networks.attention_unet import AttentionUNet

WIDE = (64, 128, 256, 512, 1024)
"""Channels of the original U-Net (arXiv:1505.04597, figure 1)."""

NARROW = (16, 32, 64, 128, 256)
"""A quarter of it, with which the 3D Attention U-Net was trained (arXiv:1804.03999, public code)."""


def oktay(*, channels: Sequence[int] = NARROW, **arguments: Any) -> AttentionUNet:
    """Build the Attention U-Net of arXiv:1804.03999, 3D if not told otherwise.

    The gates compare with 1x1x1 convolutions at the size of the coarser level, which gives the gating signal, and the
    coefficients are interpolated to the skip connection; the finest skip connection has no gate; all decoder levels
    are supervised.
    """
    preset: dict[str, Any] = {
        "gating": "coarse",
        "ungated_levels": 1,
        "gate_fraction": 0.5,
        "downsampling": "pooled",
        "deep_supervision": len(channels) - 2,
    }
    return AttentionUNet(channels=channels, **preset | arguments)


def batchnorm_gate(**arguments: Any) -> AttentionUNet:
    """Build the widespread 2D variant: batch norm behind each of `W_g`, `W_x` and `psi`, half the channels inside.

    The gating signal is the enlarged one; `upsampling` is `linear` (bilinear, then a convolution) or `transposed`.
    """
    preset: dict[str, Any] = {
        "spatial_dims": 2,
        "channels": WIDE,
        "gate_norm": "batch",
        "gate_fraction": 0.5,
        "downsampling": "pooled",
        "upsampling": "linear",
    }
    return AttentionUNet(**preset | arguments)


def lean_gate(**arguments: Any) -> AttentionUNet:
    """Build `batchnorm_gate` with a quarter of the skip connection's channels inside a gate instead of a half."""
    return batchnorm_gate(**{"gate_fraction": 0.25} | arguments)


def trilinear(**arguments: Any) -> AttentionUNet:
    """Build the 3D variant without norms in its gates, `psi` zero at the start, and aligned trilinear up-sampling."""
    preset: dict[str, Any] = {
        "channels": WIDE,
        "gate_norm": "none",
        "gate_fraction": 0.5,
        "psi_zero": True,
        "downsampling": "pooled",
        "upsampling": "aligned",
    }
    return AttentionUNet(**preset | arguments)


def upsample_in_gate(**arguments: Any) -> AttentionUNet:
    """Build the variant whose gates project the deeper signal first and enlarge it inside."""
    preset: dict[str, Any] = {"gating": "inside", "gate_fraction": 0.5}
    return AttentionUNet(**preset | arguments)


def unet(**arguments: Any) -> AttentionUNet:
    """Build the plain U-Net (arXiv:1505.04597) with norms, and odd sizes padded instead of valid convolutions."""
    preset: dict[str, Any] = {"attention": False, "channels": WIDE, "downsampling": "pooled"}
    return AttentionUNet(**preset | arguments)
