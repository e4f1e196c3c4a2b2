"""Training of all folds: every case is scored by a network that has not seen it, and the folds become one bundle."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.training.test_resume import FOLDS, tiny_job
from voxelgate.bundle.checksums import WEIGHTS, seal, verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.opened import forget_opened, open_bundle
from voxelgate.core.errors import BundleError, OutputError, UsageError
from voxelgate.core.workers import executor_named
from voxelgate.datasets.manifest import load_manifest
from voxelgate.images.volumes import read_channels, read_volume
from voxelgate.segmentation.batch.run_batch import segment
from voxelgate.segmentation.report import CaseStatus
from voxelgate.training.class_offsets import Offsets
from voxelgate.training.cleaning import choose_cleaning
from voxelgate.training.configs.bundle_files import rewrite_bundle, write_bundle
from voxelgate.training.cross_validation import (
    FINAL,
    FOLD_SCORES,
    CrossValidation,
    _final_settings,
    _mean_dice,
    _train_fold,
    train_folds,
)
from voxelgate.training.ending import Ending, write_plan
from voxelgate.training.pages.folds_page import FOLDS_PAGE
from voxelgate.training.planning import Cleaning, Plan
from voxelgate.training.schedule import Schedule
from voxelgate.training.seen import read_seen
from voxelgate.training.train import TRAINING, TrainingJob, evaluate_fold
from voxelgate.transforms.io import as_image


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    return tiny_job(tmp_path_factory.mktemp("folds"))


@pytest.fixture(scope="module")
def done(job: TrainingJob) -> CrossValidation:
    return train_folds(job, FOLDS)


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


def are_equal(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_page_shows_every_case_with_its_outlines(done: CrossValidation) -> None:
    text = (done.bundle / TRAINING / FOLDS_PAGE).read_text(encoding="utf-8")
    assert text.count("<article") == len(done.scores)
    assert "not drawn" not in text


def test_every_case_is_scored_once_by_the_network_of_its_fold(done: CrossValidation, job: TrainingJob) -> None:
    assert sorted(score.case_id for score in done.scores) == sorted(
        case.case_id for case in load_manifest(job.manifest).cases
    )
    assert len(done.mean_dice) == FOLDS
    with (done.bundle / TRAINING / FOLD_SCORES).open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(done.scores)


def shifted(path: Path, plan: Plan) -> dict[str, torch.Tensor]:
    """Return weights with the offsets of a plan added in the head."""
    offsets = torch.tensor(plan.class_offsets or [0.0] * len(plan.labels))
    return {name: value + offsets if name == "heads.0.bias" else value for name, value in weights(path).items()}


def test_the_bundle_holds_the_folds_and_as_its_own_weights_those_trained_on_all_cases(
    done: CrossValidation, job: TrainingJob
) -> None:
    verify(done.bundle)
    plan = Plan.from_json(done.bundle / "plan.json")
    own, final = weights(done.bundle / WEIGHTS), shifted(done.bundle / TRAINING / FINAL / WEIGHTS, plan)
    assert all(torch.equal(own[name], final[name]) for name in own)
    assert len(read_seen(done.bundle).images) == len(load_manifest(job.manifest).cases)
    first, fold = weights(done.bundle / "models" / "fold_0.pt"), done.bundle / TRAINING / "fold_0" / WEIGHTS
    assert all(torch.equal(first[name], value) for name, value in shifted(fold, plan).items())
    assert not are_equal(done.bundle / "models" / "fold_0.pt", done.bundle / "models" / "fold_1.pt")
    plan = Plan.from_json(done.bundle / "plan.json")
    assert plan.cleaning == choose_cleaning(done.trials)
    assert "not seen" in plan.reasons["cleaning"]
    assert "mean volumes" in plan.reasons["class_offsets"]


def test_without_a_last_training_the_bundle_has_the_weights_of_the_best_fold(
    done: CrossValidation, job: TrainingJob, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done.bundle, tmp_path / "out"))
    again = train_folds(replace(job, out=out, resume=True), FOLDS, final_minutes=0)
    best = int(np.argmax(again.mean_dice))
    assert are_equal(out / WEIGHTS, out / "models" / f"fold_{best}.pt")


def test_the_bundle_says_the_mean_dice_of_its_folds(done: CrossValidation) -> None:
    known = Metadata.read(done.bundle).expected

    assert known is not None
    assert known.validation_dice == pytest.approx(sum(done.mean_dice) / len(done.mean_dice), abs=1e-4)


def test_the_last_training_takes_the_part_of_the_schedule_that_validated_best_or_the_minutes_that_were_asked_for(
    job: TrainingJob, tmp_path: Path
) -> None:
    plan = Plan.from_json(job.bundle / "plan.json")
    timed = replace(plan, training=replace(plan.training, epochs=10, minutes=30.0))
    write_bundle(timed, tmp_path / "bundle")
    asked = replace(job, bundle=tmp_path / "bundle")
    half, whole = Schedule(0.5, "half"), Schedule(1.0, "whole")
    settings = _final_settings(asked, half, None)
    assert (settings["epochs"], settings["minutes"]) == (5, 15.0)
    assert {"epochs", "minutes"}.isdisjoint(_final_settings(asked, whole, None))
    assert _final_settings(asked, whole, 60.0)["minutes"] == 60.0
    assert "minutes" not in _final_settings(replace(asked, overrides={"epochs": 4}), half, None)


def test_an_ensemble_averages_the_probabilities_of_the_folds(done: CrossValidation, job: TrainingJob) -> None:
    opened = open_bundle(done.bundle, "cpu", ensemble=True)
    assert opened.fingerprint != open_bundle(done.bundle, "cpu").fingerprint
    image = opened.preprocessing({"image": as_image(*read_channels(load_manifest(job.manifest).cases[0].image))})[
        "image"
    ][None]
    asked = opened.inferer
    asked.probabilities_of = (1,)  # type: ignore[attr-defined]  # the inferer of the plan
    networks = list(opened.network)  # type: ignore[call-overload]  # a ModuleList
    together = asked(image, opened.network)
    alone = [asked(image, network) for network in networks]
    assert torch.allclose(together, sum(alone) / FOLDS, atol=1e-5)
    forget_opened()


def test_segmenting_with_the_ensemble_gives_its_labels(done: CrossValidation, job: TrainingJob, tmp_path: Path) -> None:
    image = load_manifest(job.manifest).cases[0].image

    (report,) = segment(
        done.bundle, str(image), tmp_path / "out", device="cpu", ensemble=True, workers="serial", require="any"
    )

    assert report.status is CaseStatus.DONE, report.findings
    opened = open_bundle(done.bundle, "cpu", ensemble=True)
    assert report.bundle_sha256 == opened.fingerprint
    prepared = opened.preprocessing({"image": as_image(*read_channels(image))})["image"][None]
    expected = opened.cleaning(opened.inferer(prepared, opened.network))[0, 0].numpy()
    np.testing.assert_array_equal(read_volume(report.outputs["nifti"])[0], expected)


def test_an_ensemble_of_a_bundle_without_folds_is_refused(done: CrossValidation, tmp_path: Path) -> None:
    single = Path(shutil.copytree(done.bundle / TRAINING / "fold_0", tmp_path / "single"))
    with pytest.raises(BundleError, match=r"has no models/fold_\*\.pt to average"):
        open_bundle(single, ensemble=True)


def test_a_cross_validation_that_is_there_is_refused_and_resumed_without_training_finished_folds(
    done: CrossValidation, job: TrainingJob, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="exists already"):
        train_folds(job, FOLDS)
    out = Path(shutil.copytree(done.bundle, tmp_path / "out"))
    before = weights(out / "models" / "fold_1.pt")
    kept = out / TRAINING / "fold_0" / TRAINING / "state.pt"
    touched = kept.stat().st_mtime_ns
    (out / TRAINING / "fold_1" / "checksums.json").unlink()
    again = train_folds(replace(job, out=out, resume=True), FOLDS)
    assert kept.stat().st_mtime_ns == touched
    after = weights(out / "models" / "fold_1.pt")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.mean_dice == done.mean_dice


def test_another_number_of_folds_is_dealt_by_subject(job: TrainingJob, tmp_path: Path) -> None:
    out = tmp_path / "three"
    quick = {"epochs": 1, "steps_per_epoch": 1, "warmup_steps": 1}
    found = train_folds(replace(job, out=out, overrides={**(job.overrides or {}), **quick}), 3)
    cases = load_manifest(job.manifest).cases
    assert len(found.mean_dice) == 3
    assert sorted(score.case_id for score in found.scores) == sorted(case.case_id for case in cases)
    assert sum(len(read_seen(out / TRAINING / f"fold_{fold}").images) for fold in range(3)) == 2 * len(cases)


def test_more_folds_than_subjects_are_refused_before_anything_is_made(job: TrainingJob, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="99 folds asked for, but there are 5 subjects"):
        train_folds(replace(job, out=tmp_path / "out"), 99)
    assert not (tmp_path / "out").exists()


def test_configs_that_were_changed_by_hand_are_left_alone(
    done: CrossValidation, job: TrainingJob, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(job.bundle, tmp_path / "bundle"))
    config = bundle / "configs" / "inference.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"overlap": 0.25', '"overlap": 0.5'), encoding="utf-8")
    seal(bundle)
    out = Path(shutil.copytree(done.bundle, tmp_path / "out"))
    shutil.copyfile(config, out / "configs" / "inference.json")
    seal(out)
    train_folds(replace(job, bundle=bundle, out=out, resume=True), FOLDS)
    assert (out / "configs" / "inference.json").read_bytes() == config.read_bytes()


def test_a_fold_that_has_seen_what_shall_validate_it_is_refused(
    done: CrossValidation, job: TrainingJob, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done.bundle, tmp_path / "out"))
    document = json.loads(job.manifest.read_text(encoding="utf-8"))
    document["training"] = [row | {"fold": 1 - row["fold"]} for row in document["training"]]
    other = tmp_path / "manifest.json"
    other.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match=r"fold_0 was trained on \d of the \d cases that shall validate it"):
        train_folds(replace(job, out=out, manifest=other, data_root=job.manifest.parent, resume=True), FOLDS)


def test_cleaning_that_a_bundle_brings_along_is_tried_anew_on_what_the_network_gives(
    done: CrossValidation, job: TrainingJob, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    plain = Path(shutil.copytree(done.bundle / TRAINING / "fold_0", tmp_path / "plain"))
    noise = {
        name: values if "running" in name or not values.is_floating_point() else torch.randn_like(values)
        for name, values in weights(plain / WEIGHTS).items()
    }
    torch.save(noise, plain / WEIGHTS)
    seal(plain)
    cleaning = Path(shutil.copytree(plain, tmp_path / "cleaning"))
    rewrite_bundle(replace(Plan.from_json(cleaning / "plan.json"), cleaning=Cleaning(keep_largest=(1,))), cleaning)
    seal(cleaning)
    as_it_is, found = (_train_fold(replace(job, out=fold, fold=0)) for fold in (plain, cleaning))
    assert (found.held_out.scores, found.held_out.trials) == (as_it_is.held_out.scores, as_it_is.held_out.trials)
    assert evaluate_fold(cleaning, job.manifest, tmp_path / "scores", fold=0) != list(found.held_out.scores)


def test_what_people_add_to_metadata_and_licences_outlives_the_cleaning(done: CrossValidation, tmp_path: Path) -> None:
    root = Path(shutil.copytree(done.bundle, tmp_path / "bundle"))
    metadata = root / "configs" / "metadata.json"
    content = json.loads(metadata.read_text(encoding="utf-8")) | {"label_codes": {"1": "mine"}, "authors": "me"}
    metadata.write_text(json.dumps(content), encoding="utf-8")
    (root / "LICENSE").write_text("mine", encoding="utf-8")
    ending = Ending(Cleaning(keep_largest=(1,)), Offsets())
    write_plan(ending.on(Plan.from_json(root / "plan.json")), root)
    assert json.loads(metadata.read_text(encoding="utf-8")) == content
    assert (root / "LICENSE").read_text(encoding="utf-8") == "mine"
    assert "KeepLargest" in (root / "configs" / "inference.json").read_text(encoding="utf-8")


def test_the_dice_of_a_fold_is_a_mean_over_subjects(done: CrossValidation) -> None:
    scores = [replace(done.scores[0], case_id=case, dice=dice) for case, dice in (("a", 0.4), ("b", 0.6), ("c", 0.9))]
    assert _mean_dice(scores, {"a": "one", "b": "one", "c": "other"}) == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["", "serial:2", "processes", "processes:0", "processes:-1", "dask:", "slurm:4"])
def test_an_engine_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="expected serial, processes:N or dask:ADDRESS"), executor_named(name):
        pass


@pytest.mark.slow
def test_folds_side_by_side_in_processes_score_the_same_cases(
    job: TrainingJob, done: CrossValidation, tmp_path: Path
) -> None:
    with executor_named("processes:2") as processes:
        beside = train_folds(replace(job, out=tmp_path / "beside"), FOLDS, executor=processes, devices=["cpu"])
    assert [score.case_id for score in beside.scores] == [score.case_id for score in done.scores]
    assert beside.mean_dice == pytest.approx(done.mean_dice, abs=0.02)


def test_cleaning_is_part_of_what_a_bundle_gives(done: CrossValidation, tmp_path: Path) -> None:
    root = Path(shutil.copytree(done.bundle, tmp_path / "cleaned"))
    rewrite_bundle(replace(Plan.from_json(root / "plan.json"), cleaning=Cleaning(keep_largest=(1,))), root)
    seal(root)
    labels = MetaTensor(torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8))
    labels[..., :3, :3, :3] = labels[..., 7, 7, 7] = 1
    kept = open_bundle(root, "cpu").cleaning(labels)
    assert (kept.shape, kept.dtype, int(kept.sum())) == (labels.shape, labels.dtype, 27)
