"""A foreign bundle's own steps: MONAI's labels, on the grid of the image, or a sentence."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    Spacingd,
)
from torch import nn

from tests.inference.stock import prepared, stock_labels
from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.inference.chain.inverting import InvertingInferer
from voxelgate.inference.mirroring import mirror_image
from voxelgate.inference.pass_options import PassOptions

AFFINE = np.array([[0, 0, -2.1, 5], [0.8, 0, 0, 6], [0, 0.9, 0, 7], [0, 0, 0, 1]])
WINDOWS = SlidingWindowInferer((16, 16, 16), 2, 0.4, mode="gaussian")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Return a small image whose axes are those of no bundle."""
    voxels = np.random.default_rng(0).normal(size=(22, 25, 12)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def before() -> list[Any]:
    return [Orientationd("image", "RAS"), Spacingd("image", (1.0, 1.2, 1.3)), CropForegroundd("image", "image")]


def after(steps: list[Any], **options: Any) -> list[Any]:
    """Return softmax, what was done before taken back, argmax."""
    invert = Invertd("pred", Compose(steps), orig_keys="image", **{"nearest_interp": False, **options})
    return [Activationsd("pred", softmax=True), invert, AsDiscreted("pred", argmax=True)]


def network(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(1, classes, 3, padding=1).eval()


def test_the_labels_are_those_of_the_evaluator(scan: Path) -> None:
    steps = before()
    inferer = InvertingInferer(inferer=WINDOWS, postprocessing=Compose(after(steps)))

    labels = inferer(prepared(scan, steps), network())

    assert labels.dtype == torch.uint8
    assert np.array_equal(labels.numpy()[0, 0], stock_labels(scan, steps, WINDOWS, network(), after(steps)))
    np.testing.assert_allclose(labels.affine.numpy(), nib.load(scan).affine)


def test_a_collated_image_is_taken_too(scan: Path) -> None:
    steps = before()
    loading = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), *steps])
    (batch,) = DataLoader(Dataset([{"image": str(scan)}], loading), batch_size=1)
    inferer = InvertingInferer(inferer=WINDOWS, postprocessing=Compose(after(steps)))

    labels = inferer(batch["image"], network())

    assert np.array_equal(labels.numpy()[0, 0], stock_labels(scan, steps, WINDOWS, network(), after(steps)))


def test_a_mirrored_image_comes_back_onto_the_grid(scan: Path) -> None:
    steps = before()
    inferer = InvertingInferer(inferer=SimpleInferer(), postprocessing=Compose(after(steps)))
    pointwise = nn.Conv3d(1, 4, 1).eval()
    image = prepared(scan, steps)

    mirrored = inferer(mirror_image(image, 1), pointwise)

    assert torch.equal(mirrored.as_tensor(), inferer(image, pointwise).as_tensor())
    assert len(image.applied_operations) == 3


def test_labels_that_stay_on_the_network_grid_are_refused(scan: Path) -> None:
    inferer = InvertingInferer(inferer=WINDOWS, postprocessing=Compose([AsDiscreted("pred", argmax=True)]))

    with pytest.raises(BundleError, match=r"back onto the image's grid: shape .*; they need Invertd"):
        inferer(prepared(scan, before()), network())


def test_several_channels_are_refused(scan: Path) -> None:
    steps = before()
    inferer = InvertingInferer(inferer=WINDOWS, postprocessing=Compose(after(steps)[:2]))

    with pytest.raises(BundleError, match=r"leave \(4, 22, 25, 12\), expected one channel"):
        inferer(prepared(scan, steps), network())


def test_interpolated_label_numbers_are_refused(scan: Path) -> None:
    steps = before()
    decided_first = [AsDiscreted("pred", argmax=True), after(steps)[1]]
    inferer = InvertingInferer(inferer=WINDOWS, postprocessing=Compose(decided_first))

    with pytest.raises(BundleError, match="values between labels"):
        inferer(prepared(scan, steps), network())


def test_steps_that_fail_are_told_in_a_sentence(scan: Path) -> None:
    steps = Compose([AsDiscreted("other", argmax=True)])

    with pytest.raises(BundleError, match=r"own steps cannot run on this image: .*other"):
        InvertingInferer(inferer=WINDOWS, postprocessing=steps)(prepared(scan, []), network())


def test_what_a_step_of_ours_says_is_raised_as_it_is_and_has_no_cause_in_a_circle(scan: Path) -> None:
    def refuse(_: dict[str, Any]) -> dict[str, Any]:
        raise InputError("the image is too small.")

    with pytest.raises(InputError, match=r"^the image is too small\.$") as raised:
        InvertingInferer(inferer=WINDOWS, postprocessing=Compose([refuse]))(prepared(scan, before()), network())

    assert raised.value.__cause__ is None


def test_what_would_not_fit_is_refused_after_one_window(scan: Path) -> None:
    steps, seen = before(), []
    asked = network(40)
    asked.register_forward_hook(lambda *_: seen.append(1))
    inferer = InvertingInferer(inferer=WINDOWS, postprocessing=Compose(after(steps))).within(2**22)

    with pytest.raises(InputError, match=r"40 classes of \d+x\d+x\d+ voxels as a whole and need about 0\.0 GiB"):
        inferer(prepared(scan, steps), asked)
    assert len(seen) == 1


def test_a_step_size_changes_the_overlap_of_a_copy() -> None:
    inferer = InvertingInferer(inferer=WINDOWS, postprocessing=Compose([]))

    assert inferer.adjusted(PassOptions(step_size=0.75)).inferer.overlap == 0.25
    assert inferer.inferer.overlap == 0.4


def test_a_foreign_bundle_that_is_asked_to_be_fast_is_refused() -> None:
    with pytest.raises(UsageError, match="--fast: this bundle has one way to run"):
        InvertingInferer(inferer=WINDOWS, postprocessing=Compose([])).adjusted(PassOptions(fast=True))


def test_a_step_size_without_windows_is_refused() -> None:
    with pytest.raises(UsageError, match="without windows"):
        InvertingInferer(inferer=SimpleInferer(), postprocessing=Compose([])).adjusted(PassOptions(step_size=0.5))
