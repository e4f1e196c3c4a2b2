"""What a run does with its cases: skips, repeats and refuses by what the ledger says; nothing overwrites anything."""

import csv
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.batch_bundle import make_moody_bundle, save_case
from tests.batch_runs import tree
from tests.conftest import Run
from tests.planted import ct_series, deleting, setting, write
from tests.volume_files import metaimage_bytes, nrrd_bytes
from voxelgate.bundle.checksums import seal
from voxelgate.core.errors import InputError, OutputError, UsageError
from voxelgate.core.files import locked
from voxelgate.core.findings import Allow
from voxelgate.dicom.read.series import scan_dicom
from voxelgate.dicom.read.volume import read_series
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.segmentation.batch.case_table import INPUTS_NAME, TABLE_NAME
from voxelgate.segmentation.batch.engines import ExecutorEngine
from voxelgate.segmentation.batch.ledger import LEDGER_NAME, Ledger, read_ledger
from voxelgate.segmentation.batch.run_batch import cases_in, segment_cases, setup_of
from voxelgate.segmentation.batch.run_batch import segment as segment_folder
from voxelgate.segmentation.batch.runner import run_cases
from voxelgate.segmentation.batch.status import status
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.report import CaseReport, CaseStatus


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_moody_bundle(tmp_path_factory.mktemp("bundles") / "moody")


Segment = Callable[..., list[CaseReport]]


@pytest.fixture
def segment(tmp_path: Path, bundle: Path) -> Segment:
    """Segment inputs into `out` in this process."""

    def run_all(*inputs: Path, root: Path = bundle, out: Path = tmp_path / "out", **asked: Any) -> list[CaseReport]:
        return list(segment_folder(root, inputs, out, workers="serial", **asked))

    return run_all


def statuses(reports: Sequence[CaseReport]) -> dict[str, CaseStatus]:
    return {report.case_id: report.status for report in reports}


def written_at(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in out.rglob("*.nii.gz")}


def test_a_batch_goes_on_after_a_bad_case_and_names_it(tmp_path: Path, segment: Segment) -> None:
    for name in "ac":
        save_case(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"no image")

    reports = segment(tmp_path / "in")

    assert statuses(reports) == {"a": CaseStatus.DONE, "b": CaseStatus.REJECTED, "c": CaseStatus.DONE}
    assert "b.nii.gz" in str(reports[1].findings[0])
    assert sorted(written_at(tmp_path / "out")) == ["a.nii.gz", "c.nii.gz"]
    entries, runs = read_ledger(tmp_path / "out")
    assert [entry.report for entry in entries] == reports
    assert (len(runs), runs[0].engine, runs[0].bundle) == (1, "serial", "bright_ct 1.0.0")
    assert all(len(entry.versions.input_sha256) == 64 for entry in entries)


def test_a_batch_of_no_input_is_refused_before_its_folder_is_made(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match="no input is given"):
        segment_folder(bundle, [], tmp_path / "out", workers="serial")

    assert not (tmp_path / "out").exists()


def test_what_is_done_is_not_done_again_and_what_was_refused_is_tried_again(tmp_path: Path, segment: Segment) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"no image")
    first = segment(tmp_path / "in")
    before = written_at(tmp_path / "out")
    save_case(tmp_path / "in" / "b.nii.gz", seed=1)

    second = segment(tmp_path / "in")

    assert second[0] == first[0]
    assert statuses(second) == {"a": CaseStatus.DONE, "b": CaseStatus.DONE}
    assert written_at(tmp_path / "out").items() >= before.items()


def test_done_cases_are_done_again_only_where_that_is_asked_for(tmp_path: Path, segment: Segment) -> None:
    image = save_case(tmp_path / "a.nii.gz")
    segment(image)
    first = written_at(tmp_path / "out")

    segment(image, overwrite=True)
    kept = written_at(tmp_path / "out")
    reports = segment(image, again=True)

    assert kept == first
    assert statuses(reports) == {"a": CaseStatus.DONE}
    assert written_at(tmp_path / "out") != first


def test_results_that_somebody_changed_stay_though_their_case_is_to_be_done_again(
    tmp_path: Path, segment: Segment
) -> None:
    image = save_case(tmp_path / "a.nii.gz")
    segment(image)
    (tmp_path / "out" / "a.nii.gz").write_bytes(b"corrected by hand")

    (kept,) = segment(image, again=True)
    (replaced,) = segment(image, again=True, overwrite=True)

    assert "was changed since it was written" in str(kept.findings[0])
    assert replaced.status is CaseStatus.DONE


