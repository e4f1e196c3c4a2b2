"""What must never be imported is refused by the command in a sentence, runs nothing, and leaves nothing behind."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Run
from tests.imports import nnunet_files
from tests.imports.nnunet_files import NETWORK, checkpoint, network, write_data_set


class Touch:
    """Pickles as a command that leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def folder(where: Path, document: dict[str, Any] | None = None, **changes: Any) -> Path:
    return write_data_set(where / "Dataset001_Blobs", document, **changes)


def pickle_that_runs(where: Path) -> Path:
    return folder(where, checkpoint(network(NETWORK).state_dict(), logging=Touch(where / "canary")))


def checkpoint_of_another_network(where: Path) -> Path:
    other = NETWORK | {"channels": [4, 8]}
    return folder(where, checkpoint(network(other).state_dict()))


def zip_that_climbs(where: Path) -> Path:
    shutil.make_archive(str(where / "model"), "zip", folder(where).parent, "Dataset001_Blobs")
    shutil.rmtree(where / "Dataset001_Blobs")
    with zipfile.ZipFile(where / "model.zip", "a") as archive:
        archive.writestr("../canary", "x")
    return where / "model.zip"


def plan_of_huge_windows(where: Path) -> Path:
    return folder(where, patch_size=[10**9, 10**9, 10**9])


def plan_of_huge_networks(where: Path) -> Path:
    wide = nnunet_files.architecture()
    wide["arch_kwargs"]["features_per_stage"] = [10**9, 10**9]
    return folder(where, architecture=wide)


def bundle_with_scripts(where: Path) -> Path:
    root = where / "zoo"
    for name in ("configs", "models", "scripts"):
        (root / name).mkdir(parents=True)
    (root / "configs" / "metadata.json").write_text("{}")
    config = {
        "network_def": {"_target_": "scripts.net.Network"},
        "preprocessing": {"_target_": "Compose", "transforms": []},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": []},
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    (root / "scripts" / "__init__.py").write_text(f"open({str(where / 'canary')!r}, 'w')")
    (root / "scripts" / "net.py").write_text("class Network: pass")
    torch.save({"a": torch.zeros(1)}, root / "models" / "model.pt")
    return root


def expression_in_a_bundle(where: Path) -> Path:
    root = bundle_with_scripts(where)
    shutil.rmtree(root / "scripts")
    config = json.loads((root / "configs" / "inference.json").read_text())
    config["network_def"] = f"$open({str(where / 'canary')!r}, 'w')"
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    return root


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pickle that runs": (pickle_that_runs, "more than tensors and numbers"),
    "a checkpoint of another network": (checkpoint_of_another_network, "checkpoint_final.pth"),
    "a zip that climbs out": (zip_that_climbs, "leads out of the folder"),
    "a plan of huge windows": (plan_of_huge_windows, "patch_size"),
    "a plan of huge networks": (plan_of_huge_networks, "features_per_stage"),
    "a bundle with scripts": (bundle_with_scripts, "--trust-code"),
    "a bundle with an expression": (expression_in_a_bundle, "network_def"),
}


@pytest.mark.parametrize(("make", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_source_is_refused_runs_nothing_and_leaves_nothing(
    tmp_path: Path, kept: Path, run: Run, make: Callable[[Path], Path], reason: str
) -> None:
    (tmp_path / "given").mkdir()
    source = make(tmp_path / "given")
    before = sorted(tmp_path.rglob("*"))

    result = run("import", source)

    assert result.returncode == 1, result.stdout
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if path != kept] == before
    assert not kept.exists() or list(kept.iterdir()) == []
