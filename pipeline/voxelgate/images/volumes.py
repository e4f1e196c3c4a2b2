"""Read one volume from a file with its grid in RAS+ mm, and write a label map that is re-read before it gets its name.

NIfTI goes through nibabel, NRRD and MetaImage through SimpleITK. MONAI's own readers are not used: its `NibabelReader`
replaces the sform by the qform, even by one with code 0, as soon as pixdim and sform differ by more than 1e-5
(`monai.data.utils.correct_nifti_header_if_necessary`), which turns and moves the image without a word. Pictures (PNG,
TIFF, JPEG) are volumes of one slice; `voxelgate.images.pictures` says how they are read.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from isal import igzip
from isal.igzip_lib import IsalError
from nibabel.spatialimages import HeaderDataError

from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.files import whole_file
from voxelgate.core.geometry import LPS_TO_RAS, Affine, Grid, counts_pixels
from voxelgate.images.pictures import PICTURE_SUFFIXES, is_picture, read_picture, read_picture_header, write_picture

Voxels = npt.NDArray[Any]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha", ".mhd")
"""Endings of the volumes that can be read, in lower case; a name is compared without regard to case."""

LABEL_SUFFIXES = (".nii.gz", ".png", ".tif", ".tiff")
"""Endings of the label maps that can be written."""


MILLIMETRE_UNITS = ("mm", "unknown")
"""Length units of a NIfTI header that are taken as mm; nearly every tool that leaves the field empty means mm."""

MOST_LABEL_VALUE = 65535
"""Largest value of a label map; values above 255 make it uint16."""

REWRITE_TOLERANCE_MM = 0.01
"""Largest move of a corner by writing: float32 headers hold a 1 m volume to 0.0001 mm."""

BLOCK_VOXELS = 2**22
"""Voxels that are compared at a time."""

GZIP_LEVEL = 1
"""ISA-L's usual level, eight times as fast as zlib's fastest; label maps are mostly zeros and pack well anyway."""

_GRID_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


class _Header(NamedTuple):
    """What a file says about its voxels before they are read."""

    shape: tuple[int, ...]
    affine_ras: Affine
    is_oriented: bool


def volume_stem(path: Path) -> str:
    """Return the file name without its suffix, if that is one of a volume or a picture.

    >>> volume_stem(Path("sub/case.01.nii.gz"))
    'case.01'
    """
    name = path.name
    suffix = next((suffix for suffix in (*SUFFIXES, *PICTURE_SUFFIXES) if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def is_volume(path: Path) -> bool:
    """Return whether the name ends like a readable volume, pictures aside; the file is not touched."""
    return path.name.lower().endswith(SUFFIXES)


def is_nifti(path: Path) -> bool:
    """Return whether the name ends like a NIfTI file; the file is not touched."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_grid(path: Path) -> Grid:
    """Read where the voxels of a file lie, from its header only.

    A NIfTI file is placed by its sform, else its qform. Without both (codes 0) its axes have no known direction: the
    grid then follows nibabel, with the voxel sizes of pixdim, centred on the origin and the first axis to the left; a
    NRRD file without `space` counts as LPS, as in ITK. `has_orientation` tells these files from the others.

    Args:
        path: a file whose name ends in one of `SUFFIXES` or `PICTURE_SUFFIXES`.

    Returns:
        The grid in RAS+ mm; axes of length one beyond the third are dropped.

    Raises:
        InputError: the file is missing, is no image, is damaged, has not three axes, or has no usable affine.
    """
    return read_picture_header(path).grid if is_picture(path) else _grid_of_header(path, _read_header(path))


def has_orientation(path: Path) -> bool:
    """Return whether the header says where left and right are; see `read_grid` for what is assumed if it does not.

    A picture has its sides where everybody sees them.

    Raises:
        InputError: the header cannot be read.
    """
    return is_picture(path) or _read_header(path).is_oriented


