"""A series is read as ITK reads it, or refused with a sentence; through MONAI too."""

import logging
import random
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import LoadImaged
from pydicom import dcmread

from tests.dicom_files import enhanced, stack, write, write_all
from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.findings import Allow, Finding, FindingCode
from voxelgate.core.geometry import LPS_TO_RAS, Grid
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.reader import CheckedDicomReader
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.read.volume import read_or_refuse, read_series

PATIENT = ("SECRET", "19010203", "1.2.826.0.1.3680043.8.498.7")
REAL = (
    "ct_torchio_small",
    "ct_philips_study_mixed/S2010",
    "ct_siemens_body_j2k",
    "ct_dcmqi_3slice/ct",
    "mr_ge_t1_sag_deidentified",
    *(f"mr_d2n_compressed/{kind}" for kind in ("uncompressed", "jpegll", "jpegls", "rle")),
)
READER = "voxelgate.CheckedDicomReader"


def body(count: int = 6) -> np.ndarray:
    """Return stored values of a CT (HU + 1024), (K, J, I)."""
    hu = np.random.default_rng(3).choice([-1000, -100, 40], size=(count, 20, 24))
    return (hu + 1024).astype("u2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(stack(body()), tmp_path / "series")


@pytest.mark.parametrize("name", REAL)
def test_a_real_series_has_the_voxels_and_the_place_that_itk_gives(real_data: Path, name: str) -> None:
    (series,) = scan_dicom(real_data / "dicom" / name)
    volume = read_series(series)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(real_data / "dicom" / name)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    assert np.array_equal(volume.voxels, sitk.GetArrayFromImage(image).T.astype(np.float32))
    assert volume.grid.agrees(Grid(image.GetSize(), LPS_TO_RAS @ affine), tol_mm=1e-3)


def test_a_real_multi_frame_image_is_read_with_the_rescale_of_each_frame(real_data: Path) -> None:
    (series,) = [found for found in scan_dicom(real_data / "dicom" / "mr_d2n_philips_enhanced") if found.is_usable]
    volume = read_series(series)
    assert volume.voxels.shape == series.grid.shape
    with quiet_pydicom():
        dataset = dcmread(series.headers[0].file.path)
        stored = dataset.pixel_array
    frames = {}
    for plane, group in zip(stored, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        rescale = group.PixelValueTransformationSequence[0]
        position_mm = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        frames[position_mm] = plane * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
    ordered = [frames[part.plane.position_lps_mm] for part in series.slices]
    assert len(frames) == volume.voxels.shape[2]
    assert np.allclose(volume.voxels, np.array(ordered).transpose(2, 1, 0), rtol=1e-6)


def test_findings_of_the_series_come_with_the_volume(folder: Path) -> None:
    (series,) = scan_dicom(folder)
    assert read_series(series).findings == series.findings


def test_a_series_that_is_refused_is_not_read(tmp_path: Path) -> None:
    gone = stack(body())
    del gone[2]
    (series,) = scan_dicom(write_all(gone, tmp_path / "series"))
    with pytest.raises(InputError, match=rf"{series.series_id}: MISSING_SLICE: gap of 4.00 mm between slices 2 and 3"):
        read_series(series)


def test_a_gap_that_was_allowed_when_scanning_is_not_skipped_when_reading(tmp_path: Path) -> None:
    gone = stack(body())
    del gone[2]
    (series,) = scan_dicom(write_all(gone, tmp_path / "series"), allow=[Allow.GAPS])
    found = read_or_refuse(series)
    assert isinstance(found, Finding)
    assert found.code is FindingCode.MISSING_SLICE
    assert "--allow gaps" in found.message


def test_a_gap_is_filled_on_request(tmp_path: Path) -> None:
    gone = stack(body())
    del gone[2]
    (series,) = scan_dicom(write_all(gone, tmp_path / "series"), allow=[Allow.GAPS])
    volume = read_series(series, allow=[Allow.GAPS])
    stored = body().astype("f4").transpose(2, 1, 0) - 1024
    assert volume.voxels.shape == (24, 20, 6)
    assert np.array_equal(volume.voxels[:, :, [0, 1, 3, 4, 5]], stored[:, :, [0, 1, 3, 4, 5]])
    assert np.allclose(volume.voxels[:, :, 2], (stored[:, :, 1] + stored[:, :, 3]) / 2)
    assert volume.findings[0].code is FindingCode.FILLED_SLICES


def test_pixels_that_cannot_be_decoded_are_refused_by_the_number_of_the_slice(folder: Path) -> None:
    (series,) = scan_dicom(folder)
    path = series.slices[3].header.file.path
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"TRUNCATED: slice 4 of 6: its file ends before its last pixel"):
        read_series(series)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(6)), st.randoms(use_true_random=False))
def test_order_and_names_of_the_files_do_not_matter(order: list[int], names: random.Random) -> None:
    datasets = stack(body())
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        known = read_series(scan_dicom(write_all(datasets, root / "known"))[0])
        called = [f"{names.randrange(10**9)}-{k}" for k in range(6)]
        shuffled = write_all([datasets[k] for k in order], root / "shuffled", called.__getitem__)
        (series,) = scan_dicom(shuffled)
        found = read_series(series)
        listed = CheckedDicomReader().get_data(tuple(sorted(shuffled.iterdir(), key=lambda _: names.random())))
    assert np.array_equal(found.voxels, known.voxels)
    assert np.array_equal(found.grid.affine, known.grid.affine)
    assert np.array_equal(listed[0], known.voxels)
    assert np.array_equal(listed[1]["affine"], known.grid.affine)


