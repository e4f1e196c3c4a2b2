"""Laws of voxelgate/transforms/intensity.py."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.data import MetaTensor
from skimage.restoration import denoise_tv_chambolle

from voxelgate.core.errors import InputError, UsageError
from voxelgate.transforms import HU_WINDOWS, Despeckled, HUWindow, NormalizeImaged, WindowHUd, window

hu_volumes = arrays(np.float32, (1, 3, 4, 5), elements=st.floats(-1024, 3071, width=32))
presets = st.sampled_from(sorted(HUWindow))


def with_hu_range(voxels: np.ndarray) -> np.ndarray:
    """Put air and bone into two corners, so that the volume can be CT."""
    voxels = voxels.copy()
    voxels[0, 0, 0, 0], voxels[0, -1, -1, -1] = -1000.0, 1200.0
    return voxels


def image_of(voxels: np.ndarray) -> MetaTensor:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    meta = {"original_affine": np.eye(4), "spatial_shape": np.array(voxels.shape[1:])}
    return MetaTensor(torch.from_numpy(voxels), affine=affine, meta=meta)


def normalized(voxels: np.ndarray, **options: object) -> np.ndarray:
    return NormalizeImaged("image", **options)({"image": torch.from_numpy(voxels)})["image"].numpy()


def mri(seed: int = 0, shape: tuple[int, ...] = (2, 12, 11, 10)) -> np.ndarray:
    voxels = np.random.default_rng(seed).gamma(4.0, 100.0, shape).astype(np.float32)
    voxels[:, :3] = 0.0
    return voxels


@settings(max_examples=60, deadline=None)
@given(voxels=hu_volumes, preset=presets)
def test_a_window_is_bounded_and_keeps_the_order_of_voxels(voxels, preset):
    voxels = with_hu_range(voxels)

    windowed = WindowHUd("image", preset)({"image": torch.from_numpy(voxels)})["image"].numpy()

    assert windowed.dtype == np.float32
    assert windowed.min() >= 0.0
    assert windowed.max() <= 1.0
    assert (np.diff(windowed.ravel()[np.argsort(voxels.ravel())]) >= 0.0).all()


@settings(max_examples=60, deadline=None)
@given(voxels=hu_volumes, preset=presets)
def test_a_window_is_linear_between_its_limits(voxels, preset):
    level, width = HU_WINDOWS[preset]
    voxels = with_hu_range(voxels)
    windowed = window(torch.from_numpy(voxels), level - width / 2, level + width / 2).numpy()
    expected = np.clip((voxels.astype(np.float64) - level) / width + 0.5, 0.0, 1.0)
    np.testing.assert_allclose(windowed, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "low_hu", "high_hu"), [("brain", 0.0, 80.0), ("lung", -1350.0, 150.0), ("bone", -500.0, 1300.0)]
)
def test_presets_have_the_limits_of_the_literature(preset, low_hu, high_hu):
    chosen = WindowHUd("image", preset)
    assert (chosen.low_hu, chosen.high_hu) == (low_hu, high_hu)


def test_limits_of_ones_own_are_taken_as_given():
    data = {"image": torch.tensor([[-1000.0, -100.0, 150.0, 400.0, 900.0]])}
    assert WindowHUd("image", low_hu=-100, high_hu=400)(data)["image"].tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]


def test_every_name_has_a_window():
    assert set(HU_WINDOWS) == set(HUWindow)


@pytest.mark.parametrize("preset", sorted(HUWindow))
def test_windowing_twice_is_refused(preset):
    twice = WindowHUd("image", preset)
    once = twice({"image": image_of(with_hu_range(np.zeros((1, 4, 4, 4), np.float32)))})
    with pytest.raises(InputError, match="cannot be HU"):
        twice(once)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_cannot_be_hu(bad):
    voxels = with_hu_range(np.zeros((1, 4, 4, 4), np.float32))
    voxels[0, 1, 2, 3] = bad
    with pytest.raises(InputError, match="cannot be HU"):
        WindowHUd("image", "bone")({"image": image_of(voxels)})


def test_ct_stored_as_integers_is_windowed_without_overflow():
    voxels = torch.tensor([[-32768, -1000, 50, 3071, 32767]], dtype=torch.int16)
    assert window(voxels, -150.0, 250.0).tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "bone", "low_hu": 0.0, "high_hu": 1.0},
        {"preset": "bone", "high_hu": 1.0},
        {"low_hu": 0.0},
        {"low_hu": 10.0, "high_hu": 10.0},
        {"low_hu": float("nan"), "high_hu": 10.0},
    ],
)
def test_anything_but_one_preset_or_two_ordered_limits_is_refused(options):
    with pytest.raises(UsageError):
        WindowHUd("image", **options)


def test_a_mistyped_preset_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'soft_tissue'"):
        WindowHUd("image", "soft-tisue")


def test_a_preset_like_no_other_is_refused_with_all_names():
    with pytest.raises(UsageError, match=r"abdomen, bone, .*, wide"):
        WindowHUd("image", "xyzzy")


def test_limits_in_the_wrong_order_are_refused_by_the_function_too():
    with pytest.raises(ValueError, match="low_hu < high_hu"):
        window(torch.arange(100.0), 10.0, 5.0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(1e-4, 1e4), nonzero=st.booleans())
def test_normalisation_ignores_a_positive_factor(seed, factor, nonzero):
    voxels = mri(seed)
    scaled = (voxels * factor).astype(np.float32)
    np.testing.assert_allclose(normalized(scaled, nonzero=nonzero), normalized(voxels, nonzero=nonzero), atol=1e-4)


@pytest.mark.parametrize("nonzero", [True, False])
def test_each_channel_has_mean_0_and_deviation_1_over_the_voxels_taken(nonzero):
    voxels = mri()
    voxels[1] *= 50.0
    result = normalized(voxels, nonzero=nonzero)
    for channel, before in zip(result, voxels, strict=True):
        taken = channel[before != 0] if nonzero else channel
        assert taken.mean() == pytest.approx(0.0, abs=1e-4)
        assert taken.std() == pytest.approx(1.0, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), nonzero=st.booleans())
def test_normalisation_keeps_the_order_of_voxels_so_empty_background_is_darkest(seed, nonzero):
    voxels = mri(seed)
    result = normalized(voxels, nonzero=nonzero)
    for channel, before in zip(result, voxels, strict=True):
        assert (np.diff(channel.ravel()[np.argsort(before.ravel())]) >= 0.0).all()
        assert (channel[before == 0] == channel.min()).all()


def test_an_empty_background_does_not_change_the_values_of_the_rest():
    voxels = mri()[:, 3:]
    padded = np.pad(voxels, [(0, 0), (9, 9), (9, 9), (9, 9)])
    np.testing.assert_allclose(normalized(padded)[:, 9:-9, 9:-9, 9:-9], normalized(voxels), atol=1e-5)


def test_an_outlier_is_clipped_to_the_percentile():
    voxels = mri(shape=(1, 20, 20, 20))
    expected_max = normalized(voxels).max()
    voxels[0, 10, 10, 10] = 1e6
    assert normalized(voxels).max() == pytest.approx(expected_max, rel=0.02)


def test_percentiles_work_beyond_the_16_million_voxels_of_torch_quantile():
    voxels = np.zeros((1, 260, 260, 260), dtype=np.float32)
    voxels[..., ::2] = 1.0
    assert np.unique(normalized(voxels, nonzero=False)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (np.zeros((1, 4, 4, 4), np.float32), "nothing but zeros"),
        (np.full((1, 4, 4, 4), 7.1, np.float32), "no contrast"),
        (np.pad(np.full((1, 2, 2, 2), 7, np.int16), [(0, 0), (1, 1), (1, 1), (1, 1)]), "no contrast"),
        (np.array([[1.0, 2.0, np.nan]], np.float32), "not finite"),
        (np.array([[1.0, 2.0, np.inf]], np.float32), "not finite"),
    ],
)
def test_an_image_without_statistics_is_refused(voxels, reason):
    with pytest.raises(InputError, match=reason):
        normalized(voxels)


@pytest.mark.parametrize("limits", [(5.0, 5.0), (-1.0, 99.0), (1.0, 101.0), (float("nan"), 99.0)])
def test_percentiles_that_make_no_sense_are_refused(limits):
    with pytest.raises(UsageError, match="percentiles"):
        NormalizeImaged("image", low_percentile=limits[0], high_percentile=limits[1])


def speckled(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return echoes of two tissues, 0.3 and 1, and the same under fully developed speckle of mean 1."""
    echo = np.ones((1, *shape), dtype=np.float32)
    echo[:, : shape[0] // 2] = 0.3
    rayleigh = np.random.default_rng(0).rayleigh(1.0, echo.shape) / np.sqrt(np.pi / 2)
    return echo, (echo * rayleigh).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 64), (24, 24, 24)])
