"""Pictures: every value and every pixel in its place, written as read; what would change values is refused."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.transforms import LoadImaged
from PIL import ExifTags, Image, TiffImagePlugin

from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.geometry import AXES_RAS, Grid
from voxelgate.images.pictures import RGB, label_suffix, read_picture, read_picture_header, write_picture
from voxelgate.images.spec import ImageSpec, read_image
from voxelgate.images.volumes import read_grid, read_volume, volume_stem, write_label_map
from voxelgate.transforms.io import LoadLabeld

COLOUR = ImageSpec(RGB, is_picture=True)
GREY = ImageSpec(is_picture=True)

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pixels_of(dtype: str, bands: int = 1) -> st.SearchStrategy[np.ndarray]:
    """Return pictures (rows, columns[, bands])."""
    trail = () if bands == 1 else (bands,)
    return SHAPES.flatmap(lambda shape: arrays(dtype, (*shape, *trail)))


def expected(pixels: np.ndarray) -> np.ndarray:
    """Return what must be read of pixels: channel, then along a row, then down, then one slice."""
    bands = pixels[..., None] if pixels.ndim == 2 else pixels
    channels, (rows, columns) = bands.shape[2], bands.shape[:2]
    out = np.empty((channels, columns, rows, 1), pixels.dtype)
    for row in range(rows):
        for column in range(columns):
            out[:, column, row, 0] = bands[row, column]
    return out


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def save_by_itk(path: Path, pixels: np.ndarray) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))
    return path


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@RELAXED
@given(pixels=st.one_of(pixels_of("uint8"), pixels_of("uint8", 3), pixels_of("uint16")))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_value_of_8_and_16_bits_is_read_where_it_lies(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    found, header = read_picture(save(tmp_path / f"a{suffix}", pixels))

    np.testing.assert_array_equal(found, expected(pixels))
    assert found.dtype == pixels.dtype
    assert header.grid.shape == found.shape[1:]


@RELAXED
@given(pixels=pixels_of("uint16", 3))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours_of_16_bits_lose_nothing(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    np.testing.assert_array_equal(read_picture(save_by_itk(tmp_path / f"a{suffix}", pixels))[0], expected(pixels))


@RELAXED
@given(values=st.one_of(pixels_of("uint8", 3), pixels_of("uint16"), pixels_of("uint8")))
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_what_is_written_is_what_was_read(tmp_path: Path, values: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.unlink(missing_ok=True)

    write_picture(path, expected(values))

    np.testing.assert_array_equal(read_picture(path)[0], expected(values))
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), values)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_is_read(tmp_path: Path, compression: str) -> None:
    for pixels in (np.arange(300, dtype=np.uint16).reshape(20, 15), np.arange(300, dtype=np.uint8).reshape(10, 10, 3)):
        path = save(tmp_path / "a.tif", pixels, compression=compression)
        np.testing.assert_array_equal(read_picture(path)[0], expected(pixels))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_count_from_0(tmp_path: Path, bits: int) -> None:
    values = (np.arange(24, dtype=np.uint8) % 2**bits).reshape(4, 6)
    grey = Image.fromarray(values * (255 // (2**bits - 1)))
    (grey.convert("1") if bits == 1 else grey).save(tmp_path / "a.png", bits=bits)
    if bits in {2, 4}:
        _as_few_bits(tmp_path / "a.png", values, bits)

    np.testing.assert_array_equal(read_volume(tmp_path / "a.png")[0][..., 0].T, values)


def _as_few_bits(path: Path, values: np.ndarray, bits: int) -> None:
    """Write a grey PNG of 2 or 4 bits, which Pillow does not."""
    import struct  # noqa: PLC0415
    import zlib  # noqa: PLC0415

    rows = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", size), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_a_palette_gives_the_numbers_of_its_colours_for_label_maps_and_no_image(tmp_path: Path) -> None:
    values = (np.arange(30, dtype=np.uint8) % 5).reshape(5, 6)
    picture = Image.fromarray(values, mode="P")
    picture.putpalette([255, 0, 0, 9, 9, 9, 0, 255, 0, 7, 7, 7, 0, 0, 255])
    picture.save(tmp_path / "a.png")

    np.testing.assert_array_equal(read_volume(tmp_path / "a.png")[0][..., 0].T, values)
    assert "a palette" in refusal(lambda: read_image([tmp_path / "a.png"], GREY))


@pytest.mark.parametrize(("mode", "bands"), [("LA", 2), ("RGBA", 4)])
def test_transparency_is_left_out_if_all_is_opaque_and_refused_if_not(tmp_path: Path, mode: str, bands: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 4, bands)).astype(np.uint8)
    pixels[..., -1] = 255
    opaque = save(tmp_path / "opaque.png", pixels)
    pixels[2, 1, -1] = 254
    clear = save(tmp_path / "clear.png", pixels)

    np.testing.assert_array_equal(read_picture(opaque)[0], expected(np.squeeze(pixels[..., :-1])))
    assert read_picture_header(opaque).channels == bands - 1
    assert "transparent" in refusal(lambda: read_picture(clear))
    with Image.open(opaque) as image:
        assert image.mode == mode


def test_transparency_of_16_bits_is_seen_too(tmp_path: Path) -> None:
    pixels = np.full((5, 4, 4), 65535, np.uint16)
    pixels[..., :3] = np.arange(60).reshape(5, 4, 3)
    opaque = save_by_itk(tmp_path / "opaque.png", pixels)
    np.testing.assert_array_equal(read_picture(opaque)[0], expected(pixels[..., :3]))
    pixels[0, 0, 3] = 65534
    clear = save_by_itk(tmp_path / "clear.png", pixels)
    assert "transparent" in refusal(lambda: read_picture(clear))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_to_be_turned_is_refused(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / f"a{suffix}", np.zeros((4, 4, 3), np.uint8), exif=exif)

    assert f"orientation {orientation}" in refusal(lambda: read_picture(path))


def test_an_upright_picture_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    read_picture(save(tmp_path / "a.jpg", np.zeros((4, 4, 3), np.uint8), exif=exif))


def test_resolution_tags_change_nothing(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6), np.uint8)
    plain, tagged = save(tmp_path / "a.png", pixels), save(tmp_path / "b.tif", pixels, dpi=(72, 300))

    assert read_grid(plain).agrees(read_grid(tagged), 0)
    assert read_grid(plain).spacing_mm == (1.0, 1.0, 1.0)


def white_is_0(path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 0
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(path, tiffinfo=tags)


def two_pages(path: Path) -> None:
    page = Image.fromarray(np.zeros((3, 3), np.uint8))
    page.save(path, save_all=True, append_images=[page])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (two_pages, "holds 2 pictures"),
        (white_is_0, "white is stored as 0"),
        (lambda path: save_by_itk(path, np.zeros((3, 3), np.float32)), "pixels of the kind F"),
        (lambda path: save_by_itk(path, np.zeros((3, 3), np.int16)), "pixels of the kind I"),
        (lambda path: Image.new("CMYK", (3, 3)).save(path), "pixels of the kind CMYK"),
        (lambda path: save_by_itk(path, np.zeros((3, 3), np.int8)), "signed or fractional"),
    ],
)
def test_tiff_that_would_be_read_otherwise_than_meant_is_refused(
    tmp_path: Path, make: Callable[[Path], None], sentence: str
) -> None:
    make(tmp_path / "a.tif")
    assert sentence in refusal(lambda: read_picture_header(tmp_path / "a.tif"))


def test_a_missing_file_a_folder_and_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")

    assert "does not exist" in refusal(lambda: read_picture_header(tmp_path / "missing.png"))
    assert "is a folder" in refusal(lambda: read_picture_header(tmp_path / "folder.png"))
    sentence = refusal(lambda: read_picture_header(tmp_path / "text.png"))
    assert "is no picture" in sentence
    assert str(tmp_path) not in sentence


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_no_truncated_picture_is_read(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3)).astype(np.uint8)
    whole = save(tmp_path / f"a{suffix}", pixels).read_bytes()
    before = read_picture(tmp_path / f"a{suffix}")[0]

    for length in [*range(0, len(whole) - 64, 97)]:
        (tmp_path / f"b{suffix}").write_bytes(whole[:length])
        try:
            found, _ = read_picture(tmp_path / f"b{suffix}")
        except InputError:
            continue
        np.testing.assert_array_equal(found, before)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.filterwarnings("error")
def test_a_damaged_picture_is_read_or_refused_and_no_library_warns(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(1)
    whole = save(tmp_path / f"a{suffix}", rng.integers(0, 255, (12, 10)).astype(np.uint8)).read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        (tmp_path / f"b{suffix}").write_bytes(damaged)
        with suppress(InputError):
            read_picture(tmp_path / f"b{suffix}")


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.png", ".png"), ("a.JPG", ".png"), ("a.TIF", ".tif"), ("a.tiff", ".tif")]
)
def test_label_maps_have_the_format_of_their_picture_but_jpeg(name: str, suffix: str) -> None:
    assert label_suffix(Path(name)) == suffix
    assert volume_stem(Path(name)) == "a"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("highest", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (65535, "uint16")])
def test_a_label_picture_lies_pixel_for_pixel_on_its_image(
    tmp_path: Path, suffix: str, highest: int, dtype: str
) -> None:
    image = save(tmp_path / f"image{suffix}", np.random.default_rng(0).integers(0, 255, (7, 5)).astype(np.uint8))
    labels = np.zeros((5, 7, 1), np.int32)
    labels[4, 0, 0], labels[1, 6, 0] = highest, 1

    write_label_map(tmp_path / f"labels{suffix}", labels, read_grid(image), like=image)

    with Image.open(tmp_path / f"labels{suffix}") as picture:
        written = np.asarray(picture)
    assert written.dtype == dtype
    assert (written[0, 4], written[6, 1], np.count_nonzero(written)) == (highest, 1, 2)
    assert os.listdir(tmp_path).count(f"labels{suffix}") == 1  # noqa: PTH208
    assert len(os.listdir(tmp_path)) == 2  # noqa: PTH208 - hidden files too


@pytest.mark.parametrize(
    ("labels", "grid"),
    [
        (np.zeros((3, 4, 2), np.uint8), Grid((3, 4, 2), AXES_RAS)),
        (np.zeros((3, 4, 1), np.uint8), Grid((3, 4, 1), np.eye(4))),
    ],
)
def test_no_volume_is_written_as_a_picture(tmp_path: Path, labels: np.ndarray, grid: Grid) -> None:
    with pytest.raises(OutputError, match=r"a\.png: its labels do not lie on the grid of a picture"):
        write_label_map(tmp_path / "a.png", labels, grid, like=None)
    assert not list(tmp_path.iterdir())


def test_monai_reads_a_picture_in_colours_as_three_channels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65535, (7, 5, 3)).astype(np.uint16)
    path = save_by_itk(tmp_path / "a.png", pixels)
    label = save(tmp_path / "b.png", np.array([[0, 255], [255, 0]], np.uint8))

    image = LoadImaged("image", reader="voxelgate.ChannelsReader")({"image": str(path)})["image"]
    mask = LoadLabeld("label", highest=1)({"label": str(label)})["label"]

    np.testing.assert_array_equal(image, expected(pixels))
    np.testing.assert_array_equal(image.affine, AXES_RAS)
    np.testing.assert_array_equal(mask[0, ..., 0], [[0, 1], [1, 0]])


def test_grey_and_colour_are_told_apart(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", np.arange(12, dtype=np.uint8).reshape(3, 4))
    colour = save(tmp_path / "colour.png", np.zeros((3, 4, 3), np.uint8))

    assert "grey.png: is grey, but the images are in colours" in refusal(lambda: read_image([grey], COLOUR))
    assert "colour.png: is in colours (RGB), but the images are grey" in refusal(lambda: read_image([colour], GREY))
    assert "a picture in colours" in refusal(lambda: read_volume(colour))
    assert "is no volume" in refusal(lambda: read_image([grey], ImageSpec()))
    assert "is a folder, expected a file; name a volume" in refusal(lambda: read_image([tmp_path], ImageSpec()))
