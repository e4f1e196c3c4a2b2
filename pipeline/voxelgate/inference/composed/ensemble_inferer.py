"""Several models of the same structures, whose probabilities are averaged."""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, Self

import numpy as np
from monai.data import MetaTensor
from monai.inferers import Inferer

from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.geometry import Grid, Shape
from voxelgate.core.machine import GIB
from voxelgate.inference.class_planes import Planes, Probabilities, certainty_in, confidence_of, gathered, probable
from voxelgate.inference.composed.part import Labels, Part, ask_parts, brought_back
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.sliding_window import Networks

FLOAT_BYTES = 4


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
        UsageError: fewer than two members; at call, when the disk has no room for members that take turns.
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
            (1, 1, I, J, K) uint8, or uint16 from label 256 on, on the grid of the source. `meta["confidence"]` holds
            the mean probability of each label where it was found. With `probabilities_of`, (1, asked, I, J, K) float32.
        """
        shape = Grid.of(inputs).shape
        means = self._means([part.planes(inputs, network) for part in self.members], shape)
        if self.probabilities_of:
            found = gathered(means, shape, self.probabilities_of, are_regions=self.regions is not None)
            return brought_back(found, inputs, {})
        labels: Labels = np.zeros(shape, np.uint16)
        view = means.view(labels)
        certainty = []
        for number, mean in enumerate(means.values):
            view[number] = plane = self._labels(mean)
            certainty.append(certainty_in(mean[:, plane > 0], self.regions))
        facts = {"confidence": confidence_of(certainty)}
        return brought_back(labels.astype(np.uint8) if labels.max() < 256 else labels, inputs, facts)

    def adjusted(self, asked: PassOptions) -> Self:
        """Return an inferer whose members run as they are asked to."""
        return ask_parts(self, "adjusted", asked)

    def within(self, limit_bytes: int) -> Self:
        """Return an inferer whose members together keep to a limit of memory."""
        return ask_parts(self, "within", max(1, limit_bytes // len(self.members)))

    def _means(self, members: Sequence[Planes], shape: Shape) -> Planes:
        """Return the average of what the members say of each plane."""
        told = [probable(one, are_regions=self.regions is not None) for one in members]
        nothing = np.zeros(shape, np.bool_)
        if len({_layout(one.view(nothing)) for one in told}) == 1:
            return Planes(told[0].view, _side_by_side(told))
        return Planes(np.asarray, _in_turns(told, shape))

    def _labels(self, mean: Labels) -> Labels:
        """Return the labels of averaged probabilities (C, b, c)."""
        if self.regions is None:
            return np.asarray(mean.argmax(axis=0))
        labels = np.zeros(mean.shape[1:], np.uint16)
        for region, values in zip(self.regions, mean, strict=True):
            labels[values > 0.5] = region
        return labels


def _side_by_side(members: Sequence[Planes]) -> Iterator[Probabilities]:
    for first, *others in zip(*(one.values for one in members), strict=True):
        for values in others:
            np.add(first, _of_same_classes(values, len(first)), out=first)
        yield first / np.float32(len(members))


def _in_turns(members: Sequence[Planes], shape: Shape) -> Iterator[Probabilities]:
    with tempfile.TemporaryFile() as file:
        total: Probabilities | None = None
        for one in members:
            for number, values in enumerate(one.values):
                if total is None:
                    total = _zeros_in(file, (len(values), *shape))
                one.view(total)[:, number] += _of_same_classes(values, len(total))
        if total is not None:
            for number in range(shape[0]):
                yield total[:, number] / np.float32(len(members))


def _zeros_in(file: IO[bytes], shape: tuple[int, ...]) -> Probabilities:
    """Return an array that is a temporary file; a disk that is full would end the process while it is written."""
    needed, free = FLOAT_BYTES * math.prod(shape), shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise UsageError(
            f"the average of models that see an image along different axes needs {needed / GIB:.1f} GiB on disk, "
            f"{free / GIB:.1f} GiB are free in {tempfile.gettempdir()}; free them, or set TMPDIR to another folder."
        )
    return np.memmap(file, np.float32, mode="w+", shape=shape)


def _of_same_classes(values: Probabilities, classes: int) -> Probabilities:
    if len(values) != classes:
        raise BundleError(
            f"a member of the ensemble gives {len(values)} classes and the first one {classes}; average models of the "
            "same structures."
        )
    return values


def _layout(view: Labels) -> tuple[Any, ...]:
    """Return what two views of one array have in common if they are the same."""
    return view.shape, view.strides, view.__array_interface__["data"]
