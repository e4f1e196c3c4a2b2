"""Imported nnU-Net folders against nnU-Net's own predictor on the same files: every voxel."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nnunetv2", reason="needs nnU-Net, in the environment that `make import-test` builds")

from tests.imports.nnunet_folders import Folder, kinds, make_folder, make_images, predict
from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.nnunet import read_nnunet
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.predict import Bundle

pytestmark = pytest.mark.peers

STEPS = 30
"""Of training: labels are more than noise then, and undecided enough to show a difference."""

ALL = ("isotropic", "fine", "thick", "oblique", "flipped", "turned", "small", "zero_border")

CASES = {
    "no_mirroring": ALL,
    "anisotropic_ct": ALL,
    "batch_norm": ("fine", "zero_border"),
    "plain": ("small", "flipped"),
    "residual": ("small",),
    "two_d": ("thick", "small"),
    "regions_ignore": ("small", "zero_border"),
    "two_channels": ("oblique",),
    "folds": ("thick",),
    "transposed": ("small", "turned"),
    "old_plans": ("small",),
    "inherits": ("fine",),
}
"""Every kind of folder meets some kinds of images, and those that run fastest all of them."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, tuple[Path, ...]]]:
    root = tmp_path_factory.mktemp("images")
    return {channels: make_images(root / str(channels), channels) for channels in (1, 2)}


def bundle_of(folder: Path, out: Path, **options: object) -> Bundle:
    with opened_source(folder) as source:
        write_imported(out, read_nnunet(source, ImportOptions(**options)), source)
    return open_bundle(out, device="cpu")


def differing(bundle: Bundle, folder: Folder, files: tuple[Path, ...], **asked: object) -> int:
    """Return how many voxels differ, and make sure that there is something to find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nnU-Net
        expected = predict(folder.of(), files, **asked).transpose(2, 1, 0)
    found = bundle.segment(files).labels
    assert found.shape == expected.shape
    assert len(np.unique(expected)) > 1
    return int(np.count_nonzero(found != expected))


@pytest.mark.parametrize("kind", CASES)
def test_an_imported_folder_gives_the_labels_of_nnunet(
    kind: str, images: dict[int, dict[str, tuple[Path, ...]]], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "results", kind, steps=STEPS)
    bundle = bundle_of(folder.path, tmp_path / "bundle")
    files = images[len(folder.kind.channels)]

    assert {case: differing(bundle, folder, files[case]) for case in CASES[kind]} == dict.fromkeys(CASES[kind], 0)


def test_every_kind_of_folder_but_cascades_is_tried() -> None:
    assert set(CASES) == set(kinds()) - {"cascade"}


def test_the_labels_are_equal_with_another_number_of_threads(
    images: dict[int, dict[str, tuple[Path, ...]]], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "results", "no_mirroring", steps=STEPS)
    bundle = bundle_of(folder.path, tmp_path / "bundle")
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        assert differing(bundle, folder, images[1]["oblique"]) == 0
    finally:
        torch.set_num_threads(before)


def test_chosen_folds_are_those_of_nnunet(images: dict[int, dict[str, tuple[Path, ...]]], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "results", "folds", steps=STEPS)

    for number, folds in enumerate([("1",), ("all",), ("1", "0")]):
        bundle = bundle_of(folder.path, tmp_path / f"bundle_{number}", folds=folds)
        assert differing(bundle, folder, images[1]["small"], folds=folds) == 0
