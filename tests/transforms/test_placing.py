"""A label map from a PACS, which holds a part of its image only, gets onto the grid of the image without change."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from voxelgate.core.errors import InputError
from voxelgate.core.geometry import Grid
from voxelgate.transforms.spatial import PlaceLabeld, place_labels

OBLIQUE = np.array([[0.0, 0.9, -0.5, 5.0], [1.2, 0.0, 0.0, -7.0], [0.0, 0.5, 0.9, 11.0], [0.0, 0.0, 0.0, 1.0]])
IMAGE = Grid((6, 5, 4), OBLIQUE)
TURNS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def turned(
    labels: np.ndarray, affine: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]
) -> tuple[np.ndarray, Grid]:
    """Store a label map along other axes; each voxel stays where it is in mm."""
    result = labels.transpose(order)
    index = np.zeros((4, 4))
    index[3, 3] = 1
    for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
        index[source, axis] = sign
        if sign < 0:
            result = np.flip(result, axis)
            index[source, 3] = labels.shape[source] - 1
    return np.ascontiguousarray(result), Grid(result.shape, affine @ index)


@given(
    st.lists(st.integers(0, 2), min_size=120, max_size=120),
    st.tuples(*(st.integers(0, size - 1) for size in IMAGE.shape)),
    st.sampled_from(TURNS),
)
def test_what_was_cut_out_and_turned_comes_back_to_its_place(
    values: list[int], start: tuple[int, int, int], turn: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    labels = np.array(values, np.uint8).reshape(IMAGE.shape)
    labels[: start[0]] = 0
    labels[:, : start[1]] = 0
    labels[:, :, : start[2]] = 0
    affine = OBLIQUE.copy()
    affine[:3, 3] += OBLIQUE[:3, :3] @ start
    part, grid = turned(labels[start[0] :, start[1] :, start[2] :], affine, *turn)

    np.testing.assert_array_equal(place_labels(part, grid, IMAGE), labels)


def as_pair(label: np.ndarray, affine: np.ndarray) -> dict[str, MetaTensor]:
    image = MetaTensor(torch.zeros(1, *IMAGE.shape), affine=torch.from_numpy(OBLIQUE))
    return {"image": image, "label": MetaTensor(torch.from_numpy(label)[None], affine=torch.from_numpy(affine))}


def test_the_transform_gives_label_and_image_one_grid() -> None:
    affine = OBLIQUE.copy()
    affine[:3, 3] += OBLIQUE[:3, 2]
    given_pair = as_pair(np.ones((6, 5, 2), np.uint8), affine)

    placed = PlaceLabeld()(given_pair)

    assert placed["label"].shape == (1, *IMAGE.shape)
    assert placed["label"].sum((0, 1, 2)).tolist() == [0, 30, 30, 0]
    np.testing.assert_allclose(placed["label"].affine, OBLIQUE)
    assert placed["image"] is given_pair["image"]
    assert given_pair["label"].shape == (1, 6, 5, 2)


def test_a_label_map_on_the_grid_of_its_image_is_left_alone() -> None:
    pair = as_pair(np.ones(IMAGE.shape, np.uint8), OBLIQUE)

    assert PlaceLabeld()(pair)["label"] is pair["label"]


@pytest.mark.parametrize(
    ("shift_vox", "scale", "message"),
    [(0.5, 1.0, "0.50 voxels between"), (3.0, 1.0, "outside of its image"), (0.0, 1.3, "between those of its image")],
)
def test_voxels_that_are_not_those_of_the_image_are_refused(shift_vox: float, scale: float, message: str) -> None:
    affine = OBLIQUE.copy()
    affine[:3, 3] += OBLIQUE[:3, 2] * shift_vox
    affine[:3, 0] *= scale

    with pytest.raises(InputError, match=message):
        PlaceLabeld()(as_pair(np.ones((6, 5, 2), np.uint8), affine))
