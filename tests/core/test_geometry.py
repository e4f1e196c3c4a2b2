"""Grids as values: made of what knows where it lies, and cropped."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from voxelgate.core.geometry import Grid

AFFINE = np.array([[0.0, -2.0, 0.0, 10.0], [1.0, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 30.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.mark.parametrize("axes", [(), (1,), (1, 2)], ids=["voxels", "channels", "batch"])
@pytest.mark.parametrize("is_collated", [False, True])
def test_an_image_lies_where_its_affine_says_whatever_axes_stand_before_space(
    axes: tuple[int, ...], *, is_collated: bool
) -> None:
    affine = torch.from_numpy(AFFINE)
    image = MetaTensor(torch.zeros(*axes, 4, 5, 6), affine=affine[None] if is_collated else affine)
    assert Grid.of(image).agrees(Grid((4, 5, 6), AFFINE), tol_mm=0)


def test_the_corner_of_a_cropped_grid_lies_where_its_voxel_lay() -> None:
    whole = Grid((4, 5, 6), AFFINE)
    part = whole.cropped((slice(1, 3), slice(2, 5), slice(0, 1)))
    assert part.shape == (2, 3, 1)
    np.testing.assert_array_equal(part.affine[:3, 3], (AFFINE @ (1, 2, 0, 1))[:3])
