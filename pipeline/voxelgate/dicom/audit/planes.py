"""Rules on the planes of a series one by one: each says where it lies, and all say it of one grid."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from voxelgate.core.findings import Finding, FindingCode
from voxelgate.dicom.audit.facts import SeriesFacts, note, refuse, share
from voxelgate.dicom.read.header_values import Vector
from voxelgate.dicom.read.stack import Slice

ORIENTATION_TOLERANCE = 1e-3
"""Largest deviation from unit length or a right angle; gdcm::DirectionCosines::IsValid has the same."""

SAME_ORIENTATION_TOLERANCE = 1e-3
"""Largest difference of a direction cosine within a series: a quarter of a millimetre at the edge of 500 mm.

Scanners that work it out anew for each slice differ in the fifth digit.
"""

SAME_SPACING_TOLERANCE = 1e-3
"""Largest relative difference of pixel spacings within a series: half a pixel over 512 columns."""

SQUARE_TOLERANCE = 1e-3
"""Largest relative difference of the sides of a pixel that counts as square."""

FARTHEST_MM = 1e5
"""Largest coordinate that is taken for one; tables move by metres, not by a hundred of them."""

PIXEL_LIMITS_MM = (1e-3, 1e3)
"""Sizes of a pixel that are taken for one, from a micro-CT's to a body's."""

Numbers = npt.NDArray[np.float64]

GEOMETRY_KEYWORDS = frozenset(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"))


def bad_geometry_values(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse geometry that is written but is no number, or not as many as it takes."""
    for keyword in sorted(GEOMETRY_KEYWORDS):
        found = [header for header in facts.headers if keyword in header.malformed]
        if found:
            sentence = f"{share(found, facts.headers)}: {keyword} holds no valid numbers; send them again."
            yield refuse(FindingCode.BAD_VALUE, sentence)


