"""A plan and a data set in words: one row for each choice or fact, for the terminal, the README and a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from voxelgate.training.planning.plan import Plan


@dataclass(frozen=True)
class Explained:
    """One choice of a plan: what it is about, what was chosen, and why."""

    name: str
    value: str
    reason: str


def explain(plan: Plan) -> list[Explained]:
    """Return one row for each choice, in the order in which an image meets them."""
    pace = plan.training
    rows = {
        "spacing_mm": _times(plan.spacing_mm, "mm"),
        "orientation": "RAS",
        "intensity": _intensity_text(plan),
        "patch_vox": _times(plan.patch_vox, "voxels"),
        "strides": ", ".join("x".join(map(str, stride)) for stride in plan.strides),
        "channels": ", ".join(map(str, plan.channels)),
        "network": ", ".join(f"{name} {value}" for name, value in plan.network.items()),
        "augmentation": f"left/right mirroring in {plan.augmentation.flip_sagittal:.0%}",
        "training": f"{pace.epochs} epochs of {pace.steps_per_epoch} steps of {pace.batch_size} patches, {pace.loss}",
        "window_vox": _times(plan.window_vox, "voxels"),
        "overlap": f"{plan.overlap:g}",
        "flip_test": "yes" if plan.flip_test else "no",
        "cleaning": _cleaning_text(plan),
        "class_offsets": _offsets_text(plan),
        "folds": "by subject",
    }
    return [Explained(name, value, plan.reasons[name]) for name, value in rows.items() if name in plan.reasons]


def _times(values: Sequence[float], unit: str) -> str:
    return " x ".join(f"{value:g}" for value in values) + f" {unit}"


def _intensity_text(plan: Plan) -> str:
    rule = plan.intensity
    return "z-score" if rule.low_hu is None else f"HU {rule.low_hu:g} to {rule.high_hu:g}"


def _cleaning_text(plan: Plan) -> str:
    names = plan.labels
    steps = [f"largest piece of {names[value]}" for value in plan.cleaning.keep_largest]
    steps += [f"no holes in {names[value]}" for value in plan.cleaning.fill_holes]
    return ", ".join(steps) or "none"


def _offsets_text(plan: Plan) -> str:
    moved = [f"{name} {offset:+.2f}" for name, offset in zip(plan.labels, plan.class_offsets, strict=False) if offset]
    return ", ".join(moved) or "none"
