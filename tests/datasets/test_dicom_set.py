"""Archives of DICOM studies as data sets: what was drawn on a series comes back through the manifest as it was."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from tests.dicom_files import stack, write_all
from voxelgate.apps.cli.main import app
from voxelgate.core.errors import InputError, ManifestError
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.build_manifest import build_manifest, write_manifest
from voxelgate.datasets.check_manifest import checked_manifest, image_content
from voxelgate.datasets.manifest import Manifest, datalist, load_manifest, manifest_from_document
from voxelgate.datasets.survey import survey
from voxelgate.dicom.read.series import Series, scan_dicom
from voxelgate.dicom.read.volume import read_series
from voxelgate.dicom.write.rtstruct import write_rtstruct
from voxelgate.dicom.write.seg import write_seg
from voxelgate.dicom.write.segmented import Algorithm, SegmentedSeries
from voxelgate.dicom.write.sources import source_of
from voxelgate.images.volumes import write_label_map
from voxelgate.segmentation.cases import find_cases
from voxelgate.training.seen import contents_of
from voxelgate.transforms.io import LoadLabeld

TABLE = LabelTable(("background", "liver", "left kidney", "spleen"))
ALGORITHM = Algorithm("reader", "1", "5e" * 32)
SHAPE = (9, 8, 6)


def series_in(folder: Path, seed: int, *, person: str = "", modality: str = "CT") -> Series:
    """Write a series of noise and find it again."""
    stored = np.random.default_rng(seed).integers(0, 2000, (SHAPE[2], SHAPE[1], SHAPE[0])).astype(np.int16)
    uids = {keyword: generate_uid() for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")}
    mr = {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"} if modality == "MR" else {}
    folder.mkdir(parents=True, exist_ok=True)
    write_all(stack(stored, PatientID=person or f"P-{seed}", **uids, **mr), folder, name=f"{seed}_{{}}.dcm".format)
    wanted = uids["SeriesInstanceUID"]
    (found,) = [series for series in scan_dicom(folder) if wanted in series.series_uids]
    return found


def drawn(seed: int, values: Sequence[int] = (1, 2, 3)) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    rng = np.random.default_rng(seed)
    for value in values:
        labels[rng.random(SHAPE) < 0.2] = value
    return labels


def draw(path: Path, series: Series, labels: np.ndarray, *, table: LabelTable = TABLE, is_seg: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    segmented = SegmentedSeries(labels, series.grid, table, source_of(series), ALGORITHM)
    write_seg(path, segmented) if is_seg else write_rtstruct(path, segmented)


def archive(folder: Path, *, is_seg: bool = True, cases: int = 3) -> dict[str, np.ndarray]:
    """Write studies with labels; return the labels by case."""
    labels_of = {}
    for seed in range(cases):
        series = series_in(folder / f"study{seed}" / "ct", seed)
        labels_of[series.series_id] = drawn(seed)
        draw(folder / f"study{seed}" / "labels" / "1-1.dcm", series, labels_of[series.series_id], is_seg=is_seg)
    return labels_of


def loaded(manifest: Manifest) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return image and label of every case as a config of training reads them."""
    write_manifest(manifest, manifest.data_root / "manifest.json", overwrite=True)
    steps = Compose(
        [
            LoadImaged("image", reader="voxelgate.VolumeReader"),
            EnsureChannelFirstd("image"),
            LoadLabeld("label", highest=len(manifest.labels.names) - 1),
        ]
    )
    rows = datalist(manifest.data_root / "manifest.json", fold=-1)
    found = {row["case_id"]: steps(row) for row in rows}
    return {name: (np.asarray(one["image"][0]), np.asarray(one["label"][0])) for name, one in found.items()}


def problems_of(folder: Path, **options: object) -> str:
    with pytest.raises(ManifestError) as caught:
        build_manifest(folder, **options)  # type: ignore[arg-type]
    return " ".join(caught.value.problems)


@pytest.mark.parametrize("is_seg", [True, False], ids=["SEG", "RTSTRUCT"])
def test_labels_come_back_equal_through_an_archive_and_its_manifest(tmp_path: Path, *, is_seg: bool) -> None:
    labels_of = archive(tmp_path, is_seg=is_seg)

    manifest = build_manifest(tmp_path)

    assert manifest.labels.names == TABLE.names
    assert (manifest.modality, manifest.folds) == ("CT", (0, 1, 2))
    found = loaded(manifest)
    assert found.keys() == labels_of.keys()
    volumes = {series.series_id: read_series(series).voxels for series in scan_dicom(tmp_path) if series.is_usable}
    for case_id, (image, labels) in found.items():
        assert np.array_equal(labels, labels_of[case_id])
        assert np.array_equal(image, volumes[case_id])


