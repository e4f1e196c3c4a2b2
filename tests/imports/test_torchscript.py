"""A TorchScript file with its configs becomes a bundle that gives its labels; a program that reaches out does not."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Run
from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.readers import read_model
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import Kind, opened_source
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import InputError


class Bright(nn.Module):
    """Finds what is brighter than 0.5."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.weight = nn.Conv3d(1, classes, 1)
        with torch.no_grad():
            self.weight.weight.copy_(torch.tensor([0.0, 2.0])[:classes].reshape(-1, 1, 1, 1, 1))
            self.weight.bias.copy_(torch.tensor([1.0, 0.0])[:classes])

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.weight(image)
        return found


class Writes(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        torch.save(image, "canary")
        return image


class HasState(nn.Module):
    """Does something as soon as it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return torch.zeros(3), self.training

    def forward(self, image: Tensor) -> Tensor:
        return image


class WritesWhenLoaded(HasState):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        torch.save(state[0], "canary")
        self.training = state[1]


class Reads(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image + torch.from_file("canary", size=1).sum()


class NeverEnds(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        count = 0
        while count >= 0:
            count = (count + 1) % 7
        return image


class NeverLoads(HasState):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.training = state[1]
        count = 0
        while count >= 0:
            count = (count + 1) % 7


class TakesAllMemory(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image + torch.zeros([10_000_000_000_000])[0]


class GivesAList(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [image]


CONFIG: dict[str, Any] = {
    "network_def": {"_target_": "scripts.unknown.Network"},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.5},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred"},
        ],
    },
}
METADATA = {
    "version": "0.3.0",
    "description": "Finds what is bright.",
    "network_data_format": {
        "inputs": {"image": {"modality": "MR", "num_channels": 1, "channel_def": {"0": "image"}}},
        "outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "background", "1": "liver"}}},
    },
}


def saved(path: Path, network: nn.Module, **configs: dict[str, Any]) -> Path:
    extra = {f"{name}.json": json.dumps(config) for name, config in configs.items()}
    torch.jit.save(torch.jit.script(network), path, _extra_files=extra)
    return path


@pytest.mark.slow
def test_a_program_with_its_configs_inside_gives_its_labels(tmp_path: Path, run: Run) -> None:
    path = saved(tmp_path / "bright.ts", Bright(), inference=CONFIG, metadata=METADATA)
    voxels = np.zeros((20, 18, 16), np.float32)
    voxels[4:10, 5:12, 3:9] = 1
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, 1, 1, 1])), tmp_path / "scan.nii.gz")

    result = run("import", path, "--out", tmp_path / "bright")

    assert result.returncode == 0, result.stderr
    assert "bright.ts: TorchScript file" in result.stdout
    assert "1 label: liver; takes image (MRI)" in result.stdout
    found = open_bundle(tmp_path / "bright", "cpu").segment(tmp_path / "scan.nii.gz")
    assert np.array_equal(found.labels, voxels > 0.5)
    described = run("bundle", "describe", "./bright")
    assert (described.returncode, "no sizes: the network is a TorchScript" in described.stdout) == (0, True)
    assert "becomes no onnx" in run("bundle", "export", "./bright", "--to", "onnx").stderr
    sealed = json.loads((tmp_path / "bright" / "checksums.json").read_text())
    assert "models/network.ts" in sealed


@pytest.mark.slow
def test_its_configs_may_lie_beside_it_or_in_the_bundle_around_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.ts", Bright())
    with opened_source(path) as source, pytest.raises(InputError, match=r"model\.ts: has no inference\.json"):
        read_model(source, ImportOptions())
    for folder in (tmp_path, tmp_path / "bundle" / "configs"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "inference.json").write_text(json.dumps(CONFIG))
        (folder / "metadata.json").write_text(json.dumps(METADATA))
    (tmp_path / "bundle" / "models").mkdir()
    shutil.copy(path, tmp_path / "bundle" / "models" / "model.ts")

    for given in (path, tmp_path / "bundle" / "models" / "model.ts"):
        with opened_source(given) as source:
            assert source.kind is Kind.TORCHSCRIPT
            imported = read_model(source, ImportOptions())
            assert (imported.name, imported.version, imported.labels.names[1]) == ("model", "0.3.0", "liver")
            write_imported(tmp_path / "out", imported, source, overwrite=True)


@pytest.mark.parametrize("network", [Writes(), WritesWhenLoaded(), Reads()], ids=lambda one: type(one).__name__)
def test_a_program_that_touches_files_is_refused_before_it_is_loaded(
    tmp_path: Path, run: Run, network: nn.Module
) -> None:
    path = saved(tmp_path / "model.ts", network, inference=CONFIG, metadata=METADATA)
    (tmp_path / "canary").unlink(missing_ok=True)

    result = run("import", path, "--out", tmp_path / "out")

    assert result.returncode == 1
    assert "model.ts: its code names " in result.stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.ts"]


@pytest.mark.parametrize(
    ("spelled", "folder"),
    [
        ("torch.save(", "CODE"),
        ("torch.save \\\n(", "code"),
        ("(torch.save # as it is\n)(", "code"),
        ("f = torch.save\n    f(", "code"),
        ('getattr(torch, "sa" "ve")(', "code"),
        ('getattr(torch, "s\\141ve")(', "code"),
        ("o = ops\n    o.aten.relu(", "code"),
        ("g = getattr\n    g(torch, 'save')(", "code"),
    ],
)
def test_no_spelling_of_a_call_that_writes_files_is_overlooked(tmp_path: Path, spelled: str, folder: str) -> None:
    saved(tmp_path / "plain.ts", Writes(), inference=CONFIG, metadata=METADATA)
    with zipfile.ZipFile(tmp_path / "plain.ts") as plain, zipfile.ZipFile(tmp_path / "model.ts", "w") as changed:
        for one in plain.infolist():
            name = one.filename.replace("/code/", f"/{folder}/")
            changed.writestr(name, plain.read(one).replace(b"torch.save(", spelled.encode()))

    with pytest.raises(InputError, match="is not loaded"), opened_source(tmp_path / "model.ts"):
        pytest.fail("it was taken")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (NeverEnds(), r"on zeros of shape \(1, 1, 16, 16, 16\) .* crashed, or did not end within 1 s"),
        (NeverLoads(), "crashed, or did not end within 1 s"),
        (TakesAllMemory(), "fails .*memory"),
        (GivesAList(), "gives a list"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_program_that_does_not_give_its_result_is_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: nn.Module, reason: str
) -> None:
    monkeypatch.setattr("voxelgate.bundle.imports.program_trial.MOST_TRIAL_S", 1.0)
    path = saved(tmp_path / "model.ts", network, inference=CONFIG, metadata=METADATA)

    with opened_source(path) as source, pytest.raises(InputError, match=reason):
        read_model(source, ImportOptions())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "size", "reason"),
    [(1, [16, 16, 16], "its program gives"), (2, [10**4] * 3, "which no machine of today takes")],
)
def test_a_program_that_does_not_fit_its_metadata_is_refused(
    tmp_path: Path, classes: int, size: list[int], reason: str
) -> None:
    config = CONFIG | {"inferer": CONFIG["inferer"] | {"roi_size": size}}
    path = saved(tmp_path / "model.ts", Bright(classes), inference=config, metadata=METADATA)

    with opened_source(path) as source, pytest.raises(InputError, match=reason):
        read_model(source, ImportOptions())
