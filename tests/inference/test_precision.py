"""Number formats: what is asked for is used, and losses always see float32."""

import pytest
import torch
from torch import nn

from voxelgate.inference.precision import (
    MixedPrecisionInferer,
    Precision,
    choose_precision,
    keep_large_buffers,
    needs_scaler,
)
from voxelgate.networks import AttentionUNet
from voxelgate.networks.bfloat16 import SoundGradients

CPU = torch.device("cpu")


class TwoLevels(nn.Module):
    """Logits at two resolutions, and the number format in which they were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, kernel_size=1)
        self.computed_in: torch.dtype | None = None

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        fine = self.conv(image)
        self.computed_in = fine.dtype
        return [fine, fine[..., ::2]]


@pytest.mark.parametrize("asked", [p.value for p in Precision if p is not Precision.AUTO])
@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_the_precision_asked_for_is_chosen(asked: str, device: str) -> None:
    assert choose_precision(torch.device(device), asked) == asked


def test_auto_decides_and_takes_float32_on_devices_it_does_not_know() -> None:
    assert choose_precision(CPU, "auto") in {Precision.FLOAT32, Precision.BFLOAT16}
    assert choose_precision(torch.device("meta")) is Precision.FLOAT32


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="float8"):
        choose_precision(CPU, "float8")


def test_only_float16_needs_a_scaler() -> None:
    assert [p for p in Precision if needs_scaler(p)] == [Precision.FLOAT16]


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_network_runs_in_the_precision_and_a_list_comes_back_in_float32(precision: str, dtype: torch.dtype) -> None:
    net = TwoLevels()
    levels = MixedPrecisionInferer(precision)(torch.ones(1, 1, 4, 4, 4), net)
    assert net.computed_in is dtype
    assert [level.dtype for level in levels] == [torch.float32, torch.float32]
    assert [level.shape[-1] for level in levels] == [4, 2]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_single_tensor_comes_back_in_float32(precision: str) -> None:
    logits = MixedPrecisionInferer(precision)(torch.ones(1, 1, 4, 4, 4), nn.Conv3d(1, 2, kernel_size=1))
    assert isinstance(logits, torch.Tensor)
    assert logits.dtype is torch.float32


def test_the_inferer_refuses_a_precision_that_is_not_decided() -> None:
    with pytest.raises(ValueError, match="choose_precision"):
        MixedPrecisionInferer("auto")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_image_two_voxels_deep_has_sound_gradients_in_bfloat16(*, checkpointing: bool) -> None:
    torch.manual_seed(0)
    net = AttentionUNet(in_channels=1, out_channels=2, channels=(16, 32), checkpointing=checkpointing)
    image = torch.randn(2, 1, 4, 12, 12)  # 2 voxels deep at the lower level
    gradients = {}
    for precision in ("float32", *["bfloat16"] * 4):  # what memory held before differs from time to time
        net.zero_grad()
        freed = [torch.full((n,), float("nan"), dtype=torch.bfloat16) for n in (1000, 14_000, 28_000, 100_000)]
        del freed
        MixedPrecisionInferer(precision)(image, net).square().mean().backward()
        weights = net.encoder[1][4].weight.grad
        gradients.setdefault(precision, weights.clone())
        away = (weights - gradients["float32"]).norm() / gradients["float32"].norm()
        assert away < 0.3  # of rounding; memory gives any number, or none


@pytest.mark.parametrize(("depth", "is_unsound"), [(1, False), (2, True), (3, False)])
def test_only_what_is_unsound_in_bfloat16_is_computed_in_float32(depth: int, *, is_unsound: bool) -> None:
    torch.manual_seed(0)
    layer, image = nn.Conv3d(8, 4, 3, padding=1), torch.randn(1, 8, depth, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = layer(image)
        with SoundGradients():
            guarded = layer(image)
            with torch.no_grad():
                assert torch.equal(layer(image), plain)
    expected = layer(image).to(torch.bfloat16) if is_unsound else plain
    assert guarded.dtype is torch.bfloat16
    assert torch.equal(guarded, expected)


def test_large_buffers_can_be_kept_more_than_once() -> None:
    keep_large_buffers()
    keep_large_buffers()
    assert torch.ones(2**20).sum() == 2**20
