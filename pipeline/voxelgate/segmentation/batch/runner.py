"""Bring cases to their end on the workers of an engine, and keep the ledger of it."""

import logging
import shutil
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from voxelgate.core.errors import OutputError
from voxelgate.core.files import new_scratch
from voxelgate.core.findings import Severity, remark
from voxelgate.core.text import shown
from voxelgate.segmentation.batch.case_table import write_tables
from voxelgate.segmentation.batch.dispatch import Dispatcher, Ended, Ticket
from voxelgate.segmentation.batch.engines import Engine
from voxelgate.segmentation.batch.input_stamps import is_as_stamped
from voxelgate.segmentation.batch.ledger import LEDGER_NAME, Ledger
from voxelgate.segmentation.batch.ledger_records import Entry, RunVersions
from voxelgate.segmentation.batch.publish import is_intact, publish_case, recover, refuse_foreign
from voxelgate.segmentation.batch.worker import CaseJob, Outcome, Setup
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.faults import Fault, fault_of
from voxelgate.segmentation.output_names import output_paths
from voxelgate.segmentation.report import MEMORY, SMALLER_WINDOWS, CaseReport, CaseStatus
from voxelgate.segmentation.segment import unfinished, versions

logger = logging.getLogger(__name__)


def run_cases(
    arrivals: Iterable[Sequence[Case]],
    setup: Setup,
    engine: Engine,
    ledger: Ledger,
    refused: Mapping[str, str] | None = None,
) -> Generator[CaseReport, None, None]:
    """Segment cases and yield the report of each when it ends, or at once if it is done already.

    However it ends, the table is written, and what is not done waits for the next run.

    Args:
        arrivals: cases that came in; empty where more may come later.
        setup: of the run.
        engine: where cases are worked on; it is closed.
        ledger: of the output folder, whose lock the caller holds.
        refused: why cases cannot be done here, by the identity of their input.

    Raises:
        VoxelgateError: no case can be done: bundle, device or workers cannot be used, or the output folder takes no
            files.
    """
    runner = _Runner(setup, engine, ledger, refused or {})
    with _closing(runner):
        recover(ledger)
        for cases in arrivals:
            runner.enrol(cases)
            yield from runner.turn()
        while runner.is_busy:
            yield from runner.turn()


@contextmanager
def _closing(runner: "_Runner") -> Iterator[None]:
    is_abandoned = True
    try:
        yield
        is_abandoned = False
    finally:
        runner.close(is_abandoned=is_abandoned)


