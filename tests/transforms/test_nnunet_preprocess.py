"""The preparation of nnU-Net, compared with the libraries that nnU-Net calls."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from scipy import ndimage
from skimage.transform import resize

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.transforms.nnunet.crop import nonzero_box, without_holes
from voxelgate.transforms.nnunet.normalise import Normalization, normalised_channel
from voxelgate.transforms.nnunet.preprocess import NnUNetPreprocessd

CT = {"scheme": "CTNormalization", "mean": 20.5, "std": 51.3, "percentile_00_5": -60.1, "percentile_99_5": 77.7}
Z_SCORE = {"scheme": "ZScoreNormalization"}
NONE = {"scheme": "NoNormalization"}
KEEP = {"function": "no_resampling_hack"}


def voxels(shape: tuple[int, ...] = (1, 12, 10, 8), seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 50, shape).astype(np.float32)


def image(values: npt.NDArray[Any], spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0), **meta: object) -> MetaTensor:
    return MetaTensor(torch.from_numpy(values), affine=torch.diag(torch.tensor([*spacing_mm, 1.0])), meta=meta)


def prepared(one: MetaTensor, spacing: tuple[float, ...] = (1.0, 1.0, 1.0), **settings: Any) -> MetaTensor:
    settings = {"normalization": [NONE] * len(one)} | settings
    result: MetaTensor = NnUNetPreprocessd("image", spacing, **settings)({"image": one})["image"]
    return result


def test_axes_are_reversed_and_transposed() -> None:
    values = voxels()

    found = prepared(image(values), transpose_forward=[1, 2, 0])

    assert np.array_equal(found.numpy(), values.transpose(0, 2, 1, 3))
    assert found.is_contiguous()


def test_an_image_is_normalised_before_it_is_resampled() -> None:
    values = voxels()

    found = prepared(image(values, (2.0, 1.0, 1.0)), (1.0, 1.0, 1.0), normalization=[CT])

    rescaled = (np.clip(values[0].T, np.float32(-60.1), np.float32(77.7)) - np.float32(20.5)) / np.float32(51.3)
    wanted = resize(rescaled.astype(float), (8, 10, 24), 3, mode="edge", anti_aliasing=False)
    assert np.array_equal(found.numpy()[0], wanted.astype(np.float32))


def test_the_first_axis_of_a_2d_configuration_is_left_as_it_is() -> None:
    assert prepared(image(voxels(), (1.0, 1.0, 5.0)), (2.0, 2.0)).shape == (1, 8, 5, 6)


@pytest.mark.parametrize("transposed", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient"])
def test_every_voxel_keeps_its_place(transposed: tuple[int, int, int], reader: str) -> None:
    values = np.zeros((1, 12, 10, 8), np.float32)
    values[0, 2:11, 1:8, 3:7] = 1
    values[0, 4:8, 4:8, 4:6] = 2
    turned = Orientation(axcodes="PIR", labels=(("L", "R"), ("P", "A"), ("I", "S")))(image(values, (1.0, 2.0, 3.0)))
    centre_mm = np.array([5.5, 2 * 5.5, 3 * 4.5])

    found = prepared(turned, (0.5, 0.5, 0.5), transpose_forward=transposed, reader=reader)

    inside = np.argwhere(found.numpy()[0] > 1.5)
    affine = Grid.of(found).affine
    assert np.allclose(inside.mean(axis=0) @ affine[:3, :3].T + affine[:3, 3], centre_mm, atol=0.1)


def test_what_comes_out_tells_the_grid_of_the_file_and_its_spacing() -> None:
    one = image(voxels(), (0.7, 0.8, 3.0), spacing=(0.6999999, 0.8, 3.0))

    found = prepared(one, transpose_forward=[1, 0, 2])

    assert found.meta["source_spacing"].tolist() == [0.8, 3.0, 0.6999999]
    assert found.meta["spatial_shape"].tolist() == [12, 10, 8]
    assert np.array_equal(found.meta["original_affine"], np.asarray(one.affine))


@pytest.mark.parametrize(
    ("key", "value"), [("spacing", [0.75, 0.75, 2.0]), ("pixdim", [-1, 0.75, 0.75, 2.0, 0, 0, 0, 0])]
)
def test_sizes_follow_the_header_and_not_the_rounded_affine(key: str, value: list[float]) -> None:
    almost, wanted = (0.75000006, 0.75000006, 2.0), (2.0, 1.5, 1.5)  # float32 directions leave such sizes
    values = voxels((1, 5, 9, 4))

    assert prepared(image(values, almost), wanted).shape == (1, 4, 5, 3)
    assert prepared(image(values, almost, **{key: value}), wanted).shape == (1, 4, 4, 2)


def test_the_spacing_of_the_header_follows_axes_that_changed_places() -> None:
    one = image(voxels(), (0.7, 0.8, 3.0), spacing=(0.71, 0.81, 3.1), original_affine=np.diag([0.7, 0.8, 3.0, 1.0]))

    found = prepared(Orientation(axcodes="PIR", labels=(("L", "R"), ("P", "A"), ("I", "S")))(one))

    assert found.meta["source_spacing"].tolist() == [0.71, 3.1, 0.81]


def test_the_spacing_of_the_header_is_past_once_the_image_was_resampled() -> None:
    one = image(voxels(), (2.0, 2.0, 2.0), spacing=(0.7, 0.8, 3.0), original_affine=np.diag([0.7, 0.8, 3.0, 1.0]))

    assert prepared(one).meta["source_spacing"].tolist() == [2.0, 2.0, 2.0]


def test_a_picture_is_one_very_thick_slice() -> None:
    found = prepared(image(voxels((1, 8, 6, 1))), (1.0, 1.0), reader="NaturalImage2DIO")

    assert found.meta["source_spacing"].tolist() == [999.0, 1.0, 1.0]


def test_zeros_in_every_channel_are_cut_off() -> None:
    values = np.zeros((2, 12, 10, 8), np.float32)
    values[0, 2, 3:7, 4], values[1, 5, 4, 4:6] = 1, 1

    found = prepared(image(values))

    assert found.shape == (2, 2, 4, 4)
    assert Grid.of(found).affine[:3, 3].tolist() == [2, 3, 4]


def test_an_image_of_nothing_stays_whole() -> None:
    assert prepared(image(np.zeros((1, 4, 5, 6), np.float32))).shape == (1, 6, 5, 4)


@pytest.mark.parametrize("seed", range(5))
def test_holes_are_filled_alike_before_and_after_cropping(seed: int) -> None:
    mask = np.zeros((9, 11, 10), bool)
    mask[2:8, 1:9, 3:9] = np.random.default_rng(seed).random((6, 8, 6)) < 0.75
    box = nonzero_box(mask)

    filled = ndimage.binary_fill_holes(mask)

    assert np.array_equal(without_holes(mask[box]), filled[box])
    assert nonzero_box(filled) == box


def test_a_z_score_may_count_only_what_is_inside() -> None:
    values, mask = voxels()[0], np.zeros((12, 10, 8), bool)
    mask[2:5] = True

    found = normalised_channel(values, Normalization.from_mapping(Z_SCORE, only_mask=True), mask)

    assert np.array_equal(found[~mask], values[~mask])
    assert abs(float(found[mask].mean())) < 1e-5
    assert float(found[mask].std()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("scheme", "wanted"),
    [
        ("ZScoreNormalization", lambda values: (values - values.mean()) / values.std()),
        ("NoNormalization", lambda values: values),
        ("RescaleTo01Normalization", lambda values: (values - values.min()) / (values - values.min()).max()),
        ("RGBTo01Normalization", lambda values: values / np.float32(255)),
    ],
)
def test_each_scheme_computes_in_float32(scheme: str, wanted: Any) -> None:
    values = np.abs(voxels())[0] / 2

    found = normalised_channel(values, Normalization.from_mapping({"scheme": scheme}))

    assert found.dtype == np.float32
    assert np.array_equal(found, wanted(values))


def test_colours_beyond_eight_bits_are_refused() -> None:
    with pytest.raises(InputError, match="a colour with values from"):
        normalised_channel(voxels()[0], Normalization.from_mapping({"scheme": "RGBTo01Normalization"}))


def test_a_grid_that_memory_cannot_hold_is_refused_before_it_is_made() -> None:
    step = NnUNetPreprocessd("image", spacing=[1e-3] * 3, normalization=[{"scheme": "NoNormalization"}])

    with pytest.raises(InputError, match=r"would become 9000x9000x9000 and need 2715\.7 GiB"):
        step({"image": MetaTensor(torch.rand(1, 9, 9, 9), affine=torch.eye(4, dtype=torch.float64))})


def test_the_image_that_is_given_is_not_changed() -> None:
    one = image(voxels())
    before = one.as_tensor().clone()

    prepared(one, normalization=[Z_SCORE])

    assert torch.equal(one.as_tensor(), before)
    assert "source_spacing" not in one.meta


def test_a_label_is_cropped_and_resampled_with_its_image() -> None:
    values, labels = np.zeros((1, 12, 10, 8), np.float32), np.zeros((1, 12, 10, 8), np.float32)
    values[0, 2:11, 1:8, 3:7] = 1
    labels[0, 4:8, 3:6, 4:6], labels[0, 5, 4, 4] = 1, 3
    prepare = NnUNetPreprocessd("image", (0.5, 0.5, 0.5), normalization=[NONE], label_key="label")

    found = prepare({"image": image(values), "label": image(labels)})

    assert found["label"].shape == found["image"].shape == (1, 8, 14, 18)
    assert Grid.of(found["label"]).agrees(Grid.of(found["image"]))
    inside = np.argwhere(found["label"].numpy()[0])
    assert (inside.min(axis=0).tolist(), inside.max(axis=0).tolist()) == ([2, 4, 4], [5, 9, 11])
    assert set(np.unique(found["label"])) == {0, 1, 3}  # nothing between two labels
    assert found["label"].dtype == torch.float32


def test_voxels_that_nobody_labelled_stay_so_and_what_is_outside_is_background() -> None:
    values, labels = np.zeros((1, 6, 6, 6), np.float32), np.zeros((1, 6, 6, 6), np.float32)
    values[0, 1:5, 1:5, 1:5], values[0, 1, 1, 1] = 1, 0
    labels[0, 1:3], labels[0, 4] = -1, 2
    prepare = NnUNetPreprocessd("image", (1.0, 1.0, 1.0), normalization=[NONE], label_key="label")

    found = prepare({"image": image(values), "label": image(labels)})["label"]

    assert np.array_equal(found.numpy()[0], labels[0, 1:5, 1:5, 1:5].T)


def test_labels_of_an_earlier_stage_become_channels() -> None:
    values, labels = voxels((1, 6, 6, 6)), np.zeros((1, 6, 6, 6), np.uint8)
    labels[0, 2:4, 2:4, 2:4] = 2
    prepare = NnUNetPreprocessd(
        "image", (1.0, 1.0, 1.0), normalization=[NONE], previous={"key": "before", "foreground": [1, 2]}
    )

    found = prepare({"image": image(values), "before": image(labels)})["image"].numpy()

    assert np.array_equal(found, [values[0].T, np.zeros((6, 6, 6)), labels[0].T == 2])


def test_labels_on_another_grid_are_refused() -> None:
    prepare = NnUNetPreprocessd("image", (1.0, 1.0, 1.0), normalization=[NONE], label_key="label")

    with pytest.raises(InputError, match="on another grid than its image"):
        prepare({"image": image(voxels()), "label": image(voxels(), (1.0, 1.0, 2.0))})


def test_an_image_of_other_channels_is_refused() -> None:
    with pytest.raises(InputError, match="an image of 1 channels, expected 2"):
        prepared(image(voxels()), normalization=[NONE, NONE])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"spacing": (1.0,)}, "expected two or three positive numbers"),
        ({"transpose_forward": (0, 1, 1)}, "expected 0, 1 and 2 in some order"),
        ({"normalization": [{"scheme": "MyNormalization"}]}, "the normalization MyNormalization, expected one of"),
        ({"normalization": [{"scheme": "CTNormalization"}]}, "without mean, std, percentile_00_5, percentile_99_5"),
        ({"use_mask_for_norm": [True, False]}, "2 of use_mask_for_norm for 1 channels"),
        ({"reader": "Tiff3DIO"}, "images read by Tiff3DIO, expected one of"),
        ({"keys": ("image", "label")}, "expected that of one image"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        NnUNetPreprocessd(**({"keys": "image", "spacing": (1.0, 1.0, 1.0)} | settings))
