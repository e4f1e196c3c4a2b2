"""A foreign bundle's labels slab by slab: those of MONAI's own evaluator, voxel for voxel."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    CenterSpatialCropd,
    Compose,
    CropForegroundd,
    DivisiblePadd,
    Invertd,
    KeepLargestConnectedComponent,
    KeepLargestConnectedComponentd,
    Lambdad,
    LoadImaged,
    Orientationd,
    Resized,
    Rotated,
    Spacingd,
    SpatialPadd,
)
from scipy.sparse import csr_array
from scipy.spatial.transform import Rotation
from torch import nn

from tests.inference.stock import prepared, stock_labels, stock_result
from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.inference.chain import scores_back
from voxelgate.inference.chain.chain_inferer import ChainInferer
from voxelgate.inference.chain.chain_steps import Decision
from voxelgate.inference.mirroring import mirror_image
from voxelgate.inference.pass_options import PassOptions
from voxelgate.transforms import affine_slabs
from voxelgate.transforms.flat_spacing import FlatSpacingd

STEP = 2.0**-6
"""What weights and features of `ExactNetwork` are multiples of."""

TIE = 2.0**-20
"""Scores up to 1 that MONAI interpolates in float32 are as near as this if its rounding may decide."""

BRATS = ((2, 4), (0, 1), (1, 2))
KEEP = {"applied_labels": [1, 2]}


def merged(channels: torch.Tensor) -> torch.Tensor:
    """Return the labels that the bundle for brain tumours makes of its three channels."""
    first, second, third = channels[[0]] > 0, channels[[1]] > 0, channels[[2]] > 0
    return torch.where(third, 4, torch.where(first, 1, torch.where(second, 2, 0)))


def softmax() -> Any:
    return Activationsd("pred", softmax=True)


def sigmoid() -> Any:
    return Activationsd("pred", sigmoid=True)


def argmax() -> Any:
    return AsDiscreted("pred", argmax=True)


def threshold() -> list[Any]:
    return [AsDiscreted("pred", threshold=0.5), Lambdad("pred", merged)]


def invert(steps: Compose, *, nearest: bool = False) -> Any:
    return Invertd("pred", steps, orig_keys="image", nearest_interp=nearest)


def keep() -> Any:
    return KeepLargestConnectedComponentd("pred", **KEEP)


REGIONS = {"threshold": 0.5, "regions": BRATS}
CHAINS: dict[str, tuple[Any, list[Any]]] = {
    "spleen": (lambda before: [softmax(), invert(before), argmax()], ["softmax", "invert", "argmax"]),
    "whole body": (
        lambda before: [softmax(), argmax(), invert(before, nearest=True)],
        ["softmax", "argmax", "invert_nearest"],
    ),
    "prostate": (
        lambda before: [argmax(), keep(), invert(before, nearest=True)],
        ["argmax", KeepLargestConnectedComponent(**KEEP), "invert_nearest"],
    ),
    "tumours": (lambda before: [sigmoid(), invert(before), *threshold()], ["sigmoid", "invert", REGIONS]),
    "kidneys": (lambda before: [invert(before), sigmoid(), *threshold()], ["invert", "sigmoid", REGIONS]),
    "late softmax": (lambda before: [invert(before), softmax(), argmax()], ["invert", "softmax", "argmax"]),
    "cleaned": (
        lambda before: [softmax(), invert(before), argmax(), keep()],
        ["softmax", "invert", "argmax", KeepLargestConnectedComponent(**KEEP)],
    ),
}


def preparations(spacing_mm: tuple[float, ...], spacing: type[Spacingd]) -> dict[str, list[Any]]:
    """Return what bundles do before their network."""
    ras, resample = Orientationd("image", "RAS", labels=None), spacing("image", spacing_mm)
    bright = CropForegroundd("image", "image", select_fn=lambda image: image > 0.7 * image.max())
    return {
        "nothing": [],
        "turned": [ras],
        "resampled": [ras, resample],
        "resampled and cropped": [Orientationd("image", "LPS", labels=None), resample, bright],
        "resampled and turned": [resample, Orientationd("image", "PIR", labels=None)],
        "cropped, resampled and padded": [bright, resample, SpatialPadd("image", (24, 20, 18))],
        "averaged": [ras, Resized("image", (16, 14, 12), mode="area")],
        "resized": [ras, Resized("image", (16, 14, 12), mode="trilinear")],
        "nearest": [ras, spacing("image", spacing_mm, mode="nearest")],
        "corners": [ras, spacing("image", spacing_mm, align_corners=True)],
        "straightened": [Spacingd("image", spacing_mm, diagonal=True)],
    }


def draw_affine(rng: np.random.Generator, kind: str) -> np.ndarray:
    spacing_mm = np.full(3, rng.uniform(0.6, 2)) if kind == "isotropic" else rng.uniform(0.5, 3, 3)
    turn = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    if kind == "oblique":
        turn = Rotation.from_rotvec(rng.uniform(-0.5, 0.5, 3)).as_matrix() @ turn
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing_mm, rng.uniform(-99, 99, 3)
    return affine


class ExactNetwork(nn.Module):
    """Gives scores without any rounding, so that no kernel, batch or number of threads changes a bit of them.

    Whatever is added up is a multiple of `STEP` squared, and below 2**24 of it.
    """

    def __init__(self, classes: int, dimensions: int) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        self.first, self.last = convolution(1, 4, 3, padding=1), convolution(4, classes, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(in_steps(parameter))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.last(in_steps(self.first(in_steps(image)).relu()))


def in_steps(values: torch.Tensor) -> torch.Tensor:
    return (values / STEP).round() * STEP


def centred_network(image: torch.Tensor, inferer: Any, classes: int, *, dimensions: int = 3) -> nn.Module:
    """Return a random network whose scores on an image are about 0 on average, so that no class wins everywhere."""
    network = ExactNetwork(classes, dimensions).eval()
    with torch.no_grad():
        mean = inferer(image, network).as_tensor().mean(dim=(0, 2, 3, 4))
        network.last.bias -= in_steps(mean)
    return network


def draw_inferers(rng: np.random.Generator, way: str) -> tuple[Any, dict[str, Any]]:
    """Return MONAI's inferer and our words for it."""
    roi = tuple(int(n) for n in 2 * rng.integers(4, 12, 3))
    words: dict[str, Any] = {
        "overlap": float(rng.choice([0, 0.25, 0.5, 0.625])),
        "mode": str(rng.choice(["constant", "gaussian"])),
        "padding_mode": str(rng.choice(["constant", "replicate"])),
        "sw_batch_size": int(rng.integers(1, 5)),
        "sigma_scale": float(rng.choice([0.125, 0.2])),
    }
    if way == "whole":
        return SimpleInferer(), {}
    if way == "slices":
        axis = int(rng.integers(3))
        slices = SliceInferer(spatial_dim=axis, roi_size=roi[:2], **words)
        return slices, {"roi_size": roi[:2], "slice_axis": axis, **words}
    if rng.random() < 0.3:
        words["overlap"] = tuple(rng.uniform(0, 0.7, 3).tolist())
    return SlidingWindowInferer(roi, **words), {"roi_size": roi, **words}


