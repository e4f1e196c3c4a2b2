"""What a hospital's folders, disks and clocks do to a batch: nothing of it ends the run, or mixes anything up."""

import csv
import errno
import os
import sqlite3
import time
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.attention_bundle import make_attention_bundle
from tests.batch_bundle import make_moody_bundle, save_case
from tests.planted import ct_series, setting, write
from voxelgate.core.errors import OutputError
from voxelgate.core.files import is_held, locked
from voxelgate.segmentation.batch.case_table import TABLE_NAME, write_tables
from voxelgate.segmentation.batch.ledger import LEDGER_NAME, Ledger, read_ledger
from voxelgate.segmentation.batch.ledger_records import EntryState, RunVersions
from voxelgate.segmentation.batch.publish import publish_case, refuse_foreign
from voxelgate.segmentation.batch.run_batch import segment as segment_folder
from voxelgate.segmentation.batch.run_batch import segment_cases, setup_of
from voxelgate.segmentation.batch.status import status
from voxelgate.segmentation.batch.worker import CaseJob
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.report import CaseReport, CaseStatus

DONE = CaseStatus.DONE

LONGEST_PATH = 4095
"""Bytes of a path on Linux (PATH_MAX with its final zero)."""

Segment = Callable[..., list[CaseReport]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_moody_bundle(tmp_path_factory.mktemp("bundles") / "moody")


@pytest.fixture
def segment(tmp_path: Path, bundle: Path) -> Segment:
    """Segment inputs into `out` in this process."""

    def run_all(*inputs: Path, root: Path = bundle, **asked: Any) -> list[CaseReport]:
        return list(segment_folder(root, inputs, tmp_path / "out", workers="serial", **asked))

    return run_all


# --- names ----------------------------------------------------------------------------------------------------------


def save_named(folder: Path, name: bytes, seed: int = 0) -> None:
    os.rename(save_case(folder / "staged.nii.gz", seed=seed), os.path.join(os.fsencode(folder), name))  # noqa: PTH104, PTH118


def test_names_that_no_text_can_hold_are_reworded_and_each_case_is_done(tmp_path: Path, segment: Segment) -> None:
    for seed, name in enumerate([b"M\xfcller.nii.gz", b"M\xf6ller.nii.gz", b"two\nlines\x1b[31m.nii.gz"]):
        save_named(tmp_path / "in", name, seed)
    (tmp_path / "in" / "z.nii.gz").write_bytes(b"no image")
    save_named(tmp_path / "in", b"z\xfc.nii.gz")
    with (tmp_path / "in" / os.fsdecode(b"z\xfc.nii.gz")).open("wb") as file:
        file.write(b"no image")

    reports = {report.case_id: report for report in segment(tmp_path / "in")}

    assert [report.status for report in reports.values()].count(DONE) == 3
    assert sorted(reports)[2:] == ["two_lines_[31m", "z", "z_"]
    assert all(name.startswith("M_ller-") for name in sorted(reports)[:2])
    assert all(
        text.isprintable() for report in reports.values() for text in (report.case_id, *map(str, report.findings))
    )
    assert [entry.case_id for entry in read_ledger(tmp_path / "out")[0]] == sorted(reports)
    with (tmp_path / "out" / TABLE_NAME).open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 5


def test_names_as_long_as_a_file_system_takes_leave_room_for_suffixes(tmp_path: Path, segment: Segment) -> None:
    name = f"{'x' * 248}.nii.gz"
    first, second = (save_case(tmp_path / place / name, seed=seed) for seed, place in enumerate("ab"))

    (one,), (two,) = segment(first), segment(second)
    again = segment(first)

    assert (one.status, two.status) == (DONE, DONE)
    assert one.outputs["nifti"] != two.outputs["nifti"]
    assert again == [one]


def test_a_path_that_is_too_long_refuses_its_case_alone(tmp_path: Path, segment: Segment) -> None:
    save_case(tmp_path / "i" / "a.nii.gz")
    deep = tmp_path / "i"
    while len(str(deep)) < LONGEST_PATH - 200:
        deep /= "y" * 100
    deep /= "y" * (LONGEST_PATH - len(str(deep)) - len("//b.nii.gz"))
    save_case(deep / "b.nii.gz")

    status = {report.case_id[-1]: report.status for report in segment(tmp_path / "i")}

    assert status == {"a": DONE, "b": CaseStatus.REJECTED}


def test_names_that_differ_only_in_how_accents_are_kept_get_results_that_differ_in_more(
    tmp_path: Path, segment: Segment
) -> None:
    for form in ("NFC", "NFD"):
        save_case(tmp_path / "in" / f"{unicodedata.normalize(form, 'é')}.nii.gz")

    reports = segment(tmp_path / "in")

    assert len({unicodedata.normalize("NFC", report.case_id) for report in reports}) == 2


def test_a_worker_of_a_cluster_logs_no_folder_of_a_patient(tmp_path: Path, bundle: Path) -> None:
    setup = setup_of(bundle, tmp_path / "Doe_John" / "out", Options())

    shown = repr(CaseJob(Case("a", tmp_path / "Doe_Jane" / "a.nii.gz"), setup, Path("scratch")))

    assert "Doe" not in shown


# --- what stands in the output folder -------------------------------------------------------------------------------


def test_a_link_to_nothing_is_somebodys_and_stays(tmp_path: Path, segment: Segment) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").symlink_to(tmp_path / "archive" / "a.nii.gz")

    (report,) = segment(save_case(tmp_path / "a.nii.gz"))

    assert report.status is CaseStatus.REJECTED
    assert (tmp_path / "out" / "a.nii.gz").is_symlink()


@pytest.mark.parametrize("is_linked", [False, True], ids=["same folder", "linked folder"])
def test_an_image_is_never_overwritten_whatever_is_allowed(tmp_path: Path, bundle: Path, is_linked: bool) -> None:
    image = save_case(tmp_path / "out" / "a.nii.gz")
    before = image.read_bytes()
    out = tmp_path / "out"
    if is_linked:
        out = tmp_path / "other"
        out.mkdir()
        (out / "p").symlink_to(tmp_path / "out")
    setup = setup_of(bundle, out, Options(overwrite=True, workers="serial"))
    other = Case("p/a" if is_linked else "a", save_case(tmp_path / "b.nii.gz", seed=1))

    reports = list(segment_cases([[other, Case("z", image)]], setup))

    assert [report.status for report in reports] == [CaseStatus.REJECTED, DONE]
    reason = "is a link out of the output folder" if is_linked else "is an image to segment"
    assert reason in str(reports[0].findings[0])
    assert image.read_bytes() == before


def test_results_of_another_case_are_never_overwritten_whatever_is_allowed(tmp_path: Path, segment: Segment) -> None:
    (report,) = segment(save_case(tmp_path / "a.nii.gz"))

    with closing(Ledger(tmp_path / "out")) as ledger:
        refuse_foreign(ledger, "a", report.outputs.values(), overwrite=False)
        with pytest.raises(OutputError, match=r"^a.nii.gz: is a result of the case a; rename the image"):
            refuse_foreign(ledger, "b", report.outputs.values(), overwrite=True)


def test_attention_maps_are_made_for_cases_that_were_done_without_and_never_replace_others(
    tmp_path: Path, segment: Segment
) -> None:
    root = make_attention_bundle(tmp_path / "bundle")
    image = save_case(tmp_path / "a.nii.gz")
    (tmp_path / "out").mkdir()

    (plain,) = segment(image, root=root)
    (tmp_path / "out" / "a.attention-0.nii.gz").write_bytes(b"somebody's")
    (refused,) = segment(image, root=root, attention=True)
    (tmp_path / "out" / "a.attention-0.nii.gz").unlink()
    (full,) = segment(image, root=root, attention=True)

    assert set(plain.outputs) == {"nifti"}
    assert "a.attention-0.nii.gz: exists already" in str(refused.findings[0])
    assert set(full.outputs) == {"nifti", "attention-0", "attention-1"}


def test_a_table_that_cannot_be_replaced_ends_no_run_but_is_told_at_its_end(tmp_path: Path, segment: Segment) -> None:
    for name in "abc":
        save_case(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "out" / TABLE_NAME).mkdir(parents=True)

    with pytest.raises(OutputError, match="cannot be written"):
        segment(tmp_path / "in")

    assert status(tmp_path / "out").counts["done"] == 3


def test_tables_are_written_at_the_end_of_a_run_and_whenever_they_are_asked_for(tmp_path: Path, bundle: Path) -> None:
    for name in "abc":
        save_case(tmp_path / "in" / f"{name}.nii.gz")
    reports = segment_folder(bundle, tmp_path / "in", tmp_path / "out", workers="serial")
    next(reports)
    assert not (tmp_path / "out" / TABLE_NAME).exists()

    write_tables(tmp_path / "out")
    with (tmp_path / "out" / TABLE_NAME).open(encoding="utf-8", newline="") as file:
        states = [row["status"] for row in csv.DictReader(file)]
    list(reports)
    with (tmp_path / "out" / TABLE_NAME).open(encoding="utf-8", newline="") as file:
        ended = [row["status"] for row in csv.DictReader(file)]

    assert states[0] == "done"
    assert "waiting" in states
    assert ended == ["done"] * 3


# --- ledger, lock and status ----------------------------------------------------------------------------------------


def some_cases(folder: Path, count: int) -> list[Case]:
    return [Case(f"{number:05}", folder / f"{number:05}.nii.gz") for number in range(count)]


def test_a_disk_that_is_full_undoes_a_change_of_the_ledger_and_nothing_else(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path)) as ledger:
        ledger.enrol(some_cases(tmp_path, 10))
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OutputError, match="database or disk is full"):
            ledger.enrol(some_cases(tmp_path, 300))
        ledger._connection.execute("PRAGMA max_page_count = 100000")

        assert len(ledger.entries()) == 10
        ledger.enrol(some_cases(tmp_path, 300))
        assert len(ledger.entries()) == 300


