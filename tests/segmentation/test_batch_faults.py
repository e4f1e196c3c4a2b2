"""A disk that fails once, a folder that vanishes, a ledger that somebody else made: what a batch makes of them."""

import errno
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import SimpleITK as sitk  # noqa: N813

from tests.attention_bundle import make_attention_bundle
from tests.batch_bundle import make_moody_bundle, save_case
from tests.batch_runs import CHANGES, tree
from tests.planted import ct_series, write
from voxelgate.bundle.checksums import seal
from voxelgate.core.errors import OutputError
from voxelgate.core.files import SCRATCH_PREFIX, new_scratch
from voxelgate.segmentation.batch.input_stamps import is_as_stamped, stamp_of
from voxelgate.segmentation.batch.ledger import LEDGER_NAME, SCHEMA, SCHEMA_VERSION, Ledger, read_ledger
from voxelgate.segmentation.batch.run_batch import segment as segment_folder
from voxelgate.segmentation.batch.status import status
from voxelgate.segmentation.cases import find_cases
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.report import CaseReport, CaseStatus

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

MOST_OPERATIONS = 120
"""More than two cases take; the last of them is found out."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_moody_bundle(tmp_path_factory.mktemp("bundles") / "moody")


def segment(bundle: Path, inputs: Path, out: Path) -> list[CaseReport]:
    return list(segment_folder(bundle, inputs, out, workers="serial", outputs=[Output.NIFTI, Output.PREVIEW]))


def all_done(reports: list[CaseReport]) -> bool:
    return [report.status for report in reports] == [CaseStatus.DONE] * len(reports)


# --- a disk that fails once -----------------------------------------------------------------------------------------


class FailingDisk:
    """Lets the n-th change below a folder fail with an I/O error; audit hooks cannot be taken away, so it is told when.

    Args:
        fsync: of the system.
    """

    def __init__(self, fsync: Callable[[int], None]) -> None:
        self.folder, self.left = "", 0
        self._fsync = fsync
        sys.addaudithook(self.see)

    def see(self, event: str, values: tuple[object, ...]) -> None:
        is_opened = event == "open" and isinstance(values[2], int) and bool(values[2] & WRITING)
        if self.folder and (event in CHANGES or is_opened) and str(values[0]).startswith(self.folder):
            self.count()

    def fsync(self, descriptor: int) -> None:
        if self.folder and Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(self.folder):
            self.count()
        self._fsync(descriptor)

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    @contextmanager
    def failing(self, folder: Path, operation: int) -> Iterator[None]:
        self.folder, self.left = str(folder), operation
        try:
            yield
        finally:
            self.folder = ""


@pytest.fixture(scope="module")
def disk() -> FailingDisk:
    return FailingDisk(os.fsync)


@pytest.mark.slow
def test_after_one_error_of_the_disk_wherever_the_same_command_goes_on_to_the_same_results(
    tmp_path: Path, bundle: Path, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("ab"):
        save_case(tmp_path / "in" / f"{name}.nii.gz", seed=seed)
    segment(bundle, tmp_path / "in", tmp_path / "wanted")
    wanted, broken = tree(tmp_path / "wanted"), 0
    monkeypatch.setattr(os, "fsync", disk.fsync)

    for operation in range(1, MOST_OPERATIONS):
        out = tmp_path / f"out{operation}"
        with disk.failing(out, operation):
            try:
                broken += not all_done(segment(bundle, tmp_path / "in", out))
            except OutputError:
                broken += 1
        if disk.left > 0:
            break
        assert all_done(segment(bundle, tmp_path / "in", out)), operation
        assert tree(out) == wanted, operation
        assert not list(out.glob(f"{SCRATCH_PREFIX}*")), operation
        shutil.rmtree(out)

    assert disk.left > 0
    assert broken > 20


@pytest.mark.parametrize("statement", ["UPDATE cases SET state = ?, plan = ?", "INSERT OR REPLACE", "COMMIT"])
def test_after_one_error_of_the_ledger_the_same_command_goes_on(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    class Failing(sqlite3.Connection):
        """Fails at the first such statement, and at no other, once a plan was written down."""

        is_due = False
        has_failed = False

        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            self._fail(sql)
            Failing.is_due |= sql.startswith("UPDATE cases SET state = ?, plan = ?")
            return super().execute(sql, *values)

        def executemany(self, sql: str, *values: object) -> sqlite3.Cursor:
            self._fail(sql)
            return super().executemany(sql, *values)

        def _fail(self, sql: str) -> None:
            is_plan = statement.startswith("UPDATE")
            if sql.startswith(statement) and (is_plan or Failing.is_due) and not Failing.has_failed:
                Failing.has_failed = True
                raise sqlite3.OperationalError("disk I/O error")

    connect = sqlite3.connect
    save_case(tmp_path / "in" / "a.nii.gz")
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, factory=Failing))

    with pytest.raises(OutputError, match="disk I/O error"):
        segment(bundle, tmp_path / "in", tmp_path / "out")

    assert Failing.has_failed
    assert all_done(segment(bundle, tmp_path / "in", tmp_path / "out"))


# --- whose process opens what --------------------------------------------------------------------------------------


class Opened:
    """The files below a folder that this process opens; audit hooks cannot be taken away, so it is told which."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.paths: list[str] = []
        sys.addaudithook(self.see)

    def see(self, event: str, values: tuple[object, ...]) -> None:
        if self.folder is not None and event == "open" and str(values[0]).startswith(str(self.folder)):
            self.paths.append(str(values[0]))


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


