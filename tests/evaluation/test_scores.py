"""Measures against a reference: published values, laws, brute force, and what is refused."""

import csv
import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.evaluation.pairs import pair_files
from voxelgate.evaluation.scores import LabelScores, Measure, evaluate_pairs, score
from voxelgate.evaluation.table import MEAN_OVER_LABELS, summarise, write_csv

Array = npt.NDArray[Any]

ORGAN = LabelTable(("background", "organ"))
TWO = LabelTable(("background", "liver", "spleen"))
DISTANCES = ("hd95_mm", "assd_mm", "mssd_mm")
TOLERANCE_MM = 1e-4
"""MONAI returns distances as float32; a 100 mm distance then has 7 digits."""

spacings_mm = st.tuples(*[st.floats(0.3, 6.0)] * 3)


def a_grid(shape: Sequence[int], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Grid:
    return Grid(tuple(shape), np.diag((*spacing_mm, 1.0)))


def organ_scores(prediction: Array, reference: Array, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> LabelScores:
    return score(prediction, reference, a_grid(prediction.shape, spacing_mm), ORGAN, "case")[0]


@st.composite
def two_masks(draw: st.DrawFn, longest: int = 6) -> tuple[Array, Array]:
    """Draw two masks of one shape, both non-empty, with a free border of one voxel."""
    shape = draw(array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=longest))
    masks = arrays(np.uint8, shape, elements=st.integers(0, 1)).filter(lambda mask: mask.any())
    return np.pad(draw(masks), 1), np.pad(draw(masks), 1)


def a_box(shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int]) -> Array:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))] = 1
    return mask


