"""Each preset of the literature: its parameters from a formula, its gates from the paper's, its sizes, its config."""

import inspect
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from torch.nn import functional as F

from tests.networks.learning import losses_of_some_steps
from voxelgate.networks import AttentionUNet, presets
from voxelgate.networks.blocks import DoubleConv, Upsampling
from voxelgate.networks.losses import NetworkLoss

CHANNELS = (4, 8, 16, 32)
CLASSES = 3
PRESETS = [
    presets.oktay,
    presets.batchnorm_gate,
    presets.lean_gate,
    presets.trilinear,
    presets.upsample_in_gate,
    presets.unet,
]
Preset = Callable[..., AttentionUNet]
everyone = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)
both = pytest.mark.parametrize("spatial_dims", [2, 3])


def small(preset: Preset, spatial_dims: int = 3, **arguments: Any) -> AttentionUNet:
    torch.manual_seed(0)
    sizes = {"spatial_dims": spatial_dims, "channels": CHANNELS, "in_channels": 1, "out_channels": CLASSES}
    return preset(**sizes | arguments)


def image(spatial_dims: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, *(17, 12, 11)[:spatial_dims], generator=torch.Generator().manual_seed(1))


# --- parameters -----------------------------------------------------------------------------------------------------


def double_conv(width_in: int, width: int, dims: int) -> int:
    """Two convolutions of kernel 3 without bias, two batch norms."""
    return 3**dims * (width_in + width) * width + 4 * width


def gate(skip: int, signal: int, inner: int, *, has_norm: bool) -> int:
    """Return weights of `w_x`, `w_g` and `psi`, biases of the latter two, and a scale and a shift for each norm."""
    norms = 2 * (2 * inner + 1) if has_norm else 0
    return skip * inner + signal * inner + inner + inner + 1 + norms


def parameters(
    dims: int, inner: Callable[[int], int] | None, *, has_norm: bool = False, from_below: bool = False, gates: int = 3
) -> int:
    encoder = sum(double_conv(a, b, dims) for a, b in pairwise((1, *CHANNELS)))
    decoder = sum(double_conv(2 * skip, skip, dims) for skip in CHANNELS[:-1])
    of_gates = 0
    if inner is not None:
        gated = list(pairwise(CHANNELS))[3 - gates :]
        of_gates = sum(gate(s, d if from_below else s, inner(s), has_norm=has_norm) for s, d in gated)
    return encoder + decoder + of_gates


def upsampling(dims: int, kernel: int) -> int:
    return sum(deep * skip * kernel**dims + skip for skip, deep in pairwise(CHANNELS))


def heads(levels: int = 1) -> int:
    return sum(CHANNELS[level] * CLASSES + CLASSES for level in range(levels))


