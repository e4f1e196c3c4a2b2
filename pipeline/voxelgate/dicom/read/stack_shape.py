"""How evenly and how straight the planes of a stack lie: gaps along the normal, and what runs to the side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxelgate.dicom.read.stack import Slice, distances_mm, normal_lps, positions_lps_mm

GAP_TOLERANCE = 0.01
"""Largest relative deviation of a gap; highdicom.spatial.get_volume_positions has the same default."""

DRIFT_TOLERANCE = 0.25
"""Largest distance, in gaps, of a plane from the evenly spaced stack; many small deviations must not add up."""

ROUNDING_MM = 0.05
"""What rounding to 0.1 mm does to a coordinate at most; some archives and anonymisers write positions like that."""

ROUNDING_SLACK_MM = 0.001
"""Allowance for the digits of the coordinates and for the search of the best stack."""

SHEAR_TOLERANCE = 1e-3
"""Largest way to the side for each mm along the normal (0.06 degrees).

Gantries tilt in steps of half a degree. highdicom.spatial takes 1e-3 for one minus the cosine, which is 2.6 degrees: 13
mm over a stack of 300 mm.
"""

SIDEWAYS_TOLERANCE_MM = 0.2
"""Way to the side that is never a fault: twice what rounding to 0.1 mm does to three coordinates, and below a pixel."""

SEARCH_STEPS = 60
"""Thirds taken off the interval in which the best gap lies: 1e-10 of it remains."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StackShape:
    """Measures of planes in order, each at a position of its own.

    Args:
        gaps_mm: along the normal, one less than planes.
        usual_mm: the gap that most have, the lower median.
        steps: each gap in multiples of the usual one, rounded; 2 where a slice is missing, 0 for less than half a gap.
        deviation_mm: how far a plane lies at most from the evenly spaced stack that fits best, missing slices counted.
        rounding_mm: how far it may lie if positions are rounded to 0.1 mm.
        shear: way to the side for each mm along the normal, from a straight line through the positions.
        length_mm: from the first to the last plane, along the normal.
        sideways_mm: how far a position lies at most beside that line.
    """

    gaps_mm: Numbers
    usual_mm: float
    steps: npt.NDArray[np.int64]
    deviation_mm: float
    rounding_mm: float
    shear: float
    length_mm: float
    sideways_mm: float

    @property
    def is_even(self) -> bool:
        """Return whether all gaps are whole multiples of the usual one, within the tolerance."""
        off_mm = np.abs(self.gaps_mm - self.steps * self.usual_mm)
        is_close = bool((off_mm <= GAP_TOLERANCE * self.usual_mm * self.steps).all())
        return is_close and bool((self.steps > 0).all()) and self.deviation_mm <= DRIFT_TOLERANCE * self.usual_mm

    @property
    def is_rounded(self) -> bool:
        """Return whether rounding to 0.1 mm explains why the gaps are not even."""
        limit_mm = min(self.rounding_mm, DRIFT_TOLERANCE * self.usual_mm)
        return not self.is_even and bool((self.steps > 0).all()) and self.deviation_mm <= limit_mm

    @property
    def is_regular(self) -> bool:
        """Return whether the planes are those of an evenly spaced stack, of which some may be missing."""
        return self.is_even or self.is_rounded

    @property
    def misses_slices(self) -> bool:
        """Return whether planes of a regular stack are missing."""
        return self.is_regular and bool((self.steps > 1).any())

    @property
    def tilt_deg(self) -> float:
        """Return the angle between the stack's axis and the normal of its planes."""
        return math.degrees(math.atan(self.shear))

    @property
    def is_shifted(self) -> bool:
        """Return whether planes lie beside the stack's axis, be it straight or tilted."""
        return self.sideways_mm > SIDEWAYS_TOLERANCE_MM

    @property
    def is_sheared(self) -> bool:
        """Return whether the stack's axis is tilted against the normal of its planes."""
        limit_mm = max(SHEAR_TOLERANCE * self.length_mm, SIDEWAYS_TOLERANCE_MM)
        return not self.is_shifted and self.shear * self.length_mm > limit_mm


def measure_stack(slices: Sequence[Slice]) -> StackShape:
    """Measure at least two planes that lie in order, each at a position of its own."""
    along_mm = distances_mm(slices)
    gaps_mm = np.diff(along_mm)
    usual_mm = float(np.sort(gaps_mm)[(len(gaps_mm) - 1) // 2])
    steps = np.rint(gaps_mm / usual_mm).astype(np.int64)
    normal = normal_lps(slices[0].plane.orientation_lps or ())
    shear, sideways_mm = _to_the_side(positions_lps_mm(slices), along_mm, normal)
    return StackShape(
        gaps_mm=gaps_mm,
        usual_mm=usual_mm,
        steps=steps,
        deviation_mm=_deviation_mm(along_mm, np.concatenate(([0], np.cumsum(steps)))),
        rounding_mm=ROUNDING_MM * float(np.abs(normal).sum()) + ROUNDING_SLACK_MM,
        shear=shear,
        length_mm=float(along_mm[-1] - along_mm[0]),
        sideways_mm=sideways_mm,
    )


def _to_the_side(positions_mm: Numbers, along_mm: Numbers, normal: Numbers) -> tuple[float, float]:
    """Return how much a line through the positions runs to the side, and how far positions lie beside it."""
    sideways_mm = positions_mm - np.outer(along_mm, normal)
    centred_mm, centred_along_mm = sideways_mm - sideways_mm.mean(axis=0), along_mm - along_mm.mean()
    slopes = centred_along_mm @ centred_mm / (centred_along_mm @ centred_along_mm)
    beside_mm = centred_mm - np.outer(centred_along_mm, slopes)
    return float(np.linalg.norm(slopes)), float(np.linalg.norm(beside_mm, axis=1).max())


def _deviation_mm(along_mm: Numbers, steps: npt.NDArray[np.int64]) -> float:
    """Return the largest distance from the evenly spaced stack for which that distance is least.

    For a gap `g` the best stack leaves half the range of `along_mm - g * steps`. That range is convex in `g`, so its
    least value is found by taking thirds off an interval.
    """
    span = max(int(steps[-1]), 1)
    middle_mm = float(along_mm[-1] - along_mm[0]) / span
    low_mm, high_mm = 0.0, 2 * middle_mm
    for _ in range(SEARCH_STEPS):
        left_mm, right_mm = low_mm + (high_mm - low_mm) / 3, high_mm - (high_mm - low_mm) / 3
        if np.ptp(along_mm - left_mm * steps) < np.ptp(along_mm - right_mm * steps):
            high_mm = right_mm
        else:
            low_mm = left_mm
    return float(np.ptp(along_mm - (low_mm + high_mm) / 2 * steps)) / 2
