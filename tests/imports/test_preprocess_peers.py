"""The preparation of images against nnU-Net's own, from files of random grids, types, readers and plans: every bit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from nibabel.eulerangles import euler2mat
from scipy import ndimage

from voxelgate.images.spec import ImageSpec, read_image_with_findings
from voxelgate.transforms.io import as_image
from voxelgate.transforms.nnunet.normalise import NormalizationScheme
from voxelgate.transforms.nnunet.preprocess import NnUNetPreprocessd
from voxelgate.transforms.nnunet.source_layout import NnUNetReader

MISSING = "needs nnU-Net, in the environment that `make import-test` builds"
preparing = pytest.importorskip("nnunetv2.preprocessing.preprocessors.default_preprocessor", reason=MISSING)
handling = pytest.importorskip("nnunetv2.utilities.plans_handling.plans_handler", reason=MISSING)
labelling = pytest.importorskip("nnunetv2.utilities.label_handling.label_handling", reason=MISSING)

pytestmark = pytest.mark.peers

SIZES_MM = (0.5, 0.75, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
READERS = [reader for reader in NnUNetReader if reader is not NnUNetReader.PICTURE]
SCHEMES = [scheme for scheme in NormalizationScheme if scheme is not NormalizationScheme.RGB]
PROPERTIES = {"mean": 3.3, "std": 21.7, "percentile_00_5": -60.1, "percentile_99_5": 77.7, "min": -99.0, "median": 1.0}
DATA_SET = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}, "file_ending": ".nii.gz"}
FOREGROUND = [1, 2, 3]


class Case(NamedTuple):
    """A random case: files on one grid, and plans."""

    images: tuple[Path, ...]
    labels: Path
    plans: dict[str, Any]


def affine_of(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    affine, turned = np.eye(4), np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    if rng.random() < 0.5:
        turned = euler2mat(*rng.uniform(0, 0.4, 3)) @ turned
    affine[:3, :3], affine[:3, 3] = turned * rng.choice(SIZES_MM, 3), rng.normal(0, 50, 3)
    return affine


def write_images(rng: np.random.Generator, folder: Path, channels: int) -> tuple[tuple[Path, ...], Path]:
    affine, shape = affine_of(rng), tuple(int(size) for size in rng.integers(8, 36, 3))
    is_something = np.zeros(shape, bool)
    is_something[tuple(slice(*rng.integers((0, size - 3), (4, size + 1))) for size in shape)] = True
    if rng.random() < 0.5:
        is_something &= ndimage.gaussian_filter(rng.normal(size=shape), 2) > -0.1
    paths, dtype = (
        tuple(folder / f"scan_{channel:04d}.nii.gz" for channel in range(channels)),
        rng.choice([np.int16, np.uint8, np.int32, np.float32, np.float64]),
    )
    for path in paths:
        values = np.where(is_something, 120 + 60 * ndimage.gaussian_filter(rng.normal(size=shape), 0.7), 0)
        nifti = nib.Nifti1Image(values.clip(0, 255).astype(dtype), affine)
        nifti.set_qform(affine, int(rng.integers(0, 2)))
        if rng.random() < 0.3 and np.dtype(dtype).kind != "f":
            nifti.header.set_slope_inter(*rng.choice([[1.0, -1024.0], [0.37, 0.1], [2.0, 0.0]]))
        nifti.to_filename(path)
    labels = np.digitize(ndimage.gaussian_filter(rng.normal(size=shape), 1.5), (-0.05, 0.0, 0.05)).astype(np.uint8)
    nib.Nifti1Image(labels, affine).to_filename(folder / "labels.nii.gz")
    return paths, folder / "labels.nii.gz"


def resampling_of(rng: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the name of a function, and its arguments for images and for labels."""
    name = str(
        rng.choice(
            ["resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"], p=[0.6, 0.3, 0.1]
        )
    )
    force = [None, True, False][rng.integers(3)]
    if name == "resample_data_or_seg_to_shape":
        images = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": force}
        return name, images, images | {"is_seg": True, "order": 1}
    if name == "resample_torch_fornnunet":
        images = {"is_seg": False, "force_separate_z": force, "memefficient_seg_resampling": False}
        return name, images, images | {"is_seg": True}
    return name, {}, {}


