"""Ways of running a network: drop-ins that say the same and leave the original alone."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import AttentionUnet
from torch import nn

from voxelgate.core.errors import UsageError
from voxelgate.inference.memory import HALVINGS, with_less_memory
from voxelgate.inference.runtimes import built_models
from voxelgate.inference.runtimes import runtimes as execution
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.inference.runtimes.onnx_model import build_onnx
from voxelgate.inference.runtimes.openvino_model import build_openvino
from voxelgate.inference.runtimes.runtimes import CPP_COMPILERS, folded, prepare_runtime, runtimes_of
from voxelgate.networks import AttentionUNet

CPU = torch.device("cpu")
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
HAS_COMPILER = any(map(shutil.which, CPP_COMPILERS))
HAS_ONNX = all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript")))
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="the extra openvino is not installed")
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx is not installed")
BUILT = [
    pytest.param(Runtime.OPENVINO, marks=needs_openvino),
    pytest.param(Runtime.ONNX, marks=needs_onnx),
]
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")


def lived_in(network: nn.Module) -> nn.Module:
    """Give batch norms statistics as if the network had been trained."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return network.eval()


@pytest.fixture
def network() -> AttentionUNet:
    torch.manual_seed(0)
    return lived_in(AttentionUNet(in_channels=1, out_channels=3, channels=(4, 8), gate_norm="batch"))


@pytest.fixture
def patch() -> torch.Tensor:
    return torch.randn(1, 1, 12, 9, 14, generator=torch.Generator().manual_seed(2))


def batch_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm3d) for module in network.modules())


def within_1e5(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.max() - expected.min()))


@torch.no_grad()
def test_a_folded_network_has_no_batch_norm_and_gives_the_same_logits(
    network: AttentionUNet, patch: torch.Tensor
) -> None:
    plain = folded(network)
    assert batch_norms(network) > 0
    assert batch_norms(plain) == 0
    assert type(plain) is AttentionUNet
    assert within_1e5(plain(patch), network(patch))


@torch.no_grad()
def test_batch_norms_of_monais_nested_blocks_are_folded_too() -> None:
    torch.manual_seed(0)
    monais = lived_in(AttentionUnet(3, 1, 2, (4, 8), (2,)))
    image = torch.randn(1, 1, 8, 8, 8)
    assert batch_norms(monais) > 5
    assert batch_norms(folded(monais)) == 0
    assert within_1e5(folded(monais)(image), monais(image))


@torch.no_grad()
def test_a_convolution_used_twice_keeps_its_norm(patch: torch.Tensor) -> None:
    shared = nn.Conv3d(1, 1, 3, padding=1)
    twice = lived_in(nn.Sequential(shared, nn.BatchNorm3d(1), shared))
    assert batch_norms(folded(twice)) == 1
    assert within_1e5(folded(twice)(patch), twice(patch))


@torch.no_grad()
def test_a_norm_that_does_not_follow_a_convolution_stays(patch: torch.Tensor) -> None:
    apart = lived_in(nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.BatchNorm3d(2)))
    assert batch_norms(folded(apart)) == 1
    assert within_1e5(folded(apart)(patch), apart(patch))


@torch.no_grad()
@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"bias": False}])
def test_convolutions_of_any_kind_go_through_onednn(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv3d(2, 4, 3, **options)).eval()
    image = torch.randn(1, 2, 8, 7, 9)
    run = prepare_runtime(conv, Runtime.FOLDED, image)
    assert within_1e5(run(image), conv(image))
    with torch.profiler.profile() as profile:
        run(image)
    assert "aten::slow_conv3d_forward" not in {event.key for event in profile.key_averages()}


@torch.no_grad()
@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_convolutions_that_onednn_cannot_pad_stay(options: dict[str, str | int]) -> None:
    conv = nn.Sequential(nn.Conv3d(1, 2, 3, **options)).eval()
    image = torch.randn(1, 1, 8, 7, 9)
    run = prepare_runtime(conv, Runtime.FOLDED, image)
    assert within_1e5(run(image), conv(image))


CHEAP = [Runtime.EAGER, Runtime.FOLDED, Runtime.BFLOAT16]


@torch.no_grad()
@pytest.mark.parametrize("runtime", CHEAP)
def test_the_original_is_unchanged_and_the_copy_follows_no_later_change(
    network: AttentionUNet, patch: torch.Tensor, runtime: Runtime
) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(patch)
    run = prepare_runtime(network, runtime, patch)
    first = run(patch)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(network(patch), expected)
    network.heads[0].weight.zero_()
    assert torch.equal(run(patch), first)


@torch.no_grad()
@pytest.mark.parametrize("runtime", [*CHEAP, *BUILT])
def test_every_runtime_takes_windows_of_any_shape_and_returns_float32(
    network: AttentionUNet, patch: torch.Tensor, runtime: Runtime
) -> None:
    run = prepare_runtime(network, runtime, patch)
    for windows in (
        patch,
        patch.to(memory_format=torch.channels_last_3d),
        patch[..., :10],
        patch.expand(2, -1, -1, -1, -1),
    ):
        logits = run(windows)
        assert logits.dtype is torch.float32
        expected = network(windows)
        assert float((logits - expected).abs().max()) < 0.05 * float(expected.max() - expected.min())
    assert not run.training


@torch.no_grad()
def test_bfloat16_computes_inside(network: AttentionUNet, patch: torch.Tensor) -> None:
    expected = network(patch)
    folded, reduced = (
        float((prepare_runtime(network, runtime, patch)(patch) - expected).abs().max())
        for runtime in (Runtime.FOLDED, Runtime.BFLOAT16)
    )
    assert folded < reduced


