"""What is written of accepted, doubtful and refused results, what a run says of them, and ledgers of before."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from pydicom import dcmread

from tests.batch_bundle import save_case
from tests.batch_runs import tree
from tests.conftest import Run
from tests.planted import ct_series, write
from tests.threshold_bundle import make_threshold_bundle
from voxelgate.bundle.checksums import seal
from voxelgate.bundle.codes import propose_codes, write_codes
from voxelgate.core.errors import BundleError, UsageError
from voxelgate.core.verdict import Quality, Require, Verdict
from voxelgate.segmentation.batch.ledger import LEDGER_NAME, SCHEMA_VERSION, Ledger, read_inputs, read_ledger
from voxelgate.segmentation.batch.run_batch import segment as segment_folder
from voxelgate.segmentation.page import write_page
from voxelgate.segmentation.report import CaseReport, CaseStatus

KNOWN = {
    Verdict.ACCEPT: {"volume_ml": [1e-4, 1.0, 1e4]},
    Verdict.REVIEW: {"volume_ml": [1e-4, 1.0, 2.0], "largest_ml": 2.0},
    Verdict.REFUSE: {"volume_ml": [1e-4, 1e-4, 1e-4]},
}
"""What training has to have seen for the block of 2.1 ml to get this verdict."""

Judged = Callable[..., CaseReport]


def bundle_of(root: Path, verdict: Verdict, name: str = "femur", **further: object) -> Path:
    """Return a bundle that is sure of what it finds, and whose results get a verdict."""
    usual = {"cut": 1.0, "outside_main": 0.99, "away_mm": 1e4}
    known = {"structures": {name: KNOWN[verdict] | usual}}
    make_threshold_bundle(root, {"0": "background", "1": name}, trained_on=known, **further)
    weights = torch.load(root / "models" / "model.pt")
    torch.save({key: 100 * tensor for key, tensor in weights.items()}, root / "models" / "model.pt")
    seal(root)
    return root


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """Segment one image with a bundle whose results get a verdict."""
    image = save_case(tmp_path / "in" / "a.nii.gz", size=24)

    def one(verdict: Verdict, out: Path = tmp_path / "out", **asked: Any) -> CaseReport:
        root = tmp_path / str(verdict)
        if not root.exists():
            bundle_of(root, verdict)
        chosen = {"outputs": ("nifti", "preview"), "workers": "serial"} | asked
        (report,) = segment_folder(root, image, out, **chosen)
        return report

    return one


@pytest.mark.parametrize("require", Require)
@pytest.mark.parametrize("verdict", Verdict)
def test_a_result_is_written_if_it_is_as_good_as_required_and_else_shown_only(
    tmp_path: Path, judged: Judged, verdict: Verdict, require: Require
) -> None:
    report = judged(verdict, require=require)

    is_written = require is Require.ANY or (verdict, require) in {
        ("accept", "accept"),
        ("accept", "review"),
        ("review", "review"),
    }
    assert (report.status, report.verdict) == (CaseStatus.DONE, verdict)
    assert report.volumes_ml["femur"] > 2.0
    assert set(report.outputs) == ({"nifti", "preview"} if is_written else {"preview"})
    names = {name for name in tree(tmp_path / "out") if not name.endswith(".csv")}
    assert names == {"previews/a.webp"} | ({"a.nii.gz"} if is_written else set())
    told = [str(finding) for finding in report.findings if "so it was not written" in str(finding)]
    assert len(told) == (not is_written)


def test_a_refused_result_counts_as_done_and_is_not_done_again_but_with_another_require_it_is(judged: Judged) -> None:
    first = judged(Verdict.REFUSE)

    assert judged(Verdict.REFUSE) == first
    assert judged(Verdict.REFUSE, require="any").seconds != first.seconds


def test_files_of_a_refused_result_that_stand_from_a_run_that_took_any_are_removed_and_it_is_told(
    tmp_path: Path, judged: Judged
) -> None:
    judged(Verdict.REFUSE, require="any")

    report = judged(Verdict.REFUSE)

    assert set(tree(tmp_path / "out")) == {"previews/a.webp", "cases.csv", "inputs.csv"}
    assert "Files of an earlier run were removed: nifti." in str(report.findings[-1])


def test_without_previews_nothing_is_written_of_a_refused_result(tmp_path: Path, judged: Judged) -> None:
    assert judged(Verdict.REFUSE, outputs=("nifti",)).outputs == {}
    assert set(tree(tmp_path / "out")) == {"cases.csv", "inputs.csv"}


def test_an_input_that_is_rejected_has_no_verdict_and_its_neighbour_has(tmp_path: Path) -> None:
    save_case(tmp_path / "in" / "good.nii.gz", size=24)
    root = bundle_of(tmp_path / "b", Verdict.ACCEPT)
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no image")

    reports = {one.case_id: one for one in segment_folder(root, tmp_path / "in", tmp_path / "out", workers="serial")}

    assert (reports["bad"].status, reports["bad"].quality) == (CaseStatus.REJECTED, None)
    assert reports["good"].verdict is Verdict.ACCEPT
    assert "good.nii.gz" in tree(tmp_path / "out")


@pytest.mark.parametrize(
    ("verdict", "require", "code"),
    [
        ("accept", "accept", 0),
        ("review", "review", 0),
        ("review", "any", 0),
        ("review", "accept", 1),
        ("refuse", "review", 1),
        ("refuse", "any", 1),
    ],
)
def test_a_refused_result_and_one_worse_than_required_end_with_exit_code_1(
    tmp_path: Path, run: Run, verdict: str, require: str, code: int
) -> None:
    image, root = save_case(tmp_path / "a.nii.gz", size=24), bundle_of(tmp_path / "b", Verdict(verdict))
    command = ("segment", root, image, "--out", tmp_path / "out", "--engine", "serial", "--require", require)

    first, again = run(*command), run(*command)

    assert (first.returncode, again.returncode) == (code, code)
    if verdict == "refuse":
        assert "a: refused: volume: femur" in first.stderr
        assert "1 of 1 volumes segmented into" in first.stdout
        assert "1 of the results is refused" in first.stdout


def test_json_carries_a_verdict_for_results_alone(tmp_path: Path, run: Run) -> None:
    save_case(tmp_path / "in" / "a.nii.gz", size=24)
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"no image")
    root = bundle_of(tmp_path / "b", Verdict.ACCEPT)

    lines = run("segment", root, tmp_path / "in", "--out", tmp_path / "out", "--engine", "serial", "--json").stdout

    records = {one["case_id"]: one for one in map(json.loads, lines.splitlines())}
    assert records["a"]["quality"] == {"verdict": "accept", "reasons": [], "structures": {}}
    assert (records["b"]["status"], records["b"]["quality"]) == ("rejected", None)


def test_seg_rtstruct_and_sr_of_a_refused_result_say_so(tmp_path: Path) -> None:
    write(ct_series(), tmp_path / "in")
    root = bundle_of(tmp_path / "b", Verdict.REFUSE)
    asked = {"outputs": ("seg", "rtstruct", "sr"), "require": "any", "workers": "serial"}

    (report,) = segment_folder(root, tmp_path / "in", tmp_path / "out", **asked)

    written = {kind: dcmread(path) for kind, path in report.outputs.items()}
    assert {kind: one.SeriesDescription for kind, one in written.items()} == {
        "seg": "SEG refused: bright_ct 1.0.0",
        "rtstruct": "RTSTRUCT refused: bright_ct 1.0.0",
        "sr": "SR refused: bright_ct 1.0.0",
    }
    assert "absurdly large" in written["seg"].ImageComments
    assert "absurdly large" in written["rtstruct"].StructureSetDescription
    assert "absurdly large" in written["sr"].to_json()


@pytest.mark.parametrize(("seg_type", "form"), [(None, "BINARY"), ("binary", "BINARY"), ("labelmap", "LABELMAP")])
def test_the_form_of_the_seg_is_as_asked_and_another_one_is_made_anew(
    tmp_path: Path, seg_type: str | None, form: str
) -> None:
    write(ct_series(), tmp_path / "in")
    root = bundle_of(tmp_path / "b", Verdict.ACCEPT)
    first = {"outputs": ("seg",), "workers": "serial"}
    list(segment_folder(root, tmp_path / "in", tmp_path / "out", **first))

    (report,) = segment_folder(root, tmp_path / "in", tmp_path / "out", seg_type=seg_type, **first)

    assert dcmread(report.outputs["seg"]).SegmentationType == form


def test_a_form_without_a_seg_and_words_that_are_none_are_refused(tmp_path: Path, judged: Judged) -> None:
    for asked in ({"seg_type": "binary"}, {"seg_type": "fractional", "outputs": ("seg",)}, {"require": "good"}):
        with pytest.raises(UsageError):
            judged(Verdict.ACCEPT, **asked)
    assert not (tmp_path / "out").exists()


def test_missing_codes_are_told_before_the_batch_and_withhold_nothing_that_needs_none(tmp_path: Path, run: Run) -> None:
    write(ct_series(), tmp_path / "in")
    root = bundle_of(tmp_path / "b", Verdict.ACCEPT, "something bright")
    command = ("segment", root, tmp_path / "in", "--out", tmp_path / "out", "--engine", "serial")

    found = run(*command, "--outputs", "nifti,seg,rtstruct,sr", "--json")

    assert found.returncode == 0
    sentence = "SEG and SR cannot be written, since no code is known for something bright; write codes with `voxelgate"
    assert found.stderr.startswith(f"bright_ct: {sentence}")
    record = json.loads(found.stdout)
    assert set(record["outputs"]) == {"nifti", "rtstruct", "preview"}
    assert sentence in str(record["findings"])
    write_codes(root, propose_codes(root, {"something bright": "femur"}))
    record = json.loads(run(*command, "--outputs", "nifti,seg,rtstruct,sr", "--json").stdout)
    assert set(record["outputs"]) == {"nifti", "rtstruct", "seg", "sr", "preview"}


@pytest.mark.parametrize("outputs", ["seg", "seg,sr"])
def test_where_nothing_is_left_to_write_the_batch_does_not_begin(tmp_path: Path, outputs: str) -> None:
    write(ct_series(), tmp_path / "in")
    root = bundle_of(tmp_path / "b", Verdict.ACCEPT, "something bright")

    with pytest.raises(BundleError, match=r"no code is known for something bright.*or ask for nifti"):
        segment_folder(root, tmp_path / "in", tmp_path / "out", outputs=[*outputs.split(","), "preview"])
    assert not (tmp_path / "out").exists()


def test_a_name_that_dicom_does_not_take_withholds_dicom_and_not_the_nifti(tmp_path: Path) -> None:
    write(ct_series(), tmp_path / "in")
    root = bundle_of(tmp_path / "b", Verdict.ACCEPT, "x" * 65)

    reports = segment_folder(root, tmp_path / "in", tmp_path / "out", outputs=("nifti", "rtstruct"), workers="serial")

    assert "RTSTRUCT cannot be written, since DICOM takes no name like 'xxx" in reports.unwritable
    assert [set(report.outputs) for report in reports] == [{"nifti"}]


def test_a_low_dice_on_validation_cases_is_said_of_every_result(tmp_path: Path) -> None:
    root = bundle_of(tmp_path / "b", Verdict.ACCEPT, eval_metrics={"mean_dice": 0.41})

    (report,) = segment_folder(root, save_case(tmp_path / "a.nii.gz", size=24), tmp_path / "out", workers="serial")

    assert report.verdict is Verdict.REVIEW
    assert report.quality is not None
    assert report.quality.reasons[0].startswith("bundle: its mean Dice was 0.41")


VERSION_2 = """
UPDATE cases SET report = json_set(report, '$.status', 'refused') WHERE json_extract(report, '$.status') = 'rejected';
UPDATE cases SET report = json_set(report, '$.quality', json('{"verdict": "accept", "reasons": []}'))
    WHERE json_extract(report, '$.status') != 'done';
