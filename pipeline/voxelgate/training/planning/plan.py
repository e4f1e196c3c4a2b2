"""The records of which a plan consists, and how they are kept as JSON."""

import json
from dataclasses import asdict, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ConfigDict, ModelWrapValidatorHandler, StrictBool, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from voxelgate.core.documents import read_json
from voxelgate.core.errors import UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.core.records import record_problem
from voxelgate.datasets.manifest import Modality
from voxelgate.images.spec import ImageSpec
from voxelgate.training.planning.number_types import (
    Amount,
    Below1,
    Count,
    Lengths,
    Limit,
    Minutes,
    Number,
    Positive,
    Share,
    Sizes,
    Whole,
)

PLAN_VERSION = 3
LEFT_OUT = ("adopted", "class_offsets", "clock_s", "minutes", "blur", "low_resolution", "gamma_inverted")
"""Fields that plans of before do not have; where they hold nothing, JSON is as it was."""

_NO_OTHERS = ConfigDict(extra="forbid")
_Record = TypeVar("_Record")


def _reported(
    cls: type[_Record],  # noqa: ARG001  # pydantic hands it over
    values: Any,
    validate: ModelWrapValidatorHandler[_Record],
) -> _Record:
    """Report what a record refuses as an error of ours, unless it is part of another, which knows the whole path.

    Raises:
        UsageError: names the field, what it holds and what was expected.
    """
    try:
        return validate(values)
    except ValidationError as error:
        if not isinstance(values, ArgsKwargs):
            raise
        raise UsageError(record_problem(error)) from error


class Device(StrEnum):
    """Where a training is to run."""

    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True, config=_NO_OTHERS)
class Budget:
    """What a training may cost.

    Args:
        device: where it runs.
        memory_gb: for training, beside the data.
        minutes: by the clock, from the check of the cases to the scores of one fold.
        step_s: measured time of one optimiser step of this very plan on a free machine; estimated if 0.
        clock_s: what such a step took by the clock, where other work made it longer; 0 if nothing did.

    Raises:
        UsageError: a number out of its range.

    >>> vg.Budget(minutes=15).device
    <Device.CPU: 'cpu'>
    """

    device: Device = Device.CPU
    memory_gb: Positive = 4.0
    minutes: Positive = 60.0
    step_s: Amount = 0.0
    clock_s: Amount = 0.0

    _reported = model_validator(mode="wrap")(_reported)


@dataclass(frozen=True, config=_NO_OTHERS)
class Intensity:
    """How voxel values become network input: a HU window for CT, else normalisation by the image's own values.

    Args:
        low_hu: HU that becomes 0, or None for normalisation.
        high_hu: HU that becomes 1, or None for normalisation.
        offset_hu: what was added to the HU of images without negative values; 0 if nothing was.
    """

    low_hu: Limit = None
    high_hu: Limit = None
    offset_hu: Number = 0.0

    _reported = model_validator(mode="wrap")(_reported)

    def __post_init__(self) -> None:
        if (self.low_hu is None) != (self.high_hu is None):
            raise UsageError(f"a HU window has two limits or none, found {self.low_hu} and {self.high_hu}")
        if self.low_hu is not None and self.high_hu is not None and self.low_hu >= self.high_hu:
            raise UsageError(f"low_hu of a HU window lies below high_hu, found {self.low_hu:g} and {self.high_hu:g}")


@dataclass(frozen=True, config=_NO_OTHERS)
class Augmentation:
    """Random changes of a training patch; probabilities are for each patch.

    Args:
        flip_sagittal: probability of a left/right mirroring, in which paired labels change sides.
        affine: probability of a rotation and scaling.
        rotation_deg: largest rotation around each axis.
        scaling: largest relative change of size.
        elastic: probability of an elastic deformation.
        gamma: probability of a gamma change, for MRI.
        noise: probability of Gaussian noise.
        noise_sd: largest standard deviation of the noise, in units of the network input.
        contrast: probability of a change of scale, and of one of brightness.
        contrast_factor: largest relative change of scale.
        shift: largest change of brightness, in units of the network input.
        blur: probability of Gaussian blur.
        low_resolution: probability of coarser voxels and back.
        gamma_inverted: probability of a gamma change of dark for bright, mean and deviation kept.
    """

    flip_sagittal: Share = 0.5
    affine: Share = 0.7
    rotation_deg: Amount = 15.0
    scaling: Below1 = 0.2
    elastic: Share = 0.0
    gamma: Share = 0.3
    noise: Share = 0.3
    noise_sd: Amount = 0.15
    contrast: Share = 0.3
    contrast_factor: Below1 = 0.25
    shift: Amount = 0.2
    blur: Share = 0.0
    low_resolution: Share = 0.0
    gamma_inverted: Share = 0.0

    _reported = model_validator(mode="wrap")(_reported)


@dataclass(frozen=True, config=_NO_OTHERS)
class Training:
    """Length and pace of a training.

    Args:
        epochs: how often the state is saved; with `steps_per_epoch` the length of the training.
        steps_per_epoch: optimiser steps an epoch.
        batch_size: patches a step.
        learning_rate: peak of AdamW's, after the warm-up.
        weight_decay: AdamW's.
        warmup_steps: steps of linear warm-up; a cosine to zero follows.
        average_decay: decay of the running average of weights that validates and ships.
        foreground_probability: share of patches around a structure.
        loss: a name of `train_config.LOSSES`.
        validate_every: epochs between validations.
        patience: validations without a better one that end the training; 0 never does.
        seed: of all randomness.
        minutes: in which it ends by the clock, with fewer or more steps if need be; None keeps to the steps.
    """

    epochs: Count = 40
    steps_per_epoch: Count = 100
    batch_size: Count = 2
    learning_rate: Positive = 2e-3
    weight_decay: Amount = 1e-2
    warmup_steps: Whole = 100
    average_decay: Below1 = 0.995
    foreground_probability: Share = 0.67
    loss: str = "dice_ce"
    validate_every: Count = 5
    patience: Whole = 0
    seed: Whole = 0
    minutes: Minutes = None

    _reported = model_validator(mode="wrap")(_reported)