@dataclass(frozen=True)
class Case:
    """A random image, what a bundle does with it, and our labels."""

    path: Path
    before: list[Any]
    stock: Any
    network: nn.Module
    after: list[Any]
    labels: np.ndarray

    @classmethod
    def draw(cls, path: Path, seed: int, kind: str, preparation: str, chain: str, way: str) -> "Case":
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        shape = rng.integers(9, 30, 3)
        shape[rng.integers(3)] *= rng.random() < 0.8  # else a single slice
        voxels = rng.normal(size=tuple(shape.clip(min=1))).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, draw_affine(rng, kind)), path)
        before = preparations(tuple(rng.uniform(0.6, 2.5, 3)), [Spacingd, FlatSpacingd][seed % 2])[preparation]
        before = [*before, DivisiblePadd("image", 2)] if way == "whole" and preparation != "averaged" else before
        stock, words = draw_inferers(rng, way)
        make_after, steps = CHAINS[chain]
        image = prepared(path, before)
        network = centred_network(image, stock, 4, dimensions=2 if way == "slices" else 3)
        labels = ChainInferer(steps=steps, **words)(image, network)
        after = make_after(Compose([LoadImaged("image"), *before]))
        return cls(path, before, stock, network, after, labels.numpy()[0, 0])

    def differs(self) -> np.ndarray:
        """Return where MONAI gives another label."""
        return self.labels != stock_labels(self.path, self.before, self.stock, self.network, self.after)

    def ties(self) -> np.ndarray:
        """Return where MONAI's scores are so near each other, or the threshold, that rounding may decide."""
        (decision,) = (place for place, step in enumerate(self.after) if isinstance(step, AsDiscreted))
        scores = stock_result(self.path, self.before, self.stock, self.network, self.after[:decision])
        if self.after[decision].converter.threshold is not None:
            return (np.abs(scores - 0.5) < TIE).any(axis=0)
        *_, second, first = np.sort(scores, axis=0)
        return first - second < TIE


