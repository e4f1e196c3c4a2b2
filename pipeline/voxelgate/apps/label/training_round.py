"""A round of training on what was annotated: which cases validate, what is trained, and whether it is better."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from voxelgate.apps.label.model_versions import ModelVersions, Origin
from voxelgate.apps.label.submitted import read_submitted
from voxelgate.apps.label.uncertainty import label_map, mean_dice
from voxelgate.bundle.checksums import WEIGHTS, seal
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.predict import Bundle
from voxelgate.bundle.workflow import run_workflow
from voxelgate.core.dice import dice_of_labels
from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.files import write_text
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.check_manifest import image_content
from voxelgate.datasets.manifest import ManifestCase, Split
from voxelgate.images.volumes import read_grid, read_volume, write_label_map
from voxelgate.segmentation.cases import Case
from voxelgate.training.seen import DIGITS, Seen, read_seen, write_seen
from voxelgate.training.train import TRAINING, copy_untrained, write_measure

logger = logging.getLogger(__name__)

LEAST_VALIDATION = 3
"""Cases that measure; with fewer one case decides, and so it does where the mean alone counts."""

SPLITS = "parts.json"
"""File beside the versions that says which case trains and which validates."""


class Annotated(NamedTuple):
    """An image with the label map that an annotator submitted, both as files.

    Args:
        image_id: its id.
        image: its file.
        label: file of the label map.
        is_proposal: nobody changed what a model had proposed. Such a label map measures no model: the one that made it
            agrees with itself, and none could ever be better.
        is_seen: the model was trained on the image before it came here, so it measures only where others lack.
    """

    image_id: str
    image: Path
    label: Path
    is_proposal: bool = False
    is_seen: bool = False


class DealtCases(NamedTuple):
    """Cases to train on, and cases that only measure."""

    training: tuple[Annotated, ...]
    validation: tuple[Annotated, ...]


@dataclass(frozen=True)
class Pace:
    """How a round trains.

    Args:
        epochs: length.
        val_split: share of the cases that validate, above 0 and below 1.
        device: where, as PyTorch calls it.

    Raises:
        UsageError: a number out of its range.
    """

    epochs: int = 20
    val_split: float = 0.2
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0.0 < self.val_split < 1.0:
            raise UsageError(
                f"{self.epochs} epochs and a validation share of {self.val_split}, expected at least 1 epoch and a "
                "share above 0 and below 1."
            )


@dataclass(frozen=True)
class Round:
    """What came of a round.

    Args:
        version: number of the new version, or None if it was not better and is not kept.
        origin: of the new version, or of what would have been it.
        is_used: whether the new version is in use; not if somebody put another one into use meanwhile.
    """

    version: int | None
    origin: Origin
    is_used: bool

    def sentence(self) -> str:
        """Say it for people."""
        facts = self.origin
        became = f"version {self.version} is in use" if self.is_used else f"version {facts.parent} stays in use"
        if self.version and not self.is_used:
            became = f"version {self.version} is kept, but another was put into use meanwhile"
        cases = f"{facts.validation_cases} cases, better on {facts.better_cases}, worse on {facts.worse_cases}"
        return f"validation Dice {facts.dice:.4f} after {facts.parent_dice:.4f} on {cases}: {became}"


def train_round(versions: ModelVersions, cases: Sequence[Annotated], pace: Pace) -> Round:
    """Train the version in use on annotated cases, and put the result into use if it is better on cases it did not see.

    It sees the label maps as they are now, whatever annotators submit before it ends.

    Args:
        versions: of the model.
        cases: what was annotated.
        pace: how long, and how many cases only measure.

    Raises:
        InputError: too few cases are left to train on or to validate on, or one cannot be read, or a label map does not
            lie on the grid of its image or holds a value that the bundle does not know.
        BundleError: the bundle cannot be trained.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _train(versions, cases, pace, Path(folder))


def _train(versions: ModelVersions, cases: Sequence[Annotated], pace: Pace, labels: Path) -> Round:
    parent = versions.current
    bundle = open_bundle(versions.path(parent), pace.device)
    content = {case.image_id: _content_of(case) for case in cases}
    seen = read_seen(bundle.root)
    known = [case._replace(is_seen=content[case.image_id] in seen.images) for case in cases]
    split = split_cases(versions, [_as_now(case, bundle.labels, labels) for case in known], pace.val_split)
    logger.info("training %d epochs on %d cases; %d others measure", pace.epochs, *map(len, split))
    if known_before := sum(case.is_seen for case in split.validation):
        logger.warning("%d of those that measure were seen when the bundle was made, which favours it", known_before)
    candidate = _candidate(versions)
    try:
        run_workflow(candidate, ["train"], _training_overrides(bundle, split, pace))
        write_seen(candidate, seen | Seen(images=frozenset(content[case.image_id] for case in split.training)))
        write_measure(candidate, None)  # its parent's was of other weights; those of the versions stand in `Origin`
        seal(candidate)
        logger.info("trained; comparing with version %d on %d cases", parent, len(split.validation))
        dices = validation_dices(open_bundle(candidate, pace.device), split.validation)
        parent_dices = validation_dices(bundle, split.validation)
        origin = Origin(
            parent,
            len(split.training),
            len(split.validation),
            fmean(dices),
            fmean(parent_dices),
            sum(new > old for new, old in zip(dices, parent_dices, strict=True)),
            sum(new < old for new, old in zip(dices, parent_dices, strict=True)),
        )
        shutil.rmtree(candidate / TRAINING, ignore_errors=True)
        return _published(versions, candidate, origin)
    finally:
        shutil.rmtree(candidate, ignore_errors=True)


