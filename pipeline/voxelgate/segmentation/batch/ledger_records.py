"""The records that the ledger keeps."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from voxelgate.segmentation.report import MEMORY, CaseReport

ENTRY_COLUMNS = (
    "case_id, identity, state, input_sha256, input_stamp, bundle_sha256, options, attempts, worker, started_s, ended_s"
)


class EntryState(StrEnum):
    """Where a case is; the last three are those of its report."""

    WAITING = "waiting"
    RUNNING = "running"
    PUBLISHING = "publishing"
    """Its files are finished and written down, and get their names now."""
    DONE = "done"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True)
class RunVersions:
    """What a result depends on.

    Args:
        input_sha256: of what the input files hold; empty if they could not be read.
        input_stamp: by which a later change of them shows; empty if it would not.
        bundle_sha256: fingerprint of the bundle.
        options: as text, with what memory made of them (`MEMORY`).
    """

    input_sha256: str
    input_stamp: str
    bundle_sha256: str
    options: str

    @property
    def asked(self) -> str:
        """Return the options as they were asked for, whatever memory made of them."""
        if f'"{MEMORY}"' not in self.options:
            return self.options
        try:
            made = json.loads(self.options)
            return json.dumps({name: made[name] for name in made if name != MEMORY})
        except (ValueError, TypeError, RecursionError):  # no run has written that
            return self.options


@dataclass(frozen=True)
class Entry:
    """A row of `cases`.

    Args:
        case_id: as in `Case`.
        identity: as in `Case`.
        state: where it is.
        versions: of the result, or of the last attempt.
        attempts: how often it was started in the run that worked on it last.
        worker: which worked on it last.
        started_s: when it was started last, seconds since 1970; 0 if never.
        ended_s: when it ended; 0 if it did not.
        report: of the last end; None before.
    """

    case_id: str
    identity: str
    state: EntryState
    versions: RunVersions
    attempts: int
    worker: str
    started_s: float
    ended_s: float
    report: CaseReport | None

    def is_done_as(self, bundle_sha256: str, options: str) -> bool:
        """Return whether it was done by a bundle with some options; its input may have changed since."""
        made_by = self.versions.bundle_sha256, self.versions.asked
        return self.state is EntryState.DONE and made_by == (bundle_sha256, options)


@dataclass(frozen=True)
class FileRecord:
    """A file of a case as it was written.

    Args:
        path: relative to the output folder.
        kind: of output.
        sha256: of the file, hex.
        stamp: by which a later change shows; empty if it would not.
    """

    path: Path
    kind: str
    sha256: str
    stamp: str = ""


@dataclass(frozen=True)
class PublishPlan:
    """What is written down before the files of a case get their names, so that any run can bring it to its end.

    Args:
        scratch: folder with the finished files, relative to the output folder.
        files: what they will be.
        removed: names whose files go, relative to the output folder.
    """

    scratch: Path
    files: tuple[FileRecord, ...]
    removed: tuple[Path, ...] = ()

    def to_json(self) -> str:
        """Return the plan as text."""
        files = [[str(file.path), file.kind, file.sha256] for file in self.files]
        return json.dumps({"scratch": str(self.scratch), "files": files, "removed": list(map(str, self.removed))})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the plan that `to_json` wrote."""
        record = json.loads(text)
        files = tuple(FileRecord(Path(path), kind, sha256) for path, kind, sha256 in record["files"])
        return cls(Path(record["scratch"]), files, tuple(map(Path, record["removed"])))


@dataclass(frozen=True)
class RunRecord:
    """A row of `runs`.

    Args:
        started_s: seconds since 1970.
        ended_s: the same; None if it goes on or was killed.
        engine: as given.
        bundle: name and version.
    """

    started_s: float
    ended_s: float | None
    engine: str
    bundle: str