UPDATE cases SET report = json_remove(report, '$.is_picture');
UPDATE cases SET options = replace(options, '"require": "any", ', '');
UPDATE cases SET state = 'refused' WHERE state = 'rejected';
PRAGMA user_version = 2
"""
"""Makes a ledger what version 0.3.0 wrote."""


def as_of_version_2(out: Path) -> None:
    with closing(sqlite3.connect(out / LEDGER_NAME, isolation_level=None)) as connection:
        for statement in VERSION_2.split(";"):
            connection.execute(statement)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Return an output folder of version 0.3.0: a refused result that was written, and an input that was no image."""
    save_case(tmp_path / "in" / "a.nii.gz", size=24)
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"no image")
    root = bundle_of(tmp_path / "refusing", Verdict.REFUSE)
    list(segment_folder(root, tmp_path / "in", tmp_path / "out", require="any", workers="serial"))
    as_of_version_2(tmp_path / "out")
    return tmp_path / "out"


def test_a_ledger_of_before_is_read_in_the_words_of_today_and_stays_as_it_is(older: Path, run: Run) -> None:
    before = (older / LEDGER_NAME).read_bytes()

    entries, _ = read_ledger(older)

    states = {entry.case_id: (str(entry.state), entry.report and entry.report.quality) for entry in entries}
    assert states["b"] == ("rejected", None)
    assert states["a"][0] == "done"
    assert set(read_inputs(older)) == {"a", "b"}
    assert "1 done, 1 rejected" in run("status", older).stdout
    assert write_page(older).is_file()
    assert (older / LEDGER_NAME).read_bytes() == before