def split_cases(versions: ModelVersions, cases: Sequence[Annotated], share: float) -> DealtCases:
    """Divide cases into those that train and those that validate; each keeps its part in all rounds of a model.

    Otherwise a version would be measured on cases that its parent was trained on. New cases validate until the share is
    reached, and at least `LEAST_VALIDATION`; which of them is a matter of their hashed ids, not of the order in which
    they came; those that the bundle has seen come last. Proposals that nobody changed train, or are left out where they
    would measure.

    Raises:
        InputError: too few would measure, or none would train.
    """
    path = versions.root / SPLITS
    parts: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    drawn = [case for case in cases if not case.is_proposal]
    new = sorted((case for case in drawn if case.image_id not in parts), key=_seen_last)
    validating = sum(parts.get(case.image_id) == Split.VALIDATION for case in drawn)
    lacking = max(round(share * len(drawn)), LEAST_VALIDATION) - validating
    parts |= {case.image_id: Split.VALIDATION if place < lacking else Split.TRAINING for place, case in enumerate(new)}
    parts = {case.image_id: Split.TRAINING for case in cases} | parts
    split = DealtCases(
        tuple(case for case in cases if parts[case.image_id] == Split.TRAINING),
        tuple(case for case in cases if parts[case.image_id] == Split.VALIDATION and not case.is_proposal),
    )
    if not split.training or len(split.validation) < LEAST_VALIDATION:
        raise InputError(
            f"{len(cases)} annotated images, {len(cases) - len(drawn)} of them proposals that nobody changed, leave "
            f"{len(split.training)} to train on and {len(split.validation)} to validate on, expected at least 1 and "
            f"{LEAST_VALIDATION}; annotate more images."
        )
    write_text(path, json.dumps(parts, indent=0) + "\n")
    return split


def validation_dices(bundle: Bundle, cases: Sequence[Annotated]) -> list[float]:
    """Return the Dice of a bundle on each annotated case, mean over the structures.

    Raises:
        InputError: a case cannot be segmented.
    """
    return [_case_dice(bundle, case) for case in cases]


def _case_dice(bundle: Bundle, case: Annotated) -> float:
    found = label_map(Case(case.image_id, case.image), bundle)
    return mean_dice(dice_of_labels(found, read_volume(case.label)[0], bundle.labels).values())


def _as_now(case: Annotated, table: LabelTable, folder: Path) -> Annotated:
    """Copy the label map of a case, with a check: it may lie in the folder without having been submitted."""
    grid = read_grid(case.image)
    try:
        labels = read_submitted(case.label, grid, table)
    except InputError as error:
        raise InputError(f"{case.image_id}: {error} Or remove it from the label maps.") from error
    copied = folder / f"{case.image_id}.nii.gz"
    write_label_map(copied, labels, grid, like=case.image, overwrite=True)
    return case._replace(label=copied)


def _candidate(versions: ModelVersions) -> Path:
    versions.remove_left_behind()
    candidate = versions.scratch()
    copy_untrained(versions.current_path, candidate)
    return candidate


def _training_overrides(bundle: Bundle, split: DealtCases, pace: Pace) -> dict[str, Any]:
    parts = ([{"image": str(case.image), "label": str(case.label)} for case in part] for part in split)
    training, validation = parts
    return {
        "train#dataset#data": training,
        "validate#dataset#data": validation,
        "init_weights": str(bundle.root / WEIGHTS),
        "epochs": pace.epochs,
        "device": f"$torch.device({pace.device!r})",
    }


def _published(versions: ModelVersions, candidate: Path, origin: Origin) -> Round:
    """Keep a candidate and put it into use if it is better than its parent; the caller removes what is not kept.

    Better is a higher mean that most of the cases agree with: one case alone can lift a mean over all others.
    """
    is_higher = origin.dice is not None and origin.parent_dice is not None and origin.dice > origin.parent_dice
    if not is_higher or origin.better_cases <= origin.worse_cases:
        return Round(None, origin, is_used=False)
    number = versions.add(candidate, origin)
    is_used = versions.current == origin.parent
    if is_used:
        versions.use(number)
    return Round(number, origin, is_used)


def _content_of(case: Annotated) -> str:
    return image_content(ManifestCase(case.image_id, case.image, case.label, case.image_id, None))[:DIGITS]


def _seen_last(case: Annotated) -> tuple[bool, str]:
    return case.is_seen, hashlib.sha256(case.image_id.encode()).hexdigest()
