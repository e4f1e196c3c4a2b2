"""Data sets as people have them: what `manifest` understands of labels, channels and folds, or how to say it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import Run
from voxelgate.core.errors import ManifestError, UsageError
from voxelgate.datasets.build_manifest import build_manifest
from voxelgate.datasets.check_manifest import check_manifest
from voxelgate.datasets.manifest import Manifest, datalist, load_manifest
from voxelgate.datasets.survey import survey
from voxelgate.transforms.io import LoadLabeld

SHAPE = (12, 10, 8)
Edit = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def unchanged(_: int, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return image, label


def write_cases(folder: Path, edit: Edit = unchanged, cases: int = 4) -> Path:
    """Write MRI with one box of value 1 each, edited; return the folder."""
    for case in range(cases):
        label = np.zeros(SHAPE, np.int16)
        label[2:6, 2:6, 2:6] = 1
        image = np.random.default_rng(case).normal(100, 10, SHAPE) + 50 * label
        image, label = edit(case, image, label)
        save(folder / "images" / f"c{case}.nii.gz", image.astype(np.float32))
        save(folder / "labels" / f"c{case}.nii.gz", label)
    return folder


def build(folder: Path, **options: Any) -> Manifest:
    return build_manifest(folder, **{"name": "boxes", "modality": "MRI", "licence": "CC0", **options})


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises((ManifestError, UsageError)) as caught:
        build(folder, **options)
    return str(caught.value)


def with_gaps(_: int, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label[:] = 0
    label[2:4], label[4:6], label[6:8] = 200, 210, 220
    return image, label


# --- values --------------------------------------------------------------------------------------------------------


def test_values_with_gaps_are_listed_as_they_are_found_and_numbered_without_gaps(tmp_path: Path, run: Run) -> None:
    manifest = build(write_cases(tmp_path / "data", with_gaps))
    assert manifest.to_document()["labels"] == {
        "0": "background", "200": "label_200", "210": "label_210", "220": "label_220"
    }  # fmt: skip
    assert manifest.labels.names == ("background", "label_200", "label_210", "label_220")
    result = run("manifest", tmp_path / "data", "--modality", "MRI", "--labels", "200=liver, 220=aorta,210=spleen")
    assert "labels 0 background, 200 liver, 210 spleen, 220 aorta; results will have the values 0 to 3" in result.stdout
    row = datalist(tmp_path / "data/manifest.json", fold=0)[0]
    loaded = LoadLabeld("label", highest=3)(row)
    assert sorted(np.unique(loaded["label"]).tolist()) == [0, 1, 2, 3]
    assert "label_values" not in loaded
    facts = survey(load_manifest(tmp_path / "data/manifest.json")).fingerprint
    assert [(one.name, one.cases) for one in facts.structures] == [("liver", 4), ("spleen", 4), ("aorta", 4)]


def test_names_without_values_for_other_values_are_refused_with_the_way_to_say_it(tmp_path: Path, run: Run) -> None:
    result = run("manifest", write_cases(tmp_path / "data", with_gaps), "--modality", "MRI", "--labels", "a,b,c")
    assert result.returncode == 1
    assert "values 200, 210, 220 are not declared; the manifest declares 0 to 3; name them (--labels VALUE=NAME" in (
        result.stderr.replace("\n", " ")
    )


@pytest.mark.parametrize(
    ("labels", "message"), [("200=liver,spleen", "'spleen' has no value"), ("1=a,01=b", "'01=b' has a value that")]
)
def test_half_named_values_are_refused(tmp_path: Path, run: Run, labels: str, message: str) -> None:
    result = run("manifest", tmp_path, "--labels", labels)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_name_with_a_comma_stands_in_quotation_marks(tmp_path: Path, run: Run) -> None:
    write_cases(tmp_path / "data", cases=1)

    assert run("manifest", tmp_path / "data", "--modality", "MRI", "--labels", '1="kidney, left"').returncode == 0

    assert load_manifest(tmp_path / "data" / "manifest.json").labels.names == ("background", "kidney, left")


@pytest.mark.parametrize("value", [255, 65535])
def test_a_value_far_behind_the_others_is_asked_for(tmp_path: Path, value: int) -> None:
    def edit(_: int, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        label = label.astype(np.uint16)
        label[0, 0, 0] = value
        return image, label

    folder = write_cases(tmp_path, edit)
    assert refusal(folder) == (
        f"labels: the value {value} is in 4 label maps; if it marks voxels that nobody labelled, say so "
        f"(--ignore {value}), and if it is a structure, name all (--labels 1=NAME,{value}=NAME)."
    )
    assert build(folder, ignore=[value]).to_document()["ignore"] == [value]
    assert build(folder, labels={"0": "background", "1": "a", str(value): "b"}).labels.names[2] == "b"


def test_a_value_below_0_names_no_structure_and_may_be_ignored(tmp_path: Path, run: Run) -> None:
    def edit(case: int, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        label[0, 0, :3] = -1 if case == 1 else 0
        return image, label

    folder = write_cases(tmp_path / "data", edit)
    assert "the value -1 is in 1 label map; if it marks" in refusal(folder)
    assert "values -1 are not declared" in refusal(folder, labels={"0": "background", "1": "box"})
    result = run("manifest", folder, "--modality", "MRI", "--ignore", "-1")
    assert "labels background, label_1; voxels of -1 are ignored" in result.stdout
    assert "--ignore x: expected whole numbers" in run("manifest", folder, "--ignore", "x").stderr


def test_a_mask_of_black_and_white_is_one_structure(tmp_path: Path) -> None:
    folder = write_cases(tmp_path, lambda case, image, label: (image, label * (255 if case else 1)))
    manifest = build(folder)
    assert manifest.labels.names == ("background", "label_1")
    check_manifest(manifest)
    assert build(folder, labels={"0": "background", "1": "thing"}).labels.names[1] == "thing"
    (structure,) = survey(manifest).fingerprint.structures
    assert structure.cases == 4


def test_values_moved_by_resampling_are_rounded_and_half_values_refused(tmp_path: Path) -> None:
    folder = write_cases(tmp_path / "a", lambda _, image, label: (image, label.astype(np.float32) * 0.9999999))
    assert build(folder).labels.names == ("background", "label_1")
    folder = write_cases(tmp_path / "b", lambda _, image, label: (image, label.astype(np.float32) * 0.5))
    assert "64 voxels are no whole number, such as 0.5;" in refusal(folder, labels={"0": "background", "1": "a"})


def test_a_structure_in_one_case_only_and_one_in_none_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def edit(case: int, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        label[8, 8, 4] = 7 if case == 2 else 0
        return image, label

    build(write_cases(tmp_path, edit), labels={"0": "background", "1": "box", "7": "dot", "9": "gone"})
    assert "dot (value 7) is in one of 4 cases only" in caplog.text
    assert "gone (value 9) is in no case" in caplog.text
    assert "box" not in caplog.text


def test_label_maps_that_hold_nothing_at_all_are_refused(tmp_path: Path) -> None:
    assert "no label map holds a value beside 0" in refusal(write_cases(tmp_path, lambda _, i, label: (i, 0 * label)))


def test_label_maps_that_hold_only_what_is_ignored_are_refused_as_such(tmp_path: Path) -> None:
    assert "no label map holds a value beside 0 and those to be ignored" in refusal(write_cases(tmp_path), ignore=[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda label: label * np.float32(0.5), "64 voxels are no whole number, such as 0.5;"),
        (lambda label: np.where(label == 1, np.nan, 0), "64 voxels are no whole number, such as nan;"),
        (lambda label: np.stack([label, label], axis=-1), "4 axes (12x10x8x2), expected one volume of 3"),
        (lambda label: np.arange(label.size).reshape(label.shape), "more are not declared"),
    ],
)
def test_label_maps_that_are_all_wrong_are_refused_for_what_is_wrong(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    def edit(_: int, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        changed = change(label)
        return image, changed.astype(np.float32 if changed.dtype.kind == "f" else np.int16)

    told = refusal(write_cases(tmp_path, edit))
    assert told.count(reason) == 4
    assert "beside 0" not in told


@pytest.mark.skipif(os.name == "nt", reason="names of files are UTF-16 there")
def test_a_name_that_is_no_utf_8_is_refused_by_a_sentence_that_can_be_printed(tmp_path: Path) -> None:
    folder = write_cases(tmp_path)
    for part in ("images", "labels"):
        (folder / part / "c0.nii.gz").rename(folder / part / os.fsdecode(b"c\xe9.nii.gz"))
    told = refusal(folder)
    assert told.startswith(r"c\udce9.nii.gz: the name of image or label is no UTF-8")
    assert told.isascii()


@pytest.mark.parametrize("fields", [{"ignore": [1]}, {"ignore": 255}, {"ignore": [1e300]}, {"ignore": [0.5]}])
def test_what_a_manifest_cannot_ignore_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    document = build(write_cases(tmp_path)).to_document()
    (tmp_path / "m.json").write_text(json.dumps(document | fields))
    with pytest.raises(ManifestError, match=r"^m\.json: (ignore|labels)"):
        load_manifest(tmp_path / "m.json")


# --- few cases -----------------------------------------------------------------------------------------------------


def test_one_case_makes_a_manifest_without_folds_and_the_way_to_train_is_said(tmp_path: Path, run: Run) -> None:
    folder = write_cases(tmp_path / "data", cases=1)
    result = run("manifest", folder, "--modality", "MRI")
    assert result.returncode == 0
    assert "1 case without folds" in result.stdout
    assert "train on all of them (--fold -1)" in result.stderr
    assert load_manifest(folder / "manifest.json").folds == ()
    refused = run("manifest", folder, "--modality", "MRI", "--folds", "2", "--overwrite")
    assert "there is one subject, and nobody is in two folds; train on all cases (--fold -1)" in refused.stderr


def test_few_subjects_are_dealt_into_as_many_folds(tmp_path: Path) -> None:
    folder = write_cases(tmp_path, cases=3)
    assert build(folder).folds == (0, 1, 2)
    assert build(folder, folds=1).folds == ()
    assert "5 folds asked for, but there are 3 subjects; choose 1 to 3 folds" in refusal(folder, folds=5)


# --- channels ------------------------------------------------------------------------------------------------------


def write_channels(folder: Path, cases: int = 3, channels: int = 2, images: str = "imagesTr") -> Path:
    for case in range(cases):
        label = np.zeros(SHAPE, np.uint8)
        label[2:6] = 1
        save(folder / images.replace("images", "labels") / f"c{case}.nii.gz", label)
        for number in range(channels):
            image = np.random.default_rng(10 * case + number).normal(100, 10, SHAPE).astype(np.float32)
            save(folder / images / f"c{case}_{number:04d}.nii.gz", image)
    return folder


@pytest.mark.parametrize("images", ["imagesTr", "images"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_files_numbered_by_channel_are_one_image(tmp_path: Path, channels: int, images: str) -> None:
    manifest = build(write_channels(tmp_path, channels=channels, images=images))
    assert [case.case_id for case in manifest.cases] == ["c0", "c1", "c2"]
    assert [path.name for path in manifest.cases[0].channels] == [f"c0_{n:04d}.nii.gz" for n in range(channels)]
    assert len(manifest.channel_names) == channels


@pytest.mark.parametrize("number", [0, 1])
def test_a_channel_that_lacks_is_named(tmp_path: Path, number: int) -> None:
    folder = write_channels(tmp_path)
    (folder / f"imagesTr/c1_{number:04d}.nii.gz").unlink()
    assert refusal(folder).splitlines()[0] == (
        f"imagesTr/c1_{1 - number:04d}.nii.gz: case c1 has no channel {number:04d} beside it, which the other cases "
        f"have (c1_{number:04d}); add it, or take the case away."
    )


def test_a_channel_too_many_and_one_given_twice_are_named(tmp_path: Path) -> None:
    folder = write_channels(tmp_path)
    save(folder / "imagesTr/c1_0002.nii.gz", np.random.default_rng(0).normal(100, 10, SHAPE))
    assert "imagesTr/c1_0002.nii.gz: the other cases have channels up to 0001; take it away." in refusal(folder)
    (folder / "imagesTr/c1_0002.nii.gz").unlink()
    (folder / "imagesTr/c1_0001.nii.gz").write_bytes((folder / "imagesTr/c1_0000.nii.gz").read_bytes())
    assert "imagesTr/c1_0001.nii.gz: holds the same voxels as imagesTr/c1_0000.nii.gz" in refusal(folder)


# --- contrast ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bright", [0, 1, 4])
def test_an_image_of_nearly_one_value_is_named_before_any_training(tmp_path: Path, bright: int) -> None:
    def edit(case: int, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if case == 2:
            image[:] = 7
            image[3, 3, :bright] = 9
        return image, label

    folder = write_cases(tmp_path, edit)
    assert refusal(folder).startswith("images/c2.nii.gz: channel 0 of the image has no contrast")


def test_an_image_with_few_values_that_differ_is_taken(tmp_path: Path) -> None:
    def edit(_: int, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.where(label == 1, 9, 7) + (np.arange(image.size).reshape(image.shape) % 97 == 0), label

    with pytest.raises(ManifestError, match="holds the same voxels"):  # all four are alike, and that is all
        build(write_cases(tmp_path, edit))


# --- odd JSON ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"name": ' + "[" * 200 + "]" * 200 + "}", "nested too deeply"),
        ('{"name": "a\\u0000"}', "holds NUL"),
        ('{"\\ud800": 1}', "holds half of a surrogate pair"),
        ('{"name": 1, "name": 2}', "the key 'name' stands 2 times"),
        ('{"name": ' + "9" * 5000 + "}", "4300 digits"),
        ("", "Expecting value"),
        ('{"name": "\udcff"}', "utf-8"),
    ],
)
def test_odd_json_is_one_sentence_in_manifest_and_subjects(tmp_path: Path, text: str, reason: str) -> None:
    folder = write_cases(tmp_path)
    for name in ("m.json", "subjects.json"):
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ManifestError, match=rf"^m\.json: not valid JSON: .*{reason}"):
        load_manifest(folder / "m.json")
    assert reason in refusal(folder)


def test_a_manifest_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    document = build(write_cases(tmp_path)).to_document()
    (tmp_path / "m.json").write_text(json.dumps(document), encoding="utf-8-sig")
    assert load_manifest(tmp_path / "m.json").name == "boxes"
