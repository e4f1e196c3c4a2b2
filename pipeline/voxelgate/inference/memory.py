"""How large a window may be: a memory model of the network, and the window that computes fewest voxels within it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from voxelgate.core.errors import UsageError
from voxelgate.inference.restoring.placement import GROUP_VOXELS
from voxelgate.inference.restoring.restorer import BLOCK_SCORES
from voxelgate.inference.windows import PIECE_SCORES, Predictor, WindowPlan, axis_starts
from voxelgate.networks.describe import LiveMemory

PROBE_VOX = 48
"""Side of the window a network is measured with; memory grows in proportion from there, if it is convolutional."""

WORKSPACE = 1.3
"""What convolutions take beside the tensors PyTorch shows; oneDNN and cuDNN stay below a third for 3x3x3 kernels."""

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells the limit of this process's group, as a container has one, which psutil does not look at."""

SHARE = 0.5
"""Part of the available memory that is used when no limit is given."""

EARLIER_AXIS = 1.5
"""An earlier axis may take this many times the memory: slices along it lie whole in memory, and blend in a sixth of
the time that slices along the last axis take."""

GROUP_BYTES = 120
"""Bytes for each source voxel in work while restoring: three positions, cells and weights, and what they pick."""

GIB = 2**30


Result = TypeVar("Result")

HALVINGS = 4
"""A sixteenth of what was free and still too much: smaller windows would not help."""


@dataclass(frozen=True)
class MemoryModel:
    """What a network takes, in proportion to its window.

    Args:
        bytes_per_voxel: peak of a pass for each voxel of a window, input and output included.
        classes: channels of its output.
    """

    bytes_per_voxel: float
    classes: int

    def needed_bytes(self, plan: WindowPlan) -> int:
        """Return the peak of running a plan and restoring its slabs, beside the image and the result."""
        plane = math.prod(plan.plane_vox)
        grid = self.classes * plane * plan.size_vox[plan.axis]
        blended = (self.classes + 1) * plane * plan.depth_vox
        restored = [min(grid, max(most, 2 * self.classes * plane)) for most in (PIECE_SCORES, BLOCK_SCORES)]
        scores = blended + 2 * restored[0] + 3 * restored[1] + 3 * self.classes * plane
        network = self.bytes_per_voxel * math.prod(plan.window_vox) * plan.batch
        return int(network) + 4 * scores + GROUP_BYTES * GROUP_VOXELS


def measure_memory(
    predict: Predictor, image: torch.Tensor, window_vox: Sequence[int], multiple: int = 1
) -> MemoryModel:
    """Run a small window and follow the tensors it makes.

    Args:
        predict: what will run on the windows.
        image: (1, C, i, j, k); its channels and device are those of the windows, its voxels are not read.
        window_vox: a window the network is known to take; the probe is no larger along any axis.
        multiple: sizes the network accepts.
    """
    probe = [min(n, math.ceil(PROBE_VOX / multiple) * multiple) for n in window_vox]
    window = torch.zeros((1, image.shape[1], *probe), device=image.device)
    with torch.no_grad(), LiveMemory() as memory:
        classes = predict(window).shape[1]
    return MemoryModel(WORKSPACE * (memory.peak_bytes + window.nbytes) / math.prod(probe), classes)


def narrowest(plan: WindowPlan) -> WindowPlan:
    """Return the plan with the first sweep axis that has not many more voxels in work than the best."""
    plans = [replace(plan, axis=axis) for axis in range(3)]
    in_work = [one.depth_vox * math.prod(one.plane_vox) for one in plans]
    return next(one for one, count in zip(plans, in_work, strict=True) if count <= EARLIER_AXIS * min(in_work))


def check_memory(plan: WindowPlan, model: MemoryModel, max_bytes: int) -> WindowPlan:
    """Return the plan if it fits.

    Raises:
        UsageError: it does not.
    """
    needed = model.needed_bytes(plan)
    if needed > max_bytes:
        raise UsageError(
            f"windows of {plan.window_vox} with {model.classes} classes on a grid of {plan.size_vox} need "
            f"{needed / GIB:.2f} GiB, the limit is {max_bytes / GIB:.2f} GiB; raise max_memory, or take a bundle with "
            "a smaller window."
        )
    return plan


def enlarged(plan: WindowPlan, model: MemoryModel, max_bytes: int, multiple: int = 1) -> WindowPlan:
    """Return the plan of fewest computed voxels that fits, with windows no smaller than those of `plan`.

    Few large windows overlap less than many small ones. With norms over the window (instance norm, attention over all
    voxels) the result then differs from that of the window the network was trained with.

    Raises:
        UsageError: even the windows of `plan` do not fit.
    """
    sizes = [
        _sizes(size, window, plan.overlap, (math.lcm(multiple, step), step))
        for size, window, step in zip(plan.size_vox, plan.window_vox, plan.steps_vox, strict=True)
    ]
    best, fewest = check_memory(plan, model, max_bytes), math.inf
    for i, j, k in product(*sizes):
        candidate = narrowest(replace(plan, window_vox=(i, j, k)))
        computed = i * j * k * math.prod(map(len, candidate.starts))
        if computed < fewest and model.needed_bytes(candidate) <= max_bytes:
            best, fewest = candidate, computed
    return best


def _sizes(size: int, smallest: int, overlap: float, steps: tuple[int, int]) -> list[int]:
    """Return the smallest size for each possible number of windows along an axis, largest first."""
    multiple, step = steps
    largest = max(smallest, math.ceil(size / multiple) * multiple)
    of_count = {len(axis_starts(size, n, overlap, step)): n for n in range(largest, smallest - 1, -multiple)}
    return sorted({*of_count.values(), smallest}, reverse=True)


def available_bytes(device: torch.device) -> int:
    """Return a share of the memory that is free on a device now; of the control group where that has a limit."""
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    try:
        limit = int((CONTROL_GROUP / "memory.max").read_text(encoding="utf-8"))
        used = int((CONTROL_GROUP / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no control group, or "max"
        return int(SHARE * free)
    return int(SHARE * min(free, limit - used))


def with_less_memory(run: Callable[[int], Result], max_bytes: int) -> Result:
    """Call `run(max_bytes)`, and again with half of it each time the device runs out of memory.

    Only what PyTorch calls out of memory counts, unlike MONAI's guess from any error (monai/inferers/inferer.py,
    `SlidingWindowInfererAdapt`).

    Raises:
        UsageError: a sixteenth was still too much.
    """
    for halving in range(HALVINGS + 1):
        try:
            return run(max_bytes >> halving)
        except torch.OutOfMemoryError:
            pass  # let go of the traceback, which holds the tensors
        torch.cuda.empty_cache()  # does nothing without a GPU
    raise UsageError(
        f"the device ran out of memory even with a limit of {(max_bytes >> HALVINGS) / 2**20:.0f} MiB; use the CPU."
    )
