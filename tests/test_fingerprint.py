"""The pass over a data set: numbers that are known, defects that were planted, and what is kept for the next time."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.errors import ManifestError
from pipeline.manifest import Manifest, load
from pipeline.manifest_build import write
from pipeline.planning import Budget, Fingerprint, survey
from pipeline.planning.make import make_bundle
from pipeline.planning.show import facts_tables, write_facts_page
from pipeline.structures import StructureRange

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
    write(document, tmp_path / "manifest.json")
    return tmp_path


def facts_of(folder: Path) -> Fingerprint:
    return survey(load(folder / "manifest.json")).fingerprint


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


def test_processes_measure_what_threads_do(folder: Path) -> None:
    manifest = load(folder / "manifest.json")
    with ProcessPoolExecutor(1) as processes:
        assert survey(manifest, executor=processes) == survey(manifest)


def test_the_ranges_of_structures_are_those_by_which_results_are_judged(folder: Path) -> None:
    ranges = facts_of(folder).ranges
    assert ranges.keys() == {"left gland", "right gland", "cord"}
    known = {name: StructureRange.from_mapping(values) for name, values in ranges.items()}
    assert known["left gland"] == StructureRange((0.768, 0.768, 0.768))


# --- the cache ----------------------------------------------------------------------------------------------------


def test_what_was_measured_is_kept_by_content_and_measured_anew_when_a_file_changes(
    folder: Path, tmp_path: Path
) -> None:
    manifest, cache = load(folder / "manifest.json"), tmp_path / "cache"
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
    manifest, cache = load(folder / "manifest.json"), tmp_path / "cache"
    before = survey(manifest, cache=cache)
    for path in cache.iterdir():
        path.write_text("{", encoding="utf-8")
    assert survey(manifest, cache=cache) == before


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


@pytest.mark.parametrize(
    ("plant", "found", "action"),
    [
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
    result = survey(load(folder / "manifest.json"))
    (defect,) = result.defects
    assert found in defect.found
    assert defect.action.startswith(action)
    assert (defect.case_id in {case.case_id for case in result.manifest.cases}) == (action == "kept")
    assert result.fingerprint.cases == CASES - (action == "left out")


def test_the_other_side_is_no_defect_where_cases_do_not_agree(folder: Path) -> None:
    for case in range(3):
        save(folder / "labels" / f"c{case}.nii.gz", np.choose(anatomy(), [0, 2, 1, 3]).astype(np.uint8))
    assert survey(load(folder / "manifest.json")).defects == ()


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
    rest: Manifest = load(made.manifest, folder)
    assert [case.case_id for case in rest.cases] == [f"c{case}" for case in range(1, CASES)]


def test_a_sound_data_set_trains_on_its_own_manifest_and_its_steps_are_timed(folder: Path, tmp_path: Path) -> None:
    made = make_bundle(folder / "manifest.json", tmp_path / "b", Budget(minutes=5))
    assert made.manifest == folder / "manifest.json"
    assert made.plan.budget.step_s > 0
    assert "measured" in made.plan.reasons["training"]


# --- shown --------------------------------------------------------------------------------------------------------


def test_tables_and_page_show_every_structure_and_defect(folder: Path, tmp_path: Path) -> None:
    swap_sides(folder)
    found = survey(load(folder / "manifest.json"))
    text = json.dumps([(table.title, table.rows) for table in facts_tables(found)])
    write_facts_page(found, tmp_path / "facts.html")
    page = (tmp_path / "facts.html").read_text(encoding="utf-8")
    for word in ("left gland", "right gland", "cord", "lie the other way round"):
        assert word in text
        assert word in page
    assert page.count("<svg") >= 3
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_page_escapes_what_the_manifest_says(folder: Path, tmp_path: Path) -> None:
    found = survey(load(folder / "manifest.json"))
    odd = replace(found, fingerprint=replace(found.fingerprint, name="<script>alert(1)</script>"))
    write_facts_page(odd, tmp_path / "facts.html")
    assert "<script>" not in (tmp_path / "facts.html").read_text(encoding="utf-8")
