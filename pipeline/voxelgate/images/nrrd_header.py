"""The header of a NRRD file (teem.sourceforge.net/nrrd/format.html), read by code of ours and no library."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from voxelgate.core.geometry import Affine, Shape
from voxelgate.images.volume_bytes import beside
from voxelgate.images.volume_header import (
    MOST_AXES,
    MOST_HEADER_BYTES,
    NO_SIDES,
    HeaderError,
    Packing,
    Source,
    Stored,
    VolumeHeader,
    position_unknown,
    real_numbers,
    sides_unknown,
    three_axes,
    voxel_sizes,
    whole_numbers,
)

MAGIC_LINE = re.compile(rb"NRRD000[1-5]\r?\n")

END_OF_HEADER = re.compile(rb"\r?\n\r?\n")

FIELDS = (
    "axismaxs axismins blocksize byteskip centerings centers content datafile dimension encoding endian kinds labels "
    "lineskip max measurementframe min number oldmax oldmin sampleunits sizes space spacedimension spacedirections "
    "spaceorigin spaceunits spacings thicknesses type units"
)
"""Every field that the format knows, without blanks."""

TYPES_OF_NRRD = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(
        ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"), "i8"
    ),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}

PACKINGS = {
    "raw": Packing.NONE,
    **dict.fromkeys(("gzip", "gz"), Packing.GZIP),
    **dict.fromkeys(("txt", "text", "ascii"), Packing.TEXT),
}

SPACES = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
}
"""Spaces that name the sides of a patient, and the signs that lead from them to RAS; with `-time` or a `t` as well."""

MM = frozenset({"", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "???", "unknown"})
"""Units of length that are taken as mm, as for NIfTI."""

KINDS_OF_AXES = re.compile(
    r"domain|space|time|list|point|(covariant-)?vector|normal|stub|scalar|complex|[234]-(vector|color|gradient|normal)"
    r"|(rgb|hsv|xyz|rgba)-color|quaternion|[23]d-(masked-)?(symmetric-)?matrix|\?\?\?|none"
)
"""What an axis may be."""

SPATIAL_KINDS = frozenset({"domain", "space", "none", "???"})
"""Axes along which a volume may lie; others hold several values of each voxel, or several volumes."""

QUOTED = re.compile(r'"([^"]*)"')

VECTOR = re.compile(r"\s*(none|\([^()]*\))")


class _Axes(NamedTuple):
    """Along which axes of the file the volume lies.

    Args:
        shape: voxels along three axes.
        steps_mm: from voxel to voxel along each, (3, 3), in the space of the header.
    """

    shape: Shape
    steps_mm: Affine


def read_nrrd_header(source: Source) -> VolumeHeader:
    """Read and check the header of a NRRD file.

    Its voxels may lie in another file beside it, which is not opened.

    Raises:
        HeaderError: it is none, or says what cannot be used.
    """
    start = source.file.read(min(source.size, MOST_HEADER_BYTES))
    if MAGIC_LINE.match(start) is None:
        raise HeaderError("not a NRRD file, although it is named like one; export it again.")
    end = END_OF_HEADER.search(start)
    if end is None and len(start) < source.size:
        raise HeaderError(f"a header of more than {MOST_HEADER_BYTES} bytes; export it again without its texts.")
    fields = _fields_of(start[: end.start() if end else len(start)])
    _refuse_units(fields)
    signs, sides_problem = _space_of(fields)
    axes = _axes_of(fields)
    affine = np.eye(4)
    affine[:3, :3] = axes.steps_mm
    if "spaceorigin" in fields:
        affine[:3, 3] = _origin_of(fields["spaceorigin"])
    stored_type = _type_of_nrrd(fields)
    found = (sides_unknown(),) if sides_problem else () if "spaceorigin" in fields else (position_unknown(),)
    stored = _stored_of(source, fields, end.end() if end else source.size)
    return VolumeHeader(axes.shape, stored_type, np.diag((*signs, 1.0)) @ affine, stored, sides_problem, findings=found)


def _fields_of(header: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in header.decode("utf-8", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if line.startswith("#") or not line.strip() or value.startswith("="):  # a remark, or a text of the writer
            continue
        field = re.sub(r"\s", "", name).lower()
        if not colon or field not in FIELDS.split():
            raise HeaderError("a line of the header that NRRD does not define; export it again.")
        if field in fields:
            raise HeaderError(f"the field '{field}' twice; export it again.")
        fields[field] = value.strip()
        if field == "datafile" and fields[field].startswith("LIST"):  # what follows are names of files
            break
    return fields


def _needed(fields: Mapping[str, str], name: str) -> str:
    if name not in fields:
        raise HeaderError(f"a header without the field '{name}'; export it again.")
    return fields[name]


def _refuse_units(fields: Mapping[str, str]) -> None:
    for name in ("spaceunits", "units"):
        text = fields.get(name, "")
        if QUOTED.sub("", text).strip():
            raise HeaderError("units of lengths that cannot be read, expected each in quotes; export it again.")
        units = [unit.strip().lower() for unit in QUOTED.findall(text)]
        if not MM.issuperset(units[:3]):
            raise HeaderError("lengths in another unit than mm; convert the image to mm.")


def _space_of(fields: Mapping[str, str]) -> tuple[tuple[float, float, float], str]:
    """Return the signs that lead to RAS, those of LPS where no side is named, and why the sides are not known."""
    name = fields.get("space", "").lower()
    named = name.removesuffix("-time") if "-" in name else name.removesuffix("t")
    has_sides = named in SPACES and "spacedirections" in fields
    return (SPACES[named], "") if has_sides else (SPACES["lps"], NO_SIDES)


def _axes_of(fields: Mapping[str, str]) -> _Axes:
    sizes = whole_numbers(_needed(fields, "sizes"), "sizes")
    (dimension,) = whole_numbers(_needed(fields, "dimension"), "a dimension")[:1]
    if dimension != len(sizes) or dimension > MOST_AXES:
        raise HeaderError(f"{dimension} axes, but the sizes of {len(sizes)}; export it again.")
    kinds = fields.get("kinds", " ".join(["none"] * len(sizes))).lower().split()
    if len(kinds) != len(sizes) or not all(KINDS_OF_AXES.fullmatch(kind) for kind in kinds):
        raise HeaderError("kinds of axes that NRRD does not define; export it again.")
    _refuse_values([size for size, kind in zip(sizes, kinds, strict=True) if kind not in SPATIAL_KINDS])
    if "spacedirections" in fields:
        if "spacings" in fields:
            raise HeaderError("voxel sizes twice, as directions and as spacings; export it again.")
        return _axes_with_directions(sizes, _vectors(fields["spacedirections"], "space directions"))
    if "spacings" not in fields:
        raise HeaderError("no voxel sizes (space directions or spacings); export it again with them.")
    return _axes_with_spacings(sizes, fields["spacings"].split())


def _axes_with_directions(sizes: Sequence[int], vectors: Sequence[tuple[float, ...]]) -> _Axes:
    if len(vectors) != len(sizes):
        raise HeaderError(f"{len(vectors)} space directions for {len(sizes)} axes; export it again.")
    _refuse_values([size for size, vector in zip(sizes, vectors, strict=True) if not vector])
    spatial = [(size, vector) for size, vector in zip(sizes, vectors, strict=True) if vector]
    shape = three_axes(tuple(size for size, _ in spatial))
    steps = np.array([vector[:3] for _, vector in spatial[:3]], np.float64)
    if steps.shape != (3, 3):
        raise HeaderError("space directions that are not of three numbers; export it again.")
    voxel_sizes(tuple(np.linalg.norm(steps, axis=1).tolist()))
    return _Axes(shape, steps.T)


def _refuse_values(sizes: Sequence[int]) -> None:
    if (count := int(np.prod(sizes, dtype=object))) != 1:
        raise HeaderError(f"{count} values in each voxel, expected one; export one channel alone.")


def _axes_with_spacings(sizes: tuple[int, ...], spacings: Sequence[str]) -> _Axes:
    shape = three_axes(sizes)
    if len(spacings) != len(sizes):
        raise HeaderError(f"{len(spacings)} spacings for {len(sizes)} axes; export it again.")
    return _Axes(shape, np.diag(voxel_sizes(real_numbers(" ".join(spacings[:3]), "spacings", 3))))


def _origin_of(text: str) -> tuple[float, ...]:
    (origin, *others) = _vectors(text, "an origin")
    if others or not origin:
        raise HeaderError("an origin that cannot be read; export it again.")
    return origin[:3]


def _vectors(text: str, what: str) -> list[tuple[float, ...]]:
    """Return vectors of three or four finite numbers; `none` is an empty one."""
    if VECTOR.sub("", text).strip():
        raise HeaderError(f"{what} that cannot be read; export it again.")
    found = [vector.strip("()") for vector in VECTOR.findall(text)]
    if not found:
        raise HeaderError(f"{what} that cannot be read; export it again.")
    return [() if one == "none" else real_numbers(one.replace(",", " "), what, _vector_length(one)) for one in found]


def _vector_length(vector: str) -> int:
    return 4 if vector.count(",") == 3 else 3


def _type_of_nrrd(fields: Mapping[str, str]) -> "np.dtype[Any]":
    name = " ".join(_needed(fields, "type").lower().split())
    if name not in TYPES_OF_NRRD:
        raise HeaderError("voxels of a type that is no number; export as grey values.")
    dtype = np.dtype(TYPES_OF_NRRD[name])
    if dtype.itemsize == 1 or PACKINGS.get(fields.get("encoding", "").lower()) is Packing.TEXT:
        return dtype
    order = {"little": "<", "big": ">"}.get(_needed(fields, "endian").lower())
    if order is None:
        raise HeaderError("an order of bytes (endian) that is neither little nor big; export it again.")
    return np.dtype(f"{order}{TYPES_OF_NRRD[name]}")


def _stored_of(source: Source, fields: Mapping[str, str], starts_at: int) -> Stored:
    packing = PACKINGS.get(_needed(fields, "encoding").lower())
    if packing is None:
        raise HeaderError("an encoding other than raw, gzip and ascii; save it with one of these.")
    (lines,) = whole_numbers(fields.get("lineskip", "0"), "a line skip")[:1]
    (skip,) = whole_numbers(fields.get("byteskip", "0"), "a byte skip")[:1]
    if lines or skip < -1 or skip > MOST_HEADER_BYTES or (skip and packing is Packing.TEXT):
        raise HeaderError("bytes or lines to be passed over before the voxels; save it without line and byte skip.")
    if skip == -1 and packing is Packing.GZIP:
        raise HeaderError("voxels at the end of a compressed stream (byte skip -1); save it without byte skip.")
    if "datafile" not in fields:
        return Stored(source.path, starts_at, packing, skip)
    return Stored(beside(source, fields["datafile"]), 0, packing, skip)
