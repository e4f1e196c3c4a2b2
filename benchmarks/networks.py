"""Compare networks on one fold: the same steps, batch, patches, random changes and learning rates, several seeds.

Each network gets into its bundle by `network` (and `channels`) of the plan's overrides, and nothing else. What is done
is kept in the folder and not done again.

python -m benchmarks.networks data_manifests/hippocampus.json DATA --out FOLDER --plot docs/images/networks.svg
"""

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import networks_plot
from benchmarks.step import medians_s
from voxelgate.bundle.workflow import build_component
from voxelgate.datasets.manifest import load_manifest
from voxelgate.datasets.survey import survey
from voxelgate.evaluation.scores import Measure
from voxelgate.evaluation.table import MEAN_OVER_LABELS, summarise
from voxelgate.inference.precision import keep_large_buffers
from voxelgate.networks import describe, presets
from voxelgate.training.configs.steps import network_config
from voxelgate.training.configs.train_config import loss
from voxelgate.training.planning import Budget, Plan, plan
from voxelgate.training.planning.make_bundle import make_bundle
from voxelgate.training.planning.rules import WARMUP_SHARE
from voxelgate.training.train import TRAINING, TrainingJob, evaluate_fold, train

SUPERVISED = {"deep_supervision": 2}
"""Coarser levels that learn too, as in the plan's own network; MONAI's networks have no such thing."""

NARROWER = (15, 30, 60, 120)
"""For what interpolates and then convolves, and would have 15 % more parameters at the plan's 16 to 128."""

WIDER = (17, 34, 68, 136)
"""For MONAI's UNet, which would have 15 % fewer."""

RESIDUAL = {
    "_target_": "monai.networks.nets.ResNet",
    "block": "basic",
    "layers": [1, 1, 1, 1],
    "block_inplanes": [14, 28, 56, 112],
    "n_input_channels": 1,
    "conv1_t_stride": 2,
    "no_max_pool": True,
}
"""A small residual backbone; its finest stage has half the size of the image, where the usual one has a quarter."""


class Kind(StrEnum):
    """What attention a network has."""

    GATED = "gates on the skip connections"
    OTHER = "other attention"
    NONE = "no attention"


COLOURS = {Kind.GATED: "#0072B2", Kind.OTHER: "#D55E00", Kind.NONE: "#000000"}
"""Of Okabe and Ito, which are told apart without seeing red or green."""


@dataclass(frozen=True)
class Contender:
    """A network and how it gets into a plan.

    Args:
        target: what a config calls; the plan's own network if empty.
        arguments: besides those that the plan gives to every network.
        channels: of the levels; those of the plan if empty.
        kind: of its attention.
    """

    target: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[int, ...] = ()
    kind: Kind = Kind.GATED

    @property
    def overrides(self) -> dict[str, Any]:
        """Return what a plan is overridden with."""
        named = {"network": {"_target_": self.target, **self.arguments}} if self.target else {}
        return named | ({"channels": list(self.channels)} if self.channels else {})


def _preset(name: str, channels: tuple[int, ...] = (), kind: Kind = Kind.GATED, **arguments: Any) -> Contender:
    return Contender(f"voxelgate.networks.presets.{name}", SUPERVISED | arguments, channels, kind)


REFERENCE = "unet"
"""Whose seconds are 1."""

NETWORKS: Mapping[str, Contender] = {
    "AttentionUNet": Contender(),
    "oktay": _preset("oktay"),
    "batchnorm-gate": _preset("batchnorm_gate", NARROWER, spatial_dims=3),
    "lean-gate": _preset("lean_gate", NARROWER, spatial_dims=3),
    "trilinear": _preset("trilinear", NARROWER),
    "upsample-in-gate": _preset("upsample_in_gate"),
    REFERENCE: _preset("unet", kind=Kind.NONE),
    "NonLocalUNet": Contender("voxelgate.NonLocalUNet", SUPERVISED, kind=Kind.OTHER),
    "GuidedAttentionNet": Contender(
        "voxelgate.GuidedAttentionNet", {"width": 8, "backbone": RESIDUAL}, kind=Kind.OTHER
    ),
    "MONAI AttentionUnet": Contender("monai.networks.nets.AttentionUnet"),
    "MONAI UNet": Contender("monai.networks.nets.UNet", {"num_res_units": 2}, WIDER, Kind.NONE),
}
"""At equal parameters, 1.34 to 1.47 million."""

