"""The non-local U-Net against the formula of its paper, its bounds, its memory, and on its way into other formats."""

import io
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.networks.learning import losses_of_some_steps
from voxelgate.inference.streaming.stream import obstacles
from voxelgate.networks import AttentionUNet, NonLocalUNet, describe
from voxelgate.networks.blocks import Norm
from voxelgate.networks.describe import LiveMemory
from voxelgate.networks.nonlocal_unet import NonLocalBlock

CHANNELS = (4, 8, 16, 32)


def network(spatial_dims: int = 3, **arguments: Any) -> NonLocalUNet:
    """Return a network whose blocks have left their start, at which they do nothing."""
    torch.manual_seed(0)
    net = NonLocalUNet(spatial_dims=spatial_dims, in_channels=1, out_channels=3, **{"channels": CHANNELS} | arguments)
    for block in blocks(net):
        torch.nn.init.normal_(block.w[1].weight if list(block.w[1].parameters()) else block.w[0].weight)
    return net


def blocks(net: NonLocalUNet) -> list[NonLocalBlock]:
    return [module for module in net.modules() if isinstance(module, NonLocalBlock)]


def image(spatial_dims: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, *(17, 12, 11)[:spatial_dims], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("pool", [1, 2])
@torch.no_grad()
def test_a_block_is_the_formula_of_the_paper(spatial_dims: int, pool: int) -> None:
    torch.manual_seed(0)
    block = NonLocalBlock(8, spatial_dims=spatial_dims, norm=Norm.NONE, pool=pool, max_tokens=10_000).eval()
    torch.nn.init.normal_(block.w[0].weight)
    x = torch.randn(2, 8, *(7, 6, 5)[:spatial_dims])
    pooled = F.max_pool2d if spatial_dims == 2 else F.max_pool3d
    theta, phi, g = block.theta(x), *(pooled(f(x), pool, ceil_mode=True) for f in (block.phi, block.g))
    weights = torch.softmax(theta.flatten(2).transpose(1, 2) @ phi.flatten(2), dim=-1)  # (B, positions, keys)
    y = (weights @ g.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(2, 4, *x.shape[2:])

    torch.testing.assert_close(block(x), x + block.w(y))


@pytest.mark.parametrize("norm", list(Norm))
def test_a_new_block_changes_nothing(norm: Norm) -> None:
    block = NonLocalBlock(8, spatial_dims=3, norm=norm, pool=2, max_tokens=10_000)
    x = torch.randn(2, 8, 6, 5, 4)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_its_parameters_are_those_of_the_unet_and_its_blocks(spatial_dims: int) -> None:
    net = network(spatial_dims, attention_levels=[1, 2])
    plain = AttentionUNet(spatial_dims=spatial_dims, in_channels=1, out_channels=3, channels=CHANNELS, attention=False)
    of_blocks = sum(3 * (c * c // 2 + c // 2) + (c // 2 * c + c) + 2 * c for c in (8, 16))
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in plain.parameters()) + of_blocks
    assert net.attention_maps(image(spatial_dims)) == []


@pytest.mark.parametrize(
    ("channels", "widths"), [((4, 8), [4]), ((4, 8, 16), [8]), (CHANNELS, [16]), ((*CHANNELS, 32), [32, 16])]
)
def test_blocks_stand_from_a_quarter_of_the_size_on(channels: tuple[int, ...], widths: list[int]) -> None:
    assert [block.theta.in_channels for block in blocks(network(channels=channels))] == widths


def test_a_far_voxel_has_a_say() -> None:
    net = network(2, norm="none").eval()
    x = torch.randn(1, 1, 128, 8, requires_grad=True)
    net(x)[0, :, 0, 0].sum().backward()
    plain = AttentionUNet(
        spatial_dims=2, in_channels=1, out_channels=3, channels=CHANNELS, norm="none", attention=False
    )
    y = x.detach().clone().requires_grad_()
    plain.eval()(y)[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad[0, 0, -8:].abs().max() > 0
    assert y.grad[0, 0, -8:].abs().max() == 0


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_it_learns_from_one_line_of_a_config_with_any_size(spatial_dims: int) -> None:
    config = {
        "_target_": "voxelgate.NonLocalUNet",
        "spatial_dims": spatial_dims,
        "in_channels": 1,
        "out_channels": 3,
        "channels": list(CHANNELS),
        "deep_supervision": 1,
    }
    net = ConfigParser({"network": config}).get_parsed_content("network")
    x = image(spatial_dims, batch=2)

    def loss(outputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        finest, coarser = outputs
        return F.cross_entropy(finest.float(), (x > 0).long()[:, 0]) + 0 * coarser.float().mean()

    losses = losses_of_some_steps(net, x, loss)
    assert losses[-1] < 0.9 * losses[0]
    assert net.eval()(x).shape == (2, 3, *x.shape[2:])


def test_more_positions_than_allowed_are_refused_with_their_number() -> None:
    net = network(max_tokens=124).eval()
    net(torch.zeros(1, 1, 16, 16, 16))
    with pytest.raises(ValueError, match=r"5 x 5 x 5 = 125 positions, at most 124 are allowed: use a smaller window"):
        net(torch.zeros(1, 1, 20, 20, 20))


@pytest.mark.parametrize(
    "arguments", [{"attention_levels": []}, {"attention_levels": [3]}, {"pool": 0}, {"max_tokens": 0}], ids=str
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="attention_levels are some of 0 to 2, pool and max_tokens at least 1"):
        network(**arguments)


def test_it_is_not_streamed() -> None:
    assert obstacles(network().eval()) == ["NonLocalUNet is not an AttentionUNet"]


class Largest(TorchDispatchMode):
    """Remember the largest tensor that any operator gives."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return result


@pytest.mark.parametrize("trained", [False, True])
def test_the_weights_of_all_pairs_are_never_laid_out(trained: bool) -> None:
    block = NonLocalBlock(8, spatial_dims=3, norm=Norm.NONE, pool=1, max_tokens=10_000).train(trained)
    x = torch.randn(1, 8, 12, 12, 12, requires_grad=trained)
    with Largest() as largest:
        y = block(x)
        if trained:
            y.sum().backward()
    assert largest.numel == x.numel()


def test_the_estimate_of_memory_is_that_of_the_kernel_that_runs() -> None:
    block = NonLocalBlock(8, spatial_dims=3, norm=Norm.NONE, pool=1, max_tokens=10_000)
    shape = (1, 8, 12, 12, 12)
    description = describe(block, shape)
    x = torch.randn(shape)
    with torch.no_grad(), LiveMemory() as measured:
        block(x)
    weight_bytes = 4 * sum(p.numel() for p in block.parameters())
    assert description.inference_bytes == pytest.approx(measured.peak_bytes + weight_bytes, rel=0.1)
    projections = 2 * 12**3 * 4 * (8 * 4)
    assert description.flops == projections + 4 * 4 * (12**3) ** 2


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_exported_and_traced_programs_give_the_same_logits(spatial_dims: int) -> None:
    net, x = network(spatial_dims).eval(), image(spatial_dims)
    exported = torch.export.export(net, (x,)).module()
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, x), file)
    file.seek(0)
    for other in (exported, torch.jit.load(file)):
        torch.testing.assert_close(other(x), net(x), atol=1e-5, rtol=0)
