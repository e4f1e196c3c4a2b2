"""Reading volumes and writing label maps: what comes back, what is refused, and what is never left behind."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import LoadImage

import voxelgate.images.volumes
from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.geometry import Grid
from voxelgate.images.volumes import (
    is_volume,
    read_grid,
    read_volume,
    read_volume_header,
    volume_stem,
    write_label_map,
)
from voxelgate.transforms.io import VolumeReader

AFFINE = np.array([[0.0, -2.0, 0.0, 10.0], [1.0, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 30.0], [0.0, 0.0, 0.0, 1.0]])
VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
GRID = Grid((4, 5, 6), AFFINE)
LABELS = (VOXELS % 3).astype(np.uint8)


def save_nifti(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray | None = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def save_itk(path: Path, voxels: np.ndarray = VOXELS, affine_ras: np.ndarray = AFFINE) -> Path:
    image = sitk.GetImageFromArray(voxels.T)
    affine_lps = np.diag((-1.0, -1.0, 1.0, 1.0)) @ affine_ras
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine_lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine_lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_volume(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path.name}: ")
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ", ".nrrd", ".mha", ".mhd"])
def test_every_format_gives_the_same_voxels_at_the_same_place(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    (save_nifti if "nii" in suffix.lower() else save_itk)(path)

    voxels, grid = read_volume(path)

    np.testing.assert_array_equal(voxels, VOXELS)
    assert voxels.dtype == np.int16
    assert GRID.agrees(grid, 1e-4)
    assert GRID.agrees(read_grid(path), 1e-4)
    assert read_volume_header(path).is_oriented
    assert volume_stem(path) == "image"


def test_monai_loads_the_same_voxels_and_grid_through_our_reader(tmp_path: Path) -> None:
    for path in (save_nifti(tmp_path / "a.nii.gz"), save_itk(tmp_path / "a.nrrd"), save_itk(tmp_path / "a.mha")):
        image = LoadImage(reader="voxelgate.VolumeReader")(path)

        np.testing.assert_array_equal(image.numpy(), VOXELS)
        assert GRID.agrees(Grid(tuple(image.shape), image.affine.numpy()), 1e-4)
        np.testing.assert_array_equal(image.meta["spatial_shape"], GRID.shape)


def test_monai_does_not_fall_back_on_its_own_readers_when_ours_refuses(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "four.nii.gz", np.zeros((4, 5, 6, 2), np.int16))

    with pytest.raises(InputError, match="4 axes"):
        LoadImage(reader="voxelgate.VolumeReader")(path)


def test_our_reader_refuses_several_files_for_one_image(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz")
    reader = VolumeReader()

    assert reader.verify_suffix([str(path)])
    assert not reader.verify_suffix("a.gif")
    with pytest.raises(InputError, match="2 files for one image"):
        reader.get_data(reader.read([str(path), str(path)]))


def test_the_sform_counts_although_pixdim_disagrees_where_monai_takes_an_unset_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header.set_qform(np.eye(4), 0)  # as left by tools that write the sform only
    image.header["pixdim"][1:4] = (1.001, 2.0, 3.0)
    path = tmp_path / "image.nii.gz"
    nib.save(image, path)

    assert GRID.agrees(read_grid(path), 1e-4)
    assert GRID.agrees(Grid(GRID.shape, LoadImage(reader=VolumeReader)(path).affine.numpy()), 1e-4)
    assert not GRID.agrees(Grid(GRID.shape, LoadImage()(path).affine.numpy()))


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "image.nii")
    with path.open("r+b") as file:
        file.seek(112)
        file.write(np.array([2.0, -1024.0], np.float32).tobytes())

    np.testing.assert_array_equal(read_volume(path)[0], VOXELS * 2.0 - 1024.0)


def test_big_endian_voxels_come_in_native_order(tmp_path: Path) -> None:
    path = tmp_path / "image.nii"
    nib.save(nib.Nifti1Image(VOXELS, AFFINE).as_reoriented([[0, 1], [1, 1], [2, 1]]), path)
    swapped = nib.Nifti1Image(VOXELS, AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(swapped, path)

    voxels, _ = read_volume(path)

    assert voxels.dtype.isnative
    np.testing.assert_array_equal(voxels, VOXELS)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti2Image(VOXELS, AFFINE), path)

    assert GRID.agrees(read_volume(path)[1], 1e-6)


def test_axes_of_one_voxel_beyond_the_third_are_dropped(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "image.nii.gz", VOXELS[..., None, None])

    voxels, grid = read_volume(path)

    assert voxels.shape == grid.shape == (4, 5, 6)
    np.testing.assert_array_equal(voxels, VOXELS)


def test_a_header_without_orientation_is_read_with_its_spacing_and_reported(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, None)
    image.header["pixdim"][1:4] = (1, 2, 3)
    nib.save(image, tmp_path / "bare.nii.gz")
    header = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nspacings: 1 2 3\nencoding: raw\n\n"
    (tmp_path / "bare.nrrd").write_bytes(header.encode() + bytes(8))

    for name in ("bare.nii.gz", "bare.nrrd"):
        assert read_grid(tmp_path / name).spacing_mm == (1, 2, 3)
        assert not read_volume_header(tmp_path / name).is_oriented


def test_a_missing_file_a_folder_and_a_foreign_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "photo.gif").write_bytes(b"gif")

    assert "does not exist" in refusal(tmp_path / "missing.nii.gz")
    assert "is a folder" in refusal(tmp_path / "folder.nii.gz")
    assert "expected a name ending in .nii.gz, .nii, .nrrd, .mha, .mhd" in refusal(tmp_path / "photo.gif")
    assert not is_volume(tmp_path / "photo.png")


@pytest.mark.parametrize("name", ["text.nii", "text.nii.gz", "text.nrrd", "text.mha"])
@pytest.mark.parametrize("content", [b"", b"no image at all " * 50], ids=["empty", "text"])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    refusal(path)


@pytest.mark.parametrize("kept", [60, 0.3, 0.6, -30])
def test_a_truncated_gzip_is_refused(tmp_path: Path, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)
    path = save_nifti(tmp_path / "image.nii.gz", noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])

    assert "ends too early" in refusal(path)


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 2**31), st.integers(0, 7))
def test_no_flipped_bit_of_compressed_voxels_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 999, (12, 12, 12)).astype(np.int16)
    path = save_nifti(tmp_path_factory.mktemp("bits") / "image.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[200 + at % (len(content) - 200)] ^= 1 << bit
    path.write_bytes(content)

    refusal(path)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_missing_voxels_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    (save_nifti if suffix == ".nii" else save_itk)(path)
    path.write_bytes(path.read_bytes()[:-9])

    refusal(path)


def test_a_header_without_its_raw_file_is_refused(tmp_path: Path) -> None:
    path = save_itk(tmp_path / "image.mhd")
    (tmp_path / "image.raw").unlink()

    refusal(path)


def test_two_and_four_axes_are_refused_with_their_number(tmp_path: Path) -> None:
    assert "2 axes (4x5)" in refusal(save_nifti(tmp_path / "two.nii.gz", VOXELS[..., 0]))
    assert "4 axes (4x5x6x2)" in refusal(save_nifti(tmp_path / "four.nii.gz", np.stack([VOXELS] * 2, -1)))
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS[..., 0].T), str(tmp_path / "two.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([VOXELS.T] * 2), isVector=False), str(tmp_path / "four.nrrd"))
    assert "2 axes (4x5)" in refusal(tmp_path / "two.mha")
    assert "4 axes (4x5x6x2)" in refusal(tmp_path / "four.nrrd")


def test_an_axis_without_voxels_is_refused(tmp_path: Path) -> None:
    assert "at least one voxel" in refusal(save_nifti(tmp_path / "image.nii", np.zeros((4, 0, 6), np.int16)))


@pytest.mark.parametrize("value", [np.nan, 0.0], ids=["nan", "flat"])
def test_an_affine_that_places_nothing_is_refused(tmp_path: Path, value: float) -> None:
    path = save_nifti(tmp_path / "image.nii")
    with path.open("r+b") as file:
        file.seek(280)
        file.write(np.full(4, value, np.float32).tobytes())

    assert "affine" in refusal(path)


def test_lengths_in_metres_are_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "image.nii")

    assert "lengths in metres, expected mm" in refusal(tmp_path / "image.nii")


def test_colours_vectors_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refusal(save_nifti(tmp_path / "colour.nii", colour))
    refusal(save_nifti(tmp_path / "complex.nii", np.zeros((2, 2, 2), np.complex64)))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 2, 2, 3), np.uint8), isVector=True), str(tmp_path / "v.nrrd"))
    assert "3 values in each voxel" in refusal(tmp_path / "v.nrrd")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_written_label_map_reads_back_on_any_grid(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * rng.uniform(0.3, 5, 3)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    grid = Grid(tuple(rng.integers(1, 9, 3)), affine)
    labels = rng.integers(0, rng.choice([3, 300, 65536]), grid.shape)
    path = tmp_path_factory.mktemp("written") / "labels.nii.gz"

    write_label_map(path, labels, grid, like=None)
    voxels, read_back = read_volume(path)

    np.testing.assert_array_equal(voxels, labels)
    assert voxels.dtype == (np.uint8 if labels.max() < 256 else np.uint16)
    assert grid.agrees(read_back, 0.001)


def test_matrices_codes_and_units_of_the_image_are_kept(tmp_path: Path) -> None:
    source = nib.Nifti1Image(VOXELS, AFFINE)
    source.set_sform(AFFINE, 4)
    moved = AFFINE.copy()
    moved[:3, 3] += 7
    source.set_qform(moved, 2)
    source.header.set_xyzt_units("mm", "sec")
    nib.save(source, tmp_path / "image.nii.gz")

    write_label_map(tmp_path / "labels.nii.gz", LABELS, GRID, like=tmp_path / "image.nii.gz")

    written = nib.load(tmp_path / "labels.nii.gz")
    for read in (lambda image: image.get_sform(coded=True), lambda image: image.get_qform(coded=True)):
        np.testing.assert_array_equal(read(written)[0], read(nib.load(tmp_path / "image.nii.gz"))[0])
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (4, 2)
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert written.get_data_dtype() == np.uint8


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_with_an_axis_too_long_for_nifti_1_are_written_as_nifti_2(tmp_path: Path, axis: int) -> None:
    shape = [2, 2, 2]
    shape[axis] = 33000
    labels = (np.arange(np.prod(shape)).reshape(shape) % 3).astype(np.uint8)
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti2Image(labels.astype(np.int16), AFFINE), image)
    for like in (image, None):
        write_label_map(tmp_path / "labels.nii.gz", labels, read_grid(image), like=like, overwrite=True)

        assert isinstance(nib.load(tmp_path / "labels.nii.gz"), nib.Nifti2Image)
        np.testing.assert_array_equal(read_volume(tmp_path / "labels.nii.gz")[0], labels)
        assert read_grid(tmp_path / "labels.nii.gz").agrees(read_grid(image), 1e-6)


def test_labels_of_a_nifti_2_image_of_usual_size_are_nifti_1(tmp_path: Path) -> None:
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti2Image(VOXELS, AFFINE), image)

    write_label_map(tmp_path / "labels.nii.gz", LABELS, read_grid(image), like=image)

    assert isinstance(nib.load(tmp_path / "labels.nii.gz"), nib.Nifti1Image)
    assert read_grid(tmp_path / "labels.nii.gz").agrees(read_grid(image), 1e-4)


def test_codes_of_zero_stay_zero(tmp_path: Path) -> None:
    image = save_nifti(tmp_path / "image.nii.gz", VOXELS, None)

    write_label_map(tmp_path / "labels.nii.gz", LABELS, read_grid(image), like=image)

    assert not read_volume_header(tmp_path / "labels.nii.gz").is_oriented
    assert read_grid(image).agrees(read_grid(tmp_path / "labels.nii.gz"), 1e-6)


def test_a_label_map_of_an_itk_image_gets_code_1(tmp_path: Path) -> None:
    write_label_map(tmp_path / "labels.nii.gz", LABELS, GRID, like=save_itk(tmp_path / "image.mha"))

    header = nib.load(tmp_path / "labels.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-5)


def test_a_sheared_grid_gets_no_qform(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] = 0.8
    grid = Grid(GRID.shape, sheared)

    write_label_map(tmp_path / "labels.nii.gz", LABELS, grid, like=None)

    assert int(nib.load(tmp_path / "labels.nii.gz").header["qform_code"]) == 0
    assert grid.agrees(read_grid(tmp_path / "labels.nii.gz"), 1e-4)


def test_no_text_of_the_image_reaches_the_label_map(tmp_path: Path) -> None:
    source = nib.Nifti1Image(VOXELS, AFFINE)
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        source.header[name] = b"DOE^JANE"
    source.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    nib.save(source, tmp_path / "image.nii.gz")

    write_label_map(tmp_path / "labels.nii.gz", LABELS, GRID, like=tmp_path / "image.nii.gz")

    content = (tmp_path / "labels.nii.gz").read_bytes()
    assert b"DOE" not in gzip.decompress(content)
    assert b"image" not in content


@pytest.mark.parametrize(
    ("labels", "grid", "sentence"),
    [
        (LABELS[:-1], GRID, "shape"),
        (LABELS.astype(np.float32), GRID, "integers"),
        (LABELS.astype(np.int32) - 1, GRID, "from -1 to 1"),
        (LABELS.astype(np.int32) + 65536, GRID, "expected 0 to 65535"),
        (LABELS, Grid((4, 5, 6), np.eye(4)), "do not lie on the grid of image.nii.gz"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: np.ndarray, grid: Grid, sentence: str) -> None:
    image = save_nifti(tmp_path / "image.nii.gz")

    with pytest.raises(OutputError, match=sentence):
        write_label_map(tmp_path / "labels.nii.gz", labels, grid, like=image)

    assert os.listdir(tmp_path) == ["image.nii.gz"]  # noqa: PTH208 - hidden files too


def test_only_nii_gz_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"written as \.nii\.gz"):
        write_label_map(tmp_path / "labels.nrrd", LABELS, GRID, like=None)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_label_map(tmp_path / "missing" / "labels.nii.gz", LABELS, GRID, like=None)


def test_a_full_disk_leaves_nothing_behind_and_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.nii.gz"
    path.write_bytes(b"older")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        write_label_map(path, LABELS, GRID, overwrite=True)

    assert os.listdir(tmp_path) == ["labels.nii.gz"]  # noqa: PTH208 - hidden files too
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize("damage", ["voxels", "grid", "file"])
def test_a_file_that_reads_back_differently_never_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    image = {
        "voxels": nib.Nifti1Image(LABELS + 1, AFFINE),
        "grid": nib.Nifti1Image(LABELS, np.eye(4)),
        "file": nib.Nifti1Image(LABELS[None], AFFINE),
    }[damage]
    write = voxelgate.images.volumes._write_gzip
    monkeypatch.setattr(voxelgate.images.volumes, "_write_gzip", lambda path, _: write(path, image))

    with pytest.raises(OutputError, match="read"):
        write_label_map(tmp_path / "labels.nii.gz", LABELS, GRID, like=None)

    assert not list(tmp_path.iterdir())


def test_real_images_keep_their_grid_when_labels_are_written(tmp_path: Path, real_data: Path) -> None:
    for image in sorted((real_data / "small").rglob("*.nii.gz")):
        voxels, grid = read_volume(image)
        labels = (voxels > voxels.mean()).astype(np.uint8)

        write_label_map(tmp_path / "labels.nii.gz", labels, grid, like=image, overwrite=True)

        assert grid.agrees(read_grid(tmp_path / "labels.nii.gz"), 1e-9)


def test_a_label_map_that_is_there_is_replaced_only_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "labels.nii.gz"
    path.write_bytes(b"older")

    with pytest.raises(OutputError, match="exists already"):
        write_label_map(path, LABELS, GRID)
    assert path.read_bytes() == b"older"

    write_label_map(path, LABELS, GRID, overwrite=True)
    assert np.array_equal(read_volume(path)[0], LABELS)
