"""A folder that something else fills: studies and files are taken when they are complete, and again when they grow."""

import errno
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch_bundle import make_moody_bundle, save_case
from tests.batch_runs import start, wait_until
from tests.planted import ct_series, setting, write
from voxelgate.core.errors import InputError
from voxelgate.dicom.choose import SeriesRule
from voxelgate.segmentation.batch.run_batch import watch
from voxelgate.segmentation.batch.watch import Inbox
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.report import CaseStatus

SETTLE_S = 10.0


class Clock:
    """An inbox whose time is moved by hand."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 0.0
        self.inbox = Inbox([folder], SeriesRule(), (), folder / "out")

    def look(self, after_s: float) -> list[Case]:
        self.now_s += after_s
        return self.inbox.look(self.now_s, SETTLE_S)


def names(cases: list[Case]) -> list[str]:
    return [case.case_id for case in cases]


def test_a_file_is_taken_once_when_it_has_not_changed_for_the_settling_time(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    path = save_case(tmp_path / "a.nii.gz")
    half = path.read_bytes()
    path.write_bytes(half[:1000])

    assert clock.look(0) == []
    path.write_bytes(half)
    assert clock.look(9) == []
    assert clock.look(9) == []
    assert names(clock.look(1)) == ["a"]
    assert clock.look(100) == []
    assert clock.inbox.is_settled
    save_case(path, seed=3)
    assert clock.look(1) == []
    assert not clock.inbox.is_settled
    assert names(clock.look(10)) == ["a"]


def test_a_study_is_taken_when_all_its_series_have_settled(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    write(ct_series(series=1), tmp_path / "x")
    clock.look(0)
    write(ct_series(series=2), tmp_path / "y")

    assert clock.look(9) == []
    assert clock.look(5) == []
    (case,) = clock.look(6)

    assert any("was not taken" in str(finding) for finding in case.findings)


def test_a_series_that_comes_late_means_that_its_study_is_looked_at_again(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    write(setting("SliceThickness", "5")(ct_series(6, series=1)), tmp_path)
    clock.look(0)
    (first,) = clock.look(SETTLE_S)
    write(ct_series(12, series=2), tmp_path, prefix="T")
    clock.look(1)

    (second,) = clock.look(SETTLE_S)

    assert second.identity != first.identity
    assert len(second.files) == 12


def test_slices_that_come_late_are_the_same_case(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    datasets = ct_series(12)
    write(datasets[:6], tmp_path)
    clock.look(0)
    (first,) = clock.look(SETTLE_S)
    write(datasets[6:], tmp_path, prefix="T")
    clock.look(1)

    (second,) = clock.look(SETTLE_S)

    assert (second.case_id, second.identity) == (first.case_id, first.identity)
    assert (len(first.files), len(second.files)) == (6, 12)


def test_a_file_that_stays_damaged_is_told(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    (path, *_) = write(ct_series(), tmp_path)
    path.write_bytes(path.read_bytes()[:700])
    clock.look(0)

    cases = clock.look(SETTLE_S)

    assert [case.case_id for case in cases if case.image is None] == ["unreadable"]


def test_files_that_vanish_and_results_are_passed_over(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    save_case(tmp_path / "out" / "a.nii.gz")
    gone = save_case(tmp_path / "b.nii.gz")
    clock.look(0)
    gone.unlink()

    assert clock.look(SETTLE_S) == []


def test_a_folder_that_is_moved_away_while_it_is_listed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(tmp_path)
    save_case(tmp_path / "a.nii.gz")
    clock.look(0)
    (tmp_path / "receiving").mkdir()
    walk = os.walk

    def walk_meanwhile(*arguments: object, **options: object) -> Iterator[tuple[str, list[str], list[str]]]:
        for found in walk(*arguments, **options):
            shutil.rmtree(tmp_path / "receiving", ignore_errors=True)
            yield found

    monkeypatch.setattr("voxelgate.dicom.read.dicom_files.os.walk", walk_meanwhile)

    assert clock.look(SETTLE_S) == []
    assert names(clock.look(0)) == ["a"]


def close(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Let some folders be closed to whoever lists them, as a folder of mode 0700 of another user is."""

    def listed(path: str) -> object:
        if Path(path) in folders:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", listed)


