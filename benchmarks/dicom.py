"""Time finding, checking and reading a DICOM series against SimpleITK, interleaved, in one process.

Run: `python benchmarks/dicom.py --help`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813

from voxelgate.dicom.read.series import Series, scan_dicom
from voxelgate.dicom.read.volume import DicomVolume, read_series

FOLDERS = ("ct_philips_study_mixed/S2010", "ct_siemens_body_j2k", "mr_ge_t1_sag_deidentified")


class Row(NamedTuple):
    """Median times of one folder."""

    name: str
    shape: tuple[int, ...]
    scan_s: float
    read_s: float
    itk_s: float
    is_equal: bool


def usable(folder: Path) -> Series:
    """Return the only usable series of a folder."""
    (series,) = [series for series in scan_dicom(folder) if series.is_usable]
    return series


def read_itk(folder: Path) -> sitk.Image:
    """Read a folder as the manual of SimpleITK does."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def timed(run: Callable[[], object]) -> tuple[float, object]:
    """Return the wall time and the result."""
    start_s = time.perf_counter()
    result = run()
    return time.perf_counter() - start_s, result


def measure(folder: Path, repeats: int) -> Row:
    """Run both in turn, after one round that does not count."""
    scans_s, reads_s, itks_s = [], [], []
    for _ in range(repeats + 1):
        scan_s, series = timed(lambda: usable(folder))
        read_s, volume = timed(lambda found=series: read_series(found))
        itk_s, image = timed(lambda: read_itk(folder))
        scans_s.append(scan_s)
        reads_s.append(read_s)
        itks_s.append(itk_s)
    assert isinstance(volume, DicomVolume)  # noqa: S101
    is_equal = np.array_equal(volume.voxels, sitk.GetArrayFromImage(image).T.astype(np.float32))
    medians_s = [statistics.median(found[1:]) for found in (scans_s, reads_s, itks_s)]
    return Row(folder.name, volume.voxels.shape, *medians_s, is_equal)


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with the DICOM folders")
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS), help="each with one usable series")
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


def main() -> None:
    """Measure and print a table in Markdown."""
    asked = arguments()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # noqa: FBT003 - SWIG takes no keyword
    rows = [measure(asked.root / folder, asked.repeats) for folder in asked.folders]
    versions = f"pydicom {pydicom.__version__}, SimpleITK {sitk.Version.VersionString()}"
    print(f"{versions}, {os.cpu_count()} cores, median of {asked.repeats}, wall time, files in memory\n")
    print("| series | voxels | find and check | read | together | SimpleITK | ratio | equal |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        both_s = row.scan_s + row.read_s
        print(
            f"| {row.name} | {'x'.join(map(str, row.shape))} | {row.scan_s * 1e3:.0f} ms | {row.read_s * 1e3:.0f} ms "
            f"| {both_s * 1e3:.0f} ms | {row.itk_s * 1e3:.0f} ms | {both_s / row.itk_s:.2f} "
            f"| {'yes' if row.is_equal else 'no'} |"
        )


if __name__ == "__main__":
    main()