def read_volume(path: Path) -> tuple[Voxels, Grid]:
    """Read the voxels of a file of one channel and where they lie.

    Args:
        path: a file whose name ends in one of `SUFFIXES` or `PICTURE_SUFFIXES`.

    Returns:
        Voxels (i, j, k) in the file's own type and native byte order, or float64 where NIfTI's scl_slope or scl_inter
        apply; and the grid, as `read_grid` gives it. Values may be NaN or infinite: the caller decides.

    Raises:
        InputError: as for `read_grid`; also truncated or altered voxels, colours, vectors and complex numbers.
    """
    channels, grid = read_channels(path)
    if len(channels) != 1:
        raise InputError(
            f"{path.name}: a picture in colours, expected one number in each pixel; save it as grey values."
        )
    voxels: Voxels = channels[0]
    return voxels, grid


def read_channels(path: Path) -> tuple[Voxels, Grid]:
    """Read the voxels of a file as `read_volume` does, but with all channels, (C, i, j, k): three of an RGB picture."""
    if is_picture(path):
        values, header = read_picture(path)
        return values, header.grid
    grid = read_grid(path)
    with _reworded(path):
        voxels = _nifti_voxels(path) if is_nifti(path) else _itk_voxels(path)
    if voxels.dtype.kind not in "iuf":
        raise InputError(
            f"{path.name}: voxels of type {voxels.dtype}, expected one number each; export as grey values."
        )
    native = voxels.reshape(grid.shape, order="A")
    return native.astype(native.dtype.newbyteorder("="), copy=False)[None], grid


