"""How much memory a network takes for a part of its grid, and how many voxels it computes there."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from voxelgate.core.geometry import Shape
from voxelgate.inference.memory import MemoryModel, available_bytes, enlarged, measure_memory, narrowest
from voxelgate.inference.mirroring import MirroredViews
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer, WindowSize
from voxelgate.inference.streaming.stream import CHUNK, LOGITS_BYTES, reserved_bytes, streamed_axis
from voxelgate.inference.windows import PIECE_SCORES, WindowPlan

ALLOCATED = 1.45
"""What buffers of streaming take of the allocator, as a multiple of their size: 1.3 to 1.6 were measured with glibc in
the threads of a worker, more on longer volumes."""

SLABS = 6
"""Slabs of scores that are alive at a time while one is restored: logits, copies in work, and what they pick."""

WINDOW_ALLOCATED = 1.2
"""The same for the tensors of a window: 1 to 1.6 were measured."""

PIECES = 5
"""Pieces of blended scores that are alive at a time: two in the sweep, three while they are restored, as in
`MemoryModel.needed_bytes`."""

ANY_BYTES = 2**62
"""More than any machine has, as a whole number."""

PLANES_VOX = (48, 144)
"""Sides of the planes with which streaming is measured; its memory grows in a straight line with their area."""


@dataclass(frozen=True)
class StreamingModel:
    """Memory of streaming, which grows with the plane and not with the slices.

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

    def plane_vox(self, box_vox: Shape) -> int:
        """Return the voxels of a slice."""
        return math.prod(box_vox) // box_vox[streamed_axis(box_vox, self.axes)]

    def least_bytes(self, box_vox: Shape) -> float:
        """Return the memory below which the inferer will not stream a part of the network grid."""
        return reserved_bytes(self._buffer_bytes(box_vox))

    def needed_bytes(self, box_vox: Shape) -> int:
        """Return the peak of streaming and restoring, beside the image and the result."""
        slice_bytes = 4 * self.classes * self.plane_vox(box_vox)
        slab_bytes = max(slice_bytes, min(LOGITS_BYTES, CHUNK * slice_bytes))
        buffers = self._buffer_bytes(box_vox) if self.is_on_host else 0
        return int(ALLOCATED * buffers) + (SLABS + self.views - 1) * slab_bytes

    def _buffer_bytes(self, box_vox: Shape) -> float:
        return self.fixed_bytes + self.plane_bytes * self.plane_vox(box_vox)


@dataclass(frozen=True)
class WindowModel:
    """Memory of windows, and where they lie.

    Args:
        memory: of the network.
        window_vox: as trained.
        overlap: part of a window that the next one repeats.
        batch: windows at a time.
        multiple: sizes that the network accepts.
        is_enlarged: windows become as large as memory allows.
        most_bytes: what they may take by the settings of the bundle.
    """

    memory: MemoryModel
    window_vox: Shape
    overlap: float
    batch: int = 1
    multiple: int = 1
    is_enlarged: bool = False
    most_bytes: float = math.inf

    def least_bytes(self, box_vox: Shape) -> int:
        """Return what the windows that were trained take in a part of the network grid."""
        return self.memory.needed_bytes(self._smallest(box_vox))

    def needed_bytes(self, plan: WindowPlan) -> int:
        """Return the peak to expect; the inferer decides by what it may be at most."""
        classes, plane = self.memory.classes, math.prod(plan.plane_vox)
        piece = min(PIECE_SCORES, classes * plane * plan.depth_vox)  # no more slices are finished at a time
        scores = (classes + 1) * plane * plan.depth_vox + PIECES * piece + 3 * classes * plane
        network_bytes = self.memory.bytes_per_voxel * math.prod(plan.window_vox) * plan.batch
        return min(int(WINDOW_ALLOCATED * network_bytes) + 4 * scores, self.memory.needed_bytes(plan))

    def plan(self, box_vox: Shape, room_bytes: float) -> WindowPlan:
        """Return where windows will lie in a part of the network grid, if so much memory is enough for any."""
        plan, room = self._smallest(box_vox), min(room_bytes, self.most_bytes)
        if not self.is_enlarged or self.memory.needed_bytes(plan) > room:
            return plan
        return enlarged(plan, self.memory, int(min(room, ANY_BYTES)), self.multiple)

    def _smallest(self, box_vox: Shape) -> WindowPlan:
        i, j, k = (
            min(most, math.ceil(n / self.multiple) * self.multiple)
            for n, most in zip(box_vox, self.window_vox, strict=True)
        )
        return narrowest(WindowPlan(box_vox, (i, j, k), self.overlap, batch=self.batch))


def computed_vox(plan: WindowPlan) -> int:
    """Return the voxels of all windows."""
    return math.prod(plan.window_vox) * math.prod(map(len, plan.starts))


def networks_of(network: nn.Module) -> list[nn.Module]:
    """Return the networks whose probabilities are averaged, most often the one."""
    return list(network) if isinstance(network, nn.ModuleList) else [network]


def is_streamed(inferer: RestoringSlidingWindowInferer, network: nn.Module) -> bool:
    """Return whether volumes pass through all networks slice by slice, as far as memory allows."""
    return inferer.all_stream(networks_of(network))


def window_model(inferer: RestoringSlidingWindowInferer, network: nn.Module, image: torch.Tensor) -> WindowModel:
    """Measure what windows take, by running a small one.

    Args:
        inferer: of the bundle.
        network: of the bundle.
        image: (1, C, i, j, k); its voxels are not read.
    """
    views = MirroredViews(
        networks_of(network),
        inferer.flip_axes,
        inferer.side_pairs,
        compute_dtype=inferer.compute_dtype,
        channels_last=inferer.channels_last,
        regions=inferer.regions,
    )
    is_enlarged = inferer.window is WindowSize.LARGEST
    return WindowModel(
        measure_memory(views, image, inferer.roi_size, inferer.window_multiple),
        inferer.roi_size,
        inferer.overlap,
        inferer.sw_batch_size,
        inferer.window_multiple,
        is_enlarged,
        inferer.max_memory or (available_bytes(image.device) if is_enlarged else math.inf),
    )


def streaming_model(inferer: RestoringSlidingWindowInferer, network: nn.Module, classes: int) -> StreamingModel:
    """Measure what streaming takes, on PyTorch's meta device; all axes are taken to cost what the first does.

    Args:
        inferer: of the bundle, which streams.
        network: of the bundle.
        classes: of the scores.
    """
    networks = networks_of(network)
    axes = inferer.streamable_axes
    low, high = (inferer.streaming_bytes(networks, (n, n), axes[0]) for n in PLANES_VOX)
    plane_bytes = (high - low) / (PLANES_VOX[1] ** 2 - PLANES_VOX[0] ** 2)
    return StreamingModel(
        fixed_bytes=max(0, int(low - plane_bytes * PLANES_VOX[0] ** 2)),
        plane_bytes=plane_bytes,
        axes=axes,
        classes=classes,
        views=len(networks) * 2 ** len(inferer.flip_axes),
        is_on_host=next(networks[0].parameters()).device.type == "cpu",
    )
