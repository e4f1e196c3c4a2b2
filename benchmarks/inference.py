"""Time and weigh the way from a CT file to its label map: ours, MONAI's, and the whole volume at once; then the limits.

Every contender runs in a process of its own, in turn, with a probe of the machine's speed before each.
Run: `python -m benchmarks.inference --help`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import torch

from benchmarks import inference_nnunet
from benchmarks.inference_chains import CONTENDERS
from benchmarks.inference_clock import CLOCKS
from benchmarks.inference_phantom import trained, volume
from benchmarks.inference_plot import draw
from benchmarks.inference_speed import probe_gflops, roofline
from voxelgate.inference.precision import keep_large_buffers

STAGES = ("read", "preprocess", "network", "restore", "write")
LAW = {"slices": (200, 400, 800), "classes": (5, 105)}
MIB = 2**20
WITHOUT_NNUNET = [name for name, contender in CONTENDERS.items() if contender.network != "nnunet"]


@dataclass(frozen=True)
class Job:
    """What is to be segmented, and with how many classes."""

    cache: Path
    plane_vox: int
    slices: int
    classes: int
    overlap: float
    clock: str

    @property
    def image(self) -> Path:
        """Return the CT."""
        return volume(self.cache, self.plane_vox, self.slices)[0]

    @property
    def truth(self) -> Path:
        """Return the labels of the phantom."""
        return volume(self.cache, self.plane_vox, self.slices)[1]

    @property
    def arrays_mib(self) -> float:
        """Return what image (int16) and result (uint8) take by themselves."""
        return 3 * self.plane_vox**2 * self.slices / MIB

    def result_of(self, contender: str) -> Path:
        """Return the label map that a contender writes."""
        way = f"{contender}-{self.slices}-{self.classes}" + ("" if contender == "reference" else f"-{self.overlap}")
        return self.cache / way / self.image.name


@dataclass
class Runs:
    """What several runs of a contender took, and the speed of the machine before each."""

    seconds: list[dict[str, float]] = field(default_factory=list)
    peaks_mib: list[dict[str, float]] = field(default_factory=list)
    libraries_mib: list[float] = field(default_factory=list)
    probes_gflops: list[float] = field(default_factory=list)
    streamed_vox: tuple[int, ...] = ()

    def run(self, contender: str, job: Job) -> None:
        """Run once more."""
        options = {"image": job.image, "out": job.result_of(contender).parent, "weights": trained(job.cache)}
        given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        numbers = ["--classes", str(job.classes), "--overlap", str(job.overlap), "--clock", job.clock]
        is_nnunet = CONTENDERS[contender].network == "nnunet"
        python = inference_nnunet.python_of(job.cache) if is_nnunet else sys.executable
        module = f"benchmarks.{'inference_nnunet' if is_nnunet else 'inference_chains'}"
        command = [python, "-m", module, contender, *given, *numbers]
        self.probes_gflops.append(probe_gflops(CLOCKS[job.clock]))
        environment = os.environ | CONTENDERS[contender].environment
        done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment)
        taken = json.loads(done.stdout.splitlines()[-1])
        self.seconds.append(taken["seconds"])
        self.peaks_mib.append(taken["peaks_mib"])
        self.libraries_mib.append(taken["libraries_mib"])
        self.streamed_vox = tuple(taken["streamed_vox"])
        print(f"{contender}, {job.slices} slices: {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)

    def median_s(self, stage: str) -> float:
        """Return the median seconds of a stage, or of all ("total")."""
        return statistics.median(taken[stage] for taken in self.seconds)

    @property
    def peak_mib(self) -> float:
        """Return the median of the highest resident memory."""
        return statistics.median(max(peaks.values()) for peaks in self.peaks_mib)

    def stage_peak_mib(self, stage: str) -> float:
        """Return the highest resident memory of a stage, libraries and weights taken off."""
        both = zip(self.peaks_mib, self.libraries_mib, strict=True)
        return statistics.median(peaks[stage] - libraries for peaks, libraries in both)

    def own_mib(self, job: Job) -> float:
        """Return the peak without libraries and weights, and without image and result."""
        return self.peak_mib - statistics.median(self.libraries_mib) - job.arrays_mib


def agreement(found: Path, expected: Path) -> tuple[float, float]:
    """Return the share of equal voxels, and the lowest Dice of a structure that is there."""
    labels, others = (np.asarray(nib.load(path).dataobj).astype(np.uint8) for path in (found, expected))
    dice = []
    for value in np.unique(others)[1:]:
        mine, theirs = labels == value, others == value
        dice.append(2 * np.count_nonzero(mine & theirs) / (np.count_nonzero(mine) + np.count_nonzero(theirs)))
    return np.count_nonzero(labels == others) / labels.size, min(dice)


def compare(job: Job, contenders: list[str], repeats: int) -> dict[str, Runs]:
    """Run all in turn and print what they took, and how far they agree with the whole volume at once."""
    runs = {name: Runs() for name in contenders}
    if not job.result_of("reference").exists() and "reference" not in runs:
        Runs().run("reference", job)
    for number in range(repeats):
        for name in contenders:
            if name != "reference" or number == 0:
                runs[name].run(name, job)
    print_times(job, runs)
    print_agreement(job, contenders)
    if "streaming" in runs:
        print_roofline(job, runs["streaming"].streamed_vox, repeats)
    return runs


def print_times(job: Job, runs: dict[str, Runs]) -> None:
    """Print seconds by stage, ratios and memory."""
    print(f"\n| way | {' | '.join(STAGES)} | total | ratio | peak memory | its own part | probe |")
    print("|" + "---|" * (len(STAGES) + 6))
    fastest_s = min(run.median_s("total") for run in runs.values())
    for name, run in runs.items():
        stages = " | ".join(f"{run.median_s(stage):.2f}" for stage in STAGES)
        total_s, peak_gib, own_gib = run.median_s("total"), run.peak_mib / 2**10, run.own_mib(job) / 2**10
        print(
            f"| {CONTENDERS[name].title} | {stages} | {total_s:.1f} s | {total_s / fastest_s:.1f} "
            f"| {peak_gib:.2f} GiB | {own_gib:.2f} GiB | {statistics.median(run.probes_gflops):.0f} |"
        )


def print_agreement(job: Job, contenders: list[str]) -> None:
    """Print how far results of our network agree with the reference, and all with the truth."""
    print("\n| way | voxels equal to the whole volume at once | lowest Dice with it | lowest Dice with the truth |")
    print("|---|---|---|---|")
    for name in dict.fromkeys([*contenders, "reference"]):
        truth = agreement(job.result_of(name), job.truth)[1]
        equal, dice = agreement(job.result_of(name), job.result_of("reference"))
        same = CONTENDERS[name].network == "ours"
        cells = f"{100 * equal:.5f} % | {dice:.4f}" if same else "another network | -"
        print(f"| {CONTENDERS[name].title} | {cells} | {truth:.3f} |")


def print_roofline(job: Job, size_vox: tuple[int, ...], repeats: int) -> None:
    """Print the time of the network against that of its operations at the machine's best rate."""
    found = roofline((size_vox[0], size_vox[1], size_vox[2]), job.classes, repeats, CLOCKS[job.clock])
    print(
        f"\nThe network needs {found.gflop:.0f} GFLOP on the {size_vox} voxels of the body. Streaming it took "
        f"{statistics.median(found.ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in found.ratios)}) times as long "
        f"as its operations take at the mean rate of the fastest convolution ({found.convolution}), run after every "
        f"second slab: {found.gflops:.0f} GFLOP/s the last time."
    )


