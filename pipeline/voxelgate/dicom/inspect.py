"""Say of every series below some paths whether it can be used: headers, then the pixels of what the headers allow."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib

from voxelgate.core.findings import Allow, Finding, FindingCode, Severity
from voxelgate.core.geometry import Grid
from voxelgate.core.progress import Progress
from voxelgate.dicom.plausibility import check_values
from voxelgate.dicom.read.dicom_files import list_files
from voxelgate.dicom.read.repair import repair_needed
from voxelgate.dicom.read.series import Series, scan_files
from voxelgate.dicom.read.stack import slices_of
from voxelgate.dicom.read.volume import read_or_refuse


@dataclass(frozen=True)
class InspectedSeries:
    """A series with all that was found out about it.

    Args:
        series: with the findings of its headers and, if they were decoded, of its pixels.
        grid: of its volume, RAS+ mm, after mending; None if it cannot be used or its pixels were needed to know.
    """

    series: Series
    grid: Grid | None

    def summary(self) -> dict[str, Any]:
        """Return what is known as plain JSON; of the headers' texts only those that name a series."""
        series, grid = self.series, self.grid
        return {
            "series_id": series.series_id,
            "study_id": series.study_id,
            "path": str(series.place),
            "series_number": series.number,
            "description": series.description,
            "series_uid": series.series_uids[0] if len(series.series_uids) == 1 else list(series.series_uids),
            "modality": series.modality,
            "images": len(slices_of(series.headers)) or len(series.files),
            "shape": None if grid is None else list(grid.shape),
            "spacing_mm": None if grid is None else [round(value, 4) for value in grid.spacing_mm],
            "orientation": None if grid is None else "".join(nib.aff2axcodes(grid.affine)),
            "verdict": "usable" if series.is_usable else "rejected",
            "findings": [
                {"code": finding.code, "severity": finding.severity, "message": finding.message}
                for finding in series.findings
            ],
        }


def inspect(
    inputs: Sequence[Path],
    *,
    allow: Iterable[Allow] = (),
    headers_only: bool = False,
    progress: tuple[Progress, Progress] | None = None,
) -> list[InspectedSeries]:
    """Find every series below some paths, with all that can be found out about each.

    Args:
        inputs: folders, zips, DICOMDIRs and files; their series are taken together.
        allow: faults that would be mended instead of refused.
        headers_only: leave the pixels alone; damaged pixels and implausible values are then not found.
        progress: called with files that were read and of all; and with images that were decoded and of all.

    Raises:
        InputError: as for `list_files`.
    """
    allowed = tuple(allow)
    files = dict.fromkeys(file for given in inputs for file in list_files(given))
    found = scan_files(list(files), allow=allowed, progress=progress[0] if progress else None)
    if headers_only:
        return [InspectedSeries(series, series.grid if _is_regular(series) else None) for series in found]
    total = sum(len(slices_of(series.headers)) for series in found if series.is_usable)
    done = 0
    checked = []
    for series in found:
        checked.append(_with_pixels(series, allowed) if series.is_usable else InspectedSeries(series, None))
        done += len(slices_of(series.headers)) if series.is_usable else 0
        if progress is not None:
            progress[1](done, total)
    return checked


def _is_regular(series: Series) -> bool:
    return series.is_usable and repair_needed(series.slices) is None


def _with_pixels(series: Series, allow: tuple[Allow, ...]) -> InspectedSeries:
    try:
        found = read_or_refuse(series, allow=allow)
    except MemoryError:
        sentence = "its volume needs more memory than there is, so its pixels were not looked at."
        found = Finding(FindingCode.UNDECODABLE, Severity.REFUSE, sentence)
    if isinstance(found, Finding):
        return InspectedSeries(_with(series, (found, *series.findings)), None)
    findings = found.findings + check_values(found.voxels, found.grid, series.modality)
    inspected = _with(series, findings)
    return InspectedSeries(inspected, found.grid if inspected.is_usable else None)


def _with(series: Series, findings: tuple[Finding, ...]) -> Series:
    """Return the series with other findings, worst first."""
    ranks = list(Severity)
    return replace(series, findings=tuple(sorted(findings, key=lambda finding: ranks.index(finding.severity))))
