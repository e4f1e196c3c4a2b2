"""The records of which a plan consists, and how they are kept as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from voxelgate.core.errors import UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.manifest import Modality
from voxelgate.images.spec import ImageSpec
from voxelgate.training.planning.validation import AMOUNT, BELOW_1, COUNT, POSITIVE, SHARE, WHOLE, expect, expect_axes

PLAN_VERSION = 2


class Device(StrEnum):
    """Where a training is to run."""

    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True)
class Budget:
    """What a training may cost.

    Args:
        device: where it runs.
        memory_gb: for training, beside the data.
        minutes: by the clock, from the first case that is read to the last validation of one fold.
        step_s: measured time of one optimiser step of this very plan; estimated if 0.

    Raises:
        UsageError: a number out of its range.
    """

    device: Device = Device.CPU
    memory_gb: float = 4.0
    minutes: float = 60.0
    step_s: float = 0.0

    def __post_init__(self) -> None:
        if not (self.memory_gb > 0 and self.minutes > 0 and self.step_s >= 0):
            raise UsageError(
                f"a budget needs memory and minutes above 0, found {self.memory_gb:g} GB and {self.minutes:g} minutes"
            )


@dataclass(frozen=True)
class Intensity:
    """How voxel values become network input: a HU window for CT, else normalisation by the image's own values.

    Args:
        low_hu: HU that becomes 0, or None for normalisation.
        high_hu: HU that becomes 1, or None for normalisation.
        offset_hu: what was added to the HU of images without negative values; 0 if nothing was.
    """

    low_hu: float | None = None
    high_hu: float | None = None
    offset_hu: float = 0.0

    def __post_init__(self) -> None:
        if (self.low_hu is None) != (self.high_hu is None):
            raise UsageError(f"a HU window has two limits or none, found {self.low_hu} and {self.high_hu}")


@dataclass(frozen=True)
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
    """

    flip_sagittal: float = 0.5
    affine: float = 0.7
    rotation_deg: float = 15.0
    scaling: float = 0.2
    elastic: float = 0.0
    gamma: float = 0.3
    noise: float = 0.3
    noise_sd: float = 0.15
    contrast: float = 0.3
    contrast_factor: float = 0.25
    shift: float = 0.2

    def __post_init__(self) -> None:
        expect(self, SHARE, "flip_sagittal", "affine", "elastic", "gamma", "noise", "contrast")
        expect(self, AMOUNT, "rotation_deg", "noise_sd", "shift")
        expect(self, BELOW_1, "scaling", "contrast_factor")


@dataclass(frozen=True)
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
    """

    epochs: int = 40
    steps_per_epoch: int = 100
    batch_size: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    average_decay: float = 0.995
    foreground_probability: float = 0.67
    loss: str = "dice_ce"
    validate_every: int = 5
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        expect(self, COUNT, "epochs", "steps_per_epoch", "batch_size", "validate_every")
        expect(self, WHOLE, "warmup_steps", "patience", "seed")
        expect(self, POSITIVE, "learning_rate")
        expect(self, AMOUNT, "weight_decay")
        expect(self, BELOW_1, "average_decay")
        expect(self, SHARE, "foreground_probability")


@dataclass(frozen=True)
class Cleaning:
    """What is done to label maps, because it helped in cross-validation.

    Args:
        keep_largest: label values of which only the largest piece stays.
        fill_holes: label values whose enclosed background is filled.
    """

    keep_largest: tuple[int, ...] = ()
    fill_holes: tuple[int, ...] = ()


@dataclass(frozen=True)
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
        flip_test: average the prediction with that of the sagittal mirror image.
        network: further arguments of the `AttentionUNet`.
        image_channels: what each channel of an image is.
        augmentation: random changes while training.
        training: length and pace.
        cleaning: of the label maps that come out.
        data: what is known of the training data: name, licence, reference; goes into metadata and docs.
        trained_on: sizes of the training images, as `voxelgate.evaluation.expectations.Expected` reads them.
        min_slices: fewest slices of a DICOM series that is worth a try.
        version: of the bundle.
        changelog: what each version changed.
        budget: for which it was made.
        overrides: values that somebody set instead of the rules, as in the file that was given.
        reasons: one sentence for each choice.
        plan_version: of this layout, and of the rules.
    """

    name: str
    description: str
    modality: Modality
    labels: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    intensity: Intensity
    patch_vox: tuple[int, int, int]
    channels: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]
    window_vox: tuple[int, int, int]
    overlap: float = 0.25
    flip_test: bool = True
    network: Mapping[str, Any] = field(default_factory=dict)
    image_channels: tuple[str, ...] = ("image",)
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: Training = field(default_factory=Training)
    cleaning: Cleaning = field(default_factory=Cleaning)
    data: Mapping[str, str] = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    min_slices: int = 2
    version: str = "0.1.0"
    changelog: Mapping[str, str] = field(default_factory=lambda: {"0.1.0": "first version"})
    budget: Budget = field(default_factory=Budget)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    plan_version: int = PLAN_VERSION

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.strides) + 1:
            raise UsageError(
                f"a network of {len(self.channels)} levels has a stride between each two of them, found "
                f"{len(self.strides)}; override channels and strides together"
            )
        expect_axes(self, "spacing_mm", "patch_vox", "window_vox", "strides")
        expect(self, POSITIVE, "spacing_mm")
        expect(self, COUNT, "patch_vox", "window_vox", "channels", "strides")
        expect(self, BELOW_1, "overlap")
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
        return self.images.channels_per_file > 1

    @property
    def flat_axis(self) -> int | None:
        """Return the only axis along which images have one voxel; None for volumes, and where another network is set.

        A network that says how many dimensions it has, or builds on another one, is taken as it is.
        """
        flat = [axis for axis, size in enumerate(self.patch_vox) if size == 1]
        return flat[0] if len(flat) == 1 and not {"backbone", "spatial_dims"} & self.network.keys() else None

    def to_json(self) -> str:
        """Return the plan as a readable JSON document."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read a plan that `to_json` wrote.

        Raises:
            UsageError: no such file, not JSON, or values that make no plan.
        """
        try:
            return cls.from_mapping(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path.name} is not a plan ({error}); `voxelgate plan` writes one") from error

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build a plan from its JSON form.

        Raises:
            KeyError, TypeError, ValueError: values that make no plan.
        """
        budget, cleaning = values["budget"], values["cleaning"]
        return cls(
            **dict(values)
            | {
                "modality": Modality(values["modality"]),
                "intensity": Intensity(**values["intensity"]),
                "augmentation": Augmentation(**values["augmentation"]),
                "training": Training(**values["training"]),
                "cleaning": Cleaning(**{name: tuple(cleaning[name]) for name in cleaning}),
                "budget": Budget(**budget | {"device": Device(budget["device"])}),
                **{name: _tuples(values[name]) for name in _SEQUENCES},
            }
        )


_SEQUENCES = ("labels", "spacing_mm", "patch_vox", "channels", "strides", "window_vox", "image_channels")


def _tuples(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(v) if isinstance(v, list) else v for v in values)
