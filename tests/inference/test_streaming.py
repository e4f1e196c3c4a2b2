"""Streaming against one forward pass over the whole volume, for any network that allows it and any size."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

from voxelgate.core.errors import InputError, UsageError
from voxelgate.inference.streaming.line_buffers import Line, SkipLine
from voxelgate.inference.streaming.stream import StreamingNetwork, can_stream, obstacles, stream, streaming_cost
from voxelgate.networks import AttentionUNet
from voxelgate.networks.describe import LiveMemory

TOLERANCE = 1e-4
"""Of logits around 1: two ways to sum differ by rounding of float32 only, measured as 1e-5 at most."""

BFLOAT16_TOLERANCE = 0.1
"""The same in bfloat16, which keeps 8 bits."""


def network(**arguments: Any) -> AttentionUNet:
    """Return a network as if trained: no norm is an identity, and logits have the size of 1."""
    torch.manual_seed(0)
    net = AttentionUNet(**{"in_channels": 1, "out_channels": 3, "channels": (4, 6, 8)} | arguments).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm3d):
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    return net


def image(*size: int, channels: int = 1) -> torch.Tensor:
    return torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(1))


def whole(net: AttentionUNet, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x)[0]


def streamed(net: AttentionUNet, x: torch.Tensor, *, axis: int = 0, chunk: int = 4) -> torch.Tensor:
    return torch.cat([logits for _, logits in stream(net, x, chunk=chunk, axis=axis)], dim=1 + axis)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Fail where logits (classes, i, j, k) differ, or labels of which the likeliest is not as good as tied."""
    tolerance = TOLERANCE * max(1.0, float(expected.abs().max()))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < tolerance
    best, second = expected.topk(2, dim=0).values
    is_same = found.argmax(dim=0) == expected.argmax(dim=0)
    assert (is_same | (best - second < 2 * tolerance)).all()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Volumes this small spend their time waiting for the second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class CountingSlices:
    """An image that is made as it is asked for, and notes what was."""

    shape: tuple[int, ...]
    asked: list[int] = field(default_factory=list)

    def narrow(self, dim: int, start: int, length: int) -> torch.Tensor:
        self.asked += range(start, start + length)
        return torch.ones(*self.shape[:dim], length, *self.shape[dim + 1 :])


ARCHITECTURES = st.fixed_dictionaries(
    {
        "in_channels": st.integers(1, 2),
        "strides": st.lists(st.tuples(*[st.integers(1, 3)] * 3), min_size=1, max_size=3),
        "norm": st.sampled_from(["batch", "none"]),
        "gate_norm": st.sampled_from(["batch", "none"]),
        "gating": st.sampled_from(["before", "inside"]),
        "upsampling": st.sampled_from(["transposed", "linear"]),
        "attention": st.sampled_from([True, True, False]),
        "dropout": st.sampled_from([0, 0.2]),
    }
)
SIZES = st.tuples(*[st.integers(1, 15)] * 3)
INSIDE_LINEAR = {"in_channels": 2, "strides": [(2, 2, 2)] * 2, "gating": "inside", "upsampling": "linear"}


# --- equality -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(architecture=ARCHITECTURES, size=SIZES, axis=st.integers(0, 2), chunk=st.integers(1, 20))
@example(architecture=INSIDE_LINEAR, size=(23, 9, 7), axis=0, chunk=3)
@example(architecture=INSIDE_LINEAR, size=(6, 5, 41), axis=2, chunk=16)
@example(architecture={"in_channels": 1, "strides": [(4, 5, 1), (1, 2, 2)]}, size=(19, 17, 6), axis=0, chunk=2)
def test_streaming_equals_one_forward_pass_for_any_network_size_chunk_and_axis(
    architecture: dict[str, Any], size: tuple[int, int, int], axis: int, chunk: int
) -> None:
    strides = architecture["strides"]
    assume(any(n > prod(steps) for n, steps in zip(size, zip(*strides, strict=True), strict=True)))
    net = network(**architecture, channels=(4, 6, 8, 10)[: len(strides) + 1])
    x = image(*size, channels=architecture["in_channels"])
    assert_equal(streamed(net, x, axis=axis, chunk=chunk), whole(net, x))


