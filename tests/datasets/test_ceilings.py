"""How wide structures are, and what a network without errors could reach on coarser voxels."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelgate.datasets import ceilings
from voxelgate.datasets.ceilings import COARSER, coarser_sides_mm, measure_ceilings, measure_width_mm

spacings = st.tuples(*(st.floats(0.3, 8.0) for _ in range(3)))


def ball(shape: tuple[int, int, int], sides_mm: tuple[float, float, float], spacing_mm: float = 1.0) -> np.ndarray:
    """Return an ellipsoid of so many mm in the middle of a box."""
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * spacing_mm for n in shape], indexing="ij")
    return np.sum([(axis / (side / 2)) ** 2 for axis, side in zip(axes, sides_mm, strict=True)], axis=0) <= 1


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@given(spacings, st.floats(1, 8))
def test_long_sides_stay_and_the_others_grow_to_the_multiple(
    spacing: tuple[float, float, float], factor: float
) -> None:
    limit = factor * min(spacing)
    for before, after in zip(spacing, coarser_sides_mm(spacing, factor), strict=True):
        assert after == (before if before >= limit else limit)


@pytest.mark.parametrize("sides_mm", [(28.0, 20.0, 14.0), (30.0, 9.0, 9.0)])
def test_ceilings_are_those_of_averaging_and_interpolating_back(sides_mm: tuple[float, float, float]) -> None:
    mask = ball((48, 48, 48), sides_mm)
    coarse = torch.nn.functional.avg_pool3d(torch.from_numpy(mask)[None, None].float(), 3)
    back = torch.nn.functional.interpolate(coarse, scale_factor=3, mode="trilinear")[0, 0].numpy() > 0.5
    low, high = np.argwhere(mask).min(axis=0), np.argwhere(mask).max(axis=0) + 1
    inside = mask[tuple(slice(*ends) for ends in zip(low, high, strict=True))]
    moved = (low - 1).tolist()  # pooling puts the first coarse voxel around the second fine one
    assert measure_ceilings(inside, moved, (1.0,) * 3)[COARSER.index(3)] == pytest.approx(dice(back, mask), abs=1e-3)


def test_coarser_voxels_never_help_by_much_and_thin_structures_lose_most() -> None:
    wide, thin = (
        measure_ceilings(ball((40, 40, 40), sides), (3, 1, 2), (1, 1, 1)) for sides in ((38.0,) * 3, (5.0,) * 3)
    )
    assert all(later <= earlier + 0.01 for row in (wide, thin) for earlier, later in pairwise(row))
    assert wide[-1] > 0.9
    assert thin[-1] < 0.5


def test_slices_thicker_than_the_coarse_voxels_stay_as_they_are() -> None:
    sheet = np.zeros((40, 40, 3), dtype=bool)
    sheet[4:36, 4:36, 1] = True  # one slice, which no averaging across slices would leave
    assert min(measure_ceilings(sheet, (0, 0, 0), (1.0, 1.0, 9.0))) > 0.95


def test_a_flat_picture_is_coarsened_in_its_plane() -> None:
    flat = measure_ceilings(ball((60, 60, 1), (40, 40, 9)), (0, 0, 0), (1.0, 1.0, 1.0))
    assert 0.9 < flat[-1] < 1


def test_a_part_of_a_large_box_tells_what_the_whole_would(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = ball((64, 60, 56), (60.0, 50.0, 40.0))
    whole = measure_ceilings(mask, (1, 2, 3), (1, 1, 1))
    monkeypatch.setattr(ceilings, "COMPARED_VOXELS", 20_000)
    monkeypatch.setattr(ceilings, "MEASURED_VOXELS", 150_000)
    assert measure_ceilings(mask, (1, 2, 3), (1, 1, 1)) == pytest.approx(whole, abs=0.02)


def test_the_width_is_that_of_the_largest_ball_inside() -> None:
    assert measure_width_mm(ball((40, 40, 40), (18.0, 18.0, 18.0)), (1, 1, 1)) == pytest.approx(18, rel=0.1)
    rod = np.ones((9, 9, 80), dtype=bool)
    assert measure_width_mm(rod, (1, 1, 1)) == pytest.approx(9, abs=1.5)
    assert measure_width_mm(ball((60, 60, 1), (40, 40, 9)), (1, 1, 1)) == pytest.approx(40, abs=2)
    assert measure_width_mm(np.ones((1, 1, 1), dtype=bool), (2, 3, 4)) == 2


def test_the_width_of_a_large_box_is_found_on_a_part_of_its_voxels() -> None:
    assert measure_width_mm(ball((160, 100, 90), (80.0, 50.0, 45.0), 0.5), (0.5,) * 3) == pytest.approx(45, rel=0.05)