def test_a_run_brings_a_ledger_of_before_up_to_date_and_withdraws_what_was_refused(older: Path, tmp_path: Path) -> None:
    assert "a.nii.gz" in tree(older)

    refused, rejected = segment_folder(tmp_path / "refusing", tmp_path / "in", older, workers="serial")

    assert (refused.verdict, set(refused.outputs)) == (Verdict.REFUSE, set())
    assert rejected.status is CaseStatus.REJECTED
    assert "a.nii.gz" not in tree(older)
    with closing(sqlite3.connect(older / LEDGER_NAME)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        found = connection.execute("SELECT state, json_extract(report, '$.status') FROM cases ORDER BY case_id")
        assert found.fetchall() == [("done", "done"), ("rejected", "rejected")]


def test_a_run_that_takes_any_finds_what_version_2_wrote_done(older: Path, tmp_path: Path) -> None:
    made = (older / "a.nii.gz").stat().st_ino
    first = read_ledger(older)[0][0].report

    again, _ = segment_folder(tmp_path / "refusing", tmp_path / "in", older, require="any", workers="serial")

    assert again == first
    assert (older / "a.nii.gz").stat().st_ino == made


def test_results_of_before_that_were_not_refused_are_not_done_again(tmp_path: Path, judged: Judged) -> None:
    first = judged(Verdict.REVIEW)
    as_of_version_2(tmp_path / "out")

    assert judged(Verdict.REVIEW) == first


def test_a_ledger_of_the_first_version_is_brought_up_to_date_through_all_that_followed(older: Path) -> None:
    with closing(sqlite3.connect(older / LEDGER_NAME, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE cases DROP COLUMN input")
        connection.execute("ALTER TABLE runs DROP COLUMN hashed_names")
        connection.execute("PRAGMA user_version = 1")
    shutil.copytree(older, older.with_name("copy"))

    assert [str(entry.state) for entry in read_ledger(older)[0]] == ["done", "rejected"]
    with closing(Ledger(older.with_name("copy"))) as ledger:
        assert [str(entry.state) for entry in ledger.entries()] == ["done", "rejected"]
    assert read_inputs(older) == {}


def test_a_picture_is_told_in_pixels_though_nothing_but_its_preview_is_written() -> None:
    report = CaseReport("a", CaseStatus.DONE, "ab", {}, quality=Quality(), is_picture=True)

    assert CaseReport.from_json(report.to_json()).is_picture
    older = json.loads(report.to_json()) | {"outputs": {"nifti": "out/a.png"}}
    del older["is_picture"]
    assert CaseReport.from_json(json.dumps(older)).is_picture


def test_a_case_has_a_verdict_if_it_is_done_and_only_then() -> None:
    with pytest.raises(ValueError, match="only then"):
        CaseReport("a", CaseStatus.DONE, "ab", {})
    with pytest.raises(ValueError, match="only then"):
        CaseReport("a", CaseStatus.REJECTED, "ab", {}, quality=Quality())
