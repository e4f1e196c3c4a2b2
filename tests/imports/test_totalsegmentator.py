"""Folders of TotalSegmentator's weights as bundles: which task they are, and how its networks are chained."""

from pathlib import Path
from typing import Any

import pytest

from tests.imports.totalseg_files import EVERY, PARTS, ROUGH, write_weights
from voxelgate.bundle.imports.imported import Imported, ImportOptions
from voxelgate.bundle.imports.readers import read_model
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.imports.totalsegmentator import is_totalsegmentator, read_totalsegmentator
from voxelgate.bundle.imports.totalsegmentator_tasks import CLOSED_LICENCE, FOLDERS, TASKS
from voxelgate.core.errors import BundleError, InputError, UsageError


def imported(path: Path, **options: Any) -> Imported:
    with opened_source(path) as source:
        assert is_totalsegmentator(source)
        return read_totalsegmentator(source, ImportOptions(**options))


def test_five_parts_become_one_bundle_of_five_networks(tmp_path: Path) -> None:
    found = imported(write_weights(tmp_path / "results"))

    assert found.name == "totalsegmentator_total"
    assert found.labels.names == ("background", *EVERY)
    assert found.preparation == [{"_target_": "voxelgate.CanonicalZoomd", "keys": "image", "spacing_mm": [1.5] * 3}]
    assert found.inferer["_target_"] == "voxelgate.PartsInferer"
    assert found.inferer["split_above_vox"] == 512 * 512 * 900
    parts = found.inferer["parts"]
    assert [part["networks"] for part in parts] == [[0], [1], [2], [3], [4]]
    assert [part["labels"] for part in parts] == [[0, 1, 2, 3], [0, 4, 5], [0, 6, 7], [0, 8], [0, 9, 10]]
    assert {part["inferer"]["step_size"] for part in parts} == {0.8}
    assert [part["inferer"]["mirror_axes"] for part in parts] == [[]] * 5
    assert len(found.network_def["modules"]) == 5
    assert found.licence == "Apache-2.0"
    assert len(found.source_files) == 15
    assert found.labels.find_coding(1).type.meaning == "Spleen"  # type: ignore[union-attr]
    assert any("data set 298 beside" in finding for finding in found.findings)


def test_with_the_rough_model_beside_single_structures_are_looked_for_where_it_finds_them(tmp_path: Path) -> None:
    found = imported(write_weights(tmp_path / "results", PARTS | ROUGH))

    assert found.inferer["_target_"] == "voxelgate.CroppedInferer"
    assert found.inferer["labels"] is None
    assert found.inferer["rough"]["networks"] == [0]
    assert found.inferer["rough"]["preprocessing"]["spacing_mm"] == [6.0] * 3
    assert found.inferer["inner"]["networks"] == [1, 2, 3, 4, 5]
    assert [part["networks"] for part in found.inferer["inner"]["inferer"]["parts"]] == [[0], [1], [2], [3], [4]]
    assert found.preparation == []


def test_of_several_tasks_the_whole_body_is_taken_and_others_can_be_named(tmp_path: Path) -> None:
    root = write_weights(tmp_path / "results", PARTS | ROUGH)

    fast = imported(root, task="total_fast")

    assert imported(root).name == "totalsegmentator_total"
    assert fast.name == "totalsegmentator_total_fast"
    assert fast.labels.names == ("background", *EVERY)
    assert fast.inferer["inner"]["preprocessing"]["spacing_mm"] == [3.0] * 3
    assert "labels" not in fast.inferer["inner"]["inferer"]["parts"][0]


def test_one_data_set_alone_is_a_task(tmp_path: Path) -> None:
    root = write_weights(tmp_path / "results", {297: ROUGH[297]})

    for path in (root, root / ROUGH[297][0]):
        found = imported(path)

        assert found.name == "totalsegmentator_total_fast"
        assert found.network_def["_target_"] == "voxelgate.PlainConvUNet"
        assert found.preparation[0]["spacing_mm"] == [3.0] * 3


def test_a_task_with_a_crop_takes_the_rough_model_and_the_labels_around_which_it_looks(tmp_path: Path) -> None:
    name = "Dataset775_head_glands_cavities_492subj"
    root = write_weights(tmp_path / "results", ROUGH | {775: (name, ("eye_left", "eye_right"))})

    found = imported(root, task="head_glands_cavities")

    assert found.labels.names == ("background", "eye_left", "eye_right")
    assert found.inferer["labels"] == [1 + EVERY.index("skull")]
    assert found.inferer["margin_mm"] == [20.0] * 3
    inner = found.inferer["inner"]
    assert inner["preprocessing"]["spacing_mm"] == [0.75, 0.75, 1.0]
    assert inner["inferer"]["parts"][0]["inferer"]["step_size"] == 0.5
    assert found.inferer["rough"]["inferer"]["parts"][0]["inferer"]["step_size"] == 0.8


def test_a_task_whose_rough_model_is_missing_is_refused(tmp_path: Path) -> None:
    name = "Dataset775_head_glands_cavities_492subj"
    root = write_weights(tmp_path / "results", {775: (name, ("eye_left",))})

    with pytest.raises(InputError, match=r"data set 298 \(task total_fastest\), which finds where to look, is missing"):
        imported(root)


