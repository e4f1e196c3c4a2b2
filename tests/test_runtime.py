"""Number formats: what is asked for is used, and losses always see float32."""

import pytest
import torch
from torch import nn

from pipeline.inference.runtime import (
    MixedPrecisionInferer,
    Precision,
    choose_precision,
    keep_large_buffers,
    needs_scaler,
)

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


def test_large_buffers_can_be_kept_more_than_once() -> None:
    keep_large_buffers()
    keep_large_buffers()
    assert torch.ones(2**20).sum() == 2**20
