"""A bundle as a file for other systems: it says what the network says, tells what it takes, or is not left there."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, load_net_with_metadata
from monai.networks.nets import ResNet
from torch import nn

from tests.conftest import Run
from tests.networks.test_presets import PRESETS
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.bundle.checksums import seal
from voxelgate.bundle.export import INFERENCE, PARITY, _windows, export, other_window
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import BundleError, OutputError, UsageError
from voxelgate.inference.runtimes.agreement import TIE, Evidence, worst_of
from voxelgate.inference.runtimes.formats import is_installed, sizes_of, write_format
from voxelgate.inference.runtimes.kinds import SUFFIXES, Format
from voxelgate.networks import AttentionUNet, FlatNetwork, GuidedAttentionNet, NonLocalUNet, presets
from voxelgate.training.bundle_checks import CHECKS

FORMATS = [
    pytest.param(form, marks=pytest.mark.skipif(not is_installed(form), reason=f"the extra of {form} is not installed"))
    for form in Format
]
every_format = pytest.mark.parametrize("form", FORMATS)
needs_onnx = pytest.mark.skipif(not is_installed(Format.ONNX), reason="the extra onnx is not installed")

REFUSALS = (RuntimeError, AssertionError, torch.jit.Error)
"""What libraries raise on windows that a file does not take."""


class Moody(nn.Conv3d):
    """Another network where the image is bright, which no exporter can follow."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = super().forward(image)
        return logits.flip(1) if image.mean() > 0 else logits


def guided(*, spatial_dims: int, in_channels: int, out_channels: int, **_: Any) -> GuidedAttentionNet:
    backbone = ResNet("basic", [1] * 4, [4, 4, 8, 8], spatial_dims=spatial_dims, n_input_channels=in_channels)
    return GuidedAttentionNet(out_channels=out_channels, backbone=backbone, width=4)


NETWORKS = [
    *PRESETS,
    NonLocalUNet,
    guided,
]


