"""Several networks that know different structures, whose labels are joined to one label map."""

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from voxelgate.core.errors import UsageError
from voxelgate.core.geometry import Grid, Shape
from voxelgate.inference.composed.part import Labels, Part, ask_parts, brought_back
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.sliding_window import Networks

SPLIT_MARGIN = 20
"""Slices that the thirds of a split volume share with their neighbours (TotalSegmentator 2.18, `nnunet.py`)."""

SPLIT_SLICES = 200
"""A volume of no more slices is not split (ibid.)."""


class PartsInferer(Inferer):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Run several parts over an image and join their labels; where two claim a voxel, the later one has it.

    The image may have been brought to another order and spacing by `CanonicalZoomd`: the labels return to the grid of
    the file by nearest neighbours.

    Args:
        parts: each with its own preprocessing, networks and inferer; its labels become those of the whole.
        cleaning: steps on the joined labels `{"pred": (1, i, j, k)}`, on the grid of the image; None for none.
        split_above_vox: images of more voxels, and more than 200 slices, are segmented in three parts along the third
            axis, which share 20 slices; None for never. This changes labels near the borders.

    Raises:
        UsageError: no parts.
        InputError: at call, when the image does not name the grid of its source.

    >>> inferer = vg.PartsInferer([vg.Part(vg.RestoringSlidingWindowInferer(roi_size=(8, 8, 8)), labels=[0, 7])])
    >>> network = lambda windows: torch.cat([1 - windows, windows], dim=1)
    >>> load = LoadImaged("image", reader="voxelgate.VolumeReader", ensure_channel_first=True)
    >>> inferer(load({"image": "scan.nii.gz"})["image"][None], network).unique().tolist()
    [7]
    """

    def __init__(
        self,
        parts: Sequence[Part],
        cleaning: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        split_above_vox: int | None = None,
    ) -> None:
        super().__init__()
        if not parts:
            raise UsageError("an empty list of parts, expected at least one.")
        self.parts = list(parts)
        self.cleaning = cleaning
        self.split_above_vox = split_above_vox
        self.wanted: frozenset[int] | None = None

    def __call__(self, inputs: MetaTensor, network: Networks) -> MetaTensor:
        """Return the joined labels.

        Args:
            inputs: (1, C, i, j, k).
            network: the networks of all parts, as a list.

        Returns:
            (1, 1, I, J, K) uint8, or uint16 from label 256 on, on the grid of the source.
        """
        joined = _Joined(tuple(inputs.shape[2:]))
        for piece in _thirds(tuple(inputs.shape[2:]), self.split_above_vox):
            for part in self.parts:
                joined.add(piece, part, inputs[..., piece.given], network)
        labels = self._cleaned(joined.labels, Grid.of(inputs))
        if self.wanted is not None:
            labels = labels * np.isin(labels, sorted(self.wanted)).astype(labels.dtype)
        return brought_back(labels, inputs, joined.facts())

    def restricted_to(self, labels: Collection[int]) -> Self:
        """Return an inferer that finds nothing but these labels, and runs no part that knows none of them."""
        changed = copy.copy(self)
        changed.wanted = frozenset(labels)
        changed.parts = [part for part in self.parts if part.labels is None or set(part.labels) & changed.wanted]
        return changed

    def adjusted(self, asked: PassOptions) -> Self:
        """Return an inferer whose parts run as they are asked to."""
        return ask_parts(self, "adjusted", asked)

    def within(self, limit_bytes: int) -> Self:
        """Return an inferer whose parts keep to a limit of memory."""
        return ask_parts(self, "within", limit_bytes)

    def _cleaned(self, labels: Labels, grid: Grid) -> Labels:
        if self.cleaning is None:
            return labels
        image = MetaTensor(torch.from_numpy(labels)[None], affine=torch.from_numpy(grid.affine.copy()))
        cleaned = self.cleaning({"pred": image})["pred"][0].numpy(force=True)
        return np.asarray(cleaned, dtype=labels.dtype)


class _Piece(NamedTuple):
    """Some slices of a volume.

    Args:
        given: those that the networks see.
        kept: those of their result that count.
        place: where these stand in the volume.
    """

    given: slice
    kept: slice
    place: slice


def _thirds(shape: Shape | tuple[int, ...], split_above_vox: int | None) -> Iterator[_Piece]:
    slices = shape[2]
    if split_above_vox is None or math.prod(shape) <= split_above_vox or slices <= SPLIT_SLICES:
        yield _Piece(slice(0, slices), slice(0, slices), slice(0, slices))
        return
    third = slices // 3
    yield _Piece(slice(0, third + SPLIT_MARGIN), slice(0, third), slice(0, third))
    for start, end in ((third, 2 * third), (2 * third, slices)):
        first = start + 1 - SPLIT_MARGIN
        given = slice(first, slices if end == slices else end + SPLIT_MARGIN)
        yield _Piece(given, slice(start - first, end - first), slice(start, end))


class _Joined:
    """The label map of the whole while the parts are added to it, and how certain they are.

    Args:
        shape: of the label map.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.labels: Labels = np.zeros(shape, np.uint8)
        self._confidence: dict[int, float] = {}

    def add(self, piece: _Piece, part: Part, image: MetaTensor, network: Networks) -> None:
        """Let a part fill the voxels of a piece in which it finds something."""
        found = part.find(image, network)
        labels = part.in_whole(found.labels[..., piece.kept])
        self.labels = self.labels.astype(np.promote_types(self.labels.dtype, labels.dtype), copy=False)
        np.copyto(self.labels[..., piece.place], labels, where=labels != 0)
        if found.confidence is not None:
            values = part.in_whole(np.arange(len(found.confidence)))
            self._confidence |= dict(zip(values.tolist(), found.confidence.tolist(), strict=True))

    def facts(self) -> dict[str, torch.Tensor]:
        """Return the mean probability of each label of the whole, if the parts told those of theirs."""
        if not self._confidence:
            return {}
        means = torch.full((1 + max(self._confidence),), torch.nan)
        for label in self._confidence.keys() - {0}:
            means[label] = self._confidence[label]
        return {"confidence": means}
