"""What became of every case of an output folder: a SQLite file that one run writes, and anybody reads meanwhile.

Table `cases` has a row for each case: where its input lies, its state, the SHA-256 of input and bundle, options,
attempts, worker, and the report as JSON with findings, seconds and peak memory (`json_extract(report, '$.findings')`).
Table `outputs` has a row for each file with its SHA-256. While a run is on the file is in WAL mode, which needs a file
system of this machine, or one that only this machine uses (https://www.sqlite.org/wal.html); afterwards it can be read
from anywhere, by those too who may not write.

SQL by hand, since an object mapper knows no plan of renames that is undone or finished after a crash.
"""

import json
import os
import sqlite3
import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

from voxelgate.core.errors import OutputError
from voxelgate.core.files import is_scratch
from voxelgate.core.findings import Severity, remark
from voxelgate.core.text import shown
from voxelgate.core.verdict import Require
from voxelgate.segmentation.batch.ledger_records import (
    ENTRY_COLUMNS,
    Entry,
    EntryState,
    FileRecord,
    PublishPlan,
    RunRecord,
    RunVersions,
)
from voxelgate.segmentation.cases import HASH_DIGITS, Case
from voxelgate.segmentation.report import CaseReport, CaseStatus

LEDGER_NAME = "ledger.sqlite"

JOURNALS = ("-journal", "-wal", "-shm")
"""Endings of the files that SQLite keeps beside it while it is written (sqlite.org/tempfiles.html)."""

SCHEMA_VERSION = 3

MIGRATIONS = {
    1: """
ALTER TABLE cases ADD COLUMN input TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN hashed_names INTEGER NOT NULL DEFAULT 0
""",
    2: """
UPDATE cases SET options = with_any(options)
    WHERE options != '' AND json_extract(report, '$.quality.verdict') = 'refuse';
UPDATE cases SET report = json_set(report, '$.quality', NULL) WHERE json_extract(report, '$.status') != 'done';
UPDATE cases SET report = json_set(report, '$.status', 'rejected') WHERE json_extract(report, '$.status') = 'refused';
UPDATE cases SET state = 'rejected' WHERE state = 'refused'
""",
}
"""What makes a ledger of this version one of the next."""

LOCKED_S = 60.0
"""How long a run waits for somebody who keeps its ledger from changing."""

NAME_BYTES = 200
"""Longest name of a result without its folder and suffix; with a hash and the longest suffix, file systems take 255."""

NO_REPORT = remark("the ledger holds no report of this case, but something else; segment it again.", Severity.REFUSE)
"""Instead of what no run writes."""

BETWEEN = " | "
"""Between several things in one text."""

SCHEMA = """
CREATE TABLE cases (
    case_id TEXT PRIMARY KEY,
    folded TEXT NOT NULL UNIQUE,
    identity TEXT NOT NULL UNIQUE,
    input TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL,
    input_sha256 TEXT NOT NULL DEFAULT '',
    input_stamp TEXT NOT NULL DEFAULT '',
    bundle_sha256 TEXT NOT NULL DEFAULT '',
    options TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    worker TEXT NOT NULL DEFAULT '',
    started_s REAL NOT NULL DEFAULT 0,
    ended_s REAL NOT NULL DEFAULT 0,
    report TEXT,
    plan TEXT
) STRICT;
CREATE TABLE outputs (
    path TEXT PRIMARY KEY,
    case_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    stamp TEXT NOT NULL
) STRICT;
CREATE INDEX outputs_of_case ON outputs (case_id);
CREATE TABLE runs (
    started_s REAL NOT NULL,
    ended_s REAL,
    engine TEXT NOT NULL,
    bundle TEXT NOT NULL,
    hashed_names INTEGER NOT NULL
) STRICT;
"""


