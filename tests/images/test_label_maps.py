"""What the values of label files stand for: any numbers, some to be ignored, white for the only structure."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from voxelgate.core.errors import InputError
from voxelgate.core.labels import IGNORED
from voxelgate.images.label_maps import LabelValues, read_label_map, values_of, whole_labels

VALUES = st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=6, unique=True)


def written(path: Path, voxels: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


@given(values=VALUES, ignored=st.lists(st.integers(-9, -1), max_size=2, unique=True), seed=st.integers(0, 9))
def test_every_value_becomes_its_number_and_what_is_ignored_becomes_ignored(
    values: list[int], ignored: list[int], seed: int
) -> None:
    rule = LabelValues((0, *sorted(values)), tuple(sorted(ignored)))
    numbers = np.random.default_rng(seed).integers(IGNORED if ignored else 0, len(values) + 1, (3, 4, 5))
    of_file = np.array([*rule.values, *rule.ignored[:1]], np.int64)  # the last one stands for -1
    assert np.array_equal(rule.numbered(of_file[numbers]), numbers)
    assert LabelValues.from_mapping(rule.to_mapping()) == rule


@pytest.mark.parametrize(
    ("values", "ignored", "message"),
    [
        ((1, 2), (), "begin with 0"),
        ((0, 2, 1), (), "ascend"),
        ((0, 1, 1), (), "ascend"),
        ((0, 1), (1,), "1 is a label and to be ignored"),
        ((0, 2**32), (), "go up to 4294967295"),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    values: tuple[int, ...], ignored: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LabelValues(values, ignored)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_white_is_the_only_structure_in_files_of_any_type(tmp_path: Path, dtype: type) -> None:
    mask = np.zeros((4, 4, 4), dtype)
    mask[1:3] = 255
    found, _ = read_label_map(written(tmp_path / "a.nii.gz", mask), LabelValues.up_to(1))
    assert np.array_equal(found, mask / 255)


def test_white_of_16_bits_is_white_too() -> None:
    assert LabelValues.up_to(1).numbered(np.array([[[0, 65535]]], np.uint16)).tolist() == [[[0, 1]]]


def test_white_is_a_value_like_any_other_beside_other_structures_or_values() -> None:
    for rule, voxels in ((LabelValues.up_to(3), [0, 255]), (LabelValues.up_to(1), [0, 1, 255])):
        with pytest.raises(InputError, match="values 255 are not declared"):
            rule.numbered(np.array([[voxels]], np.uint8))
    assert LabelValues((0, 1), (255,)).numbered(np.array([[[0, 255]]], np.uint8)).tolist() == [[[0, IGNORED]]]
    assert LabelValues.up_to(300).numbered(np.array([[[0, 255]]], np.uint8)).tolist() == [[[0, 255]]]


@pytest.mark.parametrize("value", [0.9999999, 1.0001, np.float32(0.9999999)])
def test_values_that_resampling_moved_a_little_are_rounded(value: float) -> None:
    found = whole_labels(np.array([0, value, 2 * value]))
    assert found.tolist() == [0, 1, 2]
    assert found.dtype.kind == "i"


@pytest.mark.parametrize(
    ("voxels", "shown"),
    [
        (np.array([0.5]), "such as 0.5;"),
        (np.array([0.998]), "such as 0.998;"),
        (np.array([1.0012345], np.float32), "such as 1.0012345;"),
        (np.array([np.nan]), "such as nan;"),
        (np.array([np.inf]), "such as inf;"),
    ],
)
def test_values_between_whole_numbers_are_refused_with_all_their_digits(voxels: np.ndarray, shown: str) -> None:
    with pytest.raises(InputError, match=f"no whole number, {shown}"):
        whole_labels(voxels)


def test_a_grey_mask_saved_in_colours_is_read_and_a_coloured_one_refused(tmp_path: Path) -> None:
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    Image.fromarray(np.stack([mask] * 3, axis=-1)).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([mask, mask, 0 * mask], axis=-1)).save(tmp_path / "colour.png")
    found, _ = read_label_map(tmp_path / "grey.png", LabelValues.up_to(1))
    assert values_of(found) == (1,)
    with pytest.raises(InputError, match=r"^colour\.png: a label map in colours"):
        read_label_map(tmp_path / "colour.png", LabelValues.up_to(1))


def test_values_below_0_are_refused_where_nothing_is_ignored(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii.gz", np.array([[[0, 1, -1]]], np.int16))
    for rule in (LabelValues.up_to(1), 1):
        with pytest.raises(InputError, match=r"^a\.nii\.gz: .*value.* -1"):
            read_label_map(path, rule)
