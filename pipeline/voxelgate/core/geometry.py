"""The geometry of a volume as a value: where its voxels lie in the patient, in mm."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]

Value = TypeVar("Value")

Shape = tuple[int, int, int]
"""Voxels along three axes."""

Box = tuple[slice, slice, slice]
"""A part of a volume, from the first voxel along each axis to the one behind the last."""

AGREEMENT_TOLERANCE_MM = 0.1
"""Largest distance between matching corners of two grids that count as one.

Below any clinical voxel, and above what headers lose: the float32 quaternion of a NIfTI qform can move the corner of a
500 mm volume by some hundredths of a millimetre.
"""

DEGENERATE_VOLUME_MM3 = 1e-9
"""Voxels smaller than this have no volume: a column of the affine is zero or depends on the others."""


LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
"""ITK's axes point to the left and the back of the patient, NIfTI's to the right and the front."""

AXES_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
"""Right and down in a picture are left and back of the patient, as in an axial slice of DICOM and ITK."""


def triple(values: Iterable[Value]) -> tuple[Value, Value, Value]:
    """Return what there is of three axes as a tuple of three, whatever holds it."""
    first, second, third = values
    return first, second, third


class Placed(Protocol):
    """Voxels that know where they lie, as MONAI's `MetaTensor`: the last three axes are spatial."""

    @property
    def shape(self) -> Any:
        """Return the extents, whole numbers."""

    @property
    def affine(self) -> Any:
        """Return index to RAS+ mm, (4, 4), or (1, 4, 4) of a batch of one; a tensor on any device."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and position of a volume; two grids are compared with `agrees`, never with `==`.

    Args:
        shape: voxels along the three index axes, all at least 1.
        affine: voxel index to RAS+ mm, (4, 4), finite and invertible; copied as float64.

    Raises:
        ValueError: the shape is not three positive numbers, or the affine is not an invertible one.

    >>> grid = vg.Grid((10, 20, 30), np.diag([0.5, 0.5, 2.0, 1.0]))
    >>> grid.spacing_mm
    (0.5, 0.5, 2.0)
    """

    shape: Shape
    affine: Affine

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a grid has three axes of at least one voxel, found {tuple(self.shape)}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise ValueError(f"an affine is a finite (4, 4) matrix with last row 0 0 0 1, found {affine.tolist()}")
        if abs(np.linalg.det(affine[:3, :3])) < DEGENERATE_VOLUME_MM3:
            raise ValueError(f"the affine gives its voxels no volume: {affine.tolist()}")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", affine)

    @classmethod
    def of(cls, image: Placed) -> Self:
        """Return where the voxels of an image lie, channels and a batch of one aside.

        Raises:
            ValueError: it has fewer than three axes, or an affine that is no invertible (4, 4) one.
        """
        affine = image.affine.numpy(force=True)
        return cls(tuple(image.shape[-3:]), affine[0] if affine.ndim == 3 else affine)

    def cropped(self, box: Box) -> "Grid":
        """Return the part of the grid in a box of its voxels, which may reach beyond it.

        >>> Grid((4, 4, 4), np.eye(4)).cropped((slice(1, 3), slice(0, 4), slice(2, 4))).affine[:3, 3].tolist()
        [1.0, 0.0, 2.0]
        """
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array([span.start for span in box], dtype=np.float64)
        return Grid(triple(span.stop - span.start for span in box), affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the distance between neighbouring voxel centres along each index axis."""
        return triple(map(float, np.linalg.norm(self.affine[:3, :3], axis=0)))

    @property
    def voxel_ml(self) -> float:
        """Return the volume of one voxel in millilitres; right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)

    def corners_mm(self) -> npt.NDArray[np.float64]:
        """Return the centres of the eight corner voxels, (8, 3) RAS+ mm."""
        corners = np.array(list(product(*((0, n - 1) for n in self.shape))), dtype=np.float64)
        return corners @ self.affine[:3, :3].T + self.affine[:3, 3]

    def difference(self, other: "Grid", tol_mm: float = AGREEMENT_TOLERANCE_MM) -> str | None:
        """Say in a few words how `other` differs from this grid, or return None if they agree.

        Args:
            other: the grid to compare with.
            tol_mm: largest distance between matching corner voxels.

        >>> Grid((2, 2, 2), np.eye(4)).difference(Grid((2, 2, 3), np.eye(4)))
        'shape (2, 2, 3) instead of (2, 2, 2)'
        """
        if self.shape != other.shape:
            return f"shape {other.shape} instead of {self.shape}"
        apart_mm = float(np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max())
        if apart_mm > tol_mm:
            return f"corners up to {apart_mm:.2f} mm apart"
        return None

    def agrees(self, other: "Grid", tol_mm: float = AGREEMENT_TOLERANCE_MM) -> bool:
        """Return whether both grids have one shape and corners no more than `tol_mm` apart."""
        return self.difference(other, tol_mm) is None


def counts_pixels(grid: Grid) -> bool:
    """Return whether a grid is that of a picture, whose sizes are told in pixels and not in mm and ml."""
    return grid.shape[2] == 1 and np.array_equal(grid.affine, AXES_RAS)
