"""The numbers of a bundle, and how they follow from the facts of a data set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from pipeline.errors import UsageError
from pipeline.geometry import Grid
from pipeline.labels import LabelTable
from pipeline.manifest import Manifest, Modality
from pipeline.transforms.intensity import HUWindow, window_limits
from pipeline.volumes import read_grid

_T = TypeVar("_T", int, float)

PLAN_VERSION = 1
MAX_PATCH_VOX = 96**3
"""Voxels of a training patch: about 1.5 GB while training with 16 channels at full resolution."""

SMALLEST_BOTTLENECK_VOX = 4
"""An axis is halved only while at least this many voxels of the patch remain."""

MAX_LEVELS = 5
BASE_CHANNELS = 16
MAX_CHANNELS = 256
PATCH_MULTIPLE = 8


@dataclass(frozen=True)
class Fingerprint:
    """What a plan needs to know of a data set; read from headers only.

    Args:
        name: of the data set.
        modality: CT or MRI.
        labels: names of the label values.
        shapes: of all images, (cases, 3), in RAS order.
        spacings_mm: of all images, (cases, 3), in RAS order.
    """

    name: str
    modality: Modality
    labels: LabelTable
    shapes: tuple[tuple[int, int, int], ...]
    spacings_mm: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Intensity:
    """How voxel values become network input: a HU window for CT, else normalisation by the image's own values.

    Args:
        low_hu: HU that becomes 0, or None for normalisation.
        high_hu: HU that becomes 1, or None for normalisation.
    """

    low_hu: float | None = None
    high_hu: float | None = None

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
        contrast: probability of a change of scale and shift of all values.
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
        loss: `dice_ce`, `dice_bce` or `dice_focal`.
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


@dataclass(frozen=True)
class Plan:
    """Every number of a bundle; `write_bundle` turns it into configs, the structure is code there.

    Args:
        name: of the bundle and its folder.
        description: one sentence for the metadata.
        modality: CT or MRI.
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
        augmentation: random changes while training.
        training: length and pace.
        data: what is known of the training data: name, licence, reference; goes into metadata and docs.
        trained_on: sizes of the training images, as `pipeline.dicom.plausibility.Expected` reads them.
        min_slices: fewest slices of a DICOM series that is worth a try.
        version: of the bundle.
        changelog: what each version changed.
        plan_version: of this layout.
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
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: Training = field(default_factory=Training)
    data: Mapping[str, str] = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    min_slices: int = 2
    version: str = "0.1.0"
    changelog: Mapping[str, str] = field(default_factory=lambda: {"0.1.0": "first version"})
    plan_version: int = PLAN_VERSION

    @property
    def label_table(self) -> LabelTable:
        """Return names and sides of the label values."""
        return LabelTable(self.labels)

    @property
    def is_mirrored(self) -> bool:
        """Return whether mirroring left and right makes another plausible patient: no structure lacks its partner."""
        return not self.label_table.unpaired_sides

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
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                **values
                | {
                    "modality": Modality(values["modality"]),
                    "intensity": Intensity(**values["intensity"]),
                    "augmentation": Augmentation(**values["augmentation"]),
                    "training": Training(**values["training"]),
                    **{name: _tuples(values[name]) for name in _SEQUENCES},
                }
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path.name} is not a plan ({error}); `voxelgate plan` writes one") from error


_SEQUENCES = ("labels", "spacing_mm", "patch_vox", "channels", "strides", "window_vox")


def _tuples(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(v) if isinstance(v, list) else v for v in values)


def fingerprint(manifest: Manifest) -> Fingerprint:
    """Read the headers of all images of a manifest.

    Raises:
        InputError: an image cannot be read.
    """
    grids = [_in_ras_order(read_grid(case.image)) for case in manifest.cases]
    return Fingerprint(
        name=manifest.name,
        modality=manifest.modality,
        labels=manifest.labels,
        shapes=tuple(shape for shape, _ in grids),
        spacings_mm=tuple(spacing for _, spacing in grids),
    )


