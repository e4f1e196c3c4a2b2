"""Run nnU-Net's networks window by window, and give away each plane of logits as soon as no later window touches it."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise, product

import torch

from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.geometry import Shape, triple
from voxelgate.core.machine import GIB
from voxelgate.inference.nnunet.half_sums import HalfSums
from voxelgate.inference.nnunet.tiles import Tiles
from voxelgate.inference.nnunet.window_scores import WindowNetwork
from voxelgate.inference.threads import LoneWorkers
from voxelgate.inference.windows import is_finite

HALF_BYTES = 2


@torch.no_grad()
def logit_planes(
    image: torch.Tensor,
    networks: Sequence[WindowNetwork],
    tiles: Tiles,
    workers: LoneWorkers,
    max_bytes: int,
) -> Iterator[torch.Tensor]:
    """Yield the logits of an image plane by plane along its first axis, the mean of all networks.

    They are those of nnU-Net's `predict_logits_from_preprocessed_data` bit for bit: sums of windows and of folds are
    rounded to float16 where it rounds them. Sums are kept for the planes of one row of windows, for each network.

    Args:
        image: (1, C, i, j, k) float32, of the size of `tiles`.
        networks: the folds; at least one.
        tiles: the windows.
        workers: do all but running the networks.
        max_bytes: that the sums may take.

    Yields:
        Logits (classes, j, k) float16, finite, on the CPU.

    Raises:
        BundleError: a network gives another shape than its window, or logits that float16 cannot hold.
        UsageError: the sums need more memory.
    """
    padded, depth = tiles.padded(image), tiles.inside[0]
    rows, *others = tiles.starts
    sums = _Sums(networks, tiles, workers, max_bytes)
    for start, following in pairwise((*rows, tiles.padded_vox[0])):
        for place, row, column in product([start], *others):
            corner = place, row, column
            sums.add(corner, _cut_out(padded, corner, tiles))
        planes = range(max(0, start - depth.start), min(following, depth.stop) - depth.start)
        yield from workers.in_order(partial(sums.finished, plane) for plane in planes)


class _Sums:
    """Sums of the windows of several networks, whose classes come in groups, and of the weights of the windows."""

    def __init__(self, networks: Sequence[WindowNetwork], tiles: Tiles, workers: LoneWorkers, max_bytes: int) -> None:
        self._networks, self._tiles, self._workers = networks, tiles, workers
        self._max_bytes, self._bytes = max_bytes, 0
        self._weight = tiles.weights().float()
        self._divisor = self._ring(1)
        self._rings: list[list[HalfSums]] = [[] for _ in networks]

    def add(self, corner: Shape, window: torch.Tensor) -> None:
        """Run the networks on a window (1, C, *window), given its first voxel in the padded image."""
        spans = list(zip(corner, self._tiles.window_vox, self._tiles.inside, strict=True))
        part = tuple(slice(max(0, span.start - start), min(n, span.stop - start)) for start, n, span in spans)
        place = triple(max(0, start - span.start) for start, _, span in spans)
        weight = self._weight[part]
        for network, rings in zip(self._networks, self._rings, strict=True):
            for index, logits in enumerate(network.logits(window)):
                scores = self._seen(logits, window)[(slice(None), *part)]
                if index == len(rings):
                    rings.append(self._ring(len(scores)))
                rings[index].add(place, scores, weight, self._workers)
        self._divisor.add(place, torch.ones(1, *weight.shape), weight, self._workers)

    def finished(self, plane: int) -> torch.Tensor:
        """Return the logits (classes, j, k) of a plane of the image."""
        divisor = self._divisor.taken(plane)
        folds = [torch.cat([ring.taken(plane) for ring in rings]).div_(divisor) for rings in self._rings]
        logits = _mean_of_folds(folds)
        if not is_finite(logits):
            raise BundleError(
                "the network gives logits that are not finite, or too large for the float16 sums of nnU-Net; its "
                "weights are damaged or do not fit."
            )
        return logits

    def _ring(self, classes: int) -> HalfSums:
        """Return a ring for some classes, as long as memory allows; its pages are taken only when it is filled."""
        depth, height, width = self._tiles.size_vox
        shape = classes, min(depth, self._tiles.window_vox[0]), height, width
        self._bytes += HALF_BYTES * math.prod(shape)
        if self._bytes > self._max_bytes:
            raise UsageError(
                f"the class scores of {shape[1]} planes of {height} x {width} voxels by {len(self._networks)} networks "
                f"need more than {self._max_bytes / GIB:.2f} GiB, the limit; raise max_memory, or use fewer folds."
            )
        return HalfSums(*shape)

    def _seen(self, logits: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """Return logits (c, *window) on the CPU, with the axis that a slice has lost."""
        if logits.ndim != window.ndim or logits.shape[0] != 1 or logits.shape[2:] != window.shape[2:]:
            raise BundleError(
                f"the network gives {tuple(logits.shape)} for a window {tuple(window.shape)}, expected one score for "
                "each class and voxel."
            )
        return logits.float().cpu().reshape(-1, *self._tiles.window_vox)


def _cut_out(padded: torch.Tensor, corner: Shape, tiles: Tiles) -> torch.Tensor:
    """Return a copy of a window in C order, without its first axis if the network takes slices."""
    spans = [slice(start, start + n) for start, n in zip(corner, tiles.window_vox, strict=True)]
    window = padded[(slice(None), slice(None), *spans)]
    return torch.clone(window.squeeze(2) if tiles.is_flat else window, memory_format=torch.contiguous_format)


def _mean_of_folds(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    total = logits[0]
    for other in logits[1:]:
        total += other
    return total.div_(len(logits)) if len(logits) > 1 else total
