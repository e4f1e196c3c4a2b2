"""The header of a MetaImage file (itk.org/Wiki/MetaIO/Documentation), read by code of ours and no library."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from voxelgate.core.findings import Finding, FindingCode, Severity
from voxelgate.core.geometry import LPS_TO_RAS, Affine, triple
from voxelgate.images.volume_bytes import beside, too_short
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

DATA_FIELD = re.compile(rb"(?:^|\n)[ \t]*ElementDataFile[ \t]*=([^\n]*)(?:\n|$)")
"""The last line of a header; what follows are voxels."""

LOCAL = "LOCAL"

TYPES_OF_METAIMAGE = {
    "MET_CHAR": "i1", "MET_ASCII_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
    "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""Types of one number; long is of 4 bytes on every machine (MetaIO, `MET_ValueTypeSize`)."""

DIRECTIONS = ("TransformMatrix", "Orientation", "Rotation")
ORIGINS = ("Offset", "Position", "Origin")
BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
"""Names that MetaIO gives to one thing."""

AXIS_LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "I": (2, 1), "S": (2, -1)}
"""Of `AnatomicalOrientation`: from which side an axis comes, as the axis of LPS that it runs along, and its sign."""

UNIT_TOLERANCE = 0.01
"""How much longer or shorter than 1 a direction may be; rounded to two digits they are within 1 %."""

MM_OF_METAIMAGE = frozenset({"mm", "?", "", "unknown"})


def read_metaimage_header(source: Source) -> VolumeHeader:
    """Read and check the header of a MetaImage file.

    Its voxels may lie in another file beside it, which is not opened.

    Raises:
        HeaderError: it is none, or says what cannot be used.
    """
    start = source.file.read(min(source.size, MOST_HEADER_BYTES))
    data = DATA_FIELD.search(start)
    if data is None:
        more = f"within its first {MOST_HEADER_BYTES} bytes" if len(start) < source.size else "in it"
        raise HeaderError(f"not a MetaImage file, for no line ElementDataFile is {more}; export it again.")
    fields = _fields_of_metaimage(start[: data.start()])
    _refuse_other_objects(fields)
    axes = _axes_count(fields)
    shape = three_axes(_sizes_of(fields, axes))
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = _steps_of(fields, axes)
    if (origin := _one_of(fields, ORIGINS)) is not None:
        affine_lps[:3, 3] = real_numbers(origin, "an origin (Offset)", axes)[:3]
    stored = _stored_at(source, fields, data[1].decode("utf-8", "replace").strip(), data.end())
    stored_type = _type_of_metaimage(fields)
    sides_problem = _sides_problem(fields)
    found = (sides_unknown(),) if sides_problem else _letter_findings(fields, affine_lps)
    if origin is None and not sides_problem:
        found = (*found, position_unknown())
    return VolumeHeader(
        shape,
        stored_type,
        LPS_TO_RAS @ affine_lps,
        stored,
        sides_problem,
        findings=found,
        spacing_mm=triple(_sizes_of_voxels(fields, axes)),
    )