def write_label_map(
    path: Path | str, labels: Voxels, grid: Grid, *, like: Path | str | None = None, overwrite: bool = False
) -> None:
    """Write a label map: under a temporary name, re-read, compared, and only then renamed to `path`.

    The header of NIfTI holds nothing but shape, type and place; free text and extensions of `like` are not copied, for
    they may name the patient. A picture is a grey one whose values are the labels.

    Args:
        path: name ending in `.nii.gz`, or for one slice in `.png`, `.tif` or `.tiff`, in a folder that exists.
        labels: (i, j, k), integers from 0 to `MOST_LABEL_VALUE`; written as uint8, above 255 as uint16.
        grid: where the labels lie, RAS+ mm.
        like: the image that was segmented; if NIfTI, its sform, qform, both codes and units are kept bit by bit.
            Otherwise sform and qform get code 1 (scanner), the qform of a sheared grid 0.
        overwrite: replace a file of that name.

    Raises:
        OutputError: the file exists, labels and grid do not fit each other or `like`, or the file cannot be written
            or reads back differently; then nothing is left behind and an older file of that name is untouched.

    >>> image = vg.read_image("scan.nii.gz")
    >>> labels = np.zeros(image.grid.shape, np.uint8)
    >>> vg.write_label_map("empty.nii.gz", labels, image.grid, like="scan.nii.gz")
    """
    path, like = Path(path), None if like is None else Path(like)
    suffix = next((suffix for suffix in LABEL_SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise OutputError(f"{path.name}: label maps are written as {', '.join(LABEL_SUFFIXES)}; choose such a name.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path.name}: exists already; choose another name, or allow overwriting.")
    voxels = _label_voxels(path, labels, grid)
    if is_picture(path) and not counts_pixels(grid):
        raise OutputError(f"{path.name}: its labels do not lie on the grid of a picture; write them as .nii.gz.")
    if like is not None and (difference := grid.difference(read_grid(like))) is not None:
        raise OutputError(f"{path.name}: its labels do not lie on the grid of {like.name}: {difference}.")
    try:
        with whole_file(path, suffix=suffix) as partial:
            if is_picture(path):
                write_picture(partial, voxels[None])
            else:
                _write_gzip(partial, nib.Nifti1Image(voxels, None, nifti_header(grid, like, voxels.dtype)))
            refuse_other_content(partial, path.name, grid, functools.partial(_holds, partial, labels), "labels")
    except OSError as error:
        raise OutputError(f"{path.name}: cannot be written to {path.parent} ({error.strerror or error}).") from error


def _read_header(path: Path) -> _Header:
    if not is_volume(path):
        endings = (*SUFFIXES, *PICTURE_SUFFIXES)
        raise InputError(f"{path.name}: not a volume file, expected a name ending in {', '.join(endings)}.")
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path.name}: {found}, expected an image file; check the path.")
    with _reworded(path):
        return _nifti_header(path) if is_nifti(path) else _itk_header(path)


@contextmanager
def _reworded(path: Path) -> Iterator[None]:
    """Turn what the libraries raise on a bad file into one sentence."""
    try:
        yield
    except EOFError as error:
        raise InputError(f"{path.name}: the file ends too early; copy or export it again.") from error
    except (IsalError, igzip.BadGzipFile) as error:  # type: ignore[misc]  # isal's stubs give an instance of Exception
        raise InputError(f"{path.name}: its gzip compression is damaged; copy or export it again.") from error
    except (OSError, RuntimeError, ValueError, HeaderDataError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path.name}: cannot be read as an image ({reason}); copy or export it again.") from error


def _grid_of_header(path: Path, header: _Header) -> Grid:
    shape = header.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        extent = "x".join(str(n) for n in shape)
        raise InputError(
            f"{path.name}: {len(shape)} axes ({extent}), expected one volume of 3; export one volume alone."
        )
    try:
        return Grid((shape[0], shape[1], shape[2]), header.affine_ras)
    except ValueError as error:
        raise InputError(f"{path.name}: {error}; export it again with its position.") from error


@contextmanager
def _open_nifti(path: Path) -> Iterator[tuple[BinaryIO, Any]]:
    """Open a NIfTI-1 or NIfTI-2 file; the image reads its voxels from the stream when asked."""
    with path.open("rb") as file, ExitStack() as stack:
        is_gzip = path.name.lower().endswith(".gz")
        stream = cast("BinaryIO", stack.enter_context(igzip.IGzipFile(fileobj=file)) if is_gzip else file)
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
        stream.seek(0)
        if nib.Nifti2Header.may_contain_header(start):
            yield stream, nib.Nifti2Image.from_stream(stream)
        elif nib.Nifti1Header.may_contain_header(start):
            yield stream, nib.Nifti1Image.from_stream(stream)
        else:
            raise InputError(f"{path.name}: not a NIfTI file, although it is named like one; export it again.")


def _nifti_header(path: Path) -> _Header:
    with _open_nifti(path) as (_, image):
        header = image.header
        unit = header.get_xyzt_units()[0]
        if unit not in MILLIMETRE_UNITS:
            raise InputError(f"{path.name}: lengths in {unit}, expected mm; convert the image to mm.")
        is_oriented = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        return _Header(tuple(int(n) for n in image.shape), np.asarray(image.affine, dtype=np.float64), is_oriented)


def _nifti_voxels(path: Path) -> Voxels:
    with _open_nifti(path) as (stream, image):
        voxels: Voxels = np.asanyarray(image.dataobj)
        _read_to_end(stream)
    return voxels


def _read_to_end(stream: BinaryIO) -> None:
    """Let gzip compare its checksum, which it does only at the very end of the file."""
    while stream.read(1 << 20):
        pass


def _itk_header(path: Path) -> _Header:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    axes = reader.GetDimension()
    affine_lps = np.eye(4)
    spatial = min(axes, 3)
    direction = np.array(reader.GetDirection()).reshape(axes, axes)
    affine_lps[:spatial, :spatial] = (direction * np.array(reader.GetSpacing()))[:spatial, :spatial]
    affine_lps[:spatial, 3] = reader.GetOrigin()[:spatial]
    components = reader.GetNumberOfComponents()
    if components != 1:
        raise InputError(f"{path.name}: {components} values in each voxel, expected one; export one channel alone.")
    is_oriented = not path.name.lower().endswith(".nrrd") or "NRRD_space" in reader.GetMetaDataKeys()
    return _Header(tuple(int(n) for n in reader.GetSize()), LPS_TO_RAS @ affine_lps, is_oriented)


def _itk_voxels(path: Path) -> Voxels:
    voxels: Voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T
    return voxels


def _label_voxels(path: Path, labels: Voxels, grid: Grid) -> Voxels:
    if labels.shape != grid.shape:
        raise OutputError(
            f"{path.name}: labels of shape {labels.shape} for a grid of shape {grid.shape}; restore first."
        )
    if labels.dtype.kind not in "iub":
        raise OutputError(f"{path.name}: labels of type {labels.dtype}, expected integers.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > MOST_LABEL_VALUE:
        raise OutputError(f"{path.name}: label values from {low} to {high}, expected 0 to {MOST_LABEL_VALUE}.")
    return labels.astype(np.uint8 if high <= 255 else np.uint16, copy=False)


def nifti_header(grid: Grid, like: Path | None, dtype: npt.DTypeLike) -> Any:  # nibabel ships no stubs
    """Return a header of NIfTI-1 that holds nothing but shape, type and place.

    Args:
        grid: where the voxels lie, RAS+ mm.
        like: an image on this grid; if NIfTI, its sform, qform, both codes and units are kept bit by bit.
        dtype: of the voxels.
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(grid.shape)
    if like is None or not is_nifti(like):
        header.set_sform(grid.affine, 1)
        header.set_qform(grid.affine, 1)
        if np.abs(header.get_qform() - grid.affine).max() > REWRITE_TOLERANCE_MM:  # no quaternion tells of a shear
            header["qform_code"] = 0
        header.set_xyzt_units("mm")
        return header
    with _open_nifti(like) as (_, image):
        for field in _GRID_FIELDS:
            header[field] = image.header[field]
        header["pixdim"][:4] = image.header["pixdim"][:4]
    return header


@contextmanager
def gzip_writer(path: Path) -> Iterator[Any]:
    """Lend a stream that packs into a new file; it holds no name and no time, so equal content makes equal files."""
    with (
        path.open("xb") as file,
        igzip.IGzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as stream,
    ):
        yield stream


def _write_gzip(path: Path, image: Any) -> None:
    with gzip_writer(path) as stream:
        image.to_stream(stream)


def refuse_other_content(written: Path, name: str, grid: Grid, holds: Callable[[], bool], what: str) -> None:
    """Read a volume back that was just written.

    Args:
        written: under its temporary name.
        name: the file that it is to be.
        grid: where its voxels must lie.
        holds: whether the file has the voxels that were meant.
        what: they are, in the plural.

    Raises:
        OutputError: it cannot be read, or its grid or its voxels are others.
    """
    try:
        read_back, is_equal = read_grid(written), holds()
    except InputError as error:
        raise OutputError(f"{name}: cannot be read back after writing ({error}); check the disk.") from error
    if (difference := grid.difference(read_back, REWRITE_TOLERANCE_MM)) is not None:
        raise OutputError(f"{name}: reads back with another grid: {difference}.")
    if not is_equal:
        raise OutputError(f"{name}: reads back with other {what}; check the disk.")


def _holds(path: Path, labels: Voxels) -> bool:
    """Return whether a file has these voxels; NIfTI is read some planes at a time, to spare memory."""
    if is_picture(path):
        return np.array_equal(read_volume(path)[0], labels)
    step = max(1, BLOCK_VOXELS // (labels.shape[0] * labels.shape[1]))
    with _reworded(path), _open_nifti(path) as (stream, image):
        if image.shape != labels.shape:
            return False
        for start in range(0, labels.shape[2], step):
            if not np.array_equal(image.dataobj[..., start : start + step], labels[..., start : start + step]):
                return False
        _read_to_end(stream)
    return True
