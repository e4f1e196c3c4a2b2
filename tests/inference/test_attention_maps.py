"""Gate maps on the grid of the file: where they lie, in windows as in one piece, and what they say about a gate."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.inference.attention import maps as attention_maps
from voxelgate.inference.attention.gate_report import GateVerdict
from voxelgate.inference.attention.maps import GateMap, diagnose, gate_levels, gate_maps, on_grid, slabs
from voxelgate.networks import AttentionUNet, NonLocalUNet
from voxelgate.networks.flat import FlatNetwork

AFFINE = np.array([[0.0, -2.0, 0.0, 10.0], [1.5, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 30.0], [0.0, 0.0, 0.0, 1.0]])
WHOLE = (64, 64, 64)


def network(**arguments: Any) -> AttentionUNet:
    torch.manual_seed(0)
    sizes = {"in_channels": 1, "out_channels": 2, "channels": (4, 8, 16), "norm": "none"}
    return AttentionUNet(**sizes | arguments).eval()


def image(*size: int) -> torch.Tensor:
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))


def grid(*size: int) -> Grid:
    return Grid((size[0], size[1], size[2]), AFFINE)


# --- where they lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gating", ["before", "inside", "coarse"])
@torch.no_grad()
def test_a_volume_within_one_window_has_the_maps_of_the_network(gating: str) -> None:
    net, x = network(gating=gating), image(11, 10, 13)
    gates = gate_maps(net, x, grid(11, 10, 13), WHOLE)
    assert [gate.level for gate in gates] == [0, 1]
    for gate, alpha in zip(gates, net.attention_maps(x), strict=True):
        np.testing.assert_allclose(gate.alpha, alpha[0, 0], atol=1e-6)
        assert gate.grid.shape == gate.alpha.shape


@torch.no_grad()
def test_windows_far_from_their_borders_give_the_maps_of_the_whole() -> None:
    net, x = network(), image(70, 9, 10)
    gates = gate_maps(net, x, grid(70, 9, 10), (50, 16, 16))
    for gate, alpha, margin in zip(gates, net.attention_maps(x), (28, 14), strict=True):
        whole = alpha[0, 0].numpy()
        np.testing.assert_allclose(gate.alpha[:5], whole[:5], atol=1e-5)
        np.testing.assert_allclose(gate.alpha[-5:], whole[-5:], atol=1e-5)
        assert np.abs(gate.alpha - whole)[margin // 2 : -margin // 2].max() < 0.3


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(*[st.integers(5, 40)] * 3), window=st.tuples(*[st.integers(5, 24)] * 3))
def test_every_voxel_of_every_map_is_seen(size: tuple[int, int, int], window: tuple[int, int, int]) -> None:
    net = network(channels=(1, 1, 1), strides=[[1, 2, 2], [3, 2, 2]])
    for gate, step in zip(gate_maps(net, image(*size), grid(*size), window), net.map_reductions(), strict=True):
        assert gate.alpha.shape == tuple(-(-n // s) for n, s in zip(size, step, strict=True))
        assert ((gate.alpha > 0) & (gate.alpha < 1)).all()


def test_a_coarser_map_lies_on_the_centres_of_the_blocks_it_spans() -> None:
    fine = grid(9, 10, 8)
    _, gate = gate_maps(network(strides=[[1, 2, 2], 2]), image(9, 10, 8), fine, WHOLE)
    assert gate.grid.shape == (9, 5, 4)
    block = np.array([[3, 2 * 2, 2 * 1], [3, 2 * 2 + 1, 2 * 1 + 1]]).mean(axis=0)
    np.testing.assert_allclose(gate.grid.affine @ [3, 2, 1, 1], fine.affine @ [*block, 1])


def test_a_map_on_another_grid_keeps_its_place_in_the_patient() -> None:
    fine = grid(12, 10, 8)
    centres = np.stack(np.meshgrid(*map(np.arange, fine.shape), indexing="ij"), axis=-1) @ fine.affine[:3, :3].T
    ramp = (centres + fine.affine[:3, 3])[..., 2].astype(np.float32)
    turned = fine.affine @ np.array([[0, 0, 1.0, 1], [-1.0, 0, 0, 9], [0, 0.5, 0, 1], [0, 0, 0, 1]])
    target = Grid((9, 12, 6), turned)
    found = on_grid(GateMap(1, ramp, fine), target)
    assert found.dtype == np.float32
    middle = np.array([4, 5, 3])
    np.testing.assert_allclose(found[tuple(middle)], (turned @ [*middle, 1])[2], rtol=1e-6)
    assert on_grid(GateMap(1, ramp, fine), fine) == pytest.approx(ramp)


TILT = np.array([[0.98, -0.17, 0.1, 1], [0.17, 0.98, 0, -2], [-0.1, 0.02, 0.99, 1], [0, 0, 0, 1.0]])
BETWEEN = np.array([[0, 0, 0.7, 0.2], [-1.0, 0, 0, 9], [0, 0.5, 0, 0], [0, 0, 0, 1]])
FLIP = np.array([[0, 0, 1.0, 0], [-1.0, 0, 0, 9], [0, 0.5, 0, 0.2], [0, 0, 0, 1]])


@pytest.mark.parametrize("turn", [np.eye(4), FLIP, TILT], ids=["same", "swapped", "tilted"])
def test_a_map_on_a_parallel_or_tilted_grid_is_trilinear_between_voxels_and_the_border_beyond(turn: np.ndarray) -> None:
    alpha = np.random.default_rng(0).random((12, 10, 8), dtype=np.float32)
    target = Grid((14, 11, 9), AFFINE @ turn)
    found = on_grid(GateMap(0, alpha, grid(12, 10, 8)), target)
    positions = np.stack([*np.indices(target.shape), np.ones(target.shape)], axis=-1) @ turn.T
    expected = map_coordinates(alpha, np.moveaxis(positions[..., :3], -1, 0), order=1, mode="nearest")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("turn", [BETWEEN, FLIP, TILT], ids=["between", "swapped", "tilted"])
def test_slabs_of_a_map_are_those_of_the_whole(turn: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_maps, "SLAB_VOXELS", 14 * 11 * 2)
    gate = GateMap(0, np.random.default_rng(0).random((12, 10, 8), dtype=np.float32), grid(12, 10, 8))
    target = Grid((14, 11, 9), AFFINE @ turn)
    parts = [on_grid(gate, target, span) for span in slabs(target)]
    assert [part.shape[2] for part in parts] == [2, 2, 2, 2, 1]
    np.testing.assert_allclose(np.concatenate(parts, axis=2), on_grid(gate, target), atol=1e-5)


@pytest.mark.parametrize(
    ("net", "found"),
    [
        (network(spatial_dims=2), "this AttentionUNet has none"),
        (network(attention=False), "this AttentionUNet has none"),
        (NonLocalUNet(in_channels=1, out_channels=2, channels=(4, 8)).eval(), "this NonLocalUNet has none"),
        (torch.nn.Identity(), "this Identity has none"),
        (torch.nn.ModuleList([network()]), "an ensemble has the gates of several networks"),
    ],
    ids=["2D", "plain", "non-local", "other", "ensemble"],
)
def test_what_has_no_gates_to_show_is_refused_in_a_sentence(net: torch.nn.Module, found: str) -> None:
    for asked in (lambda: gate_levels(net), lambda: gate_maps(net, image(8, 8, 8), grid(8, 8, 8), WHOLE)):
        with pytest.raises(UsageError, match=found):
            asked()


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"call eval\(\) first"):
        gate_maps(network().train(), image(8, 8, 8), grid(8, 8, 8), WHOLE)


def test_gates_are_called_by_their_level_where_the_finest_has_none() -> None:
    net = network(ungated_levels=1, gating="coarse")
    assert gate_levels(net) == (1,)
    assert [gate.level for gate in gate_maps(net, image(12, 12, 12), grid(12, 12, 12), WHOLE)] == [1]


def test_an_image_of_one_slice_has_maps_of_one_slice() -> None:
    gates = gate_maps(network(strides=[[2, 2, 1], [2, 2, 1]]), image(20, 16, 1), grid(20, 16, 1), (16, 16, 1))
    assert [gate.alpha.shape for gate in gates] == [(20, 16, 1), (10, 8, 1)]


@pytest.mark.parametrize("axis", [0, 1, 2])
@torch.no_grad()
def test_a_2d_network_has_maps_of_the_slice_it_sees(axis: int) -> None:
    flat = network(spatial_dims=2, strides=[[2, 1], [2, 3]], gating="coarse")
    x = image(20, 16)
    gates = gate_maps(
        FlatNetwork(network=flat, axis=axis).eval(), x.unsqueeze(2 + axis), grid(*np.insert((20, 16), axis, 1)), WHOLE
    )
    assert [gate.alpha.shape for gate in gates] == [tuple(np.insert(size, axis, 1)) for size in ((10, 16), (5, 6))]
    for gate, alpha in zip(gates, flat.attention_maps(x), strict=True):
        np.testing.assert_allclose(gate.alpha.squeeze(axis), alpha[0, 0], atol=1e-6)
        assert gate.grid.shape == gate.alpha.shape


def test_a_volume_too_small_is_refused() -> None:
    with pytest.raises(InputError, match=r"the network cannot take this volume: .* single voxel"):
        gate_maps(network(), image(4, 4, 4), grid(4, 4, 4), WHOLE)


# --- what they say --------------------------------------------------------------------------------------------------

FINE = grid(10, 10, 10)
LABELS = np.zeros((10, 10, 10), np.uint8)
LABELS[2:6, 2:6, 2:6] = 2
INSIDE = (LABELS > 0).astype(np.float32)


@pytest.mark.parametrize(
    ("alpha", "verdict"),
    [
        (np.full((10, 10, 10), 0.5), GateVerdict.UNIFORM),
        (0.5 + 0.01 * INSIDE, GateVerdict.UNIFORM),
        (np.full((10, 10, 10), 0.99), GateVerdict.SATURATED),
        (0.02 * INSIDE, GateVerdict.SATURATED),
        (0.2 + 0.6 * INSIDE, GateVerdict.SELECTIVE),
        (0.9 - 0.8 * INSIDE, GateVerdict.SELECTIVE),
        (INSIDE, GateVerdict.SELECTIVE),
        (np.indices((10, 10, 10)).sum(axis=0) % 2 * 0.8 + 0.1, GateVerdict.UNRELATED),
    ],
)
def test_a_gate_is_judged_by_its_range_and_by_the_labels(alpha: np.ndarray, verdict: GateVerdict) -> None:
    (report,) = diagnose([GateMap(0, alpha.astype(np.float32), FINE)], LABELS, FINE)
    assert report.verdict is verdict
    assert f"gate 0 is {verdict}" in str(report)


def test_mass_share_and_contrast_are_counted_on_the_grid_of_the_labels() -> None:
    (report,) = diagnose([GateMap(3, 0.2 + 0.6 * INSIDE, FINE)], LABELS, FINE)
    assert report.level == 3
    assert report.label_share == pytest.approx(64 / 1000)
    assert report.mass_inside == pytest.approx(0.8 * 64 / (0.8 * 64 + 0.2 * 936))
    assert report.contrast == pytest.approx(0.6, abs=1e-6)
    assert (report.low, report.high) == pytest.approx((0.2, 0.8))


def test_entropy_is_1_for_equal_and_less_for_unequal_coefficients() -> None:
    entropies = [
        diagnose([GateMap(0, alpha.astype(np.float32), FINE)], LABELS, FINE)[0].entropy
        for alpha in (np.full((10, 10, 10), 0.3), INSIDE, np.eye(1, 1000).reshape(10, 10, 10))
    ]
    assert entropies == pytest.approx([1, np.log(64) / np.log(1000), 0], abs=1e-6)


def test_a_coarse_gate_is_compared_with_fine_labels_of_another_grid() -> None:
    coarse = Grid((5, 5, 5), AFFINE @ np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1.0]]))
    alpha = np.full((5, 5, 5), 0.1, np.float32)
    alpha[1:3, 1:3, 1:3] = 0.9
    (report,) = diagnose([GateMap(1, alpha, coarse)], LABELS, FINE)
    assert report.verdict is GateVerdict.SELECTIVE
    assert report.mass_inside > 4 * report.label_share


@pytest.mark.parametrize("labels", [np.zeros((10, 10, 10)), np.ones((10, 10, 10))])
def test_labels_that_are_nowhere_or_everywhere_tell_nothing_of_a_gate(labels: np.ndarray) -> None:
    (report,) = diagnose([GateMap(0, INSIDE, FINE)], labels, FINE)
    assert report.contrast == 0
    assert report.verdict is GateVerdict.UNRELATED


def test_labels_off_their_grid_are_refused() -> None:
    with pytest.raises(UsageError, match=r"labels of shape \(9, 10, 10\) on a grid of \(10, 10, 10\)"):
        diagnose([], LABELS[1:], FINE)
