"""Label tables: names, codes and sides."""

from typing import Any

import pytest

from voxelgate.core.errors import OutputError
from voxelgate.core.labels import LabelTable
from voxelgate.core.terminology import find_coding

NAMES = {"0": "background", "1": "anterior", "2": "left kidney"}
ANTERIOR = {
    "category": {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"},
    "type": {"value": "5366008", "scheme": "SCT", "meaning": "Hippocampus"},
    "rgb": [10, 20, 30],
}


def test_a_table_of_names_alone_works_as_before() -> None:
    table = LabelTable.from_mapping(NAMES)

    assert table == LabelTable(("background", "anterior", "left kidney"))
    assert hash(table) == hash(LabelTable(("background", "anterior", "left kidney")))
    assert table.to_mapping() == NAMES


def test_a_name_of_the_terminology_has_its_code() -> None:
    assert LabelTable.from_mapping(NAMES).coding(2) == find_coding("left kidney")


def test_a_name_without_a_code_is_refused_with_what_to_do() -> None:
    table = LabelTable.from_mapping(NAMES)

    with pytest.raises(OutputError, match=r"label 1 \(anterior\): no code .* with `voxelgate bundle codes`"):
        table.coding(1)
    assert table.find_coding(1) is None


def test_a_code_that_the_table_gives_counts_before_the_name() -> None:
    table = LabelTable.from_mapping(NAMES, {"1": ANTERIOR, "2": ANTERIOR})

    assert table.coding(1).type.meaning == "Hippocampus"
    assert table.coding(2).rgb == (10, 20, 30)
    assert table != LabelTable.from_mapping(NAMES)
    assert hash(table) == hash(LabelTable.from_mapping(NAMES, {"2": ANTERIOR, "1": ANTERIOR}))


@pytest.mark.parametrize("codings", [{"0": ANTERIOR}, {"3": ANTERIOR}, {"anterior": ANTERIOR}, {"1": {}}, {"1": "SCT"}])
def test_codes_of_no_structure_and_broken_codes_are_refused(codings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"code|coding"):
        LabelTable.from_mapping(NAMES, codings)


@pytest.mark.parametrize("name", ["left kidney", "kidney_left", "RightLung", "LUNG_LEFT", "lung-right", "leftKidney"])
def test_a_side_is_a_word_of_its_own(name: str) -> None:
    table = LabelTable(("background", "bright spot", "cleft", name))

    assert table.unpaired_sides == (name,)


def test_sides_are_paired_by_name() -> None:
    table = LabelTable(("background", "left parotid", "right parotid", "left lung"))

    assert table.side_pairs == ((1, 2),)
    assert table.unpaired_sides == ("left lung",)


@pytest.mark.parametrize(
    "name",
    [
        "left atrium",
        "lung_middle_lobe_right",
        "heart_ventricle_left",
        "Left ventricular myocardium",
        "left coronary artery",
        "left lobe of liver",
    ],
)
def test_a_part_of_an_organ_of_which_there_is_one_forbids_no_mirroring(name: str) -> None:
    assert LabelTable(("background", name, "aorta")).unpaired_sides == ()


@pytest.mark.parametrize(
    "name", ["left kidney", "Left-Lateral-Ventricle", "left inf lat vent", "left cerebral ventricle"]
)
def test_a_side_of_the_body_without_its_partner_forbids_mirroring(name: str) -> None:
    assert LabelTable(("background", name, "liver")).unpaired_sides == (name,)


def test_chambers_beside_kidneys_leave_the_sides_of_those_alone() -> None:
    table = LabelTable(("background", "left kidney", "right kidney", "left atrium"))
    assert table.side_pairs == ((1, 2),)
    assert table.unpaired_sides == ()
