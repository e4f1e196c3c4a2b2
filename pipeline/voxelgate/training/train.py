"""Train a copy of a bundle on a manifest, check its weights on the cases it has not seen, and seal it."""

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from voxelgate.bundle.checksums import CHECKSUMS, QUALITY, is_sealed, seal, verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.workflow import ConfigParser, read_configs, run_workflow
from voxelgate.core.errors import BundleError, OutputError, UsageError
from voxelgate.core.files import LOCK_NAME, locked, write_text
from voxelgate.core.progress import Progress
from voxelgate.datasets.check_manifest import check_manifest
from voxelgate.datasets.manifest import ALL_FOLDS, Manifest, ManifestCase, Split, datalist, load_manifest, part_cases
from voxelgate.dicom.read.series_paths import series_at
from voxelgate.evaluation.pairs import read_reference
from voxelgate.evaluation.scores import LabelScores, score
from voxelgate.inference.precision import Precision
from voxelgate.training.configs.bundle_files import rewrite_bundle
from voxelgate.training.distributed import STATE, UNREADABLE_STATE, first_weights
from voxelgate.training.ending import PLAN, end_training, ended_early, put_back, without_offsets
from voxelgate.training.planning.plan import Plan
from voxelgate.training.seen import SEEN, Seen, contents_of, read_seen, seen_of, write_seen

logger = logging.getLogger(__name__)

TRAINING = "training"
"""Folder in a trained bundle with state, TensorBoard events and scores; not needed to segment."""

OF_THE_JOB = ("manifest", "data_root", "fold", "resume", "bundle_root", "output_dir", "model_path", "started_s")
"""Settings that follow from a job; another value of one would train on or into something else than the job says."""

SHARED = (
    "network_def", "network", "train_network", "averaged#model", "train#trainer#network", "validate#evaluator#network",
    "train#deterministic_transforms", "train#preprocessing", "validate#preprocessing", "train#dataset#transform",
    "validate#dataset#transform", "validate#inferer", "validate#evaluator#inferer", "validate#postprocessing",
    "validate#evaluator#postprocessing",
)  # fmt: skip
"""Parts of `train.json` that say again what `inference.json` says, or build on it: network, preparation, labels."""

DATA = ("train#dataset#data", "train#dataloader#dataset", "train#trainer#train_data_loader", "validate#dataset#data",
        "validate#dataloader#dataset", "validate#evaluator#val_data_loader")  # fmt: skip
"""Parts of `train.json` that say which cases a training sees; they follow from the job."""

PLACES = ("run", "train#keep_best#path")
"""Parts of `train.json` that say that a training is run, and where it leaves its weights."""

PATCH_SIZES = ("patch_vox", "margin_vox", "spatial_size")
"""Settings of random transforms that follow from the patch, as the windows of inference and the metadata do."""

MIRROR_IMAGES = ("axes", "side_pairs", "unpaired_sides")
"""Settings of random transforms that say which mirror images a network knows, which inference may show it."""

OF_DATA = "says otherwise which cases are trained on, so that nobody could tell later; name them in the manifest"
OF_PLACES = "says otherwise what is run, or where the weights go, which would then be missing; leave it out"
OF_BOTH = (
    "inference shares this with the training, and would keep what it has; change the plan (`voxelgate plan --override "
    "FILE`), so that both get it"
)


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


def train(
    job: TrainingJob, *, progress: Progress | None = None, is_whole: bool = True, started_s: float | None = None
) -> Path:
    """Run a training and return the folder of the trained bundle, sealed and ready to segment.

    At its end it is found out on the validation cases which cleaning helps, and by which offsets of the classes volumes
    come out right; both go into the bundle.

    Everything is checked before work starts: the bundle's seal, manifest, files, labels, folds, settings. A training
    that is killed leaves `out` with its last state, unsealed; run again with `resume`, it ends with the same weights
    (on such a machine, with as many threads: sums are taken in another order with others). With more epochs than
    before, `resume` lengthens a training.

    Args:
        job: what to train.
        progress: told how many of how many cases are checked.
        is_whole: find out what helps in the end; not for one of several folds, which are judged together.
        started_s: when its minutes began, by `time.monotonic()`; now if None.

    Raises:
        ManifestError: the manifest or its files are wrong; lists all problems.
        UsageError: labels, fold or settings do not fit the bundle, or settings are shared with inference.
        BundleError: the bundle is not sealed or was changed since, or `out` holds other configs than the bundle.
        OutputError: `out` exists, and `resume` was not asked for; or another training works in it.

    >>> made = vg.plan(vg.survey(vg.load_manifest("data/manifest.json")).fingerprint, vg.Budget(minutes=1))
    >>> vg.write_bundle(made, Path("quick"))
    >>> quick = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 1, "precision": "float32"}
    >>> job = vg.TrainingJob(Path("quick"), Path("data/manifest.json"), Path("quick_trained"), overrides=quick)
    >>> vg.train(job).name
    'quick_trained'
    """
    start_s = time.monotonic() if started_s is None else started_s
    verify(job.bundle)
    refuse_without_training(job.bundle)
    manifest = load_manifest(job.manifest, job.data_root)
    refuse_other_labels(Metadata.read(job.bundle).labels.names, manifest)
    _refuse_other_fold(job.fold, manifest)
    for part in (Split.TRAINING, Split.VALIDATION):
        datalist(job.manifest, data_root=job.data_root, fold=job.fold, part=part)
    settings = settings_of(job) | {"resume": job.resume} | _began(job.bundle, start_s) | _format_before(job)
    refuse_settings(job, settings)
    content, before = check_manifest(manifest, progress=progress).content, _seen_before(job)
    prepare_folder(job)
    with locked(job.out):
        for stale in (CHECKSUMS, QUALITY):  # what changes its weights is not finished
            (job.out / stale).unlink(missing_ok=True)
        put_back(job.out)
        trained = run_workflow(job.out, ["train"], settings)
        logger.info("trained in %.1f minutes", (time.monotonic() - start_s) / 60)
        training = [case for case in manifest.cases if job.fold == ALL_FOLDS or case.fold != job.fold]
        write_seen(job.out, seen_of(manifest, training, content) | before)
        write_measure(job.out, None if job.fold == ALL_FOLDS else _best_dice(trained))
        if is_whole and job.fold != ALL_FOLDS:
            end_training(job.out, settings_of(job))
        seal(job.out)
    return job.out


