"""Spacing and patch, chosen together: voxels fine enough for every structure, a patch that sees enough of each."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from voxelgate.core.geometry import Shape, triple
from voxelgate.datasets.ceilings import COARSER, coarser_sides_mm
from voxelgate.datasets.manifest import Modality
from voxelgate.datasets.survey import Fingerprint, StructureFacts
from voxelgate.training.planning.plan import Budget, Device

Sides = npt.NDArray[np.float64]

PATCH_MULTIPLE = 8
PATCH_MARGIN = 1.1
"""A patch is a tenth larger than the box around all structures."""

MOST_PATCH_VOX = {Device.CPU: 40**3, Device.GPU: 128**3}
"""On a processor many small patches around structures teach more in a minute than few large ones."""

LEAST_BATCH = 2
"""Patches a step that must fit into memory; batch norm wants as many."""

BYTES_PER_VOXEL = 850.0
"""Memory of a training step for a patch voxel at 16 channels, float32; measured at 2 x 96^3."""

BASE_CHANNELS = {Device.CPU: 16, Device.GPU: 32}
MEASURED_CHANNELS = 16
"""For which `BYTES_PER_VOXEL` and the time of a step were measured."""

SEEN_WIDTHS = 2.0
"""A patch this many times as wide as a structure shows its border on both sides, and what lies beside it; of one that
is longer (a vessel, the cord) the length need not be seen."""

UNSEEN_COST = 1.25
"""Dice that a structure loses by being seen in pieces, times the square of the part of the needed side that is missing:
an atrium of 102 x 58 x 36 mm fell from 0.72 to 0.37 in patches of 25 mm, which are 0.47 of what it needs."""

LEAST_LOSS = 0.02
"""Mean Dice that small patches must cost, and coarser voxels save, before images are resampled at all."""

AROUND = 1.4
"""How much more a patch on coarser voxels shows than structures need: an organ is told from its neighbours by where it
lies among them, and patches are not centred on it (docs/accuracy.md: 0.90 against 0.38 without)."""

BORDER_VOX = 0.2
"""How far off a network places borders at best, in sides of a voxel; around a ball that costs three times its part of
the width in Dice."""

LEAST_CEILING = 0.9
"""Dice that a network without errors must still reach on every structure after the voxels became coarser."""

TRIED_FACTORS = np.geomspace(1.0, COARSER[-1], 61)[1:]
"""Sides of voxels that are tried, as multiples of the shortest: each about 3.5 % longer than the one before."""


@dataclass(frozen=True)
class GridChoice:
    """Spacing and patch, and why.

    Args:
        facts: of the data set as they are at this spacing.
        patch_vox: training patch.
        spacing_reason: why this spacing.
        patch_reason: why this patch.
    """

    facts: Fingerprint
    patch_vox: Shape
    spacing_reason: str
    patch_reason: str


def choose_grid(facts: Fingerprint, budget: Budget) -> GridChoice:
    """Make voxels coarser, longest sides last, where structures are too wide for a patch and not too fine for that.

    Voxels stay as they are while their patch shows what structures need, or little could be won. Else two losses are
    weighed, as the mean over structures: what coarser voxels cost (`StructureFacts.ceilings`, and less exact borders),
    against what a patch does not show; and no structure's ceiling falls below `LEAST_CEILING`.

    Args:
        facts: of the data set; structures without ceilings are taken to need the voxels that there are.
        budget: says how large a patch may be.
    """
    patch, patch_reason = patch_of(facts, budget)
    native = GridChoice(facts, patch, _native_reason(facts, patch), patch_reason)
    tried = [at_factor(facts, factor) for factor in TRIED_FACTORS if _least_ceiling(facts, factor) >= LEAST_CEILING]
    unseen = np.mean([_unseen_cost(one, facts, patch, 1.0) for one in facts.structures])
    if unseen < LEAST_LOSS or not tried:
        return native
    best = min(tried, key=lambda one: _cost(facts, one, patch_of(one, budget, AROUND)[0]))
    wide, wide_reason = patch_of(best, budget, AROUND)
    if _cost(facts, best, wide) > _cost(facts, facts, patch) - LEAST_LOSS:
        return native
    return GridChoice(best, wide, _coarser_reason(facts, patch, best, wide), wide_reason)


def at_factor(facts: Fingerprint, factor: float) -> Fingerprint:
    """Return the facts of a data set whose images were resampled until no side of a voxel is shorter than so many.

    Args:
        facts: of the data set.
        factor: of the shortest side; axes with one voxel stay.
    """
    old_mm, shape = np.array(facts.spacing_mm), np.array(facts.shape_vox)
    new_mm = coarser_sides_mm(old_mm, factor, moved=shape > 1).round(3)
    ratio = old_mm / new_mm
    return replace(
        facts,
        spacing_mm=triple(map(float, new_mm)),
        shape_vox=triple(map(float, np.maximum(1, shape * ratio).round(1))),
        foreground_vox=triple(map(float, np.maximum(1, np.array(facts.foreground_vox) * ratio).round(1))),
    )


def patch_of(facts: Fingerprint, budget: Budget, margin: float = PATCH_MARGIN) -> tuple[Shape, str]:
    """Take the box around the structures and shrink its longest axis until a batch fits; one slice stays one slice.

    Args:
        facts: of the data set at the spacing of the network.
        budget: says how large a patch may be.
        margin: how many times as large as the box a patch may be.

    Returns:
        The patch in voxels, and why it is so.
    """
    shape = np.array(facts.shape_vox)
    wanted = np.minimum(np.array(facts.foreground_vox) * margin, shape)
    patch = np.where(shape == 1, 1, np.maximum(1, np.rint(wanted / PATCH_MULTIPLE)).astype(int) * PATCH_MULTIPLE)
    scale = BASE_CHANNELS[budget.device] / MEASURED_CHANNELS
    by_memory = budget.memory_gb * 1e9 / (BYTES_PER_VOXEL * scale * LEAST_BATCH)
    most = min(MOST_PATCH_VOX[budget.device], by_memory)
    whole = patch.prod()
    while patch.prod() > most and patch.max() > PATCH_MULTIPLE:
        patch[patch.argmax()] -= PATCH_MULTIPLE
    more = "a tenth" if margin == PATCH_MARGIN else f"{margin - 1:.0%}"
    reason = f"the median box around all structures and {more} more"
    if patch.prod() < whole:
        reason += (
            f", its longest axis shortened to {patch.prod() / 1000:.0f} thousand voxels, which suit a {budget.device}"
        )
    return triple(map(int, patch)), reason


def seen_share(structure: StructureFacts, facts: Fingerprint, patch: Shape, around: float = 1.0) -> float:
    """Return the part of the side that a structure needs to be seen in which a patch has, mean over axes; 1 at most.

    Args:
        structure: one without an extent (old facts, or never there) is seen whole.
        facts: of the data set at the spacing of the network.
        patch: in voxels.
        around: how many times as much must be seen.
    """
    deep = np.array(facts.shape_vox) > 1
    needed_mm = around * np.minimum(structure.extent_mm, SEEN_WIDTHS * structure.width_mm)[deep]
    if not needed_mm.any():
        return 1.0
    patch_mm = (np.array(patch) * facts.spacing_mm)[deep]
    return float(np.prod(np.minimum(1, patch_mm / needed_mm)) ** (1 / deep.sum()))


def ceiling_at(structure: StructureFacts, factor: float) -> float:
    """Return the Dice that a network without errors reaches on voxels so many times as long as the shortest side.

    Args:
        structure: one whose ceilings nobody measured has 0 on coarser voxels, unless it is never there.
        factor: from 1 on.
    """
    if factor == 1 or not structure.cases:
        return 1.0
    if not structure.ceilings:
        return 0.0
    return float(np.interp(factor, (1.0, *COARSER), (1.0, *structure.ceilings)))


def _finest_mm(facts: Fingerprint) -> float:
    """Return the shortest side of a voxel among the axes that have more than one."""
    deep = np.array(facts.shape_vox) > 1
    return float(np.array(facts.spacing_mm)[deep].min()) if deep.any() else min(facts.spacing_mm)


def _least_ceiling(facts: Fingerprint, factor: float) -> float:
    return min(ceiling_at(one, factor) for one in facts.structures)


def _unseen_cost(structure: StructureFacts, facts: Fingerprint, patch: Shape, around: float) -> float:
    return UNSEEN_COST * (1 - seen_share(structure, facts, patch, around)) ** 2


def _cost(facts: Fingerprint, coarser: Fingerprint, patch: Shape) -> float:
    """Return the mean over structures of the Dice that is lost by coarse voxels and by small patches."""
    fine_mm, coarse_mm = _finest_mm(facts), _finest_mm(coarser)
    lost = [
        1
        - ceiling_at(one, coarse_mm / fine_mm)
        + 3 * BORDER_VOX * coarse_mm / max(one.width_mm, fine_mm)
        + _unseen_cost(one, coarser, patch, AROUND)
        for one in facts.structures
    ]
    return round(float(np.mean(lost)), 4)


def _native_reason(facts: Fingerprint, patch: Shape) -> str:
    reason = "the median of the data set, so that most images change little"
    if facts.modality is Modality.PICTURE:
        reason = "a pixel counts as 1 mm, so that nothing is resampled"
    shown = min(facts.structures, key=lambda one: seen_share(one, facts, patch))
    if seen_share(shown, facts, patch) < 1:
        reason += f"; a patch shows {_seen_words(shown, facts, patch)}, and coarser voxels would cost more"
    return reason


def _coarser_reason(facts: Fingerprint, native: Shape, coarser: Fingerprint, patch: Shape) -> str:
    shown = min(facts.structures, key=lambda one: seen_share(one, facts, native))
    factor = _finest_mm(coarser) / _finest_mm(facts)
    ceiling, name = min((ceiling_at(one, factor), one.name) for one in facts.structures)
    return (
        f"coarser than the {_sides(facts.spacing_mm, facts)} of the data set, so that a patch shows "
        f"{_seen_words(shown, coarser, patch)} instead of {_sides(np.array(native) * facts.spacing_mm, facts)}; a "
        f"network without errors would still reach a Dice of {ceiling:.2f} ({name})"
    )


def _seen_words(structure: StructureFacts, facts: Fingerprint, patch: Shape) -> str:
    seen_mm = np.minimum(np.array(patch) * facts.spacing_mm, structure.extent_mm)
    return f"{_sides(seen_mm, facts)} of {structure.name}, which is {_sides(structure.extent_mm, facts)} large"


def _sides(values: npt.ArrayLike, facts: Fingerprint) -> str:
    """Return lengths along the axes that have more than one voxel in words."""
    deep = np.array(facts.shape_vox) > 1
    unit = "pixels" if facts.modality is Modality.PICTURE else "mm"
    return " x ".join(f"{round(value, 2 if value < 10 else 0):g}" for value in np.array(values)[deep]) + f" {unit}"
