"""Data sets that describe themselves: raw ones of nnU-Net and those of the Decathlon are taken as they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged
from typer.testing import CliRunner

from voxelgate.apps.cli.main import app
from voxelgate.core.errors import ManifestError
from voxelgate.datasets.build_manifest import build_manifest, write_manifest
from voxelgate.datasets.manifest import Manifest, datalist, load_manifest
from voxelgate.datasets.subjects_by_name import subjects_by_name
from voxelgate.datasets.survey import survey
from voxelgate.images.spec import ImageSpec, read_image
from voxelgate.segmentation.cases import find_cases
from voxelgate.transforms.io import LoadLabeld

SHAPE = (9, 8, 7)
DECATHLON = Path(__file__).resolve().parents[3] / "shared" / "data" / "hippocampus"


def volume(seed: int, *, channels: int = 1) -> np.ndarray[Any, Any]:
    voxels = np.random.default_rng(seed).normal(0, 300, (*SHAPE, channels)).astype(np.float32)
    return voxels[..., 0] if channels == 1 else voxels


def label(*values: int) -> np.ndarray[Any, Any]:
    voxels = np.zeros(SHAPE, np.uint8)
    for number, value in enumerate(values):
        voxels[2 * number : 2 * number + 2] = value
    return voxels


def save(path: Path, voxels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def describe(folder: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def nnunet_set(
    folder: Path, *, channels: int = 1, labels: Mapping[str, Any] | None = None, values: tuple[int, ...] = (1, 2)
) -> Path:
    for number, case_id in enumerate(("p1", "p2", "p3")):
        for channel in range(channels):
            save(folder / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz", volume(10 * number + channel))
        save(folder / "labelsTr" / f"{case_id}.nii.gz", label(*values))
    return describe(
        folder,
        channel_names={str(channel): name for channel, name in enumerate(("T1", "FLAIR")[:channels])},
        labels=labels or {"background": 0, "liver": 1, "lesion": 2},
        numTraining=3,
        file_ending=".nii.gz",
    )


def decathlon_set(folder: Path, *, channels: int = 2) -> Path:
    for number in (1, 2):
        save(folder / "imagesTr" / f"PROST_{number:03d}.nii.gz", volume(number, channels=channels))
        save(folder / "labelsTr" / f"PROST_{number:03d}.nii.gz", label(1, 2))
        (folder / "imagesTr" / f"._PROST_{number:03d}.nii.gz").write_bytes(b"of a Mac")
    save(folder / "imagesTs" / "PROST_003.nii.gz", volume(3, channels=channels))
    rows = [
        {"image": f"./imagesTr/{stem}PROST_{number:03d}.nii.gz", "label": f"./labelsTr/{stem}PROST_{number:03d}.nii.gz"}
        for number in (1, 2)
        for stem in ("", "._")
    ]
    return describe(
        folder,
        name="PROSTATE",
        description="Two zones.",
        reference="A hospital",
        licence="CC-BY-SA 4.0",
        tensorImageSize="4D",
        modality={"0": "T2", "1": "ADC"} if channels == 2 else {"0": "CT"},
        labels={"0": "background", "1": "PZ", "2": "TZ"},
        numTraining=2,
        numTest=1,
        training=rows,
        test=["./imagesTs/PROST_003.nii.gz"],
    )


def problems_of(folder: Path) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        build_manifest(folder)
    return caught.value.problems


def first_image(manifest: Manifest) -> np.ndarray[Any, Any]:
    """Return the first image as a config of training reads it."""
    path = manifest.data_root / "manifest.json"
    write_manifest(manifest, path, overwrite=True)
    row = datalist(path, fold=-1)[0]
    load = Compose(
        [LoadImaged("image", reader="voxelgate.ChannelsReader", ensure_channel_first=True), LoadLabeld("label", 2)]
    )
    return np.asarray(load(row)["image"])


@pytest.mark.parametrize("stated", [{"licence": "CC0"}, {"license": "CC0"}, {"licence": "", "license": "CC0"}])
def test_a_licence_is_taken_in_either_spelling(tmp_path: Path, stated: dict[str, str]) -> None:
    folder = nnunet_set(tmp_path)
    document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    (folder / "dataset.json").write_text(json.dumps(document | stated), encoding="utf-8")

    assert build_manifest(folder).licence == "CC0"


def test_a_raw_data_set_of_nnunet_is_taken_with_its_channels_and_its_labels(tmp_path: Path) -> None:
    manifest = build_manifest(nnunet_set(tmp_path / "Dataset007_Liver", channels=2))

    assert (manifest.name, manifest.modality, manifest.licence) == ("Dataset007_Liver", "MRI", "not stated")
    assert manifest.channel_names == ("T1", "FLAIR")
    assert manifest.labels.names == ("background", "liver", "lesion")
    assert [case.case_id for case in manifest.cases] == ["p1", "p2", "p3"]
    assert np.array_equal(first_image(manifest), [volume(0), volume(1)])


def test_the_ignore_label_of_nnunet_is_ignored(tmp_path: Path) -> None:
    labels = {"background": 0, "liver": 1, "ignore": 2}

    manifest = build_manifest(nnunet_set(tmp_path, labels=labels))

    assert (manifest.labels.names, manifest.ignored) == (("background", "liver"), (2,))


def test_regions_are_told_and_the_values_of_the_label_files_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4}

    manifest = build_manifest(nnunet_set(tmp_path, labels=labels, values=(1, 2, 3, 4)))

    assert manifest.labels.names == ("background", "label_1", "label_2", "enhancing")
    assert manifest.ignored == (4,)
    assert "whole (1+2+3), core (2+3)" in caplog.text


def test_names_that_are_given_win_over_those_of_the_description(tmp_path: Path) -> None:
    names = {"0": "background", "1": "organ", "2": "tumour"}

    manifest = build_manifest(nnunet_set(tmp_path), name="mine", modality="CT", licence="CC0-1.0", labels=names)

    assert (manifest.name, manifest.modality, manifest.licence) == ("mine", "CT", "CC0-1.0")
    assert manifest.labels.names == ("background", "organ", "tumour")


def test_channels_that_are_all_ct_make_a_ct_and_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = nnunet_set(tmp_path, channels=2)
    stated = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))

    describe(folder, **stated | {"channel_names": {"0": "CT", "1": "CT"}})
    assert build_manifest(folder).modality == "CT"
    describe(folder, **stated | {"channel_names": {"0": "CT", "1": "PET"}})
    assert build_manifest(folder).modality == "MRI"
    assert "CT, PET are not all CT" in caplog.text


def test_files_that_nnunet_names_one_by_one_are_taken(tmp_path: Path) -> None:
    save(tmp_path / "a" / "scan.nii.gz", volume(1))
    save(tmp_path / "b" / "drawn.nii.gz", label(1))
    save(tmp_path / "a" / "other.nii.gz", volume(2))
    save(tmp_path / "b" / "other.nii.gz", label(1))
    files = {
        "one": {"images": ["a/scan.nii.gz"], "label": str(tmp_path / "b" / "drawn.nii.gz")},
        "two": {"images": ["./b/../a/other.nii.gz"], "label": "b/other.nii.gz"},
    }
    describe(tmp_path, channel_names={"0": "CT"}, labels={"background": 0, "liver": 1}, dataset=files)

    manifest = build_manifest(tmp_path / "dataset.json")

    assert [(case.case_id, manifest.relative(case.image)) for case in manifest.cases] == [
        ("one", "a/scan.nii.gz"),
        ("two", "a/other.nii.gz"),
    ]
    assert manifest.labels.names == ("background", "liver")


@pytest.mark.parametrize("name", ["../scan.nii.gz", "/etc/scan.nii.gz", "a/../../scan.nii.gz", "."])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    files = {"one": {"images": [name], "label": "b.nii.gz"}}
    folder = describe(tmp_path / "set", labels={"background": 0, "liver": 1}, dataset=files)

    (problem,) = problems_of(folder)

    assert problem.startswith(f"dataset.json: {name!r} leads out of its folder")


def test_a_set_of_the_decathlon_is_taken_with_all_channels_of_its_files(tmp_path: Path) -> None:
    manifest = build_manifest(decathlon_set(tmp_path))

    assert (manifest.name, manifest.licence) == ("PROSTATE", "CC-BY-SA 4.0")
    assert (manifest.description, manifest.reference) == ("Two zones.", "A hospital")
    assert (manifest.modality, manifest.channel_names) == ("MRI", ("T2", "ADC"))
    assert manifest.labels.names == ("background", "PZ", "TZ")
    assert [case.case_id for case in manifest.cases] == ["PROST_001", "PROST_002"]
    assert [case.case_id for case in manifest.test_cases] == ["PROST_003"]
    assert np.array_equal(first_image(manifest), np.moveaxis(volume(1, channels=2), 3, 0))


def test_a_set_of_one_channel_and_of_a_ct_needs_no_list_of_channels(tmp_path: Path) -> None:
    manifest = build_manifest(decathlon_set(tmp_path, channels=1))

    assert (manifest.modality, manifest.channel_names) == ("CT", ("image",))


def test_a_manifest_of_files_with_all_channels_is_surveyed_and_segmented(tmp_path: Path) -> None:
    manifest = build_manifest(decathlon_set(tmp_path))
    write_manifest(manifest, tmp_path / "manifest.json")
    images = ImageSpec(("T2", "ADC"))

    cases = find_cases(tmp_path / "manifest.json", images=images)
    in_folder = find_cases(tmp_path / "imagesTs", images=images)

    assert not survey(load_manifest(tmp_path / "manifest.json")).defects
    assert read_image(cases[0].channels, images).voxels.shape == (2, *SHAPE)
    assert read_image(in_folder[0].channels, images).voxels.shape == (2, *SHAPE)


def test_a_file_with_other_channels_is_refused(tmp_path: Path) -> None:
    folder = decathlon_set(tmp_path)
    save(folder / "imagesTr" / "PROST_001.nii.gz", volume(1, channels=3))

    assert problems_of(folder) == ("imagesTr/PROST_001.nii.gz: holds 3 volumes, expected 2, one for each channel.",)


def test_one_volume_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    folder = decathlon_set(tmp_path)
    save(folder / "imagesTr" / "PROST_001.nii.gz", np.stack([volume(1)] * 2, -1))

    (problem,) = problems_of(folder)

    assert problem.startswith("imagesTr/PROST_001.nii.gz: channel ADC holds the same voxels as")


def test_names_of_the_first_nnunet_stand_for_the_channels_that_lie_there(tmp_path: Path) -> None:
    for number in (1, 2):
        for channel in (0, 1):
            save(tmp_path / "imagesTr" / f"case_{number}_{channel:04d}.nii.gz", volume(10 * number + channel))
        save(tmp_path / "labelsTr" / f"case_{number}.nii.gz", label(1))
    rows = [
        {"image": f"./imagesTr/case_{number}.nii.gz", "label": f"./labelsTr/case_{number}.nii.gz"} for number in (1, 2)
    ]
    describe(tmp_path, modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "core"}, training=rows)

    manifest = build_manifest(tmp_path)

    assert [case.case_id for case in manifest.cases] == ["case_1", "case_2"]
    assert [path.name for path in manifest.cases[0].channels] == ["case_1_0000.nii.gz", "case_1_0001.nii.gz"]


def test_another_count_of_cases_than_is_told_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = nnunet_set(tmp_path)
    for place in ("imagesTr/p3_0000.nii.gz", "labelsTr/p3.nii.gz"):
        (folder / place).unlink()

    build_manifest(folder)

    assert "tells of 3 cases for training, and 2 are here" in caplog.text


def test_a_damaged_description_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{", encoding="utf-8")
    assert problems_of(tmp_path)[0].startswith("dataset.json: ")

    describe(tmp_path, labels={"liver": "one"})
    assert problems_of(tmp_path) == (
        "dataset.json: labels: 'liver' has no value; give each name one, or each value a name.",
    )

    describe(tmp_path, labels={"liver": 1}, channel_names={"1": "CT"})
    assert problems_of(tmp_path) == ("dataset.json: channels are numbered 0, 1, 2, ..., found 1.",)


def test_frames_days_and_sides_of_one_person_are_one_subject() -> None:
    names = ["patient001_frame01", "patient001_frame12", "sub-07_ses-1", "sub-07_ses-2", "eye3_left", "eye3_right"]

    assert list(subjects_by_name(names).values()) == ["patient001"] * 2 + ["sub-07"] * 2 + ["eye3"] * 2
    assert subjects_by_name(["hippocampus_l", "hippocampus_r"]) == {
        "hippocampus_l": "hippocampus_l",
        "hippocampus_r": "hippocampus_r",
    }


def test_folds_go_by_the_subjects_that_names_tell(tmp_path: Path) -> None:
    for person in (1, 2, 3):
        for frame in (1, 9):
            save(tmp_path / "imagesTr" / f"patient{person}_frame{frame:02d}_0000.nii.gz", volume(10 * person + frame))
            save(tmp_path / "labelsTr" / f"patient{person}_frame{frame:02d}.nii.gz", label(1))
    describe(tmp_path, channel_names={"0": "MRI"}, labels={"background": 0, "heart": 1})

    manifest = build_manifest(tmp_path)

    assert {case.subject for case in manifest.cases} == {"patient1", "patient2", "patient3"}
    assert len(manifest.folds) == 3


def test_the_command_says_what_it_took_from_a_description(tmp_path: Path) -> None:
    folder = decathlon_set(tmp_path / "Task05")

    done = CliRunner().invoke(app, ["manifest", str(folder / "dataset.json")])

    assert done.exit_code == 0, done.output
    assert "2 channels (T2, ADC); labels background, PZ, TZ" in " ".join(done.output.split())
    assert (folder / "manifest.json").is_file()


@pytest.mark.skipif(not DECATHLON.is_dir(), reason="needs the Decathlon's hippocampus data")
def test_the_description_of_the_decathlon_makes_the_manifest_of_its_own_files(tmp_path: Path) -> None:
    stems = [f"hippocampus_{number:03d}" for number in (1, 3, 4)]
    for folder in ("imagesTr", "labelsTr"):
        source = next(place for place in (DECATHLON / folder, DECATHLON / f"{folder[:-2]}") if place.is_dir())
        (tmp_path / folder).mkdir()
        for stem in stems:
            (tmp_path / folder / f"{stem}.nii.gz").write_bytes((source / f"{stem}.nii.gz").read_bytes())
    rows = [{"image": f"./imagesTr/{stem}.nii.gz", "label": f"./labelsTr/{stem}.nii.gz"} for stem in stems]
    names = {"0": "background", "1": "Anterior", "2": "Posterior"}
    describe(tmp_path, name="Hippocampus", modality={"0": "MRI"}, labels=names, numTraining=3, training=rows)

    manifest = build_manifest(tmp_path)

    assert (manifest.labels.names, len(manifest.cases)) == (("background", "Anterior", "Posterior"), 3)
