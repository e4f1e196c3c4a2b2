"""Models of several networks: parts, crops and cascades, made of networks that are thresholds."""

import shutil
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from scipy import ndimage
from torch import nn

from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.geometry import Grid
from voxelgate.inference.class_planes import Planes, gathered
from voxelgate.inference.composed.cascade_inferer import CascadeInferer
from voxelgate.inference.composed.cropped_inferer import CroppedInferer
from voxelgate.inference.composed.ensemble_inferer import EnsembleInferer
from voxelgate.inference.composed.part import Part, brought_back
from voxelgate.inference.composed.parts_inferer import PartsInferer
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.source_grid import grids_of, on_source
from voxelgate.transforms.canonical_zoom import CanonicalZoomd
from voxelgate.transforms.io import as_image

AFFINES = {
    "RAS": np.diag([0.8, 0.9, 1.3, 1.0]),
    "LPS": np.diag([-0.8, -0.9, 2.5, 1.0]),
    "turned": np.array([[0.0, 0.0, 1.1, 4], [-0.9, 0.0, 0.0, 5], [0.0, 1.2, 0.0, 6], [0, 0, 0, 1]]),
}


class AtLeast(nn.Module):
    """Gives each voxel the number of thresholds that it reaches."""

    def __init__(self, *thresholds: float) -> None:
        super().__init__()
        self.thresholds = thresholds

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return sum((image >= threshold).to(torch.uint8) for threshold in self.thresholds)


