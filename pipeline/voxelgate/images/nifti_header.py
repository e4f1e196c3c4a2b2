"""The header of a NIfTI file (nifti1.h, nifti2.h): fields checked by code of ours, geometry worked out by nibabel."""

from typing import Any, Literal

import nibabel as nib
import numpy as np

from voxelgate.core.findings import Finding, FindingCode, Severity
from voxelgate.core.geometry import AGREEMENT_TOLERANCE_MM, Affine, Grid, Shape, triple
from voxelgate.images.volume_bytes import GZIP_MAGIC, first_bytes
from voxelgate.images.volume_header import (
    FARTHEST_MM,
    NO_SIDES,
    HeaderError,
    Packing,
    Source,
    Stored,
    VolumeHeader,
    place_problem,
    sides_unknown,
    three_axes,
    voxel_sizes,
    without_ones,
)

MAGIC = {348: b"n+1\0", 540: b"n+2\0\r\n\x1a\n"}
"""What a file that holds its voxels says in `magic`, by the size of its header."""

PAIR_MAGIC = {348: b"ni1\0", 540: b"ni2\0\r\n\x1a\n"}
"""What the header of a pair says, whose voxels lie in a file `.img`."""

CLASSES: dict[int, Any] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}

EXTENSION_FLAG_BYTES = 4
"""What follows the header in every file (`nifti1_extender`); voxels come behind it."""

MOST_EXTENSION_BYTES = 2**26
"""Longest extension of a header that is passed over; those that hold whole DICOM headers have some MB."""

TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""Types of one number (nifti1.h, `NIFTI_TYPE_*`), by their code; complex numbers, colours and 128 bits are none."""

MOST_FORM_CODE = 5
"""Highest code of a space that sform and qform may lead to (nifti1.h, `NIFTI_XFORM_*`)."""

UNIT_BITS, UNITS = 7, {0: "unknown", 1: "metres", 2: "mm", 3: "microns"}
"""The part of `xyzt_units` for lengths, and its codes; that for times changes nothing of a volume."""

MILLIMETRE_UNITS = ("mm", "unknown")
"""Length units that are taken as mm; nearly every tool that leaves the field empty means mm."""

QUATERNION_TOLERANCE = 1e-6
"""How much longer than 1 b, c and d may be together, by rounding to float32."""

SIZE_TOLERANCE = 0.01
"""Largest relative difference of two voxel sizes that count as one, as for the gaps of slices in DICOM."""


def read_nifti_header(source: Source) -> VolumeHeader:
    """Read and check the header of a NIfTI file of either version; no extension is read.

    Raises:
        HeaderError: it is none, or says what cannot be used.
    """
    start, packing = first_bytes(source.file, max(MAGIC))
    length, order = _form_of(start)
    fields = np.frombuffer(start[:length], CLASSES[length].template_dtype.newbyteorder(order))[0]
    _refuse_other_units(int(fields["xyzt_units"]))
    shape, channels = _shape_of(fields["dim"])
    slope, inter = _scaling_of(float(fields["scl_slope"]), float(fields["scl_inter"]))
    affine_ras, sides_problem, found = _placed(start[:length], fields, shape)
    stored_type = _type_of_voxels(fields).newbyteorder(order)
    stored = Stored(source.path, 0, packing, _offset_of(float(fields["vox_offset"]), length))
    if (is_gzip := packing is Packing.GZIP) != source.path.name.lower().endswith(".gz"):
        sentence = f"is {'' if is_gzip else 'not '}packed by gzip, although its name says otherwise; read as it is"
        found = (*found, Finding(FindingCode.MISNAMED_FILE, Severity.NOTE, f"{sentence}."))
    return VolumeHeader(
        shape,
        stored_type,
        affine_ras,
        stored,
        sides_problem,
        slope,
        inter,
        found,
        start[:length],
        channels,
        triple(abs(float(size)) for size in fields["pixdim"][1:4]),
    )


def nifti_fields(header: bytes) -> Any:
    """Return the fields of a NIfTI header by their names, as nibabel gives them; nothing is mended."""
    length, order = _form_of(header)
    return CLASSES[length](header[:length], endianness=order, check=False)


def _form_of(start: bytes) -> tuple[int, Literal["<", ">"]]:
    """Return the length of a header and its order of bytes."""
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        length = int(np.frombuffer(start[:4].ljust(4, b"\0"), f"{order}i4")[0])
        if length not in MAGIC:
            continue
        if len(start) < length:
            raise HeaderError("the file ends too early, inside its header; copy or export it again.")
        magic = start[344:348] if length == min(MAGIC) else start[4:12]
        if magic == PAIR_MAGIC[length]:
            raise HeaderError("the header of a pair of files, whose voxels lie in another; save as one file (.nii).")
        if magic == MAGIC[length]:
            return length, order
    if start.startswith(GZIP_MAGIC):
        raise HeaderError("a file that is packed by gzip twice; unpack it once.")
    raise HeaderError("not a NIfTI file, although it is named like one; export it again.")


def _refuse_other_units(units: int) -> None:
    code = units & UNIT_BITS
    if code not in UNITS:
        raise HeaderError(f"a unit of length with the code {code}, which NIfTI does not define; set it to mm (2).")
    if UNITS[code] not in MILLIMETRE_UNITS:
        raise HeaderError(f"lengths in {UNITS[code]}, expected mm; convert the image to mm.")


def _shape_of(dim: Any) -> tuple[Shape, int]:
    """Return the extents of a volume, and how many of them the fourth axis holds."""
    axes = int(dim[0])
    if not 1 <= axes <= 7:
        raise HeaderError(f"{axes} axes, expected 3 (a NIfTI file has 1 to 7); export it again.")
    sizes = without_ones(tuple(int(n) for n in dim[1 : axes + 1]))
    if len(sizes) != 4 or sizes[3] < 1:
        return three_axes(sizes), 1
    return three_axes(sizes[:3]), sizes[3]


def _type_of_voxels(fields: Any) -> "np.dtype[Any]":
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in TYPES:
        raise HeaderError(f"voxels of the type with the code {code}, expected one number each; export as grey values.")
    dtype = np.dtype(TYPES[code])
    if bits not in {0, 8 * dtype.itemsize}:
        raise HeaderError(f"voxels of type {dtype.name}, but of {bits} bits each; export it again.")
    return dtype


def _offset_of(offset: float, header_bytes: int) -> int:
    least = header_bytes + EXTENSION_FLAG_BYTES
    if not least <= offset <= least + MOST_EXTENSION_BYTES or offset != int(offset):
        raise HeaderError(
            f"voxels that begin at byte {offset:.15g}, expected a whole number from {least}, where the header ends, to "
            f"{least + MOST_EXTENSION_BYTES}; export it again."
        )
    return int(offset)


def _scaling_of(slope: float, inter: float) -> tuple[float, float]:
    """Return factor and addend of the values; a slope of 0, or NaN as nibabel writes it, says that there are none."""
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite([slope, inter]).all():
        raise HeaderError(f"values to be scaled by {slope:g} and {inter:g}, expected finite numbers; export it again.")
    return slope, inter


def _placed(block: bytes, fields: Any, shape: Shape) -> tuple[Affine, str, tuple[Finding, ...]]:
    """Return the affine by sform, else by qform, else by pixdim alone; why sides are not known; what was found."""
    header = nifti_fields(block)
    for name in ("sform_code", "qform_code"):
        if not 0 <= (code := int(fields[name])) <= MOST_FORM_CODE:  # which some readers take for 0, and others not
            raise HeaderError(f"a {name} of {code}, which NIfTI does not define; export it again.")
    has_sform, has_qform = int(fields["sform_code"]) > 0, int(fields["qform_code"]) > 0
    if not has_sform:
        voxel_sizes(tuple(float(size) for size in fields["pixdim"][1:4]))
        if has_qform and (broken := _qform_problem(fields)):
            raise HeaderError(f"{broken}; export it again with its position.")
        return (_qform_of(header), "", ()) if has_qform else (header.get_base_affine(), NO_SIDES, (sides_unknown(),))
    sform = header.get_sform()
    if (unplaced := place_problem(shape, sform)) is not None:
        raise HeaderError(f"its sform is {unplaced}; export it again with its position.")
    if not has_qform:
        return sform, "", _sizes_apart(fields, sform)
    if problem := _qform_problem(fields) or place_problem(shape, _qform_of(header)):
        return sform, "", (_contradiction(f"{problem}; its sform was taken."),)
    return sform, *_forms_apart(sform, _qform_of(header), shape, fields)


def _qform_problem(fields: Any) -> str:
    """Say why a qform means nothing, or nothing if it does."""
    sizes = fields["pixdim"][1:4].astype(np.float64)
    quaternion = np.array([fields[f"quatern_{axis}"] for axis in "bcd"], np.float64)
    offset = np.array([fields[f"qoffset_{axis}"] for axis in "xyz"], np.float64)
    if not ((sizes > 0) & (sizes < FARTHEST_MM)).all():
        return f"a qform with voxel sizes of {' x '.join(f'{size:g}' for size in sizes)} mm"
    if not (np.isfinite(quaternion).all() and np.isfinite(offset).all()):
        return "a qform that is not finite"
    if np.linalg.norm(quaternion) > 1 + QUATERNION_TOLERANCE:
        return "a qform whose quaternion turns nothing, for it is longer than 1"
    if float(fields["pixdim"][0]) not in {-1.0, 0.0, 1.0}:
        return "a qform that leaves open which hand it is of (qfac is not 1 or -1)"
    return ""


def _qform_of(header: Any) -> Affine:
    """Return the qform without what nibabel refuses and the standard allows: a qfac of 0, and rounding."""
    fields = header.copy()
    fields["pixdim"][0] = fields["pixdim"][0] or 1
    quaternion = np.array([fields[f"quatern_{axis}"] for axis in "bcd"], np.float64)
    if (length := np.linalg.norm(quaternion)) > 1:
        for axis, value in zip("bcd", quaternion / (length + QUATERNION_TOLERANCE), strict=True):
            fields[f"quatern_{axis}"] = value
    affine: Affine = fields.get_qform()
    return affine


def _sizes_apart(fields: Any, sform: Affine) -> tuple[Finding, ...]:
    """Say if pixdim, from which some programs take voxel sizes, tells others than the sform."""
    sizes = fields["pixdim"][1:4].astype(np.float64)
    taken = np.linalg.norm(sform[:3, :3], axis=0)
    if np.allclose(sizes, taken, rtol=SIZE_TOLERANCE, atol=0):
        return ()
    told = [" x ".join(f"{size:.4g}" for size in some) for some in (sizes, taken)]
    return (_contradiction(f"its pixdim says voxels of {told[0]} mm, its sform of {told[1]} mm; the sform was taken."),)


def _forms_apart(sform: Affine, qform: Affine, shape: Shape, fields: Any) -> tuple[str, tuple[Finding, ...]]:
    """Say whether two affines contradict each other, and if so whether in what is left and right."""
    apart_mm = np.linalg.norm(Grid(shape, sform).corners_mm() - Grid(shape, qform).corners_mm(), axis=1).max()
    if apart_mm <= AGREEMENT_TOLERANCE_MM:
        return "", ()
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        problem = "its qform and its sform are mirror images of each other, so that left and right are not sure"
        return problem, (_contradiction(f"{problem}; the sform was taken, check the result against the image."),)
    right = [form[0, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform)]  # in index axes
    if right[0] @ right[1] < 0:
        problem = "what is right by its qform is left by its sform"
        return problem, (_contradiction(f"{problem}; the sform was taken, check the result against the image."),)
    sentence = f"its qform and its sform place the corners up to {apart_mm:.1f} mm apart; the sform was taken."
    are_spaces = int(fields["sform_code"]) != int(fields["qform_code"])  # such as of the scanner and of an atlas
    is_harmless = are_spaces and not _sizes_apart(fields, sform)
    return "", (_contradiction(sentence, Severity.NOTE if is_harmless else Severity.WARN),)


def _contradiction(sentence: str, severity: Severity = Severity.WARN) -> Finding:
    return Finding(FindingCode.CONTRADICTORY_GEOMETRY, severity, sentence)