def save(path: Path, voxels: Array, affine: Array | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def a_score(case_id: str, label: str = "liver", **values: float) -> LabelScores:
    defaults = dict.fromkeys((measure.value for measure in Measure), 1.0)
    return LabelScores(case_id, label, **(defaults | values))


# --- published values and brute force ---------------------------------------------------------------------------------


def test_the_published_values_of_the_chaos_sample_are_reproduced(real_data: Path) -> None:
    chaos = real_data / "chaos_ct"

    (scores,) = next(evaluate_pairs(pair_files(chaos / "sample_prediction", chaos / "labels"), None))

    assert scores.case_id == "chaos_ct_eval"
    assert scores.dice == pytest.approx(0.978, abs=0.0005)
    assert scores.ravd_percent == pytest.approx(0.665, abs=0.0005)
    assert scores.assd_mm == pytest.approx(0.734, abs=0.0005)
    assert scores.mssd_mm == pytest.approx(14.0, abs=1e-9)


def surface_by_definition(mask: Array) -> list[tuple[int, ...]]:
    """List voxels of a padded mask that have one of six neighbours outside, one voxel at a time."""
    steps = [tuple(sign * (axis == other) for other in range(3)) for axis in range(3) for sign in (-1, 1)]
    return [
        tuple(int(n) for n in voxel)
        for voxel in np.argwhere(mask)
        if any(not mask[tuple(np.add(voxel, step))] for step in steps)
    ]


@given(two_masks(longest=4), spacings_mm)
@settings(max_examples=60, deadline=None)
def test_surface_distances_equal_those_of_the_definition(
    masks: tuple[Array, Array], spacing_mm: tuple[float, float, float]
) -> None:
    prediction, reference = (np.array(surface_by_definition(mask)) * spacing_mm for mask in masks)
    apart_mm = np.linalg.norm(prediction[:, None] - reference[None], axis=2)
    there_mm, back_mm = apart_mm.min(axis=1), apart_mm.min(axis=0)

    scores = organ_scores(*masks, spacing_mm)

    assert scores.assd_mm == pytest.approx((there_mm.sum() + back_mm.sum()) / (len(there_mm) + len(back_mm)), abs=1e-9)
    assert scores.mssd_mm == pytest.approx(max(there_mm.max(), back_mm.max()), abs=1e-9)
    assert scores.hd95_mm == pytest.approx(max(np.percentile(there_mm, 95), np.percentile(back_mm, 95)), abs=1e-9)


@given(two_masks(), spacings_mm)
@settings(max_examples=40, deadline=None)
def test_distances_agree_with_monai_where_no_structure_touches_the_edge(
    masks: tuple[Array, Array], spacing_mm: tuple[float, float, float]
) -> None:
    prediction, reference = (torch.from_numpy(mask)[None, None].float() for mask in masks)
    options = {"include_background": True, "spacing": spacing_mm}

    scores = organ_scores(*masks, spacing_mm)

    hd95_mm = compute_hausdorff_distance(prediction, reference, percentile=95, **options).item()
    mssd_mm = compute_hausdorff_distance(prediction, reference, **options).item()
    assd_mm = compute_average_surface_distance(prediction, reference, symmetric=True, **options).item()
    assert (scores.hd95_mm, scores.mssd_mm, scores.assd_mm) == pytest.approx(
        (hd95_mm, mssd_mm, assd_mm), abs=TOLERANCE_MM
    )


# --- laws -------------------------------------------------------------------------------------------------------------


@given(two_masks(), spacings_mm)
@settings(max_examples=40, deadline=None)
def test_exchanging_prediction_and_reference_changes_only_the_signed_measures(
    masks: tuple[Array, Array], spacing_mm: tuple[float, float, float]
) -> None:
    there, back = organ_scores(*masks, spacing_mm), organ_scores(*reversed(masks), spacing_mm)

    for name in ("dice", "iou", *DISTANCES):
        assert getattr(there, name) == pytest.approx(getattr(back, name), abs=1e-9)
    assert there.difference_ml == pytest.approx(-back.difference_ml)


@given(two_masks(), spacings_mm)
@settings(max_examples=20, deadline=None)
def test_a_label_map_agrees_perfectly_with_itself(
    masks: tuple[Array, Array], spacing_mm: tuple[float, float, float]
) -> None:
    scores = organ_scores(masks[0], masks[0], spacing_mm)

    assert (scores.dice, scores.iou, scores.ravd_percent, scores.difference_ml) == (1, 1, 0, 0)
    assert (scores.hd95_mm, scores.assd_mm, scores.mssd_mm) == (0, 0, 0)


@given(two_masks(), spacings_mm)
@settings(max_examples=60, deadline=None)
def test_measures_stay_within_their_bounds(masks: tuple[Array, Array], spacing_mm: tuple[float, float, float]) -> None:
    scores = organ_scores(*masks, spacing_mm)

    diagonal_mm = float(np.linalg.norm(np.multiply(np.array(masks[0].shape) - 1, spacing_mm)))
    assert 0 <= scores.iou <= scores.dice <= 1
    assert scores.dice == pytest.approx(2 * scores.iou / (1 + scores.iou), abs=1e-12)
    assert 0 <= scores.assd_mm <= scores.mssd_mm <= diagonal_mm
    assert 0 <= scores.hd95_mm <= scores.mssd_mm
    assert scores.difference_ml == pytest.approx(scores.volume_ml - scores.reference_ml, abs=1e-9)
    assert scores.ravd_percent == pytest.approx(100 * abs(scores.difference_ml) / scores.reference_ml)


@given(axis=st.integers(0, 2), spacing_mm=spacings_mm, size=st.tuples(*[st.integers(1, 5)] * 3))
@settings(max_examples=30, deadline=None)
def test_a_box_moved_by_one_voxel_is_one_spacing_away(
    axis: int, spacing_mm: tuple[float, float, float], size: tuple[int, int, int]
) -> None:
    box = a_box((8, 8, 8), (1, 1, 1), size)

    scores = organ_scores(np.roll(box, 1, axis=axis), box, spacing_mm)

    assert scores.mssd_mm == pytest.approx(spacing_mm[axis])
    assert scores.ravd_percent == 0


@given(
    masks=two_masks(),
    spacing_mm=spacings_mm,
    order=st.sampled_from(list(permutations(range(3)))),
    flips=st.sets(st.integers(0, 2)),
)
@settings(max_examples=40, deadline=None)
def test_the_order_and_direction_of_the_axes_do_not_matter(
    masks: tuple[Array, Array], spacing_mm: tuple[float, float, float], order: tuple[int, ...], flips: set[int]
) -> None:
    turned = [np.flip(mask.transpose(order), tuple(flips)) for mask in masks]

    there = organ_scores(*masks, spacing_mm)
    back = organ_scores(*turned, [spacing_mm[axis] for axis in order])

    for measure in Measure:
        assert getattr(back, measure) == pytest.approx(getattr(there, measure), abs=1e-9)


@given(two_masks(longest=4), st.floats(-0.5, 0.5))
@settings(max_examples=20, deadline=None)
def test_a_rotated_grid_gives_the_distances_of_the_straight_one(masks: tuple[Array, Array], angle: float) -> None:
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([[cos, -sin, 0, 30], [sin, cos, 0, -200], [0, 0, 1, 5], [0, 0, 0, 1]])
    straight = a_grid(masks[0].shape, (0.8, 0.9, 3.0))
    oblique = Grid(straight.shape, rotation @ straight.affine)

    there = score(*masks, straight, ORGAN, "case")[0]
    back = score(*masks, oblique, ORGAN, "case")[0]

    for measure in Measure:
        assert getattr(back, measure) == pytest.approx(getattr(there, measure), abs=1e-9)


def test_distances_on_a_sheared_grid_are_those_in_the_patient() -> None:
    affine = np.eye(4)
    affine[0, 2] = 1.0  # slices shifted sideways as by a tilted gantry: one step along k is sqrt(2) mm
    prediction, reference = a_box((3, 3, 4), (1, 1, 1), (1, 1, 1)), a_box((3, 3, 4), (1, 1, 2), (1, 1, 1))

    scores = score(prediction, reference, Grid((3, 3, 4), affine), ORGAN, "case")[0]

    assert scores.mssd_mm == pytest.approx(math.sqrt(2))


def test_the_cut_of_the_field_of_view_is_no_surface() -> None:
    low, high = a_box((5, 5, 9), (0, 0, 0), (5, 5, 3)), a_box((5, 5, 9), (0, 0, 0), (5, 5, 5))

    scores = organ_scores(low, high)

    assert (scores.hd95_mm, scores.assd_mm, scores.mssd_mm) == (2, 2, 2)


def test_volumes_are_in_millilitres_with_the_sign_of_the_prediction() -> None:
    small, large = a_box((6, 6, 6), (1, 1, 1), (2, 2, 2)), a_box((6, 6, 6), (1, 1, 1), (4, 2, 2))

    scores = organ_scores(small, large, (5.0, 10.0, 10.0))

    assert (scores.volume_ml, scores.reference_ml, scores.difference_ml) == pytest.approx((4.0, 8.0, -4.0))
    assert scores.ravd_percent == pytest.approx(50.0)


def test_each_structure_is_measured_alone() -> None:
    reference = a_box((9, 9, 9), (1, 1, 1), (3, 3, 3)) + 2 * a_box((9, 9, 9), (5, 5, 5), (3, 3, 3))
    prediction = np.where(reference == 2, 0, reference)

    liver, spleen = score(prediction, reference, a_grid((9, 9, 9)), TWO, "case")

    assert (liver.label, liver.dice) == ("liver", 1.0)
    assert (spleen.label, spleen.dice, spleen.is_missed) == ("spleen", 0.0, True)


# --- empty structures -------------------------------------------------------------------------------------------------


def test_a_missed_structure_scores_zero_and_has_no_distances() -> None:
    box = a_box((5, 5, 5), (1, 1, 1), (3, 3, 3))

    scores = organ_scores(np.zeros_like(box), box)

    assert (scores.dice, scores.iou, scores.ravd_percent) == (0, 0, 100)
    assert all(math.isnan(getattr(scores, name)) for name in DISTANCES)
    assert (scores.is_missed, scores.is_invented, scores.is_absent) == (True, False, False)


def test_an_invented_structure_scores_zero_and_has_no_relative_difference() -> None:
    box = a_box((5, 5, 5), (1, 1, 1), (3, 3, 3))

    scores = organ_scores(box, np.zeros_like(box))

    assert (scores.dice, scores.iou, scores.difference_ml) == (0, 0, pytest.approx(0.027))
    assert all(math.isnan(getattr(scores, name)) for name in (*DISTANCES, "ravd_percent"))
    assert (scores.is_missed, scores.is_invented, scores.is_absent) == (False, True, False)


def test_a_structure_absent_from_both_has_no_dice_at_all() -> None:
    nothing = np.zeros((4, 4, 4), np.uint8)

    scores = organ_scores(nothing, nothing)

    assert all(math.isnan(getattr(scores, name)) for name in ("dice", "iou", "ravd_percent", *DISTANCES))
    assert (scores.is_missed, scores.is_invented, scores.is_absent) == (False, False, True)


def test_a_structure_that_fills_the_volume_has_no_surface() -> None:
    everything = np.ones((3, 3, 3), np.uint8)

    scores = organ_scores(everything, everything)

    assert scores.dice == 1
    assert all(math.isnan(getattr(scores, name)) for name in DISTANCES)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.full((3, 3, 3), 2, np.uint8), "holds the value 2, which has no name"),
        (np.full((3, 3, 3), -2, np.int16), "whole numbers to 65535"),
        (np.full((3, 3, 3), 0.5, np.float32), "no whole number, such as 0.5"),
        (np.full((3, 3, 3), np.nan, np.float32), "no whole number, such as nan"),
        (np.full((3, 3, 3), 1e9), "from 1e"),
        (np.full((3, 3, 3), 1e12), "expected label values to 4294967295"),
        (np.full((3, 3, 3), 1j), "complex128"),
        (np.ones((3, 3, 4), np.uint8), "shape"),
    ],
)
def test_what_is_no_label_map_of_the_table_is_refused(wrong: Array, message: str) -> None:
    right, grid = np.ones((3, 3, 3), np.uint8), a_grid((3, 3, 3))

    with pytest.raises(InputError, match=f"case: the prediction.*{message}"):
        score(wrong, right, grid, ORGAN, "case")
    with pytest.raises(InputError, match=f"case: the reference.*{message}"):
        score(right, wrong, grid, ORGAN, "case")


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.uint64, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_label_values(dtype: type) -> None:
    box = a_box((5, 5, 5), (1, 1, 1), (3, 3, 3))

    assert organ_scores(box.astype(dtype), box) == organ_scores(box, box)


