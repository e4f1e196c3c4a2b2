"""Imported zoo bundles segment: the labels of the bundle's own chain, on the grid of the image."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from tests.imports.zoo_bundles import (
    ARGMAX,
    INVERSE,
    NETWORK,
    PREPROCESSING,
    SAVE,
    SIGMOID,
    THRESHOLD,
    compose,
    write_zoo_bundle,
    zoo_config,
    zoo_metadata,
)
from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.imports.zoo import read_zoo
from voxelgate.bundle.opened import forget_opened, open_bundle

BRATS = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
MERGED = {"_target_": "Lambdad", "keys": "pred", "func": BRATS}
LARGEST = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1, 2]}
CROP = {"_target_": "CropForegroundd", "keys": "@image_key", "source_key": "@image_key", "margin": 1}
RESIZED = {"_target_": "Resized", "keys": "@image_key", "spatial_size": [16, 16, 16], "mode": "area"}
UNSPACED = [step for step in PREPROCESSING if step["_target_"] != "Spacingd"]
CHAINS: dict[str, dict[str, Any]] = {
    "probabilities back": {},
    "labels back": {"postprocessing": compose([ARGMAX, LARGEST, INVERSE | {"nearest_interp": True}, SAVE])},
    "regions": {"postprocessing": compose([SIGMOID, INVERSE, THRESHOLD, MERGED, SAVE])},
    "cropped": {"preprocessing": compose([*PREPROCESSING, CROP])},
    "resized": {"inferer": {"_target_": "SimpleInferer"}, "preprocessing": compose([*UNSPACED, RESIZED])},
}
AFFINES = {
    "isotropic": np.diag([1.5, 1.5, 1.5, 1]),
    "anisotropic, turned": np.array([[0, -1.1, 0, 30], [1.2, 0, 0, -9], [0, 0, 3.5, 4], [0, 0, 0, 1.0]]),
    "oblique": np.array([[-1.3, 0.4, 0, 3], [0.4, 1.3, 0.3, -9], [0, -0.3, 2.4, 4], [0, 0, 0, 1.0]]),
}


@pytest.fixture(params=AFFINES)
def scan(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the path of an image of noise in HU."""
    voxels = np.random.default_rng(1).normal(40, 60, (24, 20, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, AFFINES[request.param]), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def stock_labels(root: Path, scan: Path) -> np.ndarray:
    """Return what MONAI's own components give, as the bundle's config puts them together."""
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    parser.update({"bundle_root": str(root), "device": "$torch.device('cpu')"})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    before, inferer = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("inferer")
    case = before({"image": str(scan)})
    with torch.no_grad():
        case["pred"] = inferer(case["image"][None], network)[0]
    after = parser.get_parsed_content("postprocessing")
    for step in after.transforms[:-1]:
        case = step(case)
    return case["pred"][0].numpy().astype(int)


def ours(root: Path, out: Path, *, faithful: bool = False) -> Any:
    forget_opened()
    with opened_source(root) as source:
        write_imported(out, read_zoo(source, ImportOptions(is_faithful=faithful)), source)
    return open_bundle(out, "cpu")


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("faithful", [False, True])
def test_an_imported_bundle_gives_the_labels_of_its_own_chain(
    chain: str, faithful: bool, scan: Path, tmp_path: Path
) -> None:
    names = {"0": "core", "1": "whole", "2": "enhancing"} if chain == "regions" else {"0": "background", "1": "liver"}
    root = write_zoo_bundle(tmp_path / "organs", zoo_config(**CHAINS[chain]), zoo_metadata(channel_def=names))

    bundle = ours(root, tmp_path / "bundle", faithful=faithful)
    found = bundle.segment(scan)

    wanted = stock_labels(root, scan)
    assert found.labels.shape == nib.load(scan).shape
    assert len(np.unique(wanted)) > 1
    assert np.array_equal(found.labels, wanted)
    assert set(np.unique(found.labels)) <= set(map(int, bundle.labels.to_mapping()))


def test_regions_of_several_channels_are_found_with_their_own_values(tmp_path: Path) -> None:
    network = NETWORK | {"in_channels": 4}
    metadata = zoo_metadata(channel_def={"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"})
    image = {"modality": "MR", "num_channels": 4, "channel_def": {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"}}
    metadata["network_data_format"]["inputs"]["image"] = image
    normalised = {"_target_": "NormalizeIntensityd", "keys": "@image_key", "nonzero": True, "channel_wise": True}
    config = zoo_config(
        network_def=network,
        preprocessing=compose([PREPROCESSING[0], normalised]),
        postprocessing=compose([SIGMOID, INVERSE, THRESHOLD, MERGED, SAVE]),
    )
    root = write_zoo_bundle(tmp_path / "brats", config, metadata)
    parser = ConfigParser({"it": network})
    torch.save(parser.get_parsed_content("it").state_dict(), root / "models" / "model.pt")
    files = [tmp_path / f"case_{number:04d}.nii.gz" for number in range(4)]
    for number, file in enumerate(files):
        voxels = np.random.default_rng(number).normal(100, 30, (20, 18, 16)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), file)

    bundle = ours(root, tmp_path / "bundle")
    found = bundle.segment(files)

    assert bundle.image_spec.channels == ("T1c", "T1", "T2", "FLAIR")
    assert bundle.series_rule.modality == ("MR",)
    assert bundle.labels.foreground == {1: "Tumor core", 2: "Whole tumor", 4: "Enhancing tumor"}
    assert sorted(found.volumes_ml) == ["Enhancing tumor", "Tumor core", "Whole tumor"]
    values = set(np.unique(found.labels))
    assert len(values) > 1
    assert values <= {0, 1, 2, 4}
