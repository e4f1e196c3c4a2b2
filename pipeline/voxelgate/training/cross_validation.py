"""Train all folds of a cross-validation, find out which cleaning helps, and put the folds together into one bundle."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from ignite.engine import Engine, Events

from voxelgate.bundle.checksums import WEIGHTS, is_sealed, seal, verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.workflow import read_configs, run_workflow
from voxelgate.core.errors import UsageError
from voxelgate.core.files import copy_file, locked
from voxelgate.core.progress import Progress
from voxelgate.datasets.build_manifest import write_manifest
from voxelgate.datasets.manifest import Manifest, Split, load_manifest, part_cases
from voxelgate.evaluation.handler import ScoreCases
from voxelgate.evaluation.scores import LabelScores, Measure
from voxelgate.evaluation.table import MEAN_OVER_LABELS, summarise, without_names, write_csv
from voxelgate.training.cleaning import CleaningTrial, choose_cleaning, trials_of
from voxelgate.training.configs.bundle_files import cleaned, is_as_planned, rewrite_bundle
from voxelgate.training.planning.plan import Cleaning, Plan
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
"""File in the training folder with the scores of every case by a network that has not seen it, before any cleaning."""

SCORE_CLEANINGS = {"score_cases#_target_": "voxelgate.ScoreCleanings"}


class ScoreCleanings(ScoreCases):
    """`ScoreCases` that also tries each step on each structure; `trials` holds what came of it.

    >>> scores = vg.ScoreCleanings(path="scores.csv", names={"0": "background", "1": "blob"})
    >>> scores.attach(Engine(lambda engine, batch: None))
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.trials: list[CleaningTrial] = []

    def attach(self, engine: Engine) -> None:
        """Listen to each case and to the end."""
        super().attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._try)

    def _try(self, engine: Engine) -> None:
        for row in engine.state.output:
            prediction, reference = (row[key].cpu().numpy() > 0.5 for key in (self.pred_key, self.label_key))
            self.trials += trials_of(prediction, reference, self.labels)


@dataclass(frozen=True)
class CrossValidation:
    """What came of training every fold.

    Args:
        bundle: the folder: the weights of every fold, and as its own those of the best fold.
        scores: of every case by the network of its fold, which has not seen it; before cleaning.
        trials: what cleaning would do to them.
        mean_dice: of each fold, over its subjects and the labels; NaN if its cases hold no structure.

    >>> found = vg.CrossValidation(Path("trained"), scores=(), trials=(), mean_dice=(0.88, 0.9))
    >>> max(found.mean_dice)
    0.9
    """

    bundle: Path
    scores: tuple[LabelScores, ...]
    trials: tuple[CleaningTrial, ...]
    mean_dice: tuple[float, ...]


def train_folds(
    job: TrainingJob,
    folds: int,
    *,
    executor: Executor | None = None,
    devices: Sequence[str] = (),
    progress: Progress | None = None,
) -> CrossValidation:
    """Train every fold, find out which cleaning helps, and put the folds together into one bundle.

    Folds lie in `out/training/fold_0` and so on. With `resume`, finished ones are kept and the others taken up. The
    folds are those of the manifest if it has as many, else its subjects are dealt anew.

    Args:
        job: what to train; its `fold` does not count.
        folds: how many; at least 2.
        executor: trains folds side by side, in processes or on Dask workers; one after the other in this process if
            None.
        devices: where fold 0, 1, ... run, in turn, such as `cuda:0`; the bundle's own choice if empty.
        progress: told how many of how many cases are checked, anew for each fold.

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
    refuse_settings(job, settings_of(job))
    dealt = None if manifest.folds == tuple(range(folds)) else manifest.with_folds(folds)
    prepare_folder(job)
    with locked(job.out):
        rooted = replace(job, data_root=(job.data_root or job.manifest.parent).resolve())
        jobs = _fold_jobs(replace(rooted, manifest=_kept(dealt, job)), folds, devices)
        done = (_train_fold(one, progress) for one in jobs) if executor is None else executor.map(_train_fold, jobs)
        return _put_together(job, list(done))


def devices_here() -> list[str]:
    """Return the GPUs of this machine as PyTorch names them; none means that the bundle chooses."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class _FoldResult:
    bundle: Path
    scores: tuple[LabelScores, ...]
    trials: tuple[CleaningTrial, ...]
    subject_of: Mapping[str, str]

    @property
    def mean_dice(self) -> float:
        """Return the mean over subjects and labels; NaN if no case holds any structure."""
        mean = next(row for row in summarise(self.scores, self.subject_of) if row.label == MEAN_OVER_LABELS)
        return mean.statistics[Measure.DICE].mean


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
    """Train one fold unless it is done, and score the cases that it has not seen, as the network gives them."""
    manifest = load_manifest(job.manifest, job.data_root)
    cases = part_cases(manifest, job.fold, Split.VALIDATION)
    if not is_sealed(job.out) or epochs_done(job.out) < (job.overrides or {}).get("epochs", 0):
        train(replace(job, resume=job.out.exists()), progress=progress)
    if seen := read_seen(job.out).count(manifest, cases, {}):
        raise UsageError(
            f"{job.out.name} was trained on {seen} of the {len(cases)} cases that shall validate it, or on others of "
            "their subjects: the manifest is not the one it was trained with; train all folds anew into another folder"
        )
    uncleaned = {"validate#postprocessing": read_configs(job.out, ["train"], {}).get("validate#postprocessing")}
    settings = settings_of(job) | SCORE_CLEANINGS | uncleaned | {"output_dir": str(job.out / TRAINING)}
    parser = run_workflow(job.out, ["train", "evaluate"], settings)
    found = parser.get_parsed_content("score_cases")
    subject_of = {case.case_id: case.subject for case in cases}
    return _FoldResult(job.out, tuple(found.scores), tuple(found.trials), subject_of)


def _put_together(job: TrainingJob, done: Sequence[_FoldResult]) -> CrossValidation:
    result = CrossValidation(
        job.out,
        tuple(score for fold in done for score in fold.scores),
        tuple(trial for fold in done for trial in fold.trials),
        tuple(fold.mean_dice for fold in done),
    )
    write_csv(without_names(result.scores), job.out / TRAINING / FOLD_SCORES, overwrite=True)
    for number, fold in enumerate(done):
        copy_file(fold.bundle / WEIGHTS, job.out / "models" / f"fold_{number}.pt")
    best = max(range(len(done)), key=lambda number: (not isnan(result.mean_dice[number]), result.mean_dice[number]))
    copy_file(done[best].bundle / WEIGHTS, job.out / WEIGHTS)
    copy_file(done[best].bundle / SEEN, job.out / SEEN)
    _clean_by_plan(job.out, choose_cleaning(result.trials))
    write_measure(job.out, fmean(result.mean_dice))
    (job.out / TRAINING / FOLD_MANIFEST).unlink(missing_ok=True)  # it names files, and a bundle is handed on
    seal(job.out)
    return result


def _clean_by_plan(root: Path, cleaning: Cleaning) -> None:
    """Write what was found to help into plan and configs, unless somebody changed the configs by hand."""
    path = root / "plan.json"
    if not path.is_file() or not is_as_planned(plan := Plan.from_json(path), root):
        logger.warning("%s: configs are not those of a plan, so cleaning is not written into them", root.name)
        return
    rewrite_bundle(cleaned(plan, cleaning), root)
