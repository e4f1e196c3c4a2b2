"""SEG and RTSTRUCT as label maps: what was written comes back on the grid of its series; what differs is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from pydicom import Dataset, dcmread

from tests.derived_cases import (
    GRID,
    LABELS,
    ORIENTATIONS,
    TABLE,
    headers_of,
    label_maps,
    oriented,
    segmented,
    source_grid,
)
from voxelgate.core.errors import InputError
from voxelgate.core.geometry import Grid
from voxelgate.dicom.labels.label_objects import LabelKind, read_label_object
from voxelgate.dicom.labels.label_voxels import labels_on
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.write.rtstruct import write_rtstruct
from voxelgate.dicom.write.seg import write_seg
from voxelgate.dicom.write.seg_kind import SegKind

ALL = {1: 1, 2: 2, 3: 3, 4: 4}
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom" / "ct_dcmqi_3slice"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="needs the liver CT with segmentations of dcmqi")


def written(path: Path, labels: np.ndarray, grid: Grid, kind: SegKind | None) -> Path:
    """Write labels as SEG of a kind, or with None as RTSTRUCT."""
    case = segmented(labels, grid, headers_of(source_grid((labels.shape[0], labels.shape[1], labels.shape[2]))))
    if kind is None:
        write_rtstruct(path, case)
    else:
        write_seg(path, case, kind=kind)
    return path


def changed(path: Path, change: object) -> Path:
    """Change a file as pydicom reads it."""
    dataset = dcmread(path)
    change(dataset)  # type: ignore[operator]
    dataset.save_as(path)
    return path


def square(low: float, high: float, plane: int) -> list[float]:
    """Return the corners of a square on a slice of `GRID`, from voxel index to LPS mm."""
    to_lps = np.diag((-1.0, -1.0, 1.0, 1.0)) @ GRID.affine
    corners = np.array([(low, low), (low, high), (high, high), (high, low)])
    points = np.column_stack([corners, np.full(4, plane)]) @ to_lps[:3, :3].T + to_lps[:3, 3]
    return [round(float(number), 4) for number in points.ravel()]


def structures(path: Path, contours: Sequence[tuple[list[float], str]]) -> Path:
    """Write a RTSTRUCT of one structure with given outlines."""
    written(path, (LABELS == 1).astype(np.uint8), GRID, None)

    def redraw(dataset: Dataset) -> None:
        items = []
        for points, kind in contours:
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points) // 3
            item.ContourData = points
            items.append(item)
        dataset.ROIContourSequence[0].ContourSequence = items

    return changed(path, redraw)


@pytest.mark.parametrize("kind", [SegKind.BINARY, SegKind.LABELMAP, None])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=label_maps())
def test_labels_that_were_written_come_back_as_they_were(
    tmp_path: Path, kind: SegKind | None, labels: np.ndarray
) -> None:
    grid = source_grid((labels.shape[0], labels.shape[1], labels.shape[2]))
    path = tmp_path / "labels.dcm"
    path.unlink(missing_ok=True)

    assert np.array_equal(labels_on(grid, written(path, labels, grid, kind), ALL), labels)


@pytest.mark.parametrize("kind", [SegKind.BINARY, SegKind.LABELMAP, None])
def test_labels_come_back_on_a_grid_of_any_orientation(tmp_path: Path, kind: SegKind | None) -> None:
    path = written(tmp_path / "labels.dcm", LABELS, GRID, kind)

    for axes, signs in ORIENTATIONS:
        turned, grid = oriented(LABELS, GRID, axes, signs)
        assert np.array_equal(labels_on(grid, path, ALL), turned)


@pytest.mark.parametrize("kind", [SegKind.BINARY, SegKind.LABELMAP, None])
def test_only_the_segments_that_are_asked_for_count_and_get_the_numbers_that_are_given(
    tmp_path: Path, kind: SegKind | None
) -> None:
    path = written(tmp_path / "labels.dcm", LABELS, GRID, kind)

    found = labels_on(GRID, path, {2: 1, 4: 1, 3: 7})

    assert np.array_equal(found, np.select([LABELS == 2, LABELS == 4, LABELS == 3], [1, 1, 7], 0))


def test_an_object_says_which_structures_it_holds_and_what_it_was_drawn_on(tmp_path: Path) -> None:
    seg = read_label_object(written(tmp_path / "seg.dcm", LABELS, GRID, SegKind.BINARY))
    outlines = read_label_object(written(tmp_path / "rt.dcm", np.where(LABELS == 4, 0, LABELS), GRID, None))

    assert (seg.kind, outlines.kind) == (LabelKind.SEG, LabelKind.RTSTRUCT)
    assert {one.number: one.name for one in seg.segments} == TABLE.foreground
    assert {one.number: one.name for one in outlines.segments} == {1: "liver", 2: "left kidney", 3: "liver tumor"}
    assert [one.codes for one in seg.segments][:2] == [("SCT 10200004",), ("SCT 64033007", "SCT 7771000")]
    assert len(seg.series_uids) == len(outlines.series_uids) == 1


def test_of_segments_that_overlap_the_highest_value_stands_and_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "seg.dcm", LABELS, GRID, SegKind.BINARY)

    def all_are_drawn(dataset: Dataset) -> None:
        ones = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little") | 1
        dataset.PixelData = np.packbits(ones, bitorder="little").tobytes()

    found = labels_on(GRID, changed(path, all_are_drawn), ALL)

    assert (found == 4).all()
    assert "voxels are both 3 and 4; they count as 4" in caplog.text


def test_two_segments_of_one_structure_overlap_in_peace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = structures(
        tmp_path / "rt.dcm", [(square(0.5, 5.5, 1), "CLOSED_PLANAR"), (square(0.5, 5.5, 2), "CLOSED_PLANAR")]
    )

    assert int(labels_on(GRID, path, {1: 1}).sum()) == 50
    assert not caplog.text


def test_an_outline_within_another_is_a_hole(tmp_path: Path) -> None:
    path = structures(
        tmp_path / "rt.dcm", [(square(0.5, 5.5, 1), "CLOSED_PLANAR"), (square(2.5, 4.5, 1), "CLOSED_PLANAR")]
    )

    assert int(labels_on(GRID, path, {1: 1}).sum()) == 25 - 4


def test_points_and_open_lines_surround_nothing(tmp_path: Path) -> None:
    path = structures(tmp_path / "rt.dcm", [(square(0.5, 5.5, 1), "POINT"), (square(0.5, 5.5, 1), "OPEN_PLANAR")])

    assert not labels_on(GRID, path, {1: 1}).any()
    assert not read_label_object(path).segments[:0]
    assert 1 not in {one.number for one in read_label_object(path).segments}


def test_what_leads_out_of_the_image_is_cut_at_its_border(tmp_path: Path) -> None:
    path = structures(tmp_path / "rt.dcm", [(square(-2.5, 2.5, 1), "CLOSED_PLANAR")])

    assert int(labels_on(GRID, path, {1: 1}).sum()) == 9


@pytest.mark.parametrize(
    ("low", "high", "plane", "reason"),
    [(-300, 5, 1, "far outside"), (0.5, 5.5, 1.4, "do not lie in the slices")],
)
def test_outlines_elsewhere_are_refused(tmp_path: Path, low: float, high: float, plane: float, reason: str) -> None:
    path = structures(tmp_path / "rt.dcm", [(square(low, high, plane), "CLOSED_PLANAR")])  # type: ignore[arg-type]

    with pytest.raises(InputError, match=reason):
        labels_on(GRID, path, {1: 1})


@pytest.mark.parametrize("kind", [SegKind.BINARY, SegKind.LABELMAP])
def test_frames_between_the_voxels_of_the_series_are_refused(tmp_path: Path, kind: SegKind) -> None:
    path = written(tmp_path / "seg.dcm", LABELS, GRID, kind)
    affine = GRID.affine.copy()
    affine[:3, 3] += 0.4 * affine[:3, 0]

    with pytest.raises(InputError, match="does not lie on the voxels of its series"):
        labels_on(replace(GRID, affine=affine), path, ALL)


def test_probabilities_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "seg.dcm", LABELS, GRID, SegKind.BINARY)

    with pytest.raises(InputError, match="FRACTIONAL"):
        read_label_object(changed(path, lambda dataset: setattr(dataset, "SegmentationType", "FRACTIONAL")))


def test_damaged_and_foreign_files_are_refused_without_a_word_of_them(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.dcm", LABELS, GRID, SegKind.BINARY)
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(path.read_bytes()[:-200])
    empty = tmp_path / "empty.dcm"
    empty.write_bytes(b"")

    with pytest.raises(InputError, match="export it again"):
        labels_on(GRID, cut, ALL)
    with pytest.raises(InputError, match="SEG"):
        read_label_object(empty)
    with pytest.raises(InputError, match="cannot be read"):
        read_label_object(tmp_path / "missing.dcm")


@needs_real
@pytest.mark.parametrize("name", ["liver", "partial_overlaps"])
def test_segmentations_of_dcmqi_lie_where_highdicom_places_them(name: str) -> None:
    (series,) = [one for one in scan_dicom(REAL / "ct") if one.is_usable]
    path = REAL / "seg" / f"{name}.dcm"
    numbers = [segment.number for segment in read_label_object(path).segments]
    geometry = highdicom.VolumeGeometry(
        np.diag((-1.0, -1.0, 1.0, 1.0)) @ series.grid.affine, series.grid.shape, coordinate_system="PATIENT"
    )

    for number in numbers:
        with quiet_pydicom():
            seg = highdicom.seg.segread(path)
            volume = seg.get_volume(segment_numbers=[number], combine_segments=False).squeeze_channel()
        expected = volume.match_geometry(geometry).array
        assert np.array_equal(labels_on(series.grid, path, {number: 1}), expected > 0)
