"""A model that was imported is a whole bundle of ours, or nothing is there; it opens, and says where it comes from."""

import errno
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from voxelgate.bundle.checksums import verify
from voxelgate.bundle.imports.imported import Imported
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import BundleError, InputError, OutputError
from voxelgate.core.exchange import exchange_names
from voxelgate.core.labels import LabelTable
from voxelgate.training.bundle_checks import METADATA


def made(out: Path, imported: Imported, folder: Path, **options: bool) -> Path:
    with opened_source(folder) as source:
        write_imported(out, imported, source, **options)
    return out


def metadata_of(root: Path) -> dict[str, Any]:
    stated: dict[str, Any] = json.loads((root / "configs" / "metadata.json").read_text())
    return stated


def test_the_bundle_is_sealed_opens_and_has_the_weights(tmp_path: Path, imported: Imported, folder: Path) -> None:
    root = made(tmp_path / "tiny", imported, folder)

    bundle = open_bundle(root, "cpu")

    assert bundle.fingerprint == verify(root)
    assert (bundle.name, bundle.version, bundle.labels.names) == ("tiny", "1.0.0", imported.labels.names)
    for name, value in bundle.network.state_dict().items():
        assert torch.equal(value, imported.state[name])


def test_the_metadata_are_those_of_monai_and_say_where_it_comes_from(
    tmp_path: Path, imported: Imported, folder: Path
) -> None:
    stated = metadata_of(made(tmp_path / "tiny", imported, folder))

    assert list(METADATA.iter_errors(stated)) == []
    origin = stated["imported_from"]
    assert (origin["kind"], origin["name"]) == ("nnU-Net folder of one configuration", folder.name)
    assert list(origin["files"]) == ["fold_0/checkpoint_final.pth", "plans.json"]
    assert len(origin["sha256"]) == 64
    assert origin["trainer"] == "nnUNetTrainer"
    assert stated["licence"] == "not stated"
    assert list(stated["label_codes"]) == ["1"]
    assert "not stated" in (tmp_path / "tiny" / "docs" / "data_license.txt").read_text()
    assert "| trainer | nnUNetTrainer |" in (tmp_path / "tiny" / "docs" / "README.md").read_text()
    assert (tmp_path / "tiny" / "source" / "plans.json").read_bytes() == b"{}\n"


@pytest.mark.slow
def test_it_runs_with_monais_own_command(tmp_path: Path, imported: Imported, folder: Path) -> None:
    root = made(tmp_path / "tiny", imported, folder)
    (tmp_path / "in").mkdir()
    voxels = np.random.default_rng(0).normal(size=(20, 18, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 2, 3, 1])), tmp_path / "in" / "scan.nii.gz")

    command = [sys.executable, "-P", "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    subprocess.run(command, cwd=root, check=True, capture_output=True)

    (written,) = (tmp_path / "out").glob("*.nii.gz")
    found = open_bundle(root, "cpu").segment(tmp_path / "in" / "scan.nii.gz")
    assert np.array_equal(np.asarray(nib.load(written).dataobj), found.labels)


def test_many_labels_are_saved_as_two_bytes(tmp_path: Path, imported: Imported, folder: Path) -> None:
    table = LabelTable(("background", *(f"part {value}" for value in range(1, 301))))
    root = made(tmp_path / "tiny", replace(imported, labels=table), folder)

    config = json.loads((root / "configs" / "inference.json").read_text())
    assert config["postprocessing"]["transforms"][-1]["output_dtype"] == "uint16"


@pytest.mark.parametrize("name", ["scripts/net/unet.py", "models/network.ts", "configs/inference.json"])
def test_code_of_an_imported_bundle_cannot_be_changed_unseen(
    tmp_path: Path, imported: Imported, folder: Path, name: str
) -> None:
    files = {"scripts/net/unet.py": b"", "models/network.ts": b"x"}
    root = made(tmp_path / "tiny", replace(imported, extra_files=files), folder)
    verify(root)

    (root / name).write_bytes((root / name).read_bytes() + b" ")

    with pytest.raises(BundleError, match=f"tiny: {name} changed since the bundle was sealed"):
        verify(root)


UNFIT: Mapping[str, tuple[dict[str, Any], type[Exception], str]] = {
    "other weights": ({"state": {"a": torch.zeros(3)}}, BundleError, "does not fit the network"),
    "name that climbs": ({"extra_files": {"../x": b"x"}}, InputError, "leads out of the bundle"),
    "absolute name": ({"extra_files": {"/canary/x": b"x"}}, InputError, "leads out of the bundle"),
    "missing file": ({"source_files": ("fold_9/x.pth",)}, InputError, "has no fold_9/x.pth"),
    "no series rule": ({"series_rule": {"modality": ["XX"]}}, BundleError, "series_rule"),
}


@pytest.mark.parametrize(("change", "error", "reason"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_a_bundle_leaves_nothing(
    tmp_path: Path, imported: Imported, folder: Path, change: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        made(tmp_path / "out" / "tiny", replace(imported, **change), folder)

    assert list((tmp_path / "out").iterdir()) == []
    assert not Path("/canary").exists()


def test_a_bundle_is_replaced_only_if_asked_and_kept_if_that_fails(
    tmp_path: Path, imported: Imported, folder: Path
) -> None:
    root = made(tmp_path / "out" / "tiny", imported, folder)
    with pytest.raises(OutputError, match="exists already; pass --overwrite"):
        made(root, imported, folder)
    with pytest.raises(BundleError):
        made(root, replace(imported, state={}), folder, overwrite=True)
    assert metadata_of(root)["version"] == "1.0.0"

    made(root, replace(imported, version="2.0.0"), folder, overwrite=True)

    assert metadata_of(root)["version"] == "2.0.0"
    assert [path.name for path in root.parent.iterdir()] == ["tiny"]


def test_there_is_a_whole_bundle_under_a_name_at_every_moment_while_it_is_replaced(
    tmp_path: Path, imported: Imported, folder: Path
) -> None:
    root = made(tmp_path / "out" / "tiny", imported, folder)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if not exchange_names(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system exchanges no names")
    missing: list[int] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            missing.extend([] if (root / "models" / "model.pt").exists() else [1])

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(10):
        made(root, imported, folder, overwrite=True)
    is_over.set()
    watcher.join()

    assert missing == []


def test_where_names_cannot_be_exchanged_a_bundle_is_moved_aside_and_comes_back_if_the_new_one_cannot_take_its_name(
    tmp_path: Path, imported: Imported, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = made(tmp_path / "out" / "tiny", imported, folder)
    monkeypatch.setattr("voxelgate.bundle.imports.target.exchange_names", lambda *_: False)
    made(root, replace(imported, version="2.0.0"), folder, overwrite=True)
    plain = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.name == "tiny" and target == root:
            raise OSError(errno.EACCES, "no")
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OutputError):
        made(root, replace(imported, version="3.0.0"), folder, overwrite=True)

    assert metadata_of(root)["version"] == "2.0.0"


def test_no_other_folder_and_no_source_is_ever_replaced(tmp_path: Path, imported: Imported, folder: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")

    for out, reason in ((tmp_path / "mine", "no bundle"), (folder / "out", "lies in what is imported")):
        with pytest.raises(OutputError, match=reason):
            made(out, imported, folder, overwrite=True)

    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
