"""How the numbers of a bundle follow from the facts of a data set and a budget: a pure function, one rule a choice."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.documents import read_json
from voxelgate.core.errors import UsageError
from voxelgate.core.geometry import Shape, triple
from voxelgate.datasets.manifest import Modality
from voxelgate.datasets.survey import Fingerprint
from voxelgate.training.planning.grid_rules import BASE_CHANNELS, LEAST_BATCH, MEASURED_CHANNELS, choose_grid
from voxelgate.training.planning.plan import Augmentation, Budget, Device, Intensity, Plan, Training

STEP_VOX = {Device.CPU: 2 * 40**3, Device.GPU: 2 * 128**3}
"""Voxels of one optimiser step: patches times batch."""

BATCH_LIMITS = (LEAST_BATCH, 4)
"""Batch norm wants two patches at least; beyond four, smaller steps teach more in the same time."""

STEP_S_PER_VOXEL = {Device.CPU: 4.6e-6, Device.GPU: 4e-8}
"""Time of a training step for a patch voxel, if it was not measured: one slow core, one large GPU."""

MOST_CHANNELS = 256
MOST_LEVELS = 6
SMALLEST_BOTTLENECK_VOX = 3
"""An axis is halved only while at least this many voxels of the patch remain."""

ANISOTROPY = 2.0
"""An axis is not halved while its voxels are this much longer than the shortest side (as nnU-Net does), and patches are
not turned from one axis to another whose voxels are so (nnU-Net from 3 on)."""

WINDOW_MARGIN = 0.2
"""Part of the spread of the structures' HU that is added on both sides of the window, for what surrounds them."""

DENSE_HU = 300.0
"""From here on next to nothing but bone is brighter than a structure, so that a window need not hold all of it."""

WINDOW_STEP_HU = 10.0
MOST_FIELD_OF_VIEW = 2
"""Inference window in patches; only where the network cannot stream."""

STEPS_PER_EPOCH = 100
VALIDATIONS = 4
"""How often a training is measured on its validation cases; each costs seconds a case."""

MOST_VALIDATION_SHARE = 1 / 3
"""Part of the minutes that validations may take; there are fewer of them where they would take more."""

CLOSING_VALIDATIONS = 5.0
"""Time after the last step, in validations: the ending is chosen and the scores are taken with mirror images."""

MOST_CLOSING_SHARE = 1 / 4
"""Part of the minutes that is kept for it at most."""

READ_S_PER_VOXEL = 2e-7
"""Time to read, check and prepare a voxel of every case before the first step; one slow core, NIfTI, resampled."""

USED_SHARE = 0.95
"""Part of the minutes that is planned for; a training does more than what was timed: it averages, and it logs."""

FORWARD_SHARE = 0.3
"""Time of a forward pass as a part of that of a training step on as many voxels."""

WARMUP_SHARE = 0.05
LONGEST_WARMUP = 100
LONGEST_AVERAGE = 200
"""Steps over which the running average of the weights reaches back."""

FOLDS = 5

LENGTH_FIELDS = frozenset({"epochs", "steps_per_epoch"})
"""Of `Training`: what fixes its length where it is set by hand."""


@dataclass(frozen=True)
class _Choice:
    """A value of the plan and why it is so."""

    value: Any
    reason: str


@dataclass(frozen=True)
class _Length:
    """How long a training is, how often it validates, and the seconds that are not for steps."""

    epochs: int
    steps_per_epoch: int
    validations: int
    other_s: float