def test_speckle_shrinks_to_less_than_half_and_the_border_of_two_tissues_stays(shape):
    _, noisy = speckled(shape)

    smooth = Despeckled("image")({"image": torch.from_numpy(noisy)})["image"].numpy()[0]

    half = shape[0] // 2
    for tissue in (slice(0, half - 2), slice(half + 2, None)):
        before = noisy[0, tissue].std() / noisy[0, tissue].mean()
        assert smooth[tissue].std() / smooth[tissue].mean() < 0.5 * before
    assert smooth[half].mean() / smooth[half - 1].mean() > 1.8


@pytest.mark.parametrize("log_compressed", [False, True])
def test_despeckling_follows_a_positive_factor(log_compressed):
    _, noisy = speckled((20, 20))
    smooth = Despeckled("image", log_compressed=log_compressed)
    once = smooth({"image": torch.from_numpy(noisy)})["image"].numpy()
    scaled = smooth({"image": torch.from_numpy(noisy * 250)})["image"].numpy()
    np.testing.assert_allclose(scaled, once * 250, rtol=1e-3, atol=1e-3)


def test_an_image_that_is_a_logarithm_already_is_smoothed_as_it_is():
    _, noisy = speckled((20, 20))
    log_image = 1.0 + np.log(noisy / noisy.max()).clip(-4.0) / 4.0
    smooth = Despeckled("image", weight=0.1, log_compressed=True)({"image": torch.from_numpy(log_image)})["image"]
    expected = denoise_tv_chambolle(log_image[0] / log_image.max(), weight=0.1) * log_image.max()
    np.testing.assert_allclose(smooth.numpy()[0], expected, atol=1e-4)


