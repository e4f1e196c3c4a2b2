"""The pass over a data set: numbers that are known, defects that were planted, and what is kept for the next time."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.manifest_files import write_document
from voxelgate.core.errors import ManifestError, OutputError, UsageError
from voxelgate.core.structures import StructureRange
from voxelgate.datasets.check_manifest import MOST_READERS
from voxelgate.datasets.manifest import Manifest, load_manifest
from voxelgate.datasets.page import facts_tables, write_facts_page
from voxelgate.datasets.survey import Fingerprint, _keep, _readers, survey
from voxelgate.training.planning import Budget, Device, plan
from voxelgate.training.planning.make_bundle import make_bundle

SHAPE = (20, 16, 12)
LABELS = {"0": "background", "1": "left gland", "2": "right gland", "3": "cord"}
CASES = 6
LPS = np.diag([-2.0, -2.0, 3.0, 1.0])
"""Voxels of 2 x 2 x 3 mm whose first axis runs to the left."""


def anatomy() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[13:17, 4:8, 4:8] = 1
    label[3:7, 4:8, 4:8] = 2
    label[9:11, 10:12, 2:10] = 3
    return label


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = LPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = voxels.astype(np.uint8) if voxels.dtype == np.int64 else voxels
    nib.save(nib.Nifti1Image(small, affine), path)


def image_of(label: np.ndarray, seed: int, offset: int = 0) -> np.ndarray:
    """Return HU: air, a body of 40 HU around 70 % of the volume, glands of 0 and a cord of 300."""
    rng = np.random.default_rng(seed)
    values = np.full(SHAPE, -1000.0)
    values[1:-1, 1:-1] = 40
    values = np.where(label == 3, 300, np.where(label > 0, 0, values)) + rng.normal(0, 2, SHAPE)
    return np.maximum(values.round() + offset, 0 if offset else -3000).astype(np.int16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with CT cases c0 to c5 and their manifest; the first axis of the files runs to the left."""
    rows = []
    for case in range(CASES):
        label = anatomy()
        save(tmp_path / "images" / f"c{case}.nii.gz", image_of(label, case))
        save(tmp_path / "labels" / f"c{case}.nii.gz", label)
        pair = {kind: f"{kind}s/c{case}.nii.gz" for kind in ("image", "label")}
        rows.append({**pair, "subject": f"s{case // 2}", "fold": case // 2 % 3})
    document = {"name": "glands", "licence": "CC0-1.0", "modality": {"0": "CT"}, "labels": LABELS, "training": rows}
    write_document(document, tmp_path / "manifest.json")
    return tmp_path


def facts_of(folder: Path) -> Fingerprint:
    return survey(load_manifest(folder / "manifest.json")).fingerprint


# --- numbers ------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_patient_s_axes(folder: Path) -> None:
    facts = facts_of(folder)
    assert facts.shape_vox == SHAPE
    assert facts.spacing_mm == (2.0, 2.0, 3.0)
    assert facts.foreground_vox == (14.0, 8.0, 8.0)
    assert facts.extent_range_mm[2] == (36.0, 36.0)
    assert (facts.cases, facts.subjects, facts.hu_offset) == (6, 3, 0.0)


def test_axes_in_another_order_give_the_same_facts(folder: Path) -> None:
    before = facts_of(folder)
    for kind in ("images", "labels"):
        path = folder / kind / "c1.nii.gz"
        image = nib.load(path)
        turned = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("SAR"))
        voxels = np.asanyarray(image.dataobj)
        again = image.as_reoriented(turned)
        assert again.shape != voxels.shape
        nib.save(again, path)
    assert facts_of(folder) == before


def test_structures_have_their_volumes_shares_and_values(folder: Path) -> None:
    left, right, cord = facts_of(folder).structures
    assert (left.name, left.cases, left.components) == ("left gland", CASES, 1.0)
    assert left.volume_ml == right.volume_ml == (0.768, 0.768, 0.768)
    assert (left.foreground_share, cord.foreground_share) == (0.4, 0.2)
    assert facts_of(folder).imbalance == 2.0
    assert cord.intensity[0][2] == pytest.approx(300, abs=2)


@pytest.mark.parametrize("offset", [1000, 1024])
def test_an_offset_of_ct_values_is_found(folder: Path, offset: int) -> None:
    for case in range(CASES):
        save(folder / "images" / f"c{case}.nii.gz", image_of(anatomy(), case, offset))
    assert facts_of(folder).hu_offset == offset


def test_cases_without_structures_do_not_shrink_the_box_around_them(folder: Path) -> None:
    before = facts_of(folder)
    for case in range(CASES - 2):
        save(folder / "labels" / f"c{case}.nii.gz", np.zeros(SHAPE, np.uint8))
    assert facts_of(folder).foreground_vox == before.foreground_vox


def test_images_with_and_without_an_offset_give_the_values_of_structures_on_one_scale(folder: Path) -> None:
    alone = facts_of(folder)
    for case in range(CASES - 1):
        save(folder / "images" / f"c{case}.nii.gz", image_of(anatomy(), case, 1024))
    mixed = facts_of(folder)
    assert mixed.hu_offset == 1024
    assert plan(mixed).intensity == replace(plan(alone).intensity, offset_hu=1024.0)
    cord = mixed.structures[2]
    assert cord.intensity[0][2] - 1024 == pytest.approx(300, abs=2)


def test_ct_that_was_cut_off_at_0_hu_is_not_taken_for_stored_with_an_offset(folder: Path) -> None:
    for case in range(CASES):
        save(folder / "images" / f"c{case}.nii.gz", np.maximum(image_of(anatomy(), case), 0))
    assert facts_of(folder).hu_offset == 0


def test_large_images_are_measured_one_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(folder / "manifest.json")
    assert _readers(manifest) == MOST_READERS
    monkeypatch.setattr("voxelgate.datasets.survey.MOST_VOXELS_AT_ONCE", 2 * np.prod(SHAPE) + 1)
    assert _readers(manifest) == 2
    monkeypatch.setattr("voxelgate.datasets.survey.MOST_VOXELS_AT_ONCE", 1)
    assert _readers(manifest) == 1


def test_processes_measure_what_threads_do(folder: Path) -> None:
    manifest = load_manifest(folder / "manifest.json")
    with ProcessPoolExecutor(1) as processes:
        assert survey(manifest, executor=processes) == survey(manifest)


def test_the_ranges_of_structures_are_those_by_which_results_are_judged(folder: Path) -> None:
    ranges = facts_of(folder).ranges
    assert ranges.keys() == {"left gland", "right gland", "cord"}
    known = {name: StructureRange.from_mapping(values) for name, values in ranges.items()}
    assert known["left gland"] == StructureRange((0.768, 0.768, 0.768), largest_ml=0.768)


# --- the cache ----------------------------------------------------------------------------------------------------


def test_what_was_measured_is_kept_by_content_and_measured_anew_when_a_file_changes(
    folder: Path, tmp_path: Path
) -> None:
    manifest, cache = load_manifest(folder / "manifest.json"), tmp_path / "cache"
    before = survey(manifest, cache=cache)
    kept = sorted(cache.iterdir())
    assert len(kept) == CASES
    record = json.loads(kept[0].read_text(encoding="utf-8"))
    kept[0].write_text(json.dumps(record | {"tissue": -77.0}), encoding="utf-8")
    again = survey(manifest, cache=cache)
    assert [one.tissue for one in again.facts].count(-77.0) == 1
    assert {one.case_id for one in again.facts} == {one.case_id for one in before.facts}
    for case in range(CASES):
        save(folder / "images" / f"c{case}.nii.gz", image_of(anatomy(), case) + 1)
    assert all(one.tissue != -77.0 for one in survey(manifest, cache=cache).facts)
    assert len(list(cache.iterdir())) == 2 * CASES


def test_a_damaged_record_is_measured_anew(folder: Path, tmp_path: Path) -> None:
    manifest, cache = load_manifest(folder / "manifest.json"), tmp_path / "cache"
    before = survey(manifest, cache=cache)
    for path in cache.iterdir():
        path.write_text("{", encoding="utf-8")
    assert survey(manifest, cache=cache) == before


def test_a_fault_of_files_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    manifest, cache = load_manifest(folder / "manifest.json"), tmp_path / "cache"
    moved = [folder / kind / f"c{case}.nii.gz" for kind in ("images", "labels") for case in (0, 1)]
    for path in moved:
        path.rename(path.with_suffix(".away"))
    found = survey(manifest, cache=cache).defects
    assert {defect.found.partition(":")[0] for defect in found if defect.case_id == "c1"} == {
        "images/c1.nii.gz",
        "labels/c1.nii.gz",
    }
    for path in moved:
        path.with_suffix(".away").rename(path)
    assert survey(manifest, cache=cache).defects == ()


def test_two_readers_may_keep_the_same_content_at_one_time(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "same.json"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda value: _keep(path, {"value": value}), range(400)))
    assert [file.name for file in path.parent.iterdir()] == ["same.json"]


