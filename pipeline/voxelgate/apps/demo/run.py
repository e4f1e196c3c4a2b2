"""The whole way on data made on the spot: cohort, manifest, plan, training, segmentation, report."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxelgate.apps.demo.cohort import LABELS, make_cohort
from voxelgate.apps.demo.leavings import earlier_demo
from voxelgate.core.verdict import Require
from voxelgate.datasets.build_manifest import build_manifest, write_manifest
from voxelgate.datasets.manifest import ALL_FOLDS, load_manifest
from voxelgate.datasets.survey import survey
from voxelgate.evaluation.pairs import pair_files
from voxelgate.evaluation.scores import LabelScores, Measure, evaluate_pairs
from voxelgate.evaluation.table import MEAN_OVER_LABELS, summarise
from voxelgate.segmentation.batch.run_batch import segment
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.page import write_page
from voxelgate.training.configs.bundle_files import write_bundle
from voxelgate.training.planning import Budget, Training, plan
from voxelgate.training.train import TrainingJob, train

TRAINING_CASES = 20
HELD_OUT_CASES = 4
EPOCHS = 8
SPACING_MM = 4.0
PATCH_VOX = (32, 32, 32)
CHANNELS = (16, 32, 64)
STRIDES = ((2, 2, 2), (2, 2, 2))
"""Coarse and small, so that the training ends within two minutes on two cores."""


@dataclass(frozen=True)
class Command:
    """A line for the command line, and what it is good for."""

    purpose: str
    line: str


@dataclass(frozen=True)
class DemoResult:
    """What a demo did.

    Args:
        scores: of every structure in every held-out case.
        page: the report of the segmentation, to look at in a browser.
        next_commands: the same for data of one's own.
    """

    scores: tuple[LabelScores, ...]
    page: Path
    next_commands: tuple[Command, ...]

    @property
    def mean_dice(self) -> float:
        """Return the mean over cases, then over structures."""
        mean = next(row for row in summarise(self.scores) if row.label == MEAN_OVER_LABELS)
        return mean.statistics[Measure.DICE].mean


def run_demo(out: Path, *, seed: int, say: Callable[[str], None], overwrite: bool = False) -> DemoResult:
    """Make a synthetic CT cohort, train a small bundle, segment cases it has not seen, and write `out/index.html`.

    Args:
        out: folder to make.
        seed: of cohort and training; the same seed gives the same page on the same machine.
        say: told in one sentence what begins.
        overwrite: replace an earlier demo in `out`.

    Raises:
        OutputError: `out` is a file, or holds something already.
    """
    for path in earlier_demo(out, overwrite=overwrite):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    rng = np.random.default_rng(seed)
    say(f"Making {TRAINING_CASES} synthetic CT volumes to train on and {HELD_OUT_CASES} to test with.")
    make_cohort(out / "data", TRAINING_CASES, rng)
    held_out = make_cohort(out / "held_out", HELD_OUT_CASES, rng)

    say("Writing a manifest, and checking every file.")
    manifest = out / "data" / "manifest.json"
    write_manifest(
        build_manifest(out / "data", name="synthetic_ct", modality="CT", licence="CC0-1.0", labels=LABELS.to_mapping()),
        manifest,
    )

    say("Planning a bundle, and training it: one to two minutes on two cores.")
    _write_small_bundle(manifest, out / "bundle", seed)
    trained = train(TrainingJob(out / "bundle", manifest, out / "trained_bundle", fold=ALL_FOLDS))

    say("Segmenting the volumes that the network has not seen.")
    images, results = [case.image for case in held_out], out / "segmented"
    for _ in segment(trained, images, results, outputs=(Output.NIFTI, Output.PREVIEW), require=Require.ANY):
        pass
    references = out / "held_out" / "labels"
    scores = tuple(row for rows in evaluate_pairs(pair_files(out / "segmented", references), LABELS) for row in rows)
    page = write_page(out / "segmented", references, page=out / "index.html", single_file=True)
    return DemoResult(scores, page, _next_commands())


def _write_small_bundle(manifest: Path, root: Path, seed: int) -> None:
    """Write what `voxelgate plan` would, at a coarser spacing and for a shorter training."""
    overrides = {
        "spacing_mm": [SPACING_MM] * 3,
        "patch_vox": list(PATCH_VOX),
        "channels": list(CHANNELS),
        "strides": [list(stride) for stride in STRIDES],
        "network": {"deep_supervision": 1},
        "training": {
            "epochs": EPOCHS,
            "steps_per_epoch": Training.steps_per_epoch,
            "batch_size": Training.batch_size,
            "learning_rate": Training.learning_rate,
            "warmup_steps": Training.warmup_steps,
            "average_decay": Training.average_decay,
            "validate_every": EPOCHS,
            "seed": seed,
        },
        "data": {"name": "made by voxelgate demo"},
    }
    facts = survey(load_manifest(manifest)).fingerprint
    write_bundle(plan(facts, Budget(minutes=2), overrides), root, facts)


def _next_commands() -> tuple[Command, ...]:
    return (
        Command("list your images and labels", "voxelgate manifest FOLDER --modality CT --labels liver,spleen"),
        Command("make a bundle that fits them", "voxelgate plan FOLDER/manifest.json --out my_bundle"),
        Command("train it", "voxelgate train my_bundle FOLDER/manifest.json --out my_trained_bundle"),
    )
