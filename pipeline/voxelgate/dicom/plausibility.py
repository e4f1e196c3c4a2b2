"""Whether a volume looks like what it says it is, and like what a bundle was trained on; mostly only warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import nibabel as nib
import numpy as np
import numpy.typing as npt

from voxelgate.core.findings import Code, Finding, Severity
from voxelgate.core.geometry import Grid
from voxelgate.core.structures import StructureRange

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

SIDES = ("left to right", "back to front", "foot to head")
PLANES = ("sagittal", "coronal", "axial")
"""Names of the RAS axes, and of the planes at right angles to them."""

EQUAL_SIDES = 1.2
"""A voxel whose longest side is at most this many times its middle one has no plane in which it was acquired."""

SLACK = 0.1
"""How far beyond the training images, as a part of the limit, a size may be before it is told."""


@dataclass(frozen=True)
class Expected:
    """What images a bundle was trained on; as JSON it is `trained_on` in the bundle's `metadata.json`.

    Args:
        extent_mm: least and largest field of view along each RAS axis: left to right, back to front, foot to head.
        spacing_mm: least and largest distance of voxels along each RAS axis.
        plane: in which the slices lay, "axial", "coronal" or "sagittal"; empty if it did not matter.
        structures: name of each structure, and how it looked.

    Raises:
        ValueError: not three pairs in order, or an unknown plane.

    >>> Expected.from_mapping({"extent_mm": [[180, 260], [150, 230], [120, 200]]}).extent_mm[0]
    (180.0, 260.0)
    """

    extent_mm: tuple[Limits, ...] = ()
    spacing_mm: tuple[Limits, ...] = ()
    plane: str = ""
    structures: tuple[tuple[str, StructureRange], ...] = ()

    def __post_init__(self) -> None:
        for name in ("extent_mm", "spacing_mm"):
            limits = getattr(self, name)
            if limits and (len(limits) != 3 or any(len(pair) != 2 or not 0 < pair[0] <= pair[1] for pair in limits)):
                raise ValueError(f"{name} must be a least and a largest value for each of three axes, found {limits}")
        if self.plane and self.plane not in PLANES:
            raise ValueError(f"plane must be one of {', '.join(PLANES)}, found {self.plane!r}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build it from its JSON form.

        Raises:
            ValueError: unknown keys or wrong values.
        """
        known = [field.name for field in fields(cls)]
        if not values.keys() <= set(known):
            raise ValueError(f"trained_on knows {', '.join(known)}, found {', '.join(sorted(values))}")
        structures = {name: StructureRange.from_mapping(one) for name, one in values.get("structures", {}).items()}
        return cls(
            _pairs(values.get("extent_mm")),
            _pairs(values.get("spacing_mm")),
            str(values.get("plane") or ""),
            tuple(structures.items()),
        )


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
        return (_finding(Code.BAD_VALUE, f"{count} voxels are NaN or infinite, expected numbers.", Severity.REFUSE),)
    if low == high:
        return (_finding(Code.CONSTANT, f"all voxels are {low:g}, expected an image.", Severity.REFUSE),)
    reason = _why_not_hu(_sample(voxels), low, high) if modality == "CT" else None
    return () if reason is None else (_finding(Code.NOT_HU, f"{reason}; check Rescale Slope and Intercept."),)


def check_against(grid: Grid, expected: Expected) -> tuple[Finding, ...]:
    """Return warnings where the geometry of a volume is unlike that of the images a bundle was trained on."""
    spacing_mm, extent_mm = _by_side(grid)
    found = []
    if expected.extent_mm and _is_outside(extent_mm, expected.extent_mm):
        sentence = _unlike("field of view", extent_mm, expected.extent_mm, ".0f")
        found.append(_finding(Code.FIELD_OF_VIEW, sentence))
    if expected.spacing_mm and _is_outside(spacing_mm, expected.spacing_mm):
        sentence = _unlike("voxels of", spacing_mm, expected.spacing_mm, ".2f")
        found.append(_finding(Code.VOXEL_SIZE, sentence))
    plane = _plane(spacing_mm)
    if expected.plane and plane and plane != expected.plane:
        sentence = f"slices are {plane}, the bundle was trained on {expected.plane} ones."
        found.append(_finding(Code.ORIENTATION, sentence))
    return tuple(found)


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


def _sample(voxels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return evenly spread voxels; an odd step does not run along columns."""
    flat = voxels.reshape(-1, order="A")
    return flat[:: (flat.size // SAMPLE_VOXELS) | 1].astype(np.float64)


def _by_side(grid: Grid) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return spacing and extent in mm along the axes of the grid that lie closest to R, A and S."""
    order = nib.io_orientation(grid.affine)[:, 0].astype(int).tolist()
    spacing_mm = [grid.spacing_mm[order.index(side)] for side in range(3)]
    count = [grid.shape[order.index(side)] for side in range(3)]
    return tuple(spacing_mm), tuple(n * step for n, step in zip(count, spacing_mm, strict=True))


def _plane(spacing_mm: Sequence[float]) -> str:
    """Return the plane at right angles to the longest side of a voxel; empty if no side stands out."""
    _, middle, longest = sorted(spacing_mm)
    return PLANES[spacing_mm.index(longest)] if longest > EQUAL_SIDES * middle else ""


def _is_outside(sizes: Sequence[float], limits: Sequence[Limits]) -> bool:
    pairs = zip(sizes, limits, strict=True)
    return any(not low * (1 - SLACK) <= size <= high * (1 + SLACK) for size, (low, high) in pairs)


def _unlike(what: str, sizes: Sequence[float], limits: Sequence[Limits], form: str) -> str:
    found = " x ".join(format(size, form) for size in sizes)
    wanted = " x ".join(f"{low:{form}} to {high:{form}}" for low, high in limits)
    return f"{what} {found} mm ({', '.join(SIDES)}), the bundle was trained on {wanted} mm."


def _pairs(values: Sequence[Sequence[float]] | None) -> tuple[Limits, ...]:
    return tuple((float(low), float(high)) for low, high in values or ())


def _finding(code: Code, sentence: str, severity: Severity = Severity.WARN) -> Finding:
    return Finding(code, severity, sentence)
