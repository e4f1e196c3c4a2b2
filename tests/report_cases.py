"""Cases for tests of the report page: small pictures, some volumes, and texts that would like to be HTML."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from voxelgate.core.findings import Finding, FindingCode, Severity, remark
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.verdict import Quality, Verdict
from voxelgate.evaluation.scores import LabelScores
from voxelgate.inference.attention.gate_report import GateReport, GateVerdict
from voxelgate.segmentation.page.reference import Truth
from voxelgate.segmentation.page.rows import RunFacts
from voxelgate.segmentation.preview import labels_as_shown, read_preview, sketch, write_preview
from voxelgate.segmentation.report import CaseReport, CaseStatus

TABLE = LabelTable(("background", "liver", "spleen"))
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>&amp;\u2028"
VERSIONS = {"bundle": "organs 1.0.0", "voxelgate": "0.2.0"}
SHAPE = (40, 36, 30)
GRID = Grid(SHAPE, np.diag((2.0, 2.0, 3.0, 1.0)))
GATES = (
    GateReport(0, GateVerdict.SELECTIVE, 0.1, 0.9, 0.95, 0.4, 0.1, 0.5),
    GateReport(1, GateVerdict.UNIFORM, 0.5, 0.5, 1.0, 0.1, 0.1, 0.0),
)


def preview_of(folder: Path, name: str, *, has_attention: bool = False) -> Path:
    """Write a preview of two bright organs in noise; on request a gate that rises to the left, and a uniform one."""
    path = folder / "previews" / f"{name}.webp"
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:24, 8:26, 6:22] = 1
    labels[26:34, 12:24, 8:20] = 2
    voxels = np.random.default_rng(0).normal(60, 10, SHAPE) + 60 * labels
    made = sketch(voxels, GRID)
    rising = np.linspace(1, 0, made.cells.shape[0], dtype=np.float32)[:, None, None]
    maps = {0: np.broadcast_to(rising, made.cells.shape), 1: np.full(made.cells.shape, 0.5, np.float32)}
    write_preview(path, made, labels, TABLE, maps if has_attention else None)
    return path


def done(out_dir: Path, name: str, liver_ml: float, quality: Quality | None = None) -> CaseReport:
    """Return a case that was segmented, with its preview."""
    return CaseReport(
        name,
        CaseStatus.DONE,
        "ab" * 32,
        VERSIONS,
        (Finding(FindingCode.LOSSY, Severity.WARN, "the images were compressed."),),
        {"nifti": out_dir / f"{name}.nii.gz", "preview": preview_of(out_dir, name)},
        {"liver": liver_ml, "spleen": 200.0},
        {"read": 0.5, "network": 2.0, "write": 0.25},
        quality or Quality(),
        900.0,
    )


def with_attention(report: CaseReport, out_dir: Path) -> CaseReport:
    """Return a case that was segmented with the attention maps of two gates."""
    outputs = {"nifti": report.outputs["nifti"], "attention-0": out_dir / f"{report.case_id}.attention-0.nii.gz"}
    preview = preview_of(out_dir, report.case_id, has_attention=True)
    return replace(report, outputs=outputs | {"preview": preview}, attention=GATES)


def truth_of(out_dir: Path, name: str) -> Truth:
    """Return what true labels say of a case, the liver of which lies a little to the left."""
    layout = read_preview(out_dir / "previews" / f"{name}.webp").layout
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:20, 8:26, 6:22] = 1
    scores = [
        LabelScores(name, "liver", 0.75, 0.6, 8.0, 2.0, 8.0, 0.0, 1600.0, 1600.0, 0.0),
        LabelScores(name, "spleen", 0.0, 0.0, *[math.nan] * 4, 200.0, 0.0, 200.0),
    ]
    return Truth(labels_as_shown(layout, labels, GRID), scores, [replace(gate, mass_inside=0.123) for gate in GATES])


def packed_previews(page: Path) -> dict[int, dict[str, Any]]:
    """Return the previews beside a page, by the number of their case."""
    found = {}
    for pack in page.with_name(f"{page.stem}_files").glob("*.js"):
        called, _, rest = pack.read_text(encoding="utf-8").partition("(")
        assert called == "voxelgatePreviews"
        previews = json.loads(rest.removesuffix(");\n"))
        found |= {int(number): json.loads(text) for number, text in previews.items()}
    return found


def some_cases(out_dir: Path) -> list[CaseReport]:
    """Return a case of each outcome, and one whose texts are hostile."""
    review = Quality(Verdict.REVIEW, ("border: the image ends within liver (head).",))
    refuse = Quality(Verdict.REFUSE, ("volume: liver 9000 ml, absurdly large; training had 900 ml to 2400 ml.",))
    hostile = replace(
        done(out_dir, "hostile", 1500.0, Quality(Verdict.REVIEW, (HOSTILE,))),
        case_id=HOSTILE,
        findings=(remark(HOSTILE),),
    )
    return [
        done(out_dir, "case_10", 1400.0),
        done(out_dir, "case_2", 1600.0),
        done(out_dir, "case_3", 900.0, review),
        done(out_dir, "case_4", 9000.0, refuse),
        hostile,
        CaseReport(
            "scan_5", CaseStatus.REJECTED, "ab" * 32, VERSIONS, (remark("scan_5: all voxels are 0.", Severity.REFUSE),)
        ),
        CaseReport(
            "scan_6",
            CaseStatus.FAILED,
            "ab" * 32,
            VERSIONS,
            (remark("the worker ended by signal 9.", Severity.REFUSE),),
        ),
    ]


def some_facts(out_dir: Path) -> RunFacts:
    """Return facts of a run with a case of each outcome."""
    return RunFacts(some_cases(out_dir), out_dir, 2, "2026-01-01 00:00 UTC", "2026-01-01 01:00 UTC", 70.0)
