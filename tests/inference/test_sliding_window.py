"""The restoring inferer: what is painted in the patient comes back on the grid that was read, whatever that grid is."""

import subprocess
import sys
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.inferers import sliding_window_inference
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, SaveImage, Spacingd
from scipy.ndimage import map_coordinates
from torch import nn

from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.images.volumes import read_grid, read_volume
from voxelgate.inference.mirroring import MirroredViews
from voxelgate.inference.restoring.label_sums import Sum
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer
from voxelgate.inference.streaming.stream import streaming_cost
from voxelgate.networks import AttentionUNet
from voxelgate.networks.flat import FlatNetwork

ORIENTATIONS = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


class Threshold(nn.Module):
    """Logits of classes whose intensities are 0, 1, 2, ...: the nearest one wins."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.register_buffer("intensity", torch.arange(float(classes)).reshape(1, -1, 1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return -8 * (image - self.intensity).abs()


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def load(path: Path, spacing_mm: tuple[float, ...] | None = None) -> MetaTensor:
    """Return (1, 1, i, j, k) in RAS orientation, resampled to `spacing_mm` if given."""
    steps: list[Any] = [
        LoadImaged("image", reader="voxelgate.VolumeReader"),
        EnsureChannelFirstd("image"),
        Orientationd("image", "RAS", labels=None),
    ]
    if spacing_mm is not None:
        steps.append(Spacingd("image", spacing_mm, mode="bilinear"))
    return Compose(steps)({"image": path})["image"][None]


def inferer(**changes: Any) -> RestoringSlidingWindowInferer:
    return RestoringSlidingWindowInferer(**{"roi_size": (24, 24, 24), "overlap": 0.25} | changes)


def place(orientation: tuple[tuple[int, ...], tuple[int, ...]], spacing_mm: np.ndarray, tilt: float = 0) -> np.ndarray:
    """Return an affine whose axes run as `orientation` says, tilted by `tilt` radians about two axes."""
    axes, signs = orientation
    direction = np.zeros((3, 3))
    direction[axes, range(3)] = signs
    cos, sin = np.cos(tilt), np.sin(tilt)
    about_z = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ direction * spacing_mm
    affine[:3, 3] = (-31.0, 12.5, 70.25)
    return affine


def paint(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return a comma, an asymmetric body of two balls, painted in mm around the middle of the volume; soft borders."""
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    extent = min(np.linalg.norm(affine[:3, :3], axis=0) * shape)
    head = np.linalg.norm(points - middle - extent * np.array((0.08, 0.05, -0.03)), axis=-1) - extent * 0.3
    tail = np.linalg.norm(points - middle + extent * np.array((0.15, 0.2, -0.12)), axis=-1) - extent * 0.16
    distance = np.minimum(head, tail) / np.linalg.norm(affine[:3, :3], axis=0).max()
    return np.clip(0.5 - distance / 2, 0, 1).astype(np.float32)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def centroid(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_labels_come_back_exactly_from_every_orientation(tmp_path: Path, orientation: Any) -> None:
    rng = np.random.default_rng(ORIENTATIONS.index(orientation))
    voxels = rng.integers(0, 5, (7, 9, 11)).astype(np.uint8)
    affine = place(orientation, rng.uniform(0.4, 5, 3))
    image = load(save(tmp_path / "image.nii", voxels, affine))

    labels = inferer()(image, Threshold(5))

    np.testing.assert_array_equal(labels[0, 0].numpy(), voxels)
    assert read_grid(tmp_path / "image.nii").agrees(Grid(tuple(labels.shape[2:]), labels.affine.numpy()), 1e-9)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.integers(0, 2**32 - 1), st.floats(-0.6, 0.6))
def test_labels_come_back_in_place_after_resampling_any_oblique_grid(
    tmp_path_factory: pytest.TempPathFactory, orientation: Any, seed: int, tilt: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(28, 36, 3))
    affine = place(orientation, rng.uniform(0.8, 1.6, 3), tilt)
    voxels = paint(shape, affine)
    image = load(save(tmp_path_factory.mktemp("tilt") / "image.nii", voxels, affine), tuple(rng.uniform(0.8, 1.4, 3)))

    labels = inferer(roi_size=(48, 48, 48))(image, Threshold())[0, 0].numpy() > 0

    assert labels.shape == shape
    assert dice(labels, voxels > 0.5) >= 0.95
    # twice what 60 random grids gave: blur shrinks the small tail more than the head
    assert np.abs(centroid(labels) - centroid(voxels > 0.5)).max() < 0.2  # voxels of the source


