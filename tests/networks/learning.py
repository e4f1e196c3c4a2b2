"""A few steps of a training in bfloat16, which show whether a network learns at all."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from voxelgate.networks.bfloat16 import SoundGradients

STEPS = 6


def losses_of_some_steps(net: nn.Module, image: torch.Tensor, loss: Callable[[Any], torch.Tensor]) -> list[float]:
    """Train on one image, and check that every weight has a gradient; the network is left in training mode."""
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), SoundGradients():
            output = net.train()(image)
        value = loss(output)
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())
    return losses