def test_a_closed_folder_hides_nothing_but_itself_and_is_told_once_without_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(tmp_path)
    save_case(tmp_path / "a.nii.gz")
    save_case(tmp_path / "Doe_John" / "b.nii.gz")

    with monkeypatch.context() as patched:
        close(patched, tmp_path / "Doe_John")
        clock.look(0)
        assert names(clock.look(SETTLE_S)) == ["a"]
    assert caplog.messages == ["a folder cannot be listed (Permission denied); its images wait until it can be."]
    clock.look(1)
    assert names(clock.look(SETTLE_S)) == ["Doe_John/b"]


def test_a_study_of_which_a_folder_was_closed_is_not_taken_for_what_is_left_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(tmp_path)
    first, *others = write(ct_series(), tmp_path)
    (tmp_path / "more").mkdir()
    for path in others:
        path.rename(tmp_path / "more" / path.name)
    clock.look(0)
    (case,) = clock.look(SETTLE_S)
    close(monkeypatch, tmp_path / "more")

    assert clock.look(SETTLE_S) == []
    assert {file.path for file in case.input_files} > {first}


def test_a_file_that_gets_the_right_to_be_read_is_looked_at_again(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    path = save_case(tmp_path / "a.nii.gz")
    path.chmod(0)
    clock.look(0)
    assert names(clock.look(SETTLE_S)) == ["a"]
    path.chmod(0o644)

    clock.look(1)
    assert names(clock.look(SETTLE_S)) == ["a"]


def test_a_folder_that_is_gone_for_good_ends_the_watch(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "in")
    (tmp_path / "in").mkdir()
    clock.look(0)
    (tmp_path / "in").rmdir()

    with pytest.raises(InputError, match="does not exist"):
        clock.look(1)


@pytest.mark.slow
def test_what_comes_in_during_a_run_is_segmented_and_idleness_ends_it(tmp_path: Path) -> None:
    bundle = make_moody_bundle(tmp_path / "bundle")
    (tmp_path / "in").mkdir()
    options = ("--watch", "--settle", 0.5, "--idle-exit", 15, "--engine", "serial")
    command = start(tmp_path / "log", "segment", bundle, tmp_path / "in", "--out", tmp_path / "out", *options)
    wait_until((tmp_path / "out" / "ledger.sqlite").exists)
    staged = save_case(tmp_path / "a.nii.gz")
    shutil.move(staged, tmp_path / "in" / "a.nii.gz")
    wait_until((tmp_path / "out" / "a.nii.gz").exists)
    write(ct_series(), tmp_path / "in" / "study")

    assert command.end() == 0, command.printed
    assert "2 of 2 volumes" in command.printed


def test_only_folders_can_be_watched(tmp_path: Path) -> None:
    image, bundle = save_case(tmp_path / "a.nii.gz"), make_moody_bundle(tmp_path / "bundle")

    with pytest.raises(InputError, match="is no folder"):
        watch(bundle, image, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_that_grows_while_it_is_worked_on_is_done_again_after_its_end(tmp_path: Path) -> None:
    bundle = make_moody_bundle(tmp_path / "bundle")
    (tmp_path / "in").mkdir()
    image = save_case(tmp_path / "in" / "a.nii.gz")
    reports = watch(bundle, tmp_path / "in", tmp_path / "out", settle_s=0.2, idle_s=math.inf, workers="serial")

    first = next(reports)
    save_case(image, seed=8)
    second = next(reports)
    reports.close()

    assert first.status is second.status is CaseStatus.DONE
    assert first.volumes_ml != second.volumes_ml
