"""A model that sees only the surroundings of what a rougher model found."""

import copy
from collections.abc import Collection, Sequence
from typing import Self

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from voxelgate.core.errors import UsageError
from voxelgate.core.geometry import Box, Grid, triple
from voxelgate.inference.composed.part import Labels, Part, ask_parts, brought_back, on_own_grid
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.sliding_window import Networks


class CroppedInferer(Inferer):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Find structures roughly, and run a model over the box around them, as TotalSegmentator 2.18 does (`cropping.py`).

    Outside of the box nothing is found; nowhere, if the rough model finds none of the structures. The cropped image is
    cut to whole numbers towards zero.

    Args:
        rough: the rough model.
        inner: the model that sees the box.
        labels: of the rough model, around which the box is laid; None if the box is laid around what is asked for by
            `restricted_to` (then both models have the same labels), and the whole image is seen until then.
        margin_mm: by which the box is wider along each axis of the image.

    Raises:
        UsageError: no labels, or not three margins of at least 0.
        InputError: at call, when the image does not name the grid of its source.

    >>> inner = vg.Part(vg.RestoringSlidingWindowInferer(roi_size=(8, 8, 8)))
    >>> inferer = vg.CroppedInferer(inner, inner, labels=[1], margin_mm=(5.0, 5.0, 5.0))
    >>> network = lambda windows: torch.cat([80 - windows, windows - 80], dim=1)
    >>> load = LoadImaged("image", reader="voxelgate.VolumeReader", ensure_channel_first=True)
    >>> inferer(load({"image": "scan.nii.gz"})["image"][None], network).unique().tolist()
    [0, 1]
    """

    def __init__(
        self,
        rough: Part,
        inner: Part,
        labels: Sequence[int] | None = None,
        margin_mm: Sequence[float] = (20.0, 20.0, 20.0),
    ) -> None:
        super().__init__()
        if labels is not None and not labels:
            raise UsageError("an empty list of labels, expected those around which an image is cropped, or null.")
        if len(margin_mm) != 3 or min(margin_mm) < 0:
            raise UsageError(f"margin_mm {tuple(margin_mm)}, expected three of at least 0.")
        self.rough, self.inner = rough, inner
        self.labels = None if labels is None else frozenset(labels)
        self.follows_restriction = labels is None
        self.margin_mm = tuple(margin_mm)

    def __call__(self, inputs: MetaTensor, network: Networks) -> MetaTensor:
        """Return the labels.

        Args:
            inputs: (1, C, i, j, k), as it was read or reordered.
            network: the networks of both models, as a list.

        Returns:
            (1, 1, I, J, K) on the grid of the source.
        """
        grid = Grid.of(inputs)
        if self.labels is None:
            found = self.inner.find(inputs, network)
            return brought_back(found.labels, inputs, found.facts())
        box = _box_around(np.isin(self.rough.find(inputs, network).labels, sorted(self.labels)), grid, self.margin_mm)
        if box is None:
            return brought_back(np.zeros(grid.shape, np.uint8), inputs, {})
        cut = torch.trunc(inputs.as_tensor()[0, :, *box].float())
        inside = self.inner.find(on_own_grid(cut, grid.cropped(box))[None], network)
        labels: Labels = np.zeros(grid.shape, inside.labels.dtype)
        labels[box] = inside.labels
        return brought_back(labels, inputs, inside.facts())

    def restricted_to(self, labels: Collection[int]) -> Self:
        """Return an inferer that finds nothing but these labels, and runs no part that knows none of them."""
        changed = copy.copy(self)
        changed.inner = self.inner.asked("restricted_to", labels)
        if self.follows_restriction:
            changed.labels = frozenset(labels)
        return changed

    def adjusted(self, asked: PassOptions) -> Self:
        """Return an inferer whose models run as they are asked to."""
        return ask_parts(self, "adjusted", asked)

    def within(self, limit_bytes: int) -> Self:
        """Return an inferer whose models keep to a limit of memory."""
        return ask_parts(self, "within", limit_bytes)


def _box_around(mask: Labels, grid: Grid, margin_mm: Sequence[float]) -> Box | None:
    """Return the box around all voxels of a mask, with a margin in whole voxels; None if there are none."""
    if not mask.any():
        return None
    margins = (np.array(margin_mm) / np.array(grid.spacing_mm, np.float32)).astype(int)
    spans = []
    for axis, margin in enumerate(margins):
        (hit,) = np.nonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append(slice(max(0, int(hit[0] - margin)), min(grid.shape[axis], int(hit[-1] + 1 + margin))))
    return triple(spans)
