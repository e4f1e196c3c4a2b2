"""Whether a volume looks like what it says it is, and like what a bundle was trained on; mostly only warnings."""

from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.findings import Finding, FindingCode, Severity
from voxelgate.core.geometry import Grid

Limits = tuple[float, float]

SAMPLE_VOXELS = 200_000
"""Voxels that are looked at; a share of a tenth of a percent is then known to a tenth of itself."""

AIR_HU = (-1100.0, -850.0)
"""Air is -1000 HU by definition (PS3.3 C.11.1.1.2); scanners clip at -1024, noise and the lungs' edge widen it."""

SOFT_TISSUE_HU = (-200.0, 200.0)
"""Fat (-120), water (0), muscle (50) and vessels with contrast agent, of which every part of the body has some."""

FAT_HU = -60.0
"""Upper end of fat: in HU some voxels of every body part lie below."""

MISSED_INTERCEPT = 1024.0
"""What nearly all scanners add before they store HU in unsigned numbers."""

LEAST_AIR = 0.001
LEAST_TISSUE = 0.02
"""Share of all voxels; a volume without either holds something other than HU."""

MOST_PADDING_VALUES = 8
"""Different values below air that may be padding, of inside and outside the field of view, slice by slice."""

LEAST_BELOW_FAT = 0.001
"""Share of all voxels below `FAT_HU`; a scan of the head without any air around it has some percent."""


def check_values(voxels: npt.NDArray[Any], grid: Grid, modality: str) -> tuple[Finding, ...]:
    """Return what is odd about the values of a volume.

    Refused are NaN, infinite and all equal voxels. A CT whose values do not look like HU gets a warning.

    Args:
        voxels: (I, J, K), any real type.
        grid: where they lie.
        modality: as DICOM names it.

    Raises:
        ValueError: voxels and grid have not one shape.
    """
    if voxels.shape != grid.shape:
        raise ValueError(f"voxels of shape {voxels.shape} on a grid of shape {grid.shape}")
    low, high = float(voxels.min()), float(voxels.max())
    if not np.isfinite((low, high)).all():
        count = voxels.size - int(np.isfinite(voxels).sum())
        return (
            _finding(FindingCode.BAD_VALUE, f"{count} voxels are NaN or infinite, expected numbers.", Severity.REFUSE),
        )
    if low == high:
        return (_finding(FindingCode.CONSTANT, f"all voxels are {low:g}, expected an image.", Severity.REFUSE),)
    reason = _why_not_hu(_sampled_voxels(voxels), low, high) if modality == "CT" else None
    return () if reason is None else (_finding(FindingCode.NOT_HU, f"{reason}; check Rescale Slope and Intercept."),)


def _why_not_hu(sample: npt.NDArray[np.float64], low: float, high: float) -> str | None:
    """Say why values are hardly HU, or return None; values below air are padding and do not count."""
    if low >= 0 and high <= 1:
        return "values lie between 0 and 1, they look normalised and not like HU"
    if low >= 0 and high <= 255:
        return f"values lie between {low:g} and {high:g}, they look like 8-bit grey values and not like HU"
    if _is_wrapped(sample[sample < AIR_HU[0]], len(sample)):
        return f"many different values lie below {AIR_HU[0]:g}, as if the sign or the depth of the pixels were wrong"
    return _why_not_body(sample[sample >= AIR_HU[0]])


def _why_not_body(sample: npt.NDArray[np.float64]) -> str | None:
    """Say what of a body in air is missing among values, or return None."""
    if _share(sample, (AIR_HU[0], FAT_HU)) < LEAST_BELOW_FAT:
        shifted = sample - MISSED_INTERCEPT
        if _share(shifted, AIR_HU) >= LEAST_AIR and _share(shifted, SOFT_TISSUE_HU) >= LEAST_TISSUE:
            return "air lies near 0 and tissue near 1000, it looks like stored values without their intercept"
        return f"hardly any value is below {FAT_HU:g}, but in HU those of fat and air are"
    if _share(sample, AIR_HU) < LEAST_AIR and _share(sample, SOFT_TISSUE_HU) < LEAST_TISSUE:
        return "there is neither air near -1000 nor soft tissue near 0, it does not look like HU"
    return None


def _is_wrapped(below_air: npt.NDArray[np.float64], total: int) -> bool:
    """Return whether values below air are more than padding, which has one value or two."""
    return len(below_air) > LEAST_AIR * total and len(np.unique(below_air)) > MOST_PADDING_VALUES


def _share(sample: npt.NDArray[np.float64], limits: Limits) -> float:
    return float(np.mean((sample >= limits[0]) & (sample <= limits[1]))) if sample.size else 0.0


def _sampled_voxels(voxels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return evenly spread voxels; an odd step does not run along columns."""
    flat = voxels.reshape(-1, order="A")
    return flat[:: (flat.size // SAMPLE_VOXELS) | 1].astype(np.float64)


def _finding(code: FindingCode, sentence: str, severity: Severity = Severity.WARN) -> Finding:
    return Finding(code, severity, sentence)
