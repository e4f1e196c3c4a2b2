"""Python files of foreign bundles: run only where they are trusted and sealed, and never as one another's."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.imports.zoo_bundles import NETWORK, imported_from, write_zoo_bundle, zoo_config
from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.imports.zoo import read_zoo
from voxelgate.bundle.opened import forget_opened, open_bundle
from voxelgate.bundle.scripts import PREFIX, admit_scripts
from voxelgate.core.errors import BundleError

NET = """
import scripts.parts
from scripts.parts import Layer
from .parts import Layer as Same
from monai.networks.nets import UNet
import pathlib

pathlib.Path({trace!r}).write_text("ran")

class Net(UNet):
    def __init__(self, **arguments):
        assert scripts.parts.Layer is Layer is Same
        super().__init__(**arguments)
        self.number = Layer.number
"""

TARGETED = {key: value for key, value in NETWORK.items() if key != "_target_"}


def write_scripted(root: Path, number: int, trace: Path) -> Path:
    """Write a bundle whose network is Python code that leaves a trace when it is imported."""
    network = {"_target_": "scripts.net.Net", **TARGETED}
    write_zoo_bundle(root, zoo_config(network_def=network))
    (root / "scripts").mkdir()
    (root / "scripts" / "__init__.py").write_text("")
    (root / "scripts" / "net.py").write_text(NET.format(trace=str(trace)))
    (root / "scripts" / "parts.py").write_text(f"class Layer:\n    number = {number}\n")
    return root


def imported_bundle(root: Path, out: Path) -> Path:
    with opened_source(root) as source:
        write_imported(out, read_zoo(source, ImportOptions(trusts_code=True)), source)
    return out


def test_code_of_a_bundle_is_refused_and_not_run_without_trust(tmp_path: Path) -> None:
    root = write_scripted(tmp_path / "a", 1, tmp_path / "trace")

    with pytest.raises(BundleError, match=r"scripts\.net\.Net is Python code .* --trust-code if you trust it"):
        imported_from(root)

    assert not (tmp_path / "trace").exists()


def test_trusted_code_runs_with_its_bundle_and_two_bundles_do_not_share_it(tmp_path: Path) -> None:
    before = list(sys.path)
    first = imported_bundle(write_scripted(tmp_path / "a", 1, tmp_path / "trace"), tmp_path / "first")
    second = imported_bundle(write_scripted(tmp_path / "b", 2, tmp_path / "trace"), tmp_path / "second")
    forget_opened()

    networks = [open_bundle(path, "cpu").network for path in (first, second)]

    assert [network.number for network in networks] == [1, 2]
    assert type(networks[0]) is not type(networks[1])
    assert (tmp_path / "trace").read_text() == "ran"
    assert sys.path == before
    assert "scripts" not in sys.modules
    assert not any(path.name == "__pycache__" for path in first.rglob("*"))


def test_trusted_code_is_listed_hashed_and_sealed(tmp_path: Path) -> None:
    bundle = imported_bundle(write_scripted(tmp_path / "a", 1, tmp_path / "trace"), tmp_path / "out")
    forget_opened()
    facts = json.loads((bundle / "configs" / "metadata.json").read_text())["imported_from"]

    assert facts["code"] == ["scripts/__init__.py", "scripts/net.py", "scripts/parts.py"]
    assert "scripts/net.py" in facts["files"]
    (bundle / "scripts" / "parts.py").write_text("class Layer:\n    number = 3\n")
    with pytest.raises(BundleError, match=r"scripts/parts\.py changed since the bundle was sealed"):
        open_bundle(bundle, "cpu")


def test_code_that_no_config_needs_is_not_taken(tmp_path: Path) -> None:
    root = write_zoo_bundle(tmp_path / "a")
    (root / "scripts").mkdir()
    (root / "scripts" / "__init__.py").write_text("raise RuntimeError('ran')\n")

    found = imported_from(root, trusts_code=True)

    assert found.origin["code"] == []
    assert "scripts/__init__.py" not in found.extra_files


@pytest.mark.parametrize("text", ["import scripts.b\nvalue = scripts.b.value", "from scripts.b import value"])
def test_all_ways_to_import_a_file_of_the_bundle_lead_to_its_own(text: str) -> None:
    package = admit_scripts({"scripts/a.py": text.encode(), "scripts/b.py": b"value = 7\n"})

    assert package.startswith(PREFIX)
    assert __import__(f"{package}.a", fromlist=["value"]).value == 7
    assert sys.modules[f"{package}.a"].__spec__.cached is None


def test_a_known_class_is_known_by_its_words_and_not_by_its_name(tmp_path: Path) -> None:
    merging: dict[str, Any] = {"_target_": "scripts.my.MergeClassesd", "keys": "pred"}
    steps = [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}, merging]
    root = write_zoo_bundle(tmp_path / "a", zoo_config(postprocessing={"_target_": "Compose", "transforms": steps}))
    (root / "scripts").mkdir()
    (root / "scripts" / "my.py").write_text("class MergeClassesd:\n    pass\n")

    with pytest.raises(BundleError, match=r"scripts\.my\.MergeClassesd is no step that can be translated"):
        imported_from(root, trusts_code=True)


def test_weights_are_built_as_the_trusted_code_says(tmp_path: Path) -> None:
    found = imported_from(write_scripted(tmp_path / "a", 1, tmp_path / "trace"), trusts_code=True)

    assert found.network_def["_target_"].startswith(PREFIX)
    assert all(isinstance(value, torch.Tensor) for value in found.state.values())
