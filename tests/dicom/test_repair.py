"""Mending moves nothing in mm, and keeps what was there."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dicom_files import header_of, image, write
from voxelgate.core.findings import Allow, FindingCode
from voxelgate.core.geometry import Grid
from voxelgate.dicom.read.headers import Header, ImagePlane
from voxelgate.dicom.read.repair import correct_tilt, fill_gaps, repair, repair_needed
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.read.stack import Slice, in_order
from voxelgate.dicom.read.volume import read_series

ROWS, COLUMNS = 24, 30


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    return header_of(write(image(np.zeros((ROWS, COLUMNS), "i2")), tmp_path_factory.mktemp("mend") / "a"))


def slices_at(header: Header, positions_mm: np.ndarray, orientation: np.ndarray, spacing_mm: float) -> list[Slice]:
    return [
        Slice(
            header,
            ImagePlane(
                position_lps_mm=tuple(position),
                orientation_lps=tuple(orientation.ravel()),
                pixel_spacing_mm=(spacing_mm, spacing_mm),
            ),
        )
        for position in positions_mm
    ]


def ramp(points_ras_mm: np.ndarray) -> np.ndarray:
    """Return a function of the place that linear interpolation reproduces exactly."""
    return points_ras_mm @ np.array([0.7, -1.3, 0.4]) + 500.0


def places_ras_mm(grid: Grid) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def sampled(slices: list[Slice], spacing_mm: float) -> np.ndarray:
    """Return the ramp at the voxels of each slice, (I, J, K)."""
    planes = []
    for part in slices:
        row, column = np.array(part.plane.orientation_lps).reshape(2, 3)
        i, j = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS), indexing="ij")
        lps = np.array(part.plane.position_lps_mm) + spacing_mm * (i[..., None] * row + j[..., None] * column)
        planes.append(ramp(lps * (-1, -1, 1)))
    return np.asfortranarray(np.stack(planes, axis=-1), dtype=np.float32)


def frame(angles: tuple[float, float, float]) -> np.ndarray:
    """Return three directions at right angles, in rows."""
    (sa, sb, sc), (ca, cb, cc) = np.sin(angles), np.cos(angles)
    turns = (
        [[1, 0, 0], [0, ca, -sa], [0, sa, ca]],
        [[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]],
        [[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]],
    )
    return np.linalg.multi_dot([np.array(turn) for turn in turns])


angle = st.floats(-3.0, 3.0)
tilt = st.floats(-0.5, 0.5).filter(lambda shear: abs(shear) > 0.05)


@given(st.tuples(angle, angle, angle), tilt, st.floats(-0.3, 0.3), st.sampled_from([0.7, 1.0, 2.5]))
def test_a_corrected_tilt_leaves_every_point_where_it_was(
    header: Header, angles: tuple[float, float, float], along_column: float, along_row: float, spacing_mm: float
) -> None:
    row, column, normal = frame(angles)
    axis = normal + along_column * column + along_row * row
    positions_mm = np.array([10.0, -20.0, 30.0]) + 3.0 * np.arange(6)[:, None] * axis
    slices = list(in_order(slices_at(header, positions_mm, np.stack((row, column)), spacing_mm)))
    voxels = sampled(slices, spacing_mm)

    mended = correct_tilt(voxels, slices)

    columns = mended.grid.affine[:3, :3] / np.array(mended.grid.spacing_mm)
    assert np.allclose(columns.T @ columns, np.eye(3), atol=1e-9)
    expected = ramp(places_ras_mm(mended.grid))
    covered = _covered(mended.grid, slices, spacing_mm)
    assert np.abs(mended.voxels - expected)[covered].max() < 0.01
    assert covered.sum() >= 0.8 * (ROWS - 1) * (COLUMNS - 1) * len(slices)
    assert [finding.code for finding in mended.findings] == [FindingCode.CORRECTED_TILT]


def _covered(grid: Grid, slices: list[Slice], spacing_mm: float) -> np.ndarray:
    """Return which voxels of a grid lie between the pixels of their slice."""
    covered = np.zeros(grid.shape, dtype=bool)
    places_lps_mm = places_ras_mm(grid) * (-1, -1, 1)
    for k, part in enumerate(slices):
        row, column = np.array(part.plane.orientation_lps).reshape(2, 3)
        offset = places_lps_mm[:, :, k] - np.array(part.plane.position_lps_mm)
        i, j = offset @ row / spacing_mm, offset @ column / spacing_mm
        covered[:, :, k] = (i >= 0) & (i <= COLUMNS - 1) & (j >= 0) & (j <= ROWS - 1)
    return covered


def test_a_corrected_tilt_loses_no_tissue_and_fills_with_the_lowest_value(header: Header) -> None:
    positions_mm = np.array([[0, 2.0 * k, 4.0 * k] for k in range(5)])  # whole pixels
    slices = slices_at(header, positions_mm, np.eye(3)[:2], 1.0)
    voxels = np.random.default_rng(0).integers(-900, 900, (COLUMNS, ROWS, 5)).astype("f4")
    voxels[3, 4, 2] = -1024
    mended = correct_tilt(voxels, slices)
    assert mended.grid.shape == (COLUMNS, ROWS + 8, 5)
    for k in range(5):
        assert np.array_equal(mended.voxels[:, 2 * k : 2 * k + ROWS, k], voxels[:, :, k])
    assert mended.voxels.min() == -1024
    assert (mended.voxels[:, :8, 4] == -1024).all()


def test_the_sentence_on_a_corrected_tilt_says_how_much(header: Header) -> None:
    positions_mm = np.array([[0, 4 * np.tan(np.radians(15)) * k, 4.0 * k] for k in range(5)])
    slices = slices_at(header, positions_mm, np.eye(3)[:2], 1.0)
    (finding,) = correct_tilt(np.zeros((COLUMNS, ROWS, 5), "f4"), slices).findings
    assert "a tilt of 15.00 degrees" in finding.message
    assert "from 30 x 24 to 30 x 29 pixels" in finding.message


@given(st.lists(st.integers(1, 4), min_size=3, max_size=8).filter(lambda steps: sorted(steps)[len(steps) // 2] == 1))
def test_filled_slices_lie_on_the_line_between_their_neighbours_and_the_others_stay_bit_by_bit(
    header: Header, steps: list[int]
) -> None:
    places = np.concatenate(([0], np.cumsum(steps)))
    positions_mm = np.array([5.0, 6.0, 7.0]) + 2.5 * places[:, None] * np.array([0, 0, 1.0])
    slices = slices_at(header, positions_mm, np.eye(3)[:2], 1.0)
    voxels = sampled(slices, 1.0)
    voxels += np.random.default_rng(1).normal(size=voxels.shape[:2]).astype("f4")[..., None]

    mended = fill_gaps(voxels, slices)

    assert mended.grid.shape[2] == places[-1] + 1
    assert mended.grid.spacing_mm[2] == pytest.approx(2.5)
    assert np.array_equal(mended.voxels[:, :, places], voxels)
    noise = voxels[..., :1] - ramp(places_ras_mm(mended.grid))[..., :1]
    assert np.abs(mended.voxels - ramp(places_ras_mm(mended.grid)) - noise).max() < 1e-3
    assert mended.voxels.flags.f_contiguous


def test_the_sentence_on_filled_slices_names_the_places(header: Header) -> None:
    positions_mm = np.array([[0, 0, 2.0 * k] for k in (0, 1, 2, 4, 5, 6, 9)])
    (finding,) = fill_gaps(
        np.zeros((COLUMNS, ROWS, 7), "f4"), slices_at(header, positions_mm, np.eye(3)[:2], 1.0)
    ).findings
    assert finding.code is FindingCode.FILLED_SLICES
    assert "1 after slice 3, 2 after slice 6; 3 in all" in finding.message


def test_a_regular_stack_is_not_touched(header: Header) -> None:
    slices = slices_at(header, np.array([[0, 0, 2.0 * k] for k in range(4)]), np.eye(3)[:2], 1.0)
    voxels = np.ones((COLUMNS, ROWS, 4), "f4")
    assert repair_needed(slices) is None
    mended = repair(voxels, slices)
    assert mended.voxels is voxels
    assert mended.findings == ()


def test_a_real_tilt_is_corrected_on_request(real_data: Path) -> None:
    # dcm2niix's gantry tilt sample: 14 degrees, although no tag says so
    (series,) = scan_dicom(real_data / "dicom" / "ct_d2n_gantrytilt", allow=[Allow.TILT])
    volume = read_series(series, allow=[Allow.TILT])
    assert repair_needed(series.slices) is Allow.TILT
    assert FindingCode.CORRECTED_TILT in [finding.code for finding in volume.findings]
    middle = series.slices[2]
    row, column = np.array(middle.plane.orientation_lps).reshape(2, 3)
    spacing_mm = middle.plane.pixel_spacing_mm[1]
    lps_mm = np.array(middle.plane.position_lps_mm) + spacing_mm * (100 * row + 200 * column)
    index = np.linalg.inv(volume.grid.affine) @ np.array([*(lps_mm * (-1, -1, 1)), 1.0])
    assert index[2] == pytest.approx(2, abs=1e-3)
    assert np.abs(volume.grid.affine[:3, 2] @ volume.grid.affine[:3, :2]).max() < 1e-6


def test_real_gaps_are_filled_on_request(real_data: Path) -> None:
    # dcm2niix's slice increment sample: gaps of 5, 5 and 10 mm
    (series,) = scan_dicom(real_data / "dicom" / "ct_d2n_sliceincrement_001", allow=[Allow.GAPS])
    volume = read_series(series, allow=[Allow.GAPS])
    assert volume.grid.shape[2] == 5
    assert volume.grid.spacing_mm[2] == pytest.approx(5.0, abs=1e-3)
    assert FindingCode.FILLED_SLICES in [finding.code for finding in volume.findings]
