"""Train all folds of a cross-validation, find out what helps, and end with one network trained on all cases."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import chain
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from voxelgate.bundle.checksums import WEIGHTS, is_sealed, seal, verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.workflow import read_configs
from voxelgate.core.errors import UsageError
from voxelgate.core.files import copy_file, locked
from voxelgate.core.progress import Progress
from voxelgate.datasets.build_manifest import write_manifest
from voxelgate.datasets.manifest import ALL_FOLDS, Manifest, Split, load_manifest, part_cases
from voxelgate.evaluation.scores import LabelScores, Measure
from voxelgate.evaluation.table import MEAN_OVER_LABELS, summarise, without_name, without_names, write_csv
from voxelgate.training.class_offsets import LOST_DICE, Offsets
from voxelgate.training.cleaning import CleaningTrial
from voxelgate.training.ending import Ending, choose_ending, planned, with_offsets, write_plan
from voxelgate.training.held_out import HeldOut, score_as_planned, try_endings
from voxelgate.training.pages.case_drawing import CaseDrawing
from voxelgate.training.pages.drawing_handler import DRAWINGS_NAME, read_drawings
from voxelgate.training.pages.folds_page import FOLDS_PAGE, CrossValidationFacts, write_folds_page
from voxelgate.training.planning.plan import Cleaning, Plan
from voxelgate.training.quality import write_quality
from voxelgate.training.schedule import SELDOM, Schedule, chosen_schedule, validations_of
from voxelgate.training.seen import SEEN, read_seen
from voxelgate.training.train import (
    TRAINING,
    TrainingJob,
    epochs_done,
    prepare_folder,
    refuse_other_labels,
    refuse_settings,
    refuse_without_training,
    settings_of,
    train,
    write_measure,
)

logger = logging.getLogger(__name__)

FOLD_MANIFEST = "manifest.json"
"""File in the training folder with the folds, where the manifest that was given has others; gone when all is done."""

FOLD_SCORES = "cross_validation.csv"
"""File in the training folder with the scores of every case by a network that has not seen it, as the bundle runs it.

The offsets of the classes are those that the other folds chose, so that no case helped to choose its own."""

UNENDED_SCORES = "cross_validation_as_trained.csv"
"""The same before cleaning and offsets."""

FINAL = "final"
"""Folder in the training folder of the network that is trained on all cases."""


@dataclass(frozen=True)
class CrossValidation:
    """What came of training every fold.

    Args:
        bundle: the folder: the weights of every fold, and as its own those of a network that was trained on all cases,
            or of the best fold.
        scores: of every case by the network of its fold, which has not seen it; with cleaning and offsets.
        trials: what cleaning would do to what the networks give.
        mean_dice: of each fold, over its subjects and the labels; NaN if its cases hold no structure.
        as_trained: the scores before cleaning and offsets.

    >>> found = vg.CrossValidation(Path("trained"), scores=(), trials=(), mean_dice=(0.88, 0.9))
    >>> max(found.mean_dice)
    0.9
    """

    bundle: Path
    scores: tuple[LabelScores, ...]
    trials: tuple[CleaningTrial, ...]
    mean_dice: tuple[float, ...]
    as_trained: tuple[LabelScores, ...] = ()


def train_folds(
    job: TrainingJob,
    folds: int,
    *,
    executor: Executor | None = None,
    devices: Sequence[str] = (),
    progress: Progress | None = None,
    final_minutes: float | None = None,
) -> CrossValidation:
    """Train every fold, find out what helps, and train the network that ships on all cases.

    Folds lie in `out/training/fold_0` and so on, the last network in `out/training/final`. With `resume`, finished ones
    are kept and the others taken up. The folds are those of the manifest if it has as many, else its subjects are dealt
    anew. Cleaning and offsets of the classes are chosen on all cases, each as the network that has not seen it gives
    it; the last network is trained as long as validated best on average.

    Args:
        job: what to train; its `fold` does not count.
        folds: how many; at least 2.
        executor: trains folds side by side, in processes or on Dask workers; one after the other in this process if
            None.
        devices: where fold 0, 1, ... run, in turn, such as `cuda:0`; the bundle's own choice if empty.
        progress: told how many of how many cases are checked, anew for each fold.
        final_minutes: that the training on all cases takes; as one of a fold if None. With 0 there is none, and the
            weights of the best fold are those of the bundle.

    Raises:
        ManifestError: the manifest or its files are wrong; lists all problems.
        UsageError: fewer subjects than folds, or labels or settings that do not fit the bundle.
        OutputError: `out` exists, and `resume` was not asked for.

    >>> made = vg.plan(vg.survey(vg.load_manifest("data/manifest.json")).fingerprint, vg.Budget(minutes=1))
    >>> vg.write_bundle(made, Path("quick_bundle"))
    >>> quick = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 1, "precision": "float32"}
    >>> job = vg.TrainingJob(Path("quick_bundle"), Path("data/manifest.json"), Path("quick_folds"), overrides=quick)
    >>> len(vg.train_folds(job, 2).mean_dice)
    2
    """
    verify(job.bundle)
    refuse_without_training(job.bundle)
    manifest = load_manifest(job.manifest, job.data_root)
    refuse_other_labels(Metadata.read(job.bundle).labels.names, manifest)
    refuse_settings(job, settings_of(job) | ({"minutes": final_minutes} if final_minutes else {}))
    dealt = None if manifest.folds == tuple(range(folds)) else manifest.with_folds(folds)
    prepare_folder(job)
    with locked(job.out):
        rooted = replace(job, data_root=(job.data_root or job.manifest.parent).resolve())
        jobs = _fold_jobs(replace(rooted, manifest=_kept(dealt, job)), folds, devices)
        done = (_train_fold(one, progress) for one in jobs) if executor is None else executor.map(_train_fold, jobs)
        folds_done = list(done)
        ending, scores = _ended(folds_done, jobs, executor)
        final = None if final_minutes == 0 else _train_final(jobs[0], folds_done, final_minutes, progress)
        result = _put_together(job.out, folds_done, final, _Ended(ending, scores))
        write_quality(job.out, dealt or manifest, folds, progress)
        seal(job.out)
        return result


def devices_here() -> list[str]:
    """Return the GPUs of this machine as PyTorch names them; none means that the bundle chooses."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


