"""Write gate maps as NIfTI on the grid of the image, a few slices in memory at a time."""

from pathlib import Path

import numpy as np

from voxelgate.core.geometry import Grid
from voxelgate.images.value_maps import write_blocks
from voxelgate.images.volumes import nifti_header
from voxelgate.inference.attention.maps import GateMap, on_grid, slabs

STEPS = 255
"""Steps between 0 and 1: uint8 with `scl_slope` 1/255, which viewers and libraries that follow NIfTI show as 0 to 1.

Interpolated float32 hardly packs: as bytes a map takes a tenth of the disk, and is off by 0.002 at most. NIfTI has no
float16.
"""


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
    header = nifti_header(grid, like, np.uint8)
    header.set_slope_inter(1 / STEPS, 0)
    blocks = (np.rint(STEPS * on_grid(gate, grid, span)).astype(np.uint8).tobytes(order="F") for span in slabs(grid))
    write_blocks(path, header, blocks, grid)
