"""Finding cases: volume files and DICOM series, each with a name of its own, none lost, none twice."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planted import ROOT, at_mm, chained, ct_series, mr_series, setting, write
from tests.volume_files import CONTENT, VOXELS, metaimage_bytes, nifti_bytes, nrrd_bytes, packed_nifti
from voxelgate.core.errors import InputError
from voxelgate.core.files import LOCK_NAME
from voxelgate.core.labels import LabelTable
from voxelgate.dicom.choose import SeriesRule
from voxelgate.dicom.read.series import Series
from voxelgate.segmentation.batch.input_stamps import content_sha256, stamp_of
from voxelgate.segmentation.cases import Case, find_cases, find_inputs
from voxelgate.segmentation.read import read_case


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


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["p1_0000.nii.gz", "sub/p2_0000.nii.gz"], ["p1", "sub/p2"]),
        (["p1_0000.nii.gz", "p1.nii.gz"], ["p1", "p1_0000"]),
        (["p1_0000.nii.gz", "p1.nrrd"], ["p1", "p1_0000"]),
        (["p1_0000.nii.gz", "p1_0001.nii.gz"], ["p1_0000", "p1_0001"]),
        (["t_0001.nii.gz", "t_2023.nii.gz", "x_1234.nii.gz"], ["t_0001", "t_2023", "x_1234"]),
        (["_0000.nii.gz"], ["_0000"]),
    ],
)
def test_an_only_channel_is_called_by_its_case_unless_a_file_beside_it_is_called_so_too(
    tmp_path: Path, files: list[str], expected: list[str]
) -> None:
    touch(*(tmp_path / "in" / name for name in files))

    found = {case.case_id: case.channels for case in find_cases([tmp_path / "in"])}

    assert sorted(found) == expected
    assert sorted(path.relative_to(tmp_path / "in").as_posix() for (path,) in found.values()) == sorted(files)


def test_two_images_whose_cases_are_called_alike_in_two_folders_get_two_outputs(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "p1_0000.nii.gz", tmp_path / "b" / "p1.nii.gz")

    found = {case.case_id for case in find_cases([tmp_path / "a", tmp_path / "b"])}

    assert len(found) == 2
    assert all(name.startswith("p1-") for name in found)


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


def test_results_of_an_older_run_within_the_scans_are_not_taken_for_images(tmp_path: Path) -> None:
    older = tmp_path / "older"
    touch(tmp_path / "a.nii.gz", older / "a.nii.gz", older / "sub" / "b.nii.gz", older / LOCK_NAME)

    assert find_cases([tmp_path], out_dir=tmp_path / "new") == [Case("a", tmp_path / "a.nii.gz")]
    assert [case.case_id for case in find_cases([older])] == ["a", "sub/b"]


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


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("is_given_itself", [True, False])
def test_volumes_in_a_zip_are_cases_that_are_read_in_place(tmp_path: Path, is_given_itself: bool) -> None:
    files = {"a.nii.gz": packed_nifti(), "sub/b.nii": nifti_bytes(), "c.nrrd": nrrd_bytes(), "d.mha": metaimage_bytes()}
    archive = zipped(tmp_path / "scans.zip", files)

    cases = find_cases([archive if is_given_itself else tmp_path])

    assert [case.case_id for case in cases] == ["scans/a", "scans/c", "scans/d", "scans/sub/b"]
    assert len({case.identity for case in cases}) == 4
    for case in cases:
        image = read_case(case, LabelTable(("background", "left kidney", "right kidney")))
        np.testing.assert_array_equal(image.voxels[0], VOXELS)
        assert content_sha256(case)
        assert stamp_of(case)
        with pytest.raises(InputError, match="unpack it first"):
            _ = case.files


def test_volumes_of_one_name_in_two_zips_and_beside_them_get_names_of_their_own(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        zipped(tmp_path / name / "scan.zip", {"ct.nii": nifti_bytes()})

    ids = [case.case_id for case in find_cases([tmp_path / "x" / "scan.zip", tmp_path / "y" / "scan.zip"])]

    assert len(set(ids)) == 2
    assert all(name.startswith("scan/ct-") for name in ids)


def test_a_header_in_a_zip_may_not_name_its_voxels(tmp_path: Path) -> None:
    files = {"a.mhd": metaimage_bytes(content=b"", data_file="a.raw"), "a.raw": CONTENT}
    (case,) = find_cases([zipped(tmp_path / "scans.zip", files)])

    with pytest.raises(InputError, match="unpack the archive first"):
        read_case(case, LabelTable(("background", "kidney")))


def test_an_archive_that_lost_its_volume_meanwhile_is_a_case_that_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "scans.zip", {"a.nii": nifti_bytes()})
    (case,) = find_cases([archive])
    zipped(archive, {"b.nii": nifti_bytes()})

    with pytest.raises(InputError, match="not in the archive any more"):
        read_case(case, LabelTable(("background", "kidney")))


def test_files_that_are_not_taken_are_counted_by_their_kind(tmp_path: Path) -> None:
    names = ("b.img", "b.hdr", "c.MGZ", "d.nhdr", "e.mnc", "f.tar.gz", "g.png", "notes.txt", "scan.JOHN_DOE", "x.7z")
    touch(*(tmp_path / name for name in names), tmp_path / ".hidden.img")
    (tmp_path / "a.nii.gz").write_bytes(packed_nifti())
    zipped(tmp_path / "z.zip", {"i.nii": nifti_bytes(), "inner.zip": b"PK", "deep/k.mgz": b"", "readme": b""})

    found = find_inputs([tmp_path])

    assert [case.case_id for case in found.cases] == ["a", "z/i"]
    assert found.passed_over == {
        ".7z": 1, ".hdr": 1, ".img": 1, ".mgz": 2, ".mnc": 1, ".nhdr": 1, ".png": 1, ".tar.gz": 1, ".zip": 1,
        "other": 3,
    }  # fmt: skip


def test_voxels_of_a_header_and_the_directory_of_a_disc_are_not_passed_over(tmp_path: Path) -> None:
    write(ct_series(4), tmp_path / "ct")
    touch(tmp_path / "ct" / "DICOMDIR")
    (tmp_path / "a.mhd").write_bytes(metaimage_bytes(content=b"", data_file="a.raw"))
    touch(tmp_path / "a.raw", tmp_path / "lonely.raw")

    assert find_inputs([tmp_path]).passed_over == {".raw": 1}


def test_an_input_that_holds_other_images_only_is_refused_with_their_kinds(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "b.img", tmp_path / "in" / "b.hdr", tmp_path / "in" / "c.mgz")

    with pytest.raises(InputError, match=r"but 1 \.hdr, 1 \.img, 1 \.mgz"):
        find_cases([tmp_path / "in"])
    with pytest.raises(InputError, match=r"but 1 \.mgz"):
        find_cases([tmp_path / "in" / "c.mgz"])


def studies(folder: Path) -> None:
    """Write two studies of two series each, of which the second is thinner."""
    for study in (1, 2):
        for number in (3, 4):
            datasets = ct_series(series=10 * study + number)
            for dataset in datasets:
                dataset.update({"StudyInstanceUID": f"{ROOT}.{study}", "PatientID": f"phantom-{study}"})
                dataset.update({"SeriesNumber": number, "SeriesDescription": f"Part {number}"})
            write(datasets, folder / f"{study}{number}")


def test_the_series_that_was_asked_for_is_the_case_of_each_study(tmp_path: Path) -> None:
    studies(tmp_path)
    for name in ("4", "part 4"):
        cases = find_cases([tmp_path], rule=SeriesRule(asked=name))
        assert [isinstance(case.image, Series) and case.image.number for case in cases] == [4, 4]


def test_a_uid_makes_one_case_and_leaves_other_studies_alone(tmp_path: Path) -> None:
    studies(tmp_path)
    (case,) = find_cases([tmp_path], rule=SeriesRule(asked=f"{ROOT}.23"))
    assert isinstance(case.image, Series)
    assert case.image.series_uids == (f"{ROOT}.23",)


def test_a_study_without_the_number_that_was_asked_for_is_told(tmp_path: Path) -> None:
    studies(tmp_path)
    for path in (tmp_path / "24").iterdir():
        path.unlink()
    cases = find_cases([tmp_path], rule=SeriesRule(asked="4"))
    assert sorted(case.image is None for case in cases) == [False, True]


def test_a_name_that_no_series_has_is_refused_in_one_sentence(tmp_path: Path) -> None:
    studies(tmp_path)
    with pytest.raises(InputError, match="Liver: no series has this UID, number or description; `voxelgate inspect`"):
        find_cases([tmp_path], rule=SeriesRule(asked="Liver"))


def test_an_archive_that_is_not_looked_into_is_a_case_that_says_why_and_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(nifti_bytes())
    zipped(tmp_path / "doe_dense.zip", {"m.nii": nifti_bytes() + bytes(3_000_000)})
    zipped(tmp_path / "doe_outside.zip", {"../m.nii": nifti_bytes()})
    (tmp_path / "doe_text.zip").write_bytes(b"no zip")

    taken, *refused = find_cases([tmp_path])

    assert taken.case_id == "a"
    assert len({case.identity for case in refused}) == len({case.case_id for case in refused}) == 3
    assert all(case.image is None and "doe" not in f"{case.case_id} {case.findings}" for case in refused)
    reasons = " ".join(str(case.findings[0]) for case in refused)
    for reason in ("more than 100 times its size", "paths that leave it", "no zip, although it is named like one"):
        assert reason in reasons
    assert {case.input_files[0].name for case in refused} == {"doe_dense.zip", "doe_outside.zip", "doe_text.zip"}


def test_a_pipe_or_a_lost_link_that_is_given_is_refused_as_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "loop.nii").symlink_to("loop.nii")

    for name in ("pipe.nii", "loop.nii"):
        with pytest.raises(InputError, match="is a pipe, a device or a link that leads nowhere"):
            find_cases([tmp_path / name])


def test_why_a_series_was_not_taken_ends_as_a_sentence_does(tmp_path: Path) -> None:
    write(ct_series(4), tmp_path / "study")

    [case] = find_cases([tmp_path / "study"], rule=SeriesRule(min_slices=9))

    assert all(str(finding).endswith("the bundle wants at least 9.") for finding in case.findings)
