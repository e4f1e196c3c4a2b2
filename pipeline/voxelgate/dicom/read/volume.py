"""Read the pixels of a checked DICOM series as one volume."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from voxelgate.core.errors import InputError
from voxelgate.core.findings import Allow, Finding, FindingCode, Severity, refusals
from voxelgate.core.geometry import Grid, triple
from voxelgate.dicom.plausibility import check_values
from voxelgate.dicom.read.decoding import PixelError
from voxelgate.dicom.read.pixels import read_stack
from voxelgate.dicom.read.repair import repair, repair_needed
from voxelgate.dicom.read.series import Series
from voxelgate.dicom.read.woven import woven_finding
from voxelgate.images.file_facts import FileFacts

logger = logging.getLogger(__name__)

WHAT_ALLOWS = {Allow.GAPS: FindingCode.MISSING_SLICE, Allow.TILT: FindingCode.GANTRY_TILT}


class DicomVolume(NamedTuple):
    """What was read of a series.

    Args:
        voxels: (I, J, K) float32, rescaled (HU for CT), slices one after the other in memory.
        grid: where they lie, RAS+ mm.
        findings: those of the series, and what was mended.
        facts: what else is known of the series; its voxel sizes in float32, as converters to NIfTI write them.
    """

    voxels: npt.NDArray[np.float32]
    grid: Grid
    findings: tuple[Finding, ...]
    facts: FileFacts


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
        return DicomVolume(voxels, series.grid, findings, _facts_of(series, series.grid))
    mended = repair(voxels, series.slices)
    return DicomVolume(mended.voxels, mended.grid, mended.findings + findings, _facts_of(series, mended.grid))


def _facts_of(series: Series, grid: Grid) -> FileFacts:
    sizes = triple(float(np.float32(size)) for size in grid.spacing_mm)
    return FileFacts(sizes, is_dicom=True, is_3d=all(header.is_3d for header in series.headers))


def read_plausible(series: Series, *, allow: Iterable[Allow] = ()) -> DicomVolume:
    """Read the pixels of a series as `read_series` does, refuse values that are none, and log what is to be warned of.

    Raises:
        InputError: as for `read_series`, or its values are not what its modality holds.
    """
    volume = read_series(series, allow=allow)
    findings = volume.findings + check_values(volume.voxels, volume.grid, series.modality)
    if refused := refusals(findings):
        raise InputError(f"{series.series_id}: {refused[0]}")
    for finding in findings:
        if finding.severity is Severity.WARN:
            logger.warning("%s: %s", series.series_id, finding)
    return volume._replace(findings=findings)


def _workers() -> int:
    """Return how many cores to use; a process that was started by another is one of several that share them."""
    if multiprocessing.parent_process() is not None:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
