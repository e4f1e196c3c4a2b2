"""What became of one case: the record that commands print, the ledger keeps and the report page shows."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from voxelgate.core.findings import Finding, FindingCode, Severity, remark
from voxelgate.core.verdict import Quality, Verdict
from voxelgate.images.pictures import is_picture
from voxelgate.inference.attention.gate_report import GateReport

OLD_FINDING = re.compile(rf"({'|'.join(FindingCode)})( \(note\))?: (.*)", re.DOTALL)
"""A finding with a code as ledgers before 0.4.0 hold it: its text alone."""


MEMORY = "memory"
"""Among `versions` and in the ledger's options: with what a case was done because memory was too small for more."""

WINDOWS_FOR_MEMORY, SMALLER_WINDOWS = "windows instead of streaming", "smaller windows"


class CaseStatus(StrEnum):
    """What became of a case.

    >>> vg.CaseStatus("done").name
    'DONE'
    """

    DONE = "done"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True)
class CaseReport:
    """What became of one case.

    Args:
        case_id: as in `Case`.
        status: done, rejected (the input, or where its results shall stand, is not as it must be, which the user can
            mend) or failed (a fault of ours, or of the machine).
        bundle_sha256: fingerprint of the bundle that ran.
        versions: of the bundle and of the software.
        findings: each thing worth knowing; if not done, the reason.
        outputs: the files that were written, if done, by their kind; of a result that is not as it was required to be
            the preview alone.
        volumes_ml: volume of each structure, if done.
        seconds: for reading and preprocessing ("read"), network and restoring ("network"), and "write", if done.
        quality: whether the result can be taken as it is; None if there is none.
        peak_mib: highest resident memory of the process so far, if done.
        attention: what each attention gate does, finest first, if its maps were asked for.
        is_picture: whether the image is a picture, whose sizes are told in pixels.

    Raises:
        ValueError: done without a quality, or a quality without a result.

    >>> (report,) = vg.segment("my_bundle", "scan.nii.gz", "reported", workers="serial")
    >>> report.case_id, str(report.status), [path.name for path in report.outputs.values()]
    ('scan', 'done', ['scan.nii.gz'])
    """

    case_id: str
    status: CaseStatus
    bundle_sha256: str
    versions: Mapping[str, str]
    findings: tuple[Finding, ...] = ()
    outputs: Mapping[str, Path] = field(default_factory=dict)
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    quality: Quality | None = None
    peak_mib: float = 0.0
    attention: tuple[GateReport, ...] = ()
    is_picture: bool = False

    def __post_init__(self) -> None:
        if (self.status is CaseStatus.DONE) != (self.quality is not None):
            raise ValueError(f"a case has a quality if it is done, and only then; found {self.status}")

    @property
    def verdict(self) -> Verdict | None:
        """Return the verdict on the result; None if there is none."""
        return None if self.quality is None else self.quality.verdict

    def to_json(self) -> str:
        """Return the report as one line of JSON, without a line end."""
        record = {
            "case_id": self.case_id,
            "status": self.status,
            "findings": [asdict(finding) for finding in self.findings],
            "quality": None if self.quality is None else asdict(self.quality),
            "outputs": {str(kind): str(path) for kind, path in self.outputs.items()},
            "volumes_ml": dict(self.volumes_ml),
            "seconds": dict(self.seconds),
            "peak_mib": self.peak_mib,
            "attention": [asdict(gate) for gate in self.attention],
            "versions": dict(self.versions),
            "bundle_sha256": self.bundle_sha256,
            "is_picture": self.is_picture,
        }
        return json.dumps(record, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "CaseReport":
        """Return the report that `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, RecursionError: it is none.
        """
        record: dict[str, Any] = json.loads(line)
        record.setdefault("is_picture", is_picture(Path(record["outputs"].get("nifti", ""))))  # older ledgers lack it
        report = _ADAPTER.validate_python(record | {"findings": tuple(map(_as_finding, record["findings"]))})
        report.to_json().encode()  # what cannot be written, such as a number that is none, no report holds
        return report


_ADAPTER = TypeAdapter(CaseReport)
"""Sees to it that each field holds what it should."""


def _as_finding(record: Mapping[str, str] | str) -> Finding:
    """Return a finding from its JSON; of a text, as older ledgers have it, the severity is a guess unless a note."""
    if not isinstance(record, str):
        return Finding(FindingCode(record["code"]), Severity(record["severity"]), record["message"])
    found = OLD_FINDING.fullmatch(record)
    if found is None:
        return remark(record)
    code, note, sentence = found.groups()
    return Finding(FindingCode(code), Severity.NOTE if note else Severity.WARN, sentence)
