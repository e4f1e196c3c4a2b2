"""Series named as if they were files: `FOLDER/ct-3f9a21c40b7e` is the series of this identifier below the folder."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path

from voxelgate.core.errors import InputError
from voxelgate.core.findings import Allow
from voxelgate.dicom.read.series import Series, scan_dicom

IDENTIFIER = re.compile(r"[a-z]+-[0-9a-f]{12}")
"""Of a series, as `scan_dicom` makes it."""


def series_path(series: Series) -> Path:
    """Return the path that names a series: its identifier in the folder, archive or file that holds all its files."""
    return series.place / series.series_id


def is_series_path(path: Path) -> bool:
    """Return whether a path names a series and no file or folder.

    >>> is_series_path(Path("study/ct-3f9a21c40b7e")), is_series_path(Path("study/scan.nii.gz"))
    (True, False)
    """
    return IDENTIFIER.fullmatch(path.name) is not None and not path.exists()


def series_at(path: Path, *, allow: Iterable[Allow] = ()) -> Series:
    """Return the series that a path names.

    Raises:
        InputError: it is not there.
    """
    if not path.parent.exists():
        raise InputError(f"{path.parent.name}: does not exist, and with it the series {path.name}; restore it.")
    folder, mends = path.parent, tuple(sorted(allow))
    is_flat = folder.is_dir() and not any(entry.is_dir() for entry in folder.iterdir())
    below = _flat_series(folder, mends, folder.stat().st_mtime_ns) if is_flat else scan_dicom(folder, allow=mends)
    found = [series for series in below if series.series_id == path.name]
    if not found:
        raise InputError(f"{path.name}: is no series of {path.parent.name}, nor a file; restore its images.")
    return found[0]


@functools.lru_cache(maxsize=4)
def _flat_series(folder: Path, allow: tuple[Allow, ...], _mtime_ns: int) -> list[Series]:
    """Return the series of a folder without others, in which many may lie, unless a file was added or taken away."""
    return scan_dicom(folder, allow=allow)
