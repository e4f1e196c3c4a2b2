"""Series made on the spot or read from real files, and the grids and labels on them, for the tests of DICOM writers."""

import shutil
import subprocess
from collections.abc import Sequence
from io import BytesIO
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.dicom.write.segmented import Algorithm, SegmentedSeries
from voxelgate.dicom.write.sources import SourceSeries

ALGORITHM = Algorithm("abdomen model", "1.2.0", "5e" * 32)
TABLE = LabelTable(("background", "liver", "left kidney", "liver tumor", "spleen"))
ORIENTATIONS = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]
LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"

REAL_SERIES = ("ct_torchio_small", "ct_philips_study_mixed/S2010", "ct_dcmqi_3slice/ct", "mr_ge_t1_sag_deidentified")
PHILIPS_ENHANCED = "mr_d2n_philips_enhanced/anatomical"
MOST_REAL_SLICES = 12


def rotation(angles: Sequence[float]) -> np.ndarray:
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (other for other in range(3) if other != axis)
        step = np.eye(3)
        step[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turned = turned @ step
    return turned


def source_grid(shape: tuple[int, int, int], angles: Sequence[float] = (0, 0, 0)) -> Grid:
    """Return a grid with i along columns, j along rows, k along slices of a series in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) * (0.8, 0.7, 2.5)
    affine[:3, 3] = (-31.25, 12.5, -400.125)
    return Grid(shape, LPS_TO_RAS @ affine)


GRID = source_grid((9, 8, 4))
LABELS = (np.arange(9 * 8 * 4).reshape(9, 8, 4) % 5).astype(np.uint8)


def headers_of(grid: Grid, **further: str) -> list[Dataset]:
    """Return headers of classic CT images whose planes are those of `grid`; as read from files."""
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    affine = LPS_TO_RAS @ grid.affine
    between_columns, between_rows, _ = grid.spacing_mm
    headers = []
    for k in range(grid.shape[2]):
        header = Dataset()
        header.SOPClassUID, header.SOPInstanceUID = CT, generate_uid()
        header.StudyInstanceUID, header.SeriesInstanceUID = study, series
        header.FrameOfReferenceUID = frame_of_reference
        header.Modality, header.SeriesNumber = "CT", 7
        header.PatientName, header.PatientID = "Doe^Jane", "4711"
        header.Rows, header.Columns = grid.shape[1], grid.shape[0]
        header.PixelSpacing = [round(between_rows, 9), round(between_columns, 9)]
        cosines = np.concatenate([affine[:3, 0] / between_columns, affine[:3, 1] / between_rows])
        header.ImageOrientationPatient = [round(value, 9) for value in cosines.tolist()]
        header.ImagePositionPatient = [round(value, 9) for value in (affine[:3, 3] + k * affine[:3, 2]).tolist()]
        for keyword, value in further.items():
            setattr(header, keyword, value)
        headers.append(from_file(header))
    return headers


def enhanced_of(headers: Sequence[Dataset]) -> Dataset:
    """Return one enhanced multi-frame header with the planes of classic ones."""
    header = Dataset()
    header.update({tag: headers[0][tag] for tag in headers[0].keys() if tag not in (0x00200032, 0x00200037)})  # noqa: SIM118
    header.SOPClassUID = ENHANCED_CT
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = headers[0].ImageOrientationPatient
    measures.PixelSpacing = headers[0].PixelSpacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = [shared], []
    header.NumberOfFrames = len(headers)
    for classic in headers:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = classic.ImagePositionPatient
        frame.PlanePositionSequence = [position]
        header.PerFrameFunctionalGroupsSequence.append(frame)
    return from_file(header)


def from_file(header: Dataset) -> Dataset:
    """Return what pydicom reads from the file of a header."""
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = BytesIO()
    header.save_as(stream, enforce_file_format=True)
    stream.seek(0)
    return dcmread(stream, stop_before_pixels=True)


def oriented(labels: np.ndarray, grid: Grid, axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, Grid]:
    """Return the same labels in space with permuted and flipped axes."""
    affine = grid.affine.copy()
    last = [grid.shape[axis] - 1 if sign < 0 else 0 for axis, sign in zip(axes, signs, strict=True)]
    affine[:3, 3] += grid.affine[:3, list(axes)] @ last
    affine[:3, :3] = grid.affine[:3, list(axes)] * signs
    turned = labels.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    return turned, Grid((turned.shape[0], turned.shape[1], turned.shape[2]), affine)


def segmented(labels: np.ndarray, grid: Grid, headers: Sequence[Dataset], table: LabelTable = TABLE) -> SegmentedSeries:
    return SegmentedSeries(labels, grid, table, SourceSeries.from_headers(headers), ALGORITHM)


@st.composite
def label_maps(draw: st.DrawFn) -> np.ndarray:
    """Draw noise: holes, pieces, pixels that touch at corners, single voxels, voxels at the border."""
    shape = draw(st.tuples(st.integers(3, 9), st.integers(3, 9), st.integers(1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from((0.02, 0.5, 0.8, 1.0)))
    labels = np.where(rng.random(shape) < share, rng.integers(1, draw(st.integers(2, 5)), shape), 0).astype(np.uint8)
    labels.flat[int(rng.integers(labels.size))] = 1
    return labels


def ellipsoids(shape: tuple[int, int, int], count: int) -> np.ndarray:
    """Return compact bodies, one for each value from 1 to `count`; later ones cover earlier ones."""
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    for value in range(1, count + 1):
        radii = np.maximum(np.array(shape) * rng.uniform(0.02, 0.08, 3) * (3 if count < 10 else 1), 1)
        centre = rng.uniform(radii, np.array(shape) - radii)
        box = tuple(slice(max(int(c - r), 0), int(c + r) + 2) for c, r in zip(centre, radii, strict=True))
        distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(np.ogrid[box], centre, radii, strict=True))
        labels[box][distance[tuple(slice(0, n) for n in labels[box].shape)] < 1] = value
    return labels


def real_headers(folder: Path) -> tuple[list[Dataset], list[Path]]:
    """Return headers and files of some neighbouring slices of a real series."""
    read = [(dcmread(path, stop_before_pixels=True, force=True), path) for path in sorted(folder.iterdir())]
    images = [(header, path) for header, path in read if "Rows" in header]
    if "ImagePositionPatient" in images[0][0]:
        normal = np.cross(*np.reshape(np.array(images[0][0].ImageOrientationPatient, dtype=float), (2, 3)))
        images.sort(key=lambda pair: normal @ np.array(pair[0].ImagePositionPatient, dtype=float))
    images = images[:MOST_REAL_SLICES]
    return [header for header, _ in images], [path for _, path in images]


def real_grid(headers: Sequence[Dataset]) -> Grid:
    """Return the planes of a real series as a grid."""
    source = SourceSeries.from_headers(headers)
    positions = np.array([image.position_lps_mm for image in source.images])
    row, column = np.array(source.orientation).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * source.spacing_mm[1], column * source.spacing_mm[0]
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    return Grid((source.size[1], source.size[0], len(positions)), LPS_TO_RAS @ affine)


def errors_of(path: Path) -> set[str]:
    """Return the error lines of dciodvfy; the test is skipped where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy (dicom3tools)")
    checked = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, errors="replace")
    return {line for line in (checked.stdout + checked.stderr).splitlines() if "Error" in line}
