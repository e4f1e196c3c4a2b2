"""Bundles of TotalSegmentator's kind of weights against its own pipeline: no voxel differs.

The networks are small and untrained, with its true numbers of classes; its own weights were not at hand.
"""

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

pytest.importorskip(
    "totalsegmentator", reason="needs TotalSegmentator, in the environment that `make import-test` builds"
)

from totalsegmentator.map_tasks_config import DEFAULT_CONFIG, TASK_CONFIGS, TASK_ID_WEIGHTS_CONFIGS
from totalsegmentator.map_to_binary import class_map
from totalsegmentator.postprocessing import remove_small_blobs_multilabel

from tests.imports.imported_bundles import imported_bundle
from tests.imports.totalseg_folders import make_scans, make_weights, pointed_at, structures_of, their_labels
from voxelgate.bundle.imports.totalsegmentator_tasks import FOLDERS, OPEN_LICENCE, TASKS
from voxelgate.bundle.predict import Bundle
from voxelgate.core.labels import LabelTable
from voxelgate.inference.composed import parts_inferer

pytestmark = pytest.mark.peers

PARTS = (291, 292, 293, 294, 295)
HEAD = 775


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_sets = {number: structures_of(number) for number in (*PARTS, 298)}
    data_sets[HEAD] = class_map["head_glands_cavities"]
    return make_weights(tmp_path_factory.mktemp("weights") / "results", data_sets, {HEAD: [1.0, 0.75, 0.75]})


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def total(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return imported_bundle(weights, tmp_path_factory.mktemp("bundles") / "total", task="total")


@pytest.fixture(autouse=True)
def pointed(weights: Path, tmp_path: Path) -> Iterator[None]:
    """Point TotalSegmentator at the weights, with as many threads of PyTorch as it takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(multiprocessing.cpu_count())
    with pointed_at(weights, tmp_path / "home"):
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["LPS", "oblique", "as wanted"])
def test_the_whole_body_has_the_labels_of_totalsegmentator(name: str, total: Bundle, scans: dict[str, Path]) -> None:
    expected = their_labels(scans[name])

    np.testing.assert_array_equal(total.segment(scans[name]).labels, expected)
    assert len(np.unique(expected)) > 20
    assert total.labels.foreground == class_map["total"]


def test_a_subset_of_structures_has_the_labels_of_totalsegmentator(total: Bundle, scans: dict[str, Path]) -> None:
    names = total.labels.foreground
    found_roughly = np.bincount(their_labels(scans["oblique"], fastest=True).ravel(), minlength=2)[1:]
    most, absent = 1 + int(found_roughly.argmax()), 1 + int(found_roughly.argmin())

    for values in ([most, absent], [absent]):
        subset = replace(total, inferer=total.inferer.restricted_to(values))  # type: ignore[attr-defined]
        expected = their_labels(scans["oblique"], roi_subset=[names[value] for value in values])
        np.testing.assert_array_equal(subset.segment(scans["oblique"]).labels, expected)
    assert not expected.any()


def test_a_task_that_looks_where_a_rough_model_points_has_the_labels_of_totalsegmentator(
    weights: Path, scans: dict[str, Path], tmp_path: Path
) -> None:
    bundle = imported_bundle(weights, tmp_path / "head", task="head_glands_cavities")

    for name in ("LPS", "turned"):
        expected = their_labels(scans[name], task="head_glands_cavities")
        np.testing.assert_array_equal(bundle.segment(scans[name]).labels, expected)


def test_a_volume_in_three_parts_has_the_labels_of_totalsegmentator(
    total: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = np.random.default_rng(5).normal(300, 250, (14, 12, 66)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.6, 1.6, 1.5, 1.0])), tmp_path / "long.nii.gz")
    monkeypatch.setattr(parts_inferer, "SPLIT_SLICES", 0)
    monkeypatch.setattr(total.inferer.inner.inferer, "split_above_vox", 0)  # type: ignore[attr-defined]

    found = total.segment(tmp_path / "long.nii.gz")

    np.testing.assert_array_equal(found.labels, their_labels(tmp_path / "long.nii.gz", force_split=True))


def test_what_is_known_of_every_task_is_what_totalsegmentator_does() -> None:
    known = set()
    for task, config in TASK_CONFIGS.items():
        for mode, changes in (config.get("sub_modes") or {"default": config}).items():
            name = task if mode == "default" else f"{task}_{mode}"
            if name in TASKS:
                check_task(name, task, {**DEFAULT_CONFIG, **changes}, is_closed=config.get("commercial", False))
                known.add(name)

    assert known == TASKS.keys()


def check_task(name: str, task: str, config: dict[str, object], *, is_closed: bool) -> None:
    known = TASKS[name]
    numbers = config["task_id"] if isinstance(config["task_id"], list) else [config["task_id"]]
    spacing = config["resample"]
    assert known.data_sets == tuple(numbers), name
    assert known.spacing_mm == (() if spacing is None else tuple(np.broadcast_to(spacing, 3).tolist())), name
    assert known.has_all_folds == (config["folds"] != [0]), name
    assert known.auxiliary == tuple(class_map.get(f"{task}_auxiliary", ())), name
    assert known.is_overlapping_less == (task in {"total", "total_v3", "total_mr"}), name
    assert (known.licence != OPEN_LICENCE) == is_closed, name
    assert {TASK_ID_WEIGHTS_CONFIGS[number]["foldername"] for number in numbers} <= FOLDERS, name
    assert known.refused or not (config["cascade"] or config["remove_outside"]), name
    if not task.startswith("total") and not known.refused:
        assert (known.crop.around if known.crop else None) == (
            tuple(config["crop"]) if config["crop"] else None  # type: ignore[arg-type]
        ), name
        assert known.crop is None or known.crop.by == rough_task(task, config), name


def rough_task(task: str, config: dict[str, object]) -> str:
    """Return the task by which TotalSegmentator crops, as `python_api.totalsegmentator` chooses it."""
    if config["crop_model"]:
        return str(config["crop_model"])
    if "body_trunc" in config["crop"]:  # type: ignore[operator]
        return "body_fast"
    if task.endswith("_mr"):
        return "total_mr_fast"
    return "total_fast" if config["robust_crop"] else "total_fastest"


def test_small_blobs_are_those_of_totalsegmentator() -> None:
    labels = (np.random.default_rng(0).random((14, 13, 12)) > 0.6).astype(np.uint8)
    from monai.data import MetaTensor  # noqa: PLC0415

    from voxelgate.transforms.components import KeepComponentsd  # noqa: PLC0415

    image = MetaTensor(torch.from_numpy(labels.copy())[None], affine=torch.diag(torch.tensor([1.5, 1.5, 1.5, 1.0])))

    found = KeepComponentsd("pred", [[1]], above_mm3=10.0)({"pred": image})["pred"][0].numpy()

    table = LabelTable(("background", "blob")).foreground
    volume = np.prod(np.array([1.5] * 3, np.float32))
    expected = remove_small_blobs_multilabel(labels.copy(), table, ["blob"], [10.0 / volume, 1e10], quiet=True)
    np.testing.assert_array_equal(found, expected)
