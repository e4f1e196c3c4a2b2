"""The pass of nnU-Net: places of windows, half sums, and planes brought back, against the same for a whole volume."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from skimage.transform import resize
from torch import nn

from tests.inference.prepared_images import Prepared
from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.inference.nnunet.decisions import decision_of
from voxelgate.inference.nnunet.logit_planes import logit_planes
from voxelgate.inference.nnunet.nnunet_inferer import NnUNetInferer
from voxelgate.inference.nnunet.source_box import source_box
from voxelgate.inference.nnunet.source_planes import PlaneRestorer, neighbours
from voxelgate.inference.nnunet.taps import restoring_taps
from voxelgate.inference.nnunet.tiles import Tiles
from voxelgate.inference.nnunet.torch_planes import TorchRestorer
from voxelgate.inference.nnunet.window_scores import window_network
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.threads import LoneWorkers
from voxelgate.networks import PlainConvUNet
from voxelgate.transforms.nnunet.resample import resample_by_torch

CASE = Prepared((12, 20, 22), (1.0, 0.8, 0.7), (9, 13, 15), ((0, 12), (2, 20), (1, 22)))

sizes = st.tuples(*(st.integers(1, 7) for _ in range(3)))


def noise(*shape: int, levels: int = 2**10) -> torch.Tensor:
    """Return float16 noise with many ties if there are few levels."""
    whole = torch.randint(-levels, levels + 1, shape, generator=torch.Generator().manual_seed(sum(shape)))
    return (whole * (16 / levels)).half()


def whole_volume(logits: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Return logits as nnU-Net resamples them, channel by channel by scikit-image."""
    if tuple(logits.shape[1:]) == shape:
        return logits.numpy()
    channels = logits.numpy().astype(np.float64)
    restored = [resize(channel, shape, 1, mode="edge", anti_aliasing=False) for channel in channels]
    return np.stack(restored).astype(np.float16)


@given(sizes, sizes, st.integers(2, 5), st.sampled_from([2, 16, 2**10]))
def test_planes_are_those_of_the_whole_volume(
    network: tuple[int, int, int], source: tuple[int, int, int], classes: int, levels: int
) -> None:
    logits = noise(classes, *network, levels=levels)
    taps = restoring_taps(network, source, None)
    restorer = PlaneRestorer(taps, decision_of(None))
    found = list(neighbours(logits.movedim(1, 0), taps[0], restorer.decision))
    expected = whole_volume(logits, source)
    restored = np.stack([restorer.logits(index, planes).numpy() for index, planes in enumerate(found)], axis=1)
    assert np.array_equal(restored, expected)
    labels = np.stack([restorer.labels(index, planes).numpy() for index, planes in enumerate(found)])
    assert np.array_equal(labels, expected.argmax(axis=0))


@given(sizes, sizes, st.sampled_from([2, 2**10]))
def test_regions_are_those_of_the_whole_volume(
    network: tuple[int, int, int], source: tuple[int, int, int], levels: int
) -> None:
    logits = noise(3, *network, levels=levels)
    taps = restoring_taps(network, source, None)
    restorer = PlaneRestorer(taps, decision_of((2, 1, 7)))
    expected = np.zeros(source, np.int32)
    for channel, label in zip(whole_volume(logits, source), (2, 1, 7), strict=True):
        expected[(torch.sigmoid(torch.from_numpy(channel).float()) > 0.5).numpy()] = label
    found = neighbours(logits.movedim(1, 0), taps[0], restorer.decision)
    labels = np.stack([restorer.labels(index, planes).numpy() for index, planes in enumerate(found)])
    assert np.array_equal(labels, expected)


prepared_sizes = st.tuples(st.integers(1, 20), st.integers(2, 20), st.integers(2, 20))