def law(jobs: list[Job], repeats: int) -> None:
    """Print time and memory of streaming over slices and classes."""
    runs = [Runs() for _ in jobs]
    for _ in range(repeats):
        for run, job in zip(runs, jobs, strict=True):
            run.run("streaming", job)
    print(
        "\n| classes | slices | total | a slice | around the network | peak memory | image and result | its own part |"
    )
    print("|" + "---|" * 8)
    for run, job in zip(runs, jobs, strict=True):
        total_s, own_gib = run.median_s("total"), run.own_mib(job) / 2**10
        around = 1 - run.median_s("network") / total_s
        print(
            f"| {job.classes} | {job.slices} | {total_s:.1f} s | {1000 * total_s / job.slices:.0f} ms "
            f"| {100 * around:.0f} % | {run.peak_mib / 2**10:.2f} GiB | {job.arrays_mib / 2**10:.2f} GiB "
            f"| {own_gib:.2f} GiB |"
        )
    print("\nMiB at the peak of each stage, libraries and weights taken off:\n")
    print(
        f"| classes | slices | {' | '.join(('preprocess', 'network', 'restore', 'all'))} |\n|---|---|---|---|---|---|"
    )
    for run, job in zip(runs, jobs, strict=True):
        peaks = (run.stage_peak_mib(stage) for stage in ("preprocess", "network", "restore", "write"))
        print(f"| {job.classes} | {job.slices} | {' | '.join(f'{mib:.0f}' for mib in peaks)} |")


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for volumes, weights and results")
    parser.add_argument("--plane", type=int, default=512, help="voxels of a slice along both axes")
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--overlap", type=float, default=0.25, help="of windows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=WITHOUT_NNUNET, help="contenders")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, on a busy machine")
    parser.add_argument("--plot", type=Path, help="SVG file to draw the seconds into")
    parser.add_argument("--law", action="store_true", help="time and memory of streaming over slices and classes")
    return parser.parse_args()


def main() -> None:
    """Measure and print tables in Markdown."""
    asked = arguments()
    keep_large_buffers()
    print(
        f"PyTorch {torch.__version__}, MONAI {monai.__version__}, {torch.get_num_threads()} threads of "
        f"{os.cpu_count()} cores, float32, median of {asked.repeats}, {asked.clock} time."
    )
    if asked.law:
        lengths = [(slices, classes) for classes in LAW["classes"] for slices in LAW["slices"]]
        law([Job(asked.cache, asked.plane, *one, asked.overlap, asked.clock) for one in lengths], asked.repeats)
    else:
        job = Job(asked.cache, asked.plane, asked.slices, asked.classes, asked.overlap, asked.clock)
        runs = compare(job, asked.only, asked.repeats)
        if asked.plot is not None:
            bars = {CONTENDERS[n].title: [run.median_s(stage) for stage in STAGES] for n, run in runs.items()}
            draw(asked.plot, STAGES, bars)


if __name__ == "__main__":
    main()
