"""The networks of nnU-Net: the names of their weights, sizes, training, and their way into other formats."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from voxelgate.networks import PlainConvUNet, ResidualEncoderUNet
from voxelgate.networks.nnunet_unets import ResidualBlock

NETWORKS = (PlainConvUNet, ResidualEncoderUNet)

BLOCK = ("conv.weight", "conv.bias", "norm.weight", "norm.bias")


def network(kind: type[PlainConvUNet] = PlainConvUNet, **arguments: Any) -> PlainConvUNet:
    torch.manual_seed(0)
    return kind(**{"in_channels": 1, "out_channels": 3, "channels": (4, 6, 8)} | arguments)


def image(*size: int, channels: int = 1) -> torch.Tensor:
    return torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(1))


def named(*prefixes: str) -> set[str]:
    return {f"{prefix}.{name}" for prefix, name in itertools.product(prefixes, BLOCK)}


DECODER = named("decoder.stages.0.convs.0", "decoder.stages.0.convs.1") | {
    f"decoder.{layer}.0.{name}" for layer in ("transpconvs", "seg_layers") for name in ("weight", "bias")
}


def test_the_weights_of_the_plain_network_have_the_names_that_nnunet_gives_them() -> None:
    blocks = named(*(f"encoder.stages.{level}.0.convs.{block}" for level in (0, 1) for block in (0, 1)))

    assert set(network(channels=(4, 6)).state_dict()) == blocks | DECODER


def test_the_weights_of_the_residual_network_have_the_names_that_nnunet_gives_them() -> None:
    net = network(ResidualEncoderUNet, channels=(4, 6), encoder_blocks=(1, 2))
    blocks = named(
        "encoder.stem.convs.0",
        *(f"encoder.stages.{place}.conv{n}" for place in ("0.blocks.0", "1.blocks.0", "1.blocks.1") for n in (1, 2)),
    )
    projection = {f"encoder.stages.1.blocks.0.skip.1.{name}" for name in BLOCK} - {
        "encoder.stages.1.blocks.0.skip.1.conv.bias"
    }

    assert set(net.state_dict()) == blocks | projection | DECODER


def test_where_channels_change_without_a_stride_the_skip_begins_with_its_projection() -> None:
    names = set(network(ResidualEncoderUNet, channels=(4, 6), strides=(1,)).state_dict())

    assert "encoder.stages.1.blocks.0.skip.0.conv.weight" in names


def test_batch_norms_bring_their_running_statistics() -> None:
    names = set(network(norm="batch").state_dict())

    assert "encoder.stages.0.0.convs.0.norm.running_mean" in names


def test_without_a_bias_only_norms_and_heads_have_one() -> None:
    names = network(ResidualEncoderUNet, conv_bias=False).state_dict()

    assert {name for name in names if name.endswith("bias") and "norm" not in name} == {
        "decoder.seg_layers.0.bias",
        "decoder.seg_layers.1.bias",
    }


@settings(max_examples=15, deadline=None)
@given(
    size=st.lists(st.integers(5, 17), min_size=2, max_size=3),
    stride=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    kind=st.sampled_from(NETWORKS),
)
def test_the_logits_have_the_size_of_any_image(
    size: list[int], stride: int, kernel: int, kind: type[PlainConvUNet]
) -> None:
    dims = len(size)
    net = network(kind, spatial_dims=dims, strides=[(1, 2, 2)[:dims], stride], kernel_sizes=[3, kernel, 3]).eval()

    with torch.no_grad():
        assert net(image(*size)).shape == (1, 3, *size)


@pytest.mark.parametrize("kind", NETWORKS)
def test_all_levels_give_logits_while_training_with_deep_supervision(kind: type[PlainConvUNet]) -> None:
    net = network(kind, deep_supervision=1)

    logits = net.train()(image(8, 12, 16))

    assert [tuple(one.shape[2:]) for one in logits] == [(8, 12, 16), (4, 6, 8)]
    sum(one.square().mean() for one in logits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert isinstance(net.eval()(image(8, 12, 16)), torch.Tensor)


def test_untrained_residual_blocks_add_nothing_to_their_skips() -> None:
    block = network(ResidualEncoderUNet, norm="batch").encoder.stages[0].blocks[0].eval()
    assert isinstance(block, ResidualBlock)
    x = image(4, 4, 4, channels=4)

    with torch.no_grad():
        assert torch.equal(block(x), block.nonlin2(x.clone()))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_config_builds_it_from_plain_json(kind: type[PlainConvUNet]) -> None:
    config = {
        "_target_": f"voxelgate.{kind.__name__}",
        "in_channels": 2,
        "out_channels": 4,
        "spatial_dims": 2,
        "channels": [4, 8],
        "strides": [[1, 2]],
        "kernel_sizes": [[1, 3], 3],
    }

    net = ConfigParser({"network_def": config}).get_parsed_content("network_def").eval()

    assert net(image(8, 8, channels=2)).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("dims", [2, 3])
def test_its_weights_keep_their_memory_format(dims: int) -> None:
    net = network(spatial_dims=dims).to("cpu", memory_format=torch.channels_last_3d)

    assert all(p.is_contiguous() for p in net.parameters())


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_head_makes_logits_of_the_features(kind: type[PlainConvUNet]) -> None:
    net, x = network(kind).eval(), image(8, 9, 8)

    with torch.no_grad():
        assert torch.equal(net.head(net.features(x)), net(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", NETWORKS)
def test_it_can_be_traced_and_exported(kind: type[PlainConvUNet]) -> None:
    net, x = network(kind).eval(), image(8, 8, 8)

    with torch.no_grad():
        expected = net(x)
        assert torch.allclose(torch.jit.trace(net, x)(x), expected, atol=1e-5)
        assert torch.allclose(torch.export.export(net, (x,)).module()(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"channels": (4,)}, "at least 2 levels"),
        ({"spatial_dims": 1}, "2 or 3 spatial dimensions"),
        ({"deep_supervision": 2}, "deep supervision on at most"),
        ({"strides": (2,)}, "3 levels need 2 strides"),
        ({"kernel_sizes": (3, 3)}, "3 levels need 3 kernel sizes"),
        ({"kernel_sizes": (3, 2, 3)}, "odd number"),
        ({"encoder_blocks": (1, 0, 1)}, "encoder_blocks is a number of at least 1 for each of 3 levels"),
        ({"decoder_blocks": (1, 1, 1)}, "decoder_blocks is a number of at least 1 for each of 2 levels"),
    ],
)
def test_arguments_that_fit_no_network_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        network(**arguments)


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_image_that_shrinks_to_a_voxel_is_refused(kind: type[PlainConvUNet]) -> None:
    with pytest.raises(ValueError, match="single voxel at the deepest level"):
        network(kind).eval()(image(4, 4, 4))