@pytest.mark.slow
def test_no_file_of_a_case_is_opened_in_the_process_that_keeps_the_ledger(
    tmp_path: Path, bundle: Path, opened: Opened
) -> None:
    for number in range(8):
        save_case(tmp_path / "in" / f"{number}.nii.gz", seed=number)
    image = sitk.ReadImage(str(save_case(tmp_path / "one.nii.gz")))
    write(ct_series(), tmp_path / "in" / "study")
    for name in ("a.mha", "b.nrrd", "c.mhd"):
        sitk.WriteImage(image, str(tmp_path / "in" / name))
    opened.folder = tmp_path / "in"

    try:
        for _ in range(2):  # the second time all are done
            reports = segment_folder(bundle, tmp_path / "in", tmp_path / "out", workers="processes:1")
            assert reports.forecast
            assert all_done(list(reports))
    finally:
        opened.folder = None

    assert opened.paths == []


def test_a_change_of_a_file_that_only_a_header_names_is_seen_without_opening_the_header(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = sitk.ReadImage(str(save_case(tmp_path / "one.nii.gz")))
    sitk.WriteImage(image, str(tmp_path / "in" / "a.mhd"))
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (1, 1))
    (case,) = find_cases(tmp_path / "in")
    stamp = stamp_of(case)

    assert is_as_stamped(case, stamp)
    with (tmp_path / "in" / "a.raw").open("r+b") as file:
        file.write(b"1234")
    assert not is_as_stamped(case, stamp)
    assert not is_as_stamped(case, "")


# --- a folder that vanishes -----------------------------------------------------------------------------------------


def delete_ledger(out: Path) -> None:
    for path in out.glob(f"{LEDGER_NAME}*"):
        path.unlink()


def replace_ledger(out: Path) -> None:
    shutil.copy(out / LEDGER_NAME, out / "copy")
    (out / "copy").replace(out / LEDGER_NAME)


def delete_journal(out: Path) -> None:
    (out / f"{LEDGER_NAME}-wal").unlink()


def move_folder(out: Path) -> None:
    out.rename(out.with_name("moved"))


def put_other_folder(out: Path) -> None:
    out.rename(out.with_name("moved"))
    out.mkdir()


