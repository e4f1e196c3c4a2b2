"""The networks of nnU-Net against the package that nnU-Net takes them from: every bit of the logits."""

import itertools

import pytest
import torch
from torch import nn

from voxelgate.networks import PlainConvUNet, ResidualEncoderUNet

peers = pytest.importorskip(
    "dynamic_network_architectures.architectures.unet",
    reason="needs nnU-Net, in the environment that `make import-test` builds",
)

pytestmark = pytest.mark.peers

CHANNELS, STRIDES = [6, 12, 12, 20], [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 1)]
KERNELS = [(1, 3, 3), (3, 3, 3), (3, 3, 5), (3, 3, 3)]
ENCODER, DECODER = [1, 2, 3, 2], [1, 2, 3]


def theirs(dims: int, *, residual: bool, norm: str, bias: bool) -> nn.Module:
    kind = peers.ResidualEncoderUNet if residual else peers.PlainConvUNet
    network: nn.Module = kind(
        input_channels=2,
        num_classes=3,
        n_stages=len(CHANNELS),
        features_per_stage=CHANNELS,
        conv_op=getattr(nn, f"Conv{dims}d"),
        kernel_sizes=[kernel[-dims:] for kernel in KERNELS],
        strides=[stride[-dims:] for stride in STRIDES],
        n_conv_per_stage_decoder=DECODER,
        conv_bias=bias,
        norm_op=getattr(nn, f"{norm.capitalize()}Norm{dims}d"),
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **{"n_blocks_per_stage" if residual else "n_conv_per_stage": ENCODER},
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    return network.eval()


def ours(dims: int, *, residual: bool, norm: str, bias: bool) -> nn.Module:
    kind = ResidualEncoderUNet if residual else PlainConvUNet
    return kind(
        in_channels=2,
        out_channels=3,
        spatial_dims=dims,
        channels=CHANNELS,
        strides=[stride[-dims:] for stride in STRIDES[1:]],
        kernel_sizes=[kernel[-dims:] for kernel in KERNELS],
        encoder_blocks=ENCODER,
        decoder_blocks=DECODER,
        norm=norm,
        conv_bias=bias,
    ).eval()


@pytest.mark.parametrize(
    ("dims", "residual", "norm", "bias"),
    list(itertools.product((2, 3), (False, True), ("instance", "batch"), (False, True))),
)
def test_the_logits_are_those_of_the_package_of_nnunet(dims: int, *, residual: bool, norm: str, bias: bool) -> None:
    torch.manual_seed(0)
    expected = theirs(dims, residual=residual, norm=norm, bias=bias)
    network = ours(dims, residual=residual, norm=norm, bias=bias)
    weights = expected.state_dict()
    network.load_state_dict(
        {name: weights[name] for name in weights if ".all_modules." not in name and "decoder.encoder." not in name}
    )
    x = torch.randn(1, 2, *(16, 24, 32)[-dims:])

    with torch.no_grad():
        assert torch.equal(network(x), expected(x))
