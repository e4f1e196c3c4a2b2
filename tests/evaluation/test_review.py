"""Quality flags: what is surely wrong is refused, what is odd is to be reviewed, and what is usual is left alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

from voxelgate.bundle.predict import flip_dice
from voxelgate.core import structures
from voxelgate.core.errors import UsageError
from voxelgate.core.findings import Finding, FindingCode, Severity, remark
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.structures import Structure, StructureRange, measure_structures, structure_ranges
from voxelgate.core.verdict import PredictedDice, Quality, Verdict
from voxelgate.evaluation.expectations import Expected
from voxelgate.evaluation.predicted_dice import Foretold
from voxelgate.evaluation.review import assess, assess_foretold, doubts_about
from voxelgate.images.volumes import read_volume
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer

TABLE = LabelTable(("background", "liver", "spleen"))
GRID = Grid((40, 30, 20), np.diag((1.0, 2.0, 5.0, 1.0)))
USUAL = {"liver": StructureRange((8.0, 10.0, 13.0)), "spleen": StructureRange((1.0, 1.5, 2.0))}
FOUND = {"liver": Structure(10.0, 0.1), "spleen": Structure(1.5, 0.01)}
ORDER = list(Verdict)


def two_organs() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[5:15, 5:15, 5:15] = 1
    labels[25:30, 5:15, 5:10] = 2
    return labels


def judged(found: dict[str, Structure], ranges: dict[str, StructureRange] | None = None) -> Quality:
    """Return the worst verdict and all reasons."""
    doubts = list(doubts_about(found, TABLE, USUAL if ranges is None else ranges))
    worst = max((doubt.verdict for doubt in doubts), key=ORDER.index, default=Verdict.ACCEPT)
    return Quality(worst, tuple(doubt.reason for doubt in doubts))


def test_what_looks_like_the_training_is_accepted() -> None:
    assert judged(FOUND) == Quality(Verdict.ACCEPT)


def test_two_whole_organs_inside_the_image_are_accepted_without_any_knowledge() -> None:
    assert assess(measure_structures(two_organs(), GRID, TABLE), TABLE, None) == Quality(Verdict.ACCEPT)


def test_what_a_bundle_says_of_its_training_is_what_results_are_judged_by() -> None:
    usual = {"liver": {"volume_ml": [8, 10, 13]}, "spleen": {"volume_ml": [1, 2.5, 4]}}
    small = {"liver": {"volume_ml": [0.1, 0.2, 0.3]}, "spleen": {"volume_ml": [1, 2.5, 4]}}

    verdicts = [
        assess(
            measure_structures(two_organs(), GRID, TABLE), TABLE, Expected.from_mapping({"structures": known})
        ).verdict
        for known in (usual, small)
    ]

    assert verdicts == [Verdict.ACCEPT, Verdict.REFUSE]


def test_nothing_at_all_is_refused_only_where_every_training_image_had_something() -> None:
    rare = {name: StructureRange(known.volume_ml, present=0.6) for name, known in USUAL.items()}

    assert judged({}).verdict is Verdict.REFUSE
    assert judged({}, rare).verdict is Verdict.REVIEW
    assert judged({}, {}).verdict is Verdict.REVIEW
    assert judged({}).reasons == ("missing: no structure was found at all.",)


def test_a_missing_structure_is_told_unless_training_images_often_lacked_it() -> None:
    alone = {"liver": FOUND["liver"]}

    assert judged(alone) == Quality(Verdict.REVIEW, ("missing: spleen.",))
    assert judged(alone, {}) == Quality(Verdict.REVIEW, ("missing: spleen.",))
    assert judged(alone, USUAL | {"spleen": StructureRange((1.0, 1.5, 2.0), present=0.8)}) == Quality(Verdict.ACCEPT)


def test_volumes_far_beyond_the_training_are_refused_and_those_beyond_are_reviewed() -> None:
    def verdict(volume_ml: float) -> Verdict:
        return judged(FOUND | {"liver": Structure(volume_ml, 0.1)}).verdict

    assert [verdict(volume_ml) for volume_ml in (2.0, 7.5, 10.0, 13.0, 13.1, 66.0)] == [
        Verdict.REVIEW,
        Verdict.ACCEPT,
        Verdict.ACCEPT,
        Verdict.ACCEPT,
        Verdict.REVIEW,
        Verdict.REFUSE,
    ]
    assert judged(FOUND | {"liver": Structure(66.0, 0.1)}).reasons == (
        "volume: liver 66 ml, absurdly large; training had 8 ml to 13 ml.",
    )


def test_a_volume_above_the_largest_of_training_is_for_review_and_the_largest_itself_is_not() -> None:
    known = USUAL | {"liver": StructureRange((8.0, 10.0, 13.0), largest_ml=14.1234)}

    def quality(volume_ml: float) -> Quality:
        return judged(FOUND | {"liver": Structure(volume_ml, 0.1)}, known)

    assert quality(14.12339) == Quality(Verdict.ACCEPT)
    assert quality(14.2) == Quality(Verdict.REVIEW, ("volume: liver 14.2 ml, large; training had 8 ml to 14.1 ml.",))


@pytest.mark.parametrize(("dice", "verdict"), [(None, "accept"), (0.7, "accept"), (0.69, "review"), (0.0, "review")])
def test_of_a_bundle_that_did_badly_on_its_validation_cases_nothing_is_accepted(
    dice: float | None, verdict: str
) -> None:
    known = Expected(structures=tuple(USUAL.items()), validation_dice=dice)

    quality = assess(FOUND, TABLE, known)

    assert quality.verdict == verdict
    assert all(reason.startswith(f"bundle: its mean Dice was {dice:.2f} on") for reason in quality.reasons)


@given(st.floats(10.0, 1e5), st.floats(1.0, 100.0))
def test_a_volume_never_gets_better_by_growing_beyond_the_median(volume_ml: float, factor: float) -> None:
    smaller, larger = (judged(FOUND | {"liver": Structure(ml, 0.1)}).verdict for ml in (volume_ml, factor * volume_ml))
    assert ORDER.index(larger) >= ORDER.index(smaller)


def test_a_structure_that_fills_the_image_is_refused() -> None:
    quality = assess(measure_structures(np.full(GRID.shape, 1, np.uint8), GRID, TABLE), TABLE, None)

    assert quality.verdict is Verdict.REFUSE
    assert "volume: liver (100%) fills the image." in quality.reasons


@pytest.mark.parametrize(
    ("axcodes", "affine"),
    [
        ("RAS", np.diag((1.0, 2.0, 5.0, 1.0))),
        ("LPS", np.diag((-1.0, -2.0, 5.0, 1.0))),
        ("PIR", np.array([[0, 0, 1.0, 0], [-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])),
    ],
)
def test_the_side_at_which_the_image_ends_is_named_after_the_patient(axcodes: str, affine: np.ndarray) -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[4:8, 4:8, 6:] = 1

    (found,) = measure_structures(labels, Grid(labels.shape, affine), TABLE).values()

    assert found.cut_at == ({"S": ("head",), "R": ("right",)}[axcodes[2]])


def test_a_structure_that_only_grazes_the_border_is_not_cut() -> None:
    labels = two_organs()
    labels[8:11, 8:11, 15:] = 1

    assert measure_structures(labels, GRID, TABLE)["liver"].cut_at == ()


def test_a_cut_structure_is_told_unless_training_images_cut_it_too() -> None:
    cut = FOUND | {"liver": Structure(10.0, 0.1, cut_at=("head",))}
    often = USUAL | {"liver": StructureRange((8.0, 10.0, 13.0), cut=0.4)}

    assert judged(cut) == Quality(Verdict.REVIEW, ("border: the image ends within liver (head).",))
    assert judged(cut, often) == Quality(Verdict.ACCEPT)


def test_a_stack_of_two_slices_cuts_nothing_along_its_normal() -> None:
    labels = np.zeros((20, 20, 2), np.uint8)
    labels[5:10, 5:10] = 1

    assert measure_structures(labels, Grid(labels.shape, np.eye(4)), TABLE)["liver"].cut_at == ()


def test_an_organ_in_two_pieces_is_told_with_the_share_outside_the_larger() -> None:
    labels = two_organs()
    labels[10:12] = 0

    liver = measure_structures(labels, GRID, TABLE)["liver"]

    assert liver.outside_main == pytest.approx(3 / 8)
    assert liver.away_mm == pytest.approx(3.0)  # from the last voxel of one piece to the first of the other
    assert judged(FOUND | {"liver": liver}, {}).reasons == (
        "fragments: in pieces, with the share outside the largest: liver (38%).",
    )


def test_a_far_piece_is_told_and_a_far_speck_is_not() -> None:
    labels = two_organs()
    labels[36:38, 5:8, 5:8] = 1
    speck = two_organs()
    speck[38, 28, 18] = 1

    assert assess(measure_structures(labels, GRID, TABLE), TABLE, None).reasons == (
        "fragments: a piece lies far from the rest of liver (22 mm).",
    )
    assert assess(measure_structures(speck, GRID, TABLE), TABLE, None) == Quality(Verdict.ACCEPT)


def test_pieces_are_told_only_beyond_those_of_the_training() -> None:
    broken = FOUND | {"liver": Structure(10.0, 0.1, outside_main=0.3, away_mm=40.0)}
    usual = USUAL | {"liver": StructureRange((8.0, 10.0, 13.0), outside_main=0.4, away_mm=50.0)}

    assert judged(broken).verdict is Verdict.REVIEW
    assert judged(broken, usual) == Quality(Verdict.ACCEPT)


def test_pooling_a_large_structure_keeps_its_volume_and_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = two_organs()
    labels[5:35, 5:15, 5:15] = 1
    labels[12:20] = 0
    exact = measure_structures(labels, GRID, TABLE)["liver"]
    monkeypatch.setattr(structures, "PIECE_CELLS", 500)

    pooled = measure_structures(labels, GRID, TABLE)["liver"]

    assert pooled.volume_ml == exact.volume_ml
    assert pooled.outside_main == pytest.approx(exact.outside_main)
    assert pooled.away_mm == pytest.approx(exact.away_mm, abs=4.0)  # a cell is 4 mm long


@given(st.integers(0, 2**32 - 1), st.permutations(range(3)), st.sampled_from("CF"))
def test_measurements_do_not_depend_on_how_voxels_lie_in_memory(seed: int, axes: list[int], order: str) -> None:
    labels = (np.random.default_rng(seed).random((9, 8, 7)) * 3.5).astype(np.uint8) % 3
    grid = Grid(labels.shape, np.diag((1.0, 2.0, 5.0, 1.0)))

    plain = measure_structures(labels, grid, TABLE)
    stored = np.array(labels.transpose(axes), order=order).transpose(np.argsort(axes))

    assert measure_structures(stored, grid, TABLE) == plain
    assert sum(one.volume_ml for one in plain.values()) == pytest.approx(np.count_nonzero(labels) * grid.voxel_ml)


def test_low_confidence_is_told_and_a_class_that_never_won_is_not() -> None:
    labels = two_organs()

    assert assess(
        measure_structures(labels, GRID, TABLE), TABLE, None, confidence=(0.99, 0.62, float("nan"))
    ).reasons == ("confidence: the network is unsure of liver (0.62).",)


def test_strong_disagreement_with_the_mirrored_image_is_told() -> None:
    quality = assess(
        measure_structures(two_organs(), GRID, TABLE), TABLE, None, flip_dice={"liver": 0.55, "spleen": 0.9}
    )

    assert quality == Quality(
        Verdict.REVIEW, ("mirror: the mirrored image gives another result for liver (Dice 0.55).",)
    )


def test_only_warnings_ask_for_a_review() -> None:
    findings = (
        Finding(FindingCode.LOSSY, Severity.WARN, "the images were compressed."),
        Finding(FindingCode.DERIVED, Severity.NOTE, "derived, not as the scanner made them."),
        remark("LOSSY: of another series."),
    )

    assert assess(measure_structures(two_organs(), GRID, TABLE), TABLE, None, findings=findings).reasons == (
        "image: LOSSY: the images were compressed.",
    )


def test_many_structures_with_one_doubt_make_one_short_sentence() -> None:
    table = LabelTable(("background", *(f"rib {number}" for number in range(1, 25))))
    labels = np.where(two_organs() == 1, 1, 0).astype(np.uint8)

    assert assess(measure_structures(labels, GRID, table), table, None).reasons == (
        "missing: rib 2, rib 3, rib 4, rib 5 and 19 more.",
    )


def test_ranges_say_how_structures_looked_and_survive_json() -> None:
    whole = Structure(10.0, 0.1)
    ranges = structure_ranges(
        [{"liver": whole}, {"liver": Structure(12.0, 0.1, cut_at=("head",))}, {}, {"liver": whole}]
    )

    assert ranges == {"liver": StructureRange((10.0, 10.0, 11.96), present=0.75, cut=0.3333, largest_ml=12.0)}
    assert StructureRange.from_mapping(ranges["liver"].to_mapping()) == ranges["liver"]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"volume_ml": [1, 2]},
        {"volume_ml": [0, 1, 2]},
        {"volume_ml": [3, 2, 1]},
        {"volume_ml": [1, 2, 3], "present": 0},
        {"volume_ml": [1, 2, 3], "cut": 1.5},
        {"volume_ml": [1, 2, 3], "largest_ml": 2.9},
        {"volume_ml": [1, 2, 3], "colour": 1},
    ],
)
def test_impossible_ranges_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must|has volume_ml"):
        StructureRange.from_mapping(values)


def test_hippocampi_that_people_drew_are_accepted_by_the_ranges_of_others(hippocampus: Path) -> None:
    table = LabelTable(("background", "anterior", "posterior"))
    maps = [read_volume(path) for path in sorted((hippocampus / "labels").glob("*.nii.gz"))[:100]]
    found = [measure_structures(labels.astype(np.uint8), grid, table) for labels, grid in maps]
    ranges = structure_ranges(found[::2])

    doubted = [one for one in found[1::2] if list(doubts_about(one, table, ranges))]

    assert len(doubted) <= 0.03 * len(found)


class Sides(nn.Module):
    """Bright voxels are class 1 in the half of low indices along axis 0, and class 2 in the other."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        is_low = torch.arange(image.shape[2]).reshape(1, 1, -1, 1, 1) < image.shape[2] / 2
        bright = image - 0.5
        return torch.cat((-bright, torch.where(is_low, bright, -1.0), torch.where(is_low, -1.0, bright)), dim=1)


