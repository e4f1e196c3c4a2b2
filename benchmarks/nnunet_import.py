"""nnU-Net's predictor and the imported bundle on the same folder and image, in turns: seconds, memory, equal voxels.

Each run is a process of its own, on one Python that has both (`make import-test` makes it). What is not the network is
measured with a stand-in that computes nothing in its place. Run: `.venv-peers/bin/python -m benchmarks.nnunet_import`
with `PYTHONPATH=tests/imports/stand_ins`; `--help` names the options.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn

from benchmarks.inference_clock import resident_mib
from benchmarks.inference_phantom import volume
from tests.imports.nnunet_folders import FULL, UNET, Kind, make_folder

SPACING_MM = 1.5
SOURCE_MM = (0.75, 0.75, 1.0)
PATCH_VOX = 128
SMALL = [8, 12, 16]
FULL_SIZE = [32, 64, 128, 256, 320, 320]
"""Channels of what nnU-Net plans for CT: 31 million weights."""

TRAINED_PATCH_VOX = 24


@dataclass(frozen=True)
class Job:
    """What is compared.

    Args:
        name: of the line in the table.
        slices: of the image, 512 x 512 each (`plane_vox`).
        classes: with the background.
        mirroring: the eight views of it are averaged.
        channels: of the network's levels.
        is_nothing: a stand-in takes the place of the network.
        plane_vox: side of a slice.
    """

    name: str
    slices: int
    classes: int
    mirroring: bool = False
    channels: tuple[int, ...] = tuple(SMALL)
    is_nothing: bool = True
    plane_vox: int = 512

    @property
    def file_name(self) -> str:
        """Return the name of results."""
        return f"{self.name.replace(' ', '-').replace(',', '')}.nii.gz"

    def folder(self, cache: Path) -> Path:
        """Return the folder `TRAINER__PLANS__CONFIGURATION` that nnU-Net made, now or earlier."""
        root = cache / f"folder-{self.classes}-{self.channels[0]}-{int(self.mirroring)}"
        made = root / "Dataset001_Blobs" / f"nnUNetTrainer__nnUNetPlans__{FULL}"
        if not (made / "plans.json").exists():
            labels = {"background": 0} | {f"structure {value}": value for value in range(1, self.classes)}
            axes = (0, 1, 2) if self.mirroring else None
            change = functools.partial(_change, channels=self.channels)
            kind = Kind(labels=labels, channels=("CT",), mirroring=axes, change=change)
            make_folder(root, kind, steps=60 if self.channels == tuple(SMALL) else 2)
            _set_patch(made / "plans.json", PATCH_VOX)
        return made

    def image(self, cache: Path) -> Path:
        """Return the CT."""
        path = cache / f"ct-{self.plane_vox}-{self.slices}-spacing.nii.gz"
        if not path.exists():
            made = nib.load(volume(cache, self.plane_vox, self.slices)[0])
            nib.save(nib.Nifti1Image(np.asarray(made.dataobj), np.diag([*SOURCE_MM, 1.0])), path)
        return path


JOBS = {
    job.name: job
    for job in (
        Job("15 classes", 200, 15, mirroring=True),
        Job("60 classes", 200, 60),
        Job("105 classes, 800 slices", 800, 105, is_nothing=False),
        Job("full-size network", 160, 15, channels=tuple(FULL_SIZE), is_nothing=False, plane_vox=320),
    )
}
ALONE = "105 classes, 800 slices"
"""nnU-Net's class scores of this image are 41 GiB in float16, and do not fit."""


def _change(plans: dict[str, Any], channels: Sequence[int]) -> None:
    plan = plans["configurations"][FULL]
    levels = len(channels)
    side = max(TRAINED_PATCH_VOX, 2**levels)
    plan["spacing"], plan["patch_size"] = [SPACING_MM] * 3, [side] * 3
    plan["architecture"]["network_class_name"] = f"{UNET}PlainConvUNet"
    plan["architecture"]["arch_kwargs"] |= {
        "n_stages": levels,
        "features_per_stage": list(channels),
        "kernel_sizes": [[3, 3, 3]] * levels,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (levels - 1),
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
    }


def _set_patch(path: Path, side_vox: int) -> None:
    plans = json.loads(path.read_text(encoding="utf-8"))
    plans["configurations"][FULL]["patch_size"] = [side_vox] * 3
    path.write_text(json.dumps(plans), encoding="utf-8")


# --- one run, in a process of its own ---------------------------------------------------------------------------------


