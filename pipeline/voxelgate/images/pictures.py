"""Read PNG, TIFF and JPEG pictures as volumes of one slice, value for value, and write label maps as such files.

A pixel counts as a cube of 1 mm. Resolution tags are not used: most hold what a screen or a printer wants (72, 96 or
300 dots an inch), and image and mask of one case come from programs that write different ones. Where a length is
known, such as that of a microscope, results in pixels can be multiplied by it.

The first index axis runs along a row to the right, the second down the column, as in ITK; so the axes point to the left
and the back of a patient who is looked at from the front. What is written has the same order: nothing is turned.

Pillow decodes, but for colours of 16 bits: those it cuts to 8, so ITK reads them. MONAI's `PILReader` is not used: it
knows no TIFF, cuts 16-bit colours too, and gives transparency as a channel.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from voxelgate.core.errors import InputError, VoxelgateError
from voxelgate.core.geometry import AXES_RAS, Grid
from voxelgate.images.volume_bytes import refuse_irregular
from voxelgate.images.volume_header import HeaderError

Voxels = npt.NDArray[Any]

TIFF_SUFFIXES = (".tif", ".tiff")
PICTURE_SUFFIXES = (".png", *TIFF_SUFFIXES, ".jpg", ".jpeg")
"""Endings of the pictures that can be read, in lower case; a name is compared without regard to case."""

FORMATS = ("PNG", "TIFF", "JPEG")

RGB = ("red", "green", "blue")
"""Names of the channels of a picture in colour, in the order in which its file holds them."""

PIXELS_PER_ML = 1000
"""Pixels are cubes of 1 mm."""


CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 1, "I;16": 1, "I;16B": 1, "RGB": 3, "RGBA": 3}
"""Channels in each of Pillow's modes that can be read; transparency is none."""

WITH_ALPHA = frozenset({"LA", "RGBA"})
COLOURS = frozenset({"RGB", *WITH_ALPHA})
"""Modes of which Pillow reads 8 bits even where 16 are stored."""

WHITE_IS_ZERO = 0
"""Of the TIFF tag PhotometricInterpretation."""

SEPARATE_PLANES = 2
"""Of the TIFF tag PlanarConfiguration."""

UPRIGHT = (None, 0, 1)
"""Values of the EXIF and TIFF tag Orientation that turn nothing; 0 is undefined, and written by some cameras."""

PNG_START = 26
"""Bytes of a PNG file up to depth and kind of its values (PNG specification, 11.2.1)."""


class PictureHeader(NamedTuple):
    """What a picture says of itself.

    Args:
        grid: (columns, rows, 1), pixels of 1 mm.
        channels: 1, or 3 for colours; transparency is none.
        has_palette: its values are numbers of colours in a table: fit for labels, and no brightness.
        is_lossy: compressed so that values changed: fit for an image, and no labels.
    """

    grid: Grid
    channels: int
    has_palette: bool
    is_lossy: bool


def is_picture(path: Path) -> bool:
    """Return whether the name ends like a PNG, TIFF or JPEG file; the file is not touched."""
    return path.name.lower().endswith(PICTURE_SUFFIXES)


def label_suffix(path: Path) -> str:
    """Return the ending of a label map that fits a picture: TIFF for TIFF, PNG for all others.

    >>> label_suffix(Path("eye.JPG"))
    '.png'
    """
    return ".tif" if path.name.lower().endswith(TIFF_SUFFIXES) else ".png"


def read_picture_header(path: Path) -> PictureHeader:
    """Read what a picture says of itself.

    Raises:
        InputError: the file is missing, damaged or no picture, holds several, or values that cannot be read without
            loss: more than 16 bits, signed or fractional numbers, inks (CMYK), white as 0.
    """
    with _opened(path) as image:
        return _header(image)


def read_picture(path: Path) -> tuple[Voxels, PictureHeader]:
    """Read the values of a picture as they are stored.

    Args:
        path: a file whose name ends in one of `PICTURE_SUFFIXES`.

    Returns:
        Values (C, columns, rows, 1), uint8 or uint16; those of 1, 2 and 4 bits count from 0, those of a palette are
        the numbers of its colours. Transparency is left out if every pixel is opaque.

    Raises:
        InputError: as for `read_picture_header`; also a picture that is to be turned when shown (EXIF orientation), and
            one with transparent pixels.
    """
    with _opened(path) as image:
        header, bits = _header(image), _bits(path, image)
        pixels = _read_by_itk(path, image) if bits == 16 and image.mode in COLOURS else np.asarray(image)
        _refuse_turned(path, image.getexif().get(ExifTags.Base.Orientation))  # of a PNG it may stand behind the pixels
        if image.mode == "L" and bits < 8:
            pixels = pixels // (255 // (2**bits - 1))  # Pillow spreads them over 0 to 255
    pixels = pixels.astype(np.uint16 if bits == 16 else np.uint8, copy=False)
    if image.mode in WITH_ALPHA:
        pixels = _opaque(path, pixels)
    by_channel = pixels[..., None] if pixels.ndim == 2 else pixels
    return by_channel.transpose(2, 1, 0)[..., None], header


