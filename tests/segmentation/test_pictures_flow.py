"""Pictures from folders to measured results, by the commands that a user types."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Run
from tests.manifest_files import write_document
from voxelgate.bundle.metadata import image_spec_of
from voxelgate.bundle.opened import _on_device
from voxelgate.core.errors import InputError, ManifestError
from voxelgate.core.geometry import AXES_RAS, Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.structures import measure_structures
from voxelgate.datasets.build_manifest import build_manifest
from voxelgate.datasets.manifest import load_manifest, manifest_from_document
from voxelgate.datasets.survey import survey
from voxelgate.evaluation.pairs import pair_files
from voxelgate.evaluation.scores import evaluate_pairs
from voxelgate.evaluation.table import write_csv
from voxelgate.images.spec import ImageSpec
from voxelgate.images.volumes import read_volume
from voxelgate.networks import AttentionUNet, FlatNetwork
from voxelgate.segmentation.cases import Case, find_cases
from voxelgate.segmentation.output_names import Output, output_paths
from voxelgate.segmentation.preview import read_preview
from voxelgate.training.bundle_checks import pass_checks
from voxelgate.training.configs.bundle_files import write_bundle
from voxelgate.training.planning import plan
from voxelgate.transforms import normalize

CASES = 6
SIZE = (88, 72)
"""Columns and rows; not equal, so that a transposed picture has another size."""

SMALL = {
    "channels": [8, 16],
    "strides": [[2, 2, 1]],
    "network": {"deep_supervision": 0},
    "patch_vox": [48, 40, 1],
    "window_vox": [96, 80, 1],
    "training": {
        "epochs": 3, "steps_per_epoch": 24, "batch_size": 4, "learning_rate": 0.02, "warmup_steps": 2,
        "average_decay": 0.8, "validate_every": 3,
    },
    "augmentation": {"noise": 0.0, "gamma": 0.0, "contrast": 0.0, "affine": 0.0},
}  # fmt: skip

BETTER_THAN_CHANCE = 0.6
"""Mean Dice on unseen cases; what marks every disc, green or red, stays below 0.5."""


def discs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (rows, columns, 3) of a red and a green disc of one brightness, and where the red one is."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    picture = rng.integers(60, 90, (SIZE[1], SIZE[0], 3))
    centres = rng.permutation([(rng.integers(14, 58), 20), (rng.integers(14, 58), 64)])
    masks = [np.hypot(rows - row, columns - column) < 11 for row, column in centres]
    for channel, mask in enumerate(masks):
        picture[mask, channel] += 120
    return picture.astype(np.uint8), masks[0]


def write_data(folder: Path, mask_folder: str = "masks") -> Path:
    """Write images as PNG and TIFF, and masks in black and white."""
    rng = np.random.default_rng(3)
    for name in ("images", mask_folder):
        (folder / name).mkdir(parents=True)
    for case in range(CASES):
        picture, mask = discs(rng)
        Image.fromarray(picture).save(folder / "images" / f"case_{case}.{'tif' if case % 2 else 'png'}")
        Image.fromarray(255 * mask.astype(np.uint8)).save(folder / mask_folder / f"case_{case}.png")
    return folder


def assert_upright(preview: Path, picture: Path) -> None:
    """Check that the first slice of a preview shows a picture as its viewer does."""
    (plane,) = read_preview(preview).layout.planes
    with Image.open(preview) as shown, Image.open(picture) as meant:
        slice_ = np.asarray(shown.convert("L"), float)[: plane.height, : plane.width]
        grey = np.asarray(meant, float).mean(axis=2)
    assert slice_.shape == grey.shape
    assert np.corrcoef(slice_.ravel(), grey.ravel())[0, 1] > 0.9


@pytest.mark.slow
def test_pictures_in_colours_go_from_folders_to_measured_label_pictures(run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (tmp_path / "small.json").write_text(json.dumps(SMALL), encoding="utf-8")

    made = run("manifest", data, "--modality", "picture", "--labels", "red disc", "--folds", 2)
    assert made.returncode == 0, made.stderr
    looked = run("inspect", data / "manifest.json")
    assert "6 PICTURE cases" in looked.stdout
    planned = run("plan", data / "manifest.json", "--out", "bundle", "--override", "small.json", "--minutes", 1)
    assert planned.returncode == 0, planned.stderr
    trained = run("train", "bundle", data / "manifest.json", "--out", "trained", "--set", "precision=float32")
    assert trained.returncode == 0, trained.stderr
    assert "area px" in trained.stdout
    assert [gate.name for gate in pass_checks(tmp_path / "trained")][-1] == "two iterations"

    segmented = run("segment", "trained", data / "images", "--out", "results", "--engine", "serial")

    assert segmented.returncode == 0, segmented.stderr
    results = sorted(path.name for path in (tmp_path / "results").iterdir() if path.name.startswith("case_"))
    assert results == [f"case_{case}.{'tif' if case % 2 else 'png'}" for case in range(CASES)]
    for name in results:
        with Image.open(tmp_path / "results" / name) as picture:
            assert (picture.mode, picture.size) == ("L", SIZE)
    assert_upright(tmp_path / "results" / "previews" / "case_0.webp", data / "images" / "case_0.png")
    with (tmp_path / "results" / "cases.csv").open(encoding="utf-8") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    labels, _ = read_volume(tmp_path / "results" / "case_0.png")
    assert int(rows["case_0"]["red disc px"]) == np.count_nonzero(labels) > 0

    (tmp_path / "labels").mkdir()
    for name in results:
        (tmp_path / "results" / name).rename(tmp_path / "labels" / name)
    measured = run("evaluate", "labels", data / "masks", "--labels-from", "trained", "--csv", "scores.csv")
    assert measured.returncode == 0, measured.stderr
    with (tmp_path / "scores.csv").open(encoding="utf-8") as file:
        scores = list(csv.DictReader(file))
    assert float(np.mean([float(row["dice"]) for row in scores])) > BETTER_THAN_CHANCE
    assert {"hd95_px", "area_px"} <= scores[0].keys()
    assert run("report", "results").returncode == 0


def make(folder: Path, **options: Any) -> dict[str, Any]:
    return build_manifest(
        folder, **{"name": "p", "modality": "PICTURE", "licence": "CC0-1.0", "folds": 2, **options}
    ).to_document()


def problems_of(folder: Path, **options: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        make(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("mask_folder", ["masks", "labels"])
def test_a_manifest_of_pictures_names_their_colours_and_takes_black_and_white_masks(
    tmp_path: Path, mask_folder: str
) -> None:
    document = make(write_data(tmp_path, mask_folder))

    assert document["channels"] == {"0": "red", "1": "green", "2": "blue"}
    assert set(document["modality"].values()) == {"PICTURE"}
    assert document["labels"] == {"0": "background", "1": "label_1"}
    assert document["training"][0]["image"] == "images/case_0.png"
    assert document["training"][1]["label"] == f"{mask_folder}/case_1.png"


def test_grey_pictures_have_one_channel_and_any_number_of_structures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pixels = np.random.default_rng(len(name) + ord(name)).integers(0, 65535, (9, 7)).astype(np.uint16)
        save(tmp_path / f"{name}.tif", pixels)
        save(tmp_path / f"{name}_mask.png", (np.arange(63) % 3).reshape(9, 7).astype(np.uint8))

    document = make(tmp_path)

    assert document["modality"] == {"0": "PICTURE"}
    assert document["labels"] == {"0": "background", "1": "label_1", "2": "label_2"}


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def grey_image(data: Path) -> None:
    save(data / "images" / "case_2.png", np.arange(88 * 72).reshape(72, 88).astype(np.uint8))


def colour_mask(data: Path) -> None:
    save(data / "masks" / "case_2.png", np.arange(72 * 88 * 3, dtype=np.uint8).reshape(72, 88, 3))


def jpeg_mask(data: Path) -> None:
    (data / "masks" / "case_2.png").unlink()
    save(data / "masks" / "case_2.jpg", np.zeros((72, 88), np.uint8))


def transposed_mask(data: Path) -> None:
    save(data / "masks" / "case_2.png", np.zeros((88, 72), np.uint8))


def soft_mask(data: Path) -> None:
    pixels = np.zeros((72, 88), np.uint8)
    pixels[3, 3:6] = 100, 255, 100
    save(data / "masks" / "case_2.png", pixels)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (grey_image, "images/case_2.png: is grey, but the images are in colours (RGB); convert it."),
        (colour_mask, "masks/case_2.png: a label map in colours, expected one number in each pixel"),
        (jpeg_mask, "masks/case_2.jpg: a label map as JPEG, which changes values"),
        (transposed_mask, "masks/case_2.png: on another grid than images/case_2.png: shape (72, 88, 1) instead of (88"),
        (soft_mask, "masks/case_2.png: values 100, 255 are not declared; the manifest declares 0 to 1"),
    ],
)
def test_a_picture_that_does_not_fit_is_named(tmp_path: Path, change: Callable[[Path], None], sentence: str) -> None:
    data = write_data(tmp_path)
    change(data)
    assert sentence in problems_of(data, labels={"0": "background", "1": "red disc"})


def test_pictures_are_not_taken_for_volumes_nor_volumes_for_pictures(tmp_path: Path) -> None:
    sentence = "give --modality CT or MRI for volumes, PICTURE for pictures"
    assert sentence in problems_of(write_data(tmp_path / "p"), modality="MRI")
    (tmp_path / "v").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "v" / "a.nii.gz")
    assert sentence in problems_of(tmp_path / "v")


def test_a_manifest_that_mixes_volumes_and_pictures_is_refused(tmp_path: Path) -> None:
    document = make(write_data(tmp_path))
    document["training"][0]["label"] = "masks/case_0.nii.gz"
    with pytest.raises(
        ManifestError, match=r"masks/case_0\.nii\.gz: is of another kind than PNG, TIFF or JPEG pictures"
    ):
        manifest_from_document(document, tmp_path)


def test_only_pictures_are_cases_of_a_bundle_for_pictures_and_only_volumes_of_others(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.zeros((3, 3), np.uint8))
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "b.nii.gz")

    assert [case.case_id for case in find_cases([tmp_path], images=ImageSpec(is_picture=True))] == ["a"]
    assert [case.case_id for case in find_cases([tmp_path])] == ["b"]
    with pytest.raises(InputError, match=r"a\.png: holds no volume"):
        find_cases([tmp_path / "a.png"])
    with pytest.raises(InputError, match=r"b\.nii\.gz: holds no picture \(PNG, TIFF or JPEG\)"):
        find_cases([tmp_path / "b.nii.gz"], images=ImageSpec(is_picture=True))


def test_a_png_and_a_tiff_of_one_name_get_results_of_two_names(tmp_path: Path) -> None:
    for suffix in ("png", "tif"):
        save(tmp_path / f"a.{suffix}", np.zeros((3, 3), np.uint8))
    cases = find_cases([tmp_path], images=ImageSpec(is_picture=True))
    assert len({case.case_id for case in cases}) == 2


def test_results_of_pictures_are_pictures_of_their_kind_and_never_nifti(tmp_path: Path) -> None:
    names = {"a.png": "c.png", "b.JPG": "c.png", "c.tiff": "c.tif", "d.nii": "c.nii.gz"}
    for given, result in names.items():
        paths = output_paths(Case("c", tmp_path / given), tmp_path, (Output.NIFTI,))
        assert paths[Output.NIFTI].name == result


def test_pixels_are_counted_in_the_scores_of_pictures(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:15] = 255
    reference = save(tmp_path / "reference.png", mask)
    prediction = save(tmp_path / "prediction.png", np.roll(mask // 255, 3, axis=1))

    (scores,) = evaluate_pairs(pair_files(prediction, reference), None)
    write_csv(scores, tmp_path / "scores.csv")

    with (tmp_path / "scores.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["label"], row["dice"], row["area_px"], row["difference_px"]) == ("label_1", "0.7", "100", "0")
    assert row["mssd_px"] == "3"


def test_a_jpeg_is_measured_as_no_label_map(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", np.zeros((8, 8), np.uint8))
    with pytest.raises(InputError, match=r"a\.jpg: a label map as JPEG"):
        list(evaluate_pairs(pair_files(path, path), None))


def test_the_plan_of_pictures_is_a_2d_network_on_unscaled_pixels(tmp_path: Path) -> None:
    document = make(write_data(tmp_path))
    write_document(document, tmp_path / "m.json")
    made = plan(survey(load_manifest(tmp_path / "m.json")).fingerprint)
    write_bundle(made, tmp_path / "bundle")
    train, infer, metadata = (
        json.loads((tmp_path / "bundle" / "configs" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("train", "inference", "metadata")
    )

    assert made.patch_vox[2] == 1
    assert made.spacing_mm == (1.0, 1.0, 1.0)
    assert infer["network_def"]["_target_"] == "voxelgate.FlatNetwork"
    assert infer["network_def"]["network"]["spatial_dims"] == 2
    steps = {step["_target_"].rpartition(".")[2]: step for step in train["train"]["random_transforms"]}
    assert steps["RandSideSafeFlipd"]["axes"] == ["sagittal", "coronal"]
    assert [angle > 0 for angle in steps["RandAffined"]["rotate_range"]] == [False, False, True]
    assert steps["RandScaleIntensityd"]["channel_wise"]
    assert "series_rule" not in metadata
    assert image_spec_of(tmp_path / "bundle") == ImageSpec(("red", "green", "blue"), is_picture=True)


def test_the_sides_of_a_picture_are_those_that_everybody_sees() -> None:
    labels = np.zeros((30, 20, 1), np.uint8)
    labels[:9, :9] = 1
    found = measure_structures(labels, Grid(labels.shape, AXES_RAS), LabelTable(("background", "spot")))
    assert found["spot"].cut_at == ("left", "top")


def test_colours_keep_their_relation_and_one_may_be_empty() -> None:
    picture = torch.zeros(3, 8, 8, 1)
    picture[0], picture[1] = torch.rand(8, 8, 1) + 1, torch.rand(8, 8, 1) + 3

    normal = normalize(picture, low_percentile=0, high_percentile=100, together=True)

    assert normal[1].min() > normal[0].max() > normal[2].max()
    torch.testing.assert_close(normalize(257 * picture, low_percentile=0, high_percentile=100, together=True), normal)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flat_network_gives_what_its_2d_network_gives(axis: int) -> None:
    inner = AttentionUNet(in_channels=2, out_channels=3, spatial_dims=2, channels=(4, 8, 16), deep_supervision=1)
    flat = FlatNetwork(network=inner, axis=axis).to(memory_format=torch.channels_last_3d)
    image = torch.rand(2, 2, 12, 10)

    for mode in (True, False):
        flat.train(mode)
        torch.manual_seed(0)
        found = flat(image.unsqueeze(2 + axis))
        torch.manual_seed(0)
        meant = inner(image)
        pairs = zip(found, meant, strict=True) if mode else [(found, meant)]
        for one, other in pairs:
            torch.testing.assert_close(one.squeeze(2 + axis), other)


def test_a_flat_network_refuses_several_slices() -> None:
    flat = FlatNetwork(network=torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="takes one slice, found 2 along axis 2"):
        flat(torch.rand(1, 1, 4, 4, 2))


def test_networks_of_all_folds_are_placed_one_by_one() -> None:
    folds = torch.nn.ModuleList(FlatNetwork(network=torch.nn.Conv2d(1, 1, 1)) for _ in range(2))
    assert _on_device(folds, torch.device("cpu"), is_channels_last=True) is folds
