"""Laws of voxelgate/transforms/spatial.py."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacing

from voxelgate.core.errors import InputError, UsageError
from voxelgate.transforms import RandSideSafeFlipd, ResampleToSpacingd

BLOB_SD_MM = 4.0
FIELD_MM = 48.0
LANDMARK_TOLERANCE_VOX = 0.05
"""In voxels of the source: linear interpolation itself moves the centre of a blob by up to 0.04."""

ORIENTATIONS = [
    np.eye(3)[list(order)] * np.array(signs)
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3))
]

spacings = st.tuples(*[st.floats(0.8, 2.5)] * 3)
angles = st.tuples(*[st.floats(-0.7, 0.7)] * 3)


def rotation(x: float, y: float, z: float) -> np.ndarray:
    turn_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    turn_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    turn_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return turn_z @ turn_y @ turn_x


def affine_of(axes: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(spacing_mm)
    affine[:3, 3] = (-91.0, 37.5, 412.0)
    return affine


def positions_mm(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def blob(shape: tuple[int, ...], affine: np.ndarray, centre_mm: np.ndarray) -> MetaTensor:
    distance_mm = np.linalg.norm(positions_mm(shape, affine) - centre_mm, axis=-1)
    voxels = np.exp(-0.5 * (distance_mm / BLOB_SD_MM) ** 2).astype(np.float32)
    return MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(affine))


def centre_of_mass_mm(image: MetaTensor) -> np.ndarray:
    weights = image.numpy()[0].astype(np.float64)
    where_mm = positions_mm(weights.shape, image.affine.numpy())
    return (weights[..., None] * where_mm).sum(axis=(0, 1, 2)) / weights.sum()


def volume(spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0), shape: tuple[int, ...] = (8, 7, 6)) -> MetaTensor:
    voxels = torch.arange(float(np.prod(shape))).reshape(1, *shape)
    return MetaTensor(voxels, affine=torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64)))


def case(spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> dict[str, MetaTensor]:
    image = volume(spacing_mm)
    return {"image": image, "label": MetaTensor((image.as_tensor() % 5).to(torch.uint8), affine=image.affine)}


@pytest.mark.parametrize("orientation", range(48))
@settings(max_examples=2, deadline=None)
@given(spacing_mm=spacings, target_mm=spacings, turn=angles, offset_mm=st.tuples(*[st.floats(-3, 3)] * 3))
def test_a_landmark_keeps_its_position_in_mm(orientation, spacing_mm, target_mm, turn, offset_mm):
    affine = affine_of(rotation(*turn) @ ORIENTATIONS[orientation], spacing_mm)
    shape = tuple(int(np.ceil(FIELD_MM / gap)) for gap in spacing_mm)
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    image = blob(shape, affine, middle + np.array(offset_mm))

    resampled = ResampleToSpacingd("image", target_mm)({"image": image})["image"]

    moved_mm = centre_of_mass_mm(resampled) - centre_of_mass_mm(image)
    moved_vox = np.linalg.solve(affine[:3, :3], moved_mm)
    assert np.abs(moved_vox).max() <= LANDMARK_TOLERANCE_VOX
    np.testing.assert_allclose(np.linalg.norm(resampled.affine[:3, :3], axis=0), target_mm, rtol=2e-3)


@settings(max_examples=25, deadline=None)
@given(
    spacing_mm=spacings,
    target_mm=spacings,
    turn=angles,
    orientation=st.integers(0, 47),
    mode=st.sampled_from(["bilinear", "nearest"]),
)
def test_voxels_and_affine_are_those_of_monai_spacing(spacing_mm, target_mm, turn, orientation, mode):
    assume(not np.allclose(spacing_mm, target_mm, rtol=2e-3))
    affine = affine_of(rotation(*turn) @ ORIENTATIONS[orientation], spacing_mm)
    voxels = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 9, 8, 7)).astype(np.float32))
    image = MetaTensor(voxels, affine=torch.from_numpy(affine))

    ours = ResampleToSpacingd("image", target_mm, mode)({"image": image})["image"]

    expected = Spacing(target_mm, mode=mode)(image)
    tolerance = 0 if mode == "nearest" else 1e-5 * float(voxels.max() - voxels.min())
    assert ours.shape == expected.shape
    assert (ours.as_tensor() - expected.as_tensor()).abs().max() <= tolerance
    assert torch.equal(ours.affine, expected.affine)


@pytest.mark.parametrize("order", permutations(range(3)))
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_the_memory_layout_and_the_type_of_an_image_change_no_voxel(order, dtype, monkeypatch):
    monkeypatch.setattr("voxelgate.transforms.linear.BLOCK_VOXELS", 300)  # several blocks, the last of them smaller
    values = torch.randint(-1000, 1000, (2, 11, 12, 13), generator=torch.Generator().manual_seed(0))
    axes = [0, *(1 + axis for axis in order)]
    laid_out = values.to(dtype).permute(axes).contiguous().permute(*np.argsort(axes).tolist())
    resample = ResampleToSpacingd("image", spacing_mm=(0.8, 1.7, 1.3))

    expected = resample({"image": MetaTensor(values.float())})["image"]
    found = resample({"image": MetaTensor(laid_out)})["image"]

    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-3)  # HU, of 2000


def test_a_string_under_image_path_as_monai_label_puts_it_is_left_alone():
    data = case((1.0, 1.0, 2.0)) | {"image_path": "ct.nii.gz"}
    data["image"].meta["filename_or_obj"] = "ct.nii.gz"

    resampled = ResampleToSpacingd(["image", "label"], 1.0, ["bilinear", "nearest"])(data)

    assert resampled["image_path"] == "ct.nii.gz"
    assert resampled["image"].shape == resampled["label"].shape == (1, 8, 7, 11)


@pytest.mark.parametrize("gap_mm", [1.0, 1.0009, 0.9991])
def test_a_spacing_that_agrees_returns_the_same_tensor(gap_mm):
    data = case((gap_mm, 1.0, 1.0))
    resampled = ResampleToSpacingd(["image", "label"], 1.0, ["bilinear", "nearest"])(data)
    assert resampled["image"] is data["image"]
    assert resampled["label"] is data["label"]


def test_a_spacing_outside_the_tolerance_is_resampled():
    data = case((1.002, 1.0, 1.0))
    assert ResampleToSpacingd("image", 1.0)(data)["image"] is not data["image"]


@pytest.mark.parametrize("factor", [1.0 - 1e-5, 1.0 + 1e-5])
@pytest.mark.parametrize(("gap_mm", "target_mm"), [(1.0, 2.0), (1.000995, 1.0), (1.001005, 1.0)])
def test_label_and_image_of_one_grid_get_one_shape_although_their_affines_differ_by_rounding(gap_mm, target_mm, factor):
    # 7 gaps of 1 mm are 3.5 of 2 mm, where the number of voxels jumps; 1.001 is where resampling begins
    data = case((gap_mm, 1.0, 1.0))
    data["label"].affine = data["label"].affine * torch.tensor([factor, 1.0, 1.0, 1.0], dtype=torch.float64)

    resampled = ResampleToSpacingd(["image", "label"], target_mm, ["bilinear", "nearest"])(data)

    assert resampled["image"].shape == resampled["label"].shape
    assert (resampled["image"] is data["image"]) is (resampled["label"] is data["label"])


def test_images_of_two_grids_are_resampled_each_on_its_own():
    data = {"ct": volume((2.0, 2.0, 2.0), (6, 6, 6)), "pet": volume((4.0, 4.0, 4.0), (3, 3, 3))}
    resampled = ResampleToSpacingd(["ct", "pet"], 2.0)(data)
    assert resampled["ct"] is data["ct"]
    assert resampled["pet"].shape == (1, 5, 5, 5)


def test_a_label_map_keeps_its_dtype_and_gets_no_new_values():
    label = ResampleToSpacingd("label", 0.7, "nearest")(case())["label"]
    assert label.dtype == torch.uint8
    assert set(label.unique().tolist()) == {0, 1, 2, 3, 4}


def test_the_argument_and_its_metadata_stay_as_they_were():
    data = case()
    data["image"].meta |= {
        "pixdim": np.array([1.0, 1.0, 1.0, 1.0]),
        "original_affine": np.eye(4),
        "spatial_shape": np.array([8, 7, 6]),
    }
    before = data["image"].clone()

    resampled = ResampleToSpacingd("image", 2.0)(data)["image"]

    assert torch.equal(data["image"].as_tensor(), before.as_tensor())
    assert data["image"].meta["pixdim"].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert data["image"].applied_operations == []
    assert resampled.meta["pixdim"].tolist() == [1.0, 2.0, 2.0, 2.0]
    assert resampled.meta["spatial_shape"].tolist() == [8, 7, 6]
    assert np.array_equal(resampled.meta["original_affine"], np.eye(4))


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 2.0), (1.5, 1.5, 1.5)])
def test_the_inverse_returns_to_the_grid_before_whether_or_not_it_was_resampled(spacing_mm):
    data = {"image": volume(spacing_mm)}
    chain = Compose([Orientationd("image", axcodes="LPI", labels=None), ResampleToSpacingd("image", 1.5)])

    returned = chain.inverse(chain(data))["image"]

    assert returned.shape == data["image"].shape
    assert torch.allclose(returned.affine, data["image"].affine)
    assert returned.applied_operations == []


@pytest.mark.parametrize("spacing_mm", [0, -1.0, (1.0, 1.0, 0.0), (1.0, 1.0), float("nan"), float("inf")])
def test_a_spacing_that_is_none_is_refused(spacing_mm):
    with pytest.raises(UsageError, match="spacing_mm"):
        ResampleToSpacingd("image", spacing_mm)


@pytest.mark.parametrize("mode", ["linear", ["bilinear", "nearest"]])
def test_an_unknown_mode_or_a_wrong_number_of_them_is_refused(mode):
    with pytest.raises(UsageError, match="mode is bilinear or nearest"):
        ResampleToSpacingd("image", 1.0, mode)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.zeros(1, 4, 4, 4), "no MetaTensor"),
        (MetaTensor(torch.zeros(1, 4, 4)), "3D volume"),
        (MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.zeros(4, 4)), "no usable geometry"),
    ],
)
def test_an_image_without_a_3d_position_is_refused(image, reason):
    with pytest.raises(InputError, match=reason):
        ResampleToSpacingd("image", 1.0)({"image": image})


def flip(**options: object) -> RandSideSafeFlipd:
    return RandSideSafeFlipd(["image", "label"], "label", **{"prob": 1.0} | options)


@settings(max_examples=30, deadline=None)
@given(axes=st.sets(st.sampled_from(["sagittal", "coronal", "axial"])), swap=st.booleans())
def test_two_flips_are_none(axes, swap):
    data = case()
    mirror = flip(axes=sorted(axes), side_pairs=[[3, 4]] if swap else [])
    twice = mirror(mirror(data))
    for key, image in data.items():
        assert torch.equal(twice[key].as_tensor(), image.as_tensor())
        assert torch.equal(twice[key].affine, image.affine)


def test_a_sagittal_flip_mirrors_the_first_axis_and_changes_the_sides_of_pairs_only():
    data = case()

    flipped = flip(side_pairs=[[3, 4]])(data)

    label = data["label"].numpy()[:, ::-1]
    new_value = np.array([0, 1, 2, 4, 3], dtype=np.uint8)
    assert np.array_equal(flipped["image"].numpy(), data["image"].numpy()[:, ::-1])
    assert np.array_equal(flipped["label"].numpy(), new_value[label])
    assert flipped["label"].dtype == torch.uint8


@pytest.mark.parametrize(("axes", "dim"), [(["coronal"], 2), (["axial"], 3), ([1], 2), ([2], 3)])
def test_other_flips_leave_the_sides_alone(axes, dim):
    data = case()
    flipped = flip(axes=axes, side_pairs=[[3, 4]])(data)
    assert torch.equal(flipped["label"].as_tensor(), data["label"].as_tensor().flip(dim))


def test_a_side_without_a_partner_forbids_the_sagittal_flip_and_no_other():
    data = case()
    flipped = flip(axes=["sagittal", "axial"], unpaired_sides=["left kidney"])(data)
    assert torch.equal(flipped["image"].as_tensor(), data["image"].as_tensor().flip(3))


def test_the_affine_and_the_argument_stay_as_they_were():
    data = case()
    image, label = data["image"].clone(), data["label"].clone()
    flipped = flip(side_pairs=[[1, 2]])(data)
    assert torch.equal(data["image"].as_tensor(), image.as_tensor())
    assert torch.equal(data["label"].as_tensor(), label.as_tensor())
    assert torch.equal(flipped["label"].affine, label.affine)


@pytest.mark.parametrize("orientation", range(48))
def test_flips_need_an_image_in_the_order_of_ras(orientation):
    axes = ORIENTATIONS[orientation]
    data = case()
    for image in data.values():
        image.affine = torch.from_numpy(affine_of(axes, (1.0, 1.0, 3.0)))
    if abs(axes[0, 0]) == 1.0:
        flip()(data)
    else:
        with pytest.raises(InputError, match=r"axis 0 of 'image' is not the sagittal one.*Orientationd"):
            flip(prob=0.0)(data)


def test_flips_happen_as_often_as_asked_and_equal_seeds_give_equal_flips():
    data = case()
    runs = []
    for _ in range(2):
        mirror = flip(prob=0.3).set_random_state(7)
        runs.append([mirror(data)["image"] is not data["image"] for _ in range(400)])
    assert runs[0] == runs[1]
    assert 0.2 < np.mean(runs[0]) < 0.4


def test_image_and_label_of_two_shapes_are_not_flipped():
    data = case() | {"label": volume(shape=(8, 7, 5))}
    with pytest.raises(InputError, match="one shape"):
        flip()(data)


@pytest.mark.parametrize(
    "options",
    [
        {"axes": ["frontal"]},
        {"axes": [3]},
        {"side_pairs": [[1, 1]]},
        {"side_pairs": [[1, 2], [2, 3]]},
        {"side_pairs": [[0, 1]]},
        {"side_pairs": [[1]]},
        {"prob": 1.5},
    ],
)
def test_options_of_a_flip_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError):
        flip(**options)


def test_a_label_key_outside_the_keys_is_refused():
    with pytest.raises(UsageError, match="label_key"):
        RandSideSafeFlipd("image", "label")
