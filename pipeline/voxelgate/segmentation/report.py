"""What became of one case: the record that commands print, the ledger keeps and the report page shows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class CaseStatus(StrEnum):
    """What became of a case."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class Verdict(StrEnum):
    """What to do with a result before anybody relies on it."""

    ACCEPT = "accept"
    REVIEW = "review"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Quality:
    """Whether a result can be taken as it is.

    Args:
        verdict: accept, review (a person must look), or refuse (it is surely wrong).
        reasons: a sentence for each doubt; empty if accepted.
    """

    verdict: Verdict = Verdict.ACCEPT
    reasons: tuple[str, ...] = ()


class GateVerdict(StrEnum):
    """What a gate does: the same everywhere, nothing or everything, tell the labels apart, or vary without them."""

    UNIFORM = "uniform"
    SATURATED = "saturated"
    SELECTIVE = "selective"
    UNRELATED = "unrelated"


@dataclass(frozen=True)
class GateReport:
    """What the coefficients of one attention gate say.

    Args:
        level: of its skip connection, 0 the finest.
        verdict: in a word.
        low: value that all but a thousandth of the voxels exceed.
        high: value that only a thousandth of the voxels exceed.
        entropy: of the coefficients as a distribution over the voxels, 1 where all are equal, 0 for a single voxel.
        mass_inside: part of the sum of the coefficients that lies inside the labels.
        label_share: part of the voxels inside the labels: `mass_inside` of a gate that is the same everywhere.
        contrast: mean inside minus mean outside the labels; 0 if one of them is empty.
    """

    level: int
    verdict: GateVerdict
    low: float
    high: float
    entropy: float
    mass_inside: float
    label_share: float
    contrast: float

    def __str__(self) -> str:
        return (
            f"gate {self.level} is {self.verdict}: {self.low:.2f} to {self.high:.2f}, entropy {self.entropy:.3f}, "
            f"{100 * self.mass_inside:.1f} % of its mass on {100 * self.label_share:.1f} % of the voxels, the labels"
        )


@dataclass(frozen=True)
class CaseReport:
    """What became of one case.

    Args:
        case_id: as in `Case`.
        status: done, refused (the user can mend it) or failed (a fault of ours, or of the machine).
        bundle_sha256: fingerprint of the bundle that ran.
        versions: of the bundle and of the software.
        findings: a sentence for each thing worth knowing; if not done, the reason.
        outputs: the files that were written, if done, by their kind.
        volumes_ml: volume of each structure, if done.
        seconds: for reading and preprocessing ("read"), network and restoring ("network"), and "write", if done.
        quality: whether the result can be taken as it is, if done.
        peak_mib: highest resident memory of the process so far, if done.
        attention: what each attention gate does, finest first, if its maps were asked for.
    """

    case_id: str
    status: CaseStatus
    bundle_sha256: str
    versions: Mapping[str, str]
    findings: tuple[str, ...] = ()
    outputs: Mapping[str, Path] = field(default_factory=dict)
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    quality: Quality = Quality()
    peak_mib: float = 0.0
    attention: tuple[GateReport, ...] = ()

    def to_json(self) -> str:
        """Return the report as one line of JSON, without a line end."""
        record = {
            "case_id": self.case_id,
            "status": self.status,
            "findings": list(self.findings),
            "quality": {"verdict": self.quality.verdict, "reasons": list(self.quality.reasons)},
            "outputs": {str(kind): str(path) for kind, path in self.outputs.items()},
            "volumes_ml": dict(self.volumes_ml),
            "seconds": dict(self.seconds),
            "peak_mib": self.peak_mib,
            "attention": [asdict(gate) for gate in self.attention],
            "versions": dict(self.versions),
            "bundle_sha256": self.bundle_sha256,
        }
        return json.dumps(record, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "CaseReport":
        """Return the report that `to_json` wrote."""
        record: dict[str, Any] = json.loads(line)
        quality, gates = record.pop("quality"), record.pop("attention", ())  # older ledgers say nothing of gates
        return cls(
            **record
            | {
                "status": CaseStatus(record["status"]),
                "findings": tuple(record["findings"]),
                "outputs": {kind: Path(path) for kind, path in record["outputs"].items()},
                "quality": Quality(Verdict(quality["verdict"]), tuple(quality["reasons"])),
                "attention": tuple(GateReport(**gate | {"verdict": GateVerdict(gate["verdict"])}) for gate in gates),
            }
        )
