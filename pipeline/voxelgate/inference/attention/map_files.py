"""Write gate maps as NIfTI on the grid of the image, a few slices in memory at a time."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from isal import igzip

from voxelgate.core.files import whole_file
from voxelgate.core.geometry import Grid
from voxelgate.images.volumes import gzip_writer, nifti_header, refuse_other_content
from voxelgate.inference.attention.maps import GateMap, on_grid, slabs

STEPS = 255
"""Steps between 0 and 1: uint8 with `scl_slope` 1/255, which viewers and libraries that follow NIfTI show as 0 to 1.

Interpolated float32 hardly packs: as bytes a map takes a tenth of the disk, and is off by 0.002 at most. NIfTI has no
float16.
"""

NO_EXTENSIONS = bytes(4)
"""What follows the header of a NIfTI file where there are none (nifti1.h, `nifti1_extender`)."""


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
        with gzip_writer(partial) as stream:
            for block in _byte_blocks(gate, grid, like):
                written.update(block)
                stream.write(block)

        def holds() -> bool:
            with igzip.open(partial, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").digest() == written.digest()

        refuse_other_content(partial, path.name, grid, holds, "values")


def _byte_blocks(gate: GateMap, grid: Grid, like: Path | None) -> Iterator[bytes]:
    header = nifti_header(grid, like, np.uint8)
    header.set_data_offset(header.single_vox_offset)
    header.set_slope_inter(1 / STEPS, 0)
    yield header.binaryblock
    yield NO_EXTENSIONS
    for span in slabs(grid):
        yield np.rint(STEPS * on_grid(gate, grid, span)).astype(np.uint8).tobytes(order="F")
