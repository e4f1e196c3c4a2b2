"""Laws of voxelgate/transforms/sampling.py."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from voxelgate.core.errors import InputError, UsageError
from voxelgate.transforms import ForegroundIndicesd, RandBalancedPatchd
from voxelgate.transforms.sampling import MAX_INDICES_PER_CLASS

KEYS = ["image", "label"]

shapes = st.tuples(*[st.integers(1, 14)] * 3)
voxel_lists = st.lists(st.tuples(*[st.integers(0, 13)] * 3, st.integers(1, 4)), max_size=6)


def case(shape: tuple[int, ...], foreground: list[tuple[int, ...]] | tuple[()] = ()) -> dict[str, object]:
    """Return an image whose values are the flat indices plus 1, and a label map with single voxels set."""
    affine = torch.tensor([[0, -2, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]], dtype=torch.float64)
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    for i, j, k, value in foreground:
        label[0, i % shape[0], j % shape[1], k % shape[2]] = value
    image = torch.arange(1, np.prod(shape) + 1, dtype=torch.float32).reshape(1, *shape)
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}


def cutter(patch_vox: object, seed: int = 0, **options: float) -> RandBalancedPatchd:
    return RandBalancedPatchd(KEYS, "label", patch_vox, **options).set_random_state(seed)


@settings(max_examples=150, deadline=None)
@given(shape=shapes, patch_vox=shapes, foreground=voxel_lists, cached=st.booleans(), seed=st.integers(0, 2**31))
def test_a_patch_has_its_shape_and_holds_foreground_whenever_the_case_has_any(
    shape, patch_vox, foreground, cached, seed
):
    data = case(shape, foreground)
    data = ForegroundIndicesd("label")(data) if cached else data

    patch = cutter(patch_vox, seed, foreground_probability=1.0)(data)

    assert patch["image"].shape == patch["label"].shape == (1, *patch_vox)
    assert bool(patch["label"].any()) is bool(foreground)
    assert "label_indices" not in patch


@settings(max_examples=150, deadline=None)
@given(shape=shapes, patch_vox=shapes, foreground=voxel_lists, probability=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_every_voxel_of_a_patch_keeps_its_position_in_mm(shape, patch_vox, foreground, probability, seed):
    data = case(shape, foreground)

    patch = cutter(patch_vox, seed, foreground_probability=probability)(data)

    values = patch["image"].numpy()[0]
    inside = np.argwhere(values > 0)
    origin = np.stack(np.unravel_index(values[values > 0].astype(int) - 1, shape), axis=-1)
    for key in KEYS:
        linear, offset = patch[key].affine.numpy()[:3, :3], patch[key].affine.numpy()[:3, 3]
        source = data[key].affine.numpy()
        np.testing.assert_allclose(inside @ linear.T + offset, origin @ source[:3, :3].T + source[:3, 3], atol=1e-9)
    assert len(inside) == np.prod(np.minimum(shape, patch_vox))
    label = data["label"].numpy()[0]
    assert np.array_equal(patch["label"].numpy()[0][tuple(inside.T)], label[tuple(origin.T)])


def test_a_small_volume_stands_in_the_middle_of_its_constant_surroundings():
    data = case((3, 4, 6), [(0, 0, 0, 1)])
    patch = cutter([6, 6, 6], pad_value=-5.0)(data)
    assert torch.equal(patch["image"].as_tensor()[:, 1:4, 1:5], data["image"].as_tensor())
    assert int((patch["image"] == -5.0).sum()) == 6**3 - 3 * 4 * 6
    assert int(patch["label"].sum()) == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), probability=st.floats(0, 1), cached=st.booleans())
def test_equal_seeds_give_equal_patches(seed, probability, cached):
    plain = case((12, 11, 10), [(1, 2, 3, 1), (9, 9, 9, 2)])
    data = ForegroundIndicesd("label")(plain) if cached else plain
    first, second = (cutter(5, seed, foreground_probability=probability) for _ in range(2))
    for _ in range(4):
        assert torch.equal(first(data)["image"].as_tensor(), second(plain)["image"].as_tensor())


def test_structures_are_drawn_equally_often_whatever_their_size():
    data = case((40, 20, 20))
    data["label"][0, :20] = 1
    data["label"][0, 39, 19, 19] = 2
    cut = cutter([1, 1, 1], foreground_probability=1.0)
    data = ForegroundIndicesd("label")(data)
    values = [int(cut(data)["label"]) for _ in range(400)]
    assert 0.4 < values.count(2) / 400 < 0.6
    assert values.count(0) == 0


def test_foreground_patches_are_as_frequent_as_asked():
    data = ForegroundIndicesd("label")(case((30, 30, 30), [(15, 15, 15, 1)]))
    cut = cutter([1, 1, 1], foreground_probability=0.67)
    share = np.mean([int(cut(data)["label"]) for _ in range(600)])
    assert 0.6 < share < 0.74


def test_patches_of_a_case_without_foreground_reach_every_position():
    data = case((6, 3, 1))
    cut = cutter([2, 2, 1], foreground_probability=1.0)
    firsts = {int(cut(data)["image"].min()) for _ in range(200)}
    assert firsts == {1 + 3 * i + j for i in range(5) for j in range(2)}


def test_a_patch_is_a_copy_and_the_argument_stays_as_it_was():
    data = ForegroundIndicesd("label")(case((6, 6, 6), [(3, 3, 3, 2)]))
    image, affine = data["image"].clone(), data["image"].affine.clone()

    patch = cutter([6, 6, 6])(data)
    patch["image"] += 1
    patch["image"].meta["seen"] = True

    assert torch.equal(data["image"].as_tensor(), image.as_tensor())
    assert torch.equal(data["image"].affine, affine)
    assert "seen" not in data["image"].meta
    assert "label_indices" in data


def test_metadata_of_the_file_stay_with_the_patch():
    data = case((6, 6, 6))
    data["image"].meta |= {"original_affine": np.eye(4), "spatial_shape": np.array([6, 6, 6])}
    patch = cutter(3)(data)["image"]
    assert patch.meta["spatial_shape"].tolist() == [6, 6, 6]
    assert np.array_equal(patch.meta["original_affine"], np.eye(4))


def test_plain_tensors_arrays_and_several_channels_are_cut_too():
    data = {"image": torch.rand(3, 8, 8, 8), "label": torch.zeros(1, 8, 8, 8)}
    patch = cutter(4)(data)
    assert patch["image"].shape == (3, 4, 4, 4)
    assert type(patch["image"]) is torch.Tensor
    assert cutter(4)({key: array.numpy() for key, array in data.items()})["label"].shape == (1, 4, 4, 4)


def test_each_structure_has_its_own_ascending_indices():
    label = torch.zeros(1, 2, 3, 4, dtype=torch.uint8)
    label[0, 1, 2, 3] = label[0, 0, 0, 1] = 7
    label[0, 0, 2, 0] = 2
    indices = ForegroundIndicesd("label")({"label": label})["label_indices"]
    assert [list(each) for each in indices] == [[8], [1, 23]]
    assert all(each.dtype == np.int32 for each in indices)


def test_a_label_without_foreground_has_an_empty_list():
    assert ForegroundIndicesd("label")({"label": torch.zeros(1, 4, 4, 4)})["label_indices"] == []


def test_indices_of_a_large_structure_are_thinned_evenly():
    label = torch.ones(1, 40, 40, 40)
    (indices,) = ForegroundIndicesd("label")({"label": label})["label_indices"]
    assert len(indices) == MAX_INDICES_PER_CLASS
    assert (indices[0], indices[-1]) == (0, 40**3 - 1)
    assert set(np.diff(indices)) == {6, 7}


def test_indices_of_another_label_map_are_refused():
    data = ForegroundIndicesd("label")(case((6, 6, 6), [(5, 5, 5, 1)]))
    for label in (torch.zeros(1, 6, 6, 6), torch.zeros(1, 6, 6, 5)):
        moved = data | {"label": label, "image": torch.zeros(label.shape)}
        with pytest.raises(InputError, match="directly before RandBalancedPatchd"):
            cutter(2, foreground_probability=1.0)(moved)


def test_image_and_label_of_two_shapes_are_refused():
    data = {"image": torch.zeros(1, 5, 5, 5), "label": torch.zeros(1, 5, 5, 6)}
    with pytest.raises(InputError, match="one shape"):
        cutter(2)(data)


def test_a_label_map_of_several_channels_is_refused():
    with pytest.raises(InputError, match="one channel"):
        ForegroundIndicesd("label")({"label": torch.zeros(2, 4, 4, 4)})


def test_a_label_map_with_more_voxels_than_int32_counts_is_refused():
    huge = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1, 2048, 1024, 1025)
    with pytest.raises(InputError, match="too large"):
        ForegroundIndicesd("label")({"label": huge})


def test_a_patch_of_other_dimensions_than_the_volume_is_refused():
    with pytest.raises(InputError, match="cannot be cut"):
        cutter([2, 2])(case((4, 4, 4)))


@pytest.mark.parametrize(
    ("patch_vox", "options"),
    [
        (0, {}),
        ([4, 4, -1], {}),
        ([], {}),
        (4, {"foreground_probability": 1.1}),
        (4, {"foreground_probability": float("nan")}),
    ],
)
def test_options_of_a_patch_that_make_no_sense_are_refused(patch_vox, options):
    with pytest.raises(UsageError):
        cutter(patch_vox, **options)


def test_a_label_key_outside_the_keys_is_refused():
    with pytest.raises(UsageError, match="label_key"):
        RandBalancedPatchd("image", "label", 4)
