"""Cascades, ensembles and postprocessing against nnU-Net itself: no voxel differs."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

pytest.importorskip("nnunetv2", reason="needs nnU-Net, in the environment that `make import-test` builds")

from nnunetv2.ensembling.ensemble import average_probabilities
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from tests.imports.imported_bundles import imported_bundle
from tests.imports.nnunet_folders import CASCADE, FLAT, FULL, LOW, Folder, Kind, make_folder, make_images, predict
from voxelgate.bundle.predict import Bundle
from voxelgate.transforms.components import KeepComponentsd

pytestmark = pytest.mark.peers

REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}
CASES = ("small", "thick", "oblique")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ...]]:
    return make_images(tmp_path_factory.mktemp("images"))


def told(bundle: Bundle, path: Path) -> np.ndarray:
    """Return the probabilities of all structures, (C, k, j, i) as nnU-Net has them, without the background."""
    prepared, grid, _ = bundle._read_and_prepare(path, ())
    found = bundle.predict(prepared, grid, probabilities=True).probabilities
    return np.stack([found[name].T for name in bundle.labels.foreground.values()])


def averaged(folder: Folder, parts: Sequence[np.ndarray], scratch: Path) -> np.ndarray:
    """Return what `nnUNetv2_ensemble` makes of the probabilities (C, k, j, i) of several configurations."""
    paths = [scratch / f"{number}.npz" for number in range(len(parts))]
    for path, probabilities in zip(paths, parts, strict=True):
        np.savez_compressed(path, probabilities=probabilities)
    plans = PlansManager(str(folder.of(FULL) / "plans.json"))
    with contextlib.redirect_stdout(io.StringIO()):
        manager = plans.get_label_manager(_json(folder.of(FULL) / "dataset.json"))
    return np.asarray(manager.convert_probabilities_to_segmentation(average_probabilities(list(map(str, paths)))))


def _json(path: Path) -> dict[str, object]:
    import json  # noqa: PLC0415

    return dict(json.loads(path.read_text(encoding="utf-8")))


def _masked(plans: dict[str, dict[str, dict[str, object]]]) -> None:
    plans["configurations"][FULL]["use_mask_for_norm"] = [True]


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        (Kind((LOW, CASCADE), folds=(0, 1), mirroring=(1,)), CASES),
        (Kind((LOW, CASCADE), change=_masked, mirroring=None), ("small", "zero_border")),
    ],
    ids=["folds", "mask"],
)
def test_a_cascade_gives_the_labels_of_nnunets_two_stages(
    kind: Kind, cases: tuple[str, ...], images: dict[str, tuple[Path, ...]], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "results", kind)
    bundle = imported_bundle(folder.path, tmp_path / "bundle", configurations=(CASCADE,))

    for case in cases:
        first = predict(folder.of(LOW), images[case])
        expected = predict(folder.of(CASCADE), images[case], previous=first)
        np.testing.assert_array_equal(bundle.segment(images[case][0]).labels.T, expected, err_msg=case)
    _, said = predict(folder.of(CASCADE), images[case], previous=first, probabilities=True)
    np.testing.assert_allclose(told(bundle, images[case][0]), said[1:], atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        Kind((LOW, FULL, FLAT), mirroring=(1,)),
        Kind((LOW, FULL), labels=REGIONS, regions_order=(1, 2), mirroring=None),
    ],
    ids=["classes", "regions"],
)
def test_an_ensemble_gives_the_labels_of_nnunets_own(
    kind: Kind, images: dict[str, tuple[Path, ...]], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "results", kind)
    bundle = imported_bundle(folder.path, tmp_path / "bundle", configurations=kind.configurations)

    for case in CASES:
        said = [predict(folder.of(name), images[case], probabilities=True)[1] for name in kind.configurations]
        np.testing.assert_array_equal(
            bundle.segment(images[case][0]).labels.T, averaged(folder, said, tmp_path), err_msg=case
        )
    by_label = [0, 1] if kind.regions_order else [1, 2]
    np.testing.assert_allclose(told(bundle, images[case][0]), (sum(said) / len(said))[by_label], atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("groups", [[[1, 2, 3]], [[1], [2, 3]], [[3], [1, 2, 3]]])
def test_postprocessing_gives_the_labels_of_nnunets_own(seed: int, groups: list[list[int]]) -> None:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((9, 8, 11)) < 0.1 + 0.05 * seed, rng.integers(1, 4, (9, 8, 11)), 0).astype(np.uint8)

    found = KeepComponentsd("pred", groups)({"pred": MetaTensor(torch.from_numpy(labels)[None])})["pred"][0].numpy()

    expected = labels.T
    for group in groups:
        expected = remove_all_but_largest_component_from_segmentation(expected, list(group))
    np.testing.assert_array_equal(found.T, expected)
