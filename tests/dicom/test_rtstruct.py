"""RT Structure Set: outlines that give back the very voxels, with holes, pieces and corners, on any grid."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import Dataset, dcmread

from tests.derived_cases import (
    GRID,
    LABELS,
    LPS_TO_RAS,
    ORIENTATIONS,
    PHILIPS_ENHANCED,
    REAL_SERIES,
    TABLE,
    ellipsoids,
    enhanced_of,
    errors_of,
    headers_of,
    label_maps,
    oriented,
    real_grid,
    real_headers,
    segmented,
    source_grid,
)
from voxelgate.core.errors import OutputError
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import structure_colours
from voxelgate.core.verdict import Quality, Verdict
from voxelgate.dicom.write import rtstruct as rtstruct_module
from voxelgate.dicom.write.outlines import Outline, filled, outlines
from voxelgate.dicom.write.rtstruct import write_rtstruct
from voxelgate.dicom.write.segmented import Algorithm

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)))


def is_inside(corners: np.ndarray, row: int, column: int) -> bool:
    """Return whether a ray from a pixel centre to the right crosses a contour an odd number of times."""
    ends = np.roll(corners, -1, axis=0)
    crosses = (corners[:, 0] > row) != (ends[:, 0] > row)
    return int((crosses & (corners[:, 1] > column)).sum()) % 2 == 1  # edges along rows and columns only


def area_of(outline: Outline) -> float:
    row, column = outline.corners.T
    return float((column * np.roll(row, -1) - np.roll(column, -1) * row).sum() / 2)


def contours_by_roi(path: Path, grid: Grid) -> dict[int, list[np.ndarray]]:
    """Return the contours of a file as voxel index of `grid`, decoded by pydicom."""
    to_voxels = np.linalg.inv(LPS_TO_RAS @ grid.affine)
    found = {}
    for roi in dcmread(path).ROIContourSequence:
        points = [np.array(c.ContourData, dtype=float).reshape(-1, 3) for c in roi.ContourSequence]
        found[int(roi.ReferencedROINumber)] = [p @ to_voxels[:3, :3].T + to_voxels[:3, 3] for p in points]
    return found


@settings(deadline=None, max_examples=150)
@given(MASKS)
def test_every_pixel_is_inside_one_outline_and_every_other_in_none(mask: np.ndarray) -> None:
    found = outlines(mask)

    for plane, row, column in np.ndindex(mask.shape):
        count = sum(o.plane == plane and is_inside(o.corners, row, column) for o in found)
        assert count == mask[plane, row, column]


@settings(deadline=None, max_examples=150)
@given(MASKS)
def test_outlines_lie_on_pixel_edges_turn_at_every_corner_and_have_the_area_of_the_pixels(mask: np.ndarray) -> None:
    found = outlines(mask)

    for outline in found:
        steps = np.roll(outline.corners, -1, axis=0) - outline.corners
        assert (outline.corners % 1 == 0.5).all()
        assert ((steps != 0).sum(axis=1) == 1).all()
    assert sum(map(area_of, found)) == mask.sum()
    assert all(area_of(outline) > 0 for outline in found)


@settings(deadline=None, max_examples=150)
@given(MASKS.filter(np.any))
def test_filling_the_outlines_gives_the_mask(mask: np.ndarray) -> None:
    contours = [np.insert(outline.corners, 0, outline.plane, axis=1) for outline in outlines(mask)]

    counts = filled(contours, mask.shape)

    assert counts is not None
    assert np.array_equal(counts, mask)


def test_a_ring_is_one_outline_and_a_piece_in_its_hole_another() -> None:
    ring = np.ones((1, 7, 7), bool)
    ring[0, 1:6, 1:6] = False
    ring[0, 3, 3] = True

    found = outlines(ring)

    assert sorted(map(area_of, found)) == [1, 24]
    assert sorted(len(outline.corners) for outline in found) == [4, 11]


def test_a_rectangle_needs_only_its_four_corners_and_touching_corners_stay_apart() -> None:
    block = np.zeros((1, 6, 6), bool)
    block[0, 1:3, 1:5] = True
    corners = np.zeros((1, 4, 4), bool)
    corners[0, [0, 1], [0, 1]] = True

    assert [len(outline.corners) for outline in outlines(block)] == [4]
    assert [len(outline.corners) for outline in outlines(corners)] == [4, 4]


@pytest.mark.parametrize(
    "move", [(0.5, 0, 0), (0, 20, 0), (0, 0, -3)], ids=["between planes", "beyond the rows", "before the columns"]
)
def test_contours_that_lie_elsewhere_are_not_filled(move: tuple[float, ...]) -> None:
    contour = np.array([(1, 0.5, 0.5), (1, 0.5, 2.5), (1, 2.5, 2.5), (1, 2.5, 0.5)]) + move

    assert filled([contour], (3, 5, 5)) is None


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=label_maps(),
    angles=st.tuples(*3 * [st.floats(-0.7, 0.7)]),
    turn=st.sampled_from(ORIENTATIONS),
    shear_mm=st.sampled_from((0.0, 0.6)),
    random=st.randoms(use_true_random=False),
)
def test_the_mm_of_the_file_fill_the_labels_on_any_grid(
    tmp_path: Path, labels: np.ndarray, angles: tuple, turn: tuple, shear_mm: float, random: object
) -> None:
    straight = source_grid(labels.shape, angles)
    affine = straight.affine.copy()
    affine[:3, 2] += affine[:3, 1] * shear_mm
    grid = Grid(labels.shape, affine)
    headers = headers_of(grid)
    random.shuffle(headers)
    turned, turned_grid = oriented(labels, grid, *turn)

    (tmp_path / "a.dcm").unlink(missing_ok=True)
    write_rtstruct(tmp_path / "a.dcm", segmented(turned, turned_grid, headers))

    found = contours_by_roi(tmp_path / "a.dcm", turned_grid)
    assert set(found) == set(np.unique(labels)) - {0}
    for value, contours in found.items():
        assert np.array_equal(filled(contours, turned.shape), turned == value)


@pytest.mark.slow
def test_all_48_orientations_give_the_same_contours_on_the_same_images(tmp_path: Path) -> None:
    grid = source_grid((5, 4, 3))
    labels, headers = LABELS[:5, :4, :3], headers_of(grid)
    position_of = {str(header.SOPInstanceUID): float(header.ImagePositionPatient[2]) for header in headers}
    contours = set()

    for turn in ORIENTATIONS:
        (tmp_path / "a.dcm").unlink(missing_ok=True)
        write_rtstruct(tmp_path / "a.dcm", segmented(*oriented(labels, grid, *turn), headers))
        rois = dcmread(tmp_path / "a.dcm").ROIContourSequence
        contours.add(str([contour.ContourData for roi in rois for contour in roi.ContourSequence]))
        for contour in (contour for roi in rois for contour in roi.ContourSequence):
            referred = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            assert float(contour.ContourData[2]) == pytest.approx(position_of[referred], abs=1e-4)

    assert len(contours) == 1


def test_contours_on_a_multi_frame_source_name_the_frame(tmp_path: Path) -> None:
    header = enhanced_of(headers_of(GRID)[::-1])

    write_rtstruct(tmp_path / "a.dcm", segmented(LABELS, GRID, [header]))

    for contour in dcmread(tmp_path / "a.dcm").ROIContourSequence[0].ContourSequence:
        number = int(contour.ContourImageSequence[0].ReferencedFrameNumber)
        position = header.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0].ImagePositionPatient
        assert float(contour.ContourData[2]) == pytest.approx(float(position[2]), abs=1e-4)


def test_planes_between_the_images_have_contours_without_an_image(tmp_path: Path) -> None:
    affine = GRID.affine.copy()
    affine[:3, 2] /= 2
    dense = Grid((9, 8, 7), affine)

    write_rtstruct(tmp_path / "a.dcm", segmented(np.ones(dense.shape, np.uint8), dense, headers_of(GRID)))

    contours = dcmread(tmp_path / "a.dcm").ROIContourSequence[0].ContourSequence
    assert ["ContourImageSequence" in contour for contour in contours] == [True, False] * 3 + [True]


def test_structures_carry_names_colours_codes_and_what_made_them(tmp_path: Path) -> None:
    table = LabelTable(("background", "anterior", "left kidney", "liver tumor", "spleen"))

    write_rtstruct(tmp_path / "a.dcm", segmented(LABELS, GRID, headers_of(GRID), table))

    read = dcmread(tmp_path / "a.dcm")
    assert [(roi.ROINumber, roi.ROIName) for roi in read.StructureSetROISequence] == list(table.foreground.items())
    assert {roi.ROIGenerationAlgorithm for roi in read.StructureSetROISequence} == {"AUTOMATIC"}
    colours = structure_colours(table)
    assert {roi.ReferencedROINumber: tuple(roi.ROIDisplayColor) for roi in read.ROIContourSequence} == colours
    anterior, kidney, tumor, _ = read.RTROIObservationsSequence
    assert "RTROIIdentificationCodeSequence" not in anterior
    identified = kidney.RTROIIdentificationCodeSequence[0]
    assert (identified.CodeValue, identified.CodingSchemeDesignator) == ("64033007", "SCT")
    assert identified.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert [item.RTROIInterpretedType for item in (anterior, kidney, tumor)] == ["", "ORGAN", ""]
    assert read.ApprovalStatus == "UNAPPROVED"
    assert read.SeriesNumber == 702


def test_a_structure_set_says_its_verdict_when_it_was_made_and_who_corrected_it(tmp_path: Path) -> None:
    case = replace(segmented(LABELS, GRID, headers_of(GRID)), quality=Quality(Verdict.REVIEW, ("missing: Käse.",)))
    by_jane = Algorithm("m", "1", "f", is_corrected=True, annotator="Doe^Jane")

    write_rtstruct(tmp_path / "a.dcm", case)
    write_rtstruct(tmp_path / "b.dcm", replace(case, quality=None, algorithm=by_jane))

    read, corrected = dcmread(tmp_path / "a.dcm"), dcmread(tmp_path / "b.dcm")
    assert read.SeriesDescription == read.StructureSetName == "RTSTRUCT for review: abdomen model 1.2.0"
    assert read.StructureSetDescription == "Automatic segmentation, for review. missing: Käse."
    assert (read.SeriesDate, read.ContentQualification) == (read.StructureSetDate, "RESEARCH")
    assert (corrected.SeriesDescription, corrected.OperatorsName) == ("RTSTRUCT corrected: m 1", "Doe^Jane")
    assert corrected.StructureSetLabel == "CORRECTED"


def test_no_number_of_a_contour_is_longer_than_dicom_allows(tmp_path: Path) -> None:
    grid = source_grid((9, 8, 4), (0.123456789, 0.2, -0.3))  # rt-utils writes 17 and more characters

    write_rtstruct(tmp_path / "a.dcm", segmented(LABELS, grid, headers_of(grid)))

    rois = dcmread(tmp_path / "a.dcm").ROIContourSequence
    raw = [contour.get_item("ContourData").value for roi in rois for contour in roi.ContourSequence]
    assert max(len(number) for value in raw for number in value.split(b"\\")) <= 16


def test_an_empty_label_map_and_an_existing_file_are_refused(tmp_path: Path) -> None:
    case = segmented(LABELS, GRID, headers_of(GRID))
    write_rtstruct(tmp_path / "a.dcm", case)

    with pytest.raises(OutputError, match="nothing was segmented"):
        write_rtstruct(tmp_path / "b.dcm", segmented(LABELS * 0, GRID, headers_of(GRID)))
    with pytest.raises(OutputError, match=r"a\.dcm: exists already"):
        write_rtstruct(tmp_path / "a.dcm", case)
    assert [path.name for path in tmp_path.iterdir()] == ["a.dcm"]


@pytest.mark.parametrize("fault", ["moved", "missing", "twice", "name", "long"])
def test_the_comparison_finds_every_fault(tmp_path: Path, fault: str) -> None:
    path, case = tmp_path / "a.dcm", segmented(LABELS, GRID, headers_of(GRID))
    write_rtstruct(path, case)
    read = dcmread(path)
    contours = read.ROIContourSequence[1].ContourSequence
    if fault == "moved":
        contours[0].ContourData = [float(x) + 0.5 for x in contours[0].ContourData]
    elif fault == "missing":
        del contours[0]
    elif fault == "twice":
        contours.append(contours[0])
    elif fault == "long":
        _lengthen(contours[0])
    else:
        read.StructureSetROISequence[0].ROIName = "pancreas"
    read.save_as(path)

    with pytest.raises((OutputError, ValueError), match=r"reads back with|do not fill|too long"):
        rtstruct_module._compare_outlines(path, path.name, case)


def _lengthen(contour: Dataset) -> None:
    contour["ContourData"] = rtstruct_module._decimals(np.array(contour.ContourData, float).reshape(-1, 3))
    raw = contour.get_item("ContourData")
    value = raw.value.strip() + b"000000000000000000"
    contour["ContourData"] = raw._replace(value=value + b" " * (len(value) % 2), length=len(value) + len(value) % 2)


@pytest.mark.parametrize("name", [*REAL_SERIES, PHILIPS_ENHANCED])
def test_dciodvfy_finds_no_new_error_on_real_series(tmp_path: Path, real_data: Path, name: str) -> None:
    headers, files = real_headers(real_data / "dicom" / name)
    if name == PHILIPS_ENHANCED:  # has no frame of reference
        headers[0].FrameOfReferenceUID = "1.2.3.4"
    grid = real_grid(headers)
    labels = ellipsoids(grid.shape, 4)

    write_rtstruct(tmp_path / "a.dcm", segmented(labels, grid, headers, TABLE))

    rois = dcmread(tmp_path / "a.dcm").ROIContourSequence
    assert all("ContourImageSequence" in contour for roi in rois for contour in roi.ContourSequence)
    for value, contours in contours_by_roi(tmp_path / "a.dcm", grid).items():
        assert np.array_equal(filled(contours, labels.shape), labels == value)
    assert errors_of(tmp_path / "a.dcm") - errors_of(files[0]) == set()


@pytest.mark.slow
def test_ten_structures_of_a_full_size_ct_take_seconds(tmp_path: Path) -> None:
    grid = source_grid((512, 512, 300))
    table = LabelTable(("background", *(f"s{n}" for n in range(1, 11))))
    case = segmented(ellipsoids(grid.shape, 10), grid, headers_of(grid), table)
    began = time.perf_counter()

    write_rtstruct(tmp_path / "a.dcm", case)

    assert time.perf_counter() - began < 12  # 1.4 s on two quiet cores
