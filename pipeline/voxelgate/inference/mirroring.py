"""Show an image to several networks, mirrored in several ways, and average what they say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import torch
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Flip
from monai.utils import TraceKeys

from voxelgate.core.errors import BundleError, UsageError
from voxelgate.inference.restoring.class_scores import ScoreKind
from voxelgate.inference.restoring.restorer import ScoreSlab
from voxelgate.inference.streaming.stream import StreamingNetwork
from voxelgate.inference.windows import Predictor, is_finite


@dataclass(frozen=True, eq=False)
class Mirrored:
    """An image mirrored along some spatial axes, of which only what is asked for is ever made.

    Args:
        image: (B, C, i, j, k).
        axes: spatial axes.
    """

    image: torch.Tensor
    axes: tuple[int, ...]

    @property
    def shape(self) -> torch.Size:
        """Return (B, C, i, j, k)."""
        return self.image.shape

    def whole(self) -> torch.Tensor:
        """Return all of it."""
        return self.image.flip([axis + 2 for axis in self.axes]) if self.axes else self.image

    def narrow(self, dim: int, start: int, length: int) -> torch.Tensor:
        """Return some slices along a dimension that is not mirrored."""
        return Mirrored(self.image.narrow(dim, start, length), self.axes).whole()


class ViewOverlap:
    """How much of the probability of each class all views share: sums of the least and of the largest of any view."""

    def __init__(self) -> None:
        self._added: list[torch.Tensor] = []

    def add(self, least: torch.Tensor, most: torch.Tensor) -> None:
        """Add some voxels: the least and the largest probability of any view, (B, classes, i, j, k) each."""
        both = [extreme.sum(dim=(0, 2, 3, 4), dtype=torch.float64) for extreme in (least, most)]
        self._added.append(torch.stack(both, dim=1))

    @property
    def sums(self) -> torch.Tensor:
        """Return the least and the largest, (classes, 2) float64, of all that was added."""
        return torch.stack(self._added).sum(dim=0).cpu()


@dataclass(frozen=True, eq=False)
class MirroredViews:
    """A predictor made of networks and mirrorings.

    Args:
        networks: give logits (B, classes, i, j, k) for windows (B, C, i, j, k); at least one.
        flip_axes: spatial axes; every combination of them is mirrored.
        side_pairs: classes to swap back after a mirroring along axis 0.
        compute_dtype: "bfloat16" for autocast, or None.
        channels_last: hand on windows in channels-last layout.
        regions: labels of overlapping regions, or None for classes that exclude each other.
        overlap: told what several views say of classes, if somebody wants to know how far they agree.

    Raises:
        UsageError: no network.
    """

    networks: Sequence[Predictor]
    flip_axes: tuple[int, ...] = ()
    side_pairs: tuple[tuple[int, int], ...] = ()
    compute_dtype: str | None = None
    channels_last: bool = True
    regions: tuple[int, ...] | None = None
    overlap: ViewOverlap | None = None
    kind: ScoreKind = field(init=False)
    """What comes out: logits of the only view, or average probabilities of several."""

    def __post_init__(self) -> None:
        if not self.networks:
            raise UsageError("an empty list of networks, expected at least one.")
        is_averaged = len(self.networks) > 1 or len(self.flip_axes) > 0
        object.__setattr__(self, "kind", ScoreKind(are_probabilities=is_averaged, regions=self.regions))

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return scores (B, classes, i, j, k) float32 of `kind`."""
        if not self.kind.are_probabilities:
            scores = self._run(self.networks[0], windows)
            self.kind.check_channels(scores.shape[1])
            return scores
        return self._averaged(self._views(windows))

    def stream(self, image: torch.Tensor, networks: Sequence[StreamingNetwork]) -> Iterator[ScoreSlab]:
        """Yield scores of a whole image slab by slab, each voxel computed once by each view.

        All views run side by side, so that nothing but what they hold back is kept.

        Args:
            image: (1, C, i, j, k).
            networks: the prepared networks, all streaming along one axis that is not mirrored.
        """
        views = [
            (axes, network.stream(Mirrored(image, axes))) for network, axes in product(networks, self._mirrorings())
        ]
        for slabs in zip(*(slabs for _, slabs in views), strict=True):
            start = slabs[0][0]
            if not self.kind.are_probabilities:
                self.kind.check_channels(len(slabs[0][1]))
                yield slabs[0]
                continue
            seen = zip(views, slabs, strict=True)
            yield start, self._averaged(self._probabilities(scores[None], axes) for (axes, _), (_, scores) in seen)[0]

    def _averaged(self, views: Iterator[torch.Tensor]) -> torch.Tensor:
        """Return the mean of what several views say, each (B, classes, i, j, k) and not used any more."""
        total, count = next(views), 1
        extremes = None if self.overlap is None else (total.clone(), total.clone())
        for probabilities in views:
            if extremes is not None:
                torch.minimum(extremes[0], probabilities, out=extremes[0])
                torch.maximum(extremes[1], probabilities, out=extremes[1])
            total += probabilities
            count += 1
        if self.overlap is not None and extremes is not None:
            self.overlap.add(*extremes)
        return total.div_(count)

    def _views(self, windows: torch.Tensor) -> Iterator[torch.Tensor]:
        for network, axes in product(self.networks, self._mirrorings()):
            yield self._probabilities(self._run(network, Mirrored(windows, axes).whole()), axes)

    def _mirrorings(self) -> list[tuple[int, ...]]:
        return [axes for n in range(len(self.flip_axes) + 1) for axes in combinations(self.flip_axes, n)]

    def _probabilities(self, scores: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        """Return probabilities of what was mirrored along some axes, mirrored back, sides and all."""
        scores = Mirrored(scores, axes).whole()
        self.kind.check_channels(scores.shape[1])
        if not is_finite(scores):
            raise BundleError("the network gives values that are not finite; its weights are damaged or misfit.")
        probabilities = torch.softmax(scores, dim=1) if self.regions is None else torch.sigmoid(scores)
        return probabilities[:, self._sides_swapped(scores.shape[1])] if 0 in axes else probabilities

    def _run(self, network: Predictor, windows: torch.Tensor) -> torch.Tensor:
        if self.channels_last:
            windows = windows.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=self.compute_dtype is not None):
            scores = network(windows)
        return scores.float()  # blended in float32

    def _sides_swapped(self, classes: int) -> list[int]:
        order = list(range(classes))
        for low, high in self.side_pairs:
            if max(low, high) >= classes:
                raise UsageError(f"side_pairs name class {max(low, high)}, but the network gives {classes} classes.")
            order[low], order[high] = order[high], order[low]
        return order


