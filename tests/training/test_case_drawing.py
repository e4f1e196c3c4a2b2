"""Drawings of cases: the right slices, the right way round, outlines where the borders are, nothing of the patient."""

import base64
import io
import re
from itertools import permutations, product

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from voxelgate.core.geometry import AXES_RAS, Grid
from voxelgate.core.labels import IGNORED
from voxelgate.training.pages.case_drawing import DRAWING, DrawnPlane, draw_case
from voxelgate.training.pages.slice_outlines import TENTHS, outlines_of, svg_paths

SHAPE = (24, 30, 20)
TURNS = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def turned_grid(axes: tuple[int, ...], signs: tuple[int, ...]) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(signs) * 2.0)[list(axes)]
    return Grid((SHAPE[0], SHAPE[1], SHAPE[2]), affine)


def ball(centre: tuple[float, ...], radius: float = 5) -> npt.NDArray[np.int32]:
    apart = np.linalg.norm(np.indices(SHAPE).T - centre, axis=-1).T
    return (apart < radius).astype(np.int32)


def image_of(voxels: npt.NDArray[np.generic], grid: Grid) -> MetaTensor:
    return MetaTensor(torch.as_tensor(voxels[None].astype(np.float32)), affine=torch.as_tensor(grid.affine.copy()))


def pixels(plane: DrawnPlane) -> npt.NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(plane.picture))).convert("RGB")).astype(float)


def corners_px(path: str) -> tuple[float, float, float, float]:
    """Return the least and largest x and y of closed lines."""
    x, y = [], []
    for line in re.findall(r"M([^z]+)z", path):
        start, steps = line.split("l")
        points = np.cumsum(np.array(re.findall(r"-?\d+", f"{start} {steps}"), int).reshape(-1, 2), axis=0) / TENTHS
        x += points[:, 0].tolist()
        y += points[:, 1].tolist()
    return min(x), max(x), min(y), max(y)


