"""Dice against the minutes that a user grants: plan, train and measure one fold for each budget.

python -m benchmarks.budget data_manifests/hippocampus.json DATA --out budget --minutes 5 15 60
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.dice_plot import draw
from voxelgate.datasets.manifest import load_manifest
from voxelgate.evaluation.scores import Measure
from voxelgate.evaluation.table import MEAN_OVER_LABELS, summarise
from voxelgate.inference.precision import keep_large_buffers
from voxelgate.training.distributed import STATE
from voxelgate.training.planning import Budget, Plan
from voxelgate.training.planning.make_bundle import make_bundle
from voxelgate.training.train import TRAINING, TrainingJob, evaluate_fold, train


@dataclass(frozen=True)
class Point:
    """What a budget brought.

    Args:
        minutes: granted.
        used_minutes: by the clock, from the first case that is read to the table of scores.
        planned: optimiser steps.
        steps: optimiser steps that the clock allowed.
        step_s: as measured when the bundle was planned, in processor time.
        dice: mean over structures of the means over the subjects of the fold that was not seen.
    """

    minutes: float
    used_minutes: float
    planned: int
    steps: int
    step_s: float
    dice: float


def measure(manifest: Path, data_root: Path, out: Path, minutes: float, fold: int) -> Point:
    """Plan for a budget, train and measure; what is there is neither planned nor trained again."""
    folder = out / f"{minutes:g}_minutes"
    done = folder / "point.json"
    if done.is_file():
        return Point(**json.loads(done.read_text(encoding="utf-8")))
    bundle = folder / "bundle"
    if not bundle.exists():
        make_bundle(manifest, bundle, Budget(minutes=minutes), data_root=data_root)
    plan = Plan.from_json(bundle / "plan.json")
    start_s = time.monotonic()
    trained = train(TrainingJob(bundle, manifest, folder / "trained", data_root=data_root, fold=fold))
    scores = evaluate_fold(trained, manifest, trained / TRAINING, data_root=data_root, fold=fold)
    used_minutes = (time.monotonic() - start_s) / 60
    subject_of = {case.case_id: case.subject for case in load_manifest(manifest, data_root).cases}
    mean = next(row for row in summarise(scores, subject_of) if row.label == MEAN_OVER_LABELS)
    pace = plan.training
    steps = int(torch.load(trained / TRAINING / STATE, weights_only=True)["keep_time"]["steps"])
    point = Point(
        minutes,
        used_minutes,
        pace.epochs * pace.steps_per_epoch,
        steps,
        plan.budget.step_s,
        mean.statistics[Measure.DICE].mean,
    )
    done.write_text(json.dumps(asdict(point)), encoding="utf-8")
    return point


def main() -> None:
    """Measure all budgets, print a table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 15.0, 60.0])
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_large_buffers()
    points = []
    print("| minutes | used | steps planned | done | s a step | Dice |\n|---|---|---|---|---|---|")
    for minutes in sorted(given.minutes):
        point = measure(given.manifest, given.data_root, given.out, minutes, given.fold)
        points.append(point)
        told = f"| {minutes:g} | {point.used_minutes:.1f} | {point.planned} | {point.steps} | {point.step_s:.2f} "
        print(told + f"| {point.dice:.4f} |")
    line = [(point.minutes, point.dice) for point in points]
    draw(given.out / "budget.svg", "Mean Dice of cases not seen, against minutes granted", {"voxelgate": line})


if __name__ == "__main__":
    main()
