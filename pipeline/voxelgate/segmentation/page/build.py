"""Build the report of an output folder: read the ledger and the previews, write a page and what lies beside it."""

import base64
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from voxelgate.core.errors import InputError, OutputError, UsageError
from voxelgate.core.files import whole_file
from voxelgate.core.page import page_style, page_templates, policy_hash
from voxelgate.core.progress import Progress
from voxelgate.core.verdict import Verdict
from voxelgate.segmentation.batch.ledger import read_inputs, read_ledger
from voxelgate.segmentation.batch.ledger_records import Entry, RunRecord
from voxelgate.segmentation.page.packs import pack_folder, pack_names, remove_packs, write_packs
from voxelgate.segmentation.page.reference import compared, judged_by, references_of
from voxelgate.segmentation.page.rows import EMBEDDED, PREVIEW_KIND, RunFacts, case_rows, link, outcome
from voxelgate.segmentation.preview import read_preview

logger = logging.getLogger(__name__)

REPORT_NAME = "report.html"

SCRIPTS = ("dom", "facts", "plots", "previews", "planes", "case", "list", "main")
"""Files of `js/`, in the order in which they make one script."""

EMBEDDED_BYTES = 120_000_000
"""Previews, as text, that one file holds at most; browsers open larger ones slowly."""


