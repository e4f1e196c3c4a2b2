"""The attention U-Net against its formula, for any size, in training, and on its way into other formats."""

import io
import itertools
from collections.abc import Sequence
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from torch.nn import functional as F

from voxelgate.networks import AttentionGate, AttentionUNet, GatedLogits
from voxelgate.networks.blocks import DoubleConv, Norm

TOLERANCE = 1e-5
"""Logits of two ways to run one network differ by rounding of float32 only."""


def network(**arguments: Any) -> AttentionUNet:
    torch.manual_seed(0)
    return AttentionUNet(**{"in_channels": 1, "out_channels": 3, "channels": (4, 8, 16)} | arguments)


def image(*size: int, batch: int = 1, channels: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def loss_of(logits: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return sum((level.square().mean() for level in logits), torch.zeros(()))


# --- size ---------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    size=st.lists(st.integers(5, 21), min_size=2, max_size=3),
    gating=st.sampled_from(["before", "inside", "coarse"]),
    upsampling=st.sampled_from(["transposed", "linear", "aligned"]),
    downsampling=st.sampled_from(["strided", "pooled"]),
)
def test_the_logits_have_the_size_of_any_image(
    size: list[int], gating: str, upsampling: str, downsampling: str
) -> None:
    net = network(spatial_dims=len(size), gating=gating, upsampling=upsampling, downsampling=downsampling).eval()
    with torch.no_grad():
        assert net(image(*size, batch=2)).shape == (2, 3, *size)


@settings(max_examples=10, deadline=None)
@given(
    size=st.tuples(*[st.integers(2, 13)] * 3),
    strides=st.lists(st.tuples(*[st.integers(1, 3)] * 3), min_size=2, max_size=2),
)
def test_the_logits_have_the_size_of_the_image_with_any_strides(
    size: tuple[int, ...], strides: list[tuple[int, ...]]
) -> None:
    net = network(strides=strides).eval()
    reduction = [prod(steps) for steps in zip(*strides, strict=True)]
    with torch.no_grad():
        if all(n <= r for n, r in zip(size, reduction, strict=True)):
            with pytest.raises(ValueError, match="single voxel"):
                net(image(*size))
        else:
            assert net(image(*size)).shape == (1, 3, *size)


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_a_batch_of_one_trains_with_every_norm(norm: str) -> None:
    net = network(norm=norm).train()
    loss_of([net(image(9, 8, 7))]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_the_smallest_image_that_works_is_named_when_one_is_refused() -> None:
    net = network().train()
    with pytest.raises(ValueError, match=r"4 x 4 x 4 voxels .* 5 along axis 0 or 5 along axis 1 or 5 along axis 2"):
        net(image(4, 4, 4))
    for size in itertools.permutations((5, 4, 4)):
        assert net(image(*size)).shape == (1, 3, *size)


def test_anisotropic_strides_leave_the_thick_axis_alone() -> None:
    net = network(strides=[[1, 2, 2], [2, 2, 2]])
    depths = [encoder_size[2] for encoder_size in encoder_sizes(net, image(7, 16, 16))]
    assert depths == [7, 7, 4]


def encoder_sizes(net: AttentionUNet, x: torch.Tensor) -> list[torch.Size]:
    sizes = []
    for block in net.encoder:
        x = block(x)
        sizes.append(x.shape)
    return sizes


# --- gates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_gate_is_the_formula_of_the_paper(spatial_dims: int) -> None:
    torch.manual_seed(0)
    gate = AttentionGate(6, 5, 4, spatial_dims=spatial_dims)
    size = (5, 4, 3)[:spatial_dims]
    x, g = image(*size, channels=6), image(*size, channels=5)
    w_x, w_g, psi = (layer[0].weight.flatten(1) for layer in (gate.w_x, gate.w_g, gate.psi))
    b_g, b_psi = (layer[0].bias[:, None] for layer in (gate.w_g, gate.psi))

    inner = torch.relu(w_g @ g.flatten(2) + b_g + w_x @ x.flatten(2))
    alpha = torch.sigmoid(psi @ inner + b_psi).reshape(1, 1, *size)

    torch.testing.assert_close(gate(x, g), alpha)


def test_a_smaller_gating_signal_is_projected_and_then_enlarged() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(6, 5, 4, spatial_dims=3)
    x, g = image(6, 5, 4, channels=6), image(3, 3, 2, channels=5)
    enlarged = F.interpolate(gate.w_g(g), size=(6, 5, 4), mode="trilinear", align_corners=False)
    torch.testing.assert_close(gate(x, g), torch.sigmoid(gate.psi(torch.relu(gate.w_x(x) + enlarged))))


def test_a_gate_with_a_stride_compares_at_the_size_of_the_gating_signal() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(6, 5, 4, spatial_dims=3, stride=(2, 2, 1))
    x, g = image(7, 6, 3, channels=6), image(4, 3, 3, channels=5)
    thinned = gate.w_x[0].weight.flatten(1) @ x[:, :, ::2, ::2].flatten(2)
    inner = torch.relu(gate.w_g(g) + thinned.reshape(1, 4, 4, 3, 3))
    torch.testing.assert_close(gate(x, g), torch.sigmoid(gate.psi(inner)))


@pytest.mark.parametrize("gating", ["before", "inside", "coarse"])
def test_a_level_multiplies_its_skip_with_the_map_of_its_gate(gating: str) -> None:
    net = network(gating=gating).eval()
    x = image(9, 10, 11)
    with torch.no_grad():
        first = net.encoder[0](x)
        second = net.encoder[1](first)
        deep = net.encoder[2](second)
        maps = net.attention_maps(x)
        for level, skip, alpha in zip(net.decoder, (second, first), maps[::-1], strict=True):
            enlarged = level.up(deep)[tuple(slice(n) for n in (1, 99, *skip.shape[2:]))]
            resized = F.interpolate(alpha, size=skip.shape[2:], mode="trilinear", align_corners=False)
            deep = level.block(torch.cat((resized * skip, enlarged), dim=1))
        torch.testing.assert_close(net(x), net.heads[0](deep))


@pytest.mark.parametrize("gating", ["before", "inside"])
@pytest.mark.parametrize("gate_norm", list(Norm))
def test_attention_maps_are_finest_first_and_between_0_and_1(gating: str, gate_norm: str) -> None:
    net = network(gating=gating, gate_norm=gate_norm, gate_fraction=0.5).eval()
    with torch.no_grad():
        maps = net.attention_maps(image(9, 10, 11, batch=2))
    assert [m.shape for m in maps] == [(2, 1, 9, 10, 11), (2, 1, 5, 5, 6)]
    assert all(((m >= 0) & (m <= 1)).all() and m.std() > 0 for m in maps)


def test_coarse_gates_give_maps_at_the_size_of_the_level_below() -> None:
    net = network(gating="coarse", channels=(4, 8, 16, 16), strides=[[1, 2, 2], 2, 2]).eval()
    with torch.no_grad():
        maps = net.attention_maps(image(9, 20, 21))
    assert [m.shape[2:] for m in maps] == [(9, 10, 11), (5, 5, 6), (3, 3, 3)]
    assert net.map_reductions() == [(1, 2, 2), (2, 4, 4), (4, 8, 8)]


def test_the_finest_levels_can_go_without_a_gate() -> None:
    net = network(channels=(4, 8, 16, 16), ungated_levels=1).eval()
    assert [gate.w_x[0].in_channels for gate in net.gates] == [8, 16]
    assert net.map_reductions() == [(2, 2, 2), (4, 4, 4)]
    with torch.no_grad():
        assert [m.shape[2:] for m in net.attention_maps(image(16, 16, 16))] == [(8, 8, 8), (4, 4, 4)]


@pytest.mark.parametrize("gate_norm", list(Norm))
def test_gates_start_at_one_half_everywhere_with_psi_zero(gate_norm: str) -> None:
    net = network(psi_zero=True, gate_norm=gate_norm)
    assert all((m == 0.5).all() for m in net.attention_maps(image(9, 8, 7)))


def test_without_attention_exactly_the_gates_are_missing() -> None:
    gated, plain = network(deep_supervision=1), network(deep_supervision=1, attention=False)
    in_gates = {name for name in gated.state_dict() if ".gate." in name}
    assert in_gates
    assert gated.state_dict().keys() - in_gates == plain.state_dict().keys()
    assert plain.gates == []
    assert plain.attention_maps(image(8, 8, 8)) == []
    assert plain.eval()(image(8, 8, 8)).shape == (1, 3, 8, 8, 8)


@pytest.mark.parametrize(("fraction", "inner"), [(0.5, [4, 8]), (0.25, [2, 4]), (0.01, [1, 1])])
def test_gate_fraction_sets_the_channels_inside_a_gate(fraction: float, inner: list[int]) -> None:
    gates = network(channels=(8, 16, 32), gate_fraction=fraction).gates
    assert [gate.psi[0].in_channels for gate in gates] == inner
    assert [gate.w_x[0].in_channels for gate in gates] == [8, 16]


@pytest.mark.parametrize(("gating", "channels"), [("before", [4, 8]), ("inside", [8, 16])])
def test_the_gating_signal_is_the_enlarged_or_the_deeper_one(gating: str, channels: list[int]) -> None:
    assert [gate.w_g[0].in_channels for gate in network(gating=gating).gates] == channels


def test_pooling_keeps_the_largest_voxel_of_each_block_and_of_an_odd_border() -> None:
    net = network(downsampling="pooled").eval()
    x = image(5, 4, 4)
    pooled = F.max_pool3d(F.pad(x, (0, 0, 0, 0, 0, 1), value=-torch.inf), 2)
    torch.testing.assert_close(net.encoder[1][0](x), pooled)
    assert isinstance(net.encoder[0], DoubleConv)


def test_aligned_up_sampling_keeps_the_corner_voxels() -> None:
    up = network(upsampling="aligned").decoder[0].up
    torch.nn.init.dirac_(up.project.weight)
    x = image(3, 4, 5, channels=16)
    enlarged = up(x)
    assert enlarged.shape == (1, 8, 6, 8, 10)
    for corner in itertools.product((0, -1), repeat=3):
        torch.testing.assert_close(enlarged[0, :, *corner], x[0, :8, *corner])


# --- training -----------------------------------------------------------------------------------------------------


def test_deep_supervision_returns_a_list_while_training_and_a_tensor_after() -> None:
    net = network(channels=(4, 8, 16, 16), deep_supervision=2)
    levels = net.train()(image(17, 12, 9))
    assert [level.shape for level in levels] == [(1, 3, 17, 12, 9), (1, 3, 9, 6, 5), (1, 3, 5, 3, 3)]
    assert net.eval()(image(17, 12, 9)).shape == (1, 3, 17, 12, 9)


def test_attention_supervision_returns_the_maps_while_training_and_logits_after() -> None:
    net = network(channels=(4, 8, 16, 16), deep_supervision=1, attention_supervision=True)
    x = image(17, 12, 9)
    output = net.train()(x)
    assert isinstance(output, GatedLogits)
    assert [level.shape for level in output.logits] == [(1, 3, 17, 12, 9), (1, 3, 9, 6, 5)]
    assert all(torch.equal(a, b) for a, b in zip(output.maps, net.attention_maps(x), strict=True))
    assert len(output.maps) == 3
    assert net.eval()(x).shape == (1, 3, 17, 12, 9)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"gate_norm": "batch", "downsampling": "pooled"}, {"dropout": 0.3, "norm": "none", "gating": "coarse"}],
    ids=str,
)
def test_checkpointing_changes_nothing_but_memory(arguments: dict[str, Any]) -> None:
    results = []
    for checkpointing in (False, True):
        net = network(deep_supervision=1, checkpointing=checkpointing, **arguments).train()
        torch.manual_seed(2)
        loss = loss_of(net(image(9, 8, 7)))
        loss.backward()
        results.append([loss, *(p.grad for p in net.parameters()), *net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_dropout_is_drawn_while_training_only() -> None:
    net, x = network(dropout=0.5, norm="none"), image(8, 8, 8)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


def test_a_small_patch_is_learnt_by_heart() -> None:
    net = network(out_channels=2, channels=(8, 16)).train()
    x = image(10, 10, 10)
    blurred = F.avg_pool3d(x, 5, stride=1, padding=2)[:, 0]
    truth = (blurred > blurred.median()).long()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), truth)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


