"""The guided-attention network: its attention modules against formulas, its parts, its training, its weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.networks.nets import ResNet, resnet10
from torch import nn
from torch.nn import functional as F

from tests.networks.learning import losses_of_some_steps
from voxelgate.networks import GuidedAttentionNet, GuidedOutput, describe
from voxelgate.networks.guided_attention import ChannelAttention, PositionAttention
from voxelgate.networks.losses import NetworkLoss

WIDTH = 8
SIZE = (35, 24, 21)


def backbone(spatial_dims: int = 3, **arguments: Any) -> ResNet:
    return resnet10(spatial_dims=spatial_dims, n_input_channels=1, widen_factor=0.125, **arguments)


def network(spatial_dims: int = 3, **arguments: Any) -> GuidedAttentionNet:
    torch.manual_seed(0)
    net = GuidedAttentionNet(**{"out_channels": 3, "width": WIDTH, "backbone": backbone(spatial_dims)} | arguments)
    for module in net.modules():  # away from the start, at which attention adds nothing
        if isinstance(module, PositionAttention | ChannelAttention):
            nn.init.constant_(module.gamma, 0.5)
    return net


def image(spatial_dims: int = 3, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, *SIZE[:spatial_dims], generator=torch.Generator().manual_seed(1))


# --- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial_dims", [2, 3])
@torch.no_grad()
def test_position_attention_is_the_formula_of_the_paper_where_no_key_is_pooled(spatial_dims: int) -> None:
    torch.manual_seed(0)
    attention = PositionAttention(16, spatial_dims=spatial_dims, max_keys=10_000)
    x = torch.randn(2, 16, *(7, 6, 5)[:spatial_dims])
    assert torch.equal(attention(x), x)  # gamma starts at 0
    nn.init.constant_(attention.gamma, 0.7)
    query, key, value = (f(x).flatten(2) for f in (attention.query, attention.key, attention.value))
    weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
    expected = (value @ weights.transpose(1, 2)).reshape(x.shape)

    torch.testing.assert_close(attention(x), x + 0.7 * expected)


@torch.no_grad()
def test_too_many_keys_are_averaged_over_the_smallest_cubes_that_leave_few_enough() -> None:
    attention = PositionAttention(8, spatial_dims=3, max_keys=30)
    nn.init.ones_(attention.gamma)
    x = torch.randn(1, 8, 7, 6, 5)  # cubes of 2 leave 36, of 3 leave 12
    keys = F.avg_pool3d(x, 3, ceil_mode=True)
    query, key, value = attention.query(x), attention.key(keys), attention.value(keys)
    weights = torch.softmax(query.flatten(2).transpose(1, 2) @ key.flatten(2), dim=-1)
    assert weights.shape == (1, 7 * 6 * 5, 12)
    torch.testing.assert_close(attention(x), x + (value.flatten(2) @ weights.transpose(1, 2)).reshape(x.shape))


@torch.no_grad()
def test_channel_attention_weighs_channels_by_their_mean_product() -> None:
    attention = ChannelAttention()
    x = torch.randn(2, 4, 5, 6)
    assert torch.equal(attention(x), x)
    nn.init.constant_(attention.gamma, 0.3)
    rows = x.reshape(2, 4, 30)
    likeness = torch.softmax(torch.einsum("bcn,bdn->bcd", rows, rows) / 30, dim=-1)
    torch.testing.assert_close(attention(x), x + 0.3 * torch.einsum("bcd,bdn->bcn", likeness, rows).reshape(x.shape))


def test_the_position_attention_needs_no_square_of_the_positions() -> None:
    small, large = (describe(PositionAttention(8, spatial_dims=3, max_keys=512), (1, 8, n, n, n)) for n in (16, 32))
    for kind in ("inference_bytes", "training_bytes"):
        assert getattr(large, kind) < 8.5 * getattr(small, kind)  # 8 times the positions, 64 times the pairs


# --- the net --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_its_parameters_are_those_of_its_parts(spatial_dims: int) -> None:
    def convolution(a: int, b: int, kernel: int, *, bias: bool) -> int:
        return a * b * kernel**spatial_dims + b * bias

    def double(a: int, b: int) -> int:
        return convolution(a, b, 3, bias=False) + convolution(b, b, 3, bias=False) + 4 * b

    w = WIDTH
    position = 2 * convolution(w, 1, 1, bias=True) + convolution(w, w, 1, bias=True) + 1
    guide = double(2 * w, 2 * w) + double(2 * w, 4 * w)
    guide += convolution(4 * w, 2 * w, 3, bias=True) + convolution(2 * w, 2 * w, 3, bias=True)
    module = double(2 * w, w) + position + 1 + guide
    module += convolution(2 * w, w, 1, bias=True) + convolution(w, w, 1, bias=False) + 2 * w
    scale = 2 * module + double(2 * w, w)
    reduce = sum(convolution(c, w, 1, bias=False) + 2 * w for c in (8, 16, 32, 64))
    of_backbone = sum(p.numel() for name, p in backbone(spatial_dims).named_parameters() if not name.startswith("fc"))
    expected = of_backbone + reduce + double(4 * w, w) + 4 * scale + 8 * convolution(w, 3, 1, bias=True)
    assert sum(p.numel() for p in network(spatial_dims).parameters()) == expected


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_while_training_it_returns_both_predictions_of_each_scale_and_what_guides_them(spatial_dims: int) -> None:
    x = image(spatial_dims)
    output = network(spatial_dims).train()(x)
    assert isinstance(output, GuidedOutput)
    assert [p.shape for p in output.predictions] == [(1, 3, *x.shape[2:])] * 8
    finest = tuple(-(-n // 2) for n in x.shape[2:])
    quarter = tuple(-(-n // 4) for n in finest)
    assert [(a.shape, b.shape) for a, b in output.latents] == [((1, 4 * WIDTH, *quarter),) * 2] * 4
    assert [(a.shape, b.shape) for a, b in output.reconstructions] == [((1, 2 * WIDTH, *finest),) * 2] * 8


def test_its_result_is_the_mean_of_the_refined_predictions() -> None:
    net, x = network(2, norm="none").train(), image(2)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()  # so that both passes see the same
    with torch.no_grad():
        output = net(x)
        torch.testing.assert_close(net.eval()(x), torch.stack(output.predictions[4:]).mean(dim=0))


@torch.no_grad()
def test_a_scale_multiplies_its_attention_with_the_decoded_guide_and_passes_it_on() -> None:
    scale = network().scales[0].eval()
    features, fused = torch.randn(2, 1, WIDTH, 9, 8, 7)
    refined, latents, pairs = scale(features, fused)
    x, expected_latents = torch.cat((features, fused), dim=1), []
    for module, pair in zip((scale.first, scale.second), pairs, strict=True):
        latent, decoded = module.guide(x)
        reduced = module.reduce(x)
        attention = module.merge((module.position(reduced) + module.channel(reduced)) * module.project(decoded))
        torch.testing.assert_close(pair, (x, decoded))
        expected_latents.append(latent)
        x = torch.cat((features, attention * fused), dim=1)
    torch.testing.assert_close(latents, tuple(expected_latents))
    torch.testing.assert_close(refined, scale.refine(x))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_it_learns_from_one_line_of_a_config(spatial_dims: int) -> None:
    config = {
        "_target_": "voxelgate.GuidedAttentionNet",
        "in_channels": 1,
        "out_channels": 3,
        "width": WIDTH,
        "max_keys": 64,
        "backbone": {
            "_target_": "monai.networks.nets.resnet10",
            "spatial_dims": spatial_dims,
            "n_input_channels": 1,
            "widen_factor": 0.125,
            "conv1_t_stride": 2,
        },
    }
    net = ConfigParser({"network": config}).get_parsed_content("network")
    loss = NetworkLoss(DiceCELoss(softmax=True, to_onehot_y=True))
    x = image(spatial_dims, batch=2)
    target = (F.avg_pool2d(x, 9, 1, 4) if spatial_dims == 2 else F.avg_pool3d(x, 9, 1, 4)).gt(0).float()
    losses = losses_of_some_steps(net, x, lambda output: loss(output, target))
    assert losses[-1] < 0.9 * losses[0]
    assert net.eval()(x).shape == (2, 3, *x.shape[2:])


@pytest.mark.parametrize("size", [(5, 4, 3), (16, 1, 9)])
def test_any_size_works(size: tuple[int, ...]) -> None:
    assert network().eval()(torch.randn(1, 1, *size)).shape == (1, 3, *size)


@pytest.mark.slow
def test_an_exported_program_gives_the_same_logits() -> None:
    net, x = network(2).eval(), image(2)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x), atol=1e-5, rtol=0)


def test_its_cost_is_described_with_every_scale() -> None:
    scale = network(2).scales[0]
    description = describe(Fed(scale), (1, WIDTH, 16, 12))
    assert description.parameters == sum(p.numel() for p in scale.parameters())
    assert description.output_sizes == (("scale", (1, WIDTH, 16, 12)),)


class Fed(nn.Module):
    """A scale that is given its own features as those of all scales."""

    def __init__(self, scale: nn.Module) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        refined, latents, _ = self.scale(x, x)
        return [refined, *latents]


# --- backbone -------------------------------------------------------------------------------------------------------


def test_a_backbone_without_first_pooling_keeps_the_size() -> None:
    net = network(2, backbone=backbone(2, no_max_pool=True, feed_forward=False)).train()
    assert net(image(2)).reconstructions[0][0].shape[2:] == SIZE[:2]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_pretrained_weights_of_the_backbone_load_from_a_file(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(5)
    trained = backbone()
    weights = {f"{prefix}{name}": tensor for name, tensor in trained.state_dict().items()}
    torch.save({"state_dict": weights} if prefix else weights, tmp_path / "resnet.pth")
    net = network()
    head = net.heads[0].weight.clone()
    net.load_backbone(tmp_path / "resnet.pth")
    assert torch.equal(net.stem[0].weight, trained.conv1.weight)
    assert torch.equal(net.stages[3][0].conv2.weight, trained.layer4[0].conv2.weight)
    assert torch.equal(net.heads[0].weight, head)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    weights = backbone().state_dict()
    weights["layer5.weight"] = weights.pop("layer1.0.conv1.weight")
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds another backbone: 2 layers differ, as layer5\.weight"):
        network().load_backbone(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backbone": nn.Conv3d(1, 1, 1)},
            "parts of MONAI's ResNet, found none called conv1, bn1, act, maxpool, layer1",
        ),
        ({"in_channels": 2}, "the backbone takes 1 channels, the network 2: set n_input_channels"),
        ({"norm": "layer"}, "'layer' is not a valid Norm"),
    ],
    ids=str,
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**arguments)
