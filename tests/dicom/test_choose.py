"""Which series of a study a bundle takes, and that every other one gets its reason."""

from pathlib import Path

import pytest

from tests.planted import ROOT, at_mm, chained, ct_series, mr_series, setting, write
from voxelgate.dicom.choose import SeriesRule, choose, is_called, names_one
from voxelgate.dicom.read.series import Series, scan_dicom


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Series]:
    """A study of four series that can be used and one that cannot, by what they are."""
    thick = chained(setting("SliceThickness", "5"), setting("SeriesDescription", "Abdomen 5 mm"))
    write(thick(ct_series(8, series=11)), tmp_path / "a")
    thin = at_mm(*(100 + 1.25 * index for index in range(12)))
    write(setting("SliceThickness", "1.25")(thin(ct_series(12, series=12))), tmp_path / "a", prefix="B")
    write(setting("ContrastBolusAgent", "Iodine")(ct_series(11, series=13)), tmp_path / "b")
    write(mr_series(12, series=14), tmp_path / "b", prefix="M")
    write(at_mm(100, 102.5, 110, 112.5)(ct_series(4, series=15)), tmp_path / "b", prefix="X")
    names = {"11": "thick", "12": "thin", "13": "contrast", "14": "mr", "15": "broken"}
    return {names[series.headers[0].series_uid.rsplit(".", 1)[1]]: series for series in scan_dicom(tmp_path)}


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        ({"modality": "CT"}, "thin"),
        ({"modality": ["MR"]}, "mr"),
        ({"modality": "CT", "spacing_mm": [2, 3]}, "contrast"),
        ({"modality": "CT", "thickness_mm": [4, 6]}, "thick"),
        ({"modality": "CT", "description": r"abdomen.*\b5"}, "thick"),
        ({"modality": "CT", "contrast": True}, "contrast"),
        ({"modality": "CT", "contrast": False, "spacing_mm": [2, 3]}, "thick"),
        ({"modality": "CT", "min_slices": 13}, None),
        ({"modality": "PT"}, None),
    ],
)
def test_the_series_that_fits_best_is_taken_and_each_other_gets_a_reason(
    study: dict[str, Series], rule: dict[str, object], taken: str | None
) -> None:
    chosen, reasons = choose(list(study.values()), SeriesRule.from_mapping(rule))

    assert chosen is (None if taken is None else study[taken])
    assert set(reasons) == {series.series_id for name, series in study.items() if name != taken}
    assert all(reasons.values())
    assert "MISSING_SLICE" in reasons[study["broken"].series_id]


def test_the_order_of_the_series_does_not_matter(study: dict[str, Series]) -> None:
    series = list(study.values())
    assert choose(series, SeriesRule()) == choose(series[::-1], SeriesRule())


def test_a_reason_never_quotes_the_header(study: dict[str, Series]) -> None:
    _, reasons = choose(list(study.values()), SeriesRule(description="head"))
    assert "description" in reasons[study["thick"].series_id]
    assert not any("Abdomen" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    "values",
    [
        {"modality": "XA"},
        {"modality": []},
        {"thickness_mm": [3, 1]},
        {"spacing_mm": [1]},
        {"description": "("},
        {"slices": 3},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="found"):
        SeriesRule.from_mapping(values)


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("12", {"thin"}),
        ("Abdomen 5 mm", {"thick"}),
        ("  abdomen   5 MM ", {"thick"}),
        ("abdomen*", {"thick"}),
        ("abdomen", set()),
        (f"{ROOT}.13", {"contrast"}),
        (".1357.13", {"contrast"}),
        ("...357.13", {"contrast"}),
        ("...3", {"contrast"}),
        ("99", set()),
        (f"{ROOT}.99", set()),
        ("[a", set()),
    ],
)
def test_a_series_is_called_by_uid_number_or_description(study: dict[str, Series], name: str, called: set[str]) -> None:
    assert {key for key, series in study.items() if is_called(series, name)} == called


def test_a_series_is_called_by_its_identifier_too(study: dict[str, Series]) -> None:
    name = study["mr"].series_id
    assert [key for key, series in study.items() if is_called(series, name)] == ["mr"]
    assert names_one(name)


@pytest.mark.parametrize(("name", "is_one"), [("1.2.3", True), ("...345", True), ("3", False), ("Abdomen", False)])
def test_a_uid_names_one_series_and_a_number_one_of_each_study(name: str, *, is_one: bool) -> None:
    assert names_one(name) == is_one


def test_what_is_asked_for_is_taken_although_another_fits_better(study: dict[str, Series]) -> None:
    taken, reasons = choose(list(study.values()), SeriesRule(asked="11"))
    assert taken is study["thick"]
    assert reasons[study["thin"].series_id] == "is not the series that was asked for"


def test_what_is_asked_for_but_cannot_be_read_is_not_replaced_by_another(study: dict[str, Series]) -> None:
    taken, reasons = choose(list(study.values()), SeriesRule(asked="15"))
    assert taken is None
    assert "MISSING_SLICE" in reasons[study["broken"].series_id]


def test_no_bundle_asks_for_a_series_by_its_name() -> None:
    with pytest.raises(ValueError, match="a series rule knows"):
        SeriesRule.from_mapping({"asked": "3"})
