"""Dice against the minutes that a user grants: plan, train and measure one fold for each budget.

python benchmarks/budget.py data_manifests/hippocampus.json DATA --out budget --minutes 5 15 60
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from voxelgate.datasets.manifest import load_manifest
from voxelgate.evaluation.scores import Measure
from voxelgate.evaluation.table import MEAN_OVER_LABELS, summarise
from voxelgate.inference.precision import keep_large_buffers
from voxelgate.training.planning import Budget, Plan
from voxelgate.training.planning.make_bundle import make_bundle
from voxelgate.training.train import TRAINING, TrainingJob, evaluate_fold, train

WIDTH, HEIGHT, MARGIN = 520, 320, 60
"""Pixels of the plot, and of the room for its axes."""


@dataclass(frozen=True)
class Point:
    """What a budget brought.

    Args:
        minutes: granted.
        used_minutes: by the clock, from the first case that is read to the last validation.
        steps: optimiser steps.
        step_s: as measured when the bundle was planned.
        dice: mean over structures of the means over the subjects of the fold that was not seen.
    """

    minutes: float
    used_minutes: float
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
    used_minutes = (time.monotonic() - start_s) / 60
    scores = evaluate_fold(trained, manifest, trained / TRAINING, data_root=data_root, fold=fold)
    subject_of = {case.case_id: case.subject for case in load_manifest(manifest, data_root).cases}
    mean = next(row for row in summarise(scores, subject_of) if row.label == MEAN_OVER_LABELS)
    pace = plan.training
    steps = pace.epochs * pace.steps_per_epoch
    point = Point(minutes, used_minutes, steps, plan.budget.step_s, mean.statistics[Measure.DICE].mean)
    done.write_text(json.dumps(asdict(point)), encoding="utf-8")
    return point


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw Dice against minutes, which double from mark to mark."""
    low, high = math.log2(min(p.minutes for p in points)), math.log2(max(p.minutes for p in points))
    bottom = math.floor(min(p.dice for p in points) * 50 - 0.5) / 50
    top = math.ceil(max(p.dice for p in points) * 50 + 0.5) / 50

    def place(point: Point) -> tuple[float, float]:
        across = (math.log2(point.minutes) - low) / ((high - low) or 1.0)
        up = (point.dice - bottom) / (top - bottom)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    places = [place(point) for point in points]
    marks = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#1f4e79"/>'
        f'<text x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">{point.dice:.3f}</text>'
        f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle">{point.minutes:g}</text>'
        for point, (x, y) in zip(points, places, strict=True)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{WIDTH / 2}" y="24" text-anchor="middle">Mean Dice of cases not seen, against minutes granted</text>'
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#888"/>'
        f'<text x="{MARGIN - 8}" y="{HEIGHT - MARGIN}" text-anchor="end">{bottom:.2f}</text>'
        f'<text x="{MARGIN - 8}" y="{MARGIN + 5}" text-anchor="end">{top:.2f}</text>'
        f'<polyline points="{line}" fill="none" stroke="#86b6d6" stroke-width="2"/>{"".join(marks)}</svg>\n',
        encoding="utf-8",
    )


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
    print("| minutes | used | steps | s a step | Dice |\n|---|---|---|---|---|")
    for minutes in sorted(given.minutes):
        point = measure(given.manifest, given.data_root, given.out, minutes, given.fold)
        points.append(point)
        print(f"| {minutes:g} | {point.used_minutes:.1f} | {point.steps} | {point.step_s:.2f} | {point.dice:.4f} |")
    draw(points, given.out / "budget.svg")


if __name__ == "__main__":
    main()
