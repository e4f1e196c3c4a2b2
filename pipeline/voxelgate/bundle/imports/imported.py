"""What is asked of an import, and what a reader of foreign models returns: all that a bundle of ours is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxelgate.bundle.frame import Config
from voxelgate.core.labels import LabelTable

if TYPE_CHECKING:
    from torch import Tensor

NOT_STATED = "not stated"
"""Licence of a model that comes with none."""


class DicomOrder(StrEnum):
    """How the voxels of a DICOM series are stored for a model that sees stored order: as a converter stores them."""

    LAS = "las"
    """As dcm2niix writes NIfTI."""

    LPS = "lps"
    """As SimpleITK and ITK read series."""


@dataclass(frozen=True)
class ImportOptions:
    """What is asked of an import; a reader refuses in a sentence what is asked and has no meaning for its kind.

    Args:
        name: of the bundle; empty for the reader's choice.
        configurations: of nnU-Net, such as `3d_fullres`; two or more are an ensemble; none for the reader's choice.
        folds: `0`, `1`, ... or `all`; none for those that are there.
        checkpoint: which of a fold's, `final` or `best`.
        task: of TotalSegmentator, where a folder holds the weights of several.
        applies_postprocessing: whether nnU-Net's own postprocessing of the folder is part of the bundle.
        dicom_order: for models that see stored order.
        is_faithful: whether a MONAI bundle runs its own chain, whatever that is.
        trusts_code: whether Python files of a MONAI bundle are copied and may run.
        label_values: name of each value that a MONAI bundle writes, where its files do not say them.
    """

    name: str = ""
    configurations: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()
    checkpoint: str = "final"
    task: str = ""
    applies_postprocessing: bool = False
    dicom_order: DicomOrder = DicomOrder.LAS
    is_faithful: bool = False
    trusts_code: bool = False
    label_values: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Imported:
    """A foreign model in our terms; `write_imported` makes it a bundle.

    Args:
        name: of the bundle and, where none is given, of its folder: letters, digits, `_` and `-`.
        version: of the model, or "1.0.0" where its files say none.
        description: one sentence.
        network_def: that loads `state` with strict names. Every `_target_` in the configs is a public name of ours, of
            MONAI's or of PyTorch's, built here; an expression is one of `frame`'s, none of the source's.
        preparation: steps from the image as read, (C, I, J, K), to what the inferer takes; `LoadImaged` and
            `EnsureChannelFirstd` are put before them.
        inferer: gives labels (1, 1, I, J, K) on the grid of the image as read.
        state: weights and buffers by name, dense tensors on the CPU.
        labels: what the label values mean, with codes where the source has them.
        channels: name of each input channel, in the order of the network.
        modality: `CT`, `MRI`, or what the source says.
        spatial_shape: size of a window of the network in voxels, of two or three axes.
        source_files: names, below the source, of every file of which something is in the bundle; they are hashed.
        cleaning: steps for `pred` (1, I, J, K) after the inferer, before it is saved.
        metadata: further entries of `metadata.json` that the source states, such as `authors` and `copyright`.
        licence: as the source states it; empty if it does not.
        origin: further facts for metadata and README, such as kind, trainer, plans, configuration and folds; JSON.
        extra_files: by path in the bundle, such as `source/plans.json` or `scripts/__init__.py`: bytes, or the file to
            copy.
        series_rule: which series of a DICOM study the model wants, in the JSON of `SeriesRule`; None for those of its
            modality.
        findings: sentences for the one who imports.
    """

    name: str
    version: str
    description: str
    network_def: Config
    preparation: Sequence[Config]
    inferer: Config
    state: Mapping[str, "Tensor"]
    labels: LabelTable
    channels: tuple[str, ...]
    modality: str
    spatial_shape: tuple[int, ...]
    source_files: tuple[str, ...]
    cleaning: Sequence[Config] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)
    extra_files: Mapping[str, bytes | Path] = field(default_factory=dict)
    series_rule: Mapping[str, Any] | None = None
    findings: tuple[str, ...] = ()