class Direct:
    """An inferer that asks a network once, and remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.told: dict[str, Any] = {}

    def __call__(self, image: MetaTensor, network: Any) -> MetaTensor:
        self.seen.append(tuple(image.shape))
        labels = network[0](image.as_tensor()) if isinstance(network, list) else network(image.as_tensor())
        source, own = grids_of(image)
        assert source.agrees(own)
        return on_source(labels[0, :1], image, source, {"confidence": torch.tensor([torch.nan, 0.75])})

    def within(self, limit_bytes: int) -> "Direct":
        changed = Direct()
        changed.told = {"within": limit_bytes}
        return changed

    def adjusted(self, asked: PassOptions) -> "Direct":
        changed = Direct()
        changed.told = asked.changes
        return changed


def image_of(voxels: np.ndarray, affine: np.ndarray | None = None) -> MetaTensor:
    return as_image(voxels[None], Grid(voxels.shape, np.eye(4) if affine is None else affine))[None]


def labels_of(result: MetaTensor) -> np.ndarray:
    return result.as_tensor()[0, 0].numpy()


RAMP = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def test_labels_of_parts_become_those_of_the_whole_and_later_parts_win() -> None:
    inferer = PartsInferer([Part(Direct(), [0], labels=[0, 3, 9]), Part(Direct(), [1], labels=[0, 300])])

    result = inferer(image_of(RAMP), nn.ModuleList([AtLeast(4, 8), AtLeast(20)]))

    expected = np.where(RAMP >= 20, 300, np.where(RAMP >= 8, 9, np.where(RAMP >= 4, 3, 0)))
    np.testing.assert_array_equal(labels_of(result), expected)
    assert labels_of(result).dtype == np.uint16


def test_a_later_part_that_finds_nothing_leaves_what_was_found() -> None:
    inferer = PartsInferer([Part(Direct(), [0], labels=[0, 1]), Part(Direct(), [1], labels=[0, 2])])

    result = inferer(image_of(RAMP), nn.ModuleList([AtLeast(4), AtLeast(99)]))

    np.testing.assert_array_equal(labels_of(result), RAMP >= 4)


def test_a_label_that_has_no_value_in_the_whole_is_background() -> None:
    result = PartsInferer([Part(Direct(), labels=[0, 7])])(image_of(RAMP), AtLeast(4, 12))

    np.testing.assert_array_equal(labels_of(result), np.where((RAMP >= 4) & (RAMP < 12), 7, 0))


def test_what_is_not_wanted_is_neither_run_nor_found() -> None:
    unwanted, wanted = Direct(), Direct()
    inferer = PartsInferer([Part(unwanted, [0], labels=[0, 1]), Part(wanted, [1], labels=[0, 2, 3])])

    result = inferer.restricted_to([3])(image_of(RAMP), nn.ModuleList([AtLeast(0), AtLeast(4, 12)]))

    np.testing.assert_array_equal(labels_of(result), np.where(RAMP >= 12, 3, 0))
    assert not unwanted.seen
    assert wanted.seen


def test_limits_and_options_reach_every_part() -> None:
    inferer = CroppedInferer(Part(Direct()), Part(PartsInferer([Part(Direct())])), labels=[1])

    limited, changed = inferer.within(5), inferer.adjusted(PassOptions(step_size=0.8))

    assert limited.rough.inferer.told == limited.inner.inferer.parts[0].inferer.told == {"within": 5}
    assert changed.rough.inferer.told == changed.inner.inferer.parts[0].inferer.told == {"step_size": 0.8}


def test_what_an_inferer_cannot_follow_is_refused() -> None:
    inferer = CroppedInferer(Part(Direct()), Part(Direct()), labels=[1])

    with pytest.raises(UsageError, match="Direct cannot be restricted to what is asked for"):
        inferer.restricted_to([1])


def test_certainty_is_told_of_the_labels_of_the_whole() -> None:
    result = PartsInferer([Part(Direct(), labels=[0, 4])])(image_of(RAMP), AtLeast(4))

    stated = torch.as_tensor(result.meta["confidence"]).flatten()
    assert stated[4] == 0.75
    assert torch.isnan(stated[:4]).all()


def test_joined_labels_are_cleaned_before_they_return() -> None:
    def without_ones(data: dict[str, Any]) -> dict[str, Any]:
        return {"pred": data["pred"] * (data["pred"] != 1)}

    result = PartsInferer([Part(Direct())], cleaning=without_ones)(image_of(RAMP), AtLeast(4, 12))

    np.testing.assert_array_equal(labels_of(result), np.where(RAMP >= 12, 2, 0))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_labels_return_to_the_source_as_totalsegmentator_resamples_them(affine: np.ndarray) -> None:
    voxels = np.random.default_rng(0).normal(0, 400, (17, 12, 23)).astype(np.float32)
    source = image_of(voxels, affine)
    zoomed = CanonicalZoomd("image", 1.5)({"image": source[0]})["image"][None]
    labels = np.random.default_rng(1).integers(0, 200, zoomed.shape[2:], dtype=np.uint8)

    result = brought_back(labels, zoomed, {})

    canonical = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    zoom = np.array(canonical.shape) / labels.shape
    back = ndimage.zoom(labels.astype(np.float64), zoom, mode="nearest", order=0).astype(np.uint8)
    to_source = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.io_orientation(affine))
    np.testing.assert_array_equal(labels_of(result), nib.apply_orientation(back, to_source))
    np.testing.assert_allclose(result.affine.reshape(4, 4).numpy(), affine)


def test_a_large_volume_in_thirds_is_joined_without_a_seam() -> None:
    voxels = np.random.default_rng(0).integers(0, 50, (2, 3, 211)).astype(np.float32)
    direct = Direct()

    result = PartsInferer([Part(direct)], split_above_vox=100)(image_of(voxels), AtLeast(10, 30))

    np.testing.assert_array_equal(labels_of(result), AtLeast(10, 30)(torch.from_numpy(voxels)).numpy())
    assert [shape[-1] for shape in direct.seen] == [90, 109, 90]


def test_only_the_surroundings_of_what_was_found_roughly_are_seen() -> None:
    voxels = np.zeros((20, 18, 16), np.float32)
    voxels[8:10, 8:10, 8:10] = 5.9
    voxels[0, 0, 0] = 4
    inner = Direct()
    inferer = CroppedInferer(Part(Direct(), [0]), Part(inner, [1]), labels=[1], margin_mm=(2, 3, 0))

    result = inferer(image_of(voxels, np.diag([1.0, 1.6, 1, 1])), nn.ModuleList([AtLeast(5), AtLeast(4, 5.5)]))

    assert inner.seen == [(1, 1, 6, 4, 2)]
    np.testing.assert_array_equal(labels_of(result), voxels > 5)  # 5.9 is cut to 5, and 4 lies outside
    np.testing.assert_array_equal(np.ravel(result.meta["confidence"]), [np.nan, 0.75])


def test_where_nothing_is_found_roughly_nothing_is_found() -> None:
    inner = Direct()

    result = CroppedInferer(Part(Direct(), [0]), Part(inner, [1]), labels=[1])(
        image_of(RAMP), nn.ModuleList([AtLeast(99), AtLeast(0)])
    )

    assert not labels_of(result).any()
    assert not inner.seen


def test_a_crop_around_what_is_asked_for_waits_until_something_is_asked_for() -> None:
    rough, inner = Direct(), Direct()
    inferer = CroppedInferer(Part(rough, [0]), Part(PartsInferer([Part(inner, [1])]), [0, 1]), margin_mm=(0, 0, 0))
    networks = nn.ModuleList([AtLeast(4, 20), AtLeast(4, 22)])

    whole = inferer(image_of(RAMP), networks)
    part = inferer.restricted_to([2])(image_of(RAMP), networks)

    assert inner.seen == [(1, 1, 2, 3, 4), (1, 1, 1, 1, 4)]
    assert len(rough.seen) == 1
    np.testing.assert_array_equal(labels_of(whole), AtLeast(4, 22)(torch.from_numpy(RAMP)).numpy())
    np.testing.assert_array_equal(labels_of(part), np.where(RAMP >= 22, 2, 0))


def test_the_second_stage_of_a_cascade_sees_what_the_first_found() -> None:
    def with_labels(data: dict[str, Any]) -> dict[str, Any]:
        image, previous = data["image"], data["previous"]
        assert Grid.of(image).agrees(Grid.of(previous))
        return {"image": MetaTensor(image.as_tensor() * (previous.as_tensor() == 1), meta=image.meta)}

    inferer = CascadeInferer(Part(Direct(), [0]), Part(Direct(), [1], with_labels))

    result = inferer(image_of(RAMP), nn.ModuleList([AtLeast(4, 12), AtLeast(8)]))

    np.testing.assert_array_equal(labels_of(result), (RAMP >= 8) & (RAMP < 12))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: PartsInferer([]), "an empty list of parts"),
        (lambda: Part(Direct(), []), "networks \\(\\) of a part"),
        (lambda: Part(Direct(), labels=[1, 2]), "expected 0 for the background"),
        (lambda: Part(Direct(), [3]).of([AtLeast(1)]), "a part takes network 3, but there are 1"),
        (lambda: CroppedInferer(Part(Direct()), Part(Direct()), labels=[]), "an empty list of labels"),
        (lambda: CroppedInferer(Part(Direct()), Part(Direct()), margin_mm=(1, -1, 1)), "expected three of at least 0"),
    ],
)
def test_what_makes_no_model_is_refused(wrong: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        wrong()


class Planewise:
    """An inferer that takes what a network gives for logits, and tells them plane by plane along an axis."""

    def __init__(self, axis: int = 0) -> None:
        self.order = (axis, *(other for other in range(3) if other != axis))

    def planes(self, image: MetaTensor, network: Any) -> Planes:
        logits = network(image.as_tensor())[0].permute(0, *(1 + axis for axis in self.order)).half()
        return Planes(self._view, iter(logits.unbind(1)))

    def _view(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(*range(array.ndim - 3), *(array.ndim - 3 + axis for axis in self.order))


class Slopes(nn.Module):
    """Logits that rise with the image, each with a slope of its own."""

    def __init__(self, *slopes: float) -> None:
        super().__init__()
        self.slopes = slopes

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([slope * (image - 10) for slope in self.slopes], dim=1)


@pytest.mark.parametrize("axes", [(0, 0), (1, 1), (0, 2)], ids=["side by side", "along axis 1", "in turns"])
@pytest.mark.parametrize("regions", [None, (2, 1, 3)])
def test_an_ensemble_averages_probabilities(axes: tuple[int, int], regions: tuple[int, ...] | None) -> None:
    image = image_of(np.random.default_rng(0).normal(10, 3, (5, 6, 7)).astype(np.float32), AFFINES["LPS"])
    networks = nn.ModuleList([Slopes(0.1, 1, -1), Slopes(0.2, -3, 0.5)])
    inferer = EnsembleInferer([Part(Planewise(axis), [n]) for n, axis in enumerate(axes)], regions)

    result = inferer(image, networks)

    logits = [network(image.as_tensor())[0].half().float() for network in networks]
    confidence = [np.nan] * 4
    if regions is None:
        mean = sum(torch.softmax(one, 0) for one in logits) / 2
        expected = mean.argmax(0).numpy()
        confidence = [np.nan, *(mean[label].numpy()[expected == label].mean() for label in (1, 2))]
    else:
        mean, expected = sum(torch.sigmoid(one) for one in logits) / 2, np.zeros((5, 6, 7))
        for region, probability in zip(regions, mean, strict=True):
            expected[probability > 0.5] = region
            confidence[region] = float(probability[probability > 0.5].mean())
    np.testing.assert_array_equal(labels_of(result), expected)
    assert len(np.unique(expected)) > 1
    np.testing.assert_allclose(np.ravel(result.meta["confidence"]), confidence, rtol=1e-5)


def test_a_cascade_can_be_a_member_of_an_ensemble() -> None:
    cascade = CascadeInferer(Part(Direct(), [0]), Part(Planewise(), [1], lambda data: {"image": data["image"]}))
    networks = nn.ModuleList([AtLeast(4), Slopes(0, 1)])

    result = EnsembleInferer([Part(cascade, [0, 1]), Part(Planewise(), [1])])(image_of(RAMP), networks)

    np.testing.assert_array_equal(labels_of(result), RAMP > 10)


@pytest.mark.parametrize("axes", [(0, 0), (0, 2)], ids=["side by side", "in turns"])
@pytest.mark.parametrize("regions", [None, (2, 1, 3)])
def test_an_ensemble_tells_the_averages_it_decides_by(axes: tuple[int, int], regions: tuple[int, ...] | None) -> None:
    image = image_of(np.random.default_rng(0).normal(10, 3, (5, 6, 7)).astype(np.float32), AFFINES["LPS"])
    networks = nn.ModuleList([Slopes(0.1, 1, -1), Slopes(0.2, -3, 0.5)])
    members = [Part(Planewise(axis), [number]) for number, axis in enumerate(axes)]

    told = EnsembleInferer(members, regions, probabilities_of=(2, 0))(image, networks)

    logits = [network(image.as_tensor())[0].half().float() for network in networks]
    mean = sum(torch.softmax(one, 0) if regions is None else torch.sigmoid(one) for one in logits) / 2
    torch.testing.assert_close(told.as_tensor()[0], mean[[2, 0]])
    assert Grid.of(told).agrees(Grid.of(image))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_cascade_tells_the_probabilities_of_its_second_stage_on_the_grid_of_the_source(affine: np.ndarray) -> None:
    reordered = Orientation("PIL", labels=None)(image_of(RAMP, affine)[0])[None]
    second = Part(Planewise(1), [1], lambda data: {"image": data["image"]})
    networks = nn.ModuleList([AtLeast(4), Slopes(0, 1, -1)])

    told = CascadeInferer(Part(Direct(), [0]), second, probabilities_of=(1, 2))(reordered, networks)

    expected = torch.softmax(networks[1](torch.from_numpy(RAMP)[None, None])[0].half().float(), 0)[1:]
    torch.testing.assert_close(told.as_tensor()[0], expected)
    assert np.array_equal(Grid.of(told).affine, affine)


def test_where_a_member_saw_nothing_there_is_background() -> None:
    def planes() -> Planes:
        return Planes(lambda array: array[..., 1:, :, :], iter([np.full((2, 1, 1), 0.5, np.float32)]))

    classes = gathered(planes(), (3, 1, 1), (1, 0), are_regions=False)
    regions = gathered(planes(), (3, 1, 1), (1, 0), are_regions=True)

    assert classes[..., 0, 0].tolist() == [[0, 0.5, 0], [1, 0.5, 1]]
    assert regions[..., 0, 0].tolist() == [[0, 0.5, 0]] * 2


def test_probabilities_of_channels_that_are_not_there_are_refused() -> None:
    inferer = EnsembleInferer([Part(Planewise(), [0]), Part(Planewise(), [0])], probabilities_of=(2,))

    with pytest.raises(UsageError, match="the network gives 2 classes"):
        inferer(image_of(RAMP), nn.ModuleList([Slopes(0, 1)]))


def test_members_of_other_classes_are_refused() -> None:
    inferer = EnsembleInferer([Part(Planewise(), [0]), Part(Planewise(), [1])])

    with pytest.raises(BundleError, match="gives 3 classes and the first one 2"):
        inferer(image_of(RAMP), nn.ModuleList([Slopes(0, 1), Slopes(0, 1, 2)]))


def test_a_sum_that_the_disk_cannot_hold_is_refused_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    inferer = EnsembleInferer([Part(Planewise(axis), [0]) for axis in (0, 2)])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**20, 2**20, 0))

    with pytest.raises(UsageError, match=r"needs 0\.0 GiB on disk, 0\.0 GiB are free in .*set TMPDIR"):
        inferer(image_of(RAMP), nn.ModuleList([Slopes(0, 1)]))


def test_a_member_that_gives_labels_only_is_refused() -> None:
    inferer = EnsembleInferer([Part(Direct(), [0]), Part(Planewise(), [1])])

    with pytest.raises(UsageError, match="Direct gives labels only"):
        inferer(image_of(RAMP), nn.ModuleList([AtLeast(0), Slopes(0, 1)]))


def test_an_ensemble_of_one_is_refused() -> None:
    with pytest.raises(UsageError, match="an ensemble of 1"):
        EnsembleInferer([Part(Planewise())])
