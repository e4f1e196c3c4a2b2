"""What images a bundle was trained on, and in what an image is unlike them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import nibabel as nib

from voxelgate.core.findings import Finding, FindingCode, Severity
from voxelgate.core.geometry import Grid
from voxelgate.core.structures import StructureRange

Limits = tuple[float, float]

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
        validation_dice: mean Dice on cases that training had not seen; None if nobody knows. It is not in `trained_on`
            but stands as `mean_dice` in `eval_metrics`, as in MONAI's model zoo.

    Raises:
        ValueError: not three pairs in order, an unknown plane, or no Dice.

    >>> Expected.from_mapping({"extent_mm": [[180, 260], [150, 230], [120, 200]]}).extent_mm[0]
    (180.0, 260.0)
    """

    extent_mm: tuple[Limits, ...] = ()
    spacing_mm: tuple[Limits, ...] = ()
    plane: str = ""
    structures: tuple[tuple[str, StructureRange], ...] = ()
    validation_dice: float | None = None

    def __post_init__(self) -> None:
        for name in ("extent_mm", "spacing_mm"):
            limits = getattr(self, name)
            if limits and (len(limits) != 3 or any(len(pair) != 2 or not 0 < pair[0] <= pair[1] for pair in limits)):
                raise ValueError(f"{name} must be a least and a largest value for each of three axes, found {limits}")
        if self.plane and self.plane not in PLANES:
            raise ValueError(f"plane must be one of {', '.join(PLANES)}, found {self.plane!r}")
        if self.validation_dice is not None and not 0 <= self.validation_dice <= 1:
            raise ValueError(f"mean_dice must lie between 0 and 1, found {self.validation_dice}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], validation_dice: float | None = None) -> Self:
        """Build it from `trained_on` of the metadata, and `mean_dice` of their `eval_metrics`.

        Raises:
            ValueError: unknown keys or wrong values.
        """
        known = [field.name for field in fields(cls) if field.name != "validation_dice"]
        if not values.keys() <= set(known):
            raise ValueError(f"trained_on knows {', '.join(known)}, found {', '.join(sorted(values))}")
        structures = {name: StructureRange.from_mapping(one) for name, one in values.get("structures", {}).items()}
        return cls(
            _pairs(values.get("extent_mm")),
            _pairs(values.get("spacing_mm")),
            str(values.get("plane") or ""),
            tuple(structures.items()),
            validation_dice,
        )


def check_against(grid: Grid, expected: Expected) -> tuple[Finding, ...]:
    """Return warnings where the geometry of a volume is unlike that of the images a bundle was trained on."""
    spacing_mm, extent_mm = _by_side(grid)
    found = []
    if expected.extent_mm and _is_outside(extent_mm, expected.extent_mm):
        sentence = _unlike("field of view", extent_mm, expected.extent_mm, ".0f")
        found.append(Finding(FindingCode.FIELD_OF_VIEW, Severity.WARN, sentence))
    if expected.spacing_mm and _is_outside(spacing_mm, expected.spacing_mm):
        sentence = _unlike("voxels of", spacing_mm, expected.spacing_mm, ".2f")
        found.append(Finding(FindingCode.VOXEL_SIZE, Severity.WARN, sentence))
    plane = _plane(spacing_mm)
    if expected.plane and plane and plane != expected.plane:
        sentence = f"slices are {plane}, the bundle was trained on {expected.plane} ones."
        found.append(Finding(FindingCode.ORIENTATION, Severity.WARN, sentence))
    return tuple(found)


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