@pytest.mark.parametrize(
    "take_away", [delete_ledger, replace_ledger, delete_journal, shutil.rmtree, move_folder, put_other_folder]
)
def test_a_folder_or_ledger_that_vanishes_while_a_run_is_on_ends_it_with_a_sentence(
    tmp_path: Path, bundle: Path, take_away: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    for name in "abc":
        save_case(tmp_path / "in" / f"{name}.nii.gz")
    reports = segment_folder(bundle, tmp_path / "in", out, workers="serial")
    next(reports)
    take_away(out)

    with pytest.raises(OutputError, match="was moved, replaced or deleted while a run worked in it"):
        list(reports)

    assert not (out / "b.nii.gz").exists()
    assert not (out / "c.nii.gz").exists()


# --- a ledger that somebody else made -------------------------------------------------------------------------------

REPORT = {
    "case_id": "a", "status": "done", "findings": [], "quality": {"verdict": "accept", "reasons": []}, "outputs": {},
    "volumes_ml": {}, "seconds": {}, "peak_mib": 0.0, "attention": [], "versions": {}, "bundle_sha256": "0",
}  # fmt: skip


def make_ledger(out: Path, state: str, report: object, plan: object = None) -> None:
    """Write a ledger of one case as anybody can."""
    out.mkdir()
    texts = [one if isinstance(one, str) or one is None else json.dumps(one) for one in (report, plan)]
    with closing(sqlite3.connect(out / LEDGER_NAME)) as connection:
        connection.executescript(f"{SCHEMA}; PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute(
            "INSERT INTO cases (case_id, folded, identity, state, report, plan) VALUES ('a', 'a', 'i', ?, ?, ?)",
            (state, *texts),
        )
        connection.commit()


def plans(tmp_path: Path) -> list[dict[str, object]]:
    """Return plans that lead to a folder `home` and a file `file` beside the output folder."""
    scratch = new_scratch(Path()).name
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious", encoding="utf-8")
    (tmp_path / "home" / "thesis.txt").with_name(scratch).mkdir()
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    return [
        {"scratch": str(tmp_path / "home"), "files": [], "removed": []},
        {"scratch": "../home", "files": [], "removed": []},
        {"scratch": f"../home/{scratch}", "files": [], "removed": []},
        {"scratch": f"link/{scratch}", "files": [], "removed": []},
        {"scratch": "link", "files": [], "removed": []},
        {"scratch": scratch, "files": [], "removed": [str(tmp_path / "file")]},
        {"scratch": scratch, "files": [], "removed": ["../file"]},
        {"scratch": scratch, "files": [], "removed": ["link/thesis.txt"]},
        {"scratch": scratch, "files": [["../file", "nifti", "0"]], "removed": []},
        {"scratch": scratch, "files": [["link/thesis.txt", "nifti", "0"]], "removed": []},
    ]


@pytest.mark.parametrize("number", range(10))
def test_a_plan_in_a_ledger_from_elsewhere_touches_nothing_outside_of_its_folder(
    tmp_path: Path, bundle: Path, number: int
) -> None:
    plan, out = plans(tmp_path)[number], tmp_path / "out"
    make_ledger(out, "publishing", REPORT, plan)
    (out / "link").symlink_to(tmp_path / "home")
    scratch = out / str(plan["scratch"])
    if scratch.name.startswith(SCRATCH_PREFIX) and not scratch.exists():
        scratch.mkdir(parents=True)
        for name in ("file", "thesis.txt"):
            (scratch / name).write_text("theirs", encoding="utf-8")
    save_case(tmp_path / "in" / "b.nii.gz")
    before = tree(tmp_path / "home")

    try:
        segment(bundle, tmp_path / "in", out)
    except OutputError as error:
        assert "restore the file, or choose another output folder" in str(error)  # noqa: PT017 - it may end well too

    assert tree(tmp_path / "home") == before
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"


def test_results_do_not_follow_a_link_out_of_their_folder(tmp_path: Path, bundle: Path) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "out" / "previews").symlink_to(tmp_path / "home")

    (report,) = segment(bundle, tmp_path / "in", tmp_path / "out")

    assert report.status is CaseStatus.REJECTED
    assert "is a link out of the output folder" in str(report.findings[0])
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize("place", ["elsewhere.sqlite", "nowhere"])
def test_a_ledger_that_is_a_link_is_refused_and_nothing_is_written_there(
    tmp_path: Path, bundle: Path, place: str
) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "elsewhere.sqlite").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LEDGER_NAME).symlink_to(tmp_path / place)

    with pytest.raises(OutputError, match="is no file, as `voxelgate segment` makes one"):
        segment(bundle, tmp_path / "in", tmp_path / "out")
    with pytest.raises(OutputError, match="is no file, as `voxelgate segment` makes one"):
        status(tmp_path / "out")

    assert not (tmp_path / "elsewhere.sqlite").stat().st_size
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("ending", ["-journal", "-wal", "-shm"])
def test_a_journal_of_a_ledger_that_is_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path, ending: str) -> None:
    make_ledger(tmp_path / "out", "done", REPORT)
    os.mkfifo(tmp_path / "out" / f"{LEDGER_NAME}{ending}")

    for use in (read_ledger, status, Ledger):
        with pytest.raises(OutputError, match=f"sqlite{ending} in it is no file, as `voxelgate segment` makes one"):
            use(tmp_path / "out")


