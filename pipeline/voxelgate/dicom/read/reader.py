"""Read a checked DICOM series through MONAI's `LoadImage`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import ImageReader

from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.findings import Allow, refusals
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.dicom_files import FileRef, list_files
from voxelgate.dicom.read.headers import UnreadableFileError, read_header
from voxelgate.dicom.read.series import Series, scan_files
from voxelgate.dicom.read.series_paths import is_series_path, series_at
from voxelgate.dicom.read.volume import read_plausible
from voxelgate.images.spec import Paths, as_paths, meta_of
from voxelgate.images.volumes import is_volume


class CheckedDicomReader(ImageReader):  # type: ignore[misc]  # MONAI ships no stubs
    """Let MONAI's `LoadImage` read a DICOM series, and refuse what the audit refuses.

    It takes a folder, a zip, a DICOMDIR, a multi-frame file, a series of a folder by its identifier as a manifest names
    it (`FOLDER/ct-3f9a21c40b7e`), or a list of files, which then are exactly those of the image. One series must be
    usable. `LoadImage` tries other readers if `read` fails, even its own ones, which check nothing; hence `read` fails
    only for what is no DICOM, and `get_data` refuses.

    Args:
        series_id: which series to read if there are several, as `voxelgate inspect` names it.
        allow: faults to mend: "gaps", "tilt", "merge-series".

    Raises:
        UsageError: an unknown fault.

    >>> from monai.transforms import LoadImaged
    >>> load = LoadImaged(keys="image", reader="voxelgate.CheckedDicomReader", allow=["gaps"])
    """

    def __init__(self, series_id: str | None = None, allow: Sequence[str] = ()) -> None:
        super().__init__()
        try:
            self.allow = frozenset(Allow(name) for name in ((allow,) if isinstance(allow, str) else allow))
        except ValueError as error:
            raise UsageError(f"allow holds {', '.join(map(str, allow))}, expected {', '.join(Allow)}.") from error
        self.series_id = series_id

    def verify_suffix(self, filename: Paths) -> bool:
        """Return whether the names may be DICOM; what decides is the content, since many files have no suffix."""
        return _may_be_dicom(as_paths(filename))

    def read(self, data: Paths, **_: Any) -> tuple[Path, ...]:
        """Return the paths; `get_data` opens them.

        Raises:
            InputError: they are clearly no DICOM.
        """
        paths = as_paths(data)
        if not _may_be_dicom(paths):
            raise InputError("not DICOM, expected a folder, a zip, a DICOMDIR or DICOM files; check the path.")
        return paths

    def get_data(self, img: tuple[Path, ...]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Return voxels (I, J, K) float32 and the metadata that MONAI needs: the affine in RAS+ mm and the shape.

        Warnings go to the log.

        Raises:
            InputError: no series or several are usable, or as for `read_series`.
        """
        volume = read_plausible(self._series_of(img), allow=self.allow)
        return volume.voxels, meta_of(volume.grid, volume.facts)

    def _series_of(self, paths: tuple[Path, ...]) -> Series:
        if len(paths) == 1 and is_series_path(paths[0]):
            return series_at(paths[0], allow=self.allow)
        files = dict.fromkeys(file for path in paths for file in list_files(path))
        return self._choose(scan_files(list(files), allow=self.allow))

    def _choose(self, found: Sequence[Series]) -> Series:
        asked = [series for series in found if self.series_id in (None, series.series_id)]
        usable = [series for series in asked if series.is_usable]
        if len(usable) == 1:
            return usable[0]
        if len(asked) == 1:
            raise InputError(f"{asked[0].series_id}: {refusals(asked[0].findings)[0]}")
        listed = "; ".join(_described_sources(series) for series in found) or "no DICOM image"
        wish = "give series_id" if usable else "none can be read"
        wanted = "one series" if self.series_id is None else f"the series {self.series_id}"
        raise InputError(f"found {listed}; expected {wanted}; {wish}.")


def _described_sources(series: Series) -> str:
    count = len(series.headers) or len(series.files)
    refused = refusals(series.findings)
    return f"{series.series_id} ({count} files, {refused[0] if refused else 'usable'})"


def _may_be_dicom(paths: Sequence[Path]) -> bool:
    """Return whether nothing is named like a volume file, and something could hold DICOM."""
    return not any(is_volume(path) for path in paths) and any(map(_holds_dicom, paths))


def _holds_dicom(path: Path) -> bool:
    """Return whether a path is a folder or zip, or a file that starts like DICOM."""
    if path.is_dir() or path.suffix.lower() == ".zip" or is_series_path(path):
        return True
    if not path.is_file():
        return False
    with quiet_pydicom():
        try:
            return read_header(FileRef(path)) is not None
        except UnreadableFileError:
            return True