class _Runner:
    def __init__(self, setup: Setup, engine: Engine, ledger: Ledger, refused: Mapping[str, str]) -> None:
        self._setup, self._engine, self._ledger = setup, engine, ledger
        self._refused = refused
        self._dispatcher = Dispatcher(engine, setup, self)
        self._ended: deque[CaseReport] = deque()
        self._again: dict[str, Case] = {}
        self._images: set[Path] = set()

    @property
    def is_busy(self) -> bool:
        """Return whether there is anything left to do."""
        return self._dispatcher.is_busy or bool(self._ended)

    def enrol(self, cases: Sequence[Case]) -> None:
        """Take in cases; one that is worked on now, such as a study that got new images, comes after its end."""
        active = self._dispatcher.active if cases else set()
        self._images.update(path.resolve() for case in cases for path in case.channels)
        for case in self._ledger.enrol(cases) if cases else ():
            if case.case_id in active:
                self._again[case.case_id] = case
            else:
                self._dispatcher.add(case)

    def turn(self) -> Iterator[CaseReport]:
        """Do what can be done now, and yield the reports of what ended."""
        self._ledger.check()
        for ended in self._dispatcher.turn():
            self._ended.append(self._settle(ended))
        while self._ended:
            report = self._ended.popleft()
            if report.case_id in self._again:
                self._dispatcher.add(self._again.pop(report.case_id))
            yield report

    def close(self, *, is_abandoned: bool) -> None:
        """Let the workers go, and leave ledger, table and folder as they shall be found."""
        self._engine.close(is_abandoned=is_abandoned)
        try:
            recover(self._ledger)
            self._ledger.end_run()
            write_tables(self._ledger.out_dir)
        except OutputError:
            if not is_abandoned:
                raise  # else what ended the run is told, and the next one will do it

    def job_for(self, ticket: Ticket) -> CaseJob | None:
        """Return what to do for a case, or end it if nothing is."""
        case_id = ticket.case.case_id
        entry = self._ledger.entry(case_id)
        try:
            self._refuse_names(ticket.case)
        except OutputError as error:
            self._ended.append(self._end(self._unfinished(case_id, CaseStatus.REJECTED, str(error))))
            return None
        known_sha256 = self._known(entry)
        if known_sha256 and entry.report is not None and _is_unchanged(ticket.case, entry):
            self._ended.append(entry.report)
            return None
        if self._refused and (reason := self._refused.get(ticket.case.identity)):
            self._ended.append(self._end(self._unfinished(case_id, CaseStatus.REJECTED, reason)))
            return None
        return CaseJob(ticket.case, self._setup, new_scratch(self._setup.out_dir), ticket.shrinks, known_sha256)

    def _refuse_names(self, case: Case) -> None:
        """Refuse names of results under which stands something else.

        Raises:
            OutputError: names the file; whether overwriting is allowed or not, none is that of an image.
        """
        options = self._setup.options
        out_dir = self._setup.out_dir
        names = output_paths(case, out_dir, options.outputs, options.attention, options.structures).values()
        refuse_foreign(self._ledger, case.case_id, names, overwrite=options.overwrite)
        for path in names:
            if path.exists() and path.resolve() in self._images:
                raise OutputError(f"{path.name}: is an image to segment; choose another output folder.")

    def _known(self, entry: Entry) -> str:
        """Return the SHA-256 of the input whose results stand; empty if none do, by this bundle and these options."""
        is_done = entry.is_done_as(self._setup.bundle_sha256, self._setup.choices)
        if entry.report is None or not is_done or self._setup.options.again:
            return ""
        gone = [path for path in entry.report.outputs.values() if not is_intact(self._ledger, entry.case_id, path)]
        for path in gone:
            logger.info("%s: is not what was written any more, and is made again.", path.name)
        return "" if gone else entry.versions.input_sha256

    def started(self, ticket: Ticket, job: CaseJob, worker: str) -> None:
        """Note that a worker has a case now; one whose results stand stays done until its input is read."""
        if not job.known_sha256:
            self._ledger.start(ticket.case.case_id, worker, ticket.attempts + 1)

    def put_aside(self, ticket: Ticket, job: CaseJob) -> None:
        """Note that a case will be tried again; whatever the last attempt left is of no use."""
        shutil.rmtree(job.scratch, ignore_errors=True)
        if not job.known_sha256:
            self._ledger.wait(ticket.case.case_id)

    def _settle(self, ended: Ended) -> CaseReport:
        """Write down how a case ended, and return its report.

        Raises:
            OutputError: the output folder takes no files.
        """
        case_id, outcome = ended.ticket.case.case_id, ended.outcome
        if outcome is None:
            shutil.rmtree(ended.job.scratch, ignore_errors=True)
            sentence = f"{case_id}: {ended.reason}; look at the image, the memory of the machine and --timeout."
            return self._end(self._with_older(self._unfinished(case_id, CaseStatus.FAILED, sentence)))
        if outcome.report is None:
            return self._confirmed(case_id, outcome)
        if outcome.fault is Fault.STORAGE:
            raise OutputError(str(outcome.report.findings[-1]))
        if outcome.report.status is CaseStatus.DONE:
            return self._published(ended.job, _legible(outcome.report), outcome)
        return self._end(self._with_older(outcome.report), outcome)

    def _with_older(self, report: CaseReport) -> CaseReport:
        """Return the report of a case without a result, which warns of files that stand from an earlier one."""
        files = [
            file.path for file in self._ledger.files_of(report.case_id) if (self._setup.out_dir / file.path).is_file()
        ]
        if not files:
            return report
        sentence = (
            f"{report.case_id}: {', '.join(path.name for path in files)} of an earlier run may be of another image."
        )
        return replace(report, findings=(*report.findings, remark(sentence, Severity.WARN)))

    def _published(self, job: CaseJob, report: CaseReport, outcome: Outcome) -> CaseReport:
        memory = SMALLER_WINDOWS if job.shrinks else report.versions.get(MEMORY, "")
        try:
            self._refuse_names(job.case)
            is_withheld = report.verdict is not None and not self._setup.options.require.admits(report.verdict)
            versions_of_run = self._versions(outcome, memory)
            publish_case(self._ledger, report, (job.scratch, outcome.sha256s), versions_of_run, is_withheld=is_withheld)
        except OutputError as error:
            if fault_of(error) is Fault.STORAGE:
                raise
            shutil.rmtree(job.scratch, ignore_errors=True)
            return self._end(self._unfinished(report.case_id, CaseStatus.REJECTED, str(error)), outcome)
        return report

    def _confirmed(self, case_id: str, outcome: Outcome) -> CaseReport:
        """Return the report of a case whose files were touched but hold what they held."""
        self._ledger.confirm(case_id, outcome.input_stamp)
        report = self._ledger.entry(case_id).report
        if report is None:
            raise OutputError(f"{case_id}: the ledger lost its report; restore {LEDGER_NAME}.")
        return report

    def _end(self, report: CaseReport, outcome: Outcome | None = None) -> CaseReport:
        legible = _legible(report)
        self._ledger.end(legible, self._versions(outcome))
        return legible

    def _versions(self, outcome: Outcome | None, memory: str = "") -> RunVersions:
        of_input = ("", "") if outcome is None else (outcome.input_sha256, outcome.input_stamp)
        return RunVersions(*of_input, self._setup.bundle_sha256, self._setup.choices_with(memory))

    def _unfinished(self, case_id: str, status: CaseStatus, sentence: str) -> CaseReport:
        return unfinished(
            case_id, status, self._setup.bundle_sha256, versions(self._setup.name, self._setup.version), sentence
        )


def _legible(report: CaseReport) -> CaseReport:
    """Return a report whose findings can be stored and shown; they name files, which may be called anything."""
    findings = tuple(replace(finding, message=shown(finding.message)) for finding in report.findings)
    return replace(report, findings=findings)


def _is_unchanged(case: Case, entry: Entry) -> bool:
    """Return whether the input files are surely those that were read; if not, what they hold decides."""
    try:
        return is_as_stamped(case, entry.versions.input_stamp)
    except (OSError, ValueError):
        return False