@pytest.mark.parametrize("name", ["{outside}/evil", "../evil", "previews/../../evil", "."])
def test_a_name_in_a_ledger_that_leads_out_of_its_folder_ends_the_run_with_a_sentence(
    tmp_path: Path, bundle: Path, name: str
) -> None:
    save_case(tmp_path / "in" / "a.nii.gz")
    make_ledger(tmp_path / "out", "waiting", None)
    (case,) = find_cases(tmp_path / "in")
    with closing(sqlite3.connect(tmp_path / "out" / LEDGER_NAME)) as connection:
        connection.execute(
            "UPDATE cases SET case_id = ?, identity = ?", (name.format(outside=tmp_path / "home"), case.identity)
        )
        connection.commit()

    with pytest.raises(OutputError, match="holds what no run writes, such as files outside of the folder"):
        segment(bundle, tmp_path / "in", tmp_path / "out")

    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    "report",
    [5, [], "null", "no JSON", "[" * 100_000, {}, REPORT | {"status": "lost"}, REPORT | {"outputs": 5}]
    + [REPORT | {"quality": None}, REPORT | {"findings": [{"code": "?"}]}]
    + [REPORT | {name: 5} for name in ("versions", "volumes_ml", "seconds", "attention")]
    + [REPORT | {"outputs": {"nifti": path}} for path in ("/etc/passwd", "../in/a.nii.gz", "")],
    ids=lambda report: str(report)[-40:],
)
def test_a_row_of_a_ledger_that_is_no_report_ends_every_command_with_a_sentence(
    tmp_path: Path, bundle: Path, report: object
) -> None:
    make_ledger(tmp_path / "out", "done", report)
    save_case(tmp_path / "in" / "a.nii.gz")

    for use in (read_ledger, status):
        with pytest.raises(OutputError, match="holds what no run writes"):
            use(tmp_path / "out")
    with pytest.raises(OutputError, match="holds what no run writes"):
        segment(bundle, tmp_path / "in", tmp_path / "out")


def test_a_state_that_no_case_has_ends_with_a_sentence(tmp_path: Path) -> None:
    make_ledger(tmp_path / "out", "lost", None)

    with pytest.raises(OutputError, match="holds what no run writes"):
        status(tmp_path / "out")


def test_a_file_of_another_case_that_lies_outside_is_not_looked_for(tmp_path: Path) -> None:
    make_ledger(tmp_path / "out", "done", REPORT)
    with closing(Ledger(tmp_path / "out")) as ledger:
        ledger._connection.execute("INSERT INTO outputs VALUES ('../home/thesis.txt', 'a', 'nifti', '0', '')")
        with pytest.raises(OutputError, match="holds what no run writes"):
            ledger.files_of("a")


# --- a machine that is short of memory ------------------------------------------------------------------------------


def make_streaming_bundle(root: Path, inferer: str) -> Path:
    """Write a bundle whose inferer passes volumes through the network slice by slice, if it can."""
    make_attention_bundle(root)
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text("utf-8"))
    config["inferer"] |= {"_target_": inferer, "streaming": True}
    path.write_text(json.dumps(config), encoding="utf-8")
    seal(root)
    return root


def test_windows_instead_of_streaming_for_want_of_memory_are_told_in_report_and_ledger(tmp_path: Path) -> None:
    image, out = save_case(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"
    short = make_streaming_bundle(tmp_path / "short", "tests.batch_bundle.ShortOfMemory")
    roomy = make_streaming_bundle(tmp_path / "roomy", "voxelgate.RestoringSlidingWindowInferer")

    (report,) = segment_folder(short, image, out, workers="serial")
    (other,) = segment_folder(roomy, image, tmp_path / "other", workers="serial")

    assert report.versions["memory"] == "windows instead of streaming"
    assert "too little memory to pass the image through the network slice by slice" in str(report.findings[-1])
    assert "memory" not in other.versions
    entry, usual = (read_ledger(folder)[0][0].versions for folder in (out, tmp_path / "other"))
    assert json.loads(entry.options) == json.loads(usual.options) | {"memory": "windows instead of streaming"}
    assert entry.asked == usual.asked == usual.options
    written = (out / "a.nii.gz").stat().st_ino
    assert list(segment_folder(short, image, out, workers="serial")) == [report]
    assert (out / "a.nii.gz").stat().st_ino == written