EXPECTED = {
    "oktay": lambda d: parameters(d, lambda s: s // 2, from_below=True, gates=2) + upsampling(d, 2) + heads(3),
    "batchnorm_gate": lambda d: parameters(d, lambda s: s // 2, has_norm=True) + upsampling(d, 3) + heads(),
    "lean_gate": lambda d: parameters(d, lambda s: s // 4, has_norm=True) + upsampling(d, 3) + heads(),
    "trilinear": lambda d: parameters(d, lambda s: s // 2) + upsampling(d, 3) + heads(),
    "upsample_in_gate": lambda d: parameters(d, lambda s: s // 2, from_below=True) + upsampling(d, 2) + heads(),
    "unet": lambda d: parameters(d, None) + upsampling(d, 2) + heads(),
}


@everyone
@both
def test_a_preset_has_as_many_parameters_as_its_description_says(preset: Preset, spatial_dims: int) -> None:
    net = small(preset, spatial_dims)
    assert sum(p.numel() for p in net.parameters()) == EXPECTED[preset.__name__](spatial_dims)


def test_every_preset_is_tested() -> None:
    public = [f for name, f in inspect.getmembers(presets, inspect.isfunction) if f.__module__ == presets.__name__]
    assert set(public) == set(PRESETS)


@pytest.mark.parametrize(("preset", "dims"), [(presets.batchnorm_gate, 2), (presets.trilinear, 3)])
def test_a_preset_alone_has_the_sizes_and_dimensions_of_its_source(preset: Preset, dims: int) -> None:
    with torch.device("meta"):
        net = preset(in_channels=1, out_channels=2)
    assert net.spatial_dims == dims
    assert [head.in_channels for head in net.heads] == [64]
    assert [level.up.project.in_channels for level in net.decoder] == [1024, 512, 256, 128]


# --- gates ----------------------------------------------------------------------------------------------------------


def levels(net: AttentionUNet, x: torch.Tensor) -> Iterator[tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield every decoder level, coarsest first, with what it was given and what it gave."""
    seen: list[Any] = []
    hooks = [
        level.register_forward_hook(lambda module, given, output: seen.append((module, *given, output[1])))
        for level in net.decoder
    ]
    with torch.no_grad():
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    yield from seen


def normed(layer: torch.nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Compute a convolution of kernel 1 and the batch norm behind it with products of matrices."""
    conv, norm = layer
    y = conv.weight.flatten(1) @ x.flatten(2)
    y = y if conv.bias is None else y + conv.bias[:, None]
    if isinstance(norm, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        y = (y - norm.running_mean[:, None]) * scale[:, None] + norm.bias[:, None]
    return y.reshape(*y.shape[:2], *x.shape[2:])


def resized(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(x, size=size, mode=mode, align_corners=False)


def expected_map(name: str, level: Any, deep: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    gate = level.gate
    if name == "oktay":
        thinned = skip[(slice(None), slice(None), *[slice(None, None, 2)] * (skip.ndim - 2))]
        inner = normed(gate.w_g, deep) + normed(gate.w_x, thinned)
    elif name == "upsample_in_gate":
        inner = resized(normed(gate.w_g, deep), skip.shape[2:]) + normed(gate.w_x, skip)
    else:
        enlarged = level.up(deep)[(slice(None), slice(None), *[slice(n) for n in skip.shape[2:]])]
        inner = normed(gate.w_g, enlarged) + normed(gate.w_x, skip)
    return 1 / (1 + torch.exp(-normed(gate.psi, inner.clamp(min=0))))


@pytest.mark.parametrize("preset", PRESETS[:-1], ids=lambda preset: preset.__name__)
@both
@torch.no_grad()
def test_the_gates_of_a_preset_are_its_formula(preset: Preset, spatial_dims: int) -> None:
    net = small(preset, spatial_dims)
    for gate in net.gates:  # away from where a training starts
        torch.nn.init.normal_(gate.psi[0].weight)
        for norm in (m for m in gate.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d)):
            torch.nn.init.uniform_(norm.running_mean, -1, 1)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    found = [seen for seen in levels(net, image(spatial_dims)) if seen[-1] is not None]
    assert len(found) == (2 if preset is presets.oktay else 3)
    for level, deep, skip, alpha in found:
        assert alpha.std() > 1e-4
        torch.testing.assert_close(alpha, expected_map(preset.__name__, level, deep, skip))


def test_gates_without_psi_weights_pass_a_half_of_everything() -> None:
    assert all((m == 0.5).all() for m in small(presets.trilinear).attention_maps(image(3)))


def test_the_presets_differ_where_their_sources_do() -> None:
    oktay, batchnorm, lean, trilinear, inside, unet = (small(preset) for preset in PRESETS)
    assert oktay.decoder[-1].gate is None
    assert isinstance(batchnorm.gates[0].psi[1], torch.nn.BatchNorm3d)
    assert [gate.psi[0].in_channels for gate in batchnorm.gates] == [2, 4, 8]
    assert [gate.psi[0].in_channels for gate in lean.gates] == [1, 2, 4]
    assert trilinear.decoder[0].up.mode is Upsampling.ALIGNED
    assert isinstance(trilinear.gates[0].psi[1], torch.nn.Identity)
    assert [gate.w_g[0].in_channels for gate in inside.gates] == [8, 16, 32]
    assert unet.gates == []
    assert isinstance(unet.encoder[1][0], torch.nn.MaxPool3d)
    assert isinstance(inside.encoder[1], DoubleConv)


# --- use ------------------------------------------------------------------------------------------------------------


@everyone
@both
def test_a_preset_learns_from_one_line_of_a_config(preset: Preset, spatial_dims: int) -> None:
    config = {
        "_target_": f"voxelgate.networks.presets.{preset.__name__}",
        "spatial_dims": spatial_dims,
        "in_channels": 1,
        "out_channels": CLASSES,
        "channels": list(CHANNELS),
    }
    net = ConfigParser({"network": config}).get_parsed_content("network")
    loss = NetworkLoss(DiceCELoss(softmax=True, to_onehot_y=True))
    x = image(spatial_dims, batch=2)
    target = (x > 0).float()
    losses = losses_of_some_steps(net, x, lambda output: loss(output, target))
    assert losses[-1] < 0.9 * losses[0]
    assert net.eval()(x).shape == (2, CLASSES, *x.shape[2:])


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_plain_unet_takes_batch_or_group_norm(norm: str) -> None:
    net = small(presets.unet, norm=norm)
    kinds = {type(module).__name__ for module in net.modules() if "Norm" in type(module).__name__}
    assert kinds == {"BatchNorm3d" if norm == "batch" else "GroupNorm"}


def test_an_argument_that_no_network_has_is_refused() -> None:
    with pytest.raises(TypeError, match="chanels"):
        small(presets.oktay, chanels=(4, 8))