def test_a_rough_model_that_does_not_know_the_structure_is_refused(tmp_path: Path) -> None:
    rough = {298: (ROUGH[298][0], ("spleen",))}
    root = write_weights(tmp_path / "r", rough | {775: ("Dataset775_head_glands_cavities_492subj", ("eye_left",))})

    with pytest.raises(BundleError, match="which finds where to look, knows no skull"):
        imported(root, task="head_glands_cavities")


def test_labels_that_the_task_drops_become_background(tmp_path: Path) -> None:
    structures = ("patella", "tibia", "fibula", "tarsal", *(f"bone {n}" for n in range(7)), "humerus", "femur")
    name = "Dataset304_appendicular_bones_ext_1559subj"
    root = write_weights(tmp_path / "results", {304: (name, (*structures, "liver", "spleen"))})

    found = imported(root)

    assert found.labels.names[1:] == structures[:11]
    assert found.inferer["parts"][0]["labels"] == [*range(12), 0, 0, 0, 0]
    assert found.licence == CLOSED_LICENCE


def test_the_body_is_cleaned_as_totalsegmentator_cleans_it(tmp_path: Path) -> None:
    root = write_weights(tmp_path / "results", {299: ("Dataset299_body_1559subj", ("body_trunc", "body_extremities"))})

    steps = imported(root).inferer["cleaning"]["transforms"]

    assert [step["_target_"] for step in steps] == ["KeepLargestConnectedComponentd", "voxelgate.KeepComponentsd"]


def test_postprocessing_drops_small_pieces_of_what_is_looked_for_but_not_of_the_rough_model(tmp_path: Path) -> None:
    root = write_weights(tmp_path / "results", {297: ROUGH[297], 298: ROUGH[298]})

    found = imported(root, task="total_fast", applies_postprocessing=True).inferer

    (step,) = found["inner"]["inferer"]["cleaning"]["transforms"]
    assert (step["groups"], step["above_mm3"]) == ([[value] for value in range(1, 11)], 200.0)
    assert "cleaning" not in found["rough"]["inferer"]


def test_only_the_first_fold_is_taken_unless_the_task_takes_all(tmp_path: Path) -> None:
    effusion = ("Dataset315_thoraxCT", ("lung_pleural",))
    lungs = {298: (ROUGH[298][0], ("lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right",
                                   "lung_middle_lobe_right", "lung_lower_lobe_right"))}  # fmt: skip
    root = write_weights(tmp_path / "results", {**lungs, 315: effusion}, folds=(0, 1))

    found = imported(root, task="pleural_pericard_effusion")

    assert found.inferer["rough"]["networks"] == [0]
    assert found.inferer["inner"]["networks"] == [1, 2]


@pytest.mark.parametrize(
    ("data_sets", "options", "error", "said"),
    [
        ({291: PARTS[291]}, {}, InputError, "holds data sets 291, but all of no task"),
        ({291: PARTS[291]}, {"task": "total"}, InputError, "needs the folders of data sets 292, 293, 294, 295"),
        (ROUGH, {"task": "heart"}, UsageError, "--task heart: is no task of TotalSegmentator known here"),
        (ROUGH, {}, UsageError, "holds the networks of total_fast, total_fastest; say which with --task"),
        (
            {803: ("Dataset803_TotalSegmentator_vertebrae_inner_1559subj", ("vertebrae_C1",))},
            {},
            BundleError,
            "cannot be imported, since it relabels vertebrae",
        ),
        (PARTS | {295: (PARTS[295][0], ("spleen", "x"))}, {}, BundleError, "label names must be unique"),
    ],
)
def test_what_is_no_task_is_refused(
    tmp_path: Path, data_sets: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    root = write_weights(tmp_path / "results", data_sets)

    with pytest.raises(error, match=said):
        imported(root, **options)


@pytest.mark.parametrize("task", ["total", "unknown"])
def test_a_task_of_a_folder_that_is_none_of_totalsegmentator_is_refused(tmp_path: Path, task: str) -> None:
    root = write_weights(tmp_path / "results", {1: ("Dataset001_Blobs", ("blob",))})

    with (
        opened_source(root) as source,
        pytest.raises(UsageError, match=f"^--task {task}: results holds no weights of TotalSegmentator; .*leave out"),
    ):
        read_model(source, ImportOptions(task=task))


def test_the_configuration_with_the_usual_plans_is_taken_of_several(tmp_path: Path) -> None:
    root = write_weights(tmp_path / "results", {297: ROUGH[297]})
    write_weights(root, {297: ROUGH[297]}, trained="nnUNetTrainer__nnUNetResEncUNetLPlans__3d_fullres")

    assert "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres" in imported(root).source_files[0]

    write_weights(root, {297: ROUGH[297]}, trained="nnUNetTrainer__nnUNetPlans__3d_fullres")
    with pytest.raises(UsageError, match="say which configuration is meant"):
        imported(root)


def test_every_task_has_folders_by_which_it_is_known() -> None:
    numbers = {int(name[7:10]) for name in FOLDERS}

    assert {number for task in TASKS.values() for number in task.data_sets} == numbers
    assert len(numbers) == len(FOLDERS)
    assert {task.crop.by for task in TASKS.values() if task.crop is not None} <= TASKS.keys()