def test_streaming_equals_one_forward_pass_with_the_depth_of_the_shipped_networks() -> None:
    net = network(channels=(4, 6, 8, 10, 12), deep_supervision=2)
    x = image(150, 37, 20)  # no multiple of 16, and twice the lag
    assert_equal(streamed(net, x, chunk=16), whole(net, x))


@settings(max_examples=10, deadline=None)
@given(depth=st.integers(1, 60), chunk=st.integers(1, 70), axis=st.integers(0, 2))
def test_slabs_follow_each_other_and_cover_the_volume(depth: int, chunk: int, axis: int) -> None:
    size = [5, 6]
    size.insert(axis, depth)
    end = 0
    for start, logits in stream(network(), image(*size), chunk=chunk, axis=axis):
        assert start == end
        assert logits.shape[1 + axis] >= 1
        end = start + logits.shape[1 + axis]
    assert end == depth


def test_one_preparation_serves_many_volumes_at_the_same_time() -> None:
    net = network()
    prepared = StreamingNetwork(net)
    volumes = image(30, 6, 5), image(30, 7, 8)
    pairs = zip(prepared.stream(volumes[0], chunk=4), prepared.stream(volumes[1], chunk=4), strict=True)
    slabs = [(first[1], second[1]) for first, second in pairs]
    for found, volume in zip(zip(*slabs, strict=True), volumes, strict=True):
        assert_equal(torch.cat(found, dim=1), whole(net, volume))


def test_bfloat16_streams_and_gives_float32() -> None:
    net, x = network(), image(30, 12, 10)
    logits = torch.cat([slab for _, slab in stream(net, x, dtype=torch.bfloat16)], dim=1)
    assert logits.dtype == torch.float32
    assert (logits - whole(net, x)).abs().max() < BFLOAT16_TOLERANCE * whole(net, x).abs().max()


def test_an_autocast_around_the_loop_changes_nothing() -> None:
    net, x = network(upsampling="linear"), image(20, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = streamed(net, x)
    assert_equal(found, whole(net, x))


def test_a_meta_tensor_streams_as_the_plain_tensor_in_it() -> None:
    net, x = network(), image(20, 6, 5)
    found = streamed(net, MetaTensor(x))
    assert type(found) is torch.Tensor
    assert_equal(found, whole(net, x))


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gating", ["before", "inside"])
def test_memory_does_not_grow_with_the_number_of_slices(gating: str) -> None:
    prepared = StreamingNetwork(network(gating=gating, upsampling="linear"))

    def most_bytes(depth: int) -> int:
        slabs = prepared.stream(CountingSlices((1, 1, depth, 8, 6)), chunk=8)
        return max(slabs.buffered_bytes for _ in slabs)

    assert most_bytes(64) == most_bytes(256) > 0


def test_every_slice_of_an_image_that_is_not_in_memory_is_asked_for_once_and_in_order() -> None:
    slices = CountingSlices((1, 1, 6, 50, 5))
    logits = torch.cat([slab for _, slab in stream(network(), slices, axis=1)], dim=2)
    assert slices.asked == list(range(50))
    assert_equal(logits, whole(network(), torch.ones(slices.shape)))


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("upsampling", ["transposed", "linear"])
def test_the_foreseen_cost_is_the_cost_of_a_run(axis: int, upsampling: str) -> None:
    net, plane = network(upsampling=upsampling), (40, 24)
    cost = streaming_cost(net, plane, chunk=8, axis=axis)
    prepared = StreamingNetwork(net, axis=axis)
    size = [*plane]
    size.insert(axis, 100)
    with LiveMemory() as memory:
        slabs = prepared.stream(CountingSlices((1, 1, *size)), chunk=8)
        lag_slices = max(slabs.taken_slices - start for start, _ in slabs)
    assert cost.lag_slices == lag_slices
    assert cost.peak_bytes == pytest.approx(memory.peak_bytes, rel=0.1)


def test_the_network_and_the_image_stay_as_they_are() -> None:
    net, x = network(gate_norm="batch"), image(20, 6, 5)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    kept = x.clone()
    for _, logits in stream(net, x.requires_grad_(), axis=1):
        assert not logits.requires_grad
        logits.zero_()
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in net.parameters())
    assert torch.equal(x, kept)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (network(norm="instance"), "InstanceNorm3d depends on the whole image"),
        (network(norm="group"), "GroupNorm depends on the whole image"),
        (network(gate_norm="instance"), "InstanceNorm3d depends on the whole image"),
        (network(spatial_dims=2), "2 spatial dimensions, not 3"),
        (network().train(), "training mode; call eval()"),
        (nn.Conv3d(1, 2, 3), "Conv3d is not an AttentionUNet"),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_the_reason(net: nn.Module, reason: str) -> None:
    assert not can_stream(net)
    assert obstacles(net) == [reason]
    with pytest.raises(UsageError, match=r"cannot be streamed: .*; use a sliding window"):
        StreamingNetwork(net)


