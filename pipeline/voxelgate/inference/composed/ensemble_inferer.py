"""Several models of the same structures, whose probabilities are averaged."""

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.geometry import Grid, Shape
from voxelgate.inference.composed.part import Labels, Part, Planes, ask_parts, brought_back
from voxelgate.inference.composed.plane_probabilities import ProbablePlane, gathered, probabilities_in
from voxelgate.inference.sliding_window import Networks


class EnsembleInferer(Inferer):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Average the probabilities of several models on the grid of the image, as `nnUNetv2_ensemble` does.

    Class scores of the whole volume never exist: the models run side by side, and what they say of a plane is averaged
    as soon as all have said it. Only models that go through the volume along different axes take turns; the sum of
    their probabilities is then a file in the folder for temporary files, of 4 bytes for each class and voxel.

    Probabilities are PyTorch's, whose last bit depends on the size of an array; where two classes are equal but for
    that bit, the label may be the other one.

    Args:
        members: at least two, each with an inferer that restores planes (`NnUNetInferer`, or `CascadeInferer` of such).
        regions: labels of regions that may overlap, in the order in which they are painted; None for classes that
            exclude each other.
        probabilities_of: channels whose probability is returned, as float32 channels, instead of labels.

    Raises:
        UsageError: fewer than two members.
        BundleError: at call, when members give different numbers of classes.

    >>> inferer = vg.NnUNetInferer(patch_size=(8, 8, 8), spacing=(1.0, 1.0, 1.0))
    >>> members = vg.EnsembleInferer([vg.Part(inferer, networks=[0]), vg.Part(inferer, networks=[1])]).members
    >>> [part.networks for part in members]
    [(0,), (1,)]
    """

    def __init__(
        self, members: Sequence[Part], regions: Sequence[int] | None = None, probabilities_of: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if len(members) < 2:
            raise UsageError(f"an ensemble of {len(members)}, expected at least two members.")
        self.members = list(members)
        self.regions = None if regions is None else tuple(regions)
        self.probabilities_of = tuple(probabilities_of)

    def __call__(self, inputs: MetaTensor, network: Networks) -> MetaTensor:
        """Return the labels of the average.

        Args:
            inputs: (1, C, i, j, k), as it was read or reordered.
            network: the networks of all members, as a list.

        Returns:
            (1, 1, I, J, K) uint8, or uint16 from label 256 on, on the grid of the source. With `probabilities_of`,
            (1, asked, I, J, K) float32.
        """
        shape = Grid.of(inputs).shape
        means = self._means([part.planes(inputs, network) for part in self.members], shape)
        if self.probabilities_of:
            found = gathered(means, shape, self.probabilities_of, are_regions=self.regions is not None)
            return brought_back(found, inputs, {})
        labels: Labels = np.zeros(shape, np.uint16)
        for view, number, mean in means:
            view(labels)[number] = self._labels(mean)
        return brought_back(labels.astype(np.uint8) if labels.max() < 256 else labels, inputs, {})

    def adjusted(self, **options: Any) -> Self:
        """Return an inferer whose members follow options as `NnUNetInferer.adjusted` knows them."""
        return ask_parts(self, "adjusted", **options)

    def within(self, limit_bytes: int) -> Self:
        """Return an inferer whose members together keep to a limit of memory."""
        return ask_parts(self, "within", max(1, limit_bytes // len(self.members)))

    def _means(self, planes: Sequence[Planes], shape: Shape) -> Iterator[ProbablePlane]:
        """Yield the average of what the members say of each plane."""
        nothing = np.zeros(shape, np.bool_)
        if len({_layout(one.view(nothing)) for one in planes}) == 1:
            yield from self._side_by_side(planes)
        else:
            yield from self._in_turns(planes, shape)

    def _side_by_side(self, planes: Sequence[Planes]) -> Iterator[ProbablePlane]:
        for slabs in zip(*(one.scores for one in planes), strict=True):
            total = self._probabilities(slabs[0][1])
            for _, scores in slabs[1:]:
                total += self._same_classes(self._probabilities(scores), len(total))
            yield ProbablePlane(planes[0].view, slabs[0][0], total[:, 0] / np.float32(len(planes)))

    def _in_turns(self, planes: Sequence[Planes], shape: Shape) -> Iterator[ProbablePlane]:
        with tempfile.TemporaryFile() as file:
            total: Labels | None = None
            for one in planes:
                for number, scores in one.scores:
                    probabilities = self._probabilities(scores)
                    total = _file_of(file, len(probabilities), shape) if total is None else total
                    one.view(total)[:, number] += self._same_classes(probabilities, len(total))[:, 0]
            if total is not None:
                for number in range(shape[0]):
                    yield ProbablePlane(np.asarray, number, total[:, number] / np.float32(len(planes)))

    def _probabilities(self, scores: torch.Tensor) -> Labels:
        return probabilities_in(scores, are_regions=self.regions is not None)

    def _same_classes(self, probabilities: Labels, classes: int) -> Labels:
        if len(probabilities) != classes:
            raise BundleError(
                f"a member of the ensemble gives {len(probabilities)} classes and the first one {classes}; average "
                "models of the same structures."
            )
        return probabilities

    def _labels(self, mean: Labels) -> Labels:
        """Return the labels of averaged probabilities (C, b, c)."""
        if self.regions is None:
            return np.asarray(mean.argmax(axis=0))
        labels = np.zeros(mean.shape[1:], np.uint16)
        for region, values in zip(self.regions, mean, strict=True):
            labels[values > 0.5] = region
        return labels


def _layout(view: Labels) -> tuple[Any, ...]:
    """Return what two views of one array have in common if they are the same."""
    return view.shape, view.strides, view.__array_interface__["data"]


def _file_of(file: Any, classes: int, shape: Shape) -> Labels:
    return np.memmap(file, np.float32, mode="w+", shape=(classes, *shape))
