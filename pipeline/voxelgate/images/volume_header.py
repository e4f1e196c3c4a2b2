"""What the header of a volume file says, checked by code of ours before any library sees it."""

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from voxelgate.core.findings import Finding, FindingCode, Severity
from voxelgate.core.geometry import Affine, Grid, Shape
from voxelgate.images.file_facts import Sizes

MOST_HEADER_BYTES = 4 * 2**20
"""Longest text header that is read; those of segmentations with hundreds of structures have some 100 KB."""

MOST_AXES = 16
"""Most axes that any of the formats has (NRRD_DIM_MAX of Teem)."""

VALUE_TYPES = "iuf"
"""Kinds of NumPy types that count as one number each."""

FARTHEST_MM = 1e7
"""Largest number of an affine; no scanner is 10 km long, and squares of much larger ones are infinite."""

NO_SIDES = "the header does not say where left and right are"


class HeaderError(Exception):
    """A header cannot be used: what was found and what to do, without the file's name and its own texts."""


class Source(NamedTuple):
    """A volume file that is open.

    Args:
        path: of the file.
        file: at its start.
        size: in bytes.
        may_name_others: whether its voxels may lie in a file beside it.
    """

    path: Path
    file: BinaryIO
    size: int
    may_name_others: bool


class Packing(StrEnum):
    """How the voxels are stored."""

    NONE = "none"
    GZIP = "gzip"
    ZLIB = "zlib"
    TEXT = "text"


class Stored(NamedTuple):
    """Where the voxels lie.

    Args:
        path: of the file.
        starts_at: first byte in the file of the stream that holds them.
        packing: of that stream.
        skip: bytes of the unpacked stream before the first voxel; -1 if it ends with the last one.
    """

    path: Path
    starts_at: int
    packing: Packing
    skip: int = 0


@dataclass(frozen=True)
class VolumeHeader:
    """What a volume file says about its voxels.

    Args:
        shape: voxels along three axes; axes of length one beyond them are dropped.
        stored_type: of a voxel, with its order of bytes.
        affine_ras: index to RAS+ mm, (4, 4), finite, with a volume.
        stored: where the voxels lie.
        sides_problem: why it is not known where left and right are; empty if it is.
        slope: factor of each value.
        inter: added to each value then.
        findings: each thing worth knowing.
        nifti: the header itself, if it is one of NIfTI.
        channels: volumes of this shape, one after the other: a fourth axis of NIfTI.
        spacing_mm: voxel sizes beside the affine, as it states them; None if the affine alone tells them.

    Raises:
        HeaderError: shape or affine place no volume.
    """

    shape: Shape
    stored_type: "np.dtype[Any]"
    affine_ras: Affine
    stored: Stored
    sides_problem: str = ""
    slope: float = 1.0
    inter: float = 0.0
    findings: tuple[Finding, ...] = ()
    nifti: bytes = b""
    channels: int = 1
    spacing_mm: Sizes | None = None

    def __post_init__(self) -> None:
        if (problem := place_problem(self.shape, self.affine_ras)) is not None:
            raise HeaderError(f"{problem}; export it again with its position.")

    @property
    def grid(self) -> Grid:
        """Return where its voxels lie."""
        return Grid(self.shape, self.affine_ras)

    @property
    def is_oriented(self) -> bool:
        """Return whether it says where left and right are."""
        return not self.sides_problem

    @property
    def is_scaled(self) -> bool:
        """Return whether the values are not those that are stored."""
        return (self.slope, self.inter) != (1.0, 0.0)

    @property
    def voxel_type(self) -> "np.dtype[Any]":
        """Return the type of the voxels that are read of it."""
        return np.dtype(np.float64) if self.is_scaled else self.stored_type.newbyteorder("=")

    @property
    def vox_bytes(self) -> int:
        """Return the bytes of all voxels as they are stored, unpacked."""
        return math.prod(self.shape) * self.channels * self.stored_type.itemsize


def place_problem(shape: Shape, affine_ras: Affine) -> str | None:
    """Say why an affine gives voxels no place or no volume, or return None."""
    if not np.isfinite(affine_ras).all() or np.abs(affine_ras).max() > FARTHEST_MM:
        return "an affine whose numbers are not finite, or beyond any size"
    try:
        Grid(shape, affine_ras)
    except ValueError:
        return "an affine that gives its voxels no volume"
    return None


def position_unknown() -> Finding:
    """Return what to say of a header that does not say where its image lies."""
    sentence = "the header does not say where the image lies; its first voxel was put at 0, 0, 0 mm."
    return Finding(FindingCode.NO_POSITION, Severity.NOTE, sentence)


def sides_unknown() -> Finding:
    """Return what to say of a header that leaves left and right open."""
    sentence = f"{NO_SIDES}; the default of its format was assumed, check the result against the image."
    return Finding(FindingCode.NO_ORIENTATION, Severity.WARN, sentence)


def three_axes(sizes: tuple[int, ...]) -> Shape:
    """Return the extents of a volume; axes of length one beyond the third are dropped.

    Raises:
        HeaderError: there are not three, or one has no voxel.
    """
    kept = without_ones(sizes)
    if len(kept) != 3:
        raise other_axes(kept)
    if min(kept) < 1:
        raise HeaderError(f"axes of {'x'.join(map(str, kept))} voxels, expected at least one voxel along each.")
    return kept[0], kept[1], kept[2]


def without_ones(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return extents without those of one beyond the third, up to the last that is longer."""
    kept = sizes
    while len(kept) > 3 and kept[-1] == 1:
        kept = kept[:-1]
    return kept


def other_axes(kept: tuple[int, ...]) -> HeaderError:
    """Return the refusal of extents that are not those of one volume."""
    extent = "x".join(map(str, kept))
    return HeaderError(f"{len(kept)} axes ({extent}), expected one volume of 3; export one volume alone.")


def whole_numbers(text: str, what: str) -> tuple[int, ...]:
    """Return the whole numbers of a field, separated by blanks.

    Raises:
        HeaderError: it holds anything else, or more than a header can.
    """
    tokens = text.split()
    if not tokens or len(tokens) > MOST_AXES or not all(_is_whole(token) for token in tokens):
        raise HeaderError(f"{what} of other than whole numbers; export it again.")
    return tuple(map(int, tokens))


def real_numbers(text: str, what: str, count: int) -> tuple[float, ...]:
    """Return the numbers of a field, separated by blanks.

    Raises:
        HeaderError: there are more or fewer, or one is none, NaN or infinite.
    """
    try:
        found = tuple(float(token) for token in text.split() if "_" not in token)
    except ValueError:
        found = ()
    if len(found) != count or not all(map(math.isfinite, found)):
        raise HeaderError(f"{what} of other than {count} finite numbers; export it again.")
    return found


def voxel_sizes(sizes: tuple[float, ...]) -> tuple[float, ...]:
    """Return voxel sizes.

    Raises:
        HeaderError: one of them is not above 0.
    """
    if not all(0 < size < FARTHEST_MM for size in sizes):
        found = " x ".join(f"{size:g}" for size in sizes)
        raise HeaderError(f"voxel sizes of {found} mm, expected numbers above 0; export it again with its voxel sizes.")
    return sizes


def _is_whole(token: str) -> bool:
    digits = token.removeprefix("-").removeprefix("+")
    return digits.isascii() and digits.isdecimal() and len(digits) < 19