def test_a_prediction_on_another_grid_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    box = a_box((5, 5, 5), (1, 1, 1), (3, 3, 3))
    moved = np.eye(4)
    moved[0, 3] = 5.0
    pairs = []
    for name, affine in (("a", None), ("b", moved), ("c", moved)):
        prediction = save(tmp_path / "predictions" / f"{name}.nii.gz", box, affine)
        pairs.append((name, prediction, save(tmp_path / "labels" / f"{name}.nii.gz", box)))

    with pytest.raises(InputError, match=r"b: .*another grid \(corners up to 5.00 mm apart\); c: .*Resample"):
        evaluate_pairs(pairs, ORGAN)


def test_no_worker_is_no_way_to_work() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        evaluate_pairs([], ORGAN, workers=0)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    box = a_box((5, 5, 5), (1, 1, 1), (3, 3, 3))
    for name in ("site_a/case_1", "site_a/case_2", "site_b/case_1"):
        save(tmp_path / "predictions" / f"{name}.nii", box)
        save(tmp_path / "labels" / f"{name}.nii.gz", box)
    return tmp_path / "predictions", tmp_path / "labels"


def test_folders_are_paired_by_relative_path_without_suffix(two_folders: tuple[Path, Path]) -> None:
    predictions, labels = two_folders

    pairs = pair_files(predictions, labels)

    assert [case_id for case_id, _, _ in pairs] == ["site_a/case_1", "site_a/case_2", "site_b/case_1"]
    assert pairs[2] == ("site_b/case_1", predictions / "site_b/case_1.nii", labels / "site_b/case_1.nii.gz")


