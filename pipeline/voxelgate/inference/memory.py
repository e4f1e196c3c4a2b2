"""How much memory a network takes, in windows or streamed, and the windows that compute fewest voxels within a limit.

There are two estimates of one model. What is needed is the most that may be taken: the inferer decides by it, and must
not run out of memory. What is expected is the peak that runs were seen to reach: a forecast tells it, and must not
refuse what would fit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import torch

from voxelgate.core.errors import UsageError
from voxelgate.core.geometry import Shape, triple
from voxelgate.core.machine import GIB, free_host_bytes
from voxelgate.inference.restoring.placement import GROUP_VOXELS
from voxelgate.inference.restoring.restorer import BLOCK_SCORES
from voxelgate.inference.streaming.stream import CHUNK, LOGITS_BYTES, reserved_bytes, streamed_axis
from voxelgate.inference.windows import PIECE_SCORES, Predictor, WindowPlan, axis_starts
from voxelgate.networks.describe import LiveMemory

PROBE_VOX = 48
"""Side of the window a network is measured with; memory grows in proportion from there, if it is convolutional."""

WORKSPACE = 1.3
"""What convolutions take beside the tensors PyTorch shows; oneDNN and cuDNN stay below a third for 3x3x3 kernels."""

SHARE = 0.5
"""Part of the available memory that is used when no limit is given."""

EARLIER_AXIS = 1.5
"""An earlier axis may take this many times the memory: slices along it lie whole in memory, and blend in a sixth of
the time that slices along the last axis take."""

GROUP_BYTES = 120
"""Bytes for each source voxel in work while restoring: three positions, cells and weights, and what they pick."""

WINDOW_ALLOCATED = 1.2
"""What tensors of a window take of the allocator, as a multiple of their size: 1 to 1.6 were measured."""

PIECES = 5
"""Pieces of blended scores that are alive at a time: two in the sweep, three while they are restored."""

STREAMING_ALLOCATED = 1.45
"""What buffers of streaming take of the allocator, as a multiple of their size: 1.3 to 1.6 were measured with glibc in
the threads of a worker, more on longer volumes."""

SLABS = 6
"""Slabs of scores that are alive at a time while one is restored: logits, copies in work, and what they pick."""

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
        """Return the most that running a plan and restoring its slabs take, beside the image and the result."""
        plane = self.classes * math.prod(plan.plane_vox)
        grid = plane * plan.size_vox[plan.axis]
        piece, block = (min(grid, max(most, 2 * plane)) for most in (PIECE_SCORES, BLOCK_SCORES))
        return self._peak_bytes(plan, 2 * piece + 3 * block) + GROUP_BYTES * GROUP_VOXELS

    def expected_bytes(self, plan: WindowPlan) -> int:
        """Return the peak to expect of the same, in which no more slices than those in work are finished at a time."""
        piece = min(PIECE_SCORES, self.classes * math.prod(plan.plane_vox) * plan.depth_vox)
        return min(self._peak_bytes(plan, PIECES * piece, WINDOW_ALLOCATED), self.needed_bytes(plan))

    def _peak_bytes(self, plan: WindowPlan, restored_scores: int, allocated: float = 1.0) -> int:
        plane = math.prod(plan.plane_vox)
        scores = (self.classes + 1) * plane * plan.depth_vox + restored_scores + 3 * self.classes * plane
        return int(allocated * self.bytes_per_voxel * math.prod(plan.window_vox) * plan.batch) + 4 * scores


@dataclass(frozen=True)
class StreamingModel:
    """What streaming takes, which grows with the plane and not with the slices.

    Args:
        fixed_bytes: weights, and what does not depend on the plane.
        plane_bytes: for each voxel of a plane; both of all views together.
        axes: that may be streamed.
        classes: of the scores.
        views: networks times mirrorings.
        is_on_host: the buffers lie in the memory of the process, not in that of a GPU.
    """

    fixed_bytes: int
    plane_bytes: float
    axes: tuple[int, ...]
    classes: int
    views: int = 1
    is_on_host: bool = True

    def least_bytes(self, box_vox: Shape) -> float:
        """Return the memory below which the inferer will not stream a part of the network grid."""
        return reserved_bytes(self._buffer_bytes(box_vox))

    def expected_bytes(self, box_vox: Shape) -> int:
        """Return the peak to expect of streaming and restoring, beside the image and the result."""
        slice_bytes = 4 * self.classes * self._plane_vox(box_vox)
        slab_bytes = max(slice_bytes, min(LOGITS_BYTES, CHUNK * slice_bytes))
        buffers = self._buffer_bytes(box_vox) if self.is_on_host else 0
        return int(STREAMING_ALLOCATED * buffers) + (SLABS + self.views - 1) * slab_bytes

    def _plane_vox(self, box_vox: Shape) -> int:
        return math.prod(box_vox) // box_vox[streamed_axis(box_vox, self.axes)]

    def _buffer_bytes(self, box_vox: Shape) -> float:
        return self.fixed_bytes + self.plane_bytes * self._plane_vox(box_vox)


@dataclass(frozen=True)
class Windows:
    """The windows of an inferer, wherever they will lie.

    Args:
        trained_vox: size of a window, as trained.
        overlap: part of a window that the next one repeats.
        batch: windows at a time.
        multiple: sizes that the network accepts.
        is_enlarged: windows become as large as memory allows.
        mode: weight of a window.
        steps_vox: in which windows begin (`WindowPlan`).
    """

    trained_vox: Shape
    overlap: float
    batch: int = 1
    multiple: int = 1
    is_enlarged: bool = False
    mode: str = "gaussian"
    steps_vox: Shape = (1, 1, 1)

    def clipped(self, size_vox: Shape) -> Shape:
        """Return the window as trained, no larger than a grid of this size needs."""
        return triple(
            min(most, math.ceil(n / self.multiple) * self.multiple)
            for n, most in zip(size_vox, self.trained_vox, strict=True)
        )

    def smallest(self, size_vox: Shape) -> WindowPlan:
        """Return where the windows as trained lie on a grid."""
        plan = WindowPlan(size_vox, self.clipped(size_vox), self.overlap, steps_vox=self.steps_vox)
        return narrowest(replace(plan, mode=self.mode, batch=self.batch))

    def within(self, size_vox: Shape, model: MemoryModel, max_bytes: float) -> WindowPlan:
        """Return where windows lie on a grid, as large as memory allows if they are enlarged.

        Raises:
            UsageError: even the windows as trained do not fit.
        """
        plan = self.smallest(size_vox)
        if self.is_enlarged:
            return enlarged(plan, model, max_bytes, self.multiple)
        return check_memory(plan, model, max_bytes)


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


def check_memory(plan: WindowPlan, model: MemoryModel, max_bytes: float) -> WindowPlan:
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


def enlarged(plan: WindowPlan, model: MemoryModel, max_bytes: float, multiple: int = 1) -> WindowPlan:
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
        if candidate.computed_vox < fewest and model.needed_bytes(candidate) <= max_bytes:
            best, fewest = candidate, candidate.computed_vox
    return best


def _sizes(size: int, smallest: int, overlap: float, steps: tuple[int, int]) -> list[int]:
    """Return the smallest size for each possible number of windows along an axis, largest first."""
    multiple, step = steps
    largest = max(smallest, math.ceil(size / multiple) * multiple)
    of_count = {len(axis_starts(size, n, overlap, step)): n for n in range(largest, smallest - 1, -multiple)}
    return sorted({*of_count.values(), smallest}, reverse=True)


def available_bytes(device: torch.device) -> int:
    """Return a share of the memory that is free on a device now."""
    return int(SHARE * free_memory_bytes(device))


def free_memory_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device now; of the control group where that has a limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()


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