def test_ctrl_c_between_the_statements_of_a_change_undoes_it(tmp_path: Path) -> None:
    class Interrupting:
        """A connection that Ctrl-C meets right after a transaction has begun."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self.connection = connection

        def __getattr__(self, name: str) -> object:
            return getattr(self.connection, name)

        def execute(self, statement: str, *values: object) -> object:
            found = self.connection.execute(statement, *values)
            if statement.startswith("BEGIN"):
                raise KeyboardInterrupt
            return found

    with closing(Ledger(tmp_path)) as ledger:
        connection = ledger._connection
        ledger._connection = Interrupting(connection)
        with pytest.raises(KeyboardInterrupt):
            ledger.enrol(some_cases(tmp_path, 1))
        ledger._connection = connection

        assert len(ledger.enrol(some_cases(tmp_path, 2))) == 2


def test_a_finished_ledger_is_one_file_that_those_can_read_who_may_not_write(tmp_path: Path, segment: Segment) -> None:
    segment(save_case(tmp_path / "a.nii.gz"))

    assert [path.name for path in (tmp_path / "out").glob(f"{LEDGER_NAME}*")] == [LEDGER_NAME]
    in_wal_mode, not_in_wal_mode = b"\2\2", b"\1\1"  # https://www.sqlite.org/fileformat.html, 1.3.3
    assert (tmp_path / "out" / LEDGER_NAME).read_bytes()[18:20] == not_in_wal_mode
    with closing(Ledger(tmp_path / "out")) as ledger:
        assert ledger.entry("a").state is EntryState.DONE
        assert (tmp_path / "out" / LEDGER_NAME).read_bytes()[18:20] == in_wal_mode


def test_a_ledger_without_tables_yet_has_no_cases_and_one_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / LEDGER_NAME).touch()

    assert sum(status(tmp_path).counts.values()) == 0
    with closing(sqlite3.connect(tmp_path / LEDGER_NAME)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(OutputError, match="version 99"):
        status(tmp_path)


def test_a_run_that_was_killed_has_no_end_and_its_speed_is_that_up_to_its_last_case(
    tmp_path: Path, segment: Segment
) -> None:
    image = save_case(tmp_path / "a.nii.gz")
    segment(image)
    hour_ago_s = time.time() - 3600
    with closing(sqlite3.connect(tmp_path / "out" / LEDGER_NAME)) as connection:
        connection.execute("UPDATE runs SET started_s = ?, ended_s = NULL", (hour_ago_s,))
        connection.execute("UPDATE cases SET ended_s = ?", (hour_ago_s + 36,))
        connection.commit()

    killed = status(tmp_path / "out")
    segment(image)

    assert killed.ended_per_hour == pytest.approx(100, abs=0.1)
    assert [run.ended_s is None for run in read_ledger(tmp_path / "out")[1]] == [True, False]


def test_a_clock_that_is_set_back_gives_no_speed(tmp_path: Path, segment: Segment) -> None:
    segment(save_case(tmp_path / "a.nii.gz"))
    with closing(sqlite3.connect(tmp_path / "out" / LEDGER_NAME)) as connection:
        connection.execute("UPDATE runs SET started_s = ended_s + 3600")
        connection.execute("UPDATE cases SET ended_s = ended_s + 7200")
        connection.commit()

    assert status(tmp_path / "out").ended_per_hour == 0


def test_a_file_system_without_locks_is_refused_and_nobody_is_said_to_work_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".voxelgate.lock").touch()
    monkeypatch.setattr("fcntl.flock", no_locks)

    with pytest.raises(OutputError, match="keeps no locks"), locked(tmp_path):
        pass
    assert not is_held(tmp_path)


def test_finished_files_that_somebody_removed_are_not_taken_for_those_of_an_earlier_run(
    tmp_path: Path, segment: Segment
) -> None:
    (report,) = segment(save_case(tmp_path / "a.nii.gz"))
    out = tmp_path / "out"

    with closing(Ledger(out)) as ledger:
        before = ledger.files_of("a")
        with pytest.raises(OutputError, match="its files cannot be written"):
            publish_case(
                ledger, report, (out / ".voxelgate-0.partial", {"nifti": "0" * 64}), RunVersions("", "", "", "")
            )

        assert ledger.files_of("a") == before
    assert segment(tmp_path / "a.nii.gz")[0].volumes_ml == report.volumes_ml


# --- inputs ---------------------------------------------------------------------------------------------------------


def test_a_series_whose_files_became_those_of_another_patient_is_refused(
    tmp_path: Path, bundle: Path, segment: Segment
) -> None:
    write(setting("PatientID", "A")(ct_series()), tmp_path / "in")
    found = segment_folder(bundle, tmp_path / "in", tmp_path / "out", workers="serial")
    write(setting("PatientID", "B")(ct_series()), tmp_path / "in")

    (before,) = found
    (now,) = segment(tmp_path / "in")

    assert before.status is CaseStatus.REJECTED
    assert "its files are others than those that were found" in str(before.findings[0])
    assert (now.status, now.case_id != before.case_id) == (DONE, True)


def test_an_archive_whose_pixels_cannot_be_unpacked_costs_its_case_only(tmp_path: Path, segment: Segment) -> None:
    paths = write(ct_series(), tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, path.name)
        last = archive.infolist()[-1]
    content = bytearray((tmp_path / "series.zip").read_bytes())
    content[last.header_offset + last.compress_size - 40 : last.header_offset + last.compress_size] = b"\xff" * 40
    (tmp_path / "series.zip").write_bytes(content)

    reports = segment(tmp_path / "series.zip", save_case(tmp_path / "a.nii.gz"))

    assert {report.case_id: report.status for report in reports}["a"] is DONE
    assert sorted(report.status for report in reports) != [DONE, DONE]


def test_results_of_an_image_that_was_replaced_by_an_unusable_one_stay_and_are_warned_of(
    tmp_path: Path, segment: Segment
) -> None:
    image = save_case(tmp_path / "a.nii.gz")
    segment(image)
    image.write_bytes(b"no image")

    (report,) = segment(image)

    assert (tmp_path / "out" / "a.nii.gz").exists()
    assert report.status is CaseStatus.REJECTED
    assert str(report.findings[-1]) == "a: a.nii.gz of an earlier run may be of another image."