class Nothing(nn.Module):
    """Gives the same scores for every window."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scores = torch.randn((1, classes, *[PATCH_VOX] * 3), generator=torch.Generator().manual_seed(0))

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return a copy, for nnU-Net weights what it gets in place."""
        del window
        return self.scores.clone()


def theirs(job: Job, cache: Path, out: Path) -> Callable[[], None]:
    """Return what segments as nnU-Net does, with the network loaded."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: PLC0415

    predictor = nnUNetPredictor(use_mirroring=job.mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(job.folder(cache)), None)
    if job.is_nothing:
        predictor.network, predictor.list_of_parameters = Nothing(job.classes), [Nothing(job.classes).state_dict()]
    reader = predictor.plans_manager.image_reader_writer_class()

    def segment() -> None:
        voxels, properties = reader.read_images([str(job.image(cache))])
        reader.write_seg(predictor.predict_single_npy_array(voxels, properties), str(out), properties)

    return segment


def ours(job: Job, cache: Path, out: Path, *, fast: bool) -> Callable[[], None]:
    """Return what segments as the imported bundle does, opened."""
    from voxelgate import open_bundle, write_label_map  # noqa: PLC0415
    from voxelgate.inference.pass_options import PassOptions  # noqa: PLC0415

    bundle = open_bundle(imported(job, cache), "cpu")
    if job.is_nothing:
        bundle = dataclasses.replace(bundle, network=Nothing(job.classes))
    if fast:
        bundle = dataclasses.replace(bundle, inferer=bundle.inferer.adjusted(PassOptions(fast=True)))

    def segment() -> None:
        found = bundle.segment(job.image(cache))
        write_label_map(out, found.labels, found.grid, overwrite=True)

    return segment


def imported(job: Job, cache: Path) -> Path:
    """Return the bundle of nnU-Net's folder, imported now or earlier."""
    folder = job.folder(cache)
    bundle = cache / f"bundle-{folder.parents[1].name}"
    if not bundle.exists():
        program = Path(sys.executable).with_name("voxelgate")
        subprocess.run([program, "import", folder, "--out", bundle], check=True, stdout=sys.stderr)
    return bundle


def measure(way: str, job: Job, cache: Path) -> dict[str, float]:
    """Run once, in this process, and return seconds of clock and of processors, and the peak of the memory."""
    torch.set_num_threads(2)
    out = cache / f"{way}-{job.file_name}"
    segment = theirs(job, cache, out) if way == "nnunet" else ours(job, cache, out, fast=way == "fast")
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    segment()
    return {
        "wall_s": time.perf_counter() - began_s,
        "cpu_s": time.process_time() - began_cpu_s,
        "peak_mib": resident_mib("VmHWM"),
    }


# --- all of them, in turns --------------------------------------------------------------------------------------------


def compare(job: Job, cache: Path, repeats: int) -> None:
    """Print a table of one job, all ways in turns, with the medians of several runs."""
    ways = ["exact"] if job.name == ALONE else ["nnunet", "exact"] + ([] if job.is_nothing else ["fast"])
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    job.folder(cache), job.image(cache)
    for _ in range(repeats):
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.nnunet_import", "--cache", str(cache), "--run", way, job.name]
            done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\n{job.name}, {job.plane_vox} x {job.plane_vox} x {job.slices}{', without network' * job.is_nothing}")
    for way in ways:
        medians = {key: statistics.median(run[key] for run in runs[way]) for key in ("wall_s", "cpu_s", "peak_mib")}
        share = "" if way == "nnunet" else f", {_equal(cache, job, way)}"
        print(
            f"| {way} | {medians['wall_s']:.1f} s | {medians['cpu_s']:.1f} s | {medians['peak_mib']:.0f} MiB |{share}"
        )


def _equal(cache: Path, job: Job, way: str) -> str:
    if job.name == ALONE:
        return "nnU-Net does not fit"
    first, second = (np.asarray(nib.load(cache / f"{one}-{job.file_name}").dataobj) for one in (way, "nnunet"))
    return f"{np.count_nonzero(first != second)} of {first.size} voxels differ"


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", help=f"of {', '.join(JOBS)}; all by default")
    parser.add_argument("--cache", type=Path, required=True, help="folder for images, models and results")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=("nnunet", "exact", "fast"), help="one run in this process, for the others")
    given = parser.parse_args()
    if given.run:
        print(json.dumps(measure(given.run, JOBS[given.jobs[0]], given.cache)))
        return
    for name in given.jobs or JOBS:
        compare(JOBS[name], given.cache, given.repeats)


if __name__ == "__main__":
    main()
