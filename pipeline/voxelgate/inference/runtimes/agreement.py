"""Whether another way of running a network says the same as float32 eager does, on real patches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import nn

from voxelgate.core.errors import InputError, UsageError

MIN_DICE = 0.999
"""Lowest Dice of any class with float32 eager on any patch; what is below is refused."""

FLOAT32_TOLERANCE = 1e-3
"""Largest difference of logits, as a part of their range, in float32: another order of sums gives 1e-5, OpenVINO's
functions 1e-4; bfloat16 gives 1e-2."""

TIE = 1e-4
"""Margin between the two best logits of eager, as a part of their range, up to which a label is a tie: ten times what
another order of sums was seen to change."""

MIN_STRUCTURE_VOXELS = 1000
"""A patch with fewer voxels of structures cannot show a Dice of 0.999, so it is no evidence for reduced precision."""

SMALL_VOX = (64, 32, 32)
"""A patch that any network takes in a fraction of a second: five halvings leave two voxels, as instance norms need."""


def central_patch(image: torch.Tensor, window_vox: Sequence[int]) -> torch.Tensor:
    """Return the window (1, C, i, j, k) in the middle of a volume, smaller where the volume is."""
    patch = image
    for dim, most in enumerate(window_vox, start=2):
        length = min(most, image.shape[dim])
        patch = patch.narrow(dim, (image.shape[dim] - length) // 2, length)
    return patch


@dataclass(frozen=True)
class Agreement:
    """How logits compare with those of float32 eager, the worst of all patches.

    Args:
        difference: largest absolute difference of logits, as a part of the range of the reference.
        dice: of each class (of each region where these overlap); 1 where neither has a voxel.
        structure_voxels: voxels of the reference that are not background, the fewest of a patch.
        unequal: voxels with another label, of all patches; where regions overlap, one for each region.
        beyond_ties: those of them that are no ties (`TIE`).
    """

    difference: float
    dice: tuple[float, ...]
    structure_voxels: int
    unequal: int = 0
    beyond_ties: int = 0

    def objection(self, min_dice: float, *, is_float32: bool) -> str:
        """Return why the labels cannot be trusted to be the same, or an empty text.

        Args:
            min_dice: lowest Dice of a class.
            is_float32: the other way computes in float32 too, so that logits must agree and any patch is evidence.
        """
        lowest = min(self.dice)
        if lowest < min_dice:
            return f"Dice {lowest:.4f} of class {self.dice.index(lowest)} with eager, expected {min_dice} or more"
        if is_float32 and self.difference > FLOAT32_TOLERANCE:
            return f"logits differ by {self.difference:.1e} of their range, expected at most {FLOAT32_TOLERANCE:.0e}"
        if not is_float32 and self.structure_voxels < MIN_STRUCTURE_VOXELS:
            return (
                f"a patch with {self.structure_voxels} voxels of structures proves nothing, expected "
                f"{MIN_STRUCTURE_VOXELS} or more"
            )
        return ""


@dataclass(frozen=True, eq=False)
class Evidence:
    """A network and the real patches on which other ways of running it must agree with it.

    Args:
        network: in evaluation mode, float32; gives logits (1, classes, i, j, k).
        patches: (1, C, i, j, k) float32 each, of one shape, on the device of the network; cut from preprocessed images
            where structures are.
        min_dice: lowest Dice of any class on any patch.
        are_regions: channels are overlapping regions (sigmoid), not classes that exclude each other.

    Raises:
        InputError: no patch, or patches of several shapes.
        UsageError: the network is in training mode, in which a pass would change its batch norms.
    """

    network: nn.Module
    patches: tuple[torch.Tensor, ...]
    min_dice: float = MIN_DICE
    are_regions: bool = False

    def __post_init__(self) -> None:
        shapes = {tuple(patch.shape) for patch in self.patches}
        if len(shapes) != 1:
            raise InputError(f"{len(self.patches)} patches of shapes {sorted(shapes)}, expected some of one shape.")
        if any(module.training for module in self.network.modules()):
            raise UsageError("the network is in training mode; call eval() before it is compared.")

    def small(self) -> "Evidence":
        """Return the middle of the first patch alone, for what is the same arithmetic and shows it anywhere."""
        return replace(self, patches=(central_patch(self.patches[0], SMALL_VOX),))

    @cached_property
    def references(self) -> list[torch.Tensor]:
        """Return the logits of float32 eager, whatever autocast the caller is in; computed once."""
        device_type = self.patches[0].device.type
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            return [cast("torch.Tensor", self.network(patch)) for patch in self.patches]

    def compare(self, run: Callable[[torch.Tensor], torch.Tensor]) -> Agreement:
        """Run all patches once and compare.

        Args:
            run: gives logits as the network does.

        Raises:
            InputError: its logits are not finite or of another shape.
        """
        with torch.no_grad():
            found = [
                _compared(run(patch), expected, are_regions=self.are_regions)
                for patch, expected in zip(self.patches, self.references, strict=True)
            ]
        return worst_of(found)


def worst_of(found: Sequence[Agreement]) -> Agreement:
    """Return what is true of several comparisons together; at least one, of the same classes."""
    return Agreement(
        max(one.difference for one in found),
        tuple(min(values) for values in zip(*(one.dice for one in found), strict=True)),
        min(one.structure_voxels for one in found),
        sum(one.unequal for one in found),
        sum(one.beyond_ties for one in found),
    )


def _compared(logits: torch.Tensor, expected: torch.Tensor, *, are_regions: bool) -> Agreement:
    if logits.shape != expected.shape:
        raise InputError(f"logits of shape {tuple(logits.shape)}, expected {tuple(expected.shape)}.")
    difference = float((logits - expected).abs().max())
    if not difference < float("inf"):  # NaN is not
        raise InputError("logits that are not finite.")
    spread = max(float(expected.max() - expected.min()), torch.finfo(torch.float32).tiny)
    both, each = (_region_counts if are_regions else _class_counts)(logits, expected)
    dice = torch.where(each.sum(0) > 0, 2 * both / each.sum(0).clamp(min=1), 1)
    structures = each[1] if are_regions else each[1, 1:]
    is_unequal, margin = (_region_margins if are_regions else _class_margins)(logits, expected)
    beyond_ties = is_unequal & (margin > TIE * spread)
    return Agreement(
        difference / spread,
        tuple(dice.tolist()),
        int(structures.sum()),
        int(is_unequal.sum()),
        int(beyond_ties.sum()),
    )


def _class_margins(logits: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where labels differ, and by how much the label of the reference won, (B, i, j, k) each."""
    best = expected.topk(min(2, expected.shape[1]), dim=1).values
    return logits.argmax(1) != expected.argmax(1), best[:, 0] - best[:, -1]


def _region_margins(logits: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same of regions, (B, regions, i, j, k) each."""
    return (logits > 0) != (expected > 0), expected.abs()


def _class_counts(logits: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return voxels of each class in both, (classes,), and in one and the other, (2, classes)."""
    classes = expected.shape[1]
    pairs = logits.argmax(1) * classes + expected.argmax(1)
    joint = torch.bincount(pairs.flatten(), minlength=classes**2).reshape(classes, classes).double()
    return joint.diagonal(), torch.stack((joint.sum(1), joint.sum(0)))


def _region_counts(logits: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same of regions; a probability above one half is a logit above 0."""
    one, other = ((scores > 0).movedim(1, 0).flatten(1) for scores in (logits, expected))
    return (one & other).sum(1).double(), torch.stack((one.sum(1), other.sum(1))).double()
