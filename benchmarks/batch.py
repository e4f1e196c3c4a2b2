"""Time what the batch runner adds to the cases: the same volumes by `segment_case()` in a loop, and by the runner.

The time runs from the first report to the last, so that opening the bundle and starting workers is in neither. On a
busy machine look at processor time, which counts the workers too.

Run: `python -m benchmarks.batch --help`.
"""

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import torch

from voxelgate.bundle.opened import open_bundle
from voxelgate.inference.precision import keep_large_buffers
from voxelgate.segmentation.batch.run_batch import cases_in, segment, setup_of
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.report import CaseReport, CaseStatus
from voxelgate.segmentation.segment import segment_case

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "hippocampus_mri_segmentation"
OPTIONS = Options((Output.NIFTI, Output.PREVIEW))
LOOP = "segment() in a loop"


def make_volumes(folder: Path, count: int, side_vox: int) -> None:
    """Write volumes of smooth noise."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = torch.from_numpy(rng.normal(100, 40, (1, 1, 8, 8, 8)))
        voxels = torch.nn.functional.interpolate(coarse, (side_vox,) * 3, mode="trilinear")[0, 0].numpy()
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), folder / f"{number:03}.nii.gz")


def looped(bundle: Path, volumes: Path, out: Path) -> Iterator[CaseReport]:
    """Segment one volume after the other, without a runner."""
    opened = open_bundle(bundle.absolute(), "cpu")
    for case in cases_in([volumes], setup_of(bundle, out, OPTIONS)):
        yield segment_case(case, opened, out, OPTIONS)


def by_runner(engine: str) -> Callable[[Path, Path, Path], Iterator[CaseReport]]:
    """Return what segments the volumes with an engine."""

    def run(bundle: Path, volumes: Path, out: Path) -> Iterator[CaseReport]:
        return segment(bundle, volumes, out, outputs=OPTIONS.outputs, device="cpu", workers=engine, forecast=False)

    return run


def processor_s() -> float:
    """Return the processor time of this process and all below it."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def per_case_s(reports: Iterator[CaseReport]) -> tuple[float, float]:
    """Return wall and processor time for each case after the first."""
    statuses = [next(reports).status]
    wall_s, cpu_s = time.perf_counter(), processor_s()
    ended = wall_s, cpu_s
    for report in reports:
        statuses.append(report.status)
        ended = time.perf_counter(), processor_s()  # before the last one lets the workers go
    if set(statuses) != {CaseStatus.DONE}:
        raise SystemExit("a case was not done, so that the times mean nothing; look at it with voxelgate segment")
    return (ended[0] - wall_s) / (len(statuses) - 1), (ended[1] - cpu_s) / (len(statuses) - 1)


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--volumes", type=Path, help="folder of volumes; made of noise if not given")
    parser.add_argument("--count", type=int, default=20, help="volumes to make")
    parser.add_argument("--side", type=int, default=64, help="voxels of a made volume along each axis")
    parser.add_argument("--rounds", type=int, default=3, help="each contender runs so often, in turns")
    parser.add_argument("--engines", nargs="+", default=["serial", "processes:1"])
    return parser.parse_args()


def main() -> None:
    """Measure and print a table in Markdown."""
    asked = arguments()
    logging.disable(logging.INFO)
    keep_large_buffers()
    contenders = {LOOP: looped} | {f"runner, {engine}": by_runner(engine) for engine in asked.engines}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as scratch:
        volumes = asked.volumes or Path(scratch)
        if asked.volumes is None:
            make_volumes(volumes, asked.count, asked.side)
        for _ in range(asked.rounds):
            for name, run in contenders.items():
                with tempfile.TemporaryDirectory() as out:
                    taken[name].append(per_case_s(run(asked.bundle, volumes, Path(out))))
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, ", end="")
    print(f"{platform.machine()}, {asked.bundle.name}, median of {asked.rounds} rounds\n")
    print("| contender | wall s a case | ratio | processor s a case | ratio |\n|---|---|---|---|---|")
    wall_0, cpu_0 = (statistics.median(column) for column in zip(*taken[LOOP], strict=True))
    for name, times in taken.items():
        wall_s, cpu_s = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {wall_s:.3f} | {wall_s / wall_0:.3f} | {cpu_s:.3f} | {cpu_s / cpu_0:.3f} |")


if __name__ == "__main__":
    main()
