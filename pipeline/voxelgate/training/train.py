"""Train a copy of a bundle on a manifest, check its weights on the cases it has not seen, and seal it."""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxelgate.bundle.checksums import CHECKSUMS, seal
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.workflow import read_configs, run_workflow
from voxelgate.core.errors import OutputError, UsageError
from voxelgate.core.files import write_text
from voxelgate.core.progress import Progress
from voxelgate.datasets.check_manifest import check_manifest
from voxelgate.datasets.manifest import ALL_FOLDS, Manifest, Split, datalist, load_manifest
from voxelgate.evaluation.scores import LabelScores

logger = logging.getLogger(__name__)

TRAINING = "training"
"""Folder in a trained bundle with state, TensorBoard events and scores; not needed to segment."""

SEEN = "seen.json"
"""File in the training folder with case id and subject of every case that the weights were trained on."""

OF_THE_JOB = ("manifest", "data_root", "fold", "resume", "bundle_root", "output_dir", "model_path")
"""Settings that follow from a job; another value of one would train on or into something else than the job says."""


@dataclass(frozen=True)
class TrainingJob:
    """A training to run.

    Args:
        bundle: the bundle whose configs are used.
        manifest: the labelled cases.
        out: folder of the trained bundle; made as a copy of `bundle`.
        data_root: folder the manifest's paths start from; its own folder if None.
        fold: the fold that validates; `ALL_FOLDS` trains on every case.
        resume: take up a training in `out` that was interrupted.
        overrides: further settings of the bundle's `train.json`, by id.

    Raises:
        UsageError: an override of what the job itself says.

    >>> vg.TrainingJob(Path("planned"), Path("data/manifest.json"), Path("trained"), overrides={"epochs": 2}).fold
    0
    """

    bundle: Path
    manifest: Path
    out: Path
    data_root: Path | None = None
    fold: int = 0
    resume: bool = False
    overrides: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if clash := sorted(set(self.overrides or {}) & set(OF_THE_JOB)):
            raise UsageError(
                f"setting {', '.join(clash)}: says again, and perhaps otherwise, what to train on or where; use the "
                "arguments and options for it"
            )


def train(job: TrainingJob, *, progress: Progress | None = None) -> Path:
    """Run a training and return the folder of the trained bundle, sealed and ready to segment.

    Everything is checked before work starts: manifest, files, labels, folds, settings. A training that is killed
    leaves `out` with its last state, unsealed; run again with `resume`, it ends with the same weights.

    Args:
        job: what to train.
        progress: told how many of how many cases are checked.

    Raises:
        ManifestError: the manifest or its files are wrong; lists all problems.
        UsageError: labels, fold or settings do not fit the bundle.
        OutputError: `out` exists, and `resume` was not asked for.

    >>> made = vg.plan(vg.survey(vg.load_manifest("data/manifest.json")).fingerprint, vg.Budget(minutes=1))
    >>> vg.write_bundle(made, Path("quick"))
    >>> quick = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 1, "precision": "float32"}
    >>> job = vg.TrainingJob(Path("quick"), Path("data/manifest.json"), Path("quick_trained"), overrides=quick)
    >>> vg.train(job).name
    'quick_trained'
    """
    manifest = load_manifest(job.manifest, job.data_root)
    refuse_other_labels(Metadata.read(job.bundle).labels.names, manifest)
    if job.fold != ALL_FOLDS and job.fold not in manifest.folds:
        raise UsageError(
            f"{manifest.name} has the folds {manifest.folds}, not {job.fold}; choose one of them, or -1 for all"
        )
    training, _ = (
        datalist(job.manifest, data_root=job.data_root, fold=job.fold, part=part)
        for part in (Split.TRAINING, Split.VALIDATION)
    )
    settings = settings_of(job) | {"resume": job.resume}
    read_configs(job.bundle, ["train"], settings)
    check_manifest(manifest, progress=progress)
    prepare_folder(job)
    start_s = time.monotonic()
    run_workflow(job.out, ["train"], settings)
    logger.info("trained in %.1f minutes", (time.monotonic() - start_s) / 60)
    _write_seen(training, job.out / TRAINING / SEEN)
    seal(job.out)
    return job.out


def evaluate_fold(
    bundle: Path, manifest: Path, output_dir: Path, *, data_root: Path | None = None, fold: int = 0
) -> list[LabelScores]:
    """Run a bundle's evaluate workflow on the validation cases of a fold.

    A warning says so if the bundle was trained on some of them, or on others of the same subjects.

    Args:
        bundle: a trained bundle.
        manifest: the labelled cases.
        output_dir: gets `scores.csv`.
        data_root: folder the manifest's paths start from; its own folder if None.
        fold: whose validation cases are measured.
    """
    settings = settings_of(TrainingJob(bundle, manifest, bundle, data_root, fold)) | {
        "output_dir": str(output_dir.resolve())
    }
    rows = datalist(manifest, data_root=data_root, fold=fold, part=Split.VALIDATION)
    if seen := count_seen(bundle, rows):
        logger.warning(
            "%d of the %d cases of fold %d, or others of their subjects, were seen in training: the scores say nothing "
            "about new cases",
            seen,
            len(rows),
            fold,
        )
    parser = run_workflow(bundle, ["train", "evaluate"], settings)
    scores: list[LabelScores] = parser.get_parsed_content("score_cases").scores
    return scores


def settings_of(job: TrainingJob) -> dict[str, Any]:
    """Return the settings of a bundle's configs that a training stands for."""
    return {
        "manifest": str(job.manifest.resolve()),
        "data_root": str((job.data_root or job.manifest.parent).resolve()),
        "fold": job.fold,
        **(job.overrides or {}),
    }


def count_seen(bundle: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how many cases of a datalist the weights of a bundle were trained on, as far as the bundle knows.

    Another case of a subject that was seen counts too.
    """
    path = bundle / TRAINING / SEEN
    if not path.is_file():
        return 0
    subject_of: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    subjects = set(subject_of.values())
    return sum(row["case_id"] in subject_of or row["subject"] in subjects for row in rows)


def _write_seen(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    write_text(path, json.dumps({row["case_id"]: row["subject"] for row in rows}) + "\n")


def refuse_other_labels(names: tuple[str, ...], manifest: Manifest) -> None:
    """Refuse a manifest whose labels are not those of a bundle.

    Raises:
        UsageError: names both.
    """
    if manifest.labels.names != names:
        raise UsageError(
            f"the bundle segments {', '.join(names)}, but the labels of {manifest.name} are "
            f"{', '.join(manifest.labels.names)}; make a bundle for these labels (`voxelgate plan`)"
        )


def prepare_folder(job: TrainingJob) -> None:
    """Copy the bundle to where it shall be trained; a folder that is there is taken up, or refused.

    Raises:
        OutputError: the folder exists, and `resume` was not asked for.
    """
    if job.out.exists():
        if not job.resume:
            raise OutputError(f"{job.out} exists already; name another folder, or take its training up with --resume")
        return
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.out.parent, prefix=f".{job.out.name}-") as partial:
        copy = Path(partial) / job.out.name
        copy_untrained(job.bundle, copy)
        copy.rename(job.out)


def copy_untrained(bundle: Path, to: Path) -> None:
    """Copy a bundle without its weights, their checksums, and what its trainings have left."""
    shutil.copytree(bundle, to, ignore=shutil.ignore_patterns(TRAINING, f"{TRAINING}_*", CHECKSUMS, "*.pt"))
    (to / "models").mkdir(exist_ok=True)
