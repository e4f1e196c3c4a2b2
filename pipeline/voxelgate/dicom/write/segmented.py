"""What all DICOM writers share: a segmented series, the algorithm, and a file that is checked before it counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import highdicom
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from voxelgate.core.errors import OutputError
from voxelgate.core.files import whole_file
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import structure_colours
from voxelgate.core.terminology import Code, Rgb
from voxelgate.core.verdict import Quality
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.write.label_planes import LabelPlanes
from voxelgate.dicom.write.sources import LIBRARY_ERRORS, SourceSeries

MANUFACTURER = "voxelgate"
SOFTWARE_VERSION = version("voxelgate")

MOST_CHARACTERS = 64
"""Length of a text of VR LO (PS3.5 6.2)."""


@dataclass(frozen=True)
class Algorithm:
    """What made the labels.

    Args:
        name: of the model, at most 64 characters.
        version: of the model, at most 64 characters.
        fingerprint: of the bundle, such as its SHA-256, at most 64 characters; stands as device serial number.
        is_corrected: whether a person has corrected what the model gave.
        annotator: who that was, as a DICOM person name; empty if nobody knows.
        licence: of the model, in one line; empty if it is not said.

    Raises:
        OutputError: a text is empty, too long, or holds a backslash or control character, or a name of a person more
            than DICOM takes, or belongs to no correction.
    """

    name: str
    version: str
    fingerprint: str
    is_corrected: bool = False
    annotator: str = ""
    licence: str = ""

    @property
    def generation(self) -> str:
        """Return how labels came about, in DICOM's word for it (PS3.3 C.8.20.2 and C.8.8.8)."""
        return "SEMIAUTOMATIC" if self.is_corrected else "AUTOMATIC"

    def __post_init__(self) -> None:
        for text in (self.name, self.version, self.fingerprint):
            check_text(text, "name, version and fingerprint of an algorithm")
        if self.annotator:
            check_text(self.annotator, "the name of an annotator")
        if "=" in self.annotator or self.annotator.count("^") > 4 or (self.annotator and not self.is_corrected):
            raise OutputError(
                "the name of an annotator has at most five parts between ^, no =, and belongs to labels that a person "
                "has corrected; leave it out otherwise."
            )


@dataclass(frozen=True, eq=False)
class SegmentedSeries:
    """A label map with all that DICOM wants to know about it.

    Args:
        labels: (i, j, k) integers on `grid`, each a value of `table`, at least one of them a structure.
        grid: RAS+ mm.
        table: names and codes of the values.
        source: the series that was segmented.
        algorithm: what made the labels.
        quality: whether they can be taken as they are; None if nobody has judged them.

    Raises:
        OutputError: labels and grid do not fit each other, a value has no name, or a name is unfit for DICOM.
    """

    labels: npt.NDArray[Any]
    grid: Grid
    table: LabelTable
    source: SourceSeries
    algorithm: Algorithm
    quality: Quality | None = None
    counts: tuple[int, ...] = field(init=False)
    """Voxels of each value of the table."""

    def __post_init__(self) -> None:
        if self.labels.shape != self.grid.shape or self.labels.dtype.kind not in "iu":
            raise OutputError(
                f"labels of shape {self.labels.shape} and type {self.labels.dtype}, expected integers of shape "
                f"{self.grid.shape}."
            )
        low, high, names = int(self.labels.min()), int(self.labels.max()), len(self.table.names)
        if low < 0 or high >= names:
            raise OutputError(f"label values from {low} to {high}, expected 0 to {names - 1}, the values with a name.")
        slabs = np.moveaxis(self.labels, int(np.argmax(np.abs(self.labels.strides))), 0)  # bincount copies to int64
        counted = sum(np.bincount(slab.ravel(order="K"), minlength=names) for slab in slabs)
        object.__setattr__(self, "counts", tuple(int(count) for count in np.asarray(counted)))
        if any(count and not name for count, name in zip(self.counts, self.table.names, strict=True)):
            raise OutputError("label values without a name, expected those of the table; name them, or take them out.")
        for name in self.table.foreground.values():
            check_text(name, "a label name")

    @property
    def present(self) -> tuple[int, ...]:
        """Return the values of the structures that have voxels."""
        return tuple(value for value in self.table.foreground if self.counts[value])

    @property
    def absent(self) -> tuple[int, ...]:
        """Return the values of the structures that were looked for and not found."""
        return tuple(value for value in self.table.foreground if not self.counts[value])

    @cached_property
    def colours(self) -> dict[int, Rgb]:
        """Return the colour of each structure, by value."""
        return structure_colours(self.table)

    @property
    def origin(self) -> str:
        """Return what a person reads of how the labels came about, and of the verdict on them."""
        if self.algorithm.is_corrected:
            return "Segmentation corrected by a person"
        verdict = "" if self.quality is None else f", {self.quality.verdict.in_words}"
        return f"Automatic segmentation{verdict}"

    @property
    def comment(self) -> str:
        """Return the same with the reasons of the verdict, and the licence of the model."""
        reasons = () if self.quality is None else self.quality.reasons
        licence = (f"Licence of the model: {self.algorithm.licence}.",) if self.algorithm.licence else ()
        return " ".join((f"{self.origin}.", *reasons, *licence))

    def description(self, kind: str) -> str:
        """Return a series description that tells objects of one series apart: kind, verdict, and what made it."""
        verdict = "" if self.quality is None else self.quality.verdict.in_words
        words = " ".join(word for word in (kind, "corrected" if self.algorithm.is_corrected else verdict) if word)
        return f"{words}: {self.algorithm.name} {self.algorithm.version}"[:MOST_CHARACTERS].rstrip()

    def refuse_nothing(self) -> None:
        """Refuse to write what needs a structure with voxels.

        Raises:
            OutputError: there is none.
        """
        if not self.present:
            raise OutputError(
                "nothing was segmented, and this DICOM object has at least one structure (PS3.3 C.8.20.2); write NIfTI."
            )

    @property
    def texts(self) -> tuple[str, ...]:
        """Return every text of ours that goes into a DICOM object."""
        codings = map(self.table.find_coding, self.table.foreground)
        meanings = (
            code.meaning
            for coding in codings
            if coding is not None
            for code in (coding.category, coding.type, coding.modifier, coding.region, coding.region_modifier)
            if code is not None
        )
        made_by = self.algorithm
        return (
            *self.table.foreground.values(),
            *meanings,
            made_by.name,
            made_by.version,
            made_by.fingerprint,
            made_by.annotator,
            self.comment,
        )

    def planes(self) -> LabelPlanes:
        """Return the labels as planes that run like those of the source."""
        return LabelPlanes.of(self.labels, self.grid, self.source)


