"""Label tables that leave values out, as models whose regions are 1, 2 and 4 do."""

from pathlib import Path

import numpy as np
import pytest

from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import structure_colours
from voxelgate.segmentation.preview import read_preview, sketch, write_preview

STATED = {"0": "background", "1": "core", "2": "oedema", "4": "enhancing"}
TABLE = LabelTable(("background", "core", "oedema", "", "enhancing"))


def test_a_table_with_a_gap_keeps_each_name_at_its_value() -> None:
    assert LabelTable.from_mapping(STATED, gaps=True) == TABLE
    assert TABLE.to_mapping() == STATED
    assert TABLE.foreground == {1: "core", 2: "oedema", 4: "enhancing"}
    assert sorted(structure_colours(TABLE)) == [1, 2, 4]


def test_gaps_are_refused_where_nobody_asked_for_them() -> None:
    with pytest.raises(ValueError, match="without a gap, found 0, 1, 2, 4"):
        LabelTable.from_mapping(STATED)


@pytest.mark.parametrize("names", [("", "a"), ("background", "a", ""), ("background", "a", "", "A")])
def test_the_first_and_the_last_name_are_there_and_all_differ(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="unique and not empty"):
        LabelTable(names)


def test_a_value_that_no_label_map_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 65535, found 0, 70000"):
        LabelTable.from_mapping({"0": "background", "70000": "a"}, gaps=True)


def test_a_preview_shows_each_structure_at_its_value(tmp_path: Path) -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[4:8, 4:8, 4:8], labels[10:14, 10:14, 10:14] = 2, 4
    image = sketch(np.arange(labels.size, dtype=np.float32).reshape(labels.shape), Grid(labels.shape, np.eye(4)))

    write_preview(tmp_path / "a.webp", image, labels, TABLE)

    assert read_preview(tmp_path / "a.webp").layout.names == ("core", "oedema", "", "enhancing")