# --- defects ------------------------------------------------------------------------------------------------------


def swap_sides(folder: Path) -> None:
    label = anatomy()
    save(folder / "labels" / "c0.nii.gz", np.choose(label, [0, 2, 1, 3]).astype(np.uint8))


def repeat(folder: Path) -> None:
    for kind in ("images", "labels"):
        (folder / kind / "c5.nii.gz").write_bytes((folder / kind / "c4.nii.gz").read_bytes())


def cut_off(folder: Path) -> None:
    path = folder / "images" / "c0.nii.gz"
    path.write_bytes(path.read_bytes()[:500])


def undeclare(folder: Path) -> None:
    save(folder / "labels" / "c0.nii.gz", anatomy() + 7 * (anatomy() == 3))


def stripe(folder: Path) -> None:
    label = anatomy()
    label[:, :, 3:9:2] *= label[:, :, 3:9:2] != 3
    save(folder / "labels" / "c0.nii.gz", label)


def break_up(folder: Path) -> None:
    label = anatomy()
    label[0:2, 0:3, 0:4] = 1
    save(folder / "labels" / "c0.nii.gz", label)


def empty(folder: Path) -> None:
    save(folder / "labels" / "c0.nii.gz", np.zeros(SHAPE, np.uint8))


def make_constant(folder: Path) -> None:
    save(folder / "images" / "c0.nii.gz", np.full(SHAPE, 7, np.int16))


