"""Which way a network is run: streamed where it can be, else the runtime that is asked for or known to be fastest."""

import copy
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from voxelgate.core.errors import UsageError
from voxelgate.inference.runtimes import choice
from voxelgate.inference.runtimes.calibration import Calibration
from voxelgate.inference.runtimes.choice import STREAMED, RuntimeChoice, calibrate_windows
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer
from voxelgate.networks import AttentionUNet

IMAGE = torch.randn(1, 1, 20, 18, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def inferer(*, streaming: bool) -> RestoringSlidingWindowInferer:
    return RestoringSlidingWindowInferer(roi_size=(16, 16, 16), streaming=streaming)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return AttentionUNet(in_channels=1, out_channels=2, channels=(4, 8)).eval()


def test_a_network_that_can_be_streamed_is(network: nn.Module) -> None:
    chosen = RuntimeChoice(network, inferer(streaming=True), "ab").for_image(IMAGE)
    assert chosen == (STREAMED, network)


def test_windows_run_folded_without_a_calibration_and_are_prepared_once(network: nn.Module) -> None:
    choice_here = RuntimeChoice(network, inferer(streaming=False), "ab")
    chosen = choice_here.for_image(IMAGE)
    assert chosen.name == Runtime.FOLDED
    with torch.no_grad():
        torch.testing.assert_close(chosen.network(IMAGE), network(IMAGE), atol=1e-4, rtol=1e-4)
    assert choice_here.for_image(IMAGE * 2).network is chosen.network


def test_a_runtime_that_is_asked_for_is_taken_even_where_streaming_could_be(network: nn.Module) -> None:
    for asked in (Runtime.EAGER, Runtime.FOLDED):
        assert RuntimeChoice(network, inferer(streaming=True), "ab", asked).for_image(IMAGE).name == asked


@pytest.mark.parametrize("asked", [Runtime.EAGER, Runtime.FOLDED])
def test_an_inferer_that_streams_runs_each_network_that_pytorch_runs(network: nn.Module, asked: Runtime) -> None:
    streamed = inferer(streaming=True)
    chosen = RuntimeChoice(network, streamed, "ab", asked).for_image(IMAGE)

    image = MetaTensor(IMAGE, meta={"original_affine": torch.eye(4), "spatial_shape": IMAGE.shape[2:]})
    with torch.no_grad():
        expected, found = (streamed(image, one) for one in (network, chosen.network))

    assert (expected == found).float().mean() > 0.99


def test_an_inferer_of_another_kind_gets_the_network_as_it_is(network: nn.Module) -> None:
    assert RuntimeChoice(network, object(), "ab").for_image(IMAGE).network is network


def test_a_calibration_is_kept_and_used(network: nn.Module, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def measured(ways: object, evidence: object) -> Calibration:
        return real(dict(list(ways.items())[:2]), evidence)  # type: ignore[attr-defined]  # eager and folded only

    real = choice.calibrate
    monkeypatch.setattr(choice, "calibrate", measured)

    made = calibrate_windows(network, inferer(streaming=False), "ab", IMAGE)

    assert [trial.runtime for trial in made.trials] == [Runtime.EAGER, Runtime.FOLDED]
    assert list(cache.rglob("*.json"))
    assert RuntimeChoice(copy.deepcopy(network), inferer(streaming=False), "ab").for_image(IMAGE).name in set(Runtime)


def test_a_bundle_that_streams_has_nothing_to_calibrate(network: nn.Module) -> None:
    with pytest.raises(UsageError, match="streams"):
        calibrate_windows(network, inferer(streaming=True), "ab", IMAGE)