def impossible_geometry(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse positions and pixels beyond any scanner; they are damaged, or in another unit."""
    far = [part for part in facts.slices if max(map(abs, part.plane.position_lps_mm or (0.0,))) > FARTHEST_MM]
    if far:
        sentence = f"{share(far, facts.slices)}: Image Position (Patient) beyond {FARTHEST_MM / 1000:.0f} m."
        yield refuse(FindingCode.BAD_VALUE, sentence)
    low_mm, high_mm = PIXEL_LIMITS_MM
    odd = [
        part
        for part in facts.slices
        if any(0 < side_mm < low_mm or side_mm > high_mm for side_mm in part.plane.pixel_spacing_mm or ())
    ]
    if odd:
        sentence = f"{share(odd, facts.slices)}: Pixel Spacing not between {low_mm:g} and {high_mm:g} mm."
        yield refuse(FindingCode.BAD_VALUE, sentence)


def no_size(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse images without rows or columns."""
    found = [
        header
        for header in facts.headers
        if not {"Rows", "Columns"} & set(header.malformed) and min(header.rows or 0, header.columns or 0) < 1
    ]
    if found:
        yield refuse(
            FindingCode.BAD_VALUE, f"{share(found, facts.headers)}: Rows or Columns missing or 0, expected both."
        )


def no_position(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse planes that do not say where they lie."""
    found = _without(facts, "ImagePositionPatient", lambda part: part.plane.position_lps_mm)
    if found:
        yield refuse(
            FindingCode.NO_POSITION, f"{share(found, facts.slices)}: no Image Position (Patient), so no place in space."
        )


def no_orientation(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse planes that do not say how they lie."""
    found = _without(facts, "ImageOrientationPatient", lambda part: part.plane.orientation_lps)
    if found:
        sentence = f"{share(found, facts.slices)}: no Image Orientation (Patient), so left and right are unknown."
        yield refuse(FindingCode.NO_ORIENTATION, sentence)


def no_pixel_spacing(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse planes whose pixels have no size."""
    found = _without(facts, "PixelSpacing", lambda part: part.plane.pixel_spacing_mm)
    found += [part for part in facts.slices if min(part.plane.pixel_spacing_mm or (1.0,)) <= 0]
    if found:
        sentence = f"{share(found, facts.slices)}: Pixel Spacing missing or not above 0, so sizes in mm are unknown."
        yield refuse(FindingCode.NO_PIXEL_SPACING, sentence)


def _without(facts: SeriesFacts, keyword: str, value: Callable[[Slice], Vector | None]) -> list[Slice]:
    return [part for part in facts.slices if value(part) is None and keyword not in part.header.malformed]


def bad_orientation(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse directions that are not of unit length and at a right angle."""
    oriented = [part for part in facts.slices if part.plane.orientation_lps is not None]
    if not oriented:
        return
    directions = np.array([part.plane.orientation_lps for part in oriented]).reshape(-1, 2, 3)
    off_length = np.abs(np.linalg.norm(directions, axis=2) - 1).max(axis=1)
    off_angle = np.abs((directions[:, 0] * directions[:, 1]).sum(axis=1))
    is_bad = np.maximum(off_length, off_angle) > ORIENTATION_TOLERANCE
    found = [part for part, bad in zip(oriented, is_bad, strict=True) if bad]
    if found:
        sentence = (
            f"{share(found, facts.slices)}: row and column directions are off unit length or right angle by up to "
            f"{float(np.maximum(off_length, off_angle).max()):.4f}, expected at most {ORIENTATION_TOLERANCE}."
        )
        yield refuse(FindingCode.BAD_ORIENTATION, sentence)


def mixed_orientations(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse planes that are not parallel, or turned against each other."""
    cosines = np.array([part.plane.orientation_lps for part in facts.slices])
    is_other = np.abs(cosines - usual_orientation(cosines)).max(axis=1) > SAME_ORIENTATION_TOLERANCE
    found = [part for part, other in zip(facts.slices, is_other, strict=True) if other]
    if found:
        sentence = (
            f"{share(found, facts.slices)} are oriented differently from the others (direction cosines differ by more "
            f"than {SAME_ORIENTATION_TOLERANCE}), expected parallel slices."
        )
        yield refuse(FindingCode.MIXED_ORIENTATIONS, sentence)


def mixed_pixel_spacings(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse planes with pixels of different sizes."""
    spacings_mm = np.array([part.plane.pixel_spacing_mm for part in facts.slices])
    low_mm, high_mm = spacings_mm.min(axis=0), spacings_mm.max(axis=0)
    if (high_mm > low_mm * (1 + SAME_SPACING_TOLERANCE)).any():
        sentence = (
            f"Pixel Spacing ranges from {low_mm[0]:.2f} x {low_mm[1]:.2f} to {high_mm[0]:.2f} x {high_mm[1]:.2f} mm, "
            f"expected one within {100 * SAME_SPACING_TOLERANCE:.1f} %; these are several volumes."
        )
        yield refuse(FindingCode.MIXED_PIXEL_SPACINGS, sentence)


def mixed_sizes(facts: SeriesFacts) -> Iterator[Finding]:
    """Refuse planes of different numbers of rows or columns."""
    sizes = Counter((header.rows, header.columns) for header in facts.headers if header.rows and header.columns)
    if len(sizes) > 1:
        named = ", ".join(f"{rows} x {columns} ({count})" for (rows, columns), count in sorted(sizes.items()))
        sentence = f"the images have {len(sizes)} sizes in rows x columns (images): {named}; expected one."
        if len(sizes) > 3:
            sentence = f"the images have {len(sizes)} sizes in rows x columns, expected one."
        yield refuse(FindingCode.MIXED_SIZES, sentence)


def non_square_pixels(facts: SeriesFacts) -> Iterator[Finding]:
    """Note pixels that are not square; they are read as they are."""
    height_mm, width_mm = facts.slices[0].plane.pixel_spacing_mm or ()
    if abs(height_mm - width_mm) > SQUARE_TOLERANCE * max(height_mm, width_mm):
        sentence = f"pixels are {height_mm:.2f} mm high and {width_mm:.2f} mm wide; they are read as they are."
        yield note(FindingCode.NON_SQUARE_PIXELS, sentence)


def usual_orientation(cosines: Numbers) -> Numbers:
    """Return the direction cosines that most planes have, (6,), of those of all, (N, 6)."""
    _, kind, counts = np.unique(cosines.round(2), axis=0, return_inverse=True, return_counts=True)
    usual: Numbers = np.median(cosines[kind.reshape(-1) == counts.argmax()], axis=0)
    return usual
