"""Unbiased volumes: what is added to the logit of each class, so that structures come out as large as they are.

A network that learnt with the Dice loss draws what it is unsure of too large, for that is best for the Dice of such
voxels. An offset b of a logit multiplies the odds of its class by exp(b) everywhere, and moves its border.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from voxelgate.core.geometry import Grid
from voxelgate.core.labels import IGNORED
from voxelgate.inference.restoring.class_scores import ScoreKind
from voxelgate.training.cleaning import Step
from voxelgate.training.planning.plan import Cleaning

Numbers = npt.NDArray[np.floating]
Amounts = npt.NDArray[np.float64]

MOST_SHIFT = 4.0
"""Largest offset of a logit; it multiplies the odds of a class by 55."""

SLAB_VOX = 4000
"""Voxels of a slab that are kept, shared by the kinds of them; each stands for others of its kind by a weight."""

LEAST_OF_KIND = 12
"""Of each kind that are kept, however many kinds there are."""

LEAD_STEP = 2.0
"""Voxels are of one kind where the same two classes lead and the lead, of logits, is alike within this."""

LEAST_PROBABILITY = 1e-6
"""Below the rounding of averaged float32 probabilities."""

LEAST_SUBJECTS = 3
"""Who must show a structure before its volume is corrected."""

SWEEPS = 6
"""Rounds over the classes, each of which is brought to its volume while the others rest."""

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Parts of the offsets that are tried, for the largest that costs no Dice."""

LOST_DICE = 0.0005
"""Mean Dice that may be lost by it; less is noise."""

RESTORED_LIMITS = (0.2, 2.0)
"""Between which a structure's volume in the result lies, as a part of that on the network grid."""


@dataclass(frozen=True, eq=False)
class Undecided:
    """A case that a network has not seen: what offsets would change, and volumes.

    Args:
        subject: whose case it is.
        log_probabilities: (classes, n) float16, of voxels of the network grid at which another class may win.
        reference: (n,) their true classes.
        weight_ml: (n,) the volume that each stands for.
        decided_ml: (classes,) volume of the voxels at which no offset changes anything.
        right_ml: (classes,) the part of it that is right.
        found_ml: (classes,) volume in the result, before cleaning.
        reference_ml: (classes,) true volume.
        kept: part of the volume of a class that each step of cleaning would leave, (classes,); may be above 1.
    """

    subject: str
    log_probabilities: npt.NDArray[np.float16]
    reference: npt.NDArray[np.int32]
    weight_ml: Numbers
    decided_ml: Amounts
    right_ml: Amounts
    found_ml: Amounts
    reference_ml: Amounts
    kept: Mapping[Step, Amounts] = field(default_factory=dict)

    def volumes_ml(self, offsets: Amounts) -> Amounts:
        """Return the volume of each class on the network grid with some offsets."""
        return self.decided_ml + np.bincount(self._won(offsets), self.weight_ml, len(offsets))

    def dices(self, offsets: Amounts) -> Amounts:
        """Return the Dice of each class with some offsets; NaN where it is not among both."""
        won = self._won(offsets)
        hit = np.where(won == self.reference, self.weight_ml, 0)
        right = self.right_ml + np.bincount(won, hit, len(offsets))
        both = self.volumes_ml(offsets) + self.reference_ml
        with np.errstate(invalid="ignore"):
            return np.where(self.counts, 2 * right / both, np.nan)

    @property
    def counts(self) -> npt.NDArray[np.bool_]:
        """Return which classes are there and were found, so that they tell something about volumes."""
        return (self.found_ml > 0) & (self.reference_ml > 0)

    def restored(self, cleaning: Cleaning) -> Amounts:
        """Return the volume of each class in the cleaned result, as a part of that on the network grid."""
        cleaned = self.found_ml.copy()
        for step, values in ((Step.KEEP_LARGEST, cleaning.keep_largest), (Step.FILL_HOLES, cleaning.fill_holes)):
            for value in values:
                cleaned[value] *= self.kept[step][value] if step in self.kept else 1.0
        on_grid = self.volumes_ml(np.zeros(len(cleaned)))
        return np.clip(cleaned / np.where(on_grid > 0, on_grid, np.inf), *RESTORED_LIMITS)

    def _won(self, offsets: Amounts) -> npt.NDArray[np.int64]:
        scores = self.log_probabilities.astype(np.float32) + offsets[:, None].astype(np.float32)
        won: npt.NDArray[np.int64] = scores.argmax(axis=0)
        return won