class Shifted(nn.Module):
    """Class 1 where the voxel before along axis 0 is bright."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        bright = image.roll(1, 2) - 0.5
        return torch.cat((-bright, bright), dim=1)


INFERER = RestoringSlidingWindowInferer(roi_size=(32, 32, 32))
LEFT_RIGHT = LabelTable(("background", "left kidney", "right kidney"))


def image_of(affine: np.ndarray) -> tuple[MetaTensor, np.ndarray]:
    """Return an image (1, 1, 16, 12, 8) in RAS order that was read from a file with this affine, and its labels."""
    voxels = torch.zeros(1, 1, 16, 12, 8)
    voxels[..., 2:6, 3:9, 2:6] = 1
    voxels[..., 10:14, 3:9, 2:6] = 1
    ras = torch.eye(4, dtype=torch.float64)
    shape = np.abs(np.linalg.inv(affine[:3, :3]) @ (16, 12, 8)).round().astype(int)
    meta = {"affine": ras, "original_affine": torch.as_tensor(affine), "spatial_shape": torch.as_tensor(shape)}
    return MetaTensor(voxels, meta=meta), shape


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(4),
        np.array([[-1.0, 0, 0, 15], [0, -1, 0, 11], [0, 0, 1, 0], [0, 0, 0, 1]]),
        np.array([[0, 0, 1.0, 0], [-1, 0, 0, 11], [0, -1, 0, 7], [0, 0, 0, 1]]),
    ],
    ids=["RAS", "LPS", "PIR"],
)
def test_sides_change_places_in_the_mirror_whatever_the_orientation(affine: np.ndarray) -> None:
    image, _ = image_of(affine)
    labels = INFERER(image, Sides()).as_tensor()[0, 0].numpy()

    assert flip_dice(image, Sides(), INFERER, labels, LEFT_RIGHT) == {"left kidney": 1.0, "right kidney": 1.0}
    assert flip_dice(image, Sides(), INFERER, labels, TABLE) == {"liver": 0.0, "spleen": 0.0}


@pytest.mark.parametrize(("network", "agrees"), [(Shifted(), False), (nn.Conv3d(1, 2, 1), True)])
def test_a_network_that_treats_left_and_right_differently_is_found_out(network: nn.Module, agrees: bool) -> None:
    for parameter, value in zip(network.parameters(), ([-1.0, 1.0], [0.5, -0.5]), strict=False):
        parameter.data.copy_(torch.tensor(value).reshape(parameter.shape))
    image, _ = image_of(np.eye(4))
    labels = INFERER(image, network).as_tensor()[0, 0].numpy()

    dice = flip_dice(image, network, INFERER, labels, LabelTable(("background", "femur")))

    assert dice["femur"] == pytest.approx(1.0 if agrees else 0.5)  # shifted by 1 each way, blocks of 4 share 2


def test_a_structure_in_neither_result_has_no_agreement() -> None:
    image, shape = image_of(np.eye(4))

    def never(inputs: MetaTensor, _network: nn.Module) -> MetaTensor:
        return MetaTensor(inputs.as_tensor().byte() * 0)

    dice = flip_dice(image, Sides(), never, np.zeros(shape, np.uint8), LEFT_RIGHT)

    assert np.isnan(list(dice.values())).all()


def test_a_side_without_a_partner_cannot_be_mirrored() -> None:
    image, shape = image_of(np.eye(4))

    with pytest.raises(UsageError, match="left kidney: has no structure of the other side"):
        flip_dice(image, Sides(), INFERER, np.zeros(shape, np.uint8), LabelTable(("background", "left kidney")))


SURE, LOW, WRONG = PredictedDice(0.9, 0.8, 0.95), PredictedDice(0.6, 0.4, 0.8), PredictedDice(0.1, 0.0, 0.3)
FLOORS = {"liver": 0.8, "spleen": 0.7}


def foretold(liver: PredictedDice = SURE, spleen: PredictedDice = SURE, strangeness: float = 0.5) -> Quality:
    expected = Expected(structures=tuple(USUAL.items()))
    told = Foretold({"liver": liver, "spleen": spleen}, FLOORS, strangeness)
    return assess_foretold(FOUND, TABLE, expected, told)


def test_a_result_is_accepted_where_no_structure_is_foretold_below_what_is_usual() -> None:
    assert foretold() == Quality(Verdict.ACCEPT, (), {"liver": SURE, "spleen": SURE})


def test_a_dice_foretold_low_is_for_review_and_one_surely_wrong_is_refused() -> None:
    assert foretold(spleen=LOW).verdict is Verdict.REVIEW
    assert foretold(spleen=LOW).reasons == ("dice: foretold low: spleen 0.60 (0.40 to 0.80), usual 0.70 or more.",)
    assert foretold(spleen=WRONG).verdict is Verdict.REFUSE
    assert foretold(spleen=WRONG).reasons == ("dice: surely wrong: spleen 0.10 (0.00 to 0.30).",)


def test_an_image_of_another_look_is_for_review_and_of_quite_another_refused() -> None:
    assert [foretold(strangeness=times).verdict for times in (0.9, 1.5, 4.0)] == ORDER


def test_what_the_foretold_dice_counts_already_is_no_doubt_of_its_own() -> None:
    large = FOUND | {"liver": Structure(20.0, 0.1, outside_main=0.3, away_mm=50.0)}
    absurd = FOUND | {"liver": Structure(66.0, 0.1)}
    told = Foretold({"liver": SURE, "spleen": SURE}, FLOORS, 0.5)
    expected = Expected(structures=tuple(USUAL.items()))

    assert assess(large, TABLE, expected).verdict is Verdict.REVIEW
    assert assess_foretold(large, TABLE, expected, told).verdict is Verdict.ACCEPT
    assert assess_foretold(absurd, TABLE, expected, told).verdict is Verdict.REFUSE


def test_a_missing_structure_and_a_warning_are_doubts_as_ever() -> None:
    told = Foretold({"liver": SURE, "spleen": PredictedDice(0.0, 0.0, 0.0)}, FLOORS, 0.5)
    warning = Finding(FindingCode.VOXEL_SIZE, Severity.WARN, "odd.")

    missing = assess_foretold({"liver": FOUND["liver"]}, TABLE, None, told)
    warned = assess_foretold(FOUND, TABLE, None, Foretold({}, FLOORS, 0.5), findings=[warning])

    assert missing.reasons == ("missing: spleen.",)
    assert warned.verdict is Verdict.REVIEW