def series_arguments(segmented: SegmentedSeries, offset: int) -> dict[str, Any]:
    """Return what every object of highdicom is told of its series and its equipment.

    Args:
        segmented: what it derives from.
        offset: of its series number.
    """
    algorithm = segmented.algorithm
    return {
        "series_instance_uid": new_uid(),
        "series_number": segmented.source.derived_series_number(offset),
        "sop_instance_uid": new_uid(),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": algorithm.name,
        "software_versions": SOFTWARE_VERSION,
        "device_serial_number": algorithm.fingerprint,
    }


def code_item(code: Code) -> highdicom.sr.CodedConcept:
    """Return a code as an item of a code sequence (PS3.3 8.8), which highdicom takes as an argument too."""
    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)


def identify_series(derived: Dataset, segmented: SegmentedSeries, kind: str) -> None:
    """Say in place what a derived series is, when it was made, and that no approved product made it.

    Content Qualification (PS3.3 C.12.1) RESEARCH: bundles are no medical devices.
    """
    now = datetime.now().astimezone()
    derived.SeriesDescription = segmented.description(kind)
    derived.SeriesDate, derived.SeriesTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    derived.ContentQualification = "RESEARCH"


def algorithm_item(algorithm: Algorithm) -> highdicom.AlgorithmIdentificationSequence:
    """Return the item by which segments and regions name what made them (PS3.3 table 10-19)."""
    return highdicom.AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=codes.DCM.ArtificialIntelligence,
        version=algorithm.version,
        source=MANUFACTURER,
        parameters={"fingerprint": algorithm.fingerprint},
    )


def is_text(text: str) -> bool:
    """Return whether something can stand in a DICOM text of VR LO."""
    return bool(text.strip()) and len(text) <= MOST_CHARACTERS and "\\" not in text and text.isprintable()


def person_name(text: str) -> str:
    """Return a name as a DICOM person name; what cannot stand in its first part becomes a space (PS3.5 6.2).

    >>> person_name("jane.doe^=@clinic")
    'jane.doe @clinic'
    """
    kept = "".join(sign if sign.isprintable() and sign not in r"\^=" else " " for sign in text)
    return " ".join(kept.split())[:MOST_CHARACTERS].rstrip()


def in_one_line(text: str) -> str:
    r"""Return a text of several lines as one that DICOM takes: without control characters and backslashes.

    >>> in_one_line("CC BY 4.0\n(c) us")
    'CC BY 4.0 (c) us'
    """
    return " ".join("".join(sign if sign.isprintable() and sign != "\\" else " " for sign in text).split())


def check_text(text: str, what: str) -> None:
    """Refuse what cannot stand in a DICOM text of VR LO.

    Raises:
        OutputError: the text is empty, too long, or holds a backslash or control character.
    """
    if not is_text(text):
        raise OutputError(f"{what} must be 1 to {MOST_CHARACTERS} characters without backslash; shorten {text[:80]!r}.")


def new_uid() -> str:
    """Return a UID made of a random UUID (PS3.5 B.2)."""
    return str(generate_uid(prefix=None))


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Lend a temporary name in the same folder; the file becomes `path` when the block ends well, else it vanishes.

    Inside the block the DICOM libraries are silent, and what they raise is reworded without their text, which may quote
    the patient's values.

    Args:
        path: of the file to be.

    Raises:
        OutputError: the file exists, cannot be written, or a library refused the values.
    """
    if path.exists():
        raise _existing(path)
    try:
        with whole_file(path, suffix=".dcm", overwrite=False) as partial, quiet_pydicom():
            yield partial
    except FileExistsError:
        raise _existing(path) from None
    except OSError as error:
        raise OutputError(f"{path.name}: cannot be written ({error.strerror or type(error).__name__}).") from None
    except (*LIBRARY_ERRORS, InvalidDicomError) as error:
        raise OutputError(
            f"{path.name}: the values of the source series do not fit a DICOM object ({type(error).__name__}); write "
            "NIfTI and report this."
        ) from None


def save_dicom(dataset: Dataset, path: Path) -> None:
    """Write a dataset as a new DICOM file; its file meta information names the transfer syntax."""
    with path.open("wb") as file:
        dataset.save_as(file, enforce_file_format=True)


def read_back(path: Path) -> Dataset:
    """Read what was written; a dataset of plain pydicom, whatever wrote it."""
    return cast("Dataset", dcmread(path))


def _existing(path: Path) -> OutputError:
    return OutputError(f"{path.name}: exists already; choose another name.")