FLAT: Mapping[str, Callable[..., nn.Module]] = {
    "batchnorm-gate, half the channels inside": presets.batchnorm_gate,
    "lean-gate, a quarter": presets.lean_gate,
    "neither, no gates": lambda **ends: presets.batchnorm_gate(attention=False, **ends),
}
FLAT_SIDE_VOX = 256
"""The two presets that differ in their gates alone, as they are used in 2D: 64 to 1024 channels, and a usual image."""

EPOCHS = 4
AVERAGE_SHARE = 0.1
"""Of the steps: how far the running average of the weights reaches back, as in the plan's rule for short trainings."""

FLOP_SIDE_VOX = 64
MULTIPLE_VOX = 8
"""Sizes that all networks take, MONAI's too."""

MEMORY_STEPS = 3
MIB = 2**20
NO_BUDGET = Budget(minutes=1, step_s=1)
"""Says nothing: the overrides set the pace."""

TRAINING_OVERRIDES = {
    "precision": "float32",  # bfloat16 has wrong gradients on CPUs where a level is two voxels deep
    "validate#dataset#data": "$datalist(@manifest, data_root=@data_root, fold=@fold, part='validation')[:1]",
}
"""One validation at the end chooses nothing, so that a single case does; all are measured after the training."""


@dataclass(frozen=True)
class Comparison:
    """What all networks have in common.

    Args:
        manifest: the data set.
        data_root: folder the manifest's paths start from.
        out: folder that keeps bundles, weights and results.
        fold: not seen in training.
        steps: of the optimiser.
        batch: patches a step.
        threads: of one training.
    """

    manifest: Path
    data_root: Path
    out: Path
    fold: int
    steps: int
    batch: int
    threads: int


@dataclass(frozen=True)
class Score:
    """What one training brought.

    Args:
        dice: mean over structures of the means over the subjects of the fold.
        hd95_mm: likewise, where both the reference and the prediction hold the structure.
        missed: structures that were not found, over all cases.
        train_s: processor time of the training, its one validation included.
        wall_s: the same by the clock.
    """

    dice: float
    hd95_mm: float
    missed: int
    train_s: float
    wall_s: float


@dataclass(frozen=True)
class Cost:
    """What a network needs.

    Args:
        parameters: numbers that are learnt.
        gflop: of a forward pass of `FLOP_SIDE_VOX` cubed; a multiply-add counts as two.
        forward_s: of a forward pass of the median image.
        step_s: of a training step.
        step_mib: peak memory of a training step.
    """

    parameters: int
    gflop: float
    forward_s: float
    step_s: float
    step_mib: float


def overrides_of(common: Comparison, name: str, seed: int) -> dict[str, Any]:
    """Return the overrides of the plan: those of the network, and the pace that is the same for all."""
    pace = {
        "epochs": EPOCHS,
        "steps_per_epoch": common.steps // EPOCHS,
        "batch_size": common.batch,
        "warmup_steps": max(1, round(common.steps * WARMUP_SHARE)),
        "average_decay": round(1 - 1 / max(5.0, common.steps * AVERAGE_SHARE), 4),
        "validate_every": EPOCHS,
        "seed": seed,
    }
    return NETWORKS[name].overrides | {"training": pace, "flip_test": False}


def train_and_score(common: Comparison, name: str, seed: int) -> None:
    """Plan, train and measure one network with one seed; writes its result, which marks it as done."""
    folder = common.out / name.replace(" ", "_") / f"seed_{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    torch.set_num_threads(common.threads)
    bundle, trained = folder / "bundle", folder / "trained"
    overrides = overrides_of(common, name, seed)
    cache = common.out / "survey"
    make_bundle(common.manifest, bundle, NO_BUDGET, data_root=common.data_root, overrides=overrides, cache=cache)
    job = TrainingJob(bundle, common.manifest, trained, common.data_root, common.fold, overrides=TRAINING_OVERRIDES)
    start_s, wall_s = time.process_time(), time.monotonic()
    train(job)
    train_s, wall_s = time.process_time() - start_s, time.monotonic() - wall_s
    rows = evaluate_fold(trained, common.manifest, trained / TRAINING, data_root=common.data_root, fold=common.fold)
    subject_of = {case.case_id: case.subject for case in load_manifest(common.manifest, common.data_root).cases}
    mean = next(row for row in summarise(rows, subject_of) if row.label == MEAN_OVER_LABELS)
    dice, hd95_mm = (mean.statistics[measure].mean for measure in (Measure.DICE, Measure.HD95))
    score = Score(dice, hd95_mm, sum(row.is_missed for row in rows), train_s, wall_s)
    _result_path(common, name, seed).write_text(json.dumps(asdict(score)) + "\n", encoding="utf-8")