def write_picture(path: Path, values: Voxels) -> None:
    """Write a picture, compressed without loss; the file must not exist.

    Args:
        path: the file, whose name says the format: TIFF, else PNG.
        values: (C, columns, rows, 1), as `read_picture` gives them: uint8, or if C is 1, uint16.

    Raises:
        OSError: it cannot be written.
    """
    pixels = np.ascontiguousarray(values[..., 0].transpose(2, 1, 0))
    picture = Image.fromarray(pixels[..., 0] if len(values) == 1 else pixels)
    with path.open("wb") as file:
        if label_suffix(path) in TIFF_SUFFIXES:
            picture.save(file, "TIFF", compression="tiff_adobe_deflate")
        else:
            picture.save(file, "PNG")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture that can be read without loss, as far as its header tells; reword what Pillow and ITK raise."""
    try:
        refuse_irregular(path)
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # Pillow's tell neither the file nor what to do
            _refuse_other_kinds(path, image)
            yield image
    except UnidentifiedImageError as error:
        raise InputError(f"{path.name}: is no picture (PNG, TIFF, JPEG) that can be read; export it again.") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path.name}: is too large for a picture; cut it into tiles.") from error
    except HeaderError as error:
        raise InputError(f"{path.name}: {error}") from error
    except (VoxelgateError, MemoryError):
        raise
    except Exception as error:  # Pillow and ITK raise nearly anything on damaged input
        raise InputError(f"{path.name}: the picture is damaged or ends too early; copy or export it again.") from error


def _header(image: Image.Image) -> PictureHeader:
    is_lossy = image.format == "JPEG" or "jpeg" in str(image.info.get("compression", ""))
    grid = Grid((image.width, image.height, 1), AXES_RAS)
    return PictureHeader(grid, CHANNELS[image.mode], image.mode == "P", is_lossy)


def _refuse_other_kinds(path: Path, image: Image.Image) -> None:
    if (pages := getattr(image, "n_frames", 1)) != 1:
        raise InputError(f"{path.name}: holds {pages} pictures, expected one; save each as a file of its own.")
    if image.mode not in CHANNELS:
        raise InputError(
            f"{path.name}: pixels of the kind {image.mode}, expected grey values or RGB of 8 or 16 bits; save it so, "
            "or as NIfTI, which holds any number."
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _refuse_other_tiff(path, image)


def _refuse_turned(path: Path, orientation: int | None) -> None:
    if orientation not in UPRIGHT:
        raise InputError(
            f"{path.name}: is marked to be turned when it is shown (orientation {orientation}), and a label map may be "
            "turned or not; save it upright."
        )


def _refuse_other_tiff(path: Path, image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse what Pillow would turn into other values without a word."""
    tags = image.tag_v2
    _refuse_turned(path, tags.get(ExifTags.Base.Orientation))  # Pillow would turn it
    if set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) != {1}:
        raise InputError(f"{path.name}: signed or fractional values, expected whole numbers from 0; save it as NIfTI.")
    if len(set(_tiff_bits(image))) > 1 or _tiff_bits(image)[0] not in {1, 8, 16}:
        raise InputError(f"{path.name}: values of {_tiff_bits(image)} bits, expected 1, 8 or 16; save it so.")
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        raise InputError(f"{path.name}: white is stored as 0, expected black; save it anew as grey values.")


def _bits(path: Path, image: Image.Image) -> int:
    """Return the bits of a value as they are stored."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_bits(image)[0]
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(PNG_START)[-2]
    return 8


def _tiff_bits(image: TiffImagePlugin.TiffImageFile) -> tuple[int, ...]:
    return tuple(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))


def _read_by_itk(path: Path, image: Image.Image) -> Voxels:
    """Return colours of 16 bits, (rows, columns, C)."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        is_separate = image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION) == SEPARATE_PLANES
        if is_separate or TiffImagePlugin.TILEWIDTH in image.tag_v2:  # ITK would read 8 bits of it
            raise InputError(
                f"{path.name}: colours of 16 bits in tiles or separate planes, expected strips; save it so, or as PNG."
            )
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("TIFFImageIO" if image.format == "TIFF" else "PNGImageIO")
    pixels: Voxels = sitk.GetArrayFromImage(reader.Execute())
    if pixels.dtype != np.uint16 or pixels.shape != (image.height, image.width, len(image.getbands())):
        raise InputError(f"{path.name}: its colours of 16 bits cannot be read without loss; save it as PNG of 16 bits.")
    return pixels


def _opaque(path: Path, pixels: Voxels) -> Voxels:
    """Return pixels (rows, columns, C) without their transparency, provided that there is none."""
    if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
        raise InputError(
            f"{path.name}: has transparent pixels, whose values nobody sees; save it without transparency."
        )
    return pixels[..., :-1]
