"""A network of nnU-Net run in the fastest way that this machine has, with logits that differ in their last digits."""

from contextlib import suppress
from typing import cast

import torch
from torch import nn

from voxelgate.core.errors import UsageError
from voxelgate.inference.nnunet.window_scores import Layer
from voxelgate.inference.precision import Precision, choose_precision
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.inference.runtimes.runtimes import prepare_runtime
from voxelgate.networks.nnunet_unets import PlainConvUNet


class FeaturesOf(nn.Module):
    """A network without its head."""

    def __init__(self, network: PlainConvUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the features of the finest level."""
        return self.network.features(window)


def fast_body(network: nn.Module, window: torch.Tensor) -> Layer:
    """Return what gives the features of one of nnU-Net's networks, or the logits of another, as fast as it can be.

    That is OpenVINO in float32 where it is installed, else bfloat16 where it gains, else the network as it is. Networks
    that take slices are left as they are.

    Args:
        network: in evaluation mode.
        window: (1, C, ...), of the shape of all that are to come, on the device of the network.
    """
    body = FeaturesOf(network).eval() if isinstance(network, PlainConvUNet) else network
    if window.ndim == 5:
        with suppress(UsageError):
            return prepare_runtime(body, Runtime.OPENVINO, window)
        if choose_precision(window.device) is Precision.BFLOAT16:
            return prepare_runtime(body, Runtime.BFLOAT16, window)
    return cast("Layer", body)