def test_no_side_is_preferred_when_resampling(tmp_path: Path) -> None:
    affine = place(ORIENTATIONS[0], np.array((1.0, 1.0, 2.5)))
    errors = []
    for index in range(12):
        moved = affine.copy()
        moved[:3, 3] += np.random.default_rng(index).uniform(-1, 1, 3)
        voxels = paint((40, 40, 20), affine @ np.linalg.inv(moved) @ affine)
        image = load(save(tmp_path / "image.nii", voxels, moved), (1.3, 1.3, 1.3))
        errors.append(centroid(inferer()(image, Threshold())[0, 0].numpy() > 0) - centroid(voxels > 0.5))

    assert np.abs(np.mean(errors, axis=0)).max() < 0.05  # voxels


def test_voxels_that_were_cropped_away_are_background(tmp_path: Path) -> None:
    path = save(
        tmp_path / "image.nii", np.ones((9, 9, 9), np.uint8), place(ORIENTATIONS[11], np.array((1.0, 2.0, 3.0)))
    )
    image = load(path)
    cropped = image[0, :, 2:6, 3:8, 1:9]
    shift = np.eye(4)
    shift[:3, 3] = (2, 3, 1)
    cropped.affine = torch.tensor(image.affine.numpy() @ shift)

    labels = inferer()(cropped[None], Threshold())[0, 0]

    assert int(labels.sum()) == 4 * 5 * 8


def test_a_volume_without_structures_and_one_of_a_single_slice_come_back(tmp_path: Path) -> None:
    empty = load(save(tmp_path / "empty.nii", np.zeros((6, 5, 4), np.uint8), np.diag((1.0, 1, 2, 1))), (1.5, 1.5, 1.5))
    slice_ = np.zeros((6, 5, 1), np.uint8)
    slice_[2:4, 1:4] = 1
    single = load(save(tmp_path / "slice.nii", slice_, np.diag((1.0, 1, 2, 1))))

    assert not inferer()(empty, Threshold()).any()
    np.testing.assert_array_equal(inferer()(single, Threshold())[0, 0].numpy(), slice_)


def test_real_images_come_back_exactly_on_their_own_grid(real_data: Path) -> None:
    for name, threshold in {"sub-ct_label-22_ct": 200, "two_grids/sub-strokecase0009_ses-0001_flair": 300}.items():
        path = real_data / "small" / f"{name}.nii.gz"
        voxels, grid = read_volume(path)
        image = load(path)
        bright = MetaTensor((image > threshold).float(), meta=image.meta)

        labels = inferer(roi_size=(512, 512, 512))(bright, Threshold())

        np.testing.assert_array_equal(labels[0, 0].numpy(), voxels > threshold)
        assert grid.agrees(Grid(tuple(labels.shape[2:]), labels.affine.numpy()), 1e-9)


def test_a_real_vertebra_survives_isotropic_resampling(tmp_path: Path, real_data: Path) -> None:
    voxels, grid = read_volume(real_data / "small" / "sub-ct_seg-vert_label-22_msk.nii.gz")
    vertebra = (voxels == 22).astype(np.uint8)
    image = load(save(tmp_path / "vertebra.nii", vertebra, grid.affine), (1.0, 1.0, 1.0))

    labels = inferer(roi_size=(128, 128, 128))(image, Threshold())[0, 0].numpy() > 0

    assert dice(labels, vertebra > 0) > 0.95
    assert np.abs(centroid(labels) - centroid(vertebra > 0)).max() < 0.05  # voxels


def test_the_window_is_clipped_to_the_volume_and_padded_to_a_multiple_only() -> None:
    seen = []

    def network(window: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(window.shape[2:]))
        return torch.cat((1 - window, window), dim=1)

    image = volume(torch.ones(1, 1, 10, 33, 50))
    inferer(roi_size=(32, 32, 32))(image, network)
    inferer(roi_size=(32, 32, 32), window_multiple=16)(image, network)

    assert set(seen) == {(10, 32, 32), (16, 32, 32)}


