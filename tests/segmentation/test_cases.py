"""Finding cases: volume files and DICOM series, each with a name of its own, none lost, none twice."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planted import ROOT, at_mm, chained, ct_series, mr_series, setting, write
from voxelgate.core.errors import InputError
from voxelgate.dicom.choose import SeriesRule
from voxelgate.dicom.read.series import Series
from voxelgate.segmentation.cases import Case, find_cases


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_folders_are_searched_and_their_sub_folders_kept(tmp_path: Path) -> None:
    touch(
        *(tmp_path / "in" / name for name in ("b.nii.gz", "sub/a.mha", "a.nii", "notes.txt", "._b.nii.gz", ".x/c.nii"))
    )

    found = find_cases([tmp_path / "in"])

    assert found == [
        Case("a", tmp_path / "in" / "a.nii"),
        Case("b", tmp_path / "in" / "b.nii.gz"),
        Case("sub/a", tmp_path / "in" / "sub" / "a.mha"),
    ]


def test_two_patients_with_one_file_name_get_two_outputs(tmp_path: Path) -> None:
    touch(*(tmp_path / patient / "CT.nii.gz" for patient in ("p1", "p2")), tmp_path / "p3" / "ct.nrrd")
    inputs = [tmp_path / "p1" / "CT.nii.gz", tmp_path / "p2" / "CT.nii.gz", tmp_path / "p3"]

    found = {case.image: case.case_id for case in find_cases(inputs)}

    assert len({name.lower() for name in found.values()}) == 3
    assert all(name.lower().startswith("ct-") for name in found.values())
    assert {case.image: case.case_id for case in find_cases(inputs[::-1])} == found


@settings(max_examples=30, deadline=None)
@given(
    st.sets(
        st.tuples(
            st.sampled_from(["x", "y", "x/y"]),
            st.sampled_from(["ct", "CT"]),
            st.sampled_from([".nii", ".nii.gz", ".mha"]),
        ),
        min_size=1,
    )
)
def test_no_two_volumes_ever_share_an_output(
    tmp_path_factory: pytest.TempPathFactory, files: set[tuple[str, str, str]]
) -> None:
    root = tmp_path_factory.mktemp("in")
    paths = [root / folder / f"{stem}{suffix}" for folder, stem, suffix in sorted(files)]
    touch(*paths)

    found = find_cases([*paths, root, root / files.copy().pop()[0]])

    assert {case.image for case in found} == set(paths)
    assert len({case.case_id.casefold() for case in found}) == len(paths)


def test_results_are_not_taken_for_images(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz", tmp_path / "out" / "a.nii.gz")

    assert find_cases([tmp_path], out_dir=tmp_path / "out") == [Case("a", tmp_path / "a.nii.gz")]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.nii.gz", "does not exist"),
        ("photo.png", "holds no volume"),
        ("empty", "holds no volume"),
    ],
)
def test_inputs_that_hold_no_volume_are_refused(tmp_path: Path, name: str, sentence: str) -> None:
    touch(tmp_path / "photo.png", tmp_path / "slice.dcm", tmp_path / "empty" / "x.txt")
    touch(tmp_path / "good.nii.gz")

    with pytest.raises(InputError, match=sentence):
        find_cases([tmp_path / "good.nii.gz", tmp_path / name])


def test_a_tree_of_studies_gives_one_case_a_study_and_says_why_other_series_were_left(tmp_path: Path) -> None:
    for number, patient in enumerate(("anna", "bert"), start=1):
        study = setting("StudyInstanceUID", f"{ROOT}.77.{number}")
        write(study(ct_series(6, series=20 + number)), tmp_path / "in" / patient)
        write(
            study(setting("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])(ct_series(1, series=30 + number))),
            tmp_path / "in" / patient / "scout",
        )
    write(
        setting("StudyInstanceUID", f"{ROOT}.77.3")(at_mm(0, 2.5, 10)(ct_series(3, series=40))), tmp_path / "in" / "c"
    )
    touch(tmp_path / "in" / "notes.txt", tmp_path / "in" / "d" / "ct.nii.gz")

    cases = find_cases([tmp_path / "in"])

    assert [type(case.image) for case in cases[:1]] == [type(tmp_path)]
    dicom = [case for case in cases[1:] if case.image is not None]
    assert len({case.case_id for case in dicom}) == 2
    assert all("LOCALIZER" in str(case.findings[0]) for case in dicom)
    (refused,) = (case for case in cases if case.image is None)
    assert "MISSING_SLICE" in str(refused.findings[0])
    assert not any(name in case.case_id for case in cases[1:] for name in ("anna", "bert", "phantom"))
    with pytest.raises(InputError, match="MISSING_SLICE"):
        _ = refused.files


def test_a_series_in_two_folders_is_one_case(tmp_path: Path) -> None:
    slices = ct_series(8)
    write(slices[:5], tmp_path / "one")
    write(slices[5:], tmp_path / "two", prefix="X")

    (case,) = find_cases([tmp_path / "one", tmp_path / "two"])

    assert isinstance(case.image, Series)
    assert len(case.image.slices) == 8


def test_a_copy_of_a_whole_folder_is_the_same_case(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(ct_series(5), tmp_path / name)

    (case,) = find_cases([tmp_path / "one", tmp_path / "two"])

    assert case.image is not None
    assert len(case.files) == 5


def test_a_study_of_another_modality_is_a_case_that_says_so(tmp_path: Path) -> None:
    write(mr_series(4), tmp_path / "in")
    (case,) = find_cases([tmp_path / "in"], rule=SeriesRule(modality=("CT",)))
    assert case.image is None
    assert "is MR, the bundle wants CT" in str(case.findings[0])


@pytest.mark.parametrize("name", ["slice.dcm", "study.zip"])
def test_an_empty_file_that_should_be_dicom_makes_a_case_that_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "in" / name)
    (case,) = find_cases([tmp_path / "in"])
    assert case.image is None
    assert "UNREADABLE_FILE" in str(case.findings[0])


def test_files_that_only_look_like_dicom_make_a_case_that_is_refused(tmp_path: Path) -> None:
    paths = write(ct_series(4), tmp_path / "in")
    paths[0].write_bytes(paths[0].read_bytes()[:200])

    cases = find_cases([tmp_path / "in"])

    assert sorted(case.case_id for case in cases if case.image is None) == ["unreadable"]
    (usable,) = (case for case in cases if case.image is not None)
    assert any("UNREADABLE_FILE" in str(finding) for finding in usable.image.findings)


def test_two_patients_without_study_uids_are_two_cases(tmp_path: Path) -> None:
    for number, patient in enumerate(("anna", "bert"), start=1):
        anonymous = chained(setting("StudyInstanceUID", ""), setting("PatientID", patient))
        write(anonymous(ct_series(5, series=20 + number)), tmp_path / patient)
    assert sum(case.image is not None for case in find_cases([tmp_path])) == 2


def test_two_patients_with_one_study_uid_are_two_cases(tmp_path: Path) -> None:
    for number, patient in enumerate(("anna", "bert"), start=1):
        write(setting("PatientID", patient)(ct_series(5, series=20 + number)), tmp_path / patient)
    write(setting("PatientID", "carl")(ct_series(1, series=30)), tmp_path / "carl")
    cases = find_cases([tmp_path])
    assert sorted(case.image is not None for case in cases) == [False, True, True]
    assert len({case.case_id for case in cases}) == 3


def test_a_series_without_patient_belongs_to_the_only_patient_of_its_study(tmp_path: Path) -> None:
    write(ct_series(5, series=20), tmp_path / "ct")
    write(setting("PatientID", "")(ct_series(1, series=21)), tmp_path / "scout")
    (case,) = find_cases([tmp_path])
    assert "SINGLE_SLICE" in str(case.findings[0])


def test_images_below_the_folder_of_the_results_are_found(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.nii.gz")
    assert find_cases([tmp_path / "in"], out_dir=tmp_path) == [Case("a", tmp_path / "in" / "a.nii.gz")]


def test_results_in_the_folder_of_the_images_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="choose another"):
        find_cases([tmp_path], out_dir=tmp_path)
