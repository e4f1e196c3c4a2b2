"""Read one volume from a file with its grid in RAS+ mm, and write a label map that is re-read before it gets its name.

Headers are read by code of ours, and so are the voxels behind them: SimpleITK ends the process at some headers, follows
those that name any file of the machine, and gives random memory for a MetaImage without CompressedDataSize; nibabel
unpacks whatever a header extension holds. MONAI's own readers are not used: its `NibabelReader` replaces the sform by
the qform, even by one with code 0, as soon as pixdim and sform differ by more than 1e-5
(`monai.data.utils.correct_nifti_header_if_necessary`), which turns and moves the image without a word. Pictures (PNG,
TIFF, JPEG) are volumes of one slice; `voxelgate.images.pictures` says how they are read.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip
from isal.igzip_lib import IsalError

from voxelgate.core.errors import InputError, OutputError, VoxelgateError
from voxelgate.core.files import whole_file
from voxelgate.core.findings import Finding, FindingCode, Severity
from voxelgate.core.geometry import Grid, counts_pixels
from voxelgate.images.file_facts import NO_FACTS, FileFacts
from voxelgate.images.metaimage_header import read_metaimage_header
from voxelgate.images.nifti_header import nifti_fields, read_nifti_header
from voxelgate.images.nrrd_header import read_nrrd_header
from voxelgate.images.pictures import PICTURE_SUFFIXES, is_picture, read_picture, read_picture_header, write_picture
from voxelgate.images.volume_bytes import MOST_RATIO, open_regular, raw_content, stream_of, too_short, whole_content
from voxelgate.images.volume_header import HeaderError, Packing, Source, VolumeHeader, other_axes

Voxels = npt.NDArray[Any]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha", ".mhd")
"""Endings of the volumes that can be read, in lower case; a name is compared without regard to case."""

LABEL_SUFFIXES = (".nii.gz", ".png", ".tif", ".tiff")
"""Endings of the label maps that can be written."""


MOST_LABEL_VALUE = 65535
"""Largest value of a label map; values above 255 make it uint16."""

REWRITE_TOLERANCE_MM = 0.01
"""Largest move of a corner by writing: float32 headers hold a 1 m volume to 0.0001 mm."""

BLOCK_VOXELS = 2**22
"""Voxels that are compared at a time."""

GZIP_LEVEL = 1
"""ISA-L's usual level, eight times as fast as zlib's fastest; label maps are mostly zeros and pack well anyway."""

MOST_NIFTI1_AXIS = 32767
"""Longest axis of a NIfTI-1 file, whose sizes are int16; longer ones make a file NIfTI-2."""

MOST_TEXT_BYTES = 2**26
"""Longest list of voxels that are written as text; that of a CT would be a hundred times as long."""

_GRID_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


class Reading(NamedTuple):
    """What was read of a file.

    Args:
        voxels: (C, i, j, k).
        grid: where they lie, RAS+ mm.
        findings: each thing worth knowing.
        sides_problem: why it is not known where left and right are; empty if it is.
        facts: what else is known of the file.
    """

    voxels: Voxels
    grid: Grid
    findings: tuple[Finding, ...] = ()
    sides_problem: str = ""
    facts: FileFacts = NO_FACTS


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


def read_volume_header(path: Path, *, may_name_others: bool = True, several: bool = False) -> VolumeHeader:
    """Read and check what a volume file says of its voxels; a picture is none. No library sees the file.

    A NIfTI file is placed by its sform, else its qform. Without both (codes 0) its axes have no known direction: the
    grid then follows nibabel, with the voxel sizes of pixdim, centred on the origin and the first axis to the left; a
    NRRD file whose space names no side and a MetaImage file without directions count as LPS, as in ITK.
    `VolumeHeader.is_oriented` tells these files from the others.

    Args:
        path: a file whose name ends in one of `SUFFIXES`; it may lead through a zip as if that were a folder.
        may_name_others: whether the voxels may lie in a file beside it, as of `.mhd`; a header from a stranger, who
            could name any file of this machine, may not.
        several: whether a NIfTI file may hold several volumes along a fourth axis, which then are channels.

    Raises:
        InputError: the file is no regular one, is no image, is damaged or too short, has not three axes, or no usable
            affine, voxel sizes or units.
    """
    if not is_volume(path):
        endings = (*SUFFIXES, *PICTURE_SUFFIXES)
        raise InputError(f"{path.name}: not a volume file, expected a name ending in {', '.join(endings)}.")
    with _reworded(path):
        with open_regular(path) as (file, size):
            header = _parser_of(path)(Source(path, file, size, may_name_others))
        if header.channels > 1 and not several:
            raise other_axes((*header.shape, header.channels))
        if header.stored.path != path:
            size = header.stored.path.stat().st_size
        header = _of_a_size(header, size)
    return replace(header, findings=tuple(_naming(path, one) for one in header.findings))


def read_grid(path: Path) -> Grid:
    """Read where the voxels of a file lie, from its header only; see `read_volume_header`.

    Args:
        path: a file whose name ends in one of `SUFFIXES` or `PICTURE_SUFFIXES`.

    Returns:
        The grid in RAS+ mm, of every volume if there are several; axes of length one beyond the third are dropped.

    Raises:
        InputError: as for `read_volume_header`.
    """
    return read_picture_header(path).grid if is_picture(path) else read_volume_header(path, several=True).grid


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
    voxels, grid, *_ = read_one_channel(path)
    return voxels[0], grid


def read_one_channel(path: Path) -> Reading:
    """Read the voxels (1, i, j, k) of a file as `read_volume` does, and say what is worth knowing of it.

    Raises:
        InputError: as for `read_volume`.
    """
    image = read_with_findings(path)
    if len(image.voxels) != 1:
        raise InputError(
            f"{path.name}: a picture in colours, expected one number in each pixel; save it as grey values."
        )
    return image


def read_channels(path: Path, *, several: bool = False) -> tuple[Voxels, Grid]:
    """Read the voxels of a file as `read_volume` does, but with all channels, (C, i, j, k): three of an RGB picture.

    Args:
        path: of the file.
        several: whether it may be a NIfTI file of several volumes, as the Decathlon stores channels.
    """
    voxels, grid, *_ = read_with_findings(path, several=several)
    return voxels, grid


def read_with_findings(path: Path, *, several: bool = False) -> Reading:
    """Read the voxels of a file as `read_channels` does, and say what is worth knowing of it.

    Raises:
        InputError: as for `read_volume`.
    """
    if is_picture(path):
        return Reading(*_read_picture(path))
    header = read_volume_header(path, several=several)
    with _reworded(path):
        voxels, surplus = _voxels_of(header)
    found = header.findings
    if surplus:
        found = (*found, _naming(path, _surplus_finding(header, surplus)))
    return Reading(voxels, header.grid, found, header.sides_problem, FileFacts(header.spacing_mm))


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
                _write_gzip(partial, _nifti_image(voxels, nifti_header(grid, like, voxels.dtype)))
            refuse_other_content(partial, path.name, grid, functools.partial(_holds, partial, labels), "labels")
    except OSError as error:
        raise OutputError(f"{path.name}: cannot be written to {path.parent} ({error.strerror or error}).") from error


def _parser_of(path: Path) -> Callable[[Source], VolumeHeader]:
    if is_nifti(path):
        return read_nifti_header
    return read_nrrd_header if path.name.lower().endswith(".nrrd") else read_metaimage_header


@contextmanager
def _reworded(path: Path) -> Iterator[None]:
    """Turn whatever a bad file raises into one sentence, which says nothing of its texts."""
    try:
        yield
    except HeaderError as error:
        raise InputError(f"{path.name}: {error}") from error
    except (VoxelgateError, MemoryError):
        raise
    except EOFError as error:
        raise InputError(f"{path.name}: the file ends too early; copy or export it again.") from error
    except IsalError as error:  # type: ignore[misc]  # isal's stubs give an instance of Exception
        raise InputError(f"{path.name}: its gzip compression is damaged; copy or export it again.") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path.name}: cannot be read ({reason}); check the file and its rights.") from error
    except Exception as error:
        kind = type(error).__name__
        raise InputError(f"{path.name}: cannot be read as an image ({kind}); copy or export it again.") from error


def _naming(path: Path, found: Finding) -> Finding:
    return replace(found, message=f"{path.name}: {found.message}")


def _of_a_size(header: VolumeHeader, size: int) -> VolumeHeader:
    """Return the header of a file of so many bytes, which can hold its voxels.

    Raises:
        HeaderError: it cannot.
    """
    stored, needed = header.stored, header.vox_bytes
    there = size - stored.starts_at
    if stored.packing is Packing.NONE:
        skip = there - needed if stored.skip == -1 else stored.skip
        if there - skip < needed or skip < 0:
            raise too_short(needed, max(there - max(skip, 0), 0))
        placed = replace(header, stored=stored._replace(skip=skip))
        surplus = there - skip - needed
        return replace(placed, findings=(*header.findings, _surplus_finding(header, surplus))) if surplus else placed
    if stored.packing is Packing.TEXT:
        least = 2 * needed // header.stored_type.itemsize - 1
        if not least <= there <= MOST_TEXT_BYTES:
            raise HeaderError(
                f"{there} bytes of text for its voxels, expected {least} to {MOST_TEXT_BYTES}; save it as raw."
            )
    elif there * MOST_RATIO < needed:
        raise HeaderError(
            f"the file ends too early: its voxels need {needed} bytes, which {there} compressed ones cannot hold; copy "
            "or export it again."
        )
    return header


def _surplus_finding(header: VolumeHeader, surplus: int) -> Finding:
    """Say that bytes come behind the voxels: a slice or more may be a part of the image."""
    is_slice = surplus >= header.vox_bytes // header.shape[2]
    severity = Severity.WARN if is_slice else Severity.NOTE
    return Finding(FindingCode.EXTRA_BYTES, severity, f"{surplus} bytes behind its voxels were not read.")


def _read_picture(path: Path) -> tuple[Voxels, Grid]:
    values, header = read_picture(path)
    return values, header.grid


def _voxels_of(header: VolumeHeader) -> tuple[Voxels, int]:
    """Return the voxels (C, i, j, k), scaled, in native byte order, and the bytes left of a compressed file."""
    surplus = 0
    if header.stored.packing is Packing.TEXT:
        flat = _typed_values(header)
    elif header.stored.packing is Packing.NONE:
        flat = raw_content(header.vox_bytes, header.stored).view(header.stored_type)
    else:
        content, surplus = whole_content(header.vox_bytes, stream_of(header.stored))
        flat = content.view(header.stored_type)
    native = flat.astype(header.stored_type.newbyteorder("="), copy=False)
    if header.is_scaled:
        native = native * np.float64(header.slope) + np.float64(header.inter)
    return np.moveaxis(native.reshape((*header.shape, header.channels), order="F"), 3, 0), surplus


def _typed_values(header: VolumeHeader) -> Voxels:
    """Return voxels that are written as text."""
    words = b"".join(stream_of(header.stored)).split()
    if len(words) != (count := int(np.prod(header.shape))):
        raise HeaderError(f"{len(words)} numbers written out, expected {count} voxels; export it again.")
    number = int if header.stored_type.kind in "iu" else float
    try:
        return np.fromiter(map(number, words), header.stored_type, count)
    except (ValueError, OverflowError) as error:
        name = header.stored_type.name
        raise HeaderError(f"voxels written out that are no numbers of the type {name}; export it again.") from error


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
    """Return a header of NIfTI that holds nothing but shape, type and place.

    It is one of NIfTI-1, or where an axis is too long for that, of NIfTI-2.

    Args:
        grid: where the voxels lie, RAS+ mm.
        like: an image on this grid; if NIfTI, its sform, qform, both codes and units are kept bit by bit.
        dtype: of the voxels.
    """
    header = nib.Nifti2Header() if max(grid.shape) > MOST_NIFTI1_AXIS else nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(grid.shape)
    if like is None or not is_nifti(like):
        header.set_sform(grid.affine, 1)
        header.set_qform(grid.affine, 1)
        if np.abs(header.get_qform() - grid.affine).max() > REWRITE_TOLERANCE_MM:  # no quaternion tells of a shear
            header["qform_code"] = 0
        header.set_xyzt_units("mm")
        return header
    fields = nifti_fields(read_volume_header(like, several=True).nifti)
    for field in _GRID_FIELDS:
        header[field] = fields[field]
    header["pixdim"][:4] = fields["pixdim"][:4]
    return header


def _nifti_image(voxels: Voxels, header: Any) -> Any:
    return (nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image)(voxels, None, header)


@contextmanager
def gzip_writer(path: Path) -> Iterator[Any]:
    """Lend a stream that packs into a new file; it holds no name and no time, so equal content makes equal files."""
    with (
        path.open("wb") as file,
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
    """Return whether a file has these voxels; a volume is read some planes at a time, to spare memory."""
    if is_picture(path):
        return np.array_equal(read_volume(path)[0], labels)
    header = read_volume_header(path)
    if header.shape != labels.shape or header.is_scaled:
        return False
    step = max(1, BLOCK_VOXELS // (labels.shape[0] * labels.shape[1]))
    with _reworded(path):
        found, rest = stream_of(header.stored), bytearray()
        for start in range(0, labels.shape[2], step):
            wanted = labels[..., start : start + step].astype(header.stored_type).tobytes(order="F")
            while len(rest) < len(wanted) and (piece := next(found, None)) is not None:
                rest += piece
            if rest[: len(wanted)] != wanted:
                return False
            del rest[: len(wanted)]
        return not rest and next(found, None) is None