@dataclass(frozen=True, config=_NO_OTHERS)
class Cleaning:
    """What is done to label maps, because it helped in cross-validation.

    Args:
        keep_largest: label values of which only the largest piece stays.
        fill_holes: label values whose enclosed background is filled.
    """

    keep_largest: tuple[Count, ...] = ()
    fill_holes: tuple[Count, ...] = ()

    _reported = model_validator(mode="wrap")(_reported)


@dataclass(frozen=True, config=_NO_OTHERS)
class Plan:
    """Every number of a bundle; `write_bundle` turns it into configs, the structure is code there.

    Args:
        name: of the bundle and its folder.
        description: one sentence for the metadata.
        modality: CT, MRI or pictures.
        labels: names of the label values, background first.
        spacing_mm: of the network grid, whose axes run to R, A, S.
        intensity: rule that makes the network input.
        patch_vox: training patch on the network grid.
        channels: features per level of the `AttentionUNet`.
        strides: from level to level, per axis.
        window_vox: inference window on the network grid.
        overlap: of inference windows.
        flip_test: average the prediction with those of the mirror images along every axis that is mirrored in training.
        network: further arguments of the `AttentionUNet`.
        image_channels: what each channel of an image is.
        augmentation: random changes while training.
        training: length and pace.
        cleaning: of the label maps that come out.
        class_offsets: what was added to the logits of the classes after the training, so that mean volumes are right;
            the weights hold it. Empty if nothing was.
        data: what is known of the training data: name, licence, reference; goes into metadata and docs.
        adopted: of an imported network that training goes on from: `from` which bundle, by name where it is kept, its
            `licence`, `preparation` and `inferer`; spacing and patch are then along the axes that the preparation
            gives.
        trained_on: sizes of the training images, as `voxelgate.evaluation.expectations.Expected` reads them.
        min_slices: fewest slices of a DICOM series that is worth a try.
        version: of the bundle.
        changelog: what each version changed.
        budget: for which it was made.
        overrides: values that somebody set instead of the rules, as in the file that was given.
        reasons: one sentence for each choice.
        plan_version: of this layout, and of the rules.

    >>> made = vg.plan(vg.survey(vg.load_manifest("data/manifest.json")).fingerprint)
    >>> made.labels
    ('background', 'blob')
    """

    name: str
    description: str
    modality: Modality
    labels: tuple[str, ...]
    spacing_mm: Lengths
    intensity: Intensity
    patch_vox: Sizes
    channels: tuple[Count, ...]
    strides: tuple[Sizes, ...]
    window_vox: Sizes
    overlap: Below1 = 0.25
    flip_test: StrictBool = True
    network: dict[str, Any] = field(default_factory=dict)
    image_channels: tuple[str, ...] = ("image",)
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: Training = field(default_factory=Training)
    cleaning: Cleaning = field(default_factory=Cleaning)
    class_offsets: tuple[Number, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    adopted: dict[str, Any] = field(default_factory=dict)
    trained_on: dict[str, Any] = field(default_factory=dict)
    min_slices: Count = 2
    version: str = "0.1.0"
    changelog: dict[str, str] = field(default_factory=lambda: {"0.1.0": "first version"})
    budget: Budget = field(default_factory=Budget)
    overrides: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    plan_version: Count = PLAN_VERSION

    _reported = model_validator(mode="wrap")(_reported)

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.strides) + 1:
            raise UsageError(
                f"a network of {len(self.channels)} levels has a stride between each two of them, found "
                f"{len(self.strides)}; override channels and strides together"
            )
        if self.flip_test and self.is_mirrored and self.augmentation.flip_sagittal == 0:
            raise UsageError(
                "flip_test shows the network mirror images, which it never saw in training "
                "(augmentation.flip_sagittal is 0); override flip_test to false too"
            )

    @property
    def label_table(self) -> LabelTable:
        """Return names and sides of the label values."""
        return LabelTable(self.labels)

    @property
    def is_mirrored(self) -> bool:
        """Return whether mirroring left and right makes another plausible patient: no structure lacks its partner."""
        return not self.label_table.unpaired_sides

    @property
    def images(self) -> ImageSpec:
        """Return what every image consists of."""
        return ImageSpec(self.image_channels, self.modality is Modality.PICTURE)

    @property
    def is_colour(self) -> bool:
        """Return whether images are pictures in colours."""
        return self.images.files < len(self.images.channels)

    @property
    def flat_axis(self) -> int | None:
        """Return the only axis along which images have one voxel; None for volumes, and where another network is set.

        A network that says how many dimensions it has, or builds on another one, is taken as it is.
        """
        flat = [axis for axis, size in enumerate(self.patch_vox) if size == 1]
        return flat[0] if len(flat) == 1 and not {"backbone", "spatial_dims"} & self.network.keys() else None

    def to_json(self) -> str:
        """Return the plan as a readable JSON document."""
        return json.dumps(_without_nothing(asdict(self)), indent=2) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read a plan that `to_json` wrote.

        Raises:
            UsageError: no such file, not JSON, or values that make no plan.
        """
        try:
            return cls(**read_json(path))
        except (OSError, ValueError, TypeError, UsageError) as error:
            raise UsageError(f"{path.name} is not a plan ({error}); `voxelgate plan` writes one") from error


def _without_nothing(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {name: _without_nothing(value) for name, value in values.items() if value or name not in LEFT_OUT}