def test_dark_and_bright_tissue_lose_the_same_share_of_speckle():
    _, noisy = speckled((64, 64))
    noisy[:, 32:] = noisy[:, 31::-1] * 5
    smooth = Despeckled("image", weight=0.15)({"image": torch.from_numpy(noisy)})["image"].numpy()[0]
    dark, bright = smooth[:28], smooth[:35:-1]
    assert dark.std() / dark.mean() == pytest.approx(bright.std() / bright.mean(), rel=0.1)


@pytest.mark.parametrize("voxels", [[[-1.0, 2.0]], [[0.0, 0.0]], [[1.0, np.nan]], [[1.0, np.inf]]])
def test_what_cannot_be_ultrasound_is_refused(voxels):
    with pytest.raises(InputError, match="ultrasound"):
        Despeckled("image")({"image": torch.tensor([voxels])})


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(UsageError, match="weight"):
        Despeckled("image", weight=weight)


@pytest.mark.parametrize("transform", [WindowHUd("image", "bone"), NormalizeImaged("image"), Despeckled("image")])
def test_geometry_stays_and_the_argument_is_not_changed(transform):
    voxels = np.random.default_rng(0).uniform(1, 1000, (1, 5, 6, 7)).astype(np.float32)
    image = image_of(voxels.copy())

    result = transform({"image": image})["image"]

    assert np.array_equal(image.numpy(), voxels)
    assert isinstance(result, MetaTensor)
    assert result.dtype == torch.float32
    assert torch.equal(result.affine, image.affine)
    assert result.meta["spatial_shape"].tolist() == [5, 6, 7]
    result.affine = torch.eye(4)
    assert image.affine[2, 2] == 3.0


@pytest.mark.parametrize(
    ("step", "sentence"),
    [(NormalizeImaged("image"), "has no contrast"), (WindowHUd("image", "liver"), "cannot be HU")],
    ids=["MRI", "CT"],
)
def test_a_refusal_in_a_training_names_the_case(step: NormalizeImaged | WindowHUd, sentence: str) -> None:
    image = MetaTensor(torch.full((1, 4, 4, 4), 7.0))
    with pytest.raises(InputError, match=f"^case 12: .*{sentence}"):
        step({"image": image, "case_id": "case 12"})
    with pytest.raises(InputError, match=sentence):
        step({"image": image})
