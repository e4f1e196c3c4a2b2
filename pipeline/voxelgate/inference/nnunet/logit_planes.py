"""Run nnU-Net's networks window by window, and give away each plane of logits as soon as no later window touches it."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product

import torch

from voxelgate.core.errors import BundleError
from voxelgate.core.geometry import Shape
from voxelgate.inference.nnunet.half_sums import HalfSums
from voxelgate.inference.nnunet.tiles import Tiles
from voxelgate.inference.nnunet.window_scores import WindowNetwork
from voxelgate.inference.windows import is_finite


@torch.no_grad()
def logit_planes(image: torch.Tensor, networks: Sequence[WindowNetwork], tiles: Tiles) -> Iterator[torch.Tensor]:
    """Yield the logits of an image plane by plane along its first axis, the mean of all networks.

    They are those of nnU-Net's `predict_logits_from_preprocessed_data` bit for bit: sums of windows and of folds are
    rounded to float16 where it rounds them. Sums are kept for the planes of one row of windows, for each network.

    Args:
        image: (1, C, i, j, k) float32, of the size of `tiles`.
        networks: the folds; at least one.
        tiles: the windows.

    Yields:
        Logits (classes, j, k) float16, finite, on the CPU.

    Raises:
        BundleError: a network gives another shape than its window, or logits that float16 cannot hold.
    """
    padded, (depth, *across) = tiles.padded(image), tiles.inside
    rows, *others = tiles.starts
    folds = [_Fold(network, tiles) for network in networks]
    weights = _Sums(tiles)
    for start, following in pairwise((*rows, tiles.padded_vox[0])):
        for place, row, column in product([start], *others):
            corner = place, row, column
            window = _cut_out(padded, corner, tiles)
            for fold in folds:
                fold.add(corner, window)
            weights.add(corner, [torch.ones(1, 1, *tiles.window_vox)])
        for plane in range(start, following):
            divisor = weights.taken(plane)
            logits = [fold.sums.taken(plane).div_(divisor) for fold in folds]
            if depth.start <= plane < depth.stop:
                yield _checked_plane(_mean_of_folds(logits)[(slice(None), *across)])


class _Sums:
    """Sums of windows, whose classes come in groups."""

    def __init__(self, tiles: Tiles) -> None:
        self._plane_vox = tiles.padded_vox[1], tiles.padded_vox[2]
        self._weights = tiles.weights().float()
        self._groups: list[HalfSums] = []

    def add(self, corner: Shape, groups: Iterable[torch.Tensor]) -> None:
        """Add a window given as (1, c, *window) float32 of each group."""
        for index, scores in enumerate(groups):
            if index == len(self._groups):
                self._groups.append(HalfSums(scores.shape[1], self._plane_vox, self._weights))
            self._groups[index].add(corner, scores[0])

    def taken(self, plane: int) -> torch.Tensor:
        """Return the sums (classes, j, k) of a plane, which starts again from 0."""
        return torch.cat([group.taken(plane) for group in self._groups])


class _Fold:
    """A network, and the sums of its windows."""

    def __init__(self, network: WindowNetwork, tiles: Tiles) -> None:
        self.sums = _Sums(tiles)
        self._network, self._tiles = network, tiles

    def add(self, corner: Shape, window: torch.Tensor) -> None:
        """Run the network on a window (1, C, *window)."""
        self.sums.add(corner, (self._seen(logits, window) for logits in self._network.logits(window)))

    def _seen(self, logits: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """Return logits (1, c, *window) on the CPU, with the axis that a slice has lost."""
        if logits.ndim != window.ndim or logits.shape[0] != 1 or logits.shape[2:] != window.shape[2:]:
            raise BundleError(
                f"the network gives {tuple(logits.shape)} for a window {tuple(window.shape)}, expected one score for "
                "each class and voxel."
            )
        return logits.float().cpu().reshape(1, logits.shape[1], *self._tiles.window_vox)


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


def _checked_plane(logits: torch.Tensor) -> torch.Tensor:
    if not is_finite(logits):
        raise BundleError(
            "the network gives logits that are not finite, or too large for the float16 sums of nnU-Net; its weights "
            "are damaged or do not fit."
        )
    return logits
