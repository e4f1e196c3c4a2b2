"""Small NIfTI, NRRD and MetaImage files made byte by byte, so that any field can be wrong."""

import gzip
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np

VOXELS = np.random.default_rng(18).integers(-900, 900, (7, 6, 5)).astype(np.int16)
AFFINE_RAS = np.array([[-1.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]], np.float64)
"""Where the voxels lie in each of the three formats."""

CONTENT = VOXELS.tobytes(order="F")

NRRD_FIELDS = {
    "type": "short",
    "dimension": "3",
    "sizes": "7 6 5",
    "space": "left-posterior-superior",
    "space directions": "(1.5,0,0) (0,1.5,0) (0,0,2)",
    "space origin": "(-10,-20,30)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
}

METAIMAGE_FIELDS = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-10 -20 30",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "1.5 1.5 2",
    "DimSize": "7 6 5",
    "ElementType": "MET_SHORT",
}


def nifti_bytes(
    fields: Mapping[str, Any] | None = None, *, order: str = "<", is_second: bool = False, content: bytes | None = None
) -> bytes:
    """Return a NIfTI file; `fields` of its header are set after all others, unchecked."""
    header = (nib.Nifti2Header if is_second else nib.Nifti1Header)(endianness=order, check=False)
    header.set_data_shape(VOXELS.shape)
    header.set_data_dtype(np.int16)
    header.set_sform(AFFINE_RAS, 1)
    header.set_qform(AFFINE_RAS, 1)
    header.set_xyzt_units("mm")
    header["magic"] = b"n+2" if is_second else b"n+1"
    header["vox_offset"] = header.single_vox_offset
    for name, value in (fields or {}).items():
        header[name] = value
    start = bytearray(header.binaryblock)
    if is_second:
        start[4:12] = b"n+2\0\r\n\x1a\n"
    voxels = VOXELS.astype(f"{order}i2").tobytes(order="F") if content is None else content
    return bytes(start) + bytes(4) + voxels


def packed_nifti(fields: Mapping[str, Any] | None = None) -> bytes:
    """Return a NIfTI file, packed by gzip."""
    return gzip.compress(nifti_bytes(fields))


def nrrd_bytes(changes: Mapping[str, str | None] | None = None, content: bytes = CONTENT) -> bytes:
    """Return a NRRD file; a field that is None is left out."""
    fields = {name: value for name, value in {**NRRD_FIELDS, **(changes or {})}.items() if value is not None}
    lines = "".join(f"{name}: {value}\n" for name, value in fields.items())
    return f"NRRD0004\n{lines}\n".encode() + content


def metaimage_bytes(
    changes: Mapping[str, str | None] | None = None, content: bytes = CONTENT, data_file: str = "LOCAL"
) -> bytes:
    """Return a MetaImage file; a field that is None is left out."""
    fields = {name: value for name, value in {**METAIMAGE_FIELDS, **(changes or {})}.items() if value is not None}
    lines = "".join(f"{name} = {value}\n" for name, value in fields.items())
    return f"{lines}ElementDataFile = {data_file}\n".encode() + content