class Border:
    """Collects, slab by slab, the voxels of one case at which another class may win.

    Args:
        reference: (I, J, K) true classes on the grid of the file, `IGNORED` where nothing counts.
        grid: of the reference.
        rng: chooses voxels where there are very many.
    """

    def __init__(self, reference: npt.NDArray[np.int32], grid: Grid, rng: np.random.Generator) -> None:
        self._reference, self._grid, self._rng = reference, grid, rng
        self._parts: list[tuple[npt.NDArray[np.float16], npt.NDArray[np.int32], Numbers]] = []
        self._decided: Amounts = np.zeros(0)
        self._right: Amounts = np.zeros(0)

    def show(self, scores: torch.Tensor, kind: ScoreKind, grid: Grid) -> None:
        """Take the scores (classes, i, j, k) of a slab of the network grid."""
        logs = _log_probabilities(scores, kind)
        truth = _on_grid(self._reference, self._grid, grid).reshape(-1)
        logs, truth = logs[:, truth != IGNORED], truth[truth != IGNORED]
        first, second = _leaders(logs)
        lead = np.take_along_axis(logs, first[None], 0)[0] - np.take_along_axis(logs, second[None], 0)[0]
        is_open = lead < 2 * MOST_SHIFT
        decided = np.where(is_open, len(logs), first)
        counts = np.bincount(decided, minlength=len(logs) + 1)[:-1] * grid.voxel_ml
        right = np.bincount(decided[decided == truth], minlength=len(logs) + 1)[:-1] * grid.voxel_ml
        if not len(self._decided):
            self._decided, self._right = np.zeros(len(logs)), np.zeros(len(logs))
        self._decided, self._right = self._decided + counts, self._right + right
        alike = (first * len(logs) + second) * math.ceil(2 * MOST_SHIFT / LEAD_STEP) + (lead // LEAD_STEP).astype(int)
        chosen, weights = self._chosen(np.flatnonzero(is_open), alike)
        self._parts.append((logs[:, chosen].astype(np.float16), truth[chosen], weights * grid.voxel_ml))

    def of_case(self, subject: str, labels: npt.NDArray[np.int32], kept: Mapping[Step, Amounts]) -> Undecided | None:
        """Return what was collected; None if no slab was shown.

        Args:
            subject: whose case it is.
            labels: (I, J, K) result on the grid of the file, before cleaning.
            kept: as in `Undecided`.
        """
        if not self._parts:
            return None
        logs, truths, weights = zip(*self._parts, strict=True)
        counts = self._reference != IGNORED
        classes = len(self._decided)
        found_ml, reference_ml = (
            np.bincount(of[counts], minlength=classes)[:classes] * np.float64(self._grid.voxel_ml)
            for of in (labels, self._reference)
        )
        return Undecided(
            subject,
            np.concatenate(logs, axis=1),
            np.concatenate(truths),
            np.concatenate(weights),
            self._decided,
            self._right,
            found_ml.astype(np.float64),
            reference_ml.astype(np.float64),
            kept,
        )

    def _chosen(
        self, voxels: npt.NDArray[np.int64], kind: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], Amounts]:
        """Return some voxels of each kind, and how many each of them stands for."""
        shuffled = self._rng.permutation(voxels)
        order = shuffled[np.argsort(kind[shuffled], kind="stable")]
        _, start, count = np.unique(kind[order], return_index=True, return_counts=True)
        place = np.arange(len(order)) - np.repeat(start, count)
        most = max(LEAST_OF_KIND, SLAB_VOX // max(1, len(count)))
        is_kept = place < most
        each = np.repeat(count / np.minimum(count, most), count)
        return order[is_kept], each[is_kept]


@dataclass(frozen=True)
class Offsets:
    """What is added to logits, and what volumes and Dice were before and after, on the cases that it was fitted on.

    Args:
        values: one for each class, background first, which has 0; empty if nothing is added.
        bias_before: (mean volume found / true mean volume) - 1 of each class; NaN of the background and where nobody
            knows.
        bias_after: the same afterwards.
        dice_before: mean over structures and cases.
        dice_after: the same afterwards.
    """

    values: tuple[float, ...] = ()
    bias_before: tuple[float, ...] = ()
    bias_after: tuple[float, ...] = ()
    dice_before: float = math.nan
    dice_after: float = math.nan


def fit_offsets(cases: Sequence[Undecided], cleaning: Cleaning | None = None) -> Offsets:
    """Return the offsets by which the mean volume of each structure becomes the true one, as far as Dice allows.

    A bias is corrected as far as it is certain: of one that is as large as its own standard error over subjects, half.
    Cases without the structure, and those in which it was missed, do not count.

    Args:
        cases: that the network has not seen.
        cleaning: that follows.
    """
    if not cases:
        return Offsets()
    parts = [_Weighed(case, case.restored(cleaning or Cleaning())) for case in cases]
    zero = np.zeros(len(cases[0].decided_ml))
    bias, error = _bias(parts, zero)
    with np.errstate(invalid="ignore"):
        sure = np.nan_to_num(bias**2 / (bias**2 + error**2))
    target = _target_ml(parts, zero, sure)
    full = _solved(parts, target, sure > 0)
    before = _dice_over_classes(cases, zero)
    for share in SHARES:
        offsets = np.round(full * share, 4)
        after = _dice_over_classes(cases, offsets)
        if offsets.any() and after >= before - LOST_DICE:
            left, _ = _bias(parts, offsets)
            return Offsets(tuple(offsets.tolist()), _ratios(bias), _ratios(left), before, after)
    return Offsets((), _ratios(bias), _ratios(bias), before, before)


@dataclass(frozen=True, eq=False)
class _Weighed:
    case: Undecided
    restored: Amounts

    def volumes_ml(self, offsets: Amounts) -> Amounts:
        return self.case.volumes_ml(offsets) * self.restored


def _bias(parts: Sequence[_Weighed], offsets: Amounts) -> tuple[Amounts, Amounts]:
    """Return the logarithm of the mean volume found over the true one for each class, and its standard error."""
    found, true = _sums_by_subject(parts, lambda part: part.volumes_ml(offsets)), _sums_by_subject(parts, _true_ml)
    subjects = np.array(_sums_by_subject(parts, lambda part: part.case.counts.astype(np.float64)) > 0).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = found.sum(axis=0) / true.sum(axis=0)
        away = (found - ratio * true) / found.sum(axis=0)
        error = np.sqrt((away**2).sum(axis=0) * subjects / (subjects - 1))
        bias = np.log(ratio)
    known = (subjects >= LEAST_SUBJECTS) & (np.arange(len(bias)) > 0) & np.isfinite(bias)
    return np.where(known, bias, np.nan), np.where(known, error, np.nan)


def _true_ml(part: _Weighed) -> Amounts:
    return part.case.reference_ml


def _sums_by_subject(parts: Sequence[_Weighed], of: Callable[[_Weighed], Amounts]) -> Amounts:
    """Return the sum over the cases of each subject that count, (subjects, classes)."""
    sums: dict[str, Amounts] = {}
    for part in parts:
        sums[part.case.subject] = sums.get(part.case.subject, 0) + np.where(part.case.counts, of(part), 0)
    return np.array(list(sums.values()))


def _target_ml(parts: Sequence[_Weighed], zero: Amounts, sure: Amounts) -> Amounts:
    """Return the summed volume that each class shall have: the true one, as far as the bias is sure."""
    found = _sums_by_subject(parts, lambda part: part.volumes_ml(zero)).sum(axis=0)
    true = _sums_by_subject(parts, _true_ml).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        target: Amounts = np.where(sure > 0, found * (true / found) ** sure, found)
    return target


def _solved(parts: Sequence[_Weighed], target_ml: Amounts, is_moved: npt.NDArray[np.bool_]) -> Amounts:
    """Return the offsets with which the summed volumes are the wanted ones; each class in turn, several times."""
    offsets = np.zeros(len(target_ml))
    logs = np.concatenate([part.case.log_probabilities for part in parts], axis=1).astype(np.float32)
    shifted = logs.copy()
    for _ in range(SWEEPS):
        for value in map(int, np.flatnonzero(is_moved)):
            shifted[value] = -np.inf
            leads = shifted.max(axis=0) - logs[value]
            offsets[value] = _reaching(parts, leads, value, float(target_ml[value]))
            shifted[value] = logs[value] + np.float32(offsets[value])
    return offsets


def _reaching(parts: Sequence[_Weighed], leads: npt.NDArray[np.float32], value: int, target_ml: float) -> float:
    """Return the offset of one class with which it has a volume, while the others rest.

    Args:
        parts: of all cases.
        leads: of the best other class over this one at each voxel; one is won as soon as the offset is above.
        value: the class.
        target_ml: the wanted volume.
    """
    volumes = np.concatenate([part.case.weight_ml * part.restored[value] * part.case.counts[value] for part in parts])
    sure_ml = sum(part.case.decided_ml[value] * part.restored[value] * part.case.counts[value] for part in parts)
    sure_ml += float(volumes[leads <= -MOST_SHIFT].sum())
    open_ones = np.flatnonzero(np.abs(leads) < MOST_SHIFT)
    order = open_ones[np.argsort(leads[open_ones])]
    place = int(np.searchsorted(sure_ml + np.cumsum(volumes[order]), target_ml))
    if place >= len(order):
        return MOST_SHIFT if len(order) else 0.0
    return float(leads[order[place]])


def _dice_over_classes(cases: Sequence[Undecided], offsets: Amounts) -> float:
    dices = np.array([case.dices(offsets)[1:] for case in cases])
    of_class = [column[np.isfinite(column)].mean() for column in dices.T if np.isfinite(column).any()]
    return float(np.mean(of_class)) if of_class else math.nan


def _ratios(bias: Amounts) -> tuple[float, ...]:
    return tuple(np.expm1(bias).tolist())


def _log_probabilities(scores: torch.Tensor, kind: ScoreKind) -> npt.NDArray[np.float32]:
    """Return (classes, n) of scores (classes, i, j, k)."""
    flat = scores.detach().float().flatten(1)
    logs = flat.clamp_min(LEAST_PROBABILITY).log() if kind.are_probabilities else flat.log_softmax(dim=0)
    found: npt.NDArray[np.float32] = logs.cpu().numpy()
    return found


def _leaders(logs: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the likeliest class of each voxel, and the next."""
    two = torch.from_numpy(logs).topk(2, dim=0).indices.numpy()
    return two[0], two[1]


def _on_grid(reference: npt.NDArray[np.int32], source: Grid, grid: Grid) -> npt.NDArray[np.int32]:
    """Return the true class at each voxel centre of a grid; background outside of the file's."""
    to_source = np.linalg.inv(source.affine) @ grid.affine
    found: npt.NDArray[np.int32] = ndimage.affine_transform(
        reference, to_source[:3, :3], to_source[:3, 3], grid.shape, order=0, mode="constant", cval=0
    )
    return found
