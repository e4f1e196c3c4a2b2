"""Manifests: what is refused, that it is refused in one line for each defect, and how folds are dealt."""

import gzip
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.data import load_decathlon_datalist
from typer.testing import CliRunner

from tests.manifest_files import write_document
from voxelgate.apps.cli.main import app
from voxelgate.core.errors import InputError, ManifestError, OutputError, UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.build_manifest import build_manifest, write_manifest
from voxelgate.datasets.check_manifest import check_manifest, checked_manifest, checksum
from voxelgate.datasets.folds import assign_folds
from voxelgate.datasets.manifest import Manifest, datalist, load_manifest, manifest_from_document
from voxelgate.datasets.notes import read_subjects
from voxelgate.evaluation.pairs import find_pairs

SHAPE = (6, 7, 8)
SHIPPED = Path(__file__).resolve().parents[2] / "data_manifests"
LABELS = {"0": "background", "1": "anterior", "2": "posterior"}

SUBJECTS = st.dictionaries(
    st.text("abcdefgh0123", min_size=1, max_size=4), st.sampled_from(["s1", "s2", "s3", "s4", "s5", "s6"]), min_size=1
)


def save(path: Path, voxels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def image_voxels(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def label_voxels() -> np.ndarray[Any, Any]:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1:3], voxels[3:5] = 1, 2
    return voxels


def row(stem: str, /, **fields: Any) -> dict[str, Any]:
    paths = {"image": f"images/{stem}.nii.gz", "label": f"labels/{stem}.nii.gz"}
    return {**paths, "subject": f"subject of {stem}", **fields}


def document(*rows: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    head = {"name": "small", "licence": "CC0-1.0", "modality": {"0": "MRI"}, "labels": LABELS}
    return {**head, "training": list(rows), **fields}


def build_small(folder: Path, **options: Any) -> dict[str, Any]:
    return build_manifest(
        folder, **{"name": "small", "modality": "MRI", "licence": "CC0-1.0", "folds": 2, **options}
    ).to_document()


def problems_of(call: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        call()
    return caught.value.problems


def row_problems(*rows: Mapping[str, Any], **fields: Any) -> tuple[str, ...]:
    return problems_of(lambda: manifest_from_document(document(*rows, **fields), Path("/data")))


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Return a data root with the cases a, b and c."""
    for seed, case_id in enumerate("abc"):
        save(tmp_path / "images" / f"{case_id}.nii.gz", image_voxels(seed))
        save(tmp_path / "labels" / f"{case_id}.nii.gz", label_voxels())
    return tmp_path


@pytest.fixture
def manifest(sound: Path) -> Manifest:
    return manifest_from_document(document(*(row(case_id, fold=0) for case_id in "abc")), sound)


def only_defect(manifest: Manifest) -> str:
    """Return the only line that `check_manifest` refuses the manifest with."""
    (problem,) = problems_of(lambda: check_manifest(manifest))
    return problem


# --- rows


def test_a_sound_manifest_is_read_with_its_names_and_its_paths_below_the_data_root(sound: Path) -> None:
    write_document(
        document(row("a", fold=0, sha256={"image": "0" * 64}), test=[{"image": "t.nii", "subject": "t"}]),
        sound / "m.json",
    )

    manifest = load_manifest(sound / "m.json")

    assert (manifest.name, manifest.modality, manifest.licence) == ("small", "MRI", "CC0-1.0")
    assert manifest.labels.names == ("background", "anterior", "posterior")
    case, test_case = manifest.all_cases
    assert (case.case_id, case.subject, case.fold) == ("a", "subject of a", 0)
    assert (case.image, case.label) == (sound / "images/a.nii.gz", sound / "labels/a.nii.gz")
    assert (case.image_sha256, case.label_sha256) == ("0" * 64, None)
    assert (test_case.image, test_case.label, test_case.fold) == (sound / "t.nii", None, None)


def test_paths_are_relative_to_the_data_root_that_is_given(tmp_path: Path) -> None:
    write_document(document(row("a")), tmp_path / "m.json")

    assert load_manifest(tmp_path / "m.json", tmp_path / "x").cases[0].image == tmp_path / "x/images/a.nii.gz"


def test_monai_reads_the_same_training_files(sound: Path) -> None:
    write_document(build_small(sound), sound / "m.json")

    rows = load_decathlon_datalist(sound / "m.json")

    ours = datalist(sound / "m.json", fold=-1)
    assert [(row["image"], row["label"]) for row in rows] == [(row["image"], row["label"]) for row in ours]


def test_without_folds_every_case_trains_and_shows_the_progress(sound: Path) -> None:
    document = build_small(sound)
    rows = [{name: value for name, value in row.items() if name != "fold"} for row in document["training"]]
    write_document(document | {"training": rows}, sound / "m.json")
    training, validation = (datalist(sound / "m.json", fold=-1, part=part) for part in ("training", "validation"))
    assert training == validation
    assert len(training) == len(rows)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "x",}', "m.json: not valid JSON: .*line 1"),
        ('{"labels": {"1": "a", "1": "b"}}', "m.json: not valid JSON: the key '1' stands 2 times"),
        (b"\xff\xfe", "m.json: not valid JSON: .*utf-8"),
        ("[]", r"m.json: the document: \[\] is not of type 'object'"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused_with_the_place(
    tmp_path: Path, text: str | bytes, expected: str
) -> None:
    (tmp_path / "m.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(ManifestError, match=expected):
        load_manifest(tmp_path / "m.json")


def test_a_manifest_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read as a manifest: No such file"):
        load_manifest(tmp_path / "m.json")


def test_all_breaches_of_the_schema_are_listed_with_their_rows() -> None:
    without_label = {"image": "a.nii", "subject": "s"}

    problems = row_problems(without_label, row("b", fold=-1), row("c", mask="x"), modality={"0": "PET"})

    assert [problem.split(":")[0] for problem in problems] == [
        "modality.0",
        "training[0]",
        "training[1].fold",
        "training[2]",
    ]
    assert "'label' is a required property" in problems[1]
    assert "'mask' was unexpected" in problems[3]


def test_breaches_are_listed_in_the_order_of_the_rows() -> None:
    problems = row_problems(*(row(str(n), fold="x") for n in range(12)))

    assert [problem.split(":")[0] for problem in problems] == [f"training[{n}].fold" for n in range(12)]


def test_a_breach_that_quotes_all_cases_stays_one_readable_line() -> None:
    (problem,) = row_problems(training={str(n): row(str(n)) for n in range(500)})

    assert problem.startswith("training: ...")
    assert problem.endswith("is not of type 'array'.")
    assert len(problem) < 250


def test_labels_without_a_background_are_refused() -> None:
    with pytest.raises(UsageError, match="label values begin with 0 for the background"):
        build_manifest("nowhere", name="a", modality="CT", licence="b", labels={"1": "x", "2": "y"})
    assert "'0' is a required property" in row_problems(row("a"), labels={"1": "x", "2": "y"})[0]


@pytest.mark.parametrize(
    "path", ["../a.nii.gz", "/data/a.nii.gz", "images/../../a.nii.gz", "C:/a.nii.gz", "a\\b.nii.gz", ".."]
)
def test_a_path_that_leaves_the_data_root_is_refused(path: str) -> None:
    (problem,) = row_problems(row("a", image=path))

    assert problem.startswith(f"training[0].image: found {path!r}, expected: A file inside the data root")


def test_a_case_built_by_hand_cannot_leave_the_data_root_either() -> None:
    sound = manifest_from_document(document(row("a")), Path("/data"))
    outside = replace(sound.cases[0], image=Path("/data/../etc/a.nii.gz"), label=Path("/etc/b.nii.gz"))

    assert problems_of(lambda: replace(sound, cases=(outside,))) == (
        "../etc/a.nii.gz: leaves the data root; paths are relative to it and have no '..'.",
        "/etc/b.nii.gz: leaves the data root; paths are relative to it and have no '..'.",
    )


@pytest.mark.parametrize("path", ["a..b/c...nii.gz", "..a/x.nii", "ü b/c.nii.gz"])
def test_an_unusual_path_inside_the_data_root_is_accepted(path: str) -> None:
    assert manifest_from_document(document(row("a", image=path)), Path("/data")).cases[0].image == Path("/data", path)


@pytest.mark.parametrize("path", ["images/a.nii.gz", "./images/a.nii.gz", "images//a.nii.gz"])
def test_one_file_in_two_rows_is_refused_however_its_path_is_spelled(path: str) -> None:
    (problem,) = row_problems(row("a"), row("b", image=path, case_id="other"))

    assert problem.startswith("images/a.nii.gz: named 2 times")


def test_an_image_that_is_its_own_label_is_refused() -> None:
    (problem,) = row_problems(row("a", label="images/a.nii.gz"))

    assert problem.startswith("images/a.nii.gz: named 2 times")


def test_two_patients_both_named_ct_are_refused_until_they_have_case_ids() -> None:
    rows = [row(name, image=f"{name}/ct.nii.gz") for name in ("p1", "p2")]

    assert row_problems(*rows) == (
        "p1/ct.nii.gz, p2/ct.nii.gz: all have the case id ct; give each row a case_id of its own.",
    )
    named = [{**one, "case_id": f"case {n}"} for n, one in enumerate(rows)]
    assert [case.case_id for case in manifest_from_document(document(*named), Path("/data")).cases] == [
        "case 0",
        "case 1",
    ]


def test_a_subject_in_two_folds_is_refused() -> None:
    assert row_problems(row("a", subject="s", fold=0), row("b", subject="s", fold=1)) == (
        "images/a.nii.gz, images/b.nii.gz: subject s is in folds 0, 1; it belongs to one.",
    )


def test_a_subject_in_training_and_test_is_refused() -> None:
    (problem,) = row_problems(row("a", subject="s"), test=[row("b", subject="s")])

    assert problem.startswith("images/a.nii.gz: subject s is in training and in test")


def test_folds_for_some_cases_only_are_refused() -> None:
    (problem,) = row_problems(row("a", fold=0), row("b"), row("c"))

    assert problem.startswith("images/b.nii.gz, images/c.nii.gz: without a fold")


def test_fold_numbers_with_a_gap_are_refused() -> None:
    (problem,) = row_problems(row("a", fold=0), row("b", fold=2))

    assert problem.startswith("training: folds are 0, 2;")


def test_all_wrong_rows_are_listed_at_once() -> None:
    rows = (
        row("a", subject="s", fold=0),
        row("b", subject="s", fold=1),
        row("c", fold=1),
        row("other", image="images/c.nii.gz", fold=3),
        row("c", image="x/c.nii.gz", label="y", subject="t"),
    )

    starts = [problem.split(":")[0] for problem in row_problems(*rows)]

    assert starts == [
        "images/c.nii.gz",
        "images/c.nii.gz, x/c.nii.gz",
        "images/a.nii.gz, images/b.nii.gz",
        "x/c.nii.gz",
        "training",
    ]


# --- files


def test_a_sound_data_set_passes_and_reports_its_progress(manifest: Manifest) -> None:
    seen: list[tuple[int, int]] = []

    check_manifest(manifest, progress=lambda done, total: seen.append((done, total)))

    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_missing_file_is_named(manifest: Manifest, kind: str) -> None:
    (manifest.data_root / kind / "b.nii.gz").unlink()

    assert only_defect(manifest).startswith(f"{kind}/b.nii.gz: there is no such file")


def test_a_wrong_data_root_is_told_in_one_sentence(tmp_path: Path) -> None:
    elsewhere = manifest_from_document(document(*(row(case_id, fold=0) for case_id in "abc")), tmp_path / "elsewhere")

    assert only_defect(elsewhere).startswith(f"{tmp_path / 'elsewhere'}: holds none of the 6 files, such as images/")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_truncated_file_is_named(manifest: Manifest, kind: str) -> None:
    path = manifest.data_root / kind / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])

    assert only_defect(manifest).startswith(f"{kind}/b.nii.gz: the file ends too early")


def test_a_label_of_another_shape_is_named(manifest: Manifest) -> None:
    save(manifest.data_root / "labels/b.nii.gz", label_voxels()[:-1])

    assert only_defect(manifest) == (
        "labels/b.nii.gz: on another grid than images/b.nii.gz: shape (5, 7, 8) instead of (6, 7, 8); "
        "use the label drawn on this image."
    )


def test_a_label_that_is_turned_but_has_the_same_shape_is_named(manifest: Manifest) -> None:
    save(manifest.data_root / "labels/b.nii.gz", label_voxels(), np.diag([-1.0, 1.0, 1.0, 1.0]))

    assert "corners up to 10.00 mm apart" in only_defect(manifest)


def test_a_float_label_with_whole_numbers_is_accepted(manifest: Manifest) -> None:
    save(manifest.data_root / "labels/b.nii.gz", label_voxels().astype(np.float32))

    assert checked_manifest(manifest).problems == ()


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_label_value_that_is_no_whole_number_is_named(manifest: Manifest, value: float) -> None:
    voxels = label_voxels().astype(np.float32)
    voxels[0, 0, :3] = value
    save(manifest.data_root / "labels/b.nii.gz", voxels)

    assert only_defect(manifest).startswith(f"labels/b.nii.gz: 3 voxels are no whole number, such as {value:g}")


def test_undeclared_label_values_are_named(manifest: Manifest) -> None:
    voxels = label_voxels().astype(np.int16)
    voxels[0, 0] = [-1, 3, 4, 5, 6, 7, 8, 0]
    save(manifest.data_root / "labels/b.nii.gz", voxels)

    assert only_defect(manifest) == (
        "labels/b.nii.gz: values -1, 3, 4, 5, 6 and 2 more are not declared; the manifest declares 0 to 2."
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_with_voxels_that_are_not_finite_is_named(manifest: Manifest, value: float) -> None:
    voxels = image_voxels(1)
    voxels[0, 0, :2] = value
    save(manifest.data_root / "images/b.nii.gz", voxels)

    assert only_defect(manifest).startswith("images/b.nii.gz: 2 voxels are NaN or infinite")


def test_the_same_voxels_under_two_names_are_found_in_another_type_and_packing(manifest: Manifest) -> None:
    voxels = np.random.default_rng(5).integers(0, 1000, SHAPE).astype(np.int16)
    save(manifest.data_root / "images/a.nii.gz", voxels)
    save(manifest.data_root / "images/c.nii.gz", voxels.astype(np.float32))

    assert only_defect(manifest) == "images/c.nii.gz: holds the same voxels as images/a.nii.gz; keep one of them."


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_file_that_is_not_the_recorded_one_is_named(sound: Path, kind: str) -> None:
    sums = {name: checksum(sound / f"{name}s/a.nii.gz") for name in ("image", "label")}
    path = sound / f"{kind}s/a.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1, mtime=7))

    problem = only_defect(manifest_from_document(document(row("a", sha256=sums)), sound))

    assert problem.startswith(f"{kind}s/a.nii.gz: SHA-256 differs from the manifest's")


def test_a_checksum_of_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        checksum(tmp_path)


def test_a_test_case_without_label_is_checked_too(sound: Path) -> None:
    shutil.copy(sound / "images/a.nii.gz", sound / "t.nii.gz")
    manifest = manifest_from_document(document(row("a"), test=[{"image": "t.nii.gz", "subject": "t"}]), sound)

    assert only_defect(manifest).startswith("t.nii.gz: holds the same voxels as images/a.nii.gz")


def test_several_defects_are_listed_at_once_in_the_order_of_the_rows(manifest: Manifest) -> None:
    (manifest.data_root / "images/c.nii.gz").unlink()
    (manifest.data_root / "labels/a.nii.gz").unlink()
    save(manifest.data_root / "images/b.nii.gz", np.full(SHAPE, np.nan, np.float32))
    save(manifest.data_root / "labels/b.nii.gz", np.full((2, 2, 2), 9, np.uint8))

    problems = problems_of(lambda: check_manifest(manifest))

    names = [problem.split(":")[0] for problem in problems]
    assert names == ["labels/a.nii.gz", "images/b.nii.gz", "labels/b.nii.gz", "labels/b.nii.gz", "images/c.nii.gz"]


# --- folds


@given(subject_of=SUBJECTS, folds=st.integers(1, 6), seed=st.integers(0, 5))
def test_no_subject_is_ever_in_two_folds_and_folds_are_balanced(
    subject_of: dict[str, str], folds: int, seed: int
) -> None:
    sizes = Counter(subject_of.values())
    folds = min(folds, len(sizes))

    fold_of = assign_folds(subject_of, folds, seed)

    assert fold_of.keys() == subject_of.keys()
    assert len({(subject_of[case], fold) for case, fold in fold_of.items()}) == len(sizes)
    cases_in = Counter(fold_of.values())
    assert set(cases_in) == set(range(folds))
    assert max(cases_in.values()) - min(cases_in.values()) <= max(sizes.values())


@given(subject_of=SUBJECTS, order=st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_change_the_folds(subject_of: dict[str, str], order: Any) -> None:
    shuffled = list(subject_of.items())
    order.shuffle(shuffled)
    folds = min(3, len(set(subject_of.values())))

    assert assign_folds(dict(shuffled), folds) == assign_folds(subject_of, folds)


def test_another_seed_deals_other_folds() -> None:
    subject_of = {f"case{n}": f"s{n}" for n in range(40)}

    assert assign_folds(subject_of, 5, seed=1) != assign_folds(subject_of, 5, seed=2)


@pytest.mark.parametrize("folds", [0, 3])
def test_more_folds_than_subjects_are_refused(folds: int) -> None:
    with pytest.raises(UsageError, match="choose 1 to 2 folds"):
        assign_folds({"a": "s", "b": "t"}, folds)


# --- build


def test_build_writes_what_load_reads_and_check_accepts(sound: Path) -> None:
    write_document(build_small(sound), sound / "m.json")

    manifest = load_manifest(sound / "m.json")

    check_manifest(manifest)
    assert manifest.folds == (0, 1)
    assert [case.subject for case in manifest.cases] == ["a", "b", "c"]
    assert manifest.labels.names == ("background", "label_1", "label_2")
    assert all(case.image_sha256 and case.label_sha256 for case in manifest.cases)


def test_build_gives_the_same_manifest_again(sound: Path) -> None:
    assert build_small(sound) == build_small(sound)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a.nii.gz", "labels/a.nii.gz"),
        ("images/a.nii.gz", "labels/a_seg.nii.gz"),
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),
        ("imagesTr/a.nii", "labelsTr/a.nii.gz"),
        ("a.nii.gz", "a_seg.nii.gz"),
        ("a.nii.gz", "a_label.nii.gz"),
        ("a_image.nii.gz", "a_mask.nii"),
    ],
)
def test_common_layouts_are_paired(tmp_path: Path, image: str, label: str) -> None:
    save(tmp_path / image, image_voxels(0))
    save(tmp_path / label, label_voxels())

    (built,) = build_small(tmp_path, folds=1)["training"]

    assert (built["image"], built["label"], built["subject"]) == (image, label, "a")
    assert manifest_from_document(document(built), tmp_path).cases[0].case_id == "a"


def test_case_ids_that_end_like_a_channel_are_kept_where_the_label_has_them_too(tmp_path: Path) -> None:
    for name in ("scan_0000", "scan_0001"):
        save(tmp_path / "images" / f"{name}.nii.gz", image_voxels(0))
        save(tmp_path / "labels" / f"{name}.nii.gz", label_voxels())

    pairs, problems = find_pairs(tmp_path)

    assert [pair.case_id for pair in pairs] == ["scan_0000", "scan_0001"]
    assert problems == []


def test_hidden_files_are_no_cases(sound: Path) -> None:
    # Task04_Hippocampus.tar of the Decathlon holds a "._hippocampus_001.nii.gz" beside each image.
    (sound / "images/._a.nii.gz").write_bytes(b"Mac OS X")

    assert len(build_small(sound)["training"]) == 3


def test_images_and_labels_without_partner_are_listed_together_with_wrong_files(sound: Path) -> None:
    (sound / "images/a.nii.gz").unlink()
    (sound / "labels/b.nii.gz").unlink()
    save(sound / "labels/c.nii.gz", label_voxels()[1:])

    problems = problems_of(lambda: build_small(sound))

    assert problems[:2] == (
        "labels/a.nii.gz: label without image in images/; add it or take the label away.",
        "images/b.nii.gz: image without label in labels/; add it or take the image away.",
    )
    assert len(problems) == 3
    assert problems[2].startswith("labels/c.nii.gz: on another grid")


@pytest.mark.parametrize("codes", [(0, 0), (1, 1)], ids=["no forms", "forms that exchange the sides"])
def test_an_image_of_unknown_sides_is_a_defect_only_where_labels_tell_sides_apart(
    manifest: Manifest, sound: Path, codes: tuple[int, int]
) -> None:
    image = nib.load(sound / "images/b.nii.gz")
    image.set_qform(np.diag((-1.0, 1, 1, 1)), codes[0])
    image.set_sform(np.eye(4), codes[1])
    nib.save(nib.Nifti1Image(image_voxels(1), None, image.header), sound / "images/b.nii.gz")
    save(sound / "labels/b.nii.gz", label_voxels(), image.affine)

    check_manifest(manifest)
    sided = replace(manifest, labels=LabelTable(("background", "left eye", "right eye")))
    assert only_defect(sided).startswith("images/b.nii.gz: ")
    assert "but the labels tell sides apart" in only_defect(sided)


def test_a_label_that_cannot_be_read_is_one_line_of_build(sound: Path) -> None:
    (sound / "labels/b.nii.gz").write_bytes(b"this is no gzip file at all")

    (problem,) = problems_of(lambda: build_small(sound))

    assert problem.startswith("labels/b.nii.gz: not a NIfTI file")


def test_two_files_of_one_case_are_refused(sound: Path) -> None:
    save(sound / "images/a.nii", image_voxels(7))

    assert problems_of(lambda: build_small(sound)) == ("images/a.nii.gz: of the same case as images/a.nii; keep one.",)


@pytest.mark.parametrize(("present", "missing"), [("images", "labels"), ("labelsTr", "imagesTr")])
def test_a_folder_of_images_without_a_folder_of_labels_is_one_line(tmp_path: Path, present: str, missing: str) -> None:
    save(tmp_path / present / "a.nii.gz", image_voxels(0))

    (problem,) = problems_of(lambda: build_small(tmp_path))

    assert problem.startswith(f"{missing}/: there is no such folder")


def test_a_label_by_name_without_image_and_an_unreadable_file_in_a_flat_folder_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a_seg.nii.gz", label_voxels())
    (tmp_path / "b.nii.gz").write_bytes(b"this is no gzip file at all")

    first, second = problems_of(lambda: build_small(tmp_path))

    assert first == "a_seg.nii.gz: label without image a; add it or take the label away."
    assert second.startswith("b.nii.gz: not a NIfTI file")


def test_a_folder_without_volumes_or_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no volumes"):
        build_small(tmp_path)
    with pytest.raises(ManifestError, match="does not exist, expected a folder"):
        build_small(tmp_path / "none")


def test_subjects_and_label_names_come_from_the_file_beside_the_images(tmp_path: Path) -> None:
    for number in ("001", "002", "003"):
        save(tmp_path / "images" / f"h_{number}.nii.gz", image_voxels(int(number)))
        save(tmp_path / "labels" / f"h_{number}.nii.gz", label_voxels())
    notes = {"labels": LABELS, "rule": "free text", "subject_group": {"001": 1, "002": 1, "h_003": 2}}
    (tmp_path / "subjects.json").write_text(json.dumps(notes))

    built = build_small(tmp_path)

    assert [one["subject"] for one in built["training"]] == ["1", "1", "2"]
    assert built["training"][0]["fold"] == built["training"][1]["fold"] != built["training"][2]["fold"]
    assert built["labels"] == LABELS


def save_cases(folder: Path, *case_ids: str) -> None:
    """Write an image and a label map for each case."""
    for number, case_id in enumerate(case_ids):
        save(folder / "images" / f"{case_id}.nii.gz", image_voxels(number))
        save(folder / "labels" / f"{case_id}.nii.gz", label_voxels())


EYES = ("Image_01L", "Image_01R", "Image_02L", "Image_02R", "Image_03L")


def test_two_sides_of_a_person_are_one_subject_by_their_names_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_cases(tmp_path, *EYES)

    built = build_small(tmp_path)

    assert [one["subject"] for one in built["training"]] == [
        "Image_01",
        "Image_01",
        "Image_02",
        "Image_02",
        "Image_03L",
    ]
    assert "5 cases of 3 subjects, by their names: Image_01L and Image_01R are of one" in caplog.text


def test_the_subject_is_what_a_pattern_finds_in_the_case(tmp_path: Path) -> None:
    save_cases(tmp_path, *EYES)

    built = build_small(tmp_path, subjects=r"Image_(\d+)")

    assert [one["subject"] for one in built["training"]] == ["01", "01", "02", "02", "03"]


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (r"Image_\d+", "no pattern with a group"),
        (r"Image_(\d+", "neither a file nor a regular expression"),
        (r"Image_(02)", "finds no subject in 3 of 5 cases, such as Image_01L"),
        (r"Image_(x?)", "finds no subject in 5 of 5 cases"),
    ],
)
def test_a_pattern_that_finds_no_subject_is_refused(tmp_path: Path, pattern: str, told: str) -> None:
    save_cases(tmp_path, *EYES)

    with pytest.raises(UsageError) as refused:
        build_small(tmp_path, subjects=pattern)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("who.csv", "case,subject,age\na,s,7\nb,s,7\nc,t,8\n"),
        ("who.csv", "\ufeffcase,subject\r\na, s\r\n\r\nb,s\r\nc,t\r\n"),
        ("who.json", '{"a": "s", "b": "s", "c": "t"}'),
        ("who.json", '{"subject_group": {"a": "s", "b": "s", "c": "t"}}'),
    ],
)
def test_subjects_are_read_from_a_table(sound: Path, name: str, text: str) -> None:
    (sound / name).write_bytes(text.encode())

    assert read_subjects(sound / name) == {"a": "s", "b": "s", "c": "t"}
    result = CliRunner().invoke(app, ["manifest", str(sound), "--subjects", str(sound / name), "--modality", "MRI"])
    assert result.exit_code == 0, result.output
    assert [one.subject for one in load_manifest(sound / "manifest.json").cases] == ["s", "s", "t"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("who.csv", "case,subject\na,s\nb\n", "line 3 has no case and subject"),
        ("who.csv", "case,subject\na,s\na,t\n", "case a has two subjects"),
        ("who.csv", "case,subject\n", "no line but the titles"),
        ("who.csv", "", "no line but the titles"),
        ("who.json", "[1]", "no table of subjects"),
        ("who.json", '{"a": [1]}', "no table of subjects"),
    ],
)
def test_a_table_that_names_no_subject_is_refused(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(UsageError) as refused:
        read_subjects(tmp_path / name)
    assert told in str(refused.value)
    assert "write lines such as" in str(refused.value) or "keep one line" in str(refused.value)


@pytest.mark.parametrize("text", ['{"labels": {"1": "liver", "2": "spleen"}}', '{"1": "liver", "2": "spleen"}'])
def test_names_of_labels_come_from_the_file_beside_the_images(sound: Path, text: str) -> None:
    (sound / "labels.json").write_text(text)

    assert build_small(sound)["labels"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert build_small(sound, labels=LABELS)["labels"] == LABELS, "what is said counts"


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "liver"}', '{"1": 2}', '{"labels": {"1": ""}}'])
def test_a_broken_file_of_label_names_is_refused(sound: Path, text: str) -> None:
    (sound / "labels.json").write_text(text)

    with pytest.raises(ManifestError, match=r"^labels\.json: "):
        build_small(sound)


def test_two_files_that_name_labels_differently_are_refused(sound: Path) -> None:
    (sound / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    (sound / "subjects.json").write_text('{"labels": {"1": "spleen", "2": "liver"}}')

    with pytest.raises(ManifestError, match=r"^subjects\.json and labels\.json give the label values other names"):
        build_small(sound)


def test_a_case_whose_subject_is_unknown_is_refused(sound: Path) -> None:
    (problem,) = problems_of(lambda: build_small(sound, subjects={"a": "s", "b": "t"}))
    assert problem.startswith("c.nii.gz: its subject is not in the subjects given")

    (sound / "subjects.json").write_text('{"subject_group": {"a": 1}}')
    assert [problem.split(" is not in")[0] for problem in problems_of(lambda: build_small(sound))] == [
        "b.nii.gz: its subject",
        "c.nii.gz: its subject",
    ]


@pytest.mark.parametrize("text", ["{", '{"subject_group": [1]}', '{"labels": {"x": "1"}}', "[]"])
def test_a_broken_subjects_file_is_refused(sound: Path, text: str) -> None:
    (sound / "subjects.json").write_text(text)

    with pytest.raises(ManifestError, match=r"^subjects\.json: "):
        build_small(sound)


def test_wrong_options_of_build_are_refused(sound: Path) -> None:
    with pytest.raises(UsageError, match="modality 'PET' is unknown; choose CT or MRI"):
        build_small(sound, modality="PET")
    with pytest.raises(UsageError, match="begin with 0 for the background"):
        build_small(sound, labels={"1": "x"})
    with pytest.raises(UsageError, match="choose 1 to 3 folds"):
        build_small(sound, folds=4)


def test_an_image_among_the_labels_does_not_become_thousands_of_structures(sound: Path) -> None:
    save(sound / "labels/c.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) * 10)

    (problem,) = problems_of(lambda: build_small(sound))

    assert problem.startswith("labels/c.nii.gz: values ")
    assert len(problem) < 150


# --- write


def test_a_manifest_has_one_line_for_each_case_and_ends_with_a_newline(sound: Path) -> None:
    write_document(document(row("a"), row("b", subject="müller")), sound / "m.json")

    lines = (sound / "m.json").read_text(encoding="utf-8").split("\n")

    assert [line.strip()[:30] for line in lines if "images/" in line] == [
        '{"image": "images/a.nii.gz", "',
        '{"image": "images/b.nii.gz", "',
    ]
    assert "müller" in lines[-4]
    assert lines[-2:] == ["}", ""]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_a_manifest_that_was_read_is_written_as_it_was(path: Path, tmp_path: Path) -> None:
    write_manifest(load_manifest(path), tmp_path / "m.json")
    assert (tmp_path / "m.json").read_bytes() == path.read_bytes()


def test_a_document_is_the_same_after_a_manifest_was_made_of_it() -> None:
    files = ["images/p.nii.gz", "images/q.nii.gz"]
    whole = two_channels(channels={"0": "T1", "1": "T2"}, description="d", reference="r") | {
        "training": [row("p", case_id="x", image=files, fold=0, sha256={"image": "0" * 64})],
        "test": [{"image": ["t0.nii", "t1.nii"], "subject": "t"}],
    }
    assert manifest_from_document(whole, Path("/data")).to_document() == whole


def test_a_manifest_without_some_cases_closes_up_the_folds_they_leave_empty() -> None:
    rows = [row(case_id, fold=fold) for fold, case_id in enumerate("abc")]
    rest = manifest_from_document(document(*rows), Path("/data")).without({"b"})
    assert rest.to_document()["training"] == [rows[0], rows[2] | {"fold": 1}]


def test_a_manifest_is_not_overwritten_unless_asked(sound: Path) -> None:
    write_document(document(row("a")), sound / "m.json")

    with pytest.raises(OutputError, match="exists"):
        write_document(document(row("b")), sound / "m.json")

    assert load_manifest(sound / "m.json").cases[0].case_id == "a"
    write_document(document(row("b")), sound / "m.json", overwrite=True)
    assert load_manifest(sound / "m.json").cases[0].case_id == "b"


def test_a_document_that_could_not_be_read_again_is_not_written(sound: Path) -> None:
    with pytest.raises(ManifestError, match=r"images/a\.nii\.gz: named 2 times"):
        write_document(document(row("a"), row("a")), sound / "m.json")

    assert not list(sound.glob("*.json*"))


def test_folders_above_a_manifest_are_made_unless_a_file_is_in_the_way(tmp_path: Path) -> None:
    write_document(document(row("a")), tmp_path / "new/folder/m.json")

    assert (tmp_path / "new/folder/m.json").is_file()
    with pytest.raises(OutputError, match=r"m\.json: cannot be made"):
        write_document(document(row("a")), tmp_path / "new/folder/m.json/n.json")


# --- datalist


@pytest.fixture
def three_folds(tmp_path: Path) -> Path:
    rows = [row(f"c{n}", fold=n % 3) for n in range(6)]
    write_document(document(*rows, test=[{"image": "t.nii.gz", "subject": "t"}]), tmp_path / "m.json")
    return tmp_path / "m.json"


def case_ids(path: Path, fold: int, part: str) -> list[str]:
    return [one["case_id"] for one in datalist(path, fold=fold, part=part)]


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_training_and_validation_share_no_case_and_leave_none_out(three_folds: Path, fold: int) -> None:
    training, validation = case_ids(three_folds, fold, "training"), case_ids(three_folds, fold, "validation")

    assert sorted(training + validation) == ["c0", "c1", "c2", "c3", "c4", "c5"]
    assert validation == [f"c{fold}", f"c{fold + 3}"]


def test_fold_minus_one_trains_on_all_and_watches_fold_0(three_folds: Path) -> None:
    assert case_ids(three_folds, -1, "training") == case_ids(three_folds, -1, "all") == [f"c{n}" for n in range(6)]
    assert case_ids(three_folds, -1, "validation") == ["c0", "c3"]


def test_rows_hold_absolute_paths_and_a_test_case_may_lack_a_label(three_folds: Path) -> None:
    root = three_folds.parent

    assert datalist(three_folds, fold=0, part="test") == [
        {"image": str(root / "t.nii.gz"), "case_id": "t", "subject": "t"}
    ]
    assert datalist(str(three_folds), data_root=str(root / "x"), fold=0, part="validation")[0] == {
        "image": str(root / "x/images/c0.nii.gz"),
        "label": str(root / "x/labels/c0.nii.gz"),
        "case_id": "c0",
        "subject": "subject of c0",
    }


@pytest.mark.parametrize("part", ["training", "validation"])
def test_an_unknown_fold_is_refused_with_the_folds_there_are(three_folds: Path, part: str) -> None:
    with pytest.raises(UsageError, match="has no fold 3; its folds are 0, 1, 2, and -1 for all"):
        datalist(three_folds, fold=3, part=part)


def test_an_unknown_part_and_an_empty_part_are_refused(three_folds: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="part 'valid' is unknown; the parts are training, validation, all, test"):
        datalist(three_folds, fold=0, part="valid")
    write_document(document(row("a", fold=0)), tmp_path / "one.json")
    with pytest.raises(UsageError, match="part training of fold 0 holds no case"):
        datalist(tmp_path / "one.json", fold=0, part="training")


# --- real data


def test_the_real_defects_in_one_flat_folder_are_refused_with_one_line_each(real_data: Path) -> None:
    problems = problems_of(lambda: build_small(real_data / "hippocampus_defects"))

    assert problems == (
        "foreign_ct_label_281_512x512x94.nii.gz: looks like a label (whole numbers 0 to 1) without image; "
        "put its image beside it and name the label like the image plus _seg, or take it away.",
        "image_without_label_118.nii.gz: looks like an image (130 distinct values) without label; "
        "put its label beside it as image_without_label_118_seg, or take it away.",
        "label_without_image_010.nii.gz: looks like a label (whole numbers 0 to 2) without image; "
        "put its image beside it and name the label like the image plus _seg, or take it away.",
    )


@pytest.fixture
def real_defects(hippocampus: Path, real_data: Path, tmp_path: Path) -> Path:
    """Return four good cases with the three real defects among them."""
    defective = real_data / "hippocampus_defects"
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for number in ("001", "003", "004", "243"):
            shutil.copy(hippocampus / folder / f"hippocampus_{number}.nii.gz", tmp_path / folder)
    shutil.copy(hippocampus / "images/hippocampus_006.nii.gz", tmp_path / "images/hippocampus_281.nii.gz")
    foreign = defective / "foreign_ct_label_281_512x512x94.nii.gz"
    shutil.copy(foreign, tmp_path / "labels/hippocampus_281.nii.gz")
    shutil.copy(defective / "image_without_label_118.nii.gz", tmp_path / "images/hippocampus_118.nii.gz")
    shutil.copy(defective / "label_without_image_010.nii.gz", tmp_path / "labels/hippocampus_010.nii.gz")
    return tmp_path


def test_the_real_defects_among_good_cases_are_refused_with_one_line_each(real_defects: Path) -> None:
    assert problems_of(lambda: build_small(real_defects)) == (
        "labels/hippocampus_010.nii.gz: label without image in images/; add it or take the label away.",
        "images/hippocampus_118.nii.gz: image without label in labels/; add it or take the image away.",
        "labels/hippocampus_281.nii.gz: on another grid than images/hippocampus_281.nii.gz: "
        "shape (512, 512, 94) instead of (35, 52, 34); use the label drawn on this image.",
    )


def test_a_written_manifest_that_names_the_real_defects_is_refused_with_one_line_each(real_defects: Path) -> None:
    numbers = ("001", "003", "004", "010", "118", "243", "281")
    write_document(document(*(row(f"hippocampus_{number}") for number in numbers)), real_defects / "m.json")

    problems = problems_of(lambda: check_manifest(load_manifest(real_defects / "m.json")))

    assert [problem.split(": ")[:2] for problem in problems] == [
        ["images/hippocampus_010.nii.gz", "there is no such file; restore it or take its case out of the manifest."],
        ["labels/hippocampus_118.nii.gz", "there is no such file; restore it or take its case out of the manifest."],
        ["labels/hippocampus_281.nii.gz", "on another grid than images/hippocampus_281.nii.gz"],
    ]


@pytest.mark.parametrize(("name", "cases"), [("hippocampus", 199), ("head_neck_ct", 83), ("chaos_ct", 1)])
def test_the_shipped_manifests_describe_the_real_data(real_data: Path, name: str, cases: int) -> None:
    manifest = load_manifest(SHIPPED / f"{name}.json", real_data / name)

    check_manifest(manifest)

    assert len(manifest.cases) == cases


def test_the_shipped_hippocampus_manifest_is_what_build_makes(hippocampus: Path) -> None:
    built = build_small(hippocampus, folds=5)

    shipped = json.loads((SHIPPED / "hippocampus.json").read_text(encoding="utf-8"))
    assert (built["training"], built["labels"]) == (shipped["training"], shipped["labels"])


def test_the_shipped_hippocampus_folds_keep_both_sides_of_a_subject_together() -> None:
    manifest = load_manifest(SHIPPED / "hippocampus.json")

    subjects = {(int(case.case_id[-3:]) + 1) // 2: case.subject for case in manifest.cases}
    assert all(case.subject == subjects[(int(case.case_id[-3:]) + 1) // 2] for case in manifest.cases)
    assert sorted(Counter(case.fold for case in manifest.cases).values()) == [39, 40, 40, 40, 40]


def test_the_shipped_head_and_neck_folds_are_the_published_split(real_data: Path) -> None:
    split = json.loads((real_data / "head_neck_ct/split.json").read_text(encoding="utf-8"))

    assert case_ids(SHIPPED / "head_neck_ct.json", 0, "validation") == split["validation"]
    assert case_ids(SHIPPED / "head_neck_ct.json", 0, "training") == split["training"]


def test_the_shipped_manifests_hold_no_path_of_a_machine() -> None:
    for path in SHIPPED.glob("*.json"):
        assert not any(name in path.read_text(encoding="utf-8") for name in ("/work", "/home", "shared/data"))


# --- several channels ---------------------------------------------------------------------------------------------


def two_channels(**fields: Any) -> dict[str, Any]:
    image = {"image": ["images/a_t1.nii.gz", "images/a_t2.nii.gz"], "case_id": "a"}
    return document(row("a", **image), modality={"0": "MRI", "1": "MRI"}, **fields)


def test_a_case_of_several_channels_names_a_file_for_each() -> None:
    manifest = manifest_from_document(two_channels(channels={"0": "T1", "1": "T2"}), Path("/data"))
    assert manifest.channel_names == ("T1", "T2")
    assert [path.name for path in manifest.cases[0].channels] == ["a_t1.nii.gz", "a_t2.nii.gz"]
    assert len(manifest.cases[0].files) == 3


def test_channels_go_into_the_datalist_as_a_list(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(two_channels()), encoding="utf-8")
    (only,) = datalist(path, fold=0, part="all")
    assert [Path(file).name for file in only["image"]] == ["a_t1.nii.gz", "a_t2.nii.gz"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"modality": {"0": "MRI"}}, "2 files for an image of 1 channels"),
        ({"modality": {"0": "MRI", "1": "CT"}}, "all CT or all MRI"),
        ({"modality": {"0": "MRI", "2": "MRI"}}, "channels are 0, 1, 2, ... in this order"),
        ({"channels": {"0": "T1"}}, "expected a name for each of 0, 1"),
    ],
)
def test_channels_that_contradict_the_modality_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ManifestError, match=re.escape(problem)):
        manifest_from_document(two_channels() | fields, Path("/data"))
