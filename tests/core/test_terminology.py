"""Codes: what a name finds, what it never finds, and what is refused."""

import json
import string
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelgate.core.terminology import Code, Coding, find_coding, normalised

TABLE = json.loads(files("voxelgate.core").joinpath("terminology.json").read_text(encoding="utf-8"))
NAMES = sorted(TABLE["structures"])
PLAIN = {"value": "64033007", "scheme": "SCT", "meaning": "Kidney"}


@pytest.mark.parametrize("name", ["left kidney", "kidney_left", "Kidney, left", "KIDNEY-LEFT", "Left  Kidney"])
def test_the_order_of_words_and_the_signs_between_them_do_not_matter(name: str) -> None:
    coding = find_coding(name)

    assert coding is not None
    assert (coding.type.value, coding.type.scheme, coding.type.meaning) == ("64033007", "SCT", "Kidney")
    assert coding.modifier == Code("7771000", "SCT", "Left")
    assert coding.category == Code("123037004", "SCT", "Anatomical Structure")
    assert coding.rgb == (46, 138, 184)


@pytest.mark.parametrize(
    "name", ["anterior", "posterior", "background", "organ", "lesion", "tumor", "kidneys", "kidny left", "left", ""]
)
def test_a_name_that_is_not_in_the_table_has_no_code(name: str) -> None:
    assert find_coding(name) is None


@pytest.mark.parametrize(
    ("name", "value", "modifier"),
    [
        ("brainstem", "119238007", None),
        ("spinal cord", "2748008", None),
        ("right parotid", "45289007", "Right"),
        ("left parotid", "45289007", "Left"),
        ("mandible", "91609006", None),
        ("hippocampus_left", "5366008", "Left"),
        ("Hippocampus, anterior", "5366008", "Anterior"),
        ("posterior hippocampus", "5366008", "Posterior"),
        ("gluteus_minimus", "75297007", None),
        ("subclavian_artery_left", "36765005", "Left"),
        ("vertebrae_C3", "113205007", None),
        ("SpinalCord", "2748008", None),
        ("RightParotid", "45289007", "Right"),
        ("right caudate", "11000004", "Right"),
        ("left pallidum", "14738005", "Left"),
        ("lateral ventricles", "66720007", "Bilateral"),
    ],
)
def test_common_structures_have_the_code_of_the_standard(name: str, value: str, modifier: str | None) -> None:
    coding = find_coding(name)

    assert coding is not None
    assert coding.type.value == value
    assert (coding.modifier.meaning if coding.modifier else None) == modifier


def test_a_cyst_of_the_left_kidney_carries_its_side_on_the_region() -> None:
    coding = find_coding("kidney_cyst_left")

    assert coding is not None
    assert coding.region == Code("64033007", "SCT", "Kidney")
    assert coding.region_modifier == Code("7771000", "SCT", "Left")
    assert coding.modifier is None


def test_the_table_is_sorted_whole_and_without_synonyms_that_collide() -> None:
    used = {value for entry in TABLE["structures"].values() for key, value in entry.items() if key != "rgb"}

    assert list(TABLE["structures"]) == NAMES
    assert list(TABLE["codes"]) == sorted(TABLE["codes"], key=int)
    assert used <= set(TABLE["codes"]) <= used | {"123037004"}
    assert len({normalised(name) for name in NAMES}) == len(NAMES)
    assert all(find_coding(name) for name in NAMES)


def test_two_sides_are_told_apart_by_modifier_or_by_type_but_never_equal() -> None:
    lefts = [name for name in NAMES if name.endswith(" left") and f"{name[:-5]} right" in TABLE["structures"]]

    for name in lefts:
        left, right = find_coding(name), find_coding(f"{name[:-5]} right")
        assert left is not None
        assert right is not None
        left_parts = (left.type.value, left.modifier, left.region_modifier)
        assert left_parts != (right.type.value, right.modifier, right.region_modifier), name
        if left.modifier is not None:
            assert (left.modifier.meaning, left.type) == ("Left", right.type), name
    assert len(lefts) > 50


@given(st.sampled_from(NAMES), st.randoms(use_true_random=False), st.sampled_from([" ", "_", ", ", "-"]))
def test_any_order_of_the_words_finds_the_same(name: str, random: object, between: str) -> None:
    words = name.split()
    random.shuffle(words)

    assert find_coding(between.join(words).upper()) == find_coding(name)


@given(st.sampled_from(NAMES), st.sampled_from(string.ascii_lowercase))
def test_one_letter_more_finds_nothing_or_another_entry_of_the_table(name: str, letter: str) -> None:
    assert (find_coding(name + letter) is not None) == (
        normalised(name + letter) in {normalised(other) for other in NAMES}
    )


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"category": PLAIN},
        {"category": PLAIN, "type": PLAIN, "colour": [1, 2, 3]},
        {"category": PLAIN, "type": {"value": "1", "scheme": "SCT"}},
        {"category": PLAIN, "type": {**PLAIN, "value": ""}},
        {"category": PLAIN, "type": {**PLAIN, "value": "1" * 17}},
        {"category": PLAIN, "type": {**PLAIN, "meaning": "a\\b"}},
        {"category": PLAIN, "type": {**PLAIN, "meaning": "a\nb"}},
        {"category": PLAIN, "type": {**PLAIN, "value": 64033007}},
        {"category": PLAIN, "type": PLAIN, "rgb": [1, 2]},
        {"category": PLAIN, "type": PLAIN, "rgb": [1, 2, 256]},
        {"category": PLAIN, "type": PLAIN, "rgb": [1, 2, 3.5]},
        {"category": PLAIN, "type": PLAIN, "region_modifier": PLAIN},
        ["category"],
    ],
)
def test_a_coding_that_is_not_whole_is_refused(parts: object) -> None:
    with pytest.raises(ValueError, match=r"code|coding|colour|region"):
        Coding.from_mapping(parts)


def test_a_coding_from_a_mapping_says_what_the_mapping_says() -> None:
    kidney = Code(**PLAIN)

    assert Coding.from_mapping({"category": PLAIN, "type": PLAIN, "modifier": PLAIN, "rgb": [1, 2, 3]}) == Coding(
        kidney, kidney, kidney, rgb=(1, 2, 3)
    )