def volume(voxels: torch.Tensor) -> MetaTensor:
    meta = {"original_affine": np.eye(4), "spatial_shape": np.array(voxels.shape[2:]), "affine": torch.eye(4)}
    return MetaTensor(voxels, meta=meta)


class SidedNetwork(nn.Module):
    """Class 1 where bright voxels lie in the left half of the window, 2 in the right half: sees sides, not shapes."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        right = torch.linspace(-1, 1, image.shape[2]).reshape(1, 1, -1, 1, 1) * image
        return torch.cat((1 - image * 3, -right * 4, right * 4), dim=1)


def test_sides_are_swapped_back_after_a_sagittal_mirroring() -> None:
    image = volume(torch.ones(1, 1, 8, 6, 6))
    plain = inferer()(image, SidedNetwork())

    swapped = inferer(flip_axes=(0, 1, 2), side_pairs=((1, 2),))(image, SidedNetwork())
    other_axes = inferer(flip_axes=(1, 2), side_pairs=((1, 2),))(image, SidedNetwork())
    confused = inferer(flip_axes=(0,))(image, SidedNetwork())

    assert torch.equal(plain, swapped)
    assert torch.equal(plain, other_axes)
    assert plain.unique().tolist() == [1, 2]
    assert not torch.equal(plain, confused)


@settings(max_examples=10, deadline=None)
@given(st.sets(st.integers(0, 2)), st.integers(0, 2**31))
def test_mirroring_with_any_axes_makes_the_result_follow_a_mirrored_image(axes: set[int], seed: int) -> None:
    rng = np.random.default_rng(seed)  # of few whole numbers, so that scores are exact and no rounding decides
    weight, image = (torch.from_numpy(rng.integers(-99, 99, size)).float() for size in ((3, 1, 3, 3, 3), (9, 8, 7)))
    image = volume(image[None, None])
    run = inferer(flip_axes=tuple(axes))

    def network(window: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv3d(window, weight, padding=1)

    dims = [axis + 2 for axis in axes]
    mirrored = run(volume(image.as_tensor().flip(dims)), network).as_tensor()

    assert torch.equal(mirrored.flip(dims), run(image, network).as_tensor())


def test_a_picture_is_mirrored_along_both_axes_by_a_network_of_two() -> None:
    torch.manual_seed(0)
    network = FlatNetwork(axis=2, network=AttentionUNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8)))
    image = volume(torch.randn(1, 1, 12, 10, 1))
    run = inferer(roi_size=(12, 10, 1), flip_axes=(0, 1))

    mirrored = run(volume(image.as_tensor().flip((2, 3))), network.eval()).as_tensor()

    assert (mirrored.flip((2, 3)) == run(image, network).as_tensor()).float().mean() > 0.99  # all but ties


def test_views_that_agree_share_all_of_their_probability_and_others_do_not() -> None:
    def shared(image: MetaTensor, network: nn.Module) -> float:
        sums = inferer(flip_axes=(0,))(image, network).meta["sums"]
        return float(sums[1, Sum.LEAST] / sums[1, Sum.MOST])

    assert shared(volume(torch.ones(1, 1, 4, 4, 4)), Threshold()) == pytest.approx(1)
    assert shared(volume(torch.ones(1, 1, 8, 6, 6)), SidedNetwork()) < 0.5


def test_mirroring_counts_every_combination_of_axes() -> None:
    calls = []

    def network(window: torch.Tensor) -> torch.Tensor:
        calls.append(window)
        return torch.cat((1 - window, window), dim=1)

    inferer(flip_axes=(0, 1, 2))(volume(torch.ones(1, 1, 4, 4, 4)), network)

    assert len(calls) == 8


def test_bfloat16_runs_under_autocast_and_is_blended_in_float32() -> None:
    seen = []

    def network(window: torch.Tensor) -> torch.Tensor:
        convolved = nn.functional.conv3d(window, torch.ones(2, 1, 1, 1, 1))
        seen.append(convolved.dtype)
        return convolved

    inferer(compute_dtype="bfloat16")(volume(torch.ones(1, 1, 4, 4, 4)), network)
    inferer()(volume(torch.ones(1, 1, 4, 4, 4)), network)

    assert seen == [torch.bfloat16, torch.float32]


def test_a_batch_from_a_loader_gives_a_batch_that_monai_saves_unchanged(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 2, (6, 7, 8)).astype(np.uint8)
    path = save(tmp_path / "image.nii.gz", voxels, place(ORIENTATIONS[21], np.array((1.0, 2.0, 3.0))))
    transforms = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS", labels=None)])
    (batch,) = DataLoader(Dataset([{"image": str(path)}], transforms), batch_size=1)

    (labels,) = decollate_batch(inferer()(batch["image"], Threshold()))
    SaveImage(tmp_path, output_postfix="pred", separate_folder=False, print_log=False)(labels)

    saved, grid = read_volume(tmp_path / "image_pred.nii.gz")
    np.testing.assert_array_equal(saved, voxels)
    assert grid.agrees(read_grid(path), 1e-4)


def test_the_result_remembers_its_file_and_no_transforms(tmp_path: Path) -> None:
    image = load(save(tmp_path / "image.nii", np.ones((4, 4, 4), np.uint8), np.eye(4)), (2.0, 2.0, 2.0))

    labels = inferer()(image, Threshold())

    assert labels.dtype == torch.uint8
    assert labels.applied_operations == []
    assert labels.meta["filename_or_obj"] == str(tmp_path / "image.nii")
    assert image.applied_operations, "the image itself is left as it was"


def test_two_volumes_at_once_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 1, 4, 4, 4\), expected one volume"):
        inferer()(volume(torch.ones(2, 1, 4, 4, 4)), Threshold())


def test_an_image_that_forgot_its_source_is_refused() -> None:
    with pytest.raises(InputError, match="without original_affine and spatial_shape"):
        inferer()(MetaTensor(torch.ones(1, 1, 4, 4, 4)), Threshold())
    with pytest.raises(InputError, match="without original_affine and spatial_shape"):
        inferer()(torch.ones(1, 1, 4, 4, 4), Threshold())


def test_a_network_of_one_class_or_of_nan_is_refused() -> None:
    image = volume(torch.ones(1, 1, 4, 4, 4))

    with pytest.raises(BundleError, match="one class"):
        inferer()(image, lambda window: window)
    for run in (inferer(), inferer(flip_axes=(0,))):
        with pytest.raises(BundleError, match="not finite"):
            run(image, lambda window: torch.cat((window, window * torch.nan), dim=1))


def test_more_than_256_classes_keep_their_values() -> None:
    image = volume(torch.full((1, 1, 2, 2, 2), 299.0))

    assert inferer()(image, Threshold(301)).unique().tolist() == [299]


def test_sides_cannot_be_swapped_along_another_axis_or_beyond_the_classes() -> None:
    turned = volume(torch.ones(1, 1, 4, 4, 4))
    turned.affine = torch.tensor(place(((1, 0, 2), (1, 1, 1)), np.ones(3)))

    with pytest.raises(UsageError, match="axis 1 runs from left to right"):
        inferer(flip_axes=(0,), side_pairs=((1, 2),))(turned, Threshold(3))
    with pytest.raises(UsageError, match="class 4, but the network gives 3"):
        inferer(flip_axes=(0,), side_pairs=((1, 4),))(volume(torch.ones(1, 1, 4, 4, 4)), Threshold(3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"roi_size": (32, 32)},
        {"roi_size": (32, 0, 32)},
        {"overlap": 1.0},
        {"sw_batch_size": 0},
        {"window_multiple": 0},
        {"mode": "linear"},
        {"flip_axes": (3,)},
        {"side_pairs": ((0, 1),)},
        {"side_pairs": ((1, 2, 3),)},
        {"compute_dtype": "float8"},
        {"window": "huge"},
        {"max_memory": 0},
        {"regions": ()},
        {"regions": (1, 2), "side_pairs": ((1, 2),)},
    ],
    ids=str,
)
def test_wrong_values_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        inferer(**wrong)


def near(seed: int, classes: int) -> nn.Module:
    """Return a network that looks at neighbours only."""
    torch.manual_seed(seed)
    return nn.Conv3d(1, classes, 3, padding=1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 12),
    st.sampled_from([0, 0.4]),
    st.tuples(*[st.integers(3, 14)] * 3),
    st.floats(0, 0.8),
)
def test_the_result_is_that_of_restoring_the_whole_volume_at_once(
    seed: int, classes: int, tilt: float, window: Any, overlap: float
) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(2, 14, 3))
    affine = place(ORIENTATIONS[rng.integers(48)], rng.uniform(0.5, 2, 3))
    turn = place(ORIENTATIONS[rng.integers(48)], np.ones(3), tilt)
    source = (
        affine
        @ np.diag((*rng.uniform(0.4, 1.5, 3), 1))
        @ np.block([[turn[:3, :3], rng.uniform(0, 4, (3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])
    )
    shape = tuple(int(n) for n in rng.integers(2, 16, 3))
    meta = {"original_affine": source, "spatial_shape": np.array(shape), "affine": torch.tensor(affine)}
    image = MetaTensor(torch.tensor(rng.normal(0, 3, (1, 1, *size)), dtype=torch.float32), meta=meta)
    network = near(seed, classes)

    labels = inferer(roi_size=window, overlap=overlap)(image, network)[0, 0].numpy()

    clipped = [min(pair) for pair in zip(window, size, strict=True)]
    with torch.no_grad():
        logits = sliding_window_inference(image.as_tensor(), clipped, 1, network, overlap, "gaussian")
    probabilities = torch.softmax(logits[0].double(), dim=0).numpy()
    to_network = np.linalg.inv(affine) @ source
    points = np.einsum("ab,bijk->aijk", to_network[:3, :3], np.indices(shape)) + to_network[:3, 3].reshape(3, 1, 1, 1)
    wanted = np.stack([map_coordinates(one, points, order=1, mode="nearest") for one in probabilities])
    beyond = np.maximum(-points, points - np.array(size).reshape(3, 1, 1, 1) + 1).max(axis=0)
    chosen = np.take_along_axis(wanted, labels[None].astype(int), 0)[0]
    is_inside = beyond < 0.49
    assert (chosen >= wanted.max(axis=0) - 1e-3)[is_inside].all()  # positions are snapped by up to 1e-3 voxel
    assert (labels == wanted.argmax(axis=0))[is_inside].mean() > 0.99 if is_inside.sum() > 500 else True
    assert not labels[beyond > 0.51].any()


def test_several_networks_are_averaged_in_each_window() -> None:
    image = volume(torch.randn(1, 1, 9, 8, 7, generator=torch.Generator().manual_seed(0)))
    networks = nn.ModuleList([near(seed, 4) for seed in (1, 2)])

    labels = inferer()(image, networks)

    with torch.no_grad():
        wanted = sum(torch.softmax(one(image.as_tensor()), dim=1) for one in networks)
    assert isinstance(wanted, torch.Tensor)
    assert torch.equal(labels.as_tensor()[0, 0].long(), wanted[0].argmax(dim=0))
    assert torch.equal(labels, inferer()(image, list(networks)))
    with pytest.raises(UsageError, match="empty list of networks"):
        inferer()(image, [])


def test_air_is_skipped_and_the_body_is_found_in_place() -> None:
    voxels = torch.zeros(1, 1, 40, 30, 20)
    voxels[0, 0, 25:31, 4:10, 11:15] = 1
    calls = []

    def network(window: torch.Tensor) -> torch.Tensor:
        calls.append(window.shape)
        return Threshold()(window)

    run = inferer(roi_size=(8, 8, 8), skip_below=0.0)

    assert torch.equal(run(volume(voxels), network).as_tensor(), voxels.byte())
    assert len(calls) == 1
    assert not run(volume(torch.zeros(1, 1, 40, 30, 20)), network).any()
    assert len(calls) == 1, "nothing but air needs no network"


def test_probabilities_of_chosen_classes_come_back_instead_of_labels() -> None:
    image = volume(torch.randn(1, 1, 6, 5, 4, generator=torch.Generator().manual_seed(0)))

    result = inferer(probabilities_of=(2, 0))(image, near(1, 3))

    with torch.no_grad():
        wanted = torch.softmax(near(1, 3)(image.as_tensor()), dim=1)[:, [2, 0]]
    assert result.shape == (1, 2, 6, 5, 4)
    torch.testing.assert_close(result.as_tensor(), wanted, atol=1e-5, rtol=0)


def test_overlapping_regions_become_labels_in_their_order() -> None:
    image = volume(torch.tensor([-1.0, 1, 2, 3]).reshape(1, 1, 1, 1, 4))

    def network(window: torch.Tensor) -> torch.Tensor:
        return torch.cat((window, window - 1.5, window - 2.5), dim=1)

    for flips in ((), (1, 2)):
        run = inferer(regions=(2, 1, 3), flip_axes=flips)
        assert run(image, network).flatten().tolist() == [0, 2, 1, 3]


def test_windows_are_enlarged_only_if_asked_and_as_far_as_memory_allows() -> None:
    image = volume(torch.randn(1, 1, 40, 40, 40, generator=torch.Generator().manual_seed(0)))
    seen = []

    def network(window: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(window.shape[2:]))
        return torch.cat((window, -window), dim=1)

    plain = inferer(roi_size=(16, 16, 16))(image, network)
    assert set(seen) == {(16, 16, 16)}
    seen.clear()
    large = inferer(roi_size=(16, 16, 16), window="largest", window_multiple=8)(image, network)
    assert seen[1:] == [(40, 40, 40)]  # after the probe

    assert torch.equal(plain, large)
    for window in ("as_trained", "largest"):
        with pytest.raises(UsageError, match="raise max_memory"):
            inferer(roi_size=(16, 16, 16), window=window, max_memory=2**20)(image, network)
    assert torch.equal(plain, inferer(roi_size=(16, 16, 16), max_memory=2**30)(image, network))


def test_a_volume_without_voxels_or_with_some_that_are_no_numbers_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(1, 1, 4, 0, 4\), expected one volume"):
        inferer()(volume(torch.ones(1, 1, 4, 0, 4)), Threshold())
    for wrong in (torch.nan, torch.inf, -torch.inf):
        image = torch.ones(1, 1, 4, 4, 4)
        image[0, 0, 1, 2, 3] = wrong
        with pytest.raises(InputError, match="not finite"):
            inferer()(volume(image), Threshold())
    flat = volume(torch.ones(1, 1, 4, 4, 4))
    flat.meta["original_affine"] = np.diag((1.0, 0, 1, 1))
    with pytest.raises(InputError, match="describe no grid"):
        inferer()(flat, Threshold())


LIMITED = """
import re, resource, sys
from pathlib import Path
import numpy as np, torch
from monai.data import MetaTensor
from voxelgate.inference.precision import keep_large_buffers
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer

keep_large_buffers()

def volume(slices):
    meta = {"original_affine": np.diag((0.5, 0.5, 1, 1)), "spatial_shape": np.array((192, 192, slices))}
    image = torch.linspace(0, 19, 96)[:, None, None].repeat(1, 1, 1, 96, slices)
    return MetaTensor(image, meta=meta | {"affine": torch.eye(4)})

def network(windows):
    classes = torch.arange(20.0).reshape(1, -1, 1, 1, 1)
    return -8 * (windows - classes).abs()

inferer = RestoringSlidingWindowInferer(roi_size=(96, 96, 16), overlap=0.25)
inferer(volume(20), network)
slices = int(sys.argv[1])
image = volume(slices)
before = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
resource.setrlimit(resource.RLIMIT_AS, (before + int(sys.argv[2]), -1))
assert inferer(image, network)[0, 0, :, 0, slices - 1].unique().numel() == 20
"""


@pytest.mark.slow
def test_full_volumes_stay_below_a_limit_of_memory_that_their_class_scores_would_break() -> None:
    slices = 400
    scores_bytes = 4 * 20 * 96 * 96 * slices
    result_bytes = 192 * 192 * slices
    limit = 2 * result_bytes + 2**27  # the batch of a loader is a copy of the result

    command = [sys.executable, "-c", LIMITED, str(slices), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert limit < 0.6 * scores_bytes


@settings(max_examples=12, deadline=None)
@given(
    size=st.tuples(*(st.integers(9, 30) for _ in range(3))),
    flip_axes=st.sampled_from([(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]),
    networks=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_streaming_gives_the_labels_of_one_window_over_the_whole_volume(
    size: tuple[int, int, int], flip_axes: tuple[int, ...], networks: int, seed: int
) -> None:
    torch.manual_seed(seed)
    models = [
        AttentionUNet(in_channels=1, out_channels=3, channels=(4, 8), norm="batch").eval() for _ in range(networks)
    ]
    image = MetaTensor(
        torch.randn(1, 1, *size), affine=torch.diag(torch.tensor([1.0, 1.2, 1.5, 1.0], dtype=torch.float64))
    )
    image.meta |= {"original_affine": np.diag([0.8, -1.0, 2.0, 1.0]), "spatial_shape": np.array((20, 18, 16))}
    asked = {"flip_axes": flip_axes, "probabilities_of": (1,)}

    streamed = RestoringSlidingWindowInferer(roi_size=(8, 8, 8), streaming=True, **asked)(image, models)
    whole = RestoringSlidingWindowInferer(roi_size=(64, 64, 64), **asked)(image, models)

    torch.testing.assert_close(streamed.as_tensor(), whole.as_tensor(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("flip_axes", [(), (1,)])
def test_a_body_in_air_streams_alone_to_the_labels_of_the_whole_volume(
    flip_axes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = AttentionUNet(in_channels=1, out_channels=3, channels=(4, 8, 16), norm="batch").eval()
    image = MetaTensor(torch.zeros(1, 1, 70, 81, 60), affine=torch.eye(4, dtype=torch.float64))
    image[0, 0, 21:42, 13:40, 30:55] = torch.rand(21, 27, 25) + 0.1
    image.meta |= {"original_affine": np.eye(4), "spatial_shape": np.array((70, 81, 60))}
    computed = []

    def counted(self: MirroredViews, part: torch.Tensor, networks: Any) -> Any:
        computed.append(part[0, 0].numel())
        return views_stream(self, part, networks)

    views_stream = MirroredViews.stream
    monkeypatch.setattr(MirroredViews, "stream", counted)
    whole, body = (
        RestoringSlidingWindowInferer(roi_size=(8, 8, 8), streaming=True, flip_axes=flip_axes, skip_below=air)(
            image, model
        )
        for air in (None, 0.0)
    )

    assert computed[1] < 0.35 * computed[0]
    in_body = (slice(None), slice(None), slice(21, 42), slice(13, 40), slice(30, 55))
    assert (whole[in_body] == body[in_body]).float().mean() > 0.999
    assert len(whole[in_body].unique()) > 1


def test_a_network_that_cannot_be_streamed_and_an_image_mirrored_everywhere_get_windows() -> None:
    torch.manual_seed(0)
    image = MetaTensor(torch.randn(1, 1, 12, 13, 14), affine=torch.eye(4, dtype=torch.float64))
    image.meta |= {"original_affine": np.eye(4), "spatial_shape": np.array((12, 13, 14))}
    for norm, flip_axes in (("instance", ()), ("batch", (0, 1, 2))):
        model = AttentionUNet(in_channels=1, out_channels=2, channels=(4, 8), norm=norm).eval()
        labels = [
            RestoringSlidingWindowInferer(roi_size=(8, 8, 8), streaming=streaming, flip_axes=flip_axes)(image, model)
            for streaming in (True, False)
        ]
        assert torch.equal(labels[0], labels[1])


def test_streaming_that_does_not_fit_the_memory_is_left_to_windows_which_say_what_they_need() -> None:
    torch.manual_seed(0)
    model = AttentionUNet(in_channels=1, out_channels=2, channels=(4, 8), norm="batch").eval()
    image = MetaTensor(torch.randn(1, 1, 60, 60, 20), affine=torch.eye(4, dtype=torch.float64))
    image.meta |= {"original_affine": np.eye(4), "spatial_shape": np.array((60, 60, 20))}
    needed = streaming_cost(model, (60, 20), axis=0).peak_bytes
    enough, too_little = (
        RestoringSlidingWindowInferer(roi_size=(16, 16, 16), streaming=True, max_memory=limit)
        for limit in (2 * needed, needed)
    )

    assert enough(image, model).shape == (1, 1, 60, 60, 20)
    with pytest.raises(UsageError, match="max_memory"):
        too_little(image, model)