def test_touched_files_are_read_again_but_their_case_is_not_done_again(tmp_path: Path, segment: Segment) -> None:
    image = save_case(tmp_path / "in" / "a.nii.gz")
    first = segment(tmp_path / "in")
    before = written_at(tmp_path / "out")
    os.utime(image, (1, 1))
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(tmp_path / "copy", tmp_path / "out")
    before = written_at(tmp_path / "out")

    assert segment(tmp_path / "in") == first
    assert written_at(tmp_path / "out") == before


@pytest.mark.parametrize("what", ["input", "bundle", "option"])
def test_a_changed_input_bundle_or_option_means_that_the_case_is_done_again(
    tmp_path: Path, segment: Segment, what: str
) -> None:
    root = make_moody_bundle(tmp_path / "bundle")
    image = save_case(tmp_path / "in" / "a.nii.gz")
    segment(tmp_path / "in", root=root)
    before, asked = tree(tmp_path / "out"), {}
    inode = written_at(tmp_path / "out")
    if what == "input":
        save_case(image, seed=5)
    if what == "bundle":
        (root / "plan.json").write_text("{}\n", "utf-8")
        seal(root)
    if what == "option":
        asked = {"check_flips": True}

    reports = segment(tmp_path / "in", root=root, **asked)

    assert statuses(reports) == {"a": CaseStatus.DONE}
    assert written_at(tmp_path / "out") != inode
    assert (tree(tmp_path / "out") == before) is (what != "input")