def write_page(
    out: Path | str,
    reference: Path | str | None = None,
    *,
    page: Path | str | None = None,
    data_root: Path | str | None = None,
    single_file: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the report of an output folder, from its ledger and previews; an older one is replaced.

    The pictures lie in a folder beside the page, `report_files`, which loads those of the case that is shown; move both
    together. A run may go on meanwhile; the page then shows what has ended.

    Args:
        out: folder that `voxelgate segment` wrote into.
        reference: manifest or folder with true labels, shown beside those that were found; see `references_of`.
        page: file to write, in `out` or in a folder above it; `report.html` in `out` if None.
        data_root: folder that the manifest's paths start from, if not its own.
        single_file: put the pictures into the page, to send it or keep it; those of some 1,500 cases find room.
        progress: called with the number of cases compared with their true labels and the number of all.

    Returns:
        The path of the page.

    Raises:
        OutputError: no ledger, or the page cannot be written.
        UsageError: true labels were given, but of no case.
        InputError: true labels cannot be read, or do not fit the result.
        ManifestError: the manifest cannot be used.

    >>> _ = list(vg.segment("my_bundle", "scan.nii.gz", "shown", workers="serial"))
    >>> vg.write_page("shown").name
    'report.html'
    """
    out_dir = Path(out)
    entries, runs = read_ledger(out_dir, is_strict=False)
    path = out_dir / REPORT_NAME if page is None else Path(page)
    if not out_dir.absolute().is_relative_to(path.parent.absolute()):
        raise UsageError(f"{path}: a page lies in {out_dir} or in a folder above it; choose such a name.")
    facts = run_facts(path.parent, entries, runs)
    if reference is not None:
        root = None if data_root is None else Path(data_root)
        paths = references_of(facts.cases, out_dir, Path(reference), root, read_inputs(out_dir))
        truths = compared(facts.cases, paths, progress)
        judged = [judged_by(case, truths.get(case.case_id)) for case in facts.cases]
        facts = replace(facts, cases=judged, truths=truths)
    return write_report(facts, path.name, single_file=single_file)


def run_facts(page_dir: Path, entries: Sequence[Entry], runs: Sequence[RunRecord]) -> RunFacts:
    """Return what a ledger says of all runs on a folder."""
    cases = [entry.report for entry in entries if entry.report is not None]
    last_s = max((entry.ended_s for entry in entries), default=0.0)
    busy_s = sum(max(0.0, (run.ended_s or last_s) - run.started_s) for run in runs)
    started = _for_people(runs[0].started_s) if runs else ""
    ended = _for_people(last_s) if last_s else ""
    return RunFacts(cases, page_dir, len(entries) - len(cases), started, ended, busy_s)


def write_report(facts: RunFacts, name: str = REPORT_NAME, *, single_file: bool = False) -> Path:
    """Write the page, whole or not at all, and the files beside it; older ones are replaced.

    Args:
        facts: of the run; outputs lie below its `page_dir`.
        name: of the file in `page_dir`.
        single_file: put all pictures into the page.

    Returns:
        The path of the page.

    Raises:
        OutputError: it cannot be written.
    """
    path = facts.page_dir / name
    folder = pack_folder(path)
    needed = pack_names(folder)
    try:
        packs = {} if single_file else write_packs(folder, _previews(facts, range(len(facts.cases))))
        with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(_page(facts, folder, None if single_file else packs))
        needed = set(packs.values())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free the disk or its rights.") from error
    finally:
        remove_packs(folder, needed)
    return path


def embedded_cases(facts: RunFacts, limit: int = EMBEDDED_BYTES) -> list[int]:
    """Return the numbers of the cases whose previews one file holds: as many as fit, those that need a look first."""
    needs_look = {str(Verdict.REFUSE): 0, str(Verdict.REVIEW): 1}
    chosen, total = [], 0
    for number, case in sorted(enumerate(facts.cases), key=lambda one: needs_look.get(outcome(one[1]), 2)):
        path = case.outputs.get(PREVIEW_KIND)
        if path is None or not path.is_file():
            continue
        total += path.stat().st_size * 4 // 3
        if total > limit:
            break
        chosen.append(number)
    return chosen


def _page(facts: RunFacts, folder: Path, packs: Mapping[int, str] | None) -> Iterator[str]:
    """Yield the page piece by piece; one preview at a time is in memory.

    Args:
        facts: of the run.
        folder: where the packs lie.
        packs: name of the pack with the preview of each case; None if the page itself holds them.
    """
    environment = page_templates("voxelgate.segmentation.page")
    environment.filters |= {"duration": _shown_duration}
    style = page_style("voxelgate.segmentation.page", "page.css")
    sources = files("voxelgate.segmentation.page") / "js"
    parts = [(sources / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = "\n".join(['"use strict";', "{", *parts, "}"])
    embedded = embedded_cases(facts) if packs is None else []
    places = dict.fromkeys(embedded, EMBEDDED) if packs is None else packs
    yield from environment.get_template("page.html.j2").generate(
        facts=facts,
        rows=case_rows(facts, places, is_single_file=packs is None),
        folder=link(folder, facts.page_dir),
        previews=_previews(facts, embedded),
        style=style,
        script=script,
        style_hash=policy_hash(style),
        script_hash=policy_hash(script),
        version=version("voxelgate"),
    )


def _previews(facts: RunFacts, numbers: Iterable[int]) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the number of each case whose preview can be read, and the preview as JSON values."""
    for number in numbers:
        case = facts.cases[number]
        path = case.outputs.get(PREVIEW_KIND)
        if path is None:
            continue
        try:
            preview = read_preview(path)
        except InputError as error:
            logger.warning("%s The page shows this case without pictures.", error)
            continue
        truth = facts.truths.get(case.case_id)
        values = {
            "layout": asdict(preview.layout),
            "image": _base64(preview.image),
            "labels": _base64(preview.labels),
            "truth": None if truth is None or truth.labels is None else _base64(truth.labels),
            "attention": [_base64(one) for one in preview.attention],
        }
        yield number, values


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _for_people(time_s: float) -> str:
    """Return a time; nothing of one that no calendar has, as a clock or a ledger may give it."""
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return ""


def _shown_duration(elapsed_s: float) -> str:
    """Say a time as a person would."""
    if elapsed_s < 60:
        return f"{elapsed_s:.2g} s" if elapsed_s < 10 else f"{elapsed_s:.0f} s"
    hours, minutes = divmod(round(elapsed_s / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