def _result_path(common: Comparison, name: str, seed: int) -> Path:
    return common.out / f"{name.replace(' ', '_')}.seed_{seed}.json"


def scores_of(common: Comparison, name: str, seeds: Sequence[int]) -> list[Score]:
    """Return the results that are there."""
    paths = [_result_path(common, name, seed) for seed in seeds]
    return [Score(**json.loads(path.read_text(encoding="utf-8"))) for path in paths if path.is_file()]


def _processes(number: int) -> ProcessPoolExecutor:
    """Return processes that end with their task; they fork from one that has imported everything."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["voxelgate.training.train", "voxelgate.training.planning.make_bundle", "monai.networks.nets"]
    )
    return ProcessPoolExecutor(number, mp_context=context, max_tasks_per_child=1)


def run_all(common: Comparison, names: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Train all that is not done, each in a process of its own, the first seed of every network first."""
    to_do = [(name, seed) for seed in seeds for name in names if not _result_path(common, name, seed).is_file()]
    with _processes(jobs) as pool:
        waiting = {pool.submit(train_and_score, common, name, seed): (name, seed) for name, seed in to_do}
        for future in as_completed(waiting):
            name, seed = waiting[future]
            if error := future.exception():
                print(f"{name}, seed {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            else:
                print(f"{name}, seed {seed}: {scores_of(common, name, [seed])[0]}", file=sys.stderr, flush=True)


class Pupil:
    """A network of a plan with what a training step of it takes."""

    def __init__(self, planned: Plan) -> None:
        self.module: nn.Module = build_component(network_config(planned)).to(memory_format=torch.channels_last_3d)
        self.criterion = build_component(loss(planned))
        self.optimizer = torch.optim.AdamW(self.module.parameters())
        shape = (planned.training.batch_size, 1, *planned.patch_vox)
        self.patches = torch.randn(shape).to(memory_format=torch.channels_last_3d)
        self.labels = torch.randint(len(planned.labels), shape).float()

    def step(self) -> None:
        """Run one training step."""
        self.module.train()
        self.optimizer.zero_grad()
        self.criterion(self.module(self.patches), self.labels).backward()
        self.optimizer.step()

    def forward(self, image: torch.Tensor) -> Callable[[], None]:
        """Return a forward pass of an image, as it is run to segment."""

        def run() -> None:
            with torch.inference_mode():
                self.module.eval()(image)

        return run


def measure_costs(common: Comparison, names: Sequence[str], repeats: int) -> dict[str, Cost]:
    """Return the costs of networks; times are taken in turns, so that a machine that gets slower does so for all."""
    facts = survey(load_manifest(common.manifest, common.data_root), cache=common.out / "survey").fingerprint
    plans = {name: plan(facts, NO_BUDGET, overrides_of(common, name, 0)) for name in names}
    torch.set_num_threads(common.threads)
    torch.manual_seed(0)
    keep_large_buffers()
    pupils = [Pupil(planned) for planned in plans.values()]
    size = [math.ceil(n / MULTIPLE_VOX) * MULTIPLE_VOX for n in facts.shape_vox]
    image = torch.randn(1, 1, *size).to(memory_format=torch.channels_last_3d)
    cpu = torch.device("cpu")
    forwards_s = medians_s([pupil.forward(image) for pupil in pupils], repeats, "cpu", cpu)
    steps_s = medians_s([pupil.step for pupil in pupils], repeats, "cpu", cpu)
    with _processes(1) as pool:
        memory_mib = list(pool.map(step_memory_mib, plans.values()))
    cube = (1, 1, *[FLOP_SIDE_VOX] * 3)
    costs = {}
    rows = zip(names, pupils, forwards_s, steps_s, memory_mib, strict=True)
    for name, pupil, forward_s, step_s, step_mib in rows:
        facts_of = describe(pupil.module, cube)
        costs[name] = Cost(facts_of.parameters, facts_of.flops / 1e9, forward_s, step_s, step_mib)
    return costs


def step_memory_mib(planned: Plan) -> float:
    """Return by how much a few training steps, and the network itself, raise the peak memory of this process."""
    torch.set_num_threads(1)
    keep_large_buffers()
    before_kib = _status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak to what is in use (proc(5))
    pupil = Pupil(planned)
    for _ in range(MEMORY_STEPS):
        pupil.step()
    return (_status_kib("VmHWM") - before_kib) * 1024 / MIB


def _status_kib(field: str) -> int:
    """Return a field of this process's status in KiB, as Linux counts it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def costs_of(common: Comparison, names: Sequence[str], repeats: int) -> dict[str, Cost]:
    """Return the costs, measured once."""
    path = common.out / "costs.json"
    if not path.is_file():
        measured = measure_costs(common, names, repeats)
        path.write_text(json.dumps({name: asdict(cost) for name, cost in measured.items()}, indent=2), encoding="utf-8")
    return {name: Cost(**values) for name, values in json.loads(path.read_text(encoding="utf-8")).items()}


def print_table(scores: Mapping[str, Sequence[Score]], costs: Mapping[str, Cost]) -> None:
    """Print a table in Markdown, best first."""
    unit = costs[REFERENCE]
    print(
        "| network | Dice | each seed | HD95 mm | missed | parameters | GFLOP | forward pass | training step "
        "| training s | step memory |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for name in sorted(scores, key=lambda name: -_mean_dice(scores[name])):
        found, cost = scores[name], costs[name]
        print(
            f"| {name} | {_mean_dice(found):.4f} | {', '.join(f'{one.dice:.4f}' for one in found)} "
            f"| {statistics.fmean(one.hd95_mm for one in found):.2f} | {sum(one.missed for one in found)} "
            f"| {cost.parameters / 1e6:.2f} M | {cost.gflop:.1f} | {cost.forward_s / unit.forward_s:.2f} "
            f"| {cost.step_s / unit.step_s:.2f} | {statistics.fmean(one.train_s for one in found):.0f} "
            f"| {cost.step_mib:.0f} MiB |"
        )
    print(f"\n1.00 is {unit.forward_s:.3f} s for a forward pass and {unit.step_s:.3f} s for a training step.")


def print_flat_gates(repeats: int, threads: int) -> None:
    """Time both presets that differ in their gates alone, in 2D."""
    torch.set_num_threads(threads)
    nets = {name: make(in_channels=1, out_channels=2).eval() for name, make in FLAT.items()}
    image = torch.randn(1, 1, FLAT_SIDE_VOX, FLAT_SIDE_VOX).to(memory_format=torch.channels_last)

    def forward_pass(net: nn.Module) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                net(image)

        return run

    passes = [forward_pass(net.to(memory_format=torch.channels_last)) for net in nets.values()]
    print("\n| 2D, 64 to 1024 channels, 256 x 256 | parameters | GFLOP | forward pass |\n|---|---|---|---|")
    for (name, net), taken_s in zip(nets.items(), medians_s(passes, repeats, "cpu", torch.device("cpu")), strict=True):
        cost = describe(net, tuple(image.shape))
        print(f"| {name} | {cost.parameters / 1e6:.2f} M | {cost.flops / 1e9:.1f} | {taken_s:.2f} s |")


def _mean_dice(scores: Sequence[Score]) -> float:
    return statistics.fmean(one.dice for one in scores)


def draw(path: Path, scores: Mapping[str, Sequence[Score]], costs: Mapping[str, Cost]) -> None:
    """Draw the Dice of every seed against the time of a forward pass."""
    unit_s = costs[REFERENCE].forward_s
    marks = [
        networks_plot.Mark(
            name, COLOURS[NETWORKS[name].kind], costs[name].forward_s / unit_s, tuple(one.dice for one in found)
        )
        for name, found in scores.items()
    ]
    networks_plot.draw(path, marks, COLOURS, f"time of a forward pass, {REFERENCE} = 1")


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what is done")
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=2, help="patches a step")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--repeats", type=int, default=7, help="of each time, which is the median")
    parser.add_argument("--plot", type=Path, help="SVG file to draw")
    return parser.parse_args()


def main() -> None:
    """Train and measure what is not done, print the tables, and draw the plot."""
    asked = arguments()
    out = asked.out / f"fold_{asked.fold}_{asked.steps}_steps_of_{asked.batch}"
    common = Comparison(asked.manifest, asked.data_root, out, asked.fold, asked.steps, asked.batch, asked.threads)
    common.out.mkdir(parents=True, exist_ok=True)
    run_all(common, asked.only, asked.seeds, asked.jobs)
    costs = costs_of(common, list(NETWORKS), asked.repeats)
    scores = {name: found for name in asked.only if (found := scores_of(common, name, asked.seeds))}
    print_table(scores, costs)
    print_flat_gates(asked.repeats, asked.threads)
    if asked.plot:
        draw(asked.plot, scores, costs)


if __name__ == "__main__":
    main()