@settings(max_examples=20)
@given(
    prepared_sizes,
    st.tuples(*(st.integers(1, 40) for _ in range(3))),
    st.integers(2, 4),
    st.sampled_from([None, 0, 1, 2]),
)
@example((9, 8, 7), (90, 80, 70), 2, None)
@example((3, 8, 7), (9, 80, 70), 3, 0)
@example((30, 20, 7), (90, 80, 9), 2, 2)
@example((1, 20, 3), (60, 80, 9), 3, 1)
def test_planes_that_pytorch_interpolates_have_the_bits_of_the_whole_volume(
    network: tuple[int, int, int], source: tuple[int, int, int], classes: int, apart: int | None
) -> None:
    logits = noise(classes, *network)
    restorer = TorchRestorer.of(network, source, apart, decision_of(None))
    expected = torch.from_numpy(resample_by_torch(logits.numpy(), source, apart)).float()

    found = list(neighbours(logits.movedim(1, 0), restorer.taps[0], restorer.decision))

    restored = torch.stack([restorer.logits(index, planes) for index, planes in enumerate(found)], dim=1)
    assert torch.equal(restored, expected)
    labels = torch.stack([restorer.labels(index, planes) for index, planes in enumerate(found)])
    assert torch.equal(labels, expected.argmax(dim=0))


@given(sizes, sizes, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_windows_reach_both_ends_and_leave_no_gap(
    size: tuple[int, int, int], window: tuple[int, int, int], step: float
) -> None:
    tiles = Tiles(size, window, step)
    for starts, n, length in zip(tiles.starts, tiles.padded_vox, window, strict=True):
        assert starts[0] == 0
        assert starts[-1] == n - length
        assert all(0 <= b - a <= length for a, b in itertools.pairwise(starts))


def test_the_ring_gives_the_half_sums_of_the_whole_volume() -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 3, padding=1).eval()
    image = torch.randn(1, 1, 11, 9, 12)
    tiles = Tiles((11, 9, 12), (4, 10, 6), 0.5)
    padded, weights = tiles.padded(image), tiles.weights()
    sums, counts = (torch.zeros((channels, *tiles.padded_vox), dtype=torch.half) for channels in (3, 1))
    with torch.no_grad():
        for corner in itertools.product(*tiles.starts):
            place = tuple(slice(start, start + n) for start, n in zip(corner, (4, 10, 6), strict=True))
            sums[(slice(None), *place)] += network(padded[(slice(None), slice(None), *place)].clone())[0] * weights
            counts[(slice(None), *place)] += weights
    expected = (sums / counts)[(slice(None), *tiles.inside)]
    with LoneWorkers() as workers:
        planes = list(logit_planes(image, [window_network(network)], tiles, workers, 2**30))
    assert torch.equal(torch.stack(planes, dim=1), expected)


