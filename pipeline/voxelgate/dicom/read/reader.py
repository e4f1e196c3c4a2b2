"""Read a checked DICOM series as one volume, in plain arrays or through MONAI's `LoadImage`."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from monai.data import ImageReader

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.findings import Allow, Finding, FindingCode, Severity, refusals
from voxelgate.core.geometry import Grid
from voxelgate.dicom.plausibility import check_values
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.decoding import PixelError
from voxelgate.dicom.read.dicom_files import FileRef, list_files
from voxelgate.dicom.read.headers import UnreadableFileError, read_header
from voxelgate.dicom.read.pixels import read_stack
from voxelgate.dicom.read.repair import repair, repair_needed
from voxelgate.dicom.read.series import Series, scan_files
from voxelgate.dicom.read.woven import woven_finding
from voxelgate.images.spec import Paths, as_paths, meta_of
from voxelgate.images.volumes import is_volume

logger = logging.getLogger(__name__)


WHAT_ALLOWS = {Allow.GAPS: FindingCode.MISSING_SLICE, Allow.TILT: FindingCode.GANTRY_TILT}


class DicomVolume(NamedTuple):
    """What was read of a series.

    Args:
        voxels: (I, J, K) float32, rescaled (HU for CT), slices one after the other in memory.
        grid: where they lie, RAS+ mm.
        findings: those of the series, and what was mended.
    """

    voxels: npt.NDArray[np.float32]
    grid: Grid
    findings: tuple[Finding, ...]


def read_series(
    series: Series, *, allow: Iterable[Allow] = (), progress: Callable[[int, int], None] | None = None
) -> DicomVolume:
    """Read the pixels of a series.

    Args:
        series: found by `scan`, with the same `allow`.
        allow: faults that are mended by resampling.
        progress: called with the number of slices that were read and of all.

    Raises:
        InputError: something speaks against reading it, or its pixels cannot be decoded; the text names the finding.
    """
    found = read_or_refuse(series, allow=allow, progress=progress)
    if isinstance(found, Finding):
        raise InputError(f"{series.series_id}: {found}")
    return found


def read_or_refuse(
    series: Series, *, allow: Iterable[Allow] = (), progress: Callable[[int, int], None] | None = None
) -> DicomVolume | Finding:
    """Read the pixels of a series as `read_series` does, or return the finding that speaks against it."""
    if refused := refusals(series.findings):
        return refused[0]
    fault = repair_needed(series.slices)
    if fault is not None and fault not in frozenset(allow):
        sentence = f"its slices do not make a regular grid; pass --allow {fault} to have it mended by resampling."
        return Finding(WHAT_ALLOWS[fault], Severity.REFUSE, sentence)
    try:
        voxels = read_stack(series.slices, workers=_workers(), progress=progress)
    except PixelError as error:
        return Finding(error.code, Severity.REFUSE, f"{error}; send the series again.")
    is_suspect = any(finding.code is FindingCode.MIXED_ACQUISITIONS for finding in series.findings)
    woven = woven_finding(voxels, series.modality, is_suspect=is_suspect)
    if woven is not None and woven.severity is Severity.REFUSE:
        return woven
    findings = ((woven,) if woven else ()) + series.findings
    if fault is None:
        return DicomVolume(voxels, series.grid, findings)
    mended = repair(voxels, series.slices)
    return DicomVolume(mended.voxels, mended.grid, mended.findings + findings)


def _workers() -> int:
    """Return how many cores to use; a process that was started by another is one of several that share them."""
    if multiprocessing.parent_process() is not None:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CheckedDicomReader(ImageReader):  # type: ignore[misc]  # MONAI ships no stubs
    """Let MONAI's `LoadImage` read a DICOM series, and refuse what the audit refuses.

    It takes a folder, a zip, a DICOMDIR, a multi-frame file, or a list of files, which then are exactly those of the
    image. One series must be usable. `LoadImage` tries other readers if `read` fails, even its own ones, which check
    nothing; hence `read` fails only for what is no DICOM, and `get_data` refuses.

    Args:
        series_id: which series to read if there are several, as `voxelgate inspect` names it.
        allow: faults to mend: "gaps", "tilt", "merge-series".

    Raises:
        UsageError: an unknown fault.

    >>> from monai.transforms import LoadImaged
    >>> load = LoadImaged(keys="image", reader="voxelgate.CheckedDicomReader", allow=["gaps"])
    """

    def __init__(self, series_id: str | None = None, allow: Sequence[str] = ()) -> None:
        super().__init__()
        try:
            self.allow = frozenset(Allow(name) for name in ((allow,) if isinstance(allow, str) else allow))
        except ValueError as error:
            raise UsageError(f"allow holds {', '.join(map(str, allow))}, expected {', '.join(Allow)}.") from error
        self.series_id = series_id

    def verify_suffix(self, filename: Paths) -> bool:
        """Return whether the names may be DICOM; what decides is the content, since many files have no suffix."""
        return _may_be_dicom(as_paths(filename))

    def read(self, data: Paths, **_: Any) -> tuple[Path, ...]:
        """Return the paths; `get_data` opens them.

        Raises:
            InputError: they are clearly no DICOM.
        """
        paths = as_paths(data)
        if not _may_be_dicom(paths):
            raise InputError("not DICOM, expected a folder, a zip, a DICOMDIR or DICOM files; check the path.")
        return paths

    def get_data(self, img: tuple[Path, ...]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Return voxels (I, J, K) float32 and the metadata that MONAI needs: the affine in RAS+ mm and the shape.

        Warnings go to the log.

        Raises:
            InputError: no series or several are usable, or as for `read_series`.
        """
        files = dict.fromkeys(file for path in img for file in list_files(path))
        series = self._choose(scan_files(list(files), allow=self.allow))
        volume = read_series(series, allow=self.allow)
        findings = volume.findings + check_values(volume.voxels, volume.grid, series.modality)
        if refused := refusals(findings):
            raise InputError(f"{series.series_id}: {refused[0]}")
        for finding in findings:
            if finding.severity is Severity.WARN:
                logger.warning("%s: %s", series.series_id, finding)
        return volume.voxels, meta_of(volume.grid)

    def _choose(self, found: Sequence[Series]) -> Series:
        asked = [series for series in found if self.series_id in (None, series.series_id)]
        usable = [series for series in asked if series.is_usable]
        if len(usable) == 1:
            return usable[0]
        if len(asked) == 1:
            raise InputError(f"{asked[0].series_id}: {refusals(asked[0].findings)[0]}")
        listed = "; ".join(_described_sources(series) for series in found) or "no DICOM image"
        wish = "give series_id" if usable else "none can be read"
        wanted = "one series" if self.series_id is None else f"the series {self.series_id}"
        raise InputError(f"found {listed}; expected {wanted}; {wish}.")


def _described_sources(series: Series) -> str:
    count = len(series.headers) or len(series.files)
    refused = refusals(series.findings)
    return f"{series.series_id} ({count} files, {refused[0] if refused else 'usable'})"


def _may_be_dicom(paths: Sequence[Path]) -> bool:
    """Return whether nothing is named like a volume file, and something could hold DICOM."""
    return not any(is_volume(path) for path in paths) and any(_holds_dicom(path) for path in paths)


def _holds_dicom(path: Path) -> bool:
    """Return whether a path is a folder or zip, or a file that starts like DICOM."""
    if path.is_dir() or path.suffix.lower() == ".zip":
        return True
    if not path.is_file():
        return False
    with quiet_pydicom():
        try:
            return read_header(FileRef(path)) is not None
        except UnreadableFileError:
            return True
