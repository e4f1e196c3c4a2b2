"""What a cross-validation teaches a bundle of the quality of its results, and where that counts."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.test_resume import FOLDS, SETTINGS, tiny_plan, write_cases
from voxelgate.bundle.checksums import QUALITY, seal
from voxelgate.bundle.opened import forget_opened, open_bundle
from voxelgate.core.errors import BundleError
from voxelgate.core.verdict import NOT_CALIBRATED
from voxelgate.datasets.manifest import load_manifest
from voxelgate.evaluation.predicted_dice import QualityModel
from voxelgate.inference.pass_options import PassOptions
from voxelgate.segmentation.batch.case_table import write_tables
from voxelgate.segmentation.batch.run_batch import segment
from voxelgate.training.cross_validation import train_folds
from voxelgate.training.planning import make_bundle
from voxelgate.training.quality import FEWEST_SUBJECTS, quality_rows
from voxelgate.training.train import TrainingJob, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    folder = tmp_path_factory.mktemp("quality")
    manifest = write_cases(folder / "data", cases=FEWEST_SUBJECTS)
    make_bundle.write_bundle(tiny_plan(manifest), folder / "bundle")
    made = TrainingJob(folder / "bundle", manifest, folder / "folds", overrides=SETTINGS | {"epochs": 1})
    train_folds(made, FOLDS)
    return made


def test_a_cross_validation_leaves_what_it_learnt_in_the_sealed_bundle(job: TrainingJob) -> None:
    assert QualityModel.from_json(job.out / QUALITY).cases == FEWEST_SUBJECTS
    assert open_bundle(job.out, "cpu").quality is not None


def test_results_tell_the_foretold_dice_in_report_and_table(job: TrainingJob, tmp_path: Path) -> None:
    image = load_manifest(job.manifest).cases[0].image

    (report,) = segment(job.out, str(image), tmp_path / "out", device="cpu", workers="serial", require="any")

    write_tables(tmp_path / "out")
    assert report.quality is not None
    foretold = report.quality.structures["ball"]
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    told = [row[name] for name in ("predicted dice", "ball dice", "ball dice low", "ball dice high")]
    assert told == [f"{value:.3f}" for value in (foretold.value, foretold.value, foretold.low, foretold.high)]


def test_a_bundle_without_cross_validation_says_that_it_is_not_calibrated(job: TrainingJob, tmp_path: Path) -> None:
    alone = train(replace(job, out=tmp_path / "alone"))
    image = load_manifest(job.manifest).cases[0].image

    list(segment(alone, str(image), tmp_path / "out", device="cpu", workers="serial", require="any"))

    write_tables(tmp_path / "out")
    assert not (alone / QUALITY).exists()
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8") as file:
        assert [row["predicted dice"] for row in csv.DictReader(file)] == [NOT_CALIBRATED]


def test_a_bundle_that_is_asked_to_run_otherwise_foretells_nothing(job: TrainingJob) -> None:
    bundle = open_bundle(job.out, "cpu")

    assert bundle.adjusted(PassOptions(mirroring=False)).quality is None
    assert open_bundle(job.out, "cpu", ensemble=True).quality is None
    forget_opened()


def test_another_training_does_not_inherit_what_was_learnt(job: TrainingJob, tmp_path: Path) -> None:
    again = train(TrainingJob(job.out, job.manifest, tmp_path / "again", overrides=SETTINGS | {"epochs": 1}))

    assert not (again / QUALITY).exists()


def test_what_cannot_foretell_is_named_and_refused(job: TrainingJob, tmp_path: Path) -> None:
    broken = shutil.copytree(job.out, tmp_path / "broken")
    (broken / QUALITY).write_text("{}\n", encoding="utf-8")
    seal(broken)

    with pytest.raises(BundleError, match=r"quality\.json does not say how good results are"):
        open_bundle(broken, "cpu")


def test_rows_come_of_each_case_and_of_its_damaged_copies(job: TrainingJob) -> None:
    manifest = load_manifest(job.manifest)
    cases = manifest.cases[:2]

    rows = list(quality_rows(open_bundle(job.out, "cpu"), manifest, cases, copies=1))

    assert [(row.case_id, row.damage) for row in rows] == [
        (cases[0].case_id, ""),
        (cases[0].case_id, "noise"),
        (cases[1].case_id, ""),
        (cases[1].case_id, "spacing"),
    ]
    forget_opened()
