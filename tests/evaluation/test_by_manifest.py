"""Label maps measured against those of a manifest, whose values and ignored voxels count."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Run
from tests.datasets.test_label_values import SHAPE, save, write_cases
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import IGNORED, LabelTable
from voxelgate.evaluation.scores import score

TABLE = LabelTable(("background", "box"))


@pytest.fixture
def folder(tmp_path: Path, run: Run) -> Path:
    """Return a folder with cases of the values 200 and 210 and a corner of 255, and predictions 1 and 2."""

    def edit(_: int, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        label = label * 200
        label[8:] = 210
        label[:, :, 6:] = 255
        return image, label

    write_cases(tmp_path / "data", edit)
    for case in range(4):
        prediction = np.zeros(SHAPE, np.uint8)
        prediction[2:6, 2:6, 2:7] = 1
        prediction[8:] = 2
        save(tmp_path / "found" / f"c{case}.nii.gz", prediction)
    made = run("manifest", "data", "--modality", "MRI", "--labels", "210=b,200=a", "--ignore", "255")
    assert made.returncode == 0, made.stderr
    return tmp_path


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_values_of_the_files_are_numbered_and_ignored_voxels_count_in_neither(folder: Path, run: Run) -> None:
    result = run("evaluate", "found", "data/manifest.json", "--csv", "new/scores.csv")
    assert result.returncode == 0, result.stderr
    rows = table(folder / "new/scores.csv")
    assert [(row["case_id"], row["label"]) for row in rows[:2]] == [("c0", "a"), ("c0", "b")]
    assert {(row["dice"], row["mssd_mm"]) for row in rows} == {("1", "0")}
    assert rows[0]["volume_ml"] == rows[0]["reference_ml"] == "0.064"


def test_a_fold_of_a_manifest_needs_its_cases_only(folder: Path, run: Run) -> None:
    for case in (1, 2, 3):
        (folder / f"found/c{case}.nii.gz").rename(folder / f"c{case}.nii.gz")
    assert "c1.nii.gz has no prediction" in run("evaluate", "found", "data/manifest.json").stderr
    manifest = (folder / "data/manifest.json").read_text(encoding="utf-8")
    fold = next(line for line in manifest.splitlines() if "images/c0" in line).split('"fold": ')[1][0]
    assert run("evaluate", "found", "data/manifest.json", "--fold", fold).returncode == 0
    assert "goes with a manifest" in run("evaluate", "found", "found", "--fold", fold).stderr


@pytest.mark.usefixtures("folder")
def test_without_a_manifest_ignored_voxels_are_no_structure_by_silence(run: Run) -> None:
    result = run("evaluate", "found", "data/labels", "--labels-from", "hippocampus_mri_segmentation")
    assert "holds the value 200, 210, 255, which has no name" in result.stderr.replace("\n", " ")


def test_the_border_of_what_is_ignored_is_no_surface() -> None:
    truth = np.zeros((9, 9, 9), np.int16)
    truth[2:7, 2:7, 2:7] = 1
    truth[5:] = IGNORED
    shifted = np.zeros((9, 9, 9), np.int16)
    shifted[2:, 3:8, 2:7] = 1  # what lies where nobody labelled counts for nothing
    (found,) = score(shifted, truth, Grid(truth.shape, np.eye(4)), TABLE, "case")
    assert found.dice == pytest.approx(0.8)
    assert found.mssd_mm == 1.0
    assert found.volume_ml == found.reference_ml == pytest.approx(0.075)


@pytest.mark.parametrize("name", ["=cmd|' C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\uff1d1+1"])
def test_a_case_called_like_a_formula_is_text_in_the_table(tmp_path: Path, run: Run, name: str) -> None:
    for kind in ("found", "true"):
        save(tmp_path / kind / f"{name}.nii.gz", np.ones(SHAPE, np.uint8))
    assert run("evaluate", "found", "true", "--csv", "s.csv").returncode == 0
    assert table(tmp_path / "s.csv")[0]["case_id"] == f"'{name}"


def test_numbers_below_0_stay_numbers(tmp_path: Path, run: Run) -> None:
    for kind, end in (("found", 3), ("true", 6)):
        voxels = np.zeros(SHAPE, np.uint8)
        voxels[1:end, 1:4, 1:4] = 1
        save(tmp_path / kind / "-5.nii.gz", voxels)
    assert run("evaluate", "found", "true", "--csv", "s.csv").returncode == 0
    (row,) = table(tmp_path / "s.csv")
    assert (row["case_id"], row["difference_ml"]) == ("-5", "-0.027")
