"""MONAI bundles whose configs and metadata are made to run code, reach out, or never end: each ends in a sentence."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.imports.zoo_bundles import (
    INVERSE,
    NETWORK,
    PREPROCESSING,
    SIGMOID,
    THRESHOLD,
    compose,
    imported_from,
    write_zoo_bundle,
    zoo_config,
    zoo_metadata,
)
from voxelgate.bundle.imports import source as sources
from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.imports.target import refuse_taken
from voxelgate.bundle.imports.zoo import read_zoo
from voxelgate.bundle.imports.zoo_networks import network_of
from voxelgate.bundle.imports.zoo_scripts import Scripts
from voxelgate.core.errors import BundleError, InputError, OutputError

DEBUGGED = {"_target_": "NormalizeIntensityd", "keys": "image", "_mode_": "debug"}
GROWING = {**{f"a{n}": [f"@a{n + 1}"] * 10 for n in range(9)}, "a9": [1] * 10}
CHAINED = {**{f"a{n}": f"@a{n + 1}" for n in range(3000)}, "a3000": 1}
HUGE_VALUE = "$lambda x: torch.where(x[[0]] > 0, 1000000000, torch.where(x[[1]] > 0, 1, 0))"
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"preprocessing": compose([*PREPROCESSING, DEBUGGED])}, "asked for _mode_"),
        ({"network_def": {**NETWORK, "_mode_": "callable"}}, "asked for _mode_"),
        ({**GROWING, "network_def": {**NETWORK, "dropout": "@a0"}}, "more than 200000 parts"),
        ({**CHAINED, "network_def": {**NETWORK, "dropout": "@a0"}}, "over more than 100 steps"),
        ({"network_def": {**NETWORK, "dropout": "@a" + "#0" * 5000}}, "over more than 100 steps"),
        ({"network_def": {**NETWORK, "num_res_units": 10**7}}, "far more layers than the file has weights"),
        ({"network_def": {**NETWORK, "out_channels": 10**9}}, "values above 65535"),
        (
            {
                "postprocessing": compose(
                    [SIGMOID, INVERSE, THRESHOLD, {"_target_": "Lambdad", "keys": "pred", "func": HUGE_VALUE}]
                )
            },
            "values above 65535",
        ),
        ({"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [10**9] * 3}}, "voxels at a time"),
    ],
)
def test_configs_that_run_a_debugger_or_never_end_are_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    root = write_zoo_bundle(tmp_path / "bundle", zoo_config(**changes))

    with pytest.raises(BundleError, match=reason):
        imported_from(root)

    assert torch.is_grad_enabled()  # layers switch gradients off while they begin, and were ended in that


@pytest.mark.parametrize(
    ("text", "reason"),
    [(MERGES, "merges objects with <<"), ("a: 1" + ":1" * 300_000, "a number has 600001 digits")],
)
def test_yaml_that_grows_while_it_is_read_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    root = write_zoo_bundle(tmp_path / "bundle", text, name="inference.yaml")

    with pytest.raises(BundleError, match=reason):
        imported_from(root)


def test_an_inferer_that_imports_or_writes_what_it_is_told_is_no_component_here(tmp_path: Path) -> None:
    inferer = {"_target_": "PatchInferer", "merger_cls": "ZarrAvgMerger", "store": str(tmp_path / "written")}
    root = write_zoo_bundle(tmp_path / "bundle", zoo_config(inferer=inferer))

    with pytest.raises(BundleError, match="PatchInferer is no component of MONAI that may be named"):
        imported_from(root, is_faithful=True)


def test_no_network_downloads_weights_while_it_is_built() -> None:
    stated = {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 3, "out_channels": 3, "pretrained": True}

    network, _, _ = network_of(stated, "inference.json", Scripts({}))

    assert network["pretrained"] is False


@pytest.mark.parametrize(
    "changes", [{"description": "$print(1)"}, {"version": "%other.json::x"}, {"authors": [{"_target_": "os.system"}]}]
)
def test_metadata_that_a_parser_of_configs_would_run_are_not_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    root = write_zoo_bundle(tmp_path / "bundle", metadata={**zoo_metadata(), **changes})

    with opened_source(root) as source, pytest.raises(InputError, match="bundle: "):
        write_imported(tmp_path / "out", read_zoo(source, ImportOptions()), source)
    assert not (tmp_path / "out").exists()


def test_texts_larger_than_any_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_zoo_bundle(tmp_path / "bundle")
    monkeypatch.setattr(sources, "LARGEST_TEXT_BYTES", 2**5)

    with pytest.raises(InputError, match="is larger than any such text"):
        imported_from(root)


def test_a_file_in_the_bundle_that_would_be_replaced_is_kept(tmp_path: Path) -> None:
    root = write_zoo_bundle(tmp_path / "bundle")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root)).replace(root / "packed.zip")

    with opened_source(archive) as source, pytest.raises(OutputError, match="lies in what is imported, or holds it"):
        refuse_taken(root, source, overwrite=True)


def test_a_disk_that_is_full_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    root = write_zoo_bundle(tmp_path / "bundle")
    monkeypatch.setattr(torch, "save", full)
    with opened_source(root) as source:
        imported = read_zoo(source, ImportOptions())
        with pytest.raises(OutputError, match="the disk takes no more"):
            write_imported(tmp_path / "out", imported, source)
    assert [one.name for one in tmp_path.iterdir()] == ["bundle"]
