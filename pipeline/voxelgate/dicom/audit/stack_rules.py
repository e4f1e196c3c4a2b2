"""Rules on the stack: no slice is missing, gaps are even, and the axis runs along the normal."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from voxelgate.core.findings import Allow, Finding, FindingCode
from voxelgate.dicom.audit.facts import SeriesFacts, note, refuse, warn
from voxelgate.dicom.read.stack import normal_lps
from voxelgate.dicom.read.stack_shape import GAP_TOLERANCE, SHEAR_TOLERANCE, SIDEWAYS_TOLERANCE_MM

TILT_TAG_DEG = 0.1
"""Smallest Gantry/Detector Tilt that means anything; gantries tilt in steps of half a degree."""


SPARSE_GAP = 2.0
"""Gap in multiples of Slice Thickness at which another slice would fit between any two."""

MOST_FILLED = 3
"""Most slices in a row that may be filled on request: between farther neighbours interpolation invents anatomy."""


def shifted_slices(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse slices that lie beside the axis of the stack."""
    if facts.shape.is_shifted:
        sentence = (
            f"slices lie up to {facts.shape.sideways_mm:.2f} mm beside the axis of the stack, expected at most "
            f"{SIDEWAYS_TOLERANCE_MM:.2f} mm; they do not make one grid."
        )
        yield refuse(FindingCode.SHIFTED_SLICES, sentence)


def gantry_tilt(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse a sheared stack, whether a tilt is written or not; with `Allow.TILT` warn if its gaps are even."""
    if not facts.shape.is_sheared:
        return
    sentence = (
        f"the axis of the stack is tilted by {facts.shape.tilt_deg:.2f} degrees against its slices, expected at most "
        f"{np.degrees(np.arctan(SHEAR_TOLERANCE)):.2f} (a tilted gantry)"
    )
    if Allow.TILT in facts.allow and facts.shape.is_regular and not facts.shape.misses_slices:
        yield warn(FindingCode.GANTRY_TILT, f"{sentence}; it is corrected by resampling.")
    else:
        yield refuse(FindingCode.GANTRY_TILT, f"{sentence}; correct it at the scanner, or pass --allow tilt.")


def tilt_without_shear(facts: SeriesFacts) -> Iterator[Finding]:
    """Warn of a tilt that is written but not to be seen in the positions.

    If the slices themselves are tilted the volume was corrected; if they are not, the header contradicts itself.
    """
    written_deg = max((abs(header.gantry_tilt_deg or 0.0) for header in facts.headers), default=0.0)
    if facts.shape.is_sheared or facts.shape.is_shifted or written_deg < TILT_TAG_DEG:
        return
    normal = np.abs(normal_lps(facts.slices[0].plane.orientation_lps or ()))
    sentence = f"a gantry tilt of {written_deg:.2f} degrees is written, but the positions make a rectangular grid"
    if np.degrees(np.arccos(min(float(normal.max()), 1.0))) > written_deg / 2:
        yield note(FindingCode.GANTRY_TILT, f"{sentence}, whose slices are tilted.")
    else:
        yield warn(FindingCode.GANTRY_TILT, f"{sentence} without any tilt; check that the anatomy is not sheared.")


def missing_slice(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse gaps of whole multiples of the usual one; with `Allow.GAPS` warn if the rest is in order."""
    shape = facts.shape
    if not shape.misses_slices:
        return
    first = int(np.flatnonzero(shape.steps > 1)[0])
    sentence = (
        f"gap of {shape.gaps_mm[first]:.2f} mm between slices {first + 1} and {first + 2}, expected "
        f"{shape.usual_mm:.2f} mm within {100 * GAP_TOLERANCE:.0f} %; {_missing(shape.steps)}"
    )
    if int(shape.steps.max()) - 1 > MOST_FILLED:
        yield refuse(FindingCode.MISSING_SLICE, f"{sentence}, more than {MOST_FILLED} in a row; send the series again.")
    elif Allow.GAPS in facts.allow and not (shape.is_sheared or shape.is_shifted):
        yield warn(FindingCode.MISSING_SLICE, f"{sentence}, filled by interpolation.")
    else:
        yield refuse(FindingCode.MISSING_SLICE, f"{sentence}; send the series again, or pass --allow gaps.")


def _missing(steps: npt.NDArray[np.int64]) -> str:
    slices, places = int((steps - 1).sum()), int((steps > 1).sum())
    return f"{slices} slice{'s are' * (slices > 1) or ' is'} missing" + f", in {places} places" * (places > 1)


def non_uniform_spacing(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse gaps that no evenly spaced stack explains."""
    shape = facts.shape
    if shape.is_regular:
        return
    off = np.abs(shape.gaps_mm - shape.usual_mm)
    worst = int(off.argmax())
    sentence = (
        f"gaps range from {shape.gaps_mm.min():.2f} to {shape.gaps_mm.max():.2f} mm, expected {shape.usual_mm:.2f} mm "
        f"within {100 * GAP_TOLERANCE:.0f} %; furthest off between slices {worst + 1} and {worst + 2}."
    )
    yield refuse(FindingCode.NON_UNIFORM_SPACING, sentence)


def rounded_positions(facts: SeriesFacts) -> Iterator[Finding]:
    """Warn of gaps that are uneven only because positions are rounded to 0.1 mm."""
    shape = facts.shape
    if shape.is_rounded:
        sentence = (
            f"gaps range from {shape.gaps_mm.min():.2f} to {shape.gaps_mm.max():.2f} mm, but every slice is within "
            f"{shape.deviation_mm:.2f} mm of an even stack; positions are rounded, even spacing is used."
        )
        yield warn(FindingCode.ROUNDED_POSITIONS, sentence)


def sparse_slices(facts: SeriesFacts) -> Iterator[Finding]:
    """Warn of an even stack between whose slices as much again could lie: every other one may have been lost."""
    found_mm = sorted(part.plane.thickness_mm or 0.0 for part in facts.stack)
    found_mm = [thickness_mm for thickness_mm in found_mm if thickness_mm > 0]
    if not found_mm or not facts.shape.is_regular or facts.shape.misses_slices:
        return
    thickness_mm, gap_mm = found_mm[len(found_mm) // 2], facts.shape.usual_mm
    if gap_mm >= SPARSE_GAP * thickness_mm * (1 - GAP_TOLERANCE):
        sentence = (
            f"slices are {thickness_mm:.2f} mm thick but {gap_mm:.2f} mm apart; check that none between them were lost."
        )
        yield warn(FindingCode.SPARSE_SLICES, sentence)


def spacing_between_slices(facts: SeriesFacts) -> Iterator[Finding]:
    """Warn of a written spacing other than the measured one, which is used; Slice Thickness is no spacing.

    Of a tilted stack the spacing may be written along the normal or along the axis.
    """
    written = [part.plane.spacing_between_slices_mm for part in facts.stack]
    found_mm = sorted(abs(value) for value in written if value)
    if not found_mm or not facts.shape.is_regular:
        return
    said_mm = found_mm[len(found_mm) // 2]
    measured_mm = facts.shape.length_mm / int(facts.shape.steps.sum())
    along_axis_mm = measured_mm * float(np.hypot(1.0, facts.shape.shear))
    if min(abs(said_mm - measured_mm), abs(said_mm - along_axis_mm)) > GAP_TOLERANCE * measured_mm:
        sentence = (
            f"Spacing Between Slices says {said_mm:.2f} mm, the positions are {measured_mm:.2f} mm apart; "
            "the positions are used."
        )
        yield warn(FindingCode.SPACING_BETWEEN_SLICES, sentence)