@pytest.mark.parametrize(
    ("heads", "groups"), [(2, [2]), (31, [31]), (32, [16, 16]), (47, [16, 31]), (105, [16] * 5 + [25])]
)
@pytest.mark.parametrize("size", [(8, 8, 8), (16, 24, 20), (40, 36, 44)])
def test_the_head_gives_the_same_bits_in_groups(heads: int, groups: list[int], size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = PlainConvUNet(in_channels=1, out_channels=heads, channels=(10, 12)).eval()
    window = torch.randn(1, 1, *size)
    with torch.no_grad():
        found = list(window_network(network).logits(window))
        assert [logits.shape[1] for logits in found] == groups
        assert torch.equal(torch.cat(found, dim=1), network(window))


def test_a_mirrored_image_gives_its_labels_in_the_same_place() -> None:
    image = CASE.image()
    infer = NnUNetInferer(patch_size=(9, 13, 15), spacing=(1.0, 1.0, 1.0))
    network = nn.Conv3d(1, 3, 1)
    affine = image.affine.clone()
    affine[:3, 3] += affine[:3, 1] * (image.shape[3] - 1)
    affine[:3, 1] *= -1
    mirrored = MetaTensor(image.as_tensor().flip(3), meta={**image.meta, "affine": affine})
    assert torch.equal(infer(mirrored, network), infer(image, network))


@pytest.mark.parametrize("regions", [None, (3, 1, 2)])
def test_the_confidence_is_the_mean_probability_of_what_was_found(regions: tuple[int, ...] | None) -> None:
    image = Prepared((9, 13, 15), (1.0, 1.0, 1.0), (9, 13, 15), ((0, 9), (0, 13), (0, 15))).image()
    infer = NnUNetInferer(patch_size=(8, 8, 8), spacing=(1.0, 1.0, 1.0), regions=regions)
    network = nn.Conv3d(1, 3, 1)
    logits = torch.stack(list(infer.planes(image, network).values), dim=1).float()

    told = infer(image, network).meta["confidence"]

    if regions is None:
        probabilities, labels = logits.softmax(dim=0), logits.argmax(dim=0)
        expected = [np.nan, *(float(probabilities[label][labels == label].mean()) for label in (1, 2))]
    else:
        means = {label: float(one[one > 0.5].mean()) for label, one in zip(regions, logits.sigmoid(), strict=True)}
        expected = [np.nan, *(means[label] for label in (1, 2, 3))]
    np.testing.assert_allclose(np.ravel(told), expected, rtol=1e-5)


def test_planes_of_logits_become_the_labels_in_the_view_of_a_prepared_image() -> None:
    image, network = CASE.image(), nn.Conv3d(1, 3, 1)
    infer = NnUNetInferer(patch_size=(8, 8, 8), spacing=(1.0, 1.0, 1.0))
    labels = np.zeros((22, 20, 12), np.uint8)
    planes = infer.planes(image, network)
    view = planes.view(labels)
    for index, logits in enumerate(planes.values):
        view[index] = logits.numpy().argmax(axis=0)
    assert np.array_equal(labels, infer(image, network).numpy()[0, 0])


def test_a_turned_image_is_refused() -> None:
    source = Grid((9, 9, 9), np.eye(4))
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(InputError, match="turned against the file"):
        source_box(source, Grid((9, 9, 9), turned))
    beyond = np.eye(4)
    beyond[0, 3] = 3
    with pytest.raises(InputError, match="no whole voxels"):
        source_box(source, Grid((9, 9, 9), beyond))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": (4,), "spacing": (1.0,)}, "windows of"),
        ({"step_size": 0.0}, "step above 0"),
        ({"spacing": (1.0, 1.0)}, "spacing"),
        ({"mirror_axes": (3,)}, "mirror_axes"),
        ({"regions": ()}, "regions"),
        ({"resampling": {"function": "resample_data_or_seg_to_shape", "order": 3}}, "splines of order 3"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NnUNetInferer(**{"patch_size": (4, 4, 4), "spacing": (1.0, 1.0, 1.0), **settings})


def test_logits_that_stay_where_a_resampled_image_was_are_refused() -> None:
    infer = NnUNetInferer(patch_size=(8, 8, 8), spacing=(1.0, 1.0, 1.0), resampling={"function": "no_resampling_hack"})
    with pytest.raises(BundleError, match="but its logits are not brought back"):
        infer(CASE.image(), nn.Conv3d(1, 2, 1))


def test_logits_beyond_float16_are_refused() -> None:
    network = nn.Conv3d(1, 2, 1)
    nn.init.constant_(network.bias, 1e5)
    with pytest.raises(BundleError, match="not finite, or too large"):
        NnUNetInferer(patch_size=(8, 8, 8), spacing=(1.0, 1.0, 1.0))(CASE.image(), network)


def test_a_network_that_gives_other_sizes_is_refused() -> None:
    with pytest.raises(BundleError, match="expected one score"):
        NnUNetInferer(patch_size=(8, 8, 8), spacing=(1.0, 1.0, 1.0))(CASE.image(), nn.Conv3d(1, 2, 3))


@pytest.mark.slow
def test_a_fast_pass_gives_nearly_all_labels_of_the_exact_one() -> None:
    torch.manual_seed(0)
    folds = nn.ModuleList(PlainConvUNet(in_channels=1, out_channels=3, channels=(8, 12)) for _ in range(2)).eval()
    exact = NnUNetInferer(patch_size=(8, 12, 16), spacing=(1.0, 1.0, 1.0), mirror_axes=(0,))
    image, fast = CASE.image(), exact.adjusted(PassOptions(fast=True))
    labels = exact(image, folds)
    assert (fast(image, folds) == labels).double().mean() > 0.99
    assert torch.equal(exact.adjusted(PassOptions())(image, folds), labels)


def test_sums_beyond_the_memory_are_refused_before_they_are_made() -> None:
    infer = NnUNetInferer(patch_size=(8, 8, 8), spacing=(1.0, 1.0, 1.0)).within(2**14)
    with pytest.raises(UsageError, match="class scores of 8 planes"):
        infer(CASE.image(), nn.Conv3d(1, 9, 1))