def test_a_deleted_result_is_made_again_and_told(
    tmp_path: Path, segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    segment(tmp_path / "in")
    wanted = tree(tmp_path / "out")
    (tmp_path / "out" / "a.nii.gz").unlink()

    with caplog.at_level("INFO"):
        reports = segment(tmp_path / "in")

    assert statuses(reports) == {"a": CaseStatus.DONE}
    assert "a.nii.gz" in caplog.text
    assert tree(tmp_path / "out") == wanted


def test_a_result_that_somebody_changed_is_kept_until_overwriting_is_asked_for(
    tmp_path: Path, segment: Segment
) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    segment(tmp_path / "in")
    wanted = tree(tmp_path / "out")
    (tmp_path / "out" / "a.nii.gz").write_bytes(b"corrected by hand")

    refused = segment(tmp_path / "in")
    kept = (tmp_path / "out" / "a.nii.gz").read_bytes()
    replaced = segment(tmp_path / "in", overwrite=True)

    assert statuses(refused) == {"a": CaseStatus.REJECTED}
    assert "was changed since it was written" in str(refused[0].findings[0])
    assert kept == b"corrected by hand"
    assert statuses(replaced) == {"a": CaseStatus.DONE}
    assert tree(tmp_path / "out") == wanted


def test_a_file_that_stood_there_before_is_never_taken_for_ours(tmp_path: Path, segment: Segment) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").write_bytes(b"somebody's")

    reports = [*segment(tmp_path / "in"), *segment(tmp_path / "in")]

    assert [report.status for report in reports] == [CaseStatus.REJECTED] * 2
    assert all("exists already" in str(report.findings[0]) for report in reports)
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() == b"somebody's"


def test_files_of_one_name_from_two_runs_get_two_names_for_good(tmp_path: Path, segment: Segment) -> None:
    first = save_case(tmp_path / "p1" / "scan.nii.gz", seed=1)
    second = save_case(tmp_path / "p2" / "SCAN.nii.gz", seed=2)

    (one,) = segment(first)
    (two,) = segment(second)
    both = segment(second, first)

    assert one.case_id == "scan"
    assert two.case_id.startswith("SCAN-")
    assert {report.case_id for report in both} == {one.case_id, two.case_id}
    assert len(written_at(tmp_path / "out")) == 2


def test_files_of_equal_content_get_a_result_each(tmp_path: Path, segment: Segment) -> None:
    for patient in ("p1", "p2"):
        save_case(tmp_path / "in" / patient / "scan.nii.gz")

    reports = segment(tmp_path / "in")

    assert statuses(reports) == {"p1/scan": CaseStatus.DONE, "p2/scan": CaseStatus.DONE}


def test_a_volume_file_that_is_named_like_a_series_gets_a_name_of_its_own(tmp_path: Path, segment: Segment) -> None:
    write(ct_series(), tmp_path / "in")
    (series,) = scan_dicom(tmp_path / "in")
    volume = read_series(series)
    converted = tmp_path / f"{series.series_id}.nii.gz"
    nib.save(nib.Nifti1Image(volume.voxels, volume.grid.affine), converted)

    reports = segment(tmp_path / "in", converted)

    assert [report.status for report in reports] == [CaseStatus.DONE] * 2
    assert len({report.case_id for report in reports}) == 2
    assert len(written_at(tmp_path / "out")) == 2


def test_two_patients_with_one_series_uid_get_a_result_each(tmp_path: Path, segment: Segment) -> None:
    for patient in ("A", "B"):
        write(setting("PatientID", patient)(ct_series()), tmp_path / patient)
    for place in ("C", "D"):
        anonymous = ct_series()
        for keyword in ("PatientID", "PatientName", "PatientBirthDate"):
            anonymous = deleting(keyword)(anonymous)
        write(anonymous, tmp_path / place)

    reports = [report for name in "ABCD" for report in segment(tmp_path / name)]

    assert [report.status for report in reports] == [CaseStatus.DONE] * 4
    assert len({report.case_id for report in reports}) == 4
    assert len(written_at(tmp_path / "out")) == 4


def test_kinds_that_are_not_asked_for_any_more_stay_as_long_as_they_are_true(tmp_path: Path, segment: Segment) -> None:
    write(ct_series(), tmp_path / "in")
    both = (Output.NIFTI, Output.SEG)
    (first,) = segment(tmp_path / "in", outputs=both)

    segment(tmp_path / "in", outputs=(Output.NIFTI,))
    kept = first.outputs["seg"].exists()
    datasets = ct_series()
    for dataset in datasets:
        dataset.PixelData = np.roll(np.frombuffer(dataset.PixelData, "<u2"), 3).tobytes()
    write(datasets, tmp_path / "in")
    segment(tmp_path / "in", outputs=(Output.NIFTI,))

    assert kept
    assert not first.outputs["seg"].exists()


def test_a_study_that_becomes_usable_is_no_bad_case_any_more(tmp_path: Path, segment: Segment) -> None:
    write(ct_series(1), tmp_path / "in")
    (refused,) = segment(tmp_path / "in")
    write(ct_series(), tmp_path / "in")

    (done,) = segment(tmp_path / "in")

    assert (refused.status, done.status) == (CaseStatus.REJECTED, CaseStatus.DONE)
    assert status(tmp_path / "out").bad == ()


def test_the_table_maps_cases_to_outputs_volumes_and_findings_and_holds_no_formula(
    tmp_path: Path, segment: Segment
) -> None:
    save_case(tmp_path / "in" / "=1+1.nii.gz")
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"")

    reports = {report.case_id: report for report in segment(tmp_path / "in")}

    with (tmp_path / "out" / TABLE_NAME).open(encoding="utf-8", newline="") as file:
        done, bad = csv.DictReader(file)
    assert (done["case"], done["status"], done["nifti"]) == ("'=1+1", "done", "'=1+1.nii.gz")
    assert float(done["femur ml"]) == pytest.approx(reports["=1+1"].volumes_ml["femur"], abs=1e-4)
    assert (bad["case"], bad["status"], bad["nifti"]) == ("bad", "rejected", "")
    assert bad["findings"] == str(reports["bad"].findings[0])


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, segment: Segment) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "out").mkdir()

    with locked(tmp_path / "out"), pytest.raises(OutputError, match="another run works in this folder"):
        segment(tmp_path / "in")

    assert statuses(segment(tmp_path / "in")) == {"a": CaseStatus.DONE}


def test_an_output_folder_that_cannot_be_made_ends_the_run(tmp_path: Path, segment: Segment) -> None:
    (tmp_path / "file").write_bytes(b"a file")
    image = save_case(tmp_path / "a.nii.gz")

    with pytest.raises(OutputError, match="is a file, not a folder"):
        segment(image, out=tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be made"):
        segment(image, out=tmp_path / "file" / "out")


def test_a_ledger_that_is_none_is_refused_and_left_as_it_is(tmp_path: Path, segment: Segment) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LEDGER_NAME).write_bytes(b"no database" * 100)

    with pytest.raises(OutputError, match="cannot be used"):
        segment(save_case(tmp_path / "a.nii.gz"))

    assert (tmp_path / "out" / LEDGER_NAME).read_bytes() == b"no database" * 100