def lived_in(network: nn.Module) -> nn.Module:
    """Make every layer count, as if the network had been trained."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        for name, parameter in module.named_parameters(recurse=False):
            if name == "gamma" or not parameter.any():
                nn.init.normal_(parameter, std=0.5)
    return network.eval()


def window(*size: int) -> torch.Tensor:
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(2))


def differs_by(run: Callable[[torch.Tensor], torch.Tensor], network: nn.Module, *images: torch.Tensor) -> float:
    return worst_of([Evidence(network, (image,)).compare(run) for image in images]).difference


@pytest.mark.slow
@every_format
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_every_network_says_the_same_in_every_format(
    build: Callable[..., nn.Module], spatial_dims: int, form: Format, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    channels = (4, 8, 8) if build is presets.oktay else (4, 8)
    network = lived_in(build(in_channels=1, out_channels=3, spatial_dims=spatial_dims, channels=channels))
    image = window(*(20, 16, 24)[:spatial_dims])
    sizes = sizes_of(network, image, form)
    run = write_format(network, form, sizes, tmp_path / f"model{SUFFIXES[form][0]}", {})
    others = window(*other_window(sizes)).expand(3, -1, *(-1,) * spatial_dims)
    assert (others.shape[2:] == image.shape[2:]) is (build is guided)
    assert differs_by(run, network, image, others) < PARITY


@pytest.mark.parametrize("build", [presets.oktay, AttentionUNet], ids=lambda build: build.__name__)
def test_torchscript_takes_windows_of_any_size(build: Callable[..., nn.Module], tmp_path: Path) -> None:
    network = lived_in(build(in_channels=1, out_channels=2, channels=(2, 4, 4)))
    sizes = sizes_of(network, window(16, 16, 16), Format.TORCHSCRIPT)
    assert str(sizes) == "n x n x n voxels"
    run = write_format(network, Format.TORCHSCRIPT, sizes, tmp_path / "model.ts", {})
    for size in ((5, 5, 5), (9, 8, 6), (7, 12, 17), (16, 16, 16), (13, 4, 4)):
        assert differs_by(run, network, window(*size)) < PARITY


@pytest.mark.slow
@pytest.mark.parametrize("form", [Format.TORCH_EXPORT, Format.TORCHSCRIPT, pytest.param(Format.ONNX, marks=needs_onnx)])
def test_a_file_of_one_size_refuses_another_instead_of_computing_something(form: Format, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1)).eval()
    sizes = sizes_of(network, window(6, 7, 8), form)
    assert str(sizes) == "6 x 7 x 8 voxels"
    run = write_format(network, form, sizes, tmp_path / f"model{SUFFIXES[form][0]}", {})
    assert differs_by(run, network, window(6, 7, 8)) < PARITY
    with pytest.raises(REFUSALS):
        run(window(6, 7, 9))


def test_a_program_refuses_a_size_for_which_it_was_not_made(tmp_path: Path) -> None:
    network = AttentionUNet(in_channels=1, out_channels=2, channels=(2, 4)).eval()
    sizes = sizes_of(network, window(8, 8, 8), Format.TORCH_EXPORT)
    assert str(sizes) == "2n x 2n x 2n voxels"
    run = write_format(network, Format.TORCH_EXPORT, sizes, tmp_path / "model.pt2", {})
    with pytest.raises(REFUSALS):
        run(window(8, 8, 7))


@pytest.mark.parametrize("form", [Format.TORCH_EXPORT, Format.TORCHSCRIPT])
def test_a_flat_network_keeps_its_one_slice(form: Format, tmp_path: Path) -> None:
    flat = FlatNetwork(
        network=AttentionUNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(2, 4)), axis=1
    ).eval()
    sizes = sizes_of(flat, window(8, 1, 12), form)
    assert str(sizes) in {"2n x 1 x 2n voxels", "n x 1 x n voxels"}
    run = write_format(flat, form, sizes, tmp_path / f"model{SUFFIXES[form][0]}", {})
    assert differs_by(run, flat, window(8, 1, 12), window(6, 1, 8)) < PARITY
    with pytest.raises(REFUSALS):
        run(window(8, 2, 12))


def test_a_window_that_is_no_multiple_of_the_strides_is_the_only_one() -> None:
    network = AttentionUNet(in_channels=1, out_channels=2, channels=(2, 4, 4))
    assert str(sizes_of(network, window(16, 10, 4), Format.ONNX)) == "4n x 10 x 4 voxels"


# --- bundles --------------------------------------------------------------------------------------------------------


def make_bundle(root: Path, network: nn.Module, definition: dict[str, Any]) -> Path:
    make_threshold_bundle(root)
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text("utf-8"))
    config["network_def"] = definition
    config["inferer"]["roi_size"] = [16, 16, 16]
    spacing = {"_target_": "voxelgate.ResampleToSpacingd", "keys": ["image"], "spacing_mm": [2.0, 2.0, 3.0]}
    config["preprocessing"]["transforms"].insert(3, spacing | {"mode": ["bilinear"]})
    path.write_text(json.dumps(config), encoding="utf-8")
    torch.save(network.state_dict(), root / "models" / "model.pt")
    seal(root)
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"in_channels": 1, "out_channels": 2, "channels": [4, 8]}
    definition = {"_target_": "voxelgate.AttentionUNet", **sizes}
    network = lived_in(AttentionUNet(**sizes))
    with torch.no_grad():
        halfway = network(window(16, 16, 16) * 0.1 + 0.5).mean((0, 2, 3, 4))  # either label about as often
        network.heads[0].bias -= halfway
    return make_bundle(tmp_path_factory.mktemp("export") / "bundle", network, definition)


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    definition = {"_target_": f"{__name__}.Moody", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    return make_bundle(tmp_path_factory.mktemp("moody") / "bundle", Moody(1, 2, 1), definition)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(0).normal(100, 200, (30, 26, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), tmp_path / "volume.nii.gz")
    return tmp_path / "volume.nii.gz"


def texts_of(path: Path, form: Format) -> dict[str, Any]:
    """Read what a file carries with the library of its format alone."""
    names = ["metadata.json", "inference.json", "export.json"]
    found = dict.fromkeys(names, "")
    if form is Format.TORCH_EXPORT:
        torch.export.load(path, extra_files=found)
    elif form is Format.TORCHSCRIPT:
        torch.jit.load(path, _extra_files=found)
    elif form is Format.ONNX:
        found = {one.key: one.value for one in importlib.import_module("onnx").load(path).metadata_props}
    else:
        model = importlib.import_module("openvino").Core().read_model(path)
        found = {name: model.get_rt_info([name]).astype(str) for name in names}
    return {name: json.loads(found[name]) for name in names}


@pytest.mark.slow
@every_format
def test_an_exported_file_says_what_it_takes_and_gives(bundle: Path, tmp_path: Path, form: Format) -> None:
    out = tmp_path / f"some{SUFFIXES[form][0]}"
    exported = export(open_bundle(bundle, "cpu"), form, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"some{suffix}" for suffix in SUFFIXES[form])
    assert exported.agreement.difference < PARITY
    assert exported.voxels == 16**3 + 2 * (9**3 if form is Format.TORCHSCRIPT else 8**3)
    texts, opened = texts_of(out, form), open_bundle(bundle, "cpu")
    assert texts["metadata.json"] == json.loads((bundle / "configs" / "metadata.json").read_text("utf-8"))
    assert texts["inference.json"] == json.loads((bundle / "configs" / "inference.json").read_text("utf-8"))
    about = texts["export.json"]
    assert (about["bundle"], about["version"], about["sha256"]) == (opened.name, opened.version, opened.fingerprint)
    assert about["input"]["spacing_mm"] == [2.0, 2.0, 3.0]
    assert about["input"]["orientation"] == "RAS"
    assert about["input"]["window_vox"] == [16, 16, 16]
    assert about["input"]["multiples_vox"] == [1 if form is Format.TORCHSCRIPT else 2] * 3
    assert about["input"]["preprocessing"][-1]["_target_"] == "voxelgate.WindowHUd"
    assert about["output"]["labels"] == {"0": "background", "1": "femur"}


def test_monai_reads_the_torchscript_file_as_its_own(bundle: Path, tmp_path: Path) -> None:
    export(open_bundle(bundle, "cpu"), Format.TORCHSCRIPT, tmp_path / "model.ts")
    network, metadata, others = load_net_with_metadata(str(tmp_path / "model.ts"), more_extra_files=[INFERENCE])
    assert metadata["name"] == "bright_ct"
    assert json.loads(others[INFERENCE])["inferer"]["roi_size"] == [16, 16, 16]
    assert differs_by(network, open_bundle(bundle, "cpu").network, window(16, 16, 16)) < PARITY


def test_a_file_that_says_something_else_is_not_left(moody: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"says something else than the network: .* labels at [1-9][0-9]* voxels"):
        export(open_bundle(moody, "cpu"), Format.TORCHSCRIPT, tmp_path / "model.ts")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_refused_in_one_sentence(moody: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot be exported to torch-export \([^\n]*\); choose another format\.$"):
        export(open_bundle(moody, "cpu"), Format.TORCH_EXPORT, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_gate_refuses_a_bundle_that_cannot_be_exported(moody: Path) -> None:
    with pytest.raises(BundleError, match="cannot be exported"):
        CHECKS["export"](moody)


def test_a_file_is_replaced_only_if_that_is_allowed(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.ts"
    out.write_text("older")
    with pytest.raises(OutputError, match="exists already"):
        export(open_bundle(bundle, "cpu"), Format.TORCHSCRIPT, out)
    assert out.read_text() == "older"
    export(open_bundle(bundle, "cpu"), Format.TORCHSCRIPT, out, overwrite=True)
    assert out.stat().st_size > 1000


def test_a_refused_file_leaves_an_older_one_as_it_was(moody: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.ts"
    out.write_text("older")
    with pytest.raises(BundleError, match="says something else than the network"):
        export(open_bundle(moody, "cpu"), Format.TORCHSCRIPT, out, overwrite=True)
    assert out.read_text() == "older"


def test_a_file_with_the_ending_of_another_format_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.pt: a file of format torch-export ends in \.pt2"):
        export(open_bundle(bundle, "cpu"), Format.TORCH_EXPORT, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("form", "package"), [(Format.ONNX, "onnxruntime"), (Format.ONNX, "onnxscript"), (Format.OPENVINO, "openvino")]
)
def test_a_missing_package_is_named_before_any_work(
    bundle: Path, form: Format, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert not is_installed(form)
    with pytest.raises(UsageError, match=rf"pip install .*{package}"):
        export(open_bundle(bundle, "cpu"), form, tmp_path / f"model{SUFFIXES[form][0]}")


def test_the_command_compares_on_an_image_and_prints_the_difference(bundle: Path, volume: Path, run: Run) -> None:
    done = run("bundle", "export", bundle, "--to", "torchscript", "--out", "model.ts", "--image", volume)
    assert done.returncode == 0
    assert "model.ts: takes windows of n x n x n voxels; on the image with " in done.stdout
    assert "structures in a window, logits differ by at most " in done.stdout
    voxels = 3 * 16**3 + 2 * 9**3
    assert f"labels at 0 of {voxels} voxels, of which 0 are ties" in done.stdout
    assert Path("model.ts").is_file()


@pytest.mark.slow
@needs_onnx
def test_onnx_segments_as_eager_does(
    bundle: Path, volume: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ("--engine", "serial", "--no-previews", "--json")  # other processes may be of another environment
    for runtime in ("eager", "onnx"):
        done = run("segment", bundle, volume, "--out", runtime, "--runtime", runtime, *options)
        assert json.loads(done.stdout)["versions"]["runtime"] == runtime
    eager, onnx = (
        np.asarray(nib.load(next(Path(name).glob("*.nii.gz"))).dataobj).ravel() for name in ("eager", "onnx")
    )
    assert 0 < eager.sum() < eager.size
    assert np.mean(eager != onnx) < 1e-4
    assert len(list((tmp_path / "cache").rglob("*.onnx"))) == 1


# --- windows and ties -----------------------------------------------------------------------------------------------


def test_windows_lie_in_the_middle_and_at_two_corners_and_a_small_image_is_padded() -> None:
    image = MetaTensor(torch.arange(1.0, 6 * 4 * 3 + 1).reshape(1, 6, 4, 3))
    middle, first, last = _windows(image, (2, 4, 5))
    assert middle.shape == first.shape == last.shape == (1, 1, 2, 4, 5)
    assert torch.equal(middle[0, :, :, :, 1:4], image[:, 2:4].as_tensor())
    assert torch.equal(first[0, :, :, :, 1:4], image[:, :2].as_tensor())
    assert torch.equal(last[0, :, :, :, 1:4], image[:, 4:].as_tensor())
    assert not first[..., [0, 4]].any()
    assert len(_windows(image, (6, 4, 3))) == 1


class Given(nn.Module):
    """Gives its image as logits."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + 0


def logits(margins: list[float]) -> torch.Tensor:
    """Return two classes with a range of 1 whose margins are given, and one voxel that sets the range."""
    first = torch.tensor([*margins, 1.0])
    return torch.stack((first, torch.zeros_like(first)))[None, :, :, None, None]


@pytest.mark.parametrize("are_regions", [False, True])
def test_labels_that_differ_where_the_best_two_are_close_are_ties(are_regions: bool) -> None:
    expected = logits([0.5 * TIE, 2 * TIE, -0.5 * TIE, 0.5])
    found = logits([-1e-6, -1e-6, 1e-6, 0.5])
    agreement = Evidence(Given().eval(), (expected,), are_regions=are_regions).compare(lambda _: found)
    assert agreement.unequal == 3
    assert agreement.beyond_ties == 1