class Ledger:
    """The ledger of an output folder, open for the one run that holds the folder's lock.

    Args:
        out_dir: the output folder.

    Raises:
        OutputError: it cannot be written, is damaged, is a link, or was made by another version.
    """

    def __init__(self, out_dir: Path) -> None:
        self.out_dir = out_dir
        _refuse_other_than_file(out_dir)
        with _as_output_error(out_dir):
            self._connection = sqlite3.connect(
                out_dir / LEDGER_NAME, LOCKED_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._names: Sequence[object] = ()
                self._prepare()
                self._names = self._found_names()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        with self._transaction():
            _bring_up_to_date(self._connection, self.out_dir)

    def check(self) -> None:
        """Refuse to go on where somebody has taken the ledger, or its folder, away: nobody would find what is written.

        Raises:
            OutputError: they have.
        """
        if self._names and self._found_names() != self._names:
            raise OutputError(
                f"{self.out_dir}: the folder, or its {LEDGER_NAME}, was moved, replaced or deleted while a run worked "
                "in it; put it back, or choose another output folder, and run the command again."
            )

    def _found_names(self) -> list[object]:
        """Return which files have the names of the ledger and of its journal, which stands while a run is on."""
        return [_file_number(self.out_dir / f"{LEDGER_NAME}{ending}") for ending in ("", "-wal")]

    def close(self) -> None:
        """Close the file, and leave it without the others of WAL mode, unless somebody reads it just now."""
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()

    def begin_run(self, engine: str, bundle: str, *, hashed_names: bool = False) -> None:
        """Note that a run starts, and that what an earlier one left running is not.

        Raises:
            OutputError: earlier runs named their cases in the other way.
        """
        with self._transaction():
            earlier = self._connection.execute("SELECT hashed_names FROM runs LIMIT 1").fetchone()
            if earlier is not None and earlier[0] != hashed_names:
                raise OutputError(
                    f"{self.out_dir}: earlier runs wrote into it with{'' if earlier[0] else 'out'} --hashed-names; do "
                    "the same, or choose another output folder."
                )
            self._connection.execute(
                "INSERT INTO runs (started_s, engine, bundle, hashed_names) VALUES (?, ?, ?, ?)",
                (time.time(), engine, bundle, hashed_names),
            )
            self._connection.execute(
                "UPDATE cases SET state = ? WHERE state = ?", (EntryState.WAITING, EntryState.RUNNING)
            )

    def end_run(self) -> None:
        """Note that the run ended by itself; what it did not finish waits."""
        with self._transaction():
            self._connection.execute(
                "UPDATE runs SET ended_s = ? WHERE rowid = (SELECT max(rowid) FROM runs)", (time.time(),)
            )
            self._connection.execute(
                "UPDATE cases SET state = ? WHERE state = ?", (EntryState.WAITING, EntryState.RUNNING)
            )

    def enrol(self, cases: Sequence[Case]) -> list[Case]:
        """Give each case the id that its input has for good, and let what is not done wait.

        A known input keeps its id. A new one whose id belongs to another input, or to several new ones, gets the id
        with the start of its identity appended. Of an id that no file or text can have, the rest is taken.
        """
        named = [(case.identity, replace(case, case_id=_storable(case.case_id))) for case in cases]
        wanted = Counter({identity: _case_folded(case.case_id) for identity, case in named}.values())
        with self._transaction():
            enrolled = [
                self._enrolled(case, identity, is_shared=wanted[_case_folded(case.case_id)] > 1)
                for identity, case in named
            ]
            self._connection.executemany(
                "UPDATE cases SET input = ? WHERE case_id = ?",
                [(_place_of(case, self.out_dir), case.case_id) for case in enrolled],
            )
            return enrolled

    def _enrolled(self, case: Case, identity: str, *, is_shared: bool) -> Case:
        if case.supersedes:
            self._forget(case.supersedes)
        row = self._connection.execute("SELECT case_id FROM cases WHERE identity = ?", (identity,)).fetchone()
        if row is not None:
            self._connection.execute(
                "UPDATE cases SET state = ?, attempts = 0 WHERE identity = ? AND state IN (?, ?)",
                (EntryState.WAITING, identity, EntryState.REJECTED, EntryState.FAILED),
            )
            with _as_foreign(self.out_dir):
                return replace(case, case_id=_inner(Path(row[0])).as_posix())
        hashed = (f"{case.case_id}-{identity[:digits]}" for digits in (HASH_DIGITS, len(identity)))
        names = hashed if is_shared else chain([case.case_id], hashed)
        name = next(name for name in names if not self._is_taken(name))
        self._connection.execute(
            "INSERT INTO cases (case_id, folded, identity, state) VALUES (?, ?, ?, ?)",
            (name, _case_folded(name), identity, EntryState.WAITING),
        )
        return replace(case, case_id=name)

    def _forget(self, identity: str) -> None:
        """Drop the row of a study that had no image; it never has outputs."""
        self._connection.execute("DELETE FROM cases WHERE identity = ?", (identity,))

    def _is_taken(self, name: str) -> bool:
        """Return whether an input has the id."""
        found = self._connection.execute("SELECT 1 FROM cases WHERE folded = ?", (_case_folded(name),)).fetchone()
        return found is not None

    def entry(self, case_id: str) -> Entry:
        """Return what is known of an enrolled case."""
        with _as_output_error(self.out_dir):
            return next(_entries(self._connection, self.out_dir, "WHERE case_id = ?", (case_id,)))

    def entries(self) -> list[Entry]:
        """Return what is known of every case, by id."""
        with _as_output_error(self.out_dir):
            return list(_entries(self._connection, self.out_dir))

    def files_of(self, case_id: str) -> list[FileRecord]:
        """Return the files that were written of a case, whether they still stand or not."""
        with _as_output_error(self.out_dir):
            return _files_of_record(self._connection, case_id, self.out_dir)

    def owner_of(self, path: Path) -> str:
        """Return which case wrote a file, relative to the output folder; empty if none did."""
        with _as_output_error(self.out_dir):
            row = self._connection.execute("SELECT case_id FROM outputs WHERE path = ?", (str(path),)).fetchone()
        return "" if row is None else row[0]

    def start(self, case_id: str, worker: str, attempt: int) -> None:
        """Note that a worker has a case now."""
        with self._transaction():
            self._connection.execute(
                "UPDATE cases SET state = ?, worker = ?, attempts = ?, started_s = ?, ended_s = 0 WHERE case_id = ?",
                (EntryState.RUNNING, worker, attempt, time.time(), case_id),
            )

    def wait(self, case_id: str) -> None:
        """Note that no worker has a case any more, and that it will be tried again."""
        with self._transaction():
            self._connection.execute("UPDATE cases SET state = ? WHERE case_id = ?", (EntryState.WAITING, case_id))

    def plan(self, case_id: str, plan: PublishPlan, report: CaseReport, versions: RunVersions) -> None:
        """Write down what will be renamed; this survives a power failure, so that the renaming may start."""
        with self._transaction(is_durable=True):
            self._connection.execute(
                "UPDATE cases SET state = ?, plan = ?, report = ?, input_sha256 = ?, input_stamp = ?, "
                "bundle_sha256 = ?, options = ? WHERE case_id = ?",
                (EntryState.PUBLISHING, plan.to_json(), self._to_json(report), *_columns_of_entry(versions), case_id),
            )

    def open_plans(self) -> dict[str, PublishPlan]:
        """Return the plans that an earlier run wrote down and did not bring to their end, by case id."""
        with _as_output_error(self.out_dir):
            rows = self._connection.execute("SELECT case_id, plan FROM cases WHERE state = ?", (EntryState.PUBLISHING,))
            return {case_id: _plan_of_record(plan, self.out_dir) for case_id, plan in rows}

    def finish(self, case_id: str, plan: PublishPlan, stamps: Mapping[Path, str]) -> None:
        """Note that a plan was carried out.

        Args:
            case_id: of the plan.
            plan: as it was written down.
            stamps: of its files, now that they have their names.
        """
        rows = [(str(one.path), case_id, one.kind, one.sha256, stamps[one.path]) for one in plan.files]
        with self._transaction():
            for path in plan.removed:
                self._connection.execute("DELETE FROM outputs WHERE path = ?", (str(path),))
            self._connection.executemany("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?, ?)", rows)
            self._connection.execute(
                "UPDATE cases SET state = ?, plan = NULL, ended_s = ? WHERE case_id = ?",
                (EntryState.DONE, time.time(), case_id),
            )

    def end(self, report: CaseReport, versions: RunVersions) -> None:
        """Note that a case ended without a result."""
        with self._transaction():
            self._connection.execute(
                "UPDATE cases SET state = ?, plan = NULL, report = ?, ended_s = ?, input_sha256 = ?, input_stamp = ?, "
                "bundle_sha256 = ?, options = ? WHERE case_id = ?",
                (
                    EntryState(report.status),
                    self._to_json(report),
                    time.time(),
                    *_columns_of_entry(versions),
                    report.case_id,
                ),
            )

    def confirm(self, case_id: str, input_stamp: str) -> None:
        """Note that a done case was looked at again and is what it was."""
        with self._transaction():
            self._connection.execute(
                "UPDATE cases SET state = ?, input_stamp = ? WHERE case_id = ?", (EntryState.DONE, input_stamp, case_id)
            )

    def confirm_file(self, path: Path, stamp: str) -> None:
        """Note that an output was read again and is what it was."""
        with self._transaction():
            self._connection.execute("UPDATE outputs SET stamp = ? WHERE path = ?", (stamp, str(path)))

    def _to_json(self, report: CaseReport) -> str:
        """Return a report with paths that stay true when the output folder is moved."""
        outputs = {kind: path.relative_to(self.out_dir) for kind, path in report.outputs.items()}
        return replace(report, outputs=outputs).to_json()

    @contextmanager
    def _transaction(self, *, is_durable: bool = False) -> Iterator[None]:
        self.check()
        with _as_output_error(self.out_dir):
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have ended it
                    self._connection.execute("ROLLBACK")
                raise


def _bring_up_to_date(connection: sqlite3.Connection, out_dir: Path) -> None:
    """Make the tables, or those of an older version to what they are now."""
    found = _schema_version(connection, out_dir)
    connection.create_function("with_any", 1, _with_any, deterministic=True)
    for script in [SCHEMA] if not found else [MIGRATIONS[version] for version in range(found, SCHEMA_VERSION)]:
        for statement in script.split(";"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _with_any(options: str) -> str:
    """Return the options of a refused result that was written all the same, as it was before there was `require`."""
    return json.dumps(json.loads(options) | {"require": Require.ANY}, sort_keys=True)


def read_ledger(out_dir: Path, *, is_strict: bool = True) -> tuple[list[Entry], list[RunRecord]]:
    """Return all cases by id, and all runs in order, of an output folder; a run may go on meanwhile.

    Args:
        out_dir: the output folder.
        is_strict: whether a row that no run writes is refused; else it is that of a case that failed.

    Raises:
        OutputError: the folder has no ledger, or it cannot be read.
    """
    with _read_only(out_dir) as connection:
        if not _schema_version(connection, out_dir):  # a run has begun this moment
            return [], []
        runs = connection.execute("SELECT started_s, ended_s, engine, bundle FROM runs ORDER BY rowid")
        return list(_entries(connection, out_dir, is_strict=is_strict)), [RunRecord(*row) for row in runs]


class StoredEntries:
    """All cases of an output folder by id, read one by one whenever they are gone through; a run may go on meanwhile.

    Args:
        out_dir: the output folder.
    """

    def __init__(self, out_dir: Path) -> None:
        self._out_dir = out_dir

    def __iter__(self) -> Iterator[Entry]:
        """Yield each entry; raise `OutputError` where there is no ledger, or one that cannot be read."""
        with _read_only(self._out_dir) as connection:
            if _schema_version(connection, self._out_dir):
                yield from _entries(connection, self._out_dir)


def read_input_texts(out_dir: Path) -> dict[str, str]:
    """Return where the input of every case lies, by id, as paths from the output folder.

    Raises:
        OutputError: the folder has no ledger, or it cannot be read.
    """
    with _read_only(out_dir) as connection:
        if not _schema_version(connection, out_dir):
            return {}
        return dict(connection.execute("SELECT case_id, input FROM cases ORDER BY case_id").fetchall())


def read_inputs(out_dir: Path) -> dict[str, Path]:
    """Return where the input of every case lies, of several files the first, by id; none that version 1 did not know.

    Raises:
        OutputError: the folder has no ledger, or it cannot be read.
    """
    found = read_input_texts(out_dir)
    return {case_id: out_dir / places.partition(BETWEEN)[0] for case_id, places in found.items() if places}


@contextmanager
def _read_only(out_dir: Path) -> Iterator[sqlite3.Connection]:
    """Open the ledger of a folder, or a copy brought up to date of an older one; all that is read is of one time."""
    path = out_dir / LEDGER_NAME
    if not os.path.lexists(path):
        raise OutputError(f"{out_dir}: has no {LEDGER_NAME}; name the folder that `voxelgate segment` wrote into.")
    _refuse_other_than_file(out_dir)
    with (
        _as_output_error(out_dir),
        closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection,
    ):
        connection.execute("BEGIN")
        if _schema_version(connection, out_dir) in {0, SCHEMA_VERSION}:
            yield connection
            return
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
            connection.backup(copy)
            _bring_up_to_date(copy, out_dir)
            yield copy


def _schema_version(connection: sqlite3.Connection, out_dir: Path) -> int:
    """Return the version of a ledger, 0 of one without tables.

    Raises:
        OutputError: another program made it.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in {0, *MIGRATIONS, SCHEMA_VERSION}:
        raise OutputError(
            f"{out_dir}: its ledger has version {version}, expected {SCHEMA_VERSION}; choose another folder."
        )
    return version


def _entries(
    connection: sqlite3.Connection,
    out_dir: Path,
    where: str = "ORDER BY case_id",
    values: Iterable[str] = (),
    *,
    is_strict: bool = True,
) -> Iterator[Entry]:
    rows = connection.execute(f"SELECT {ENTRY_COLUMNS}, report FROM cases {where}", tuple(values))  # noqa: S608 - no input is in it
    for case_id, identity, state, *versions, attempts, worker, started_s, ended_s, report in rows:
        try:
            with _as_foreign(out_dir):
                known = None if report is None else _report_of_record(report, out_dir)
                known_state, times_s = EntryState(state), (float(started_s), float(ended_s))
        except OutputError:
            if is_strict:
                raise
            known, known_state = CaseReport(case_id, CaseStatus.FAILED, "", {}, (NO_REPORT,)), EntryState.FAILED
            times_s = (0.0, 0.0)
        yield Entry(case_id, identity, known_state, RunVersions(*versions), attempts, worker, *times_s, known)


def _report_of_record(text: str, out_dir: Path) -> CaseReport:
    report = CaseReport.from_json(text)
    return replace(report, outputs={kind: out_dir / _inner(path) for kind, path in report.outputs.items()})


def _plan_of_record(text: str, out_dir: Path) -> PublishPlan:
    """Return a plan; whether its paths lead through links is seen when it is carried out."""
    with _as_foreign(out_dir):
        plan = PublishPlan.from_json(text)
        for path in (*(file.path for file in plan.files), *plan.removed):
            _inner(path)
        if plan.scratch.parent != Path() or not is_scratch(plan.scratch):
            raise ValueError(plan.scratch)
    return plan


def _files_of_record(connection: sqlite3.Connection, case_id: str, out_dir: Path) -> list[FileRecord]:
    rows = connection.execute("SELECT path, kind, sha256, stamp FROM outputs WHERE case_id = ?", (case_id,))
    with _as_foreign(out_dir):
        return [FileRecord(_inner(Path(path)), kind, sha256, stamp) for path, kind, sha256, stamp in rows]


def _inner(path: Path) -> Path:
    """Return a path that somebody wrote down, if it leads to a place below a folder, links aside.

    Raises:
        ValueError: it does not.
    """
    if path.is_absolute() or not path.name or ".." in path.parts:
        raise ValueError(path)
    return path


def _case_folded(name: str) -> str:
    """Return what names share that are one where a file system ignores case, or how an accent is written."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _storable(name: str) -> str:
    """Return a name that a file, the ledger and a line of text can have."""
    folder, slash, last = shown(name).rpartition("/")
    return f"{folder}{slash}{last.encode()[:NAME_BYTES].decode(errors='ignore')}"


def _place_of(case: Case, out_dir: Path) -> str:
    """Return the files of a case, or the first of its series, as paths from the output folder."""
    places = case.channels or [file.path / file.member for file in case.input_files[:1]]
    return shown(BETWEEN.join(Path(os.path.relpath(place, out_dir)).as_posix() for place in places))


def _columns_of_entry(versions: RunVersions) -> tuple[str, str, str, str]:
    return versions.input_sha256, versions.input_stamp, versions.bundle_sha256, versions.options


def _file_number(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from every other, whatever it is called; None if there is none."""
    try:
        facts = path.lstat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _refuse_other_than_file(out_dir: Path) -> None:
    """Refuse a ledger that is a link, to what may be another program's, or a pipe, a device or a folder.

    SQLite opens the journals beside it too, and waits for ever at one that is a pipe.
    """
    for path in (out_dir / f"{LEDGER_NAME}{ending}" for ending in ("", *JOURNALS)):
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise OutputError(
                f"{out_dir}: {path.name} in it is no file, as `voxelgate segment` makes one, but a link, a folder or a "
                "pipe; remove it, or choose another output folder."
            )


@contextmanager
def _as_foreign(out_dir: Path) -> Iterator[None]:
    """Turn what rows raise that no run has written into one sentence."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{out_dir}: its {LEDGER_NAME} holds what no run writes, such as files outside of the folder; restore the "
            "file, or choose another output folder."
        ) from error


@contextmanager
def _as_output_error(out_dir: Path) -> Iterator[None]:
    """Turn what SQLite raises into one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(
            f"{out_dir}: its {LEDGER_NAME} cannot be used ({error}); free the disk or its rights, or restore the file."
        ) from error