def plan(facts: Fingerprint, budget: Budget | None = None, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Choose the numbers of a bundle; a pure function of its arguments.

    Args:
        facts: of the data set.
        budget: what a training may cost.
        overrides: values that count instead of the rules', by the names of `Plan`, nested as in its JSON; an override
            changes that value alone; but a length of training is kept, whatever the clock says, unless it says minutes.

    Raises:
        UsageError: an override of something that a plan does not have, or values that make no plan.

    >>> facts = vg.survey(vg.load_manifest("data/manifest.json"))
    >>> vg.plan(facts.fingerprint, vg.Budget(minutes=5)).spacing_mm
    (1.0, 1.0, 1.0)
    """
    chosen = budget or Budget()
    grid = choose_grid(facts, chosen)
    strides = _stride_choice(grid.facts, grid.patch_vox)
    batch = _batch(grid.patch_vox, chosen)
    channels = _channel_choice(len(strides.value) + 1, chosen)
    is_flat = facts.shape_vox.count(1) == 1
    choices = {
        "spacing_mm": _Choice(grid.facts.spacing_mm, grid.spacing_reason),
        "intensity": _intensity_choice(facts),
        "patch_vox": _Choice(grid.patch_vox, grid.patch_reason),
        "strides": strides,
        "channels": channels,
        "window_vox": _Choice(
            tuple(n if n == 1 else MOST_FIELD_OF_VIEW * n for n in grid.patch_vox),
            "twice the patch" + ("" if is_flat else "; used only where a volume cannot stream through the network"),
        ),
        "network": _network(channels.value, is_flat=is_flat),
        "augmentation": _augmentation(grid.facts),
        "flip_test": _flip_test(facts),
        "training": _training(grid.facts, grid.patch_vox, batch, chosen),
    }
    made = Plan(
        name=facts.name,
        description=f"Segments {', '.join(facts.labels.foreground.values())} in {_images(facts)}.",
        modality=facts.modality,
        labels=facts.labels.names,
        image_channels=facts.channel_names,
        data={"name": facts.name, "licence": facts.licence, "reference": facts.reference},
        trained_on={
            "extent_mm": [list(limits) for limits in facts.extent_range_mm],
            "spacing_mm": [list(limits) for limits in facts.spacing_range_mm],
            "structures": {name: dict(one) for name, one in facts.ranges.items()},
        },
        min_slices=max(min(2, facts.fewest_slices), facts.fewest_slices // 2),
        budget=chosen,
        reasons={name: choice.reason for name, choice in choices.items()} | _standing_reasons(facts),
        **{name: choice.value for name, choice in choices.items()},
    )
    return _overridden(made, overrides or {})


def read_overrides(path: Path) -> dict[str, Any]:
    """Read a file of overrides: a JSON object such as `{"spacing_mm": [1, 1, 3], "training": {"epochs": 20}}`.

    Raises:
        UsageError: no such file, or no JSON object.
    """
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path.name} cannot be read as overrides ({error}); write a JSON object") from error
    if not isinstance(values, dict):
        raise UsageError(f'{path.name} holds no JSON object; write one such as {{"spacing_mm": [1, 1, 3]}}')
    return values


def _overridden(made: Plan, overrides: Mapping[str, Any]) -> Plan:
    if not overrides:
        return made
    if fixed := sorted(overrides.keys() & _FIXED):
        raise UsageError(
            f"override {', '.join(fixed)}: it says what was asked for, so that another value would belie the plan; ask "
            "with --minutes, --device and --memory"
        )
    network = overrides.get("network")
    is_other = isinstance(network, Mapping) and "_target_" in network
    ruled = replace(made, network={}) if is_other else made  # the rules' arguments are those of the plan's own network
    values = _laid_over(asdict(ruled), _with_fixed_length(overrides), "")
    set_by_hand = {name: "set by hand" for name in overrides if name in made.reasons}
    reasons = dict(made.reasons) | set_by_hand | dict(overrides.get("reasons", {}))
    return Plan(**values | {"overrides": dict(overrides), "reasons": reasons})


def _with_fixed_length(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return overrides in which a length of training that was set by hand is not a matter of minutes."""
    training = overrides.get("training")
    if not isinstance(training, Mapping) or not LENGTH_FIELDS & training.keys():
        return overrides
    return {**overrides, "training": {"minutes": None, **training}}


def _laid_over(values: Mapping[str, Any], overrides: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    result = dict(values)
    for name, value in overrides.items():
        if name not in values and prefix not in _FREE:
            near = difflib.get_close_matches(name, values)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(values)}."
            raise UsageError(f"override {prefix}{name}: a plan has no such value; {hint}")
        is_nested = isinstance(value, Mapping) and isinstance(values.get(name), Mapping)
        result[name] = _laid_over(values[name], value, f"{prefix}{name}.") if is_nested else value
    return result


_FIXED = {"budget", "overrides", "plan_version"}
_FREE = ("network.", "data.", "adopted.", "trained_on.", "changelog.", "reasons.")
"""Parts of a plan in which any name may stand."""


def _images(facts: Fingerprint) -> str:
    return "2D pictures" if facts.modality is Modality.PICTURE else f"{facts.modality} volumes"


def _intensity_choice(facts: Fingerprint) -> _Choice:
    if facts.modality is Modality.PICTURE:
        return _Choice(
            Intensity(),
            "each picture to mean 0 and deviation 1, whatever its bits and exposure; red, green and blue together, so "
            "that colours keep their relation",
        )
    if facts.modality is Modality.MRI:
        return _Choice(Intensity(), "MRI has no scale: each channel of each image to mean 0 and deviation 1")
    spreads = [channel for structure in facts.structures for channel in structure.intensity]
    bone = DENSE_HU + facts.hu_offset
    darkest = min(p1 for p1, *_ in spreads)
    brightest = max(min(p99, max(p25, bone)) for _, p25, *_, p99 in spreads)
    margin = WINDOW_MARGIN * (brightest - darkest)
    low, high = (
        round((limit - facts.hu_offset) / WINDOW_STEP_HU) * WINDOW_STEP_HU
        for limit in (darkest - margin, brightest + margin)
    )
    reason = (
        f"HU from the darkest structure's first percentile to the brightest one's last (above {DENSE_HU:g}, where bone "
        f"is, its first quarter), and {WINDOW_MARGIN:.0%} more on both sides: nothing brighter must be told apart"
    )
    if facts.hu_offset:
        reason += f"; no image holds a negative value, so {facts.hu_offset:g} was added to HU"
    return _Choice(Intensity(low, max(high, low + WINDOW_STEP_HU), facts.hu_offset), reason)


def _stride_choice(facts: Fingerprint, patch: Shape) -> _Choice:
    strides: list[Shape] = []
    size, spacing = np.array(patch), np.array(facts.spacing_mm)
    while len(strides) < MOST_LEVELS - 1:
        is_halved = (size // 2 >= SMALLEST_BOTTLENECK_VOX) & (spacing < ANISOTROPY * _finest(size, spacing))
        if not is_halved.any():
            break
        step = np.where(is_halved, 2, 1)
        strides.append(triple(map(int, step)))
        size, spacing = -(-size // step), spacing * step
    reason = (
        f"every axis is halved while {SMALLEST_BOTTLENECK_VOX} voxels of the patch remain and its voxels are less than "
        f"{ANISOTROPY:g} times as long as the shortest side"
    )
    return _Choice(tuple(strides) or ((1, 1, 1),), reason)


def _finest(size: npt.NDArray[np.int64], spacing: npt.NDArray[np.float64]) -> float:
    """Return the shortest voxel side among the axes that can still be halved, else among all."""
    left = size // 2 >= SMALLEST_BOTTLENECK_VOX
    return float(spacing[left].min() if left.any() else spacing.min())


def _channel_choice(levels: int, budget: Budget) -> _Choice:
    base = BASE_CHANNELS[budget.device]
    widths = tuple(min(MOST_CHANNELS, base * 2**level) for level in range(levels))
    return _Choice(
        widths, f"{base} at full resolution, which a {budget.device} can afford, twice as many a level below"
    )


def _network(channels: tuple[int, ...], *, is_flat: bool) -> _Choice:
    norm = "batch norm, because only then a volume can stream through slice by slice with the same result"
    levels = max(0, min(2, len(channels) - 2))
    return _Choice(
        {"deep_supervision": levels},
        f"{levels} coarser levels learn directly too; attention gates of a quarter of the channels on every skip; "
        + ("in 2D, with batch norm" if is_flat else norm),
    )


def _augmentation(facts: Fingerprint) -> _Choice:
    unpaired = facts.labels.unpaired_sides
    sides = f"no mirroring, since {_lonely(unpaired[0])}" if unpaired else "mirroring"
    if facts.labels.side_pairs:
        sides = "mirroring, in which left and right change their labels"
    flip = 0.0 if unpaired else 0.5
    is_long = max(facts.spacing_mm) >= ANISOTROPY * min(facts.spacing_mm)
    turns = "turns where voxels are nearly as long as wide" if is_long else "turns"
    if facts.modality is not Modality.CT:
        what = "MRI differs" if facts.modality is Modality.MRI else "cameras, light and stains differ"
        return _Choice(Augmentation(flip_sagittal=flip), f"{sides}; {turns}, sizes, noise and contrast as {what}")
    change = Augmentation(flip_sagittal=flip, gamma=0.15, noise_sd=0.05, contrast_factor=0.1, shift=0.05)
    return _Choice(change, f"{sides}; {turns} and sizes, little change of values, for HU have a scale")


def _lonely(name: str) -> str:
    return f"{name} has no partner to change sides with (label it too, or call it otherwise if it is no side)"


def _flip_test(facts: Fingerprint) -> _Choice:
    if unpaired := facts.labels.unpaired_sides:
        return _Choice(value=False, reason=_lonely(unpaired[0]))
    return _Choice(value=True, reason="the mean of an image and its mirror images is better than any of them")


def _batch(patch: Shape, budget: Budget) -> int:
    low, high = BATCH_LIMITS
    return int(min(high, max(low, STEP_VOX[budget.device] // int(np.prod(patch)))))


def _training(facts: Fingerprint, patch: Shape, batch: int, budget: Budget) -> _Choice:
    length = _length(facts, int(np.prod(patch)) * batch, budget)
    steps = length.epochs * length.steps_per_epoch
    is_cut = np.prod(patch) < np.prod(np.minimum(facts.foreground_vox, facts.shape_vox))
    memory = min(LONGEST_AVERAGE, max(5, steps // 10))
    training = Training(
        epochs=length.epochs,
        steps_per_epoch=length.steps_per_epoch,
        batch_size=batch,
        learning_rate=3e-3,
        warmup_steps=max(1, min(LONGEST_WARMUP, round(steps * WARMUP_SHARE))),
        average_decay=round(1 - 1 / memory, 4),
        loss="batch_dice_ce" if is_cut else "dice_ce",
        validate_every=-(-length.epochs // length.validations),
        minutes=budget.minutes,
    )
    loss = "Dice over the whole batch, since no patch holds every structure" if is_cut else "Dice patch by patch"
    return _Choice(
        training,
        f"{_pace(steps, length, int(np.prod(patch)) * batch, budget)}; {batch} patches a step, "
        f"{training.foreground_probability:.0%} of them around a structure, each structure equally often; {loss}, and "
        "cross-entropy; AdamW with a cosine to 0, and an average over the last "
        f"{memory} steps",
    )


def _pace(steps: int, length: _Length, step_vox: int, budget: Budget) -> str:
    """Say how many steps there are and why, or that even the fewest are too many."""
    step_s, pace = _step_s(step_vox, budget), "measured" if budget.step_s else "estimated"
    if budget.clock_s:
        pace += f", in processor time: by the clock it was {budget.clock_s:.2f} s, for the machine was busy"
    if steps * step_s + length.other_s <= 60 * budget.minutes:
        return (
            f"{steps} steps fit into {budget.minutes:g} min at {step_s:.2f} s each ({pace}); the training watches the "
            "clock, and does fewer where they take longer and more where they take less"
        )
    return (
        f"{steps} steps are the fewest, yet they do not fit into {budget.minutes:g} min at {step_s:.2f} s each "
        f"({pace}) with {length.other_s / 60:.1f} minutes for reading and validation: allow more"
    )


def _length(facts: Fingerprint, step_vox: int, budget: Budget) -> _Length:
    """Return the length that fits the minutes, reading and validations included."""
    step_s, image_vox = _step_s(step_vox, budget), float(np.prod(facts.shape_vox))
    granted_s = 60 * USED_SHARE * budget.minutes
    reading_s = READ_S_PER_VOXEL * image_vox * facts.cases * len(facts.channel_names)
    validation_s = FORWARD_SHARE * step_s / step_vox * image_vox * facts.cases / FOLDS
    affordable = MOST_VALIDATION_SHARE * (granted_s - reading_s) / validation_s
    validations = int(min(VALIDATIONS, max(1, affordable)))
    closing_s = min(CLOSING_VALIDATIONS * validation_s, MOST_CLOSING_SHARE * granted_s)
    other_s = reading_s + validations * validation_s + closing_s
    steps = max(VALIDATIONS, int((granted_s - other_s) / step_s))
    if steps < VALIDATIONS * STEPS_PER_EPOCH:
        return _Length(VALIDATIONS, steps // VALIDATIONS, validations, other_s)
    return _Length(steps // STEPS_PER_EPOCH, STEPS_PER_EPOCH, validations, other_s)


def _step_s(step_vox: int, budget: Budget) -> float:
    scale = BASE_CHANNELS[budget.device] / MEASURED_CHANNELS
    return budget.step_s or STEP_S_PER_VOXEL[budget.device] * scale * step_vox


def _standing_reasons(facts: Fingerprint) -> dict[str, str]:
    """Return what is the same in every plan, and why."""
    folds = min(FOLDS, facts.subjects)
    return {
        "orientation": "RAS, so that left and right mean the same in every image",
        "overlap": "a quarter, where windows are used at all",
        "folds": f"{folds} of {facts.subjects} subjects, none of whom is in two folds",
    }