def store_one_without_air(folder: Path) -> None:
    for case in range(1, CASES):
        save(folder / "images" / f"c{case}.nii.gz", image_of(anatomy(), case, 1024))
    save(folder / "images" / "c0.nii.gz", np.maximum(image_of(anatomy(), 0), -100))


def store_in_spite_of_padding(folder: Path) -> None:
    image = image_of(anatomy(), 0, 1024)
    image[:2] = -2000
    save(folder / "images" / "c0.nii.gz", image)


@pytest.mark.parametrize(
    ("plant", "found", "action"),
    [
        (make_constant, "images/c0.nii.gz: its values span 0, less than 20", "left out"),
        (store_one_without_air, "neither HU with air nor stored without a sign, as 5 others are", "left out"),
        (store_in_spite_of_padding, "as if 1024 were added to HU in spite of negative values", "kept"),
        (swap_sides, "left gland and right gland lie the other way round", "left out"),
        (repeat, "holds the same voxels as c4", "left out"),
        (cut_off, "ends too early", "left out"),
        (undeclare, "values 10 are not declared", "left out"),
        (stripe, "cord is striped", "kept"),
        (break_up, "left gland is in 2 pieces", "kept"),
        (empty, "has no structure at all", "kept"),
    ],
)
def test_a_planted_defect_is_named_with_what_was_done(
    folder: Path, plant: Callable[[Path], None], found: str, action: str
) -> None:
    plant(folder)
    result = survey(load_manifest(folder / "manifest.json"))
    (defect,) = result.defects
    assert found in defect.found
    assert defect.action.startswith(action)
    assert (defect.case_id in {case.case_id for case in result.manifest.cases}) == (action == "kept")
    assert result.fingerprint.cases == CASES - (action == "left out")