# --- arguments ----------------------------------------------------------------------------------------------------


def test_a_config_of_plain_json_builds_the_network() -> None:
    config = {
        "_target_": "voxelgate.AttentionUNet",
        "in_channels": 1,
        "out_channels": 3,
        "channels": [4, 8, 16],
        "strides": [[1, 2, 2], 2],
        "norm": "instance",
        "gate_norm": "group",
        "gate_fraction": 0.5,
        "gating": "inside",
        "upsampling": "linear",
    }
    net = ConfigParser({"network": config}).get_parsed_content("network")
    assert isinstance(net, AttentionUNet)
    assert net.strides == ((1, 2, 2), (2, 2, 2))
    assert net.eval()(image(8, 8, 8)).shape == (1, 3, 8, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 1}, "2 or 3 spatial dimensions.* found 1, 3 and 0"),
        ({"spatial_dims": 4}, "2 or 3 spatial dimensions.* found 4, 3 and 0"),
        ({"channels": (4,)}, "at least 2 levels.* found 3, 1 and 0"),
        ({"channels": ()}, "at least 2 levels.* found 3, 0 and 0"),
        ({"deep_supervision": 2}, "deep supervision on at most levels - 2 .* and 2"),
        ({"deep_supervision": -1}, "deep supervision on at most levels - 2 .* and -1"),
        ({"strides": (2,)}, "3 levels need 2 strides"),
        ({"strides": (2, 0)}, "3 levels need 2 strides"),
        ({"strides": ((2, 2), (2, 2))}, "one for each of 3 axes"),
        ({"gate_fraction": 0}, "gate_fraction lies above 0 and at most at 1, found 0"),
        ({"gate_fraction": 1.5}, "gate_fraction lies above 0 and at most at 1, found 1.5"),
        ({"ungated_levels": 2}, "ungated_levels leaves at least one of 2 gates, found 2"),
        ({"ungated_levels": -1}, "ungated_levels leaves at least one of 2 gates, found -1"),
        ({"downsampling": "mean"}, "'mean' is not a valid Downsampling"),
        ({"norm": "layer"}, "'layer' is not a valid Norm"),
        ({"gate_norm": "layer"}, "'layer' is not a valid Norm"),
        ({"gating": "after"}, "'after' is not a valid Gating"),
        ({"upsampling": "cubic"}, "'cubic' is not a valid Upsampling"),
        ({"dropout": 1.5}, "dropout"),
    ],
    ids=str,
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**arguments)


