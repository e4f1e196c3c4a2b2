"""Colours of structures: recommended ones first, never two alike, and the same every time."""

import json
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelgate.core import palette
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import ALIKE, OKABE_ITO, structure_colours
from voxelgate.core.terminology import Code, Coding

NAMES = sorted(
    json.loads(files("voxelgate.core").joinpath("terminology.json").read_text(encoding="utf-8"))["structures"]
)
ORGAN = Code("1", "99TEST", "an organ")


def least_distance(colours: list[tuple[int, int, int]]) -> float:
    seen = np.array(colours, float)
    return min(float(np.delete(palette._distances(seen, one), row).min()) for row, one in enumerate(seen))


def test_a_recommended_colour_is_taken_and_what_has_none_gets_those_of_okabe_and_ito() -> None:
    assert structure_colours(LabelTable(("background", "left kidney", "anterior", "posterior"))) == {
        1: (46, 138, 184),
        2: OKABE_ITO[0],
        3: OKABE_ITO[1],
    }


def test_of_two_structures_with_one_recommended_colour_the_second_gets_another() -> None:
    red = Coding(ORGAN, ORGAN, rgb=(200, 30, 30))
    table = LabelTable(("background", "first", "second"), ((1, red), (2, red)))

    assert structure_colours(table) == {1: (200, 30, 30), 2: OKABE_ITO[0]}


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=60, unique=True), st.integers(0, 40))
def test_no_two_structures_look_alike(names: list[str], others: int) -> None:
    table = LabelTable(("background", *names, *(f"thing {number}" for number in range(others))))

    colours = structure_colours(table)

    assert list(colours) == list(table.foreground)
    assert len(colours) == 1 or least_distance(list(colours.values())) >= ALIKE
    assert structure_colours(table) == colours


@pytest.mark.parametrize("count", [1, 7, 8, 117, 2000])
def test_there_is_a_colour_for_every_structure_and_none_is_a_grey_of_the_image(count: int) -> None:
    colours = structure_colours(LabelTable(("background", *(f"thing {number}" for number in range(count)))))

    assert len(colours) == len(set(colours.values())) == count
    assert all(max(colour) - min(colour) >= 80 for colour in colours.values())