def _began(bundle: Path, start_s: float) -> dict[str, float]:
    """Return the setting from which on the minutes of a training count; bundles of before have none."""
    return {"started_s": start_s} if "started_s" in read_configs(bundle, ["train"], {}).get() else {}


def _format_before(job: TrainingJob) -> dict[str, str]:
    """Return the number format of a training that goes on as a setting; the machine might choose another now."""
    asked = read_configs(job.bundle, ["train"], job.overrides or {}).get().get("precision")
    if not job.resume or asked != Precision.AUTO:
        return {}
    try:
        state = torch.load(job.out / TRAINING / STATE, map_location="cpu", weights_only=True)
        return {"precision": str(Precision(state["identity"]["precision"]))}
    except UNREADABLE_STATE:
        return {}


def write_measure(root: Path, mean_dice: float | None) -> None:
    """Write into a bundle's metadata how well it did on cases that it had not seen; nothing if nobody knows."""
    measured = None if mean_dice is None or not math.isfinite(mean_dice) else {"mean_dice": round(mean_dice, 4)}
    Metadata.read(root).write_with(eval_metrics=measured)


def _best_dice(trained: ConfigParser) -> float | None:
    """Return the Dice on the validation cases by which a training chose its weights, if its config lets it choose."""
    if "keep_best" not in (trained.get("train") or {}):
        return None
    return float(trained.get_parsed_content("train#keep_best").best)


def _refuse_other_fold(fold: int, manifest: Manifest) -> None:
    if fold == ALL_FOLDS or fold in manifest.folds:
        return
    if not manifest.folds:
        raise UsageError(f"{manifest.name} has no folds, so that no case can validate; train on all (--fold -1)")
    raise UsageError(f"{manifest.name} has the folds {manifest.folds}, not {fold}; choose one of them, or -1 for all")


def refuse_settings(job: TrainingJob, settings: Mapping[str, Any]) -> None:
    """Refuse settings that the bundle does not have, other cases, and what inference shares and would not get.

    Raises:
        UsageError: names the setting.
    """
    read_configs(job.bundle, ["train"], settings)
    before = _bound_parts(read_configs(job.bundle, ["train"], {}))
    for name, value in (job.overrides or {}).items():
        after = _bound_parts(read_configs(job.bundle, ["train"], {name: value}))
        for reason, part in after.items():
            if part != before[reason]:
                raise UsageError(f"setting {name}: {reason}")


def _bound_parts(config: ConfigParser) -> dict[str, list[Any]]:
    """Return the parts of `train.json` that no setting may change, by the reason why."""
    drawn = [step for step in config.get("train#random_transforms") or [] if isinstance(step, Mapping)]
    sizes = [step.get(size) for step in drawn for size in PATCH_SIZES]
    mirrored = [[step.get(name) for name in MIRROR_IMAGES] for step in drawn if "axes" in step and step.get("prob")]
    return {
        OF_DATA: [config.get(part) for part in DATA],
        OF_BOTH: [*(config.get(part) for part in SHARED), sizes, mirrored],
        OF_PLACES: [config.get(part) for part in PLACES],
    }


def _seen_before(job: TrainingJob) -> Seen:
    """Return what weights have seen from which a training begins.

    Raises:
        UsageError: there are no such weights.
        BundleError: there is no such bundle.
    """
    given = read_configs(job.bundle, ["train"], settings_of(job)).get("init_weights")
    if not isinstance(given, str):
        return Seen()
    weights = first_weights(given)
    if not weights.is_file():
        raise UsageError(
            f"{given}: has no weights to begin from; name a bundle or a file that has (`--set init_weights=BUNDLE`), "
            "or begin anew (`--set init_weights=null`)"
        )
    return read_seen(weights.absolute().parent.parent)


