"""Write a NIfTI file whose voxels come a few slices at a time, and read it back before it gets its name."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import igzip

from voxelgate.core.files import whole_file
from voxelgate.core.geometry import Grid
from voxelgate.images.volumes import gzip_writer, nifti_header, refuse_other_content

NO_EXTENSIONS = bytes(4)
"""What follows the header of a NIfTI file where there are none (nifti1.h, `nifti1_extender`)."""


def write_value_map(path: Path, values: npt.NDArray[np.float32], grid: Grid, *, like: Path | None) -> None:
    """Write a map of real numbers as float32.

    Args:
        path: of a new file, which ends in `.nii.gz`.
        values: (i, j, k) float32.
        grid: where they lie, RAS+ mm.
        like: an image on this grid, as for `write_blocks`.

    Raises:
        OSError: it cannot be written.
        OutputError: it reads back differently.
    """
    slices = (np.asarray(values[..., k], np.float32).tobytes(order="F") for k in range(grid.shape[2]))
    write_blocks(path, nifti_header(grid, like, np.float32), slices, grid)


def write_blocks(path: Path, header: Any, blocks: Iterable[bytes], grid: Grid) -> None:
    """Write a header of NIfTI and voxels in pieces.

    Args:
        path: of a new file, which ends in `.nii.gz`.
        header: from `nifti_header`, scaled if need be.
        blocks: the voxels as they are stored, in the order of the file.
        grid: where they lie.

    Raises:
        OSError: it cannot be written.
        OutputError: it reads back differently.
    """
    with whole_file(path, suffix=".nii.gz", overwrite=False) as partial:
        written = hashlib.sha256()
        with gzip_writer(partial) as stream:
            for block in _with_header(header, blocks):
                written.update(block)
                stream.write(block)

        def holds() -> bool:
            with igzip.open(partial, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").digest() == written.digest()

        refuse_other_content(partial, path.name, grid, holds, "values")


def _with_header(header: Any, blocks: Iterable[bytes]) -> Iterator[bytes]:
    header.set_data_offset(header.single_vox_offset)
    yield header.binaryblock
    yield NO_EXTENSIONS
    yield from blocks
