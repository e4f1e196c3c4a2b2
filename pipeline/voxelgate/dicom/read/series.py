"""Find the series below a path, headers only, and say of each what is wrong with it."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from voxelgate.core.apart import Bounds, each_apart
from voxelgate.core.findings import Allow, Finding, FindingCode, Severity, refusals
from voxelgate.core.geometry import Grid
from voxelgate.dicom.audit import audit
from voxelgate.dicom.audit.kind import KNOWN_MODALITIES
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.copies import without_copies
from voxelgate.dicom.read.dicom_files import DICOMDIR_CLASS, FileRef, like, list_files
from voxelgate.dicom.read.headers import (
    Header,
    ImagePlane,
    UnreadableFile,
    UnreadableFileError,
    is_empty,
    read_header,
)
from voxelgate.dicom.read.merging import merged_stacks
from voxelgate.dicom.read.stack import Slice, by_position, grid_of, slices_of

ID_DIGITS = 12
"""Hex digits of a hashed identifier; two of a million series share them once in 560 archives."""


LOOK_BOUNDS = Bounds(seconds=60.0, memory_bytes=2**31, most_lost=100)
"""What a look at a file may take in a process of its own; reading headers is bounded far below, but disks are not."""


@dataclass(frozen=True, eq=False)
class Series:
    """Images that belong together, with what was found out about them; no pixels, no names.

    Args:
        series_id: modality and hash of its UID, e.g. `ct-3f9a21c40b7e`; the same wherever the files are.
        study_id: hash of the study's UID.
        headers: one a file, without those that are copies of another.
        findings: what was found, worst first.
        files: all its files, copies and unreadable ones too.

    >>> (series,) = vg.scan_dicom("study")
    >>> series.modality, len(series.files)
    ('CT', 5)
    """

    series_id: str
    study_id: str
    headers: tuple[Header, ...]
    findings: tuple[Finding, ...]
    files: tuple[FileRef, ...]

    @property
    def modality(self) -> str:
        """Return the modality, or `other` for a text that DICOM does not define."""
        return _common_modality(self.headers)

    @property
    def has_study(self) -> bool:
        """Return whether its images name their study, or there are none to do so."""
        return not self.headers or bool(self.headers[0].study_uid)

    @property
    def patient_ids(self) -> frozenset[str]:
        """Return the hashed patient IDs of its images; empty if they have none."""
        return frozenset(header.patient[0] for header in self.headers) - {""}

    @property
    def series_uids(self) -> tuple[str, ...]:
        """Return its UIDs: one, unless single images with one each were merged; none where they are empty."""
        return tuple(sorted({header.series_uid for header in self.headers} - {""}))

    @property
    def number(self) -> int | None:
        """Return Series Number, the lowest if images differ in it."""
        return min((header.series_number for header in self.headers if header.series_number is not None), default=None)

    @property
    def description(self) -> str:
        """Return Series Description of the first image that has one; it may hold whatever somebody wrote there."""
        return next((header.description for header in self.headers if header.description), "")

    @property
    def place(self) -> Path:
        """Return the file, or the folder or archive that all its files lie in."""
        paths = {file.path for file in self.files}
        if len(paths) == 1:
            return next(iter(paths))
        return Path(os.path.commonpath([path.parent for path in paths]))

    @property
    def frame_of_reference_uid(self) -> str:
        """Return to what its positions refer; empty if it is not said."""
        return self.headers[0].frame_of_reference_uid if self.headers else ""

    @property
    def is_usable(self) -> bool:
        """Return whether nothing speaks against reading it."""
        return not refusals(self.findings)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """Return its planes as they lie in the patient; only for a usable series."""
        return tuple(group[0] for group in by_position(slices_of(self.headers)))

    @cached_property
    def grid(self) -> Grid:
        """Return the grid of its volume, RAS+ mm; only for a usable series."""
        return grid_of(self.slices)


def scan_dicom(
    root: Path | str, *, allow: Iterable[Allow] = (), progress: Callable[[int, int], None] | None = None
) -> list[Series]:
    """Find every series below a path, whatever the files are called and wherever they lie.

    Args:
        root: a folder with any number of sub-folders, a zip, a DICOMDIR, or one file.
        allow: faults that become warnings because the reader will mend them.
        progress: called with the number of files that were read and of all files.

    Raises:
        InputError: as for `list_files`.

    >>> [(series.modality, series.is_usable) for series in vg.scan_dicom(Path("study"))]
    [('CT', True)]
    """
    return scan_files(list_files(Path(root)), allow=allow, progress=progress)


class Look(NamedTuple):
    """What a look at a file says: a header, or none; of none whether it is empty, or DICOM and why it is damaged."""

    header: Header | None = None
    is_empty: bool = False
    damage: UnreadableFile | None = None


LookAtFiles = Callable[[Sequence[FileRef]], Iterator[Look]]


def look_at(file: FileRef) -> Look:
    """Read the header of a file; never raise on a bad one."""
    with quiet_pydicom():
        try:
            header = read_header(file)
        except UnreadableFileError as error:
            return Look(damage=UnreadableFile(file, error.reason))
        return Look(header, header is None and is_empty(file))


def look_at_each(files: Sequence[FileRef]) -> Iterator[Look]:
    """Yield a look at each file, in this process."""
    return map(look_at, files)


def look_apart(files: Sequence[FileRef]) -> Iterator[Look]:
    """Yield a look at each file, in a process of its own; what ends that, hangs or fills the memory is damaged."""
    for file, found in zip(files, each_apart(look_at, files, LOOK_BOUNDS), strict=True):
        yield found or Look(damage=UnreadableFile(file))


def scan_files(
    files: Sequence[FileRef],
    *,
    allow: Iterable[Allow] = (),
    progress: Callable[[int, int], None] | None = None,
    look: LookAtFiles = look_at_each,
) -> list[Series]:
    """Make series of those files that are DICOM; files that are not are passed over.

    Returns:
        Series in the order of their study, series number and id. DICOM files that cannot be read make a series of
        their own, so that none is passed over without a word; so do empty ones that are named like their neighbours.
    """
    headers: list[Header] = []
    unreadable: list[UnreadableFile] = []
    empty: list[FileRef] = []
    with quiet_pydicom():
        for done, (file, found) in enumerate(zip(files, look(files), strict=True), start=1):
            if found.damage is not None:
                unreadable.append(found.damage)
            elif found.is_empty:
                empty.append(file)
            elif found.header is not None and found.header.sop_class_uid != DICOMDIR_CLASS:
                headers.append(found.header)
            if progress is not None:
                progress(done, len(files))
        names = {(header.file.folder, like(header.file.name)) for header in headers}
        unreadable += [UnreadableFile(file) for file in empty if (file.folder, like(file.name)) in names]
        return group(headers, unreadable, allow=allow)


def group(
    headers: Iterable[Header], unreadable: Sequence[UnreadableFile] = (), *, allow: Iterable[Allow] = ()
) -> list[Series]:
    """Make series of headers; the order of the headers does not matter."""
    families: dict[tuple[str, ...], list[Header]] = defaultdict(list)
    for header in headers:
        families[_family(header)].append(header)
    broken_folders = {one.file.folder for one in unreadable}
    found = [_series(family, broken_folders, tuple(allow)) for family in merged_stacks(families.values())]
    found += [_unreadable_series(unreadable)] if unreadable else []
    return sorted(found, key=lambda series: (series.study_id, _series_number(series), series.series_id))


def _family(header: Header) -> tuple[str, ...]:
    """Return what the images of one series share: its UID, or where that is empty all that could tell series apart."""
    if header.series_uid:
        return (header.series_uid,)
    facts = (header.study_uid, header.frame_of_reference_uid, header.sop_class_uid, header.modality, *header.patient)
    plane = header.planes[0]
    shape = (header.rows, header.columns, plane.orientation_lps, plane.pixel_spacing_mm, plane.thickness_mm)
    return (*facts, str(header.series_number), header.description, str(header.image_type), str(shape))


def _series(headers: Sequence[Header], broken_folders: set[tuple[Path, str]], allow: tuple[Allow, ...]) -> Series:
    kept, found = without_copies(headers)
    found += audit(kept, allow=allow)
    if broken_folders & {header.file.folder for header in headers}:
        found += (
            Finding(
                FindingCode.UNREADABLE_FILE,
                Severity.WARN,
                "a file in the same folder cannot be read; if it belongs to this series, a slice is missing.",
            ),
        )
    ranks = list(Severity)
    ordered = tuple(sorted(found, key=lambda finding: (ranks.index(finding.severity), finding)))
    files = tuple(sorted(header.file for header in headers))
    series_id = f"{_common_modality(kept).lower()}-{_short_hash(_identifying_text(kept))}"
    return Series(series_id, _short_hash(kept[0].study_uid), kept, ordered, files)


def _unreadable_series(unreadable: Sequence[UnreadableFile]) -> Series:
    missing = [one.file for one in unreadable if one.file.is_missing]
    findings = []
    if missing:
        sentence = f"{len(missing)} files that a DICOMDIR or a link names are not there; copy all of it again."
        findings.append(Finding(FindingCode.MISSING_FILE, Severity.REFUSE, sentence))
    closed = [one.file for one in unreadable if one.file.is_archive and one.file not in missing]
    if closed:
        which = f"{len(closed)} zips were" if len(closed) > 1 else "a zip was"
        sentence = f"{which} not looked into: damaged, encrypted, beyond the limits, or inside another zip; unpack it."
        findings.append(Finding(FindingCode.UNREADABLE_FILE, Severity.REFUSE, sentence))
    others = (one for one in unreadable if one.file not in (*missing, *closed))
    for reason, count in sorted(Counter(one.reason for one in others).items()):
        sentence = f"{count} DICOM files are {reason}." if count > 1 else f"a DICOM file is {reason}."
        findings.append(Finding(FindingCode.UNREADABLE_FILE, Severity.REFUSE, sentence))
    return Series("unreadable", "", (), tuple(findings), tuple(one.file for one in unreadable))


def _identifying_text(headers: Sequence[Header]) -> str:
    """Return what identifies a series: its UIDs, or where they are empty what its images say of themselves."""
    if headers[0].series_uid:
        return "\0".join(sorted({header.series_uid for header in headers}))
    return "\0".join(sorted(f"{header.patient} {header.acquisition} {_described_planes(header)}" for header in headers))


def _described_planes(header: Header) -> str:
    """Return the planes as text, as ever: identifiers that were handed out must not change with the name of a class."""
    return str(header.planes).replace(f"{ImagePlane.__name__}(", "Plane(")


def _common_modality(headers: Sequence[Header]) -> str:
    found = {header.modality for header in headers}
    name = next(iter(found)) if len(found) == 1 else ""
    return name if name in KNOWN_MODALITIES else "other"


def _series_number(series: Series) -> int:
    return min((header.series_number or 0 for header in series.headers), default=0)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]