def epochs_done(folder: Path) -> int:
    """Return the epochs of the training that a trained or half-trained bundle holds; 0 if it holds none."""
    try:
        return int(torch.load(folder / TRAINING / STATE, map_location="cpu", weights_only=True)["epoch"])
    except UNREADABLE_STATE:
        return 0


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
    cases = part_cases(loaded := load_manifest(manifest, data_root), fold, Split.VALIDATION)
    if brings_no_training(bundle):
        return _scores_in_memory(bundle, loaded, cases)
    known = read_seen(bundle)
    if (known != Seen()) and (seen := known.count(loaded, cases, contents_of(cases))):
        logger.warning(
            "%d of the %d cases of fold %d, or others of their subjects, were seen in training: the scores say nothing "
            "about new cases",
            seen,
            len(cases),
            fold,
        )
    parser = run_workflow(bundle, ["train", "evaluate"], settings)
    scores: list[LabelScores] = parser.get_parsed_content("score_cases").scores
    return scores


def brings_no_training(bundle: Path) -> bool:
    """Return whether others have trained a bundle, which does not say how."""
    return Metadata.read(bundle).is_imported and not (bundle / "configs" / "train.json").is_file()


def refuse_without_training(bundle: Path) -> None:
    """Refuse to train a bundle that others have trained.

    Raises:
        UsageError: says how to go on from it.
    """
    if brings_no_training(bundle):
        raise UsageError(f"{bundle.name}: {how_to_go_on(bundle.name)}")


def how_to_go_on(name: str) -> str:
    """Return how a training goes on from a bundle that others have trained."""
    return (
        "others have trained it, and it brings no train.json; to go on from its weights, make a bundle of its network "
        f"(`voxelgate plan MANIFEST --from {name} --out MINE`), and train that"
    )


def _scores_in_memory(root: Path, manifest: Manifest, cases: Sequence[ManifestCase]) -> list[LabelScores]:
    """Segment cases as `Bundle.segment` does, and measure the labels."""
    bundle = open_bundle(root)
    refuse_other_labels(bundle.labels.names, manifest)
    scores = []
    for case in cases:
        found = bundle.segment(series_at(case.image) if case.is_dicom else case.channels)
        reference = manifest.reference_of(case)
        if reference is not None:
            labels, _ = read_reference(reference, manifest.values)
            scores += score(found.labels, labels, found.grid, manifest.labels, case.case_id)
    return scores


def settings_of(job: TrainingJob) -> dict[str, Any]:
    """Return the settings of a bundle's configs that a training stands for."""
    return {
        "manifest": str(job.manifest.resolve()),
        "data_root": str((job.data_root or job.manifest.parent).resolve()),
        "fold": job.fold,
        **(job.overrides or {}),
    }


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
        _take_up(job)
        return
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.out.parent, prefix=f".{job.out.name}-") as partial:
        copy = Path(partial) / job.out.name
        copy_untrained(job.bundle, copy)
        (copy / SEEN).unlink(missing_ok=True)
        try:
            copy.rename(job.out)
        except OSError as error:
            raise OutputError(
                f"{job.out}: cannot be made ({error.strerror}); another training may have begun"
            ) from error


def copy_untrained(bundle: Path, to: Path) -> None:
    """Copy a bundle without its weights, their checksums, and what its trainings have left."""
    left = (TRAINING, f"{TRAINING}_*", CHECKSUMS, QUALITY, LOCK_NAME, "*.pt")
    shutil.copytree(bundle, to, ignore=shutil.ignore_patterns(*left))
    (to / "models").mkdir(exist_ok=True)
    if (to / PLAN).is_file() and (plan := Plan.from_json(to / PLAN)).class_offsets:
        write_text(to / PLAN, without_offsets(plan).to_json())


def _take_up(job: TrainingJob) -> None:
    """Refuse to go on with configs that are not those of the sealed bundle; take back an ending that was half written.

    Raises:
        BundleError: names what differs.
    """
    if is_sealed(job.out):
        verify(job.out)
        return
    configs = {path.name for root in (job.bundle, job.out) for path in root.glob("configs/*.json")}
    files = [PLAN, *(f"configs/{name}" for name in sorted(configs))]
    changed = [name for name in files if _content(job.out / name) != _content(job.bundle / name)]
    if not changed:
        return
    if not ended_early(job.bundle, job.out, changed):
        raise BundleError(
            f"{job.out}: {', '.join(changed)} differ from those of {job.bundle.name}, so its training is not taken up; "
            "train into another folder"
        )
    rewrite_bundle(without_offsets(Plan.from_json(job.bundle / PLAN)), job.out)


def _content(path: Path) -> object:
    """Return what a config says; of metadata all but the measure that a training writes when it ends."""
    if not path.is_file():
        return None
    if path.name == "metadata.json":
        return {**Metadata.read(path.parents[1]).document, "eval_metrics": None}
    return path.read_bytes()
