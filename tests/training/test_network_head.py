"""The number that a network adds to each logit: found by trial, and changed in its weights alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from voxelgate.networks import AttentionUNet
from voxelgate.networks.flat import FlatNetwork
from voxelgate.training.network_head import head_bias, write_shifted

CLASSES = 3
IMAGE = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))


def own(**changes: object) -> AttentionUNet:
    return AttentionUNet(**{"in_channels": 1, "out_channels": CLASSES, "channels": (CLASSES, 8), **changes})


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (own(), "heads.0.bias"),
        (own(channels=(CLASSES, 8, 16), strides=((2, 2, 2),) * 2, deep_supervision=1), "heads.0.bias"),
        (nn.Sequential(nn.Conv3d(1, CLASSES, 1), nn.ReLU(), nn.Conv3d(CLASSES, CLASSES, 1)), "2.bias"),
    ],
)
def test_the_head_is_found_among_other_biases_of_as_many_numbers(network: nn.Module, name: str) -> None:
    assert head_bias(network.eval(), IMAGE, CLASSES) == name


def test_a_network_of_two_axes_has_one_inside() -> None:
    flat = FlatNetwork(axis=2, network=own(spatial_dims=2))
    assert head_bias(flat.eval(), IMAGE[..., :1], CLASSES) == "network.heads.0.bias"


def test_a_network_without_such_a_number_has_none() -> None:
    without = nn.Sequential(nn.Conv3d(1, CLASSES, 1), nn.InstanceNorm3d(CLASSES))
    assert head_bias(without.eval(), IMAGE, CLASSES) is None


def test_shifted_weights_give_logits_that_are_larger_by_the_offsets_and_the_network_stays(tmp_path: Path) -> None:
    network = own().eval()
    torch.save(network.state_dict(), tmp_path / "before.pt")
    before = network(IMAGE)
    write_shifted(tmp_path / "before.pt", tmp_path / "after.pt", "heads.0.bias", (0.0, 0.5, -0.25))
    network.load_state_dict(torch.load(tmp_path / "after.pt", weights_only=True))
    change = (network(IMAGE) - before).mean(dim=(0, 2, 3, 4))
    assert change.tolist() == pytest.approx([0.0, 0.5, -0.25], abs=1e-5)
