"""What is asked of an import, and what a reader of foreign models returns: all that a bundle of ours is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxelgate.bundle.frame import Config
from voxelgate.bundle.imports.source import Kind
from voxelgate.core.errors import UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.core.terminology import Coding
from voxelgate.images.file_facts import StoredOrder

if TYPE_CHECKING:
    from torch import Tensor

MOST_NAMED = 12
"""Labels that a sentence names."""

NOT_STATED = "not stated"
"""Licence of a model that comes with none."""


_NNUNET = frozenset({Kind.NNUNET_CONFIGURATION, Kind.NNUNET_DATA_SET, Kind.NNUNET_RESULTS})
_MONAI = frozenset({Kind.MONAI_BUNDLE, Kind.TORCHSCRIPT})

_ONLY_FOR = {
    "--configuration": ("configurations", _NNUNET | {Kind.MONAI_BUNDLE}),
    "--folds": ("folds", _NNUNET),
    "--checkpoint": ("checkpoint", _NNUNET),
    "--task": ("task", _NNUNET),
    "--postprocessing": ("applies_postprocessing", _NNUNET),
    "--dicom-order": ("dicom_order", _NNUNET),
    "--faithful": ("is_faithful", _MONAI),
    "--trust-code": ("trusts_code", frozenset({Kind.MONAI_BUNDLE})),
    "--labels": ("label_values", _MONAI),
}
"""Options of the command line, the fields that hold them, and what they say something about."""


@dataclass(frozen=True)
class ImportOptions:
    """What is asked of an import; a reader refuses in a sentence what is asked and has no meaning for its kind.

    Args:
        name: of the bundle; empty for one after the source.
        configurations: of nnU-Net, such as `3d_fullres`; two or more are an ensemble; none for the reader's choice.
        folds: `0`, `1`, ... or `all`; none for those that are there.
        checkpoint: which of a fold's, `final` or `best`.
        task: of TotalSegmentator, where a folder holds the weights of several.
        applies_postprocessing: whether nnU-Net's own postprocessing of the folder is part of the bundle.
        dicom_order: for models that see stored order.
        is_faithful: whether a MONAI bundle runs its own chain, whatever that is.
        trusts_code: whether Python files of a MONAI bundle are copied and may run.
        label_values: name of each value that a MONAI bundle writes, where its files do not say them.
        licence: of the model, where its files state none, or only that of the data; empty if nobody knows.
        codes: of labels by name or value, before those that the table of codes knows by name.
    """

    name: str = ""
    configurations: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()
    checkpoint: str = "final"
    task: str = ""
    applies_postprocessing: bool = False
    dicom_order: StoredOrder = StoredOrder.LAS
    is_faithful: bool = False
    trusts_code: bool = False
    label_values: Mapping[int, str] = field(default_factory=dict)
    licence: str = ""
    codes: Mapping[str, Coding] = field(default_factory=dict)

    def refuse_others(self, kind: Kind) -> None:
        """Refuse options that say nothing about a kind of source.

        Raises:
            UsageError: one of them is given.
        """
        plain = ImportOptions()
        for option, (name, kinds) in _ONLY_FOR.items():
            if getattr(self, name) != getattr(plain, name) and kind not in kinds:
                raise UsageError(f"{option} means nothing for a {kind}; leave it out.")


@dataclass(frozen=True, eq=False)
class Imported:
    """A foreign model in our terms; `write_imported` makes it a bundle.

    Args:
        name: of the bundle and, where none is given, of its folder; `read_model` makes it one that a folder can have.
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

    @property
    def summary(self) -> tuple[str, ...]:
        """Return what was found, in sentences for the one who imports."""
        names = list(self.labels.foreground.values())
        uncoded = [name for value, name in self.labels.foreground.items() if self.labels.find_coding(value) is None]
        plural = "s" if len(names) > 1 else ""
        return (
            f"{self.name} {self.version}: {self.description}",
            f"{len(names)} label{plural}: {_some(names)}; takes {', '.join(self.channels)} ({self.modality})",
            *self.findings,
            *([f"no code is known for {_some(uncoded)}; DICOM SEG and SR need one: --codes"] if uncoded else []),
            f"licence: {self.licence or NOT_STATED}",
        )


def _some(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown} and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else shown
