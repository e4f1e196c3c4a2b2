"""Files of an input that are not taken: counted, and named by their kind, never by their name."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from voxelgate.images.pictures import PICTURE_SUFFIXES
from voxelgate.images.volumes import SUFFIXES, volume_stem

KINDS = (
    ".tar.gz", ".raw.gz", *SUFFIXES, *PICTURE_SUFFIXES, ".img", ".hdr", ".mgz", ".mgh", ".nhdr", ".mnc", ".minc",
    ".vtk", ".vti", ".npy", ".npz", ".h5", ".hdf5", ".mat", ".par", ".rec", ".pic", ".stk", ".lsm", ".czi", ".svs",
    ".bmp", ".gif", ".webp", ".raw", ".zraw", ".dcm", ".ima", ".zip", ".tar", ".tgz", ".7z", ".rar", ".gz", ".bz2",
    ".xz", ".zst",
)  # fmt: skip
"""Endings that are told, longest first where one ends another; any other may be a part of a name."""

DATA_SUFFIXES = (".raw", ".zraw", ".raw.gz")
"""Endings of files that hold the voxels of a header beside them."""

OTHER = "other"

DICOMDIR_NAME = "DICOMDIR"
"""What the directory of a disc is called (PS3.10 8.6); it holds no image."""


def count_kinds(files: Iterable[Path], taken: Iterable[Path]) -> dict[str, int]:
    """Return how many files there are of each kind; those that hold the voxels of a header that was taken are none.

    Args:
        files: that were not taken; the path of one in a zip leads through the archive.
        taken: volumes that were.

    >>> count_kinds([Path("a.img"), Path("a.hdr"), Path("b.JOHN_DOE")], [])
    {'.hdr': 1, '.img': 1, 'other': 1}
    """
    headers = {path.parent / volume_stem(path) for path in taken}
    kinds = Counter(_kind_of_name(path.name) for path in files if not _belongs(path, headers))
    return {kind: kinds[kind] for kind in sorted(kinds, key=lambda kind: (kind == OTHER, kind))}


def image_kinds_below(folder: Path, taken: Collection[Path]) -> dict[str, int]:
    """Return how many files below a folder may be images by their kind and were not taken; hidden ones do not count."""
    files = (path for path in folder.rglob("*") if path not in taken and path.is_file())
    visible = (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return {kind: count for kind, count in count_kinds(visible, taken).items() if kind != OTHER}


def kinds_text(kinds: Mapping[str, int]) -> str:
    """Say how many files there are of each kind.

    >>> kinds_text({".img": 2, "other": 1})
    '2 .img, 1 other'
    """
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _kind_of_name(name: str) -> str:
    return next((kind for kind in KINDS if name.lower().endswith(kind)), OTHER)


def _belongs(path: Path, headers: set[Path]) -> bool:
    """Return whether a file is the directory of a disc, or holds the voxels of a header beside it."""
    suffix = next((suffix for suffix in DATA_SUFFIXES if path.name.lower().endswith(suffix)), None)
    is_data = suffix is not None and path.with_name(path.name[: -len(suffix)]) in headers
    return is_data or path.name.upper() == DICOMDIR_NAME