@pytest.mark.parametrize("arguments", [{}, {"norm": "none"}, {"gate_norm": "batch"}, {"attention": False}])
def test_batch_norm_and_no_norm_can_be_streamed(arguments: dict[str, Any]) -> None:
    assert can_stream(network(**arguments))
    assert obstacles(network(**arguments)) == []


@pytest.mark.parametrize("shape", [(1, 2, 8, 8, 8), (2, 1, 8, 8, 8), (1, 8, 8, 8), (1, 1, 0, 8, 8)])
def test_an_image_that_is_not_one_volume_of_the_network_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected one volume \(1, 1, i, j, k\)"):
        stream(network(), torch.zeros(shape))


@pytest.mark.parametrize("wrong", [{"chunk": 0}, {"axis": 3}, {"axis": -1}])
def test_a_chunk_or_an_axis_that_does_not_exist_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        stream(network(), image(8, 8, 8), **wrong)


# --- buffers ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), max_size=12))
def test_a_line_holds_what_was_appended_and_not_dropped(steps: list[tuple[int, int]]) -> None:
    line = Line((1, 1), 1, dtype=torch.float32, device=torch.device("cpu"))
    appended, dropped = 0, 0
    for count, drop in steps:
        line.append(torch.arange(appended, appended + count).reshape(-1, 1, 1, 1).float())
        appended += count
        line.drop(drop)
        dropped += drop
        assert line.oldest(len(line)).flatten().tolist() == list(range(dropped, appended))


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(0, 9), st.booleans()), max_size=20),
)
def test_a_skip_line_holds_what_its_layer_will_see_and_gives_slices_in_the_order_they_came(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    line = SkipLine((1, 1), 1, dtype=torch.float32, device=torch.device("cpu"))
    seen: list[float] = []
    waiting: list[float] = []
    dropped, number = 0, 0.0
    for count, drop, pour, is_padding in steps:
        if is_padding:
            line.append_zeros(count)
            seen += [0.0] * count
        else:
            slices = [number := number + 1 for _ in range(count)]
            line.append(torch.tensor(slices).reshape(-1, 1, 1, 1))
            seen += slices
            waiting += slices
        line.drop(drop)
        dropped += drop
        out = torch.empty(min(pour, len(waiting)), 1, 1, 1)
        line.pour(out)
        assert out.flatten().tolist() == waiting[: len(out)]
        del waiting[: len(out)]
        assert line.oldest(len(line)).flatten().tolist() == seen[dropped:]


def test_a_skip_line_takes_no_more_memory_when_as_much_is_poured_as_comes() -> None:
    line = SkipLine((3, 2), 4, dtype=torch.float32, device=torch.device("cpu"))
    held = []
    for number in range(20):
        line.append(torch.full((8, 3, 2, 4), float(number)))
        line.drop(len(line) - 1)
        if number > 5:
            line.pour(torch.empty(8, 3, 2, 4))
        held.append(line.nbytes)

    assert len(set(held[7:])) == 1


def test_an_image_of_one_channel_becomes_features_with_channels_last() -> None:
    network = AttentionUNet(in_channels=1, out_channels=3, channels=(4, 6, 8)).eval()

    first = StreamingNetwork(network).encoder[0].first

    assert first.weight.stride()[1] == 1  # else each slab would be turned over before it is kept
