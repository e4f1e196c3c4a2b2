"""What is found of a data set before the voxels of its files are read: its cases, and what it says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from voxelgate.datasets.manifest import Modality


@dataclass(frozen=True)
class FoundCase:
    """The files of a case.

    Args:
        case_id: its name.
        images: one file for each channel, or one for all of them; or one DICOM series.
        label: drawn on the image; None if there is none.
        subject: whose case it is; None if nothing tells.
        segments: value in the data set's label files of each segment of a DICOM label; empty of other labels.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None
    subject: str | None = None
    segments: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundSet:
    """The cases of a folder, and what the folder says of them; what is empty or None it does not say.

    Args:
        cases: with a label.
        tests: kept apart.
        problems: one line for each file that is in no case, or lacks.
        remarks: what a user must know of how the data set was understood.
        name: of the data set.
        description: where it comes from.
        reference: publications to cite.
        licence: of the data.
        modality: what the voxels hold.
        channels: name of each channel.
        labels: name of each value of the label files, as in a manifest.
        ignored: values of voxels that nobody labelled.
    """

    cases: tuple[FoundCase, ...]
    tests: tuple[FoundCase, ...] = ()
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    name: str = ""
    description: str = ""
    reference: str = ""
    licence: str = ""
    modality: Modality | None = None
    channels: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None
    ignored: tuple[int, ...] = ()