def plan(facts: Fingerprint, *, epochs: int = Training.epochs, data: Mapping[str, str] | None = None) -> Plan:
    """Choose the numbers of a bundle; a pure function of its arguments.

    Spacing is the median of the data set, patch the median image within `MAX_PATCH_VOX`, levels as many as the patch
    can be halved, the intensity rule that of the modality.

    Args:
        facts: of the data set.
        epochs: length of the training.
        data: licence and reference of the data, for the metadata.
    """
    spacing = np.median(np.array(facts.spacings_mm), axis=0).round(3)
    extents_mm = np.array(facts.shapes) * np.array(facts.spacings_mm)
    patch = _patch(np.median(extents_mm, axis=0) / spacing)
    strides = _strides(patch)
    channels = tuple(min(MAX_CHANNELS, BASE_CHANNELS * 2**level) for level in range(len(strides) + 1))
    low_hu, high_hu = window_limits(HUWindow.SOFT_TISSUE) if facts.modality is Modality.CT else (None, None)
    return Plan(
        name=facts.name,
        description=f"Segments {', '.join(facts.labels.foreground.values())} in {facts.modality} volumes.",
        modality=facts.modality,
        labels=facts.labels.names,
        spacing_mm=_three(float, spacing),
        intensity=Intensity(low_hu, high_hu),
        patch_vox=patch,
        channels=channels,
        strides=strides,
        window_vox=_three(int, [2 * n for n in patch]),
        network={"deep_supervision": min(2, len(channels) - 2)},
        augmentation=Augmentation(flip_sagittal=0.0 if facts.labels.unpaired_sides else 0.5),
        flip_test=not facts.labels.unpaired_sides,
        training=Training(epochs=epochs),
        data=dict(data or {}),
        trained_on={"extent_mm": _ranges(extents_mm, 1), "spacing_mm": _ranges(np.array(facts.spacings_mm), 3)},
        min_slices=max(2, min(map(min, facts.shapes)) // 2),
    )


def _ranges(values: np.typing.NDArray[np.float64], digits: int) -> list[list[float]]:
    """Return least and largest value of each column of (cases, 3)."""
    return [[round(float(column.min()), digits), round(float(column.max()), digits)] for column in values.T]


def _in_ras_order(grid: Grid) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Return shape and spacing along the axes nearest to left-right, back-front and foot-head."""
    directions = np.abs(grid.affine[:3, :3] / np.array(grid.spacing_mm))
    axis_of = [int(directions[world].argmax()) for world in range(3)]
    if len(set(axis_of)) != 3:
        axis_of = [0, 1, 2]
    return _three(int, [grid.shape[a] for a in axis_of]), _three(float, [grid.spacing_mm[a] for a in axis_of])


def _patch(median_vox: np.typing.NDArray[np.float64]) -> tuple[int, int, int]:
    """Shrink the longest axis until the patch is small enough; sizes are multiples of `PATCH_MULTIPLE`."""
    patch = np.maximum(PATCH_MULTIPLE, np.ceil(median_vox / PATCH_MULTIPLE).astype(int) * PATCH_MULTIPLE)
    while patch.prod() > MAX_PATCH_VOX:
        patch[patch.argmax()] -= PATCH_MULTIPLE
    return _three(int, patch)


def _strides(patch: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    strides: list[tuple[int, int, int]] = []
    size = np.array(patch)
    while len(strides) < MAX_LEVELS - 1 and (size // 2 >= SMALLEST_BOTTLENECK_VOX).any():
        step = np.where(size // 2 >= SMALLEST_BOTTLENECK_VOX, 2, 1)
        strides.append(_three(int, step))
        size = -(-size // step)
    return tuple(strides)


def _three(kind: type[_T], values: Any) -> tuple[_T, _T, _T]:  # list, tuple or array
    i, j, k = (kind(v) for v in values)
    return i, j, k
