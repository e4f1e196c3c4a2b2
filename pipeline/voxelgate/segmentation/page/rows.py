"""What the report says of a run, in plain values that go into the page as JSON."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from voxelgate.core.verdict import Verdict
from voxelgate.evaluation.scores import LabelScores
from voxelgate.images.pictures import PIXELS_PER_ML
from voxelgate.segmentation.page.reference import Truth
from voxelgate.segmentation.report import CaseReport, CaseStatus

PREVIEW_KIND = "preview"
"""Key of the preview among a case's outputs; it is shown in the page, and not linked."""

EMBEDDED = "page"
"""Where a preview is that lies in the page itself."""

UNREADABLE = "unreadable"
"""In the place of a preview that is damaged."""

SHOWN_DIGITS = 12
"""Hex digits of a bundle's fingerprint that are shown."""


@dataclass(frozen=True)
class RunFacts:
    """What a page says of the run as a whole.

    Args:
        cases: all reports, in the order of the table.
        page_dir: folder that the page lies in, with the outputs in it or below it.
        unfinished: cases that still wait or run.
        started: when the first run started, for people.
        ended: when the last case ended, for people.
        busy_s: how long runs were on, pauses between them aside; 0 if unknown.
        truths: what true labels say, by case id; empty where nobody gave any.
    """

    cases: Sequence[CaseReport]
    page_dir: Path
    unfinished: int = 0
    started: str = ""
    ended: str = ""
    busy_s: float = 0.0
    truths: Mapping[str, Truth] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Return how many cases have each outcome: the verdicts of what is done, and the other states."""
        outcomes = [outcome(case) for case in self.cases]
        names = [*Verdict, *(status for status in CaseStatus if status is not CaseStatus.DONE)]
        return {str(name): outcomes.count(str(name)) for name in names} | {"unfinished": self.unfinished}

    @property
    def states(self) -> dict[str, int]:
        """Return how many cases ended in each state."""
        return {str(status): sum(case.status is status for case in self.cases) for status in CaseStatus}

    @property
    def cases_an_hour(self) -> float | None:
        """Return how many cases ended in an hour, or None if nobody knows."""
        return 3600 * len(self.cases) / self.busy_s if self.busy_s > 0 and self.cases else None

    @property
    def median_seconds(self) -> dict[str, float]:
        """Return the median time of each stage of the cases that are done."""
        done = [case.seconds for case in self.cases if case.status is CaseStatus.DONE]
        stages = dict.fromkeys(stage for seconds in done for stage in seconds)
        return {stage: statistics.median(one[stage] for one in done if stage in one) for stage in stages}

    @property
    def in_pixels(self) -> bool:
        """Return whether all that is measured are pictures, whose sizes are told in pixels."""
        measured = [case for case in self.cases if case.volumes_ml]
        return bool(measured) and all(case.is_picture for case in measured)

    @property
    def mean_dice(self) -> dict[str, float]:
        """Return the mean Dice of each structure over the cases with true labels, where it is defined."""
        found: dict[str, list[float]] = {}
        for truth in self.truths.values():
            for one in truth.scores:
                found.setdefault(one.label, []).extend([one.dice] if math.isfinite(one.dice) else [])
        return {name: statistics.mean(values) for name, values in found.items() if values}

    @property
    def overall_dice(self) -> float | None:
        """Return the mean of the means, each structure weighing the same, as `voxelgate evaluate` gives it."""
        return statistics.mean(self.mean_dice.values()) if self.mean_dice else None

    @property
    def calibrated(self) -> int:
        """Return how many results have a Dice that is foretold; the verdicts on the others rest on fixed rules."""
        return sum(case.quality is not None and case.quality.predicted_dice is not None for case in self.cases)

    @property
    def structures(self) -> list[str]:
        """Return the names of all structures, in the order of the first case that has them."""
        return list(dict.fromkeys(name for case in self.cases for name in case.volumes_ml))

    @property
    def software(self) -> list[dict[str, str]]:
        """Return each set of bundle and software versions that cases were made with, in order of appearance."""
        seen = dict.fromkeys(tuple(_software(case).items()) for case in self.cases)
        return [dict(versions) for versions in seen]


def outcome(case: CaseReport) -> str:
    """Return the one word by which the page sorts a case: the verdict, or why there is none."""
    return str(case.verdict or case.status)


def case_rows(
    facts: RunFacts, places: Mapping[int, str] | None = None, *, is_single_file: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield what the page says of each case, as JSON values.

    Args:
        facts: of the run.
        places: where the preview of each case is, by its number: `EMBEDDED`, or the name of a pack.
        is_single_file: whether previews without a place found no room; else they are damaged.
    """
    structures, software = facts.structures, facts.software
    size = PIXELS_PER_ML if facts.in_pixels else 1
    for number, case in enumerate(facts.cases):
        path = case.outputs.get(PREVIEW_KIND)
        elsewhere = None if path is None else link(path, facts.page_dir) if is_single_file else UNREADABLE
        truth = facts.truths.get(case.case_id)
        yield {
            "id": case.case_id,
            "status": case.status,
            "outcome": outcome(case),
            "reasons": list(map(str, case.findings if case.quality is None else case.quality.reasons)),
            "findings": list(map(str, () if case.quality is None else case.findings)),
            "volumes": [
                None if (ml := case.volumes_ml.get(name)) is None else _short(size * ml) for name in structures
            ],
            "foretold": _foretold_row(case, structures),
            "seconds": {stage: _short(value) for stage, value in case.seconds.items()},
            "peak_mib": round(case.peak_mib),
            "gates": [str(gate) for gate in case.attention],
            "truth": None if truth is None else _truth_row(truth, structures),
            "software": software.index(_software(case)),
            "links": [
                [kind, link(path, facts.page_dir)] for kind, path in case.outputs.items() if kind != PREVIEW_KIND
            ],
            "preview": (places or {}).get(number, elsewhere),
        }


def _foretold_row(case: CaseReport, structures: Sequence[str]) -> dict[str, Any] | None:
    """Return the Dice that is foretold, with the interval of each structure; None if nothing is."""
    if case.quality is None or not (of_structures := case.quality.structures):
        return None
    intervals = [
        None if (one := of_structures.get(name)) is None else [one.value, one.low, one.high] for name in structures
    ]
    return {"dice": case.quality.predicted_dice, "structures": intervals}


def link(path: Path, page_dir: Path) -> str:
    """Return a relative link to an output; what a case is called can then neither be a scheme nor leave the folder."""
    return "./" + quote(path.relative_to(page_dir).as_posix())


def _short(value: float) -> float:
    """Return a number with more digits than are shown, but not all of them."""
    return float(f"{value:.7g}")


def _truth_row(truth: Truth, structures: Sequence[str]) -> dict[str, Any]:
    of_label = {one.label: one for one in truth.scores}
    defined = [one.dice for one in truth.scores if math.isfinite(one.dice)]
    return {
        "dice": statistics.mean(defined) if defined else None,
        "scores": [None if (one := of_label.get(name)) is None else _score_row(one) for name in structures],
        "gates": [str(gate) for gate in truth.gates],
    }


def _score_row(one: LabelScores) -> dict[str, Any]:
    """Return what is shown of a structure; what is undefined is None, for JSON knows no NaN."""
    return {
        name: value if math.isfinite(value) else None for name, value in (("dice", one.dice), ("hd95", one.hd95_mm))
    }


def _software(case: CaseReport) -> dict[str, str]:
    return {**case.versions, "fingerprint": case.bundle_sha256[:SHOWN_DIGITS]} if case.bundle_sha256 else {}
