"""What is foretold of results: in order, within intervals, and low where results were bad."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from voxelgate.evaluation.observation import Observation, QualityRow
from voxelgate.evaluation.predicted_dice import QualityModel, fit_quality
from voxelgate.evaluation.quality_features import usual_of

NAMES = {"liver": 1500.0, "spleen": 200.0}


def structure(rng: np.random.Generator, volume_ml: float, doubt: float) -> dict[str, float]:
    voxels = 10 * volume_ml
    p = 1 - doubt
    return {
        "volume_ml": volume_ml * float(np.exp(rng.normal(0, 0.1))),
        "roughness": 6.0 + rng.normal(0, 0.1),
        **{axis: rng.normal(0, 3.0) for axis in ("r_mm", "a_mm", "s_mm")},
        **{side: 100.0 + rng.normal(0, 3.0) for side in ("wide_mm", "deep_mm", "high_mm")},
        "cut": 0.0, "outside_main": 0.0, "away_mm": 0.0,
        "voxels": voxels, "own": voxels * p, "all": voxels, "squared": voxels * p**2,
        "wide": voxels * (1 + doubt), "narrow": voxels * (1 - 2 * doubt),
        "value": voxels * rng.normal(1, 0.05), "value_squared": voxels * 1.5,
        "least": voxels * (1 - doubt), "most": voxels * (1 + doubt),
    }  # fmt: skip


def rows_of(subjects: int, seed: int = 0) -> list[QualityRow]:
    """Return results in which doubt is about half of the error, and copies that are all wrong and look it."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(subjects):
        dice = {name: float(rng.uniform(0.6, 0.95)) for name in NAMES}
        doubt = {name: (1 - dice[name]) / 2 * float(np.exp(rng.normal(0, 0.2))) for name in NAMES}
        found = {name: structure(rng, volume, doubt[name]) for name, volume in NAMES.items()}
        look = {"body": 0.5 + rng.normal(0, 0.05), "spread": 1 + rng.normal(0, 0.05)}
        row = QualityRow(f"c{number}", f"s{number}", "", Observation(found, look), dice, found)
        wrong = {
            name: one | {"volume_ml": 8 * one["volume_ml"], "own": 0.6 * one["voxels"]} for name, one in found.items()
        }
        rows += [
            row,
            replace(row, damage="noise", observation=Observation(wrong, look), dice=dict.fromkeys(NAMES, 0.1)),
        ]
    return rows


MODEL = fit_quality(rows_of(60))
SOUND = [row for row in rows_of(60, seed=1) if not row.damage]


def test_doubtful_structures_are_foretold_worse_dice() -> None:
    foretold = [
        (MODEL.foretell(row.observation).structures[name].value, row.dice[name]) for row in SOUND for name in NAMES
    ]

    assert np.corrcoef(*zip(*foretold, strict=True))[0, 1] > 0.6


def test_intervals_hold_nine_in_ten_of_new_subjects() -> None:
    held = [
        one.low <= row.dice[name] <= one.high
        for row in SOUND
        for name, one in MODEL.foretell(row.observation).structures.items()
    ]

    assert 0.85 <= np.mean(held) <= 0.97


def test_bad_results_are_foretold_to_be_below_what_is_usual() -> None:
    damaged = [row for row in rows_of(20, seed=2) if row.damage]

    for row in damaged:
        foretold = MODEL.foretell(row.observation)
        assert all(one.value < foretold.floors[name] for name, one in foretold.structures.items())


def test_a_value_lies_in_its_interval_and_all_in_0_to_1() -> None:
    for row in rows_of(20, seed=3):
        for one in MODEL.foretell(row.observation).structures.values():
            assert 0 <= one.low <= one.value <= one.high <= 1


def test_more_doubt_never_makes_what_is_foretold_better() -> None:
    rng = np.random.default_rng(0)
    base = structure(rng, 1500.0, 0.05)
    doubts = [
        base | {"own": base["voxels"] * (1 - doubt), "squared": base["voxels"] * (1 - doubt) ** 2}
        for doubt in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
    ]

    values = [
        MODEL.foretell(Observation({"liver": one}, SOUND[0].observation.look)).structures["liver"].value
        for one in doubts
    ]

    assert values == sorted(values, reverse=True)


def test_a_structure_that_was_not_found_is_foretold_to_be_missed() -> None:
    row = SOUND[0]

    foretold = MODEL.foretell(Observation({"liver": row.observation.structures["liver"]}, row.observation.look))

    assert foretold.structures["spleen"].value == foretold.structures["spleen"].high == 0


def test_an_image_that_looks_otherwise_is_strange() -> None:
    usual = MODEL.foretell(SOUND[0].observation).strangeness
    strange = MODEL.foretell(replace(SOUND[0].observation, look={"body": 0.5, "spread": 3.0})).strangeness

    assert usual < 1.5
    assert strange > 5


def test_a_model_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    path.write_text(MODEL.to_json(), encoding="utf-8")

    read = QualityModel.from_json(path)

    assert read.foretell(SOUND[0].observation) == MODEL.foretell(SOUND[0].observation)
    assert read.to_json() == MODEL.to_json()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    path.write_text('{"levels": {}}', encoding="utf-8")

    with pytest.raises(ValueError, match="usual"):
        QualityModel.from_json(path)


def test_one_subject_teaches_nothing() -> None:
    with pytest.raises(ValueError, match="two subjects"):
        fit_quality(rows_of(1))


def test_results_without_any_structure_teach_nothing() -> None:
    rows = [replace(row, observation=replace(row.observation, structures={})) for row in rows_of(12)]

    with pytest.raises(ValueError, match="two subjects, found 0"):
        fit_quality(rows)


def test_some_results_without_any_structure_do_no_harm() -> None:
    rows = rows_of(12)
    empty = [replace(row, observation=replace(row.observation, structures={})) for row in rows[:4]]

    assert set(fit_quality([*empty, *rows[4:]]).levels) == set(NAMES)


def test_a_structure_that_no_result_holds_is_not_foretold_but_missed() -> None:
    rows = [
        replace(row, observation=Observation({"liver": row.observation.structures["liver"]}, row.observation.look))
        for row in rows_of(12)
    ]

    model = fit_quality(rows)

    assert usual_of(rows).structures["spleen"] == {}
    assert set(model.foretell(SOUND[0].observation).structures) == {"liver"}