def differing(path: Path, seed: int, kind: str, preparation: str, chain: str, way: str) -> int:
    """Return how many voxels of a random image get another label than MONAI gives."""
    return int(Case.draw(path, seed, kind, preparation, chain, way).differs().sum())


KINDS = st.sampled_from(["isotropic", "anisotropic", "oblique"])
EXACT = sorted(preparations((1.0, 1.0, 1.0), Spacingd).keys() - {"resized"})
PREPARATIONS = st.sampled_from(EXACT)
ANY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@given(
    st.integers(0, 2**20), KINDS, PREPARATIONS, st.sampled_from(sorted(CHAINS)), st.sampled_from(["windows", "whole"])
)
@settings(max_examples=15, **ANY)
def test_no_voxel_differs_from_the_evaluators(
    tmp_path: Path, seed: int, kind: str, preparation: str, chain: str, way: str
) -> None:
    assert differing(tmp_path / "scan.nii.gz", seed, kind, preparation, chain, way) == 0


@given(st.integers(0, 2**20), KINDS, PREPARATIONS, st.sampled_from(sorted(CHAINS)))
@settings(max_examples=5, **ANY)
def test_no_voxel_differs_slice_by_slice(tmp_path: Path, seed: int, kind: str, preparation: str, chain: str) -> None:
    assert differing(tmp_path / "scan.nii.gz", seed, kind, preparation, chain, "slices") == 0


def test_source_voxels_beyond_the_last_slice_need_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a slice that was still to come was read with a weight of 0; what lay in memory there was at times NaN."""

    def checked(*parts: Any, shape: tuple[int, int]) -> csr_array:
        weights = csr_array(*parts, shape=shape)
        weights.check_format(full_check=True)
        return weights

    monkeypatch.setattr(scores_back, "csr_array", checked)

    assert differing(tmp_path / "scan.nii.gz", 1, "oblique", "resampled", "spleen", "slices") == 0


def test_scores_that_are_activated_late_are_on_outside_of_a_crop_as_monai_has_it(tmp_path: Path) -> None:
    ways = enumerate(["turned", "resampled and cropped", "cropped, resampled and padded"])

    assert [
        differing(tmp_path / "scan.nii.gz", seed, "isotropic", way, "kidneys", "windows") for seed, way in ways
    ] == [0] * 3


def test_a_crop_that_begins_on_the_first_voxel_but_one_is_interpolated_at_its_rim(tmp_path: Path) -> None:
    """The first voxel of the image then lies on the rim but for the rounding of its position, which decides."""
    path = tmp_path / "scan.nii.gz"
    voxels = np.random.default_rng(0).normal(size=(18, 17, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([0.58, 1.67, 2.96, 1])), path)
    before = [Spacingd("image", (2.3, 1.9, 2.0)), CenterSpatialCropd("image", (2, 14, 22))]
    network, (make_after, steps) = nn.Conv3d(1, 4, 3, padding=1).eval(), CHAINS["spleen"]

    labels = ChainInferer(steps=steps)(prepared(path, before), network)

    expected = stock_labels(path, before, SimpleInferer(), network, make_after(Compose(before)))
    assert np.array_equal(labels.numpy()[0, 0], expected)


@pytest.mark.parametrize("chain", ["spleen", "tumours", "late softmax"])
def test_what_monai_resizes_in_float32_differs_by_ties_alone(tmp_path: Path, chain: str) -> None:
    case = Case.draw(tmp_path / "scan.nii.gz", 0, "oblique", "resized", chain, "windows")

    assert not (case.differs() & ~case.ties()).any()


def test_labels_that_are_resized_are_those_of_monai(tmp_path: Path) -> None:
    assert differing(tmp_path / "scan.nii.gz", 1, "oblique", "resized", "whole body", "windows") == 0


@pytest.mark.slow
@pytest.mark.parametrize("preparation", EXACT)
@pytest.mark.parametrize("kind", ["isotropic", "anisotropic", "oblique"])
def test_no_voxel_differs_whatever_was_done_before(tmp_path: Path, preparation: str, kind: str) -> None:
    for seed, chain in enumerate(CHAINS):
        assert differing(tmp_path / "scan.nii.gz", seed, kind, preparation, chain, "windows") == 0


@pytest.mark.parametrize("preparation", ["resampled", "resampled and cropped", "resampled and turned"])
def test_slabs_of_a_few_voxels_give_the_same_labels(
    tmp_path: Path, preparation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_back, "SLAB_POSITIONS", 50)
    monkeypatch.setattr(scores_back, "MIXED_SCORES", 100)
    monkeypatch.setattr(affine_slabs, "SLAB_POSITIONS", 50)

    assert differing(tmp_path / "scan.nii.gz", 5, "oblique", preparation, "spleen", "windows") == 0


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Return a small oblique image."""
    rng = np.random.default_rng(0)
    nib.save(
        nib.Nifti1Image(rng.normal(size=(22, 25, 12)).astype(np.float32), draw_affine(rng, "oblique")),
        tmp_path / "a.nii.gz",
    )
    return tmp_path / "a.nii.gz"


