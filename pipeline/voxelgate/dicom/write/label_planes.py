"""A label map seen as the planes of a DICOM series: slices of rows of columns, placed in LPS mm."""

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelgate.core.geometry import AGREEMENT_TOLERANCE_MM, LPS_TO_RAS, Affine, Grid, triple
from voxelgate.dicom.write.sources import SourceImage, SourceSeries

Voxels = npt.NDArray[Any]

PARALLEL_TOLERANCE = 1e-6
"""Largest loss of the cosine between the normals of parallel planes: 0.08 degrees, 0.35 mm at the rim of 500 mm."""

PLANE_TOLERANCE = 0.25
"""Largest distance of coinciding planes, as part of the slice distance; `AGREEMENT_TOLERANCE_MM` limits it too."""


@dataclass(frozen=True, eq=False)
class LabelPlanes:
    """Labels as slices of rows of columns; made by `of`.

    Args:
        voxels: (slices, rows, columns), contiguous, so that a plane is one piece of memory.
        affine_lps: index (slice, row, column) to LPS mm, (4, 4).
    """

    voxels: Voxels
    affine_lps: Affine

    @classmethod
    def of(cls, labels: Voxels, grid: Grid, source: SourceSeries) -> "LabelPlanes":
        """Turn the axes of a grid so that they run like those of a series, as far as a signed permutation can.

        Args:
            labels: (i, j, k) on `grid`.
            grid: RAS+ mm; any signed permutation of the source's axes becomes the source's own planes, any other grid
                keeps its own planes.
            source: whose slices, rows and columns are followed.
        """
        row_direction, column_direction = np.array(source.orientation).reshape(2, 3)
        wanted = np.stack([np.cross(row_direction, column_direction), column_direction, row_direction])
        affine = LPS_TO_RAS @ grid.affine
        cosines = wanted @ (affine[:3, :3] / grid.spacing_mm)
        axes = max(permutations(range(3)), key=lambda axes: float(np.abs(cosines[range(3), axes]).sum()))
        signs = np.where(cosines[range(3), axes] < 0, -1, 1)
        turned = np.eye(4)
        turned[:3, :3] = affine[:3, axes] * signs
        last = [grid.shape[axis] - 1 if sign < 0 else 0 for axis, sign in zip(axes, signs, strict=True)]
        turned[:3, 3] = affine[:3, 3] + affine[:3, axes] @ last
        voxels = labels.transpose(axes)[tuple(slice(None, None, int(sign)) for sign in signs)]
        return cls(np.stack(list(voxels)), turned)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the distance between slices, rows and columns."""
        return triple(map(float, np.linalg.norm(self.affine_lps[:3, :3], axis=0)))

    def position_lps_mm(self, plane: int) -> tuple[float, float, float]:
        """Return the centre of the first voxel of a plane."""
        return triple(map(float, self.affine_lps[:3, 3] + plane * self.affine_lps[:3, 0]))

    def normal_lps(self) -> npt.NDArray[np.float64]:
        """Return the unit normal of the planes."""
        normal = np.cross(self.affine_lps[:3, 2], self.affine_lps[:3, 1])
        return np.asarray(normal / np.linalg.norm(normal))

    def coinciding(self, source: SourceSeries) -> dict[int, SourceImage]:
        """Return for each plane the source image that lies in it; planes between or beside the images are left out."""
        normal = self.normal_lps()
        source_normal = np.cross(source.orientation[:3], source.orientation[3:])
        if abs(normal @ source_normal) < (1 - PARALLEL_TOLERANCE) * np.linalg.norm(source_normal):
            return {}
        images = np.array([image.position_lps_mm for image in source.images]) @ normal
        planes = np.array([self.position_lps_mm(plane) for plane in range(len(self.voxels))]) @ normal
        apart = np.abs(planes[:, None] - images[None])
        step = abs(float(self.affine_lps[:3, 0] @ normal))
        tolerance_mm = min(AGREEMENT_TOLERANCE_MM, PLANE_TOLERANCE * step)
        nearest = apart.argmin(axis=1)
        return {
            plane: source.images[int(image)]
            for plane, image in enumerate(nearest)
            if apart[plane, image] <= tolerance_mm
        }