@pytest.mark.parametrize("swapped", [2, 3, CASES - 1, CASES])
def test_sides_that_are_wrong_in_many_cases_are_refused_and_never_learnt(folder: Path, swapped: int) -> None:
    for case in range(swapped):
        save(folder / "labels" / f"c{case}.nii.gz", np.choose(anatomy(), [0, 2, 1, 3]).astype(np.uint8))
    with pytest.raises(ManifestError, match=f"left gland lies to the right of right gland in {swapped} of 6 cases"):
        facts_of(folder)


def test_one_case_in_five_may_be_swapped(folder: Path) -> None:
    swap_sides(folder)
    for kind in ("images", "labels"):
        (folder / kind / "c5.nii.gz").unlink()
    defects = survey(load_manifest(folder / "manifest.json")).defects
    assert [(one.case_id, one.is_left_out) for one in defects] == [("c0", True), ("c5", True), ("c5", True)]


def test_mri_with_a_channel_of_one_value_is_left_out(folder: Path) -> None:
    text = (folder / "manifest.json").read_text(encoding="utf-8").replace('"CT"', '"MRI"')
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    image = np.zeros(SHAPE, np.int16)
    image[3:] = 9
    save(folder / "images" / "c0.nii.gz", image)
    (defect,) = survey(load_manifest(folder / "manifest.json")).defects
    assert "channel 0 of the image has no contrast" in defect.found
    assert defect.is_left_out


def test_a_data_set_without_any_structure_is_refused(folder: Path) -> None:
    for path in (folder / "labels").iterdir():
        save(path, np.zeros(SHAPE, np.uint8))
    with pytest.raises(ManifestError, match="glands: no case holds any structure"):
        facts_of(folder)


def test_a_fold_whose_cases_are_all_left_out_is_closed_up(folder: Path, tmp_path: Path) -> None:
    for case in (0, 1):
        (folder / "images" / f"c{case}.nii.gz").unlink()
    assert survey(load_manifest(folder / "manifest.json")).manifest.folds == (0, 1)
    made = make_bundle(folder / "manifest.json", tmp_path / "b", Budget(step_s=1.0))
    rest = load_manifest(made.manifest, folder)
    assert [(case.case_id, case.fold) for case in rest.cases] == [("c2", 0), ("c3", 0), ("c4", 1), ("c5", 1)]