RESAMPLED = [Orientationd("image", "RAS", labels=None), Spacingd("image", (1.0, 1.2, 1.3))]
STEPS = ["softmax", "invert", "argmax"]


def test_a_mirrored_image_comes_back_onto_the_grid(scan: Path) -> None:
    image, pointwise = prepared(scan, RESAMPLED), nn.Conv3d(1, 4, 1).eval()
    inferer = ChainInferer(steps=STEPS, roi_size=(64, 64, 64))

    mirrored = inferer(mirror_image(image, 0), pointwise)

    found = inferer(image, pointwise)
    assert np.mean(mirrored.numpy() != found.numpy()) < 1e-3  # positions differ by their rounding
    np.testing.assert_allclose(mirrored.affine.numpy(), nib.load(scan).affine)


def test_slices_are_decided_on_before_the_last_windows_run(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.random.default_rng(0).normal(size=(90, 8, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), scan)
    order: list[str] = []
    network = nn.Conv3d(1, 3, 1).eval()
    network.register_forward_hook(lambda *_: order.append("window"))
    decide = Decision.codes
    monkeypatch.setattr(Decision, "codes", lambda *args: order.append("slab") or decide(*args))

    ChainInferer(steps=["argmax"], roi_size=(16, 8, 8), overlap=0.5)(prepared(scan, []), network)

    assert order == ["window", *["window", "slab"] * 10, "slab"]


def test_the_confidence_is_the_mean_probability_of_what_was_found(scan: Path) -> None:
    image, network = prepared(scan, RESAMPLED), nn.Conv3d(1, 3, 1).eval()
    highest, likeliest = network(image.as_tensor()).softmax(dim=1)[0].max(dim=0)

    result = ChainInferer(steps=STEPS, roi_size=(8, 8, 8))(image, network)

    means = [highest[likeliest == label].mean().item() for label in (1, 2)]
    np.testing.assert_allclose(result.meta["confidence"].numpy(), [np.nan, *means], rtol=1e-5)


def test_an_operation_that_cannot_be_taken_back_by_slabs_is_named(scan: Path) -> None:
    image = prepared(scan, [Rotated("image", 0.2)])

    with pytest.raises(BundleError, match=r"step Rotate is not known here; import the bundle with --faithful\."):
        ChainInferer(steps=STEPS)(image, nn.Conv3d(1, 2, 1))


def test_splines_are_refused(scan: Path) -> None:
    image = prepared(scan, [Spacingd("image", (1.0, 1.0, 1.0), mode=3, padding_mode="nearest")])

    with pytest.raises(BundleError, match="step SpatialResample has mode 3"):
        ChainInferer(steps=STEPS)(image, nn.Conv3d(1, 2, 1))


def test_labels_that_stay_on_the_network_grid_are_refused(scan: Path) -> None:
    with pytest.raises(BundleError, match=r"they need invert or invert_nearest\."):
        ChainInferer(steps=["argmax"])(prepared(scan, RESAMPLED), nn.Conv3d(1, 2, 1))


@pytest.mark.parametrize(
    ("classes", "steps", "told"),
    [
        (1, STEPS, "gives one channel"),
        (2, ["sigmoid", "invert", REGIONS], "gives 2 channels, but the regions name channel 2"),
    ],
)
def test_a_network_that_does_not_fit_the_steps_is_refused(
    scan: Path, classes: int, steps: list[Any], told: str
) -> None:
    with pytest.raises(BundleError, match=told):
        ChainInferer(steps=steps)(prepared(scan, RESAMPLED), nn.Conv3d(1, classes, 1))


def test_what_would_not_fit_is_refused_after_one_window(scan: Path) -> None:
    inferer = ChainInferer(steps=STEPS, roi_size=(8, 8, 8)).within(2**20)

    with pytest.raises(InputError, match=r"90 classes on a network grid of \d+x\d+x\d+ voxels need about"):
        inferer(prepared(scan, RESAMPLED), nn.Conv3d(1, 90, 1))


@pytest.mark.parametrize(
    "steps",
    [
        [],
        ["softmax", "invert"],
        ["softmax", "sigmoid", "argmax"],
        ["argmax", "invert"],
        ["argmax", "softmax"],
        ["invert", "argmax", "invert_nearest"],
        ["argmin"],
        [{"threshold": 0.5}],
        ["invert", "softmax", REGIONS],
        [{"threshold": 0.5, "regions": []}],
        [{"threshold": 0.5, "regions": [[0, 0]]}],
        [KeepLargestConnectedComponent(), "argmax"],
    ],
)
def test_steps_that_give_no_labels_are_refused(steps: list[Any]) -> None:
    with pytest.raises(UsageError):
        ChainInferer(steps=steps)


@pytest.mark.parametrize(
    "words",
    [
        {"roi_size": [8, 8]},
        {"roi_size": [8, 8, 8], "slice_axis": 2},
        {"roi_size": [8, 8, 8], "overlap": 1.0},
        {"roi_size": [8, 8, 8], "overlap": [0.5, 0.5]},
        {"roi_size": [8, 8, 8], "mode": "cosine"},
        {"roi_size": [8, 8, 8], "padding_mode": "mirror"},
        {"roi_size": [8, 8, 8], "sw_batch_size": 0},
        {"max_memory": 0},
    ],
)
def test_windows_out_of_range_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ChainInferer(steps=STEPS, **words)


def test_a_step_size_is_a_smaller_overlap() -> None:
    inferer = ChainInferer(steps=STEPS, roi_size=[8, 8, 8], overlap=0.5)

    assert (
        inferer.adjusted(PassOptions(step_size=0.8)).windows
        == ChainInferer(steps=STEPS, roi_size=[8, 8, 8], overlap=1 - 0.8).windows
    )
    with pytest.raises(UsageError, match="without windows"):
        ChainInferer(steps=STEPS).adjusted(PassOptions(step_size=0.8))


def test_windows_as_large_as_the_image_have_no_size_of_their_own() -> None:
    assert ChainInferer(steps=STEPS, roi_size=(8, 16, -1)).roi_size is None
    assert ChainInferer(steps=STEPS, roi_size=(8, 16), slice_axis=1).roi_size == (8, 1, 16)


def test_it_tells_the_label_of_each_channel_that_overlaps_others() -> None:
    assert ChainInferer(steps=["sigmoid", "invert", REGIONS]).regions == (1, 2, 4)
    assert ChainInferer(steps=[{"threshold": 0.5, "regions": [[2, 5], [1, 7]]}]).regions == (0, 7, 5)
    assert ChainInferer(steps=STEPS).regions is None