def test_a_ledger_of_another_version_is_refused(tmp_path: Path, segment: Segment) -> None:
    image = save_case(tmp_path / "a.nii.gz")
    segment(image)
    with closing(sqlite3.connect(tmp_path / "out" / LEDGER_NAME)) as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(OutputError, match="version 99"):
        segment(image)


def test_no_space_ends_the_run_and_the_same_command_goes_on(
    tmp_path: Path, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        save_case(tmp_path / "in" / f"{name}.nii.gz")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("voxelgate.core.files.os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        segment(tmp_path / "in")
    monkeypatch.undo()

    assert not list((tmp_path / "out").glob("*.nii.gz"))
    assert status(tmp_path / "out").counts["waiting"] == 2
    assert set(statuses(segment(tmp_path / "in")).values()) == {CaseStatus.DONE}


def test_a_folder_in_the_place_of_a_result_refuses_its_case_alone(tmp_path: Path, segment: Segment) -> None:
    for name in "ab":
        save_case(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "out" / "a.nii.gz").mkdir(parents=True)

    reports = segment(tmp_path / "in")

    assert statuses(reports) == {"a": CaseStatus.REJECTED, "b": CaseStatus.DONE}
    assert "is a folder" in str(reports[0].findings[0])


def test_any_executor_gives_the_same_tree_in_any_order(tmp_path: Path, bundle: Path, segment: Segment) -> None:
    for name in "abcd":
        save_case(tmp_path / "in" / f"{name}.nii.gz", seed=ord(name))
    segment(tmp_path / "in")
    setup = setup_of(bundle, tmp_path / "other", Options())
    (tmp_path / "other").mkdir()

    with closing(Ledger(setup.out_dir)) as ledger:
        engine = ExecutorEngine(ThreadPoolExecutor(2), 2)
        reports = list(run_cases(iter([cases_in([tmp_path / "in"], setup).cases[::-1]]), setup, engine, ledger))

    assert {report.status for report in reports} == {CaseStatus.DONE}
    assert tree(tmp_path / "other") == tree(tmp_path / "out")


def test_a_bundle_that_changes_during_a_run_ends_it(tmp_path: Path, bundle: Path) -> None:
    setup = replace(setup_of(bundle, tmp_path / "out", Options(workers="serial")), bundle_sha256="0" * 64)

    with pytest.raises(Exception, match="changed while it was used"):
        list(segment_cases([cases_in([save_case(tmp_path / "a.nii.gz")], setup).cases], setup))


@pytest.mark.parametrize("name", ["threads:2", "processes:0", "processes:x", "processesx", "dask:", ""])
def test_an_engine_that_is_none_is_wrong_usage(tmp_path: Path, bundle: Path, name: str) -> None:
    image = save_case(tmp_path / "a.nii.gz")

    with pytest.raises(UsageError, match="expected serial, processes:N or dask:ADDRESS"):
        list(segment_folder(bundle, image, tmp_path / "out", workers=name))


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (
            Options(),
            '{"allow": [], "check_flips": false, "device": null, "outputs": ["nifti"], "runtime": null}',
        ),
        (
            Options(
                (Output.SEG, Output.NIFTI),
                True,
                (Allow.GAPS,),
                runtime=Runtime.EAGER,
                check_flips=True,
                attention=(0, 1),
                device="cpu",
            ),
            '{"allow": ["gaps"], "attention": [0, 1], "check_flips": true, "device": "cpu", '
            '"outputs": ["nifti", "seg"], "runtime": "eager"}',
        ),
    ],
    ids=["nothing", "all"],
)
def test_the_ledger_keeps_the_options_of_a_result_in_the_words_of_older_ledgers(
    tmp_path: Path, bundle: Path, asked: Options, kept: str
) -> None:
    setup = setup_of(bundle, tmp_path / "out", asked)
    others = replace(asked, workers="processes:4", timeout_s=1, attempts=1, max_memory_gib=1, hashed_names=True)

    assert setup.choices == kept
    assert replace(setup, options=others).choices == kept


def test_status_tells_what_was_done_and_why_the_rest_was_not(tmp_path: Path, segment: Segment, run: Run) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"no image")
    segment(tmp_path / "in")

    text, as_json = run("status", tmp_path / "out"), run("status", tmp_path / "out", "--json")

    assert text.returncode == 0
    assert "No run works in this folder." in text.stdout
    assert "1 done, 1 rejected" in text.stdout
    assert "b: rejected: b.nii.gz" in text.stdout
    assert '"done": 1' in as_json.stdout
    elsewhere = run("status", tmp_path / "in")
    assert elsewhere.returncode == 1
    assert "has no ledger.sqlite; name the folder that `voxelgate segment` wrote into." in elsewhere.stderr