def test_a_data_set_without_a_sound_case_is_refused_with_all_defects(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(ManifestError) as refusal:
        facts_of(folder)
    assert len(refusal.value.problems) == CASES


def test_a_bundle_for_a_data_set_with_defects_comes_with_a_manifest_of_the_rest(folder: Path, tmp_path: Path) -> None:
    swap_sides(folder)
    made = make_bundle(folder / "manifest.json", tmp_path / "b", Budget(step_s=1.0))
    assert made.manifest == tmp_path / "b_manifest.json"
    rest: Manifest = load_manifest(made.manifest, folder)
    assert [case.case_id for case in rest.cases] == [f"c{case}" for case in range(1, CASES)]


@pytest.mark.parametrize("is_sound", [True, False])
def test_folders_above_a_bundle_are_made_whether_or_not_a_case_is_left_out(folder: Path, is_sound: bool) -> None:
    if not is_sound:
        save(folder / "images" / "c0.nii.gz", np.full(SHAPE, 7, np.int16))
    made = make_bundle(folder / "manifest.json", folder / "new" / "1" / "bundle", Budget(step_s=0.1))
    assert (folder / "new" / "1" / "bundle" / "plan.json").is_file()
    assert load_manifest(made.manifest, folder).cases[0].case_id == ("c0" if is_sound else "c1")


def test_a_file_above_a_bundle_is_told_before_any_case_is_read(folder: Path) -> None:
    (folder / "images" / "c0.nii.gz").unlink()
    with pytest.raises(OutputError, match=r"manifest\.json: cannot be made"):
        make_bundle(folder / "manifest.json", folder / "manifest.json" / "bundle", Budget())


def test_a_sound_data_set_trains_on_its_own_manifest_and_its_steps_are_timed(folder: Path, tmp_path: Path) -> None:
    made = make_bundle(folder / "manifest.json", tmp_path / "b", Budget(minutes=5))
    assert made.manifest == folder / "manifest.json"
    assert made.plan.budget.step_s > 0
    assert "measured" in made.plan.reasons["training"]


def test_a_folder_that_is_there_is_refused_before_any_case_is_read(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(OutputError, match="exists already"):
        make_bundle(folder / "manifest.json", tmp_path, Budget())


def test_the_manifest_of_the_rest_is_never_written_over_and_no_bundle_is_left_without_it(
    folder: Path, tmp_path: Path
) -> None:
    swap_sides(folder)
    (tmp_path / "b_manifest.json").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="exists"):
        make_bundle(folder / "manifest.json", tmp_path / "b", Budget(step_s=1.0))
    assert not (tmp_path / "b").exists()


TOO_DEEP = {
    "patch_vox": [2, 2, 2],
    "strides": [[2, 2, 2]],
    "channels": [4, 8],
    "network": {"deep_supervision": 0},
}


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (TOO_DEEP, "shrinks to a single voxel"),
        ({"network": {"gate_fraction": 5}}, "gate_fraction lies above 0 and at most at 1, found 5"),
        ({"network": {"gates": 5}}, "unexpected keyword argument 'gates'"),
    ],
)
def test_a_plan_whose_network_cannot_be_trained_is_refused_with_a_sentence(
    folder: Path, tmp_path: Path, overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=rf"cannot be trained on its patches \(.*{reason}"):
        make_bundle(folder / "manifest.json", tmp_path / "b", Budget(minutes=1), overrides=overrides)
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is done without a GPU")
def test_steps_for_a_gpu_are_not_timed_on_a_processor(folder: Path, tmp_path: Path) -> None:
    made = make_bundle(folder / "manifest.json", tmp_path / "b", Budget(Device.GPU, memory_gb=16.0, minutes=5))
    assert made.plan.budget.step_s == 0
    assert "estimated" in made.plan.reasons["training"]


# --- shown --------------------------------------------------------------------------------------------------------


def test_tables_and_page_show_every_structure_and_defect(folder: Path, tmp_path: Path) -> None:
    swap_sides(folder)
    found = survey(load_manifest(folder / "manifest.json"))
    text = json.dumps([(table.title, table.rows) for table in facts_tables(found)])
    write_facts_page(found, tmp_path / "facts.html")
    page = (tmp_path / "facts.html").read_text(encoding="utf-8")
    for word in ("left gland", "right gland", "cord", "lie the other way round"):
        assert word in text
        assert word in page
    assert page.count("<svg") >= 3
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page


def test_the_page_escapes_what_the_manifest_says(folder: Path, tmp_path: Path) -> None:
    found = survey(load_manifest(folder / "manifest.json"))
    odd = replace(found, fingerprint=replace(found.fingerprint, name="<script>alert(1)</script>"))
    write_facts_page(odd, tmp_path / "facts.html")
    assert "<script>" not in (tmp_path / "facts.html").read_text(encoding="utf-8")
