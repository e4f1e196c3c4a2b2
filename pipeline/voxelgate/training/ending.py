"""How a training ends: cleaning that helps, and offsets of the classes that make volumes right, go into the bundle."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voxelgate.bundle.checksums import WEIGHTS
from voxelgate.core.files import copy_file
from voxelgate.training.class_offsets import Offsets, fit_offsets
from voxelgate.training.cleaning import choose_cleaning
from voxelgate.training.configs.bundle_files import bundle_files, cleaned, is_as_planned, rewrite_bundle
from voxelgate.training.held_out import HeldOut, try_endings
from voxelgate.training.network_head import head_of_bundle, write_shifted
from voxelgate.training.planning.plan import Cleaning, Plan

logger = logging.getLogger(__name__)

PLAN = "plan.json"
"""File of a bundle with its numbers."""

AS_TRAINED = "training/as_trained.pt"
"""File of a trained bundle with its weights before offsets were added, from which a training goes on."""


@dataclass(frozen=True)
class Ending:
    """What was found to help on cases that were not seen.

    Args:
        cleaning: of label maps.
        offsets: of the classes.
    """

    cleaning: Cleaning
    offsets: Offsets

    def on(self, plan: Plan) -> Plan:
        """Return a plan that says so."""
        clean = cleaned(plan, self.cleaning)
        reasons = {**clean.reasons, "class_offsets": _reason(self.offsets, plan)}
        return replace(clean, class_offsets=self.offsets.values, reasons=reasons)


def choose_ending(held_out: Sequence[HeldOut]) -> Ending:
    """Return what helps on all of some held-out cases."""
    cleaning = choose_cleaning([trial for part in held_out for trial in part.trials])
    return Ending(cleaning, fit_offsets([case for part in held_out for case in part.undecided], cleaning))


def end_training(root: Path, settings: Mapping[str, Any]) -> None:
    """Find out on the validation cases of a trained bundle what helps, and write it into weights, plan and configs.

    Args:
        root: the bundle; not sealed.
        settings: of its configs, as for its training.
    """
    if (plan := planned(root)) is None:
        return
    copy_file(root / WEIGHTS, root / AS_TRAINED)
    ending = choose_ending([try_endings(root, settings)])
    shifted = with_offsets(root, ending.offsets, {root / AS_TRAINED: root / WEIGHTS})
    write_plan(replace(ending, offsets=shifted).on(plan), root)


def put_back(root: Path) -> None:
    """Take back what an earlier ending added to the weights, so that a training goes on from what it had."""
    if (root / AS_TRAINED).is_file():
        copy_file(root / AS_TRAINED, root / WEIGHTS)
        (root / AS_TRAINED).unlink()


def planned(root: Path) -> Plan | None:
    """Return the plan of a bundle; None, and a warning, if there is none or somebody changed the configs by hand."""
    path = root / PLAN
    if path.is_file() and is_as_planned(plan := Plan.from_json(path), root):
        return plan
    logger.warning(
        "%s: configs are not those of a plan, so neither cleaning nor offsets are written into it", root.name
    )
    return None


def without_offsets(plan: Plan) -> Plan:
    """Return a plan whose weights hold no offsets."""
    reasons = {name: reason for name, reason in plan.reasons.items() if name != "class_offsets"}
    return replace(plan, class_offsets=(), reasons=reasons)


def ended_early(bundle: Path, out: Path, changed: Sequence[str]) -> bool:
    """Return whether a training stopped while its ending was being written: nothing else differs from its bundle.

    Args:
        bundle: that is trained.
        out: its training, not sealed.
        changed: files that are not as in the bundle.
    """
    if not all((root / PLAN).is_file() for root in (bundle, out)):
        return False
    before, after = without_offsets(Plan.from_json(bundle / PLAN)), Plan.from_json(out / PLAN)
    kept = {name: reason for name, reason in after.reasons.items() if name not in ("cleaning", "class_offsets")}
    same = replace(
        before, cleaning=after.cleaning, class_offsets=after.class_offsets, reasons={**before.reasons, **after.reasons}
    )
    written = bundle_files(after)
    return (
        after == same
        and kept.items() <= before.reasons.items()
        and all((out / name).read_text(encoding="utf-8") == written.get(name) for name in changed)
    )


def with_offsets(root: Path, offsets: Offsets, files: Mapping[Path, Path]) -> Offsets:
    """Write weights with offsets added where the network adds a number to each logit; return what was added.

    Args:
        root: bundle with the configs of the network.
        offsets: to add.
        files: weights as they were trained, and where the others go.
    """
    head = head_of_bundle(root, next(iter(files))) if offsets.values else None
    if head is None and offsets.values:
        logger.warning("%s: the network adds no number to each logit, so volumes are left as they are", root.name)
    for source, target in files.items():
        if head is None:
            copy_file(source, target)
        else:
            write_shifted(source, target, head, offsets.values)
    return offsets if head is not None else replace(offsets, values=(), bias_after=offsets.bias_before)


def write_plan(plan: Plan, root: Path) -> None:
    """Write a plan with its ending and the configs that follow, and say what it is."""
    rewrite_bundle(plan, root)
    for name in ("cleaning", "class_offsets"):
        logger.info("%s: %s", name.replace("_", " "), plan.reasons[name])


def _reason(offsets: Offsets, plan: Plan) -> str:
    known = [value for value in range(1, len(offsets.bias_before)) if math.isfinite(offsets.bias_before[value])]
    if not known:
        return "none, since too few cases that were not seen show a structure"
    if not offsets.values:
        told = ", ".join(f"{plan.labels[value]} {offsets.bias_before[value]:+.1%}" for value in known)
        return f"none; mean volumes of cases that were not seen are off by {told}"
    told = ", ".join(
        f"{plan.labels[value]} by {offsets.bias_after[value]:+.1%} instead of {offsets.bias_before[value]:+.1%}"
        for value in known
    )
    gain = offsets.dice_after - offsets.dice_before
    return (
        f"added to the logits, so that mean volumes of cases that were not seen are off less: {told}; Dice {gain:+.4f}"
    )