def test_monai_loads_a_folder(folder: Path) -> None:
    image = LoadImaged(keys="image", reader=READER, ensure_channel_first=True)({"image": str(folder)})["image"]
    assert image.shape == (1, 24, 20, 6)
    assert image.dtype == torch.float32
    assert np.array_equal(image[0].numpy(), body().astype("f4").transpose(2, 1, 0) - 1024)
    expected = np.array([[-1, 0, 0, 10.5], [0, -1, 0, 20.25], [0, 0, 2, 5], [0, 0, 0, 1.0]])
    assert np.allclose(image.affine, expected)
    assert image.meta["space"] == "RAS"


def test_monai_loads_exactly_the_files_of_a_list(folder: Path) -> None:
    files = sorted(map(str, folder.iterdir()))[1:5]
    image = LoadImaged(keys="image", reader=READER)({"image": files})["image"]
    assert image.shape == (24, 20, 4)
    assert float(image.affine[2, 3]) == 7.0


def test_monai_loads_an_archive(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"deep/{path.name}")
    image = LoadImaged(keys="image", reader=READER)({"image": tmp_path / "a.zip"})["image"]
    assert image.shape == (24, 20, 6)


def test_monai_loads_a_multi_frame_file(tmp_path: Path) -> None:
    path = write(enhanced(body(), [1] * 6, [-1024] * 6), tmp_path / "enhanced")
    image = LoadImaged(keys="image", reader=READER)({"image": path})["image"]
    assert np.array_equal(image.numpy(), body().astype("f4").transpose(2, 1, 0) - 1024)


def test_monai_gives_options_on_to_the_reader(tmp_path: Path) -> None:
    gone = stack(body())
    del gone[2]
    load = LoadImaged(keys="image", reader=READER, allow=["gaps"])
    assert load({"image": write_all(gone, tmp_path / "series")})["image"].shape == (24, 20, 6)


def test_monai_never_falls_back_to_a_reader_that_checks_nothing(tmp_path: Path) -> None:
    gone = stack(body())
    del gone[2]
    with pytest.raises(InputError, match="MISSING_SLICE"):
        LoadImaged(keys="image", reader=READER)({"image": write_all(gone, tmp_path / "series")})


def test_one_slice_of_a_series_is_no_volume(folder: Path) -> None:
    with pytest.raises(InputError, match="SINGLE_SLICE"):
        CheckedDicomReader().get_data((folder / "0.dcm",))


def test_several_series_are_named_and_one_can_be_chosen(tmp_path: Path) -> None:
    write_all(stack(body()), tmp_path / "a")
    write_all(stack(body(4), SeriesInstanceUID="1.2.3.4"), tmp_path / "b")
    found = scan_dicom(tmp_path)
    with pytest.raises(InputError) as caught:
        CheckedDicomReader().get_data((tmp_path,))
    assert all(f"{series.series_id} ({len(series.headers)} files, usable)" in str(caught.value) for series in found)
    shortest = min(found, key=lambda series: len(series.headers))
    voxels, _ = CheckedDicomReader(series_id=shortest.series_id).get_data((tmp_path,))
    assert voxels.shape == (24, 20, 4)


def test_an_unknown_series_id_is_told_with_those_that_are_there(folder: Path) -> None:
    (series,) = scan_dicom(folder)
    with pytest.raises(InputError, match=rf"found {series.series_id}.*expected the series ct-none"):
        CheckedDicomReader(series_id="ct-none").get_data((folder,))


def test_a_folder_without_dicom_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="found no DICOM image; expected one series"):
        CheckedDicomReader().get_data((tmp_path,))


def test_an_unknown_fault_is_a_wrong_option() -> None:
    with pytest.raises(UsageError, match="expected gaps, tilt"):
        CheckedDicomReader(allow=["everything"])


@pytest.mark.parametrize("name", ["image.nii.gz", "image.NRRD", "image.png", "missing"])
def test_what_is_no_dicom_is_left_to_other_readers(tmp_path: Path, name: str) -> None:
    if name != "missing":
        (tmp_path / name).write_bytes(b"something else entirely")
    reader = CheckedDicomReader()
    assert not reader.verify_suffix(tmp_path / name)
    with pytest.raises(InputError, match="not DICOM"):
        reader.read(tmp_path / name)


def test_a_damaged_dicom_file_is_not_left_to_other_readers(folder: Path) -> None:
    path = folder / "0.dcm"
    path.write_bytes(path.read_bytes()[:400])
    reader = CheckedDicomReader()
    assert reader.verify_suffix(str(path))
    with pytest.raises(InputError):
        reader.get_data(reader.read(str(path)))


def test_a_constant_image_is_refused_and_odd_values_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match="CONSTANT"):
        CheckedDicomReader().get_data((write_all(stack(np.zeros((5, 8, 8), "u2")), tmp_path / "a"),))
    with caplog.at_level(logging.WARNING):
        CheckedDicomReader().get_data((write_all(stack(body(), RescaleIntercept=0), tmp_path / "b"),))
    assert "NOT_HU" in caplog.text


def test_no_message_names_the_patient(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_all(stack(body()), tmp_path / "a")
    write_all(stack(body(4), SeriesInstanceUID="1.2.3.4"), tmp_path / "b")
    write_all(stack(body(4), SeriesInstanceUID="1.2.3.5"), tmp_path / "c")
    (tmp_path / "c" / "1.dcm").write_bytes((tmp_path / "c" / "1.dcm").read_bytes()[:-20])
    texts = []
    for path in (tmp_path, tmp_path / "c", tmp_path / "a" / "0.dcm"):
        with pytest.raises(InputError) as caught:
            CheckedDicomReader().get_data((path,))
        texts.append(str(caught.value))
    shown = "".join((*texts, *capfd.readouterr()))
    assert not any(secret in shown for secret in PATIENT)