def test_series_and_labels_may_lie_in_one_folder(tmp_path: Path) -> None:
    labels_of = {}
    for seed in range(2):
        series = series_in(tmp_path, seed)
        labels_of[series.series_id] = drawn(seed)
        draw(tmp_path / f"seg{seed}.dcm", series, labels_of[series.series_id])

    found = loaded(build_manifest(tmp_path))

    assert all(np.array_equal(found[case_id][1], labels) for case_id, labels in labels_of.items())


def test_a_manifest_of_an_archive_holds_no_name_and_no_uid(tmp_path: Path) -> None:
    archive(tmp_path)

    document = json.dumps(build_manifest(tmp_path).to_document())

    assert "1.2.826" not in document
    assert "P-0" not in document
    assert "SECRET" not in document


def test_a_manifest_of_an_archive_is_read_surveyed_and_segmented(tmp_path: Path) -> None:
    labels_of = archive(tmp_path)
    write_manifest(build_manifest(tmp_path), tmp_path / "manifest.json")

    manifest = load_manifest(tmp_path / "manifest.json")

    assert not checked_manifest(manifest).problems
    assert survey(manifest, cache=tmp_path / "cache").fingerprint.cases == 3
    assert contents_of(manifest.cases) == {case.case_id: image_content(case) for case in manifest.cases}
    cases = find_cases(tmp_path / "manifest.json")
    assert {case.case_id for case in cases} == labels_of.keys()
    assert all(isinstance(case.image, Series) for case in cases)


def test_the_command_says_what_it_took_of_an_archive(tmp_path: Path) -> None:
    archive(tmp_path, cases=2)

    done = CliRunner().invoke(app, ["manifest", str(tmp_path), "--labels", "spleen"])

    assert done.exit_code == 0, done.output
    assert "2 cases in 2 folds; labels background, spleen\n" in done.output
    assert "passed over" not in done.output


