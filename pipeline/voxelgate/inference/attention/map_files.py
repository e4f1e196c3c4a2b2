"""Write gate maps as NIfTI on the grid of the image, a few slices in memory at a time."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.files import whole_file
from voxelgate.core.geometry import Grid
from voxelgate.images.volumes import GZIP_LEVEL, REWRITE_TOLERANCE_MM, is_nifti, read_grid
from voxelgate.inference.attention.maps import GateMap, on_grid, slabs

STEPS = 255
"""Steps between 0 and 1: uint8 with `scl_slope` 1/255, which viewers and libraries that follow NIfTI show as 0 to 1.

Interpolated float32 hardly packs: as bytes a map takes a tenth of the disk, and is off by 0.002 at most. NIfTI has no
float16.
"""

NO_EXTENSIONS = bytes(4)
"""What follows the header of a NIfTI file where there are none (nifti1.h, `nifti1_extender`)."""

ATTENTION_MAP = re.compile(r"\.attention-\d+\.nii\.gz$")
"""How the map of a gate is called."""


def write_attention_map(path: Path, gate: GateMap, grid: Grid, *, like: Path | None) -> None:
    """Write the map of a gate, and read it back.

    Args:
        path: of a new file, which ends in `.nii.gz`.
        gate: from `gate_maps`.
        grid: of the image, RAS+ mm.
        like: the image; if NIfTI, its sform, qform, their codes and units are kept, so that viewers lay one over the
            other whichever they follow. Nothing else is: free text may name the patient.

    Raises:
        OSError: it cannot be written.
        OutputError: it reads back differently.
    """
    with whole_file(path, suffix=".nii.gz", overwrite=False) as partial:
        written = hashlib.sha256()
        with (
            partial.open("xb") as file,
            igzip.IGzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as stream,
        ):
            for block in _byte_blocks(gate, grid, like):
                written.update(block)
                stream.write(block)
        _compare_map(partial, path.name, grid, written.digest())


def _byte_blocks(gate: GateMap, grid: Grid, like: Path | None) -> Iterator[bytes]:
    yield _map_header(grid, like).binaryblock
    yield NO_EXTENSIONS
    for span in slabs(grid):
        yield np.rint(STEPS * on_grid(gate, grid, span)).astype(np.uint8).tobytes(order="F")


def _map_header(grid: Grid, like: Path | None) -> Any:  # nibabel ships no stubs
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(grid.shape)
    header.set_data_offset(header.single_vox_offset)
    header.set_slope_inter(1 / STEPS, 0)
    if like is None or not is_nifti(like):
        header.set_xyzt_units("mm")
        header.set_sform(grid.affine, 1)
        header.set_qform(grid.affine, 1)
        if np.abs(header.get_qform() - grid.affine).max() > REWRITE_TOLERANCE_MM:  # no quaternion tells of a shear
            header["qform_code"] = 0
        return header
    image = nib.load(like).header
    header.set_zooms(image.get_zooms()[:3])
    header.set_xyzt_units(*image.get_xyzt_units())
    header.set_sform(*image.get_sform(coded=True))
    header.set_qform(*image.get_qform(coded=True))
    return header


def _compare_map(written: Path, name: str, grid: Grid, sha256: bytes) -> None:
    try:
        difference = grid.difference(read_grid(written), REWRITE_TOLERANCE_MM)
    except InputError as error:
        raise OutputError(f"{name}: cannot be read back after writing ({error}); check the disk.") from error
    if difference is not None:
        raise OutputError(f"{name}: reads back with another grid: {difference}.")
    with igzip.open(written, "rb") as stream:
        if hashlib.file_digest(stream, "sha256").digest() != sha256:
            raise OutputError(f"{name}: reads back with other values; check the disk.")


def is_attention_map(path: Path) -> bool:
    """Return whether a file is called like the map of a gate, which lies among label maps and is none."""
    return ATTENTION_MAP.search(path.name) is not None