def inputs_of(out: Path) -> dict[str, str]:
    with (out / INPUTS_NAME).open(encoding="utf-8", newline="") as file:
        return {row["case"]: row["input"] for row in csv.DictReader(file)}


def test_a_table_says_where_the_input_of_each_case_lies_of_a_series_its_first_file(
    tmp_path: Path, segment: Segment
) -> None:
    save_case(tmp_path / "in" / "a" / "ct.nii.gz")
    save_case(tmp_path / "in" / "b" / "ct.nii.gz", seed=1)
    write(ct_series(), tmp_path / "in" / "dicom")

    series = {report.case_id for report in segment(tmp_path / "in")} - {"a/ct", "b/ct"}

    first = min((tmp_path / "in" / "dicom").iterdir()).name
    assert inputs_of(tmp_path / "out") == {
        "a/ct": "../in/a/ct.nii.gz",
        "b/ct": "../in/b/ct.nii.gz",
        series.pop(): f"../in/dicom/{first}",
    }


def test_with_hashed_names_only_the_table_of_inputs_and_the_ledger_name_files(
    tmp_path: Path, segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    image = save_case(tmp_path / "in" / "mueller_hans" / "mueller_ct.nii.gz")
    save_case(tmp_path / "in" / "mueller_grete" / "mueller_ct.nii.gz", seed=1)
    (image.parent / "mueller_cut.nii.gz").write_bytes(image.read_bytes()[:1000])
    (image.parent / "mueller_other.nrrd").write_text("NRRD0004\ntype: short\n\n", "utf-8")
    (image.parent / "a.nrrd").write_bytes(nrrd_bytes({"data file": "mueller_1970.raw"}, b""))
    (image.parent / "b.nrrd").write_bytes(nrrd_bytes({"data file": "../mueller_hans/mueller_ct.nii.gz"}, b""))
    (image.parent / "c.mhd").write_bytes(metaimage_bytes({"Offset": "mueller"}, b"", "mueller_1970.raw"))
    (image.parent / "d.mha").write_bytes(metaimage_bytes(content=b"", data_file="mueller_2.raw"))

    reports = segment(tmp_path / "in", outputs=(Output.NIFTI, Output.PREVIEW), hashed_names=True)

    assert sorted(statuses(reports).values()) == ["done"] * 2 + ["rejected"] * 6
    assert all(len(report.case_id) == len("case-0123456789abcdef") for report in reports)
    texts = [
        path + text.decode(errors="replace") for path, text in tree(tmp_path / "out").items() if path != INPUTS_NAME
    ]
    texts += [report.to_json().replace(str(tmp_path), "") for report in reports] + [caplog.text]
    assert not any("mueller" in text for text in texts)
    place_of = inputs_of(tmp_path / "out")
    assert place_of.keys() == statuses(reports).keys()
    assert sorted(place_of.values()) == [
        f"../in/mueller_{name}"
        for name in (
            "grete/mueller_ct.nii.gz",
            *(f"hans/{name}" for name in ("a.nrrd", "b.nrrd", "c.mhd", "d.mha")),
            "hans/mueller_ct.nii.gz",
            "hans/mueller_cut.nii.gz",
            "hans/mueller_other.nrrd",
        )
    ]


@pytest.mark.parametrize("is_first", [True, False])
def test_an_output_folder_has_hashed_names_in_all_runs_or_in_none(
    tmp_path: Path, segment: Segment, is_first: bool
) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    segment(tmp_path / "in", hashed_names=is_first)

    with pytest.raises(OutputError, match=f"with{'' if is_first else 'out'} --hashed-names"):
        segment(tmp_path / "in", hashed_names=not is_first)


def test_a_ledger_of_the_version_before_goes_on(tmp_path: Path, segment: Segment) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    first = segment(tmp_path / "in")
    before = written_at(tmp_path / "out")
    with closing(sqlite3.connect(tmp_path / "out" / LEDGER_NAME)) as connection:
        connection.execute("ALTER TABLE cases DROP COLUMN input")
        connection.execute("ALTER TABLE runs DROP COLUMN hashed_names")
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    assert status(tmp_path / "out").counts["done"] == 1

    assert segment(tmp_path / "in") == first
    assert written_at(tmp_path / "out") == before
    assert inputs_of(tmp_path / "out") == {"a": "../in/a.nii.gz"}
