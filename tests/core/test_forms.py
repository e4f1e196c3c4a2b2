"""Forms of structures: in mm and ml, whatever the grid."""

import numpy as np
import pytest

from voxelgate.core.forms import measure_forms
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable

TABLE = LabelTable(("background", "box"))


def box() -> np.ndarray:
    labels = np.zeros((8, 9, 10), np.uint8)
    labels[2:4, 3:6, 4:8] = 1
    return labels


def test_a_box_has_its_volume_centre_extent_and_surface() -> None:
    found = measure_forms(box(), Grid((8, 9, 10), np.diag([2.0, 3.0, 4.0, 1.0])), TABLE)["box"]

    assert found.volume_ml == pytest.approx(2 * 3 * 4 * 24 / 1000)
    assert found.centre_mm == pytest.approx((5.0, 12.0, 22.0))
    assert found.extent_mm == pytest.approx((4.0, 9.0, 16.0))
    assert found.roughness == pytest.approx(2 * (4 * 9 + 4 * 16 + 9 * 16) / (4 * 9 * 16) ** (2 / 3))


def test_a_turned_grid_changes_nothing() -> None:
    grid = Grid((8, 9, 10), np.diag([2.0, 3.0, 4.0, 1.0]))
    turned = np.eye(4)
    turned[:3, :3] = grid.affine[:3, [2, 0, 1]]

    plain = measure_forms(box(), grid, TABLE)["box"]
    other = measure_forms(box().transpose(2, 0, 1), Grid((10, 8, 9), turned), TABLE)["box"]

    assert other.centre_mm == pytest.approx(plain.centre_mm)
    assert other.extent_mm == pytest.approx(plain.extent_mm)
    assert other.roughness == pytest.approx(plain.roughness)