def test_two_files_are_a_pair_whatever_their_names(tmp_path: Path) -> None:
    box = a_box((5, 5, 5), (1, 1, 1), (3, 3, 3))
    mine, truth = save(tmp_path / "mine.nii.gz", box), save(tmp_path / "truth.nii.gz", box)

    assert pair_files(mine, truth) == [("truth", mine, truth)]


def test_results_of_images_that_nnunet_names_by_their_channel_meet_the_labels_of_their_cases(tmp_path: Path) -> None:
    for name in (
        *("results/a_0000.nii", "labels/a.nii", "results/b_0000.nii", "labels/b_0000.nii"),
        *("results/c.nii", "labels/c_0000.nii", "results/d.nii", "labels/d.nii", "results/d_0000.nii"),
        "labels/d_0000.nii",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    pairs = pair_files(tmp_path / "results", tmp_path / "labels")

    assert [(case, prediction.name, str(label)) for case, prediction, label in pairs] == [
        ("a", "a_0000.nii", str(tmp_path / "labels" / "a.nii")),
        ("b_0000", "b_0000.nii", str(tmp_path / "labels" / "b_0000.nii")),
        ("c_0000", "c.nii", str(tmp_path / "labels" / "c_0000.nii")),
        ("d", "d.nii", str(tmp_path / "labels" / "d.nii")),
        ("d_0000", "d_0000.nii", str(tmp_path / "labels" / "d_0000.nii")),
    ]


def test_all_files_without_partner_are_listed_in_one_refusal(two_folders: tuple[Path, Path]) -> None:
    predictions, labels = two_folders
    (predictions / "site_a" / "case_1.nii").unlink()
    (labels / "site_b" / "case_1.nii.gz").unlink()
    (labels / ".hidden.nii.gz").touch()

    with pytest.raises(InputError) as refusal:
        pair_files(predictions, labels)

    assert "site_b/case_1.nii has no reference" in str(refusal.value)
    assert "site_a/case_1.nii.gz has no prediction" in str(refusal.value)
    assert "hidden" not in str(refusal.value)


def test_two_files_of_one_name_are_refused(two_folders: tuple[Path, Path]) -> None:
    predictions, labels = two_folders
    (labels / "site_a" / "case_1.nii").touch()

    with pytest.raises(InputError, match="have one name"):
        pair_files(predictions, labels)


def test_a_file_and_a_folder_are_no_pair(two_folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = two_folders
    file = labels / "site_a" / "case_1.nii.gz"

    with pytest.raises(InputError, match="is a file and"):
        pair_files(predictions, file)
    with pytest.raises(InputError, match="is a file and"):
        pair_files(file, predictions)
    with pytest.raises(InputError, match="does not exist"):
        pair_files(predictions, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no volumes"):
        pair_files(tmp_path / "empty", labels)


@pytest.mark.parametrize("workers", [1, 3])
def test_scores_come_in_the_order_of_the_pairs_with_progress(two_folders: tuple[Path, Path], workers: int) -> None:
    steps: list[tuple[int, int]] = []

    scores = list(
        evaluate_pairs(
            pair_files(*two_folders), ORGAN, workers=workers, progress=lambda done, total: steps.append((done, total))
        )
    )

    assert [item.case_id for case in scores for item in case] == ["site_a/case_1", "site_a/case_2", "site_b/case_1"]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_without_a_table_the_values_of_the_references_name_the_labels(tmp_path: Path) -> None:
    small, far = a_box((5, 5, 5), (1, 1, 1), (1, 1, 1)), 7 * a_box((5, 5, 5), (3, 3, 3), (1, 1, 1))
    pairs = [
        ("a", save(tmp_path / "p/a.nii.gz", small), save(tmp_path / "r/a.nii.gz", small)),
        ("b", save(tmp_path / "p/b.nii.gz", small), save(tmp_path / "r/b.nii.gz", far)),
    ]

    first, second = evaluate_pairs(pairs, None)

    assert [item.label for item in first] == ["label_1", "label_7"]
    assert (first[0].dice, first[1].is_absent) == (1.0, True)
    assert (second[0].is_invented, second[1].is_missed) == (True, True)


def test_references_without_any_structure_are_refused(tmp_path: Path) -> None:
    nothing = save(tmp_path / "nothing.nii.gz", np.zeros((3, 3, 3), np.uint8))

    with pytest.raises(InputError, match="no reference holds a structure"):
        evaluate_pairs([("case", nothing, nothing)], None)


# --- summaries and tables ---------------------------------------------------------------------------------------------


def test_a_missed_structure_lowers_the_mean_dice_and_is_counted_beside_the_distances() -> None:
    missed = a_score("b", dice=0.0, hd95_mm=math.nan, volume_ml=0.0)

    liver, over_labels = summarise([a_score("a", dice=0.8, hd95_mm=3.0), missed])

    assert liver.statistics[Measure.DICE].mean == pytest.approx(0.4)
    assert liver.statistics[Measure.DICE].sd == pytest.approx(0.8 / math.sqrt(2))
    assert (liver.statistics[Measure.HD95].mean, liver.statistics[Measure.HD95].n, liver.missed) == (3.0, 1, 1)
    assert math.isnan(liver.statistics[Measure.HD95].sd)
    assert (over_labels.label, over_labels.missed) == (MEAN_OVER_LABELS, 1)


def test_an_absent_structure_enters_no_mean_and_is_counted() -> None:
    absent = a_score("b", dice=math.nan, volume_ml=0.0, reference_ml=0.0)
    invented = a_score("c", dice=0.0, reference_ml=0.0)

    liver, _ = summarise([a_score("a", dice=0.8), absent, invented])

    assert liver.statistics[Measure.DICE].mean == pytest.approx(0.4)
    assert (liver.statistics[Measure.DICE].n, liver.absent, liver.invented, liver.missed) == (2, 1, 1, 0)


def test_every_subject_weighs_the_same_however_many_scans_it_has() -> None:
    scores = [a_score(case_id, dice=dice) for case_id, dice in (("a1", 0.9), ("a2", 0.7), ("b", 0.2))]

    by_case, _ = summarise(scores)
    by_subject, _ = summarise(scores, {"a1": "a", "a2": "a", "b": "b"})

    assert by_case.statistics[Measure.DICE].mean == pytest.approx(0.6)
    assert by_subject.statistics[Measure.DICE].mean == pytest.approx(0.5)
    assert by_subject.statistics[Measure.DICE].n == 2


def test_every_label_weighs_the_same_in_the_last_line() -> None:
    scores = [
        a_score("a", "liver", dice=0.9),
        a_score("b", "liver", dice=0.9),
        a_score("a", "spleen", dice=0.5),
        a_score("a", "gall bladder", dice=math.nan),
    ]

    *_, over_labels = summarise(scores)

    assert over_labels.statistics[Measure.DICE].mean == pytest.approx(0.7)
    assert over_labels.statistics[Measure.DICE].n == 2


def test_scores_without_subject_or_none_at_all_are_not_summarised() -> None:
    with pytest.raises(InputError, match="cases without a subject: b"):
        summarise([a_score("a"), a_score("b")], {"a": "s"})
    with pytest.raises(InputError, match="no scores"):
        summarise([])


def test_the_table_holds_every_score_and_leaves_undefined_cells_empty(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"

    write_csv([a_score("a", dice=0.5), a_score("b", hd95_mm=math.nan)], path)

    with path.open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["case_id"], first["label"], first["dice"]) == ("a", "liver", "0.5")
    assert (second["case_id"], second["hd95_mm"]) == ("b", "")
    assert set(first) == {"case_id", "label"} | {measure.value for measure in Measure}
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_is_overwritten_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("mine\n", encoding="utf-8")

    with pytest.raises(OutputError, match="exists already"):
        write_csv([a_score("a")], path)
    assert path.read_text(encoding="utf-8") == "mine\n"

    write_csv([a_score("a")], path, overwrite=True)
    assert path.read_text(encoding="utf-8").startswith("case_id,label,dice")


def test_folders_above_a_table_are_made_unless_a_file_is_in_the_way(tmp_path: Path) -> None:
    write_csv([a_score("a")], tmp_path / "new" / "folder" / "scores.csv")

    assert (tmp_path / "new" / "folder" / "scores.csv").is_file()
    with pytest.raises(OutputError, match="cannot be made"):
        write_csv([a_score("a")], tmp_path / "new" / "folder" / "scores.csv" / "scores.csv")