@pytest.mark.parametrize(("axes", "signs"), TURNS[::5])
def test_the_outline_lies_around_what_is_bright_however_the_image_is_stored(
    axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    truth, grid = ball((9, 17, 8)), turned_grid(axes, signs)

    drawing = draw_case(image_of(truth, grid), truth, truth, grid)

    for plane in drawing.planes:
        bright = np.argwhere(pixels(plane)[..., 0] > 128)
        found = (bright[:, 1].min(), bright[:, 1].max() + 1, bright[:, 0].min(), bright[:, 0].max() + 1)
        assert corners_px(plane.truth[1]) == pytest.approx(found, abs=3)
        assert plane.truth == plane.result


@pytest.mark.parametrize(("axes", "signs"), TURNS[::7])
def test_the_right_of_the_patient_is_on_the_left_and_the_head_above(
    axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    grid = turned_grid(axes, signs)
    centre = np.array(SHAPE) / 2
    truth = ball(tuple(centre)) > 0
    right_upper = np.argwhere(truth) @ grid.affine[:3, :3].T - grid.affine[:3, :3] @ centre
    image = np.zeros(SHAPE)
    image[truth] = (right_upper[:, 0] > 1) & (right_upper[:, 2] > 1)

    (_, coronal, _) = draw_case(image_of(image, grid), truth.astype(np.int32), truth.astype(np.int32), grid).planes

    rows, columns = np.nonzero(pixels(coronal)[..., 0] > 128)
    assert coronal.edges == "RLSI"
    assert columns.mean() < coronal.size_px[0] / 2
    assert rows.mean() < coronal.size_px[1] / 2


def test_the_image_may_lie_on_another_grid_than_the_labels() -> None:
    truth, grid = ball((9, 17, 8)), turned_grid((0, 1, 2), (1, 1, 1))
    coarse = Grid((12, 15, 10), grid.affine @ np.diag((2.0, 2.0, 2.0, 1.0)))

    fine_drawing = draw_case(image_of(truth, grid), truth, truth, grid)
    drawing = draw_case(image_of(truth[::2, ::2, ::2], coarse), truth, truth, grid)

    for one, other in zip(drawing.planes, fine_drawing.planes, strict=True):
        assert one.size_px == other.size_px
        assert np.abs(pixels(one) - pixels(other)).mean() < 20


def test_each_plane_is_cut_where_the_structure_is_widest() -> None:
    truth, grid = ball((9, 17, 8)), turned_grid((0, 1, 2), (1, 1, 1))
    places = {plane.name: plane.place for plane in draw_case(image_of(truth, grid), truth, truth, grid).planes}
    assert places == {"axial": (9, 20), "coronal": (18, 30), "sagittal": (10, 24)}


def test_a_case_without_any_true_structure_shows_what_was_found_there() -> None:
    nothing, found, grid = np.zeros(SHAPE, np.int32), ball((9, 17, 8)), turned_grid((0, 1, 2), (1, 1, 1))

    drawing = draw_case(image_of(found, grid), found, nothing, grid)

    assert [plane.place[0] for plane in drawing.planes] == [9, 18, 10]
    assert all(plane.truth == {} and list(plane.result) == [1] for plane in drawing.planes)


def test_a_case_without_anything_shows_the_middle_of_the_image() -> None:
    nothing, grid = np.full(SHAPE, IGNORED), turned_grid((0, 1, 2), (1, 1, 1))
    drawing = draw_case(image_of(nothing, grid), nothing * 0, nothing, grid)
    assert [plane.place for plane in drawing.planes] == [(11, 20), (16, 30), (13, 24)]
    assert all(plane.truth == plane.result == {} for plane in drawing.planes)


def test_a_picture_is_one_slice_in_colours_without_sides_and_millimetres() -> None:
    truth = np.zeros((40, 30, 1), np.int32)
    truth[5:15, 10:20] = 1
    grid = Grid((40, 30, 1), AXES_RAS)
    red = np.stack([truth, 0 * truth, 0 * truth]).astype(np.float32)
    image = MetaTensor(torch.as_tensor(red), affine=torch.as_tensor(AXES_RAS.copy()))

    drawing = draw_case(image, truth, truth, grid)

    (plane,) = drawing.planes
    assert plane.edges == ""
    assert drawing.bar is None
    width, height = plane.size_px
    assert width / height == pytest.approx(40 / 30, abs=0.01)
    seen = pixels(plane)[height // 2, width // 4]
    assert seen[0] > 200
    assert seen[1] < 60
    assert corners_px(plane.truth[1]) == pytest.approx((width / 8, width * 3 / 8, height / 3, height * 2 / 3), abs=1)


def test_a_drawing_is_the_same_after_it_was_written_and_read() -> None:
    truth, grid = ball((9, 17, 8)), turned_grid((0, 1, 2), (1, 1, 1))
    drawing = draw_case(image_of(truth, grid), ball((9, 16, 8)), truth, grid)
    assert DRAWING.validate_json(DRAWING.dump_json(drawing)) == drawing


def test_a_single_voxel_and_a_border_at_the_edge_have_closed_outlines() -> None:
    labels = np.zeros((4, 5), np.int32)
    labels[0, 0], labels[2:, 3:] = 1, 2
    paths = svg_paths(outlines_of(labels, (10.0, 10.0)))
    assert sorted(paths) == [1, 2]
    assert corners_px(paths[1]) == pytest.approx((0, 10, 0, 10), abs=3)
    assert corners_px(paths[2]) == pytest.approx((30, 50, 20, 40), abs=3)
    assert all(path.endswith("z") for path in paths.values())


def test_a_drawing_of_an_image_with_one_value_is_no_error() -> None:
    nothing, grid = np.zeros(SHAPE, np.int32), turned_grid((0, 1, 2), (1, 1, 1))
    assert len(draw_case(image_of(nothing, grid), nothing, nothing, grid).planes) == 3
