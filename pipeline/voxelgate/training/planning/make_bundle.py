"""From a manifest to a bundle: survey the cases, plan, time the plan, plan again with the time, write."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from voxelgate.core.errors import UsageError, reason_of
from voxelgate.core.files import make_folder
from voxelgate.core.progress import Progress
from voxelgate.datasets.build_manifest import write_manifest
from voxelgate.datasets.manifest import load_manifest
from voxelgate.datasets.survey import Survey, survey
from voxelgate.training.configs.bundle_files import refuse_existing_bundle, write_bundle
from voxelgate.training.planning.adopted import adopted_overrides
from voxelgate.training.planning.plan import Budget, Device, Plan
from voxelgate.training.planning.rules import plan
from voxelgate.training.planning.step_time import step_time

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
    adopted: Path | None = None,
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
        adopted: imported bundle whose network and preparation are taken, for a training that goes on from it.
        cache: folder for what was measured of each case.
        progress: told how many cases are done.

    Raises:
        ManifestError: no manifest, or no sound case.
        OutputError: `out` exists, or the manifest of sound cases does.
        UsageError: overrides that make no plan, or none whose network can be trained.
    """
    refuse_existing_bundle(out)
    make_folder(out.parent)
    if adopted is not None:
        overrides = adopted_overrides(adopted, overrides)
    found = survey(load_manifest(manifest, data_root), cache=cache, progress=progress)
    first = plan(found.fingerprint, budget, overrides)
    made = plan(found.fingerprint, budget if budget.step_s else _budget_timed(first), overrides)
    left_out = {defect.case_id for defect in found.defects if defect.is_left_out}
    used = out.with_name(out.name + SOUND_SUFFIX) if left_out else manifest
    if left_out:
        write_manifest(found.manifest, used)
    write_bundle(made, out, found.fingerprint)
    return Made(made, found, used)


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


def _budget_timed(first: Plan) -> Budget:
    """Return the budget with the time of a training step here; as it was where this machine has no such device."""
    budget = first.budget
    is_gpu = budget.device is Device.GPU
    if is_gpu and not torch.cuda.is_available():
        return budget
    try:
        found = step_time(first, torch.device("cuda" if is_gpu else "cpu"))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(
            f"the planned network cannot be trained on its patches ({reason_of(error)}); change the overrides"
        ) from error
    clock_s = round(found.clock_s, 4) if found.is_slowed else 0.0
    return replace(budget, step_s=round(found.free_s, 4), clock_s=clock_s)