def test_results_are_measured_against_the_labels_of_an_archive(tmp_path: Path) -> None:
    labels_of = archive(tmp_path / "data")
    manifest = build_manifest(tmp_path / "data")
    write_manifest(manifest, tmp_path / "data" / "manifest.json")
    (tmp_path / "results").mkdir()
    for series in scan_dicom(tmp_path / "data"):
        if series.is_usable:
            write_label_map(
                tmp_path / "results" / f"{series.series_id}.nii.gz", labels_of[series.series_id], series.grid
            )

    done = CliRunner().invoke(
        app,
        [
            "evaluate",
            str(tmp_path / "results"),
            str(tmp_path / "data" / "manifest.json"),
            "--csv",
            str(tmp_path / "s.csv"),
        ],
    )

    assert done.exit_code == 0, done.output
    rows = (tmp_path / "s.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 3 * 3
    assert {row.split(",")[rows[0].split(",").index("dice")] for row in rows[1:]} == {"1"}


def test_people_are_told_apart_by_their_hashed_ids(tmp_path: Path) -> None:
    for seed, person in ((1, "A"), (2, "B"), (3, "A")):
        series = series_in(tmp_path / str(seed), seed, person=person)
        draw(tmp_path / f"{seed}.dcm", series, drawn(seed))

    manifest = build_manifest(tmp_path)

    assert len(manifest.cases) == 3
    assert len({case.subject for case in manifest.cases}) == len(manifest.folds) == 2


def test_structures_of_one_code_are_one_whatever_they_are_called(tmp_path: Path) -> None:
    coded = LabelTable(("background", "hepar", "spleen"), ((1, TABLE.coding(1)),))
    plain = LabelTable(("background", "Liver", "Spleen"))
    for seed, table in enumerate((plain, coded, plain)):
        series = series_in(tmp_path / str(seed), seed)
        draw(tmp_path / f"{seed}.dcm", series, drawn(seed, (1, 2)), table=table)

    manifest = build_manifest(tmp_path)

    assert manifest.labels.names == ("background", "Liver", "Spleen"), "the spelling that most files have"


def test_structures_of_one_code_that_stand_in_one_file_are_told_apart_by_their_names(tmp_path: Path) -> None:
    codings = ((1, TABLE.coding(1)), (2, TABLE.coding(1)))
    for seed in (1, 2):
        series = series_in(tmp_path / str(seed), seed)
        table = LabelTable(("background", "lesion a", "lesion b"), codings)
        draw(tmp_path / f"{seed}.dcm", series, drawn(seed, (1, 2)), table=table)

    assert build_manifest(tmp_path).labels.names == ("background", "lesion a", "lesion b")


def test_numbers_that_differ_from_file_to_file_are_brought_together_by_name(tmp_path: Path) -> None:
    other_order = LabelTable(("background", "spleen", "liver"))
    first, second = (series_in(tmp_path / str(seed), seed) for seed in (1, 2))
    draw(tmp_path / "1.dcm", first, drawn(1, (1, 2)), table=LabelTable(("background", "liver", "spleen")))
    draw(tmp_path / "2.dcm", second, drawn(2, (1, 2)), table=other_order)

    manifest = build_manifest(tmp_path)

    found = loaded(manifest)
    assert manifest.labels.names == ("background", "liver", "spleen")
    assert np.array_equal(found[first.series_id][1], drawn(1, (1, 2)))
    assert np.array_equal(found[second.series_id][1], np.array([0, 2, 1])[drawn(2, (1, 2))])


def test_only_structures_that_are_named_are_taken_and_the_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels_of = archive(tmp_path)

    manifest = build_manifest(tmp_path, labels={"0": "background", "1": "Spleen", "2": "kidney left"})

    assert manifest.labels.names == ("background", "Spleen", "kidney left")
    assert "1 structures count as background: liver" in caplog.text
    for case_id, (_, labels) in loaded(manifest).items():
        assert np.array_equal(labels, np.array([0, 0, 2, 1])[labels_of[case_id]])


def test_names_that_nothing_is_called_are_refused(tmp_path: Path) -> None:
    archive(tmp_path, cases=1)

    assert "holds a structure that is wanted" in problems_of(tmp_path, labels={"0": "background", "1": "pancreas"})


def test_what_cannot_be_taken_is_left_out_with_a_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels_of = archive(tmp_path, cases=2)
    shutil.rmtree(tmp_path / "study0" / "ct")
    other = series_in(tmp_path / "study2", 7)
    draw(tmp_path / "study2" / "a.dcm", other, drawn(7))
    draw(tmp_path / "study2" / "b.dcm", other, drawn(7), is_seg=False)

    manifest = build_manifest(tmp_path)

    assert {case.case_id for case in manifest.cases} < labels_of.keys()
    assert "1-1.dcm (SEG) was left out: it names no series that is here" in caplog.text
    assert f"{other.series_id} was left out: 2 files were drawn on it" in caplog.text


def test_ct_and_mr_are_not_mixed_unless_one_is_chosen(tmp_path: Path) -> None:
    for seed, modality in ((1, "CT"), (2, "MR")):
        series = series_in(tmp_path / modality, seed, modality=modality)
        draw(tmp_path / f"{modality}.dcm", series, drawn(seed))

    assert "images of CT and MRI" in problems_of(tmp_path)
    assert [case.case_id[:2] for case in build_manifest(tmp_path, modality="MRI").cases] == ["mr"]


def test_a_series_that_is_gone_or_a_label_that_was_changed_is_named(tmp_path: Path) -> None:
    archive(tmp_path, cases=2)
    manifest = build_manifest(tmp_path)
    first, second = manifest.cases
    assert second.label is not None
    shutil.copy(first.label, second.label)  # type: ignore[arg-type]
    shutil.rmtree(first.image.parent)

    problems = checked_manifest(manifest).problems

    assert any(f"{first.case_id}: is no series" in one or "does not exist" in one for one in problems)
    assert any("SHA-256 differs" in one for one in problems)
    write_manifest(manifest, tmp_path / "manifest.json")
    with pytest.raises(InputError, match=first.case_id):
        find_cases(tmp_path / "manifest.json")


def test_segments_of_a_value_without_a_name_and_without_a_label_are_refused() -> None:
    row = {"image": "a/ct-0123456789ab", "subject": "s", "segments": {"1": 2}}
    head = {"name": "n", "licence": "l", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}

    with pytest.raises(ManifestError) as caught:
        manifest_from_document({**head, "training": [{**row, "label": "a.dcm"}], "test": [row]}, Path("/data"))

    assert "segments of the value 2" in " ".join(caught.value.problems)
    assert "has segments, but no label" in " ".join(caught.value.problems)