class Mirror(Flip):  # type: ignore[misc]  # MONAI ships no stubs
    """Mirror a prepared image, and leave that word among its operations for whoever takes them back."""

    def get_transform_info(self) -> dict[str, Any]:
        """Return what MONAI records, without the object's number: any other `Mirror` can take it back."""
        return {**super().get_transform_info(), TraceKeys.ID: TraceKeys.NONE}


def mirror_image(image: MetaTensor, axis: int) -> MetaTensor:
    """Return an image (1, C, i, j, k) mirrored along a spatial axis; its affine tells that it runs the other way."""
    mirrored: MetaTensor = Mirror(axis)(one_of_batch(image))[None]
    return mirrored


def unmirrored(image: MetaTensor) -> MetaTensor:
    """Return an image (C, i, j, k) as it was before `mirror_image`; as it is, if it was not mirrored."""
    while image.applied_operations and image.applied_operations[-1][TraceKeys.CLASS_NAME] == Mirror.__name__:
        image = Mirror().inverse(image)
    return image


def one_of_batch(image: MetaTensor) -> MetaTensor:
    """Return the one image (C, i, j, k) of a batch, with operations of its own, whether it was collated or not."""
    one: MetaTensor = decollate_batch(image)[0] if image.is_batch else image[0]
    one.applied_operations = list(one.applied_operations)
    return one
