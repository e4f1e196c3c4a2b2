"""The synthetic cohort: repeatable, exact, with sides where a patient has them, and not solved by grey values."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voxelgate.apps.demo.cohort import (
    AXIS_CODES,
    LABELS,
    LARGEST_OBLIQUENESS_DEG,
    SIDE_VOX,
    Solid,
    SyntheticCase,
    draw_anatomy,
    draw_grid,
    make_cohort,
)
from voxelgate.core.errors import OutputError
from voxelgate.images.volumes import read_volume

VOLUME_TOLERANCE = 0.05
"""Share of its volume that a kidney of 8 ml may gain or lose on voxels of 30 mm3."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[SyntheticCase]:
    return make_cohort(tmp_path_factory.mktemp("cohort"), 12, np.random.default_rng(2024))


def test_equal_seeds_give_equal_voxels_and_other_seeds_do_not(tmp_path: Path) -> None:
    first, again, other = (
        make_cohort(tmp_path / name, 2, np.random.default_rng(seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )

    for one, two in zip(first, again, strict=True):
        for path, same in ((one.image, two.image), (one.label, two.label)):
            (voxels, grid), (same_voxels, same_grid) = read_volume(path), read_volume(same)
            assert voxels.tobytes() == same_voxels.tobytes()
            assert np.array_equal(grid.affine, same_grid.affine)
        assert one.volumes_ml == two.volumes_ml
    assert first[0].volumes_ml != other[0].volumes_ml


def test_volumes_of_the_label_maps_agree_with_the_analytic_ones(cohort: list[SyntheticCase]) -> None:
    for case in cohort:
        labels, grid = read_volume(case.label)
        for value, name in LABELS.foreground.items():
            counted_ml = np.count_nonzero(labels == value) * grid.voxel_ml
            assert counted_ml == pytest.approx(case.volumes_ml[name], rel=VOLUME_TOLERANCE)


def test_the_left_kidney_lies_at_the_left_of_the_patient_in_every_orientation(cohort: list[SyntheticCase]) -> None:
    seen = set()
    for case in cohort:
        labels, grid = read_volume(case.label)
        seen.add("".join(nib.aff2axcodes(grid.affine)))
        for name, sign in (("left kidney", -1), ("right kidney", 1)):
            index = np.argwhere(labels == LABELS.names.index(name))
            x_ras_mm = index @ grid.affine[0, :3] + grid.affine[0, 3]
            assert (sign * x_ras_mm > 0).all()
    assert len(seen) > 2


def test_images_hold_hu_on_the_grid_of_their_labels(cohort: list[SyntheticCase]) -> None:
    for case in cohort:
        (image_hu, grid), (labels, label_grid) = read_volume(case.image), read_volume(case.label)
        assert grid.agrees(label_grid)
        assert (image_hu.dtype, labels.dtype) == (np.int16, np.uint8)
        assert np.percentile(image_hu, 2) < -900
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        left, right = (float(image_hu[labels == value].mean()) for value in (2, 3))
        assert abs(left - right) < 15
        assert 90 < left < 185


def test_no_window_of_grey_values_finds_the_kidneys(cohort: list[SyntheticCase]) -> None:
    for case in cohort:
        image_hu, kidneys = read_volume(case.image)[0], read_volume(case.label)[0] >= 2
        inside = image_hu[kidneys]
        found = (image_hu >= np.percentile(inside, 10)) & (image_hu <= np.percentile(inside, 95))
        assert 2 * np.count_nonzero(found & kidneys) / (found.sum() + kidneys.sum()) < 0.7


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_grids_have_the_promised_size_direction_and_tilt(seed: int) -> None:
    grid = draw_grid(np.random.default_rng(seed))

    assert all(SIDE_VOX[0] <= n <= SIDE_VOX[1] for n in grid.shape)
    assert "".join(nib.aff2axcodes(grid.affine)) in AXIS_CODES
    turned_deg = np.degrees(np.arccos(np.abs(grid.affine[:3, :3] / grid.spacing_mm).max(axis=0).clip(max=1)))
    assert turned_deg.max() <= math.sqrt(3) * LARGEST_OBLIQUENESS_DEG
    assert all(2.2 <= spacing <= 5.0 for spacing in grid.spacing_mm)


@given(st.integers(0, 2**32 - 1))
@example(35)  # kidney and liver met between the points that were looked at
@settings(max_examples=10, deadline=None)
def test_organs_of_a_patient_never_overlap(seed: int) -> None:
    anatomy = draw_anatomy(np.random.default_rng(seed))
    points_mm = np.random.default_rng(seed + 1).uniform(-70, 70, size=(20000, 3)).astype(np.float32)

    inside = sum((organ.solid.level(points_mm) <= 0.97).astype(int) for organ in anatomy.organs.values())

    assert inside.max() <= 1


@given(bend=st.tuples(st.floats(-10, 10), st.floats(-10, 10)), scale=st.floats(0.5, 2.0))
@settings(max_examples=20, deadline=None)
def test_bending_keeps_the_volume_and_scaling_cubes_it(bend: tuple[float, float], scale: float) -> None:
    straight = Solid((0.0, 0.0, 0.0), (20.0, 15.0, 25.0), np.eye(3), bend)
    solid = straight.tilted(np.eye(3), scale)
    axis_mm = np.arange(-45, 45, 1.5, dtype=np.float32) * scale
    points_mm = np.stack(np.meshgrid(axis_mm, axis_mm, axis_mm, indexing="ij"), axis=-1)

    counted_ml = np.count_nonzero(solid.level(points_mm) <= 1) * (1.5 * scale) ** 3 / 1000

    assert counted_ml == pytest.approx(straight.volume_ml * scale**3, rel=0.02)
    assert solid.volume_ml == pytest.approx(straight.volume_ml * scale**3)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()

    with pytest.raises(OutputError, match="not an empty folder"):
        make_cohort(tmp_path, 1, np.random.default_rng(0))
    with pytest.raises(OutputError, match="not an empty folder"):
        make_cohort(tmp_path / "mine.txt", 1, np.random.default_rng(0))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_cohort_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one case"):
        make_cohort(tmp_path, 0, np.random.default_rng(0))