def plans_of(rng: np.random.Generator, channels: int) -> dict[str, Any]:
    name, images, labels = resampling_of(rng)
    order = rng.permutation(3)
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [32] * 3,
        "spacing": rng.choice(SIZES_MM[:6], 2 if rng.random() < 0.25 else 3).tolist(),
        "normalization_schemes": [str(scheme) for scheme in rng.choice(SCHEMES, channels)],
        "use_mask_for_norm": (rng.random(channels) < 0.5).tolist(),
        "architecture": {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": False,
    }
    for kind, arguments in (("data", images), ("seg", labels), ("probabilities", images)):
        configuration |= {f"resampling_fn_{kind}": name, f"resampling_fn_{kind}_kwargs": arguments}
    return {
        "dataset_name": "x",
        "plans_name": "x",
        "image_reader_writer": str(rng.choice(READERS)),
        "transpose_forward": order.tolist(),
        "transpose_backward": np.argsort(order).tolist(),
        "configurations": {"x": configuration},
        "experiment_planner_used": "x",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): PROPERTIES for channel in range(channels)},
    }


def case_of(seed: int, folder: Path) -> Case:
    rng = np.random.default_rng(seed)
    channels = int(rng.integers(1, 3))
    return Case(*write_images(rng, folder, channels), plans_of(rng, channels))


def theirs(case: Case, labels: Path | None) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Sequence[float]]:
    """Return image and labels as nnU-Net prepares them, and its spacing of the source in transposed axes."""
    plans = handling.PlansManager(case.plans)
    prepare = preparing.DefaultPreprocessor(verbose=False)
    images = [str(path) for path in case.images]
    given = None if labels is None else str(labels)
    data, found, properties = prepare.run_case(images, given, plans, plans.get_configuration("x"), DATA_SET)
    return data, found, [properties["spacing"][axis] for axis in case.plans["transpose_forward"]]


def ours(case: Case, **settings: Any) -> dict[str, Any]:
    configuration = case.plans["configurations"]["x"]
    how = {
        ours_: {"function": configuration[f"resampling_fn_{kind}"], **configuration[f"resampling_fn_{kind}_kwargs"]}
        for ours_, kind in (("resampling", "data"), ("label_resampling", "seg"))
    }
    prepare = NnUNetPreprocessd(
        "image",
        configuration["spacing"],
        case.plans["transpose_forward"],
        [{"scheme": scheme, **PROPERTIES} for scheme in configuration["normalization_schemes"]],
        use_mask_for_norm=configuration["use_mask_for_norm"],
        reader=case.plans["image_reader_writer"],
        **how,
        **settings,
    )
    image = read_image_with_findings(case.images, ImageSpec(tuple(path.name for path in case.images)))
    labels = read_image_with_findings(case.labels)
    return prepare(
        {
            "image": as_image(image.voxels, image.grid, image.facts),
            "label": as_image(labels.voxels, labels.grid, labels.facts),
        }
    )


@pytest.mark.parametrize("seed", range(40))
def test_an_image_is_prepared_as_nnunet_does_it(seed: int, tmp_path: Path) -> None:
    case = case_of(seed, tmp_path)
    wanted, _, spacing_mm = theirs(case, None)

    found = ours(case)["image"]

    assert np.array_equal(found.numpy(), wanted)
    assert found.meta["source_spacing"].tolist() == spacing_mm


@pytest.mark.parametrize("seed", range(40, 60))
def test_a_label_map_is_prepared_with_its_image_as_nnunet_does_it(seed: int, tmp_path: Path) -> None:
    case = case_of(seed, tmp_path)
    wanted, labels, _ = theirs(case, case.labels)

    found = ours(case, label_key="label")

    assert np.array_equal(found["image"].numpy(), wanted)
    assert np.array_equal(found["label"].numpy(), labels.clip(0))  # nnU-Net trains what is outside as background


@pytest.mark.parametrize("seed", range(60, 80))
def test_the_labels_of_an_earlier_stage_become_channels_as_in_nnunet(seed: int, tmp_path: Path) -> None:
    case = case_of(seed, tmp_path)
    image, labels, _ = theirs(case, case.labels)

    found = ours(case, previous={"key": "label", "foreground": FOREGROUND})["image"]

    one_hot = labelling.convert_labelmap_to_one_hot(labels[0], FOREGROUND, image.dtype)
    assert np.array_equal(found.numpy(), np.vstack((image, one_hot)))