# --- export -------------------------------------------------------------------------------------------------------

VARIANTS: Sequence[dict[str, Any]] = (
    {"gate_norm": "batch", "deep_supervision": 1},
    {"gating": "inside", "upsampling": "linear", "norm": "instance", "strides": ((1, 2, 2), (2, 2, 2))},
    {"spatial_dims": 2, "norm": "group", "attention": False},
    {"gating": "coarse", "downsampling": "pooled", "upsampling": "aligned", "attention_supervision": True},
)


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_an_exported_program_gives_the_same_logits(arguments: dict[str, Any]) -> None:
    net = network(**arguments).eval()
    x = odd_image(net)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x), atol=TOLERANCE, rtol=0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_a_traced_network_gives_the_same_logits_after_saving(arguments: dict[str, Any]) -> None:
    net = network(**arguments).eval()
    x = odd_image(net)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, x), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), net(x), atol=TOLERANCE, rtol=0)


def odd_image(net: AttentionUNet) -> torch.Tensor:
    return image(*(9, 10, 11)[: net.spatial_dims])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"strides": ((3, 2, 2), (2, 2, 1))},
        {"gating": "inside", "norm": "instance"},
        {"gating": "coarse", "upsampling": "linear"},
        {"upsampling": "aligned", "attention": False},
        {"deep_supervision": 1, "downsampling": "pooled"},
        {"spatial_dims": 2},
    ],
)
def test_a_scripted_network_gives_the_same_logits_at_any_size(arguments: dict[str, Any]) -> None:
    made = network(**arguments).eval()
    scripted = torch.jit.script(made)

    for size in itertools.product((9, 12), (8, 13), (10, 15)):
        x = image(*size[: made.spatial_dims], batch=2)
        with torch.no_grad():
            torch.testing.assert_close(scripted(x), made(x), atol=TOLERANCE, rtol=TOLERANCE)
