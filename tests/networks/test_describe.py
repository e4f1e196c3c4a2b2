"""What `describe` says of a network, against closed formulas and against the memory that PyTorch really takes."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from voxelgate.networks import AttentionUNet, describe

FACTOR = 1.5
"""Largest factor between an estimate of memory and its measurement."""


def network(*, checkpointing: bool = False) -> AttentionUNet:
    return AttentionUNet(in_channels=1, out_channels=3, channels=(8, 16, 32), checkpointing=checkpointing)


def measured_peak_bytes(run: Callable[[], object]) -> int:
    """Add up what PyTorch's allocator gives and takes back while `run` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def test_parameters_and_sizes_are_those_of_the_network() -> None:
    net = network()
    description = describe(net, (2, 1, 16, 12, 9))
    assert description.parameters == sum(p.numel() for p in net.parameters())
    assert description.output_sizes == (
        ("encoder 0", (2, 8, 16, 12, 9)),
        ("encoder 1", (2, 16, 8, 6, 5)),
        ("encoder 2", (2, 32, 4, 3, 3)),
        ("decoder 0", (2, 16, 8, 6, 5)),
        ("decoder 1", (2, 8, 16, 12, 9)),
        ("heads 0", (2, 3, 16, 12, 9)),
    )


def test_the_operations_of_a_convolution_are_those_of_its_formula() -> None:
    layer = nn.Sequential(nn.Conv3d(3, 5, kernel_size=(3, 3, 1), stride=(1, 2, 1), padding=(1, 1, 0)))
    outputs = 2 * 5 * (7 * 4 * 6)  # batch, channels, voxels
    assert describe(layer, (2, 3, 7, 8, 6)).flops == 2 * outputs * 3 * (3 * 3 * 1)


def test_memory_grows_with_the_image_and_training_takes_more() -> None:
    small, large = (describe(network(), (1, 1, side, side, side)) for side in (16, 24))
    for description in (small, large):
        assert 4 * description.parameters < description.inference_bytes < description.training_bytes
    assert small.inference_bytes < large.inference_bytes
    assert small.training_bytes < large.training_bytes
    assert small.flops < large.flops


def test_checkpointing_takes_less_memory_for_training_only() -> None:
    plain, checkpointed = (describe(network(checkpointing=c), (1, 1, 24, 24, 24)) for c in (False, True))
    assert checkpointed.training_bytes < 0.8 * plain.training_bytes
    assert checkpointed.inference_bytes == plain.inference_bytes


def test_the_estimate_of_inference_is_near_the_measurement() -> None:
    shape = (2, 1, 24, 24, 24)  # PyTorch's convolution for single small images takes memory of its own

    def infer() -> None:
        with torch.no_grad():
            network().eval()(torch.ones(shape))

    ratio = measured_peak_bytes(infer) / describe(network(), shape).inference_bytes
    assert 1 / FACTOR < ratio < FACTOR


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_of_training_is_near_the_measurement(checkpointing: bool) -> None:
    shape = (2, 1, 24, 24, 24)

    def train() -> None:
        net = network(checkpointing=checkpointing).train()
        optimiser = torch.optim.Adam(net.parameters())
        for _ in range(2):
            optimiser.zero_grad()
            net(torch.ones(shape)).sum().backward()
            optimiser.step()

    ratio = measured_peak_bytes(train) / describe(network(checkpointing=checkpointing), shape).training_bytes
    assert 1 / FACTOR < ratio < FACTOR


def test_the_network_is_the_same_afterwards() -> None:
    net = network().train()
    before = copy.deepcopy(net.state_dict())
    describe(net, (1, 1, 16, 16, 16))
    assert net.training
    assert all(p.device.type == "cpu" and p.grad is None for p in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("shape", [(1, 2, 16, 16, 16), (1, 1, 4, 4, 4), (1, 1, 16, 16), (1, 1, 0, 16, 16)], ids=str)
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes no image of shape \(1, "):
        describe(network(), shape)


def test_the_text_names_sizes_operations_and_memory() -> None:
    text = str(describe(network(), (1, 1, 16, 16, 16)))
    for word in ("encoder 0", "1 x 8 x 16 x 16 x 16", "million", "GFLOP", "inference", "training"):
        assert word in text
