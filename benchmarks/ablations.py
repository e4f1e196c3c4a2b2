"""Dice with and without a rule of the planner: the same fold and steps for each variant, several seeds, one table.

python -m benchmarks.ablations MANIFEST DATA --out ablations --steps 300 --seeds 0 1 \
    --variant 'planned={}' --variant 'no gates={"network": {"attention": false}}'

A variant is a name and the overrides of a plan as JSON. What is there already is not trained again, so that a table can
be made in parts, and by several processes at a time, each with seeds of its own.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxelgate.core.files import write_text
from voxelgate.datasets.manifest import load_manifest
from voxelgate.datasets.survey import Fingerprint, survey
from voxelgate.evaluation.scores import Measure
from voxelgate.evaluation.table import MEAN_OVER_LABELS, summarise
from voxelgate.inference.precision import keep_large_buffers
from voxelgate.training.configs.bundle_files import write_bundle
from voxelgate.training.planning import Budget, plan
from voxelgate.training.train import TRAINING, TrainingJob, evaluate_fold, train

STEPS_PER_EPOCH = 50
WARMUP_SHARE, AVERAGED_SHARE = 0.05, 0.1
"""Parts of the steps, as the planner has them."""


@dataclass(frozen=True)
class Trial:
    """What one training brought.

    Args:
        dice: of each structure and of their mean: mean over the subjects of the fold that was not seen.
        processor_minutes: of the training, reading and validation included.
    """

    dice: dict[str, float]
    processor_minutes: float


def attempt(manifest: Path, data_root: Path, facts: Fingerprint, folder: Path, overrides: Mapping[str, Any]) -> Trial:
    """Write a bundle with overrides, train it on fold 0 and measure; what is there is not done again."""
    done = folder / "trial.json"
    if done.is_file():
        return Trial(**json.loads(done.read_text(encoding="utf-8")))
    bundle = folder / "bundle"
    if not bundle.exists():
        write_bundle(plan(facts, Budget(), overrides), bundle, facts)
    start_s, is_begun = time.process_time(), (folder / "trained").exists()
    trained = train(TrainingJob(bundle, manifest, folder / "trained", data_root=data_root, resume=is_begun))
    minutes = (time.process_time() - start_s) / 60
    scores = evaluate_fold(trained, manifest, trained / TRAINING, data_root=data_root, fold=0)
    subject_of = {case.case_id: case.subject for case in load_manifest(manifest, data_root).cases}
    dice = {row.label: round(row.statistics[Measure.DICE].mean, 4) for row in summarise(scores, subject_of)}
    trial = Trial(dice, round(minutes, 2))
    write_text(done, json.dumps(asdict(trial)))
    return trial


def pace(steps: int, seed: int) -> dict[str, Any]:
    """Return the overrides that make a training so many steps long and validate it once, at its end."""
    epochs = max(1, steps // STEPS_PER_EPOCH)
    return {
        "epochs": epochs,
        "steps_per_epoch": min(steps, STEPS_PER_EPOCH),
        "validate_every": epochs,
        "warmup_steps": max(1, round(WARMUP_SHARE * steps)),
        "average_decay": round(1 - 1 / max(5, round(AVERAGED_SHARE * steps)), 4),
        "seed": seed,
    }


def row_of(name: str, trials: Sequence[Trial]) -> str:
    """Return the line of a variant: mean Dice of each seed, their mean, the lowest structure, processor time."""
    means = [trial.dice[MEAN_OVER_LABELS] for trial in trials]
    by_structure = {
        label: float(np.mean([trial.dice[label] for trial in trials]))
        for label in trials[0].dice
        if label != MEAN_OVER_LABELS
    }
    lowest = min(by_structure, key=lambda label: by_structure[label])
    minutes = np.mean([trial.processor_minutes for trial in trials])
    seeds = ", ".join(f"{mean:.3f}" for mean in means)
    return f"| {name} | {np.mean(means):.3f} | {seeds} | {lowest} {by_structure[lowest]:.3f} | {minutes:.1f} |"


def main() -> None:
    """Train and measure every variant with every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", action="append", required=True, help="NAME=JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_large_buffers()
    facts = survey(load_manifest(given.manifest, given.data_root), cache=given.out / "facts").fingerprint
    print("| variant | Dice | seeds | lowest structure | processor minutes |\n|---|---|---|---|---|")
    for name, _, text in (variant.partition("=") for variant in given.variant):
        values = json.loads(text)
        trials = []
        for seed in given.seeds:
            overrides = values | {"training": pace(given.steps, seed) | values.get("training", {})}
            folder = given.out / f"{name.replace(' ', '_')}_{seed}"
            trials.append(attempt(given.manifest, given.data_root, facts, folder, overrides))
        print(row_of(name, trials), flush=True)


if __name__ == "__main__":
    main()