@dataclass(frozen=True, eq=False)
class _FoldResult:
    bundle: Path
    held_out: HeldOut
    subject_of: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class _Ended:
    ending: Ending
    scores: Sequence[tuple[LabelScores, ...]]


def _kept(dealt: Manifest | None, job: TrainingJob) -> Path:
    """Write a manifest with other folds into the training folder; return the one to train on."""
    if dealt is None:
        return job.manifest
    path = job.out / TRAINING / FOLD_MANIFEST
    path.parent.mkdir(exist_ok=True)
    write_manifest(dealt, path, overwrite=True)
    return path


def _fold_jobs(job: TrainingJob, folds: int, devices: Sequence[str]) -> list[TrainingJob]:
    jobs = []
    for fold in range(folds):
        where = {"device": f"$torch.device({devices[fold % len(devices)]!r})"} if devices else {}
        out = job.out / TRAINING / f"fold_{fold}"
        jobs.append(replace(job, out=out, fold=fold, overrides=dict(job.overrides or {}) | where))
    return jobs


def _train_fold(job: TrainingJob, progress: Progress | None = None) -> _FoldResult:
    """Train one fold unless it is done, and see what its network gives for the cases that it has not seen."""
    manifest = load_manifest(job.manifest, job.data_root)
    cases = part_cases(manifest, job.fold, Split.VALIDATION)
    if not is_sealed(job.out) or epochs_done(job.out) < (job.overrides or {}).get("epochs", 0):
        train(replace(job, resume=job.out.exists()), progress=progress, is_whole=False)
    if seen := read_seen(job.out).count(manifest, cases, {}):
        raise UsageError(
            f"{job.out.name} was trained on {seen} of the {len(cases)} cases that shall validate it, or on others of "
            "their subjects: the manifest is not the one it was trained with; train all folds anew into another folder"
        )
    subject_of = {case.case_id: case.subject for case in cases}
    return _FoldResult(job.out, try_endings(job.out, _settings_here(job)), subject_of)


def _settings_here(job: TrainingJob) -> dict[str, object]:
    """Return the settings of a run over the cases that a fold has not seen, which are drawn, too."""
    draw = {"_target_": "voxelgate.DrawCases", "path": str(job.out / TRAINING / DRAWINGS_NAME)}
    known = read_configs(job.out, ["train", "evaluate"], {}).get("validate#handlers")
    return settings_of(job) | {"output_dir": str(job.out / TRAINING), "validate#handlers": [*known, draw]}


def _ended(
    done: Sequence[_FoldResult], jobs: Sequence[TrainingJob], executor: Executor | None
) -> tuple[Ending, list[tuple[LabelScores, ...]]]:
    """Return what helps on all cases, and the scores of each fold with it.

    Offsets there are those that other folds chose. What costs Dice is not taken.
    """
    parts = [fold.held_out for fold in done]
    ending = choose_ending(parts)
    plan = planned(jobs[0].bundle)
    if plan is None or (ending.cleaning == Cleaning() and not ending.offsets.values):
        return ending, [part.scores for part in parts]
    others = [choose_ending(parts[:fold] + parts[fold + 1 :]).offsets for fold in range(len(parts))]
    plans = [ending.on(plan)] * len(jobs)
    scored = (
        map(_score_fold, jobs, plans, others) if executor is None else executor.map(_score_fold, jobs, plans, others)
    )
    scores = list(scored)
    subject_of = {case: subject for fold in done for case, subject in fold.subject_of.items()}
    before, after = (_mean_dice(list(chain(*of)), subject_of) for of in ([part.scores for part in parts], scores))
    if after < before - LOST_DICE:
        logger.info("neither cleaning nor offsets are taken: with them mean Dice is %.4f, without %.4f", after, before)
        return Ending(Cleaning(), Offsets()), [part.scores for part in parts]
    return ending, scores


