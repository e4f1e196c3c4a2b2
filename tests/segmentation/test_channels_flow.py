"""Images of several channels: which files are one image, in which order the network sees them, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import Run
from tests.manifest_files import write_document
from voxelgate.apps.label.server import prepare_server
from voxelgate.apps.label.serving import Serving
from voxelgate.bundle.checksums import seal
from voxelgate.bundle.metadata import image_spec_of
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.images.spec import ImageSpec
from voxelgate.images.volumes import read_volume
from voxelgate.segmentation.batch.input_stamps import content_sha256
from voxelgate.segmentation.cases import Case, find_cases
from voxelgate.segmentation.read import read_case

TWO = ImageSpec(("T1", "FLAIR"))
TABLE = LabelTable(("background", "lesion"))
SHAPE = (9, 8, 7)
LESION = np.zeros(SHAPE, np.uint8)
LESION[2:6, 3:6, 1:5] = 1


def save(path: Path, voxels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag((1.0, 2.0, 3.0, 1.0))), path)
    return path


def write_case(folder: Path, name: str = "a", seed: int = 0) -> tuple[Path, Path]:
    """Write T1 and FLAIR of a lesion that is brighter in T1 than in FLAIR; elsewhere the two are nearly equal."""
    base = np.random.default_rng(seed).normal(200, 40, SHAPE)
    flair = base + np.random.default_rng(seed + 1).normal(0, 1, SHAPE)
    t1 = save(folder / f"{name}_0000.nii.gz", base + 60 * LESION)
    return t1, save(folder / f"{name}_0001.nii.gz", flair - 60 * LESION)


def make_bundle(root: Path) -> Path:
    """Write a sealed bundle whose network finds lesions where the first channel is 50 above the second."""
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    image = {"modality": "MRI", "num_channels": 2, "channel_def": {"0": "T1", "1": "FLAIR"}}
    formats = {"inputs": {"image": image}, "outputs": {"pred": {"channel_def": TABLE.to_mapping()}}}
    metadata = {"name": "lesions", "version": "1.0.0", "network_data_format": formats}
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    config = {
        "device": "$torch.device('cpu')",
        "imports": ["$import torch"],
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 2, "kernel_size": 1},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "voxelgate.ChannelsReader"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
            ],
        },
        "inferer": {
            "_target_": "voxelgate.RestoringSlidingWindowInferer",
            "roi_size": [32, 32, 32],
        },
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])[..., None, None, None]
    torch.save({"weight": weight, "bias": torch.tensor([0.0, -50.0])}, root / "models" / "model.pt")
    seal(root)
    return root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def dice(found: np.ndarray) -> float:
    return 2 * float((found * LESION).sum()) / float(found.sum() + LESION.sum())


def only_case(folder: Path) -> Case:
    (case,) = find_cases([folder], images=TWO)
    return case


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_case(only_case(folder), TABLE, images=TWO)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_of_one_name_are_the_channels_of_one_image_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    t1, flair = write_case(tmp_path / "sub", "a")
    write_case(tmp_path / "sub", "b_1234", seed=5)

    cases = find_cases([tmp_path], images=TWO)

    assert {case.case_id: case.channels for case in cases}["sub/a"] == (t1, flair)
    assert [case.case_id for case in cases] == ["sub/a", "sub/b_1234"]
    voxels = read_case(cases[0], TABLE, images=TWO).voxels
    np.testing.assert_array_equal(voxels, [read_volume(t1)[0], read_volume(flair)[0]])


def test_files_named_one_by_one_are_one_image_too(tmp_path: Path) -> None:
    t1, flair = write_case(tmp_path)
    (case,) = find_cases([flair, t1, tmp_path], images=TWO)
    assert case.channels == (t1, flair)


def test_links_to_files_in_different_folders_are_one_image(tmp_path: Path) -> None:
    t1, flair = write_case(tmp_path / "store")
    (tmp_path / "in").mkdir()
    links = [tmp_path / "in" / f"x_000{number}.nii.gz" for number in range(2)]
    for link, file in zip(links, (t1, flair), strict=True):
        place = tmp_path / link.name / "image.nii.gz"
        place.parent.mkdir()
        file.rename(place)
        link.symlink_to(place)

    case = only_case(tmp_path / "in")

    assert (case.case_id, case.channels) == ("x", tuple(links))


def test_equal_names_in_two_folders_are_two_images(tmp_path: Path) -> None:
    for patient in ("p", "q"):
        write_case(tmp_path / patient)
    cases = find_cases([tmp_path / "p", tmp_path / "q"], images=TWO)
    assert len({case.case_id for case in cases}) == 2
    assert all(case.image.parent == case.further_channels[0].parent for case in cases if isinstance(case.image, Path))


def remove_flair(folder: Path) -> None:
    (folder / "a_0001.nii.gz").unlink()


def remove_t1(folder: Path) -> None:
    (folder / "a_0000.nii.gz").unlink()


def add_a_third(folder: Path) -> None:
    save(folder / "a_0002.nii.gz", LESION)


def add_another_format(folder: Path) -> None:
    save(folder / "a_0001.nii", LESION)


def cut(folder: Path) -> None:
    save(folder / "a_0001.nii.gz", LESION[:-1])


def copy_t1(folder: Path) -> None:
    (folder / "a_0001.nii.gz").write_bytes((folder / "a_0000.nii.gz").read_bytes())


def empty_flair(folder: Path) -> None:
    save(folder / "a_0001.nii.gz", np.zeros(SHAPE))


def rename_both(folder: Path) -> None:
    (folder / "a_0000.nii.gz").rename(folder / "t1.nii.gz")
    remove_flair(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (remove_flair, "a_0001.nii.gz: is missing, and with it channel 1 (FLAIR)"),
        (remove_t1, "a_0000.nii.gz: is missing, and with it channel 0 (T1)"),
        (add_a_third, "3 files (a_0000.nii.gz, a_0001.nii.gz, a_0002.nii.gz), expected one for each of 2 channels"),
        (add_another_format, "3 files (a_0000.nii.gz, a_0001.nii, a_0001.nii.gz), expected one for each of 2"),
        (cut, "a_0001.nii.gz: on another grid than a_0000.nii.gz: shape (8, 8, 7) instead of (9, 8, 7)"),
        (copy_t1, "a_0001.nii.gz: holds the same voxels as a_0000.nii.gz"),
        (empty_flair, "a: all voxels are 0.0"),
        (
            rename_both,
            "1 file (t1.nii.gz), expected one for each of 2 channels; name them CASE_0000 T1, CASE_0001 FLAIR",
        ),
    ],
)
def test_an_image_that_is_not_whole_is_refused(tmp_path: Path, change: Callable[[Path], None], sentence: str) -> None:
    write_case(tmp_path)
    change(tmp_path)
    assert sentence in refusal(tmp_path)


def test_a_case_keeps_its_identity_when_a_missing_channel_comes(tmp_path: Path) -> None:
    _, flair = write_case(tmp_path)
    whole, content = only_case(tmp_path), flair.read_bytes()
    flair.unlink()
    assert only_case(tmp_path).identity == whole.identity
    flair.write_bytes(content)
    assert only_case(tmp_path).identity == whole.identity


def test_the_order_of_channels_counts_as_content(tmp_path: Path) -> None:
    t1, flair = write_case(tmp_path)
    before = content_sha256(only_case(tmp_path))

    swapped = t1.read_bytes()
    t1.write_bytes(flair.read_bytes())
    flair.write_bytes(swapped)

    assert content_sha256(only_case(tmp_path)) != before


def test_both_channels_reach_the_network_in_order_and_a_change_of_either_is_done_again(
    run: Run, tmp_path: Path, bundle: Path
) -> None:
    t1, flair = write_case(tmp_path / "in")
    command = ("segment", bundle, tmp_path / "in", "--out", "out", "--engine", "serial", "--no-previews")

    assert run(*command).returncode == 0
    assert dice(read_volume(tmp_path / "out" / "a.nii.gz")[0]) == 1.0

    first, second = t1.read_bytes(), flair.read_bytes()
    t1.write_bytes(second)
    flair.write_bytes(first)
    assert run(*command).returncode == 0
    assert dice(read_volume(tmp_path / "out" / "a.nii.gz")[0]) == 0.0

    t1.write_bytes(first)
    flair.write_bytes(second)
    assert run(*command).returncode == 0
    assert dice(read_volume(tmp_path / "out" / "a.nii.gz")[0]) == 1.0


def channel_manifest(folder: Path, channels: dict[str, str], **rows: list[str]) -> Path:
    document = {
        "name": "lesions",
        "licence": "CC0-1.0",
        "modality": dict.fromkeys(channels, "MRI"),
        "channels": channels,
        "labels": TABLE.to_mapping(),
        "training": [
            {"case_id": name, "image": files, "label": f"{name}_label.nii.gz", "subject": name}
            for name, files in rows.items()
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_document(document, folder / "m.json")
    return folder / "m.json"


def test_a_manifest_names_the_channels_of_each_image_whatever_its_files_are_called(
    run: Run, tmp_path: Path, bundle: Path
) -> None:
    t1, flair = write_case(tmp_path / "data")
    t1.rename(tmp_path / "data" / "zebra.nii.gz")
    flair.rename(tmp_path / "data" / "ape.nii.gz")
    manifest = channel_manifest(tmp_path / "m", {"0": "T1", "1": "FLAIR"}, first=["zebra.nii.gz", "ape.nii.gz"])

    result = run("segment", bundle, manifest, "--data-root", tmp_path / "data", "--out", "out", "--engine", "serial")

    assert result.returncode == 0, result.stderr
    assert dice(read_volume(tmp_path / "out" / "first.nii.gz")[0]) == 1.0


def test_a_manifest_with_its_channels_in_another_order_is_refused(run: Run, tmp_path: Path, bundle: Path) -> None:
    manifest = channel_manifest(tmp_path, {"0": "FLAIR", "1": "T1"}, first=["a.nii.gz", "b.nii.gz"])

    result = run("segment", bundle, manifest, "--out", "out")

    assert result.returncode == 1
    assert (
        "m.json: its images have the channels FLAIR, T1, but the bundle takes images of 2 (T1, FLAIR)" in result.stderr
    )


def test_a_dicom_series_is_refused_by_a_bundle_of_two_channels(run: Run, real_data: Path, bundle: Path) -> None:
    series = next(path for path in sorted((real_data / "dicom").iterdir()) if path.name.startswith("mr"))

    result = run("segment", bundle, series, "--out", "out", "--engine", "serial")

    assert result.returncode == 1
    assert "a DICOM series has one channel, the bundle takes images of 2 (T1, FLAIR)" in result.stderr


def test_monai_label_refuses_a_bundle_of_two_channels(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "studies").mkdir()
    with pytest.raises(UsageError, match="takes 2 channels, but MONAI Label serves volumes of one channel"):
        prepare_server(Serving((bundle,), str(tmp_path / "studies"), tmp_path / "work"))


def test_watching_is_refused_for_images_of_several_files(run: Run, tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "in").mkdir()
    result = run("segment", bundle, tmp_path / "in", "--out", "out", "--watch")
    assert result.returncode == 2
    assert "--watch takes images of one file, but the bundle takes 2" in result.stderr


def test_a_bundle_that_miscounts_its_channels_is_refused(bundle: Path) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"num_channels": 2', '"num_channels": 3'), encoding="utf-8"
    )
    with pytest.raises(BundleError, match="names the channels 0, 1 of its image, expected 0 to 2"):
        image_spec_of(bundle)


def test_an_opened_bundle_knows_its_channels(bundle: Path) -> None:
    assert open_bundle(bundle).image_spec == TWO