@torch.no_grad()
@pytest.mark.parametrize("runtime", BUILT)
def test_what_was_built_gives_the_same_logits_from_a_file_too(
    network: AttentionUNet, patch: torch.Tensor, tmp_path: Path, runtime: Runtime
) -> None:
    stored = tmp_path / "cache" / "model"
    built = prepare_runtime(network, runtime, patch, stored=stored)
    content = stored.read_bytes()
    read = prepare_runtime(network, runtime, patch, stored=stored)
    assert within_1e5(built(patch), network(patch))
    assert torch.equal(read(patch), built(patch))
    assert stored.read_bytes() == content
    assert [path.name for path in stored.parent.iterdir()] == ["model"]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("runtime", BUILT)
def test_a_damaged_file_is_built_anew(
    network: AttentionUNet, patch: torch.Tensor, tmp_path: Path, runtime: Runtime
) -> None:
    stored = tmp_path / "model"
    stored.write_bytes(b"damaged" * 100)
    run = prepare_runtime(network, runtime, patch, stored=stored)
    assert within_1e5(run(patch), network(patch))
    assert built_models.read_built(stored) is not None


@pytest.mark.parametrize("kept", [slice(0), slice(20), slice(-1)])
def test_a_kept_model_is_read_only_if_it_is_whole(tmp_path: Path, kept: slice) -> None:
    stored = tmp_path / "model"
    built_models.keep_built(b"a model", stored)
    assert built_models.read_built(stored) == b"a model"
    stored.write_bytes(stored.read_bytes()[kept])
    assert built_models.read_built(stored) is None


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    built_models.keep_built(b"a model", tmp_path / "cache" / "model")
    assert "cannot be kept" in caplog.text


@pytest.mark.slow
@needs_openvino
def test_openvino_reports_its_use_to_nobody(tmp_path: Path) -> None:
    code = (
        "from voxelgate.inference.runtimes.openvino_model import library; library();"
        "import openvino.tools.ovc as ovc; print(type(ovc.telemetry).__module__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)}
    )
    assert ran.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
    assert list(tmp_path.rglob("*cid*")) == []


@pytest.mark.slow
@needs_onnx
def test_onnx_runtime_reports_its_use_to_nobody_and_marks_no_machine(tmp_path: Path) -> None:
    code = (
        "import torch; from voxelgate.inference.runtimes import onnx_model;"
        "network = torch.nn.Conv3d(1, 2, 1).eval(); patch = torch.ones(1, 1, 2, 2, 2);"
        "print(onnx_model.build_onnx(network, patch, None)(patch).shape)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)}
    )
    assert ran.stdout.strip() == "torch.Size([1, 2, 2, 2, 2])"
    assert list(tmp_path.rglob("*onnxruntime*")) == []


def test_openvino_says_how_to_get_it_where_it_is_absent(
    network: AttentionUNet, patch: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"pip install openvino"):
        prepare_runtime(network, Runtime.OPENVINO, patch)


def test_onnx_says_how_to_get_it_where_it_is_absent(
    network: AttentionUNet, patch: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"needs onnxruntime, .* pip install onnx onnxruntime onnxscript"):
        prepare_runtime(network, Runtime.ONNX, patch)


@pytest.mark.parametrize("build", [build_openvino, build_onnx])
def test_libraries_of_the_cpu_are_refused_on_other_devices(
    network: AttentionUNet, patch: torch.Tensor, build: Callable[..., object]
) -> None:
    with pytest.raises(UsageError, match="on the CPU, not on meta"):
        build(network, patch.to("meta"), None)


def test_compiling_says_what_is_missing_without_a_compiler(
    network: AttentionUNet, patch: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution.shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match="C\\+\\+ compiler"):
        prepare_runtime(network, Runtime.COMPILED, patch)


@needs_compiler
@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_network_gives_the_same_logits(patch: torch.Tensor) -> None:
    network = lived_in(nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2), nn.LeakyReLU()))
    run = prepare_runtime(network, Runtime.COMPILED, patch)
    for windows in (patch, patch.to(memory_format=torch.channels_last_3d), patch[..., 1:]):
        assert within_1e5(run(windows), network(windows))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
@pytest.mark.parametrize("runtime", runtimes_of(torch.device("cuda")))
def test_what_a_gpu_gave_is_not_overwritten_by_its_next_pass(
    network: AttentionUNet, patch: torch.Tensor, runtime: Runtime
) -> None:
    here, there = network.cuda(), patch.cuda()
    run = prepare_runtime(here, runtime, there)
    first = run(there)
    kept = first.clone()
    run(there + 1)
    assert torch.equal(first, kept)
    assert torch.allclose(first, here(there), atol=0.1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_eager_is_the_first_of_the_runtimes_worth_trying(device: str) -> None:
    assert runtimes_of(torch.device(device))[0] is Runtime.EAGER


def test_a_run_out_of_memory_is_repeated_with_half_the_limit() -> None:
    limits: list[int] = []

    def run(limit: int) -> str:
        limits.append(limit)
        if limit > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert with_less_memory(run, 1000) == "done"
    assert limits == [1000, 500, 250]


def test_a_device_that_never_has_enough_is_named() -> None:
    limits: list[int] = []

    def run(limit: int) -> None:
        limits.append(limit)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UsageError, match="ran out of memory even with a limit of 64 MiB"):
        with_less_memory(run, 2**30)
    assert len(limits) == HALVINGS + 1


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def run(limit: int) -> None:
        raise RuntimeError(f"something else at {limit}")

    with pytest.raises(RuntimeError, match="something else at 8"):
        with_less_memory(run, 8)
