"""From a manifest to a bundle: survey the cases, plan, time the plan, plan again with the time, write."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.manifest import load
from pipeline.manifest_build import leave_out, write
from pipeline.manifest_check import Progress
from pipeline.planning.calibrate import step_time_s
from pipeline.planning.fingerprint import Survey, survey
from pipeline.planning.plan import plan
from pipeline.planning.records import Budget, Device, Plan
from pipeline.planning.write import write_bundle

SOUND_SUFFIX = "_manifest.json"
"""What follows the bundle's name in the file that lists the sound cases of a data set with defects."""


CPU_MEMORY_GB = 4.0
"""What a training takes at most if nobody says otherwise; every machine that can train has it."""


@dataclass(frozen=True)
class Made:
    """A bundle that was planned and written.

    Args:
        plan: its numbers, with the measured time of a step.
        survey: what was found in the data.
        manifest: to train on: the one that was given, or one without the cases that were left out.
    """

    plan: Plan
    survey: Survey
    manifest: Path


def make_bundle(  # noqa: PLR0913  # each is an option of the command
    manifest: Path,
    out: Path,
    budget: Budget,
    *,
    data_root: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Made:
    """Write the bundle that fits a data set and a budget, and beside it a manifest of its sound cases if some are not.

    Args:
        manifest: the data set.
        out: bundle folder to make; must not exist.
        budget: what the training may cost; the time of a step is measured where it says none.
        data_root: folder the manifest's paths start from; its own folder if None.
        overrides: values that count instead of the rules'.
        cache: folder for what was measured of each case.
        progress: told how many cases are done.

    Raises:
        ManifestError: no manifest, or no sound case.
        OutputError: `out` exists.
        UsageError: overrides that make no plan.
    """
    found = survey(load(manifest, data_root), cache=cache, progress=progress)
    first = plan(found.fingerprint, budget, overrides)
    timed = budget if budget.step_s else replace(budget, step_s=round(step_time_s(first, _device(budget)), 4))
    made = plan(found.fingerprint, timed, overrides)
    write_bundle(made, out, found.fingerprint)
    left_out = {defect.case_id for defect in found.defects if defect.is_left_out}
    if not left_out:
        return Made(made, found, manifest)
    sound = out.with_name(out.name + SOUND_SUFFIX)
    write(leave_out(manifest, left_out), sound)
    return Made(made, found, sound)


def budget_here(minutes: float, device: Device | None = None, memory_gb: float | None = None) -> Budget:
    """Return a budget for this machine.

    Args:
        minutes: that the training of one fold may take.
        device: where it will run; a GPU if there is one.
        memory_gb: for training; by default `CPU_MEMORY_GB`, or what the GPU has free.
    """
    has_gpu = torch.cuda.is_available()
    chosen = device or (Device.GPU if has_gpu else Device.CPU)
    free_gb = torch.cuda.mem_get_info()[0] / 1e9 if has_gpu and chosen is Device.GPU else CPU_MEMORY_GB
    return Budget(chosen, memory_gb or free_gb, minutes)


def _device(budget: Budget) -> torch.device:
    has_gpu = budget.device is Device.GPU and torch.cuda.is_available()
    return torch.device("cuda" if has_gpu else "cpu")