def _fields_of_metaimage(header: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in header.decode("utf-8", "replace").splitlines():
        name, equals, value = line.partition("=")
        if not line.strip():
            continue
        if not equals:
            raise HeaderError("a line of the header that is no 'Field = value'; export it again.")
        if name.strip() in fields:
            raise HeaderError("a field of the header twice; export it again.")
        fields[name.strip()] = value.strip()
    return fields


def _one_of(fields: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """Return what a thing with several names is said to be."""
    found = {fields[name] for name in names if name in fields}
    if len(found) > 1:
        raise HeaderError(f"{names[0]} under two names and in two forms, expected it once; export it again.")
    return next(iter(found), None)


def _required(fields: Mapping[str, str], name: str) -> str:
    if name not in fields:
        raise HeaderError(f"a header without the field {name}; export it again.")
    return fields[name]


def _is_true(fields: Mapping[str, str], name: str, *, default: bool) -> bool:
    value = fields.get(name, str(default)).lower()
    if value not in {"true", "false", "t", "f", "1", "0"}:
        raise HeaderError(f"{name} that is neither True nor False; export it again.")
    return value in {"true", "t", "1"}


def _refuse_other_objects(fields: Mapping[str, str]) -> None:
    if fields.get("ObjectType", "Image") != "Image":
        raise HeaderError("a MetaIO object that is no image; export the image.")
    channels = whole_numbers(fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels")
    if channels != (1,):
        raise HeaderError(f"{channels[0]} values in each voxel, expected one; export one channel alone.")
    if fields.get("DistanceUnits", "mm").lower() not in MM_OF_METAIMAGE:
        raise HeaderError("lengths in another unit than mm; convert the image to mm.")
    slope = real_numbers(fields.get("ElementToIntensityFunctionSlope", "1"), "ElementToIntensityFunctionSlope", 1)
    inter = real_numbers(fields.get("ElementToIntensityFunctionOffset", "0"), "ElementToIntensityFunctionOffset", 1)
    if (slope, inter) != ((1.0,), (0.0,)):
        raise HeaderError("values to be scaled (ElementToIntensityFunction), which few programs do; save them scaled.")


def _axes_count(fields: Mapping[str, str]) -> int:
    (count, *others) = whole_numbers(_required(fields, "NDims"), "NDims")
    if others or not 1 <= count <= MOST_AXES:
        raise HeaderError(f"{count} axes (NDims), expected 3; export it again.")
    return count


def _sizes_of(fields: Mapping[str, str], axes: int) -> tuple[int, ...]:
    sizes = whole_numbers(_required(fields, "DimSize"), "DimSize")
    if len(sizes) != axes:
        raise HeaderError(f"{axes} axes (NDims), but the sizes of {len(sizes)} (DimSize); export it again.")
    return sizes


def _sizes_of_voxels(fields: Mapping[str, str], axes: int) -> tuple[float, ...]:
    spacing = fields.get("ElementSpacing", fields.get("ElementSize"))
    if spacing is None:
        raise HeaderError("no voxel sizes (ElementSpacing); export it again with them.")
    return voxel_sizes(real_numbers(spacing, "voxel sizes (ElementSpacing)", axes))[:3]


def _steps_of(fields: Mapping[str, str], axes: int) -> Affine:
    """Return the step from voxel to voxel along each axis, as columns, LPS mm."""
    sizes = _sizes_of_voxels(fields, axes)
    matrix = _one_of(fields, DIRECTIONS)
    if matrix is None:
        return np.diag(sizes)
    rows = np.array(real_numbers(matrix, "a TransformMatrix", axes * axes)).reshape(axes, axes)[:3, :3]
    if np.abs(np.linalg.norm(rows, axis=1) - 1).max() > UNIT_TOLERANCE:
        raise HeaderError("directions (TransformMatrix) whose length is not 1; export it again.")
    steps: Affine = (rows * np.array(sizes)[:, None]).T
    return steps


def _sides_problem(fields: Mapping[str, str]) -> str:
    """Say why it is not known where left and right are.

    Raises:
        HeaderError: letters name other axes than those that readers take where there is no matrix.
    """
    letters = _letters_of(fields)
    if _one_of(fields, DIRECTIONS) is not None:
        return ""
    if letters and _letters_disagree(fields, np.eye(4)):
        raise HeaderError(
            "AnatomicalOrientation without a TransformMatrix, which programs read in two ways; export it again."
        )
    return "" if letters else NO_SIDES


def _letters_of(fields: Mapping[str, str]) -> str:
    """Return the three letters of the axes, or nothing where they tell nothing."""
    letters = fields.get("AnatomicalOrientation", "").upper()
    is_told = len(letters) == 3 and {AXIS_LETTERS[letter][0] for letter in letters if letter in AXIS_LETTERS} == {
        0,
        1,
        2,
    }
    return letters if is_told else ""


def _letter_findings(fields: Mapping[str, str], affine_lps: Affine) -> tuple[Finding, ...]:
    if not _letters_disagree(fields, affine_lps):
        return ()
    sentence = "its AnatomicalOrientation contradicts its TransformMatrix, which was taken; check the result."
    return (Finding(FindingCode.CONTRADICTORY_GEOMETRY, Severity.WARN, sentence),)


def _letters_disagree(fields: Mapping[str, str], affine_lps: Affine) -> bool:
    """Return whether an axis runs the other way than its letter says, or at a right angle to it."""
    told = [AXIS_LETTERS[letter] for letter in _letters_of(fields)]
    return any(affine_lps[along, axis] * sign <= 0 for axis, (along, sign) in enumerate(told))


def _type_of_metaimage(fields: Mapping[str, str]) -> "np.dtype[Any]":
    name = _required(fields, "ElementType").removesuffix("_ARRAY")
    if name not in TYPES_OF_METAIMAGE:
        raise HeaderError("voxels of a type that is no number; export as grey values.")
    order = _one_of(fields, BYTE_ORDERS)
    is_big = order is not None and _is_true({"its order of bytes": order}, "its order of bytes", default=False)
    return np.dtype(TYPES_OF_METAIMAGE[name]).newbyteorder(">" if is_big else "<")


def _stored_at(source: Source, fields: Mapping[str, str], name: str, starts_at: int) -> Stored:
    """Return where the voxels lie.

    Args:
        source: the file with the header.
        fields: of the header.
        name: of the file with the voxels.
        starts_at: byte behind the header.
    """
    is_packed = _is_true(fields, "CompressedData", default=False)
    is_binary = _is_true(fields, "BinaryData", default=True)
    packing = Packing.ZLIB if is_packed else Packing.NONE if is_binary else Packing.TEXT
    is_local = name.upper() == LOCAL
    (skip, *_) = whole_numbers(fields.get("HeaderSize", "0"), "HeaderSize")
    if not -1 <= skip <= MOST_HEADER_BYTES or (skip and packing is not Packing.NONE) or (skip > 0 and is_local):
        raise HeaderError("bytes to be passed over before the voxels; save it without HeaderSize.")
    if not is_local:
        return Stored(beside(source, name), 0, packing, skip)
    (packed, *_) = whole_numbers(fields.get("CompressedDataSize", "0"), "CompressedDataSize")
    if is_packed and packed > source.size - starts_at:
        raise too_short(packed, source.size - starts_at)
    return Stored(source.path, starts_at, packing, skip)