def _score_fold(job: TrainingJob, plan: Plan, offsets: Offsets) -> tuple[LabelScores, ...]:
    shifted = job.out / TRAINING / "held_out.pt"
    with_offsets(job.out, offsets, {job.out / WEIGHTS: shifted})
    scores = score_as_planned(job.out, _settings_here(job), plan, shifted)
    shifted.unlink()
    return scores


def _train_final(
    job: TrainingJob, done: Sequence[_FoldResult], minutes: float | None, progress: Progress | None
) -> Path:
    """Train on all cases, unless that is done, with the schedule that validated best; return the bundle."""
    out = job.out.with_name(FINAL)
    schedule = chosen_schedule([validations_of(fold.bundle) for fold in done])
    settings = _final_settings(job, schedule, minutes)
    if not is_sealed(out) or epochs_done(out) < settings.get("epochs", 0):
        logger.info("training on all cases: %s", schedule.reason)
        final = replace(job, out=out, fold=ALL_FOLDS, resume=out.exists(), overrides=settings)
        train(final, progress=progress)
    return out


def _final_settings(job: TrainingJob, schedule: Schedule, minutes: float | None) -> dict[str, Any]:
    """Return the settings of the training on all cases, which validates once, for what it validates on it has seen."""
    settings = {**(job.overrides or {}), "validate_every": SELDOM}
    if minutes is not None:
        return settings | {"minutes": minutes}
    if schedule.share == 1:
        return settings
    parser = read_configs(job.bundle, ["train"], job.overrides or {})
    granted = parser.get_parsed_content("minutes") if "minutes" in parser.get() else None
    shorter = {} if granted is None else {"minutes": schedule.share * granted}
    return settings | {"epochs": schedule.of(parser.get("epochs"))} | shorter


def _put_together(root: Path, done: Sequence[_FoldResult], final: Path | None, ended: _Ended) -> CrossValidation:
    means = tuple(_mean_dice(scores, fold.subject_of) for scores, fold in zip(ended.scores, done, strict=True))
    result = CrossValidation(
        root,
        tuple(score for scores in ended.scores for score in scores),
        tuple(trial for fold in done for trial in fold.held_out.trials),
        means,
        tuple(score for fold in done for score in fold.held_out.scores),
    )
    write_csv(without_names(result.scores), root / TRAINING / FOLD_SCORES, overwrite=True)
    write_csv(without_names(result.as_trained), root / TRAINING / UNENDED_SCORES, overwrite=True)
    _show_cases(root, done, result.scores)
    best = max(range(len(done)), key=lambda number: (not isnan(means[number]), means[number]))
    chosen = done[best].bundle if final is None else final
    files = {fold.bundle / WEIGHTS: root / "models" / f"fold_{number}.pt" for number, fold in enumerate(done)}
    _write_ending(root, ended.ending, files, chosen / WEIGHTS)
    copy_file(chosen / SEEN, root / SEEN)
    write_measure(root, fmean(means))
    (root / TRAINING / FOLD_MANIFEST).unlink(missing_ok=True)  # it names files, and a bundle is handed on
    return result


def _show_cases(root: Path, done: Sequence[_FoldResult], scores: Sequence[LabelScores]) -> None:
    """Write the page of all cases."""
    drawings: dict[str, CaseDrawing] = {}
    for fold in done:
        drawings |= read_drawings(fold.bundle / TRAINING / DRAWINGS_NAME)
    fold_of = {without_name(case_id): number for number, fold in enumerate(done) for case_id in fold.subject_of}
    subject_of = {without_name(case_id): subject for fold in done for case_id, subject in fold.subject_of.items()}
    labels = Metadata.read(root).labels
    write_folds_page(
        CrossValidationFacts(root.name, labels, without_names(scores), drawings, fold_of, subject_of),
        root / TRAINING / FOLDS_PAGE,
    )
    logger.info("%s shows every case", root / TRAINING / FOLDS_PAGE)


def _mean_dice(scores: Sequence[LabelScores], subject_of: Mapping[str, str]) -> float:
    """Return the mean over subjects and labels; NaN if no case holds any structure."""
    mean = next(row for row in summarise(scores, subject_of) if row.label == MEAN_OVER_LABELS)
    return mean.statistics[Measure.DICE].mean


def _write_ending(root: Path, ending: Ending, folds: Mapping[Path, Path], chosen: Path) -> None:
    """Write the weights with what was found to help, and plan and configs, unless somebody changed these by hand."""
    plan = planned(root)
    offsets = Offsets() if plan is None else ending.offsets
    shifted = with_offsets(root, offsets, folds)
    with_offsets(root, offsets, {chosen: root / WEIGHTS})
    if plan is not None:
        write_plan(replace(ending, offsets=shifted).on(plan), root)
