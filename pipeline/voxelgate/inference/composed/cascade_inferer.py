"""A model that sees, beside the image, what a model of lower resolution found in it."""

from collections.abc import Sequence
from typing import Self

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from voxelgate.core.geometry import Grid
from voxelgate.inference.class_planes import Planes, Probabilities, gathered, probable
from voxelgate.inference.composed.part import Part, ask_parts, brought_back, on_own_grid
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.sliding_window import Networks

PREVIOUS = "previous"
"""Key under which the second stage's preprocessing finds the labels of the first, (1, i, j, k)."""


class CascadeInferer(Inferer):  # type: ignore[misc]  # MONAI ships no types that mypy may follow
    """Run the second stage of an nnU-Net cascade on the image and the labels that the first stage gives it.

    As with `nnUNetv2_predict -prev_stage_predictions`: the first stage is run with all of its folds, its labels are
    brought to the grid of the image, and `NnUNetPreprocessd` of the second stage makes channels of them.

    Args:
        first: the stage of lower resolution.
        second: the other; its preprocessing takes the labels of the first under "previous".
        probabilities_of: channels of the second stage whose probability is returned, as float32 channels, instead of
            labels.

    Raises:
        InputError: at call, when the image does not name the grid of its source.
        UsageError: at call, when probabilities are asked of a stage that gives labels only.

    >>> stage = vg.Part(vg.RestoringSlidingWindowInferer(roi_size=(8, 8, 8)))
    >>> network = lambda windows: torch.cat([80 - windows, windows - 80], dim=1)
    >>> load = LoadImaged("image", reader="voxelgate.VolumeReader", ensure_channel_first=True)
    >>> vg.CascadeInferer(stage, stage)(load({"image": "scan.nii.gz"})["image"][None], network).shape
    torch.Size([1, 1, 32, 36, 28])
    """

    def __init__(self, first: Part, second: Part, probabilities_of: Sequence[int] = ()) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.probabilities_of = tuple(probabilities_of)

    @property
    def regions(self) -> Sequence[int] | None:
        """Return the labels of the second stage's regions; None of classes that exclude each other."""
        return getattr(self.second.inferer, "regions", None)

    def __call__(self, inputs: MetaTensor, network: Networks) -> MetaTensor:
        """Return the labels of the second stage.

        Args:
            inputs: (1, C, i, j, k), as it was read or reordered.
            network: the networks of both stages, as a list.

        Returns:
            (1, 1, I, J, K) on the grid of the source. With `probabilities_of`, (1, asked, I, J, K) float32.
        """
        if self.probabilities_of:
            return brought_back(self._probabilities(inputs, network), inputs, {})
        found = self.second.find(inputs, network, **self._previous(inputs, network))
        return brought_back(found.labels, inputs, found.facts())

    def planes(self, inputs: MetaTensor, network: Networks) -> Planes:
        """Return the logits of the second stage for an image (1, C, i, j, k)."""
        return self.second.planes(inputs, network, **self._previous(inputs, network))

    def adjusted(self, asked: PassOptions) -> Self:
        """Return an inferer whose stages run as they are asked to."""
        return ask_parts(self, "adjusted", asked)

    def within(self, limit_bytes: int) -> Self:
        """Return an inferer whose stages keep to a limit of memory."""
        return ask_parts(self, "within", limit_bytes)

    def _probabilities(self, inputs: MetaTensor, network: Networks) -> Probabilities:
        """Return the probabilities (asked, i, j, k) on the grid of the image."""
        are_regions = self.regions is not None
        planes = probable(self.planes(inputs, network), are_regions=are_regions)
        return gathered(planes, Grid.of(inputs).shape, self.probabilities_of, are_regions=are_regions)

    def _previous(self, inputs: MetaTensor, network: Networks) -> dict[str, MetaTensor]:
        """Return the labels of the first stage on the grid of the image, (1, i, j, k)."""
        labels = torch.from_numpy(self.first.find(inputs, network).labels)
        return {PREVIOUS: on_own_grid(labels[None], Grid.of(inputs))}
