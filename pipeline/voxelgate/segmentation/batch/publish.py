"""Give finished files their names in the output folder, so that no moment of a crash leaves half of a case.

First a plan is written to the ledger, then the files are renamed, then the ledger says done. Whatever breaks off in
between, the next run carries the plan out. Only the process that holds the folder's lock renames anything: what a
worker still writes that was given up lies in a folder of its own, and is never looked at again.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from voxelgate.core.errors import OutputError
from voxelgate.core.files import (
    SCRATCH_PREFIX,
    SCRATCH_SUFFIX,
    file_sha256,
    is_within,
    new_scratch,
    publish,
    unwritable,
)
from voxelgate.segmentation.batch.input_stamps import stamp_of_path
from voxelgate.segmentation.batch.ledger import Ledger
from voxelgate.segmentation.batch.ledger_records import Entry, FileRecord, PublishPlan, RunVersions
from voxelgate.segmentation.faults import Fault, fault_of
from voxelgate.segmentation.output_names import set_of_kind, staged_place
from voxelgate.segmentation.report import CaseReport

logger = logging.getLogger(__name__)


def is_unmodified(ledger: Ledger, record: FileRecord) -> bool:
    """Return whether a file that stands is the one that was written; it is read only if its times changed."""
    path = ledger.out_dir / record.path
    found = stamp_of_path([path])
    if found == record.stamp:
        return True
    if file_sha256(path) != record.sha256:
        return False
    ledger.confirm_file(record.path, found)
    return True


def is_intact(ledger: Ledger, case_id: str, path: Path) -> bool:
    """Return whether a file of a case stands as it was written."""
    records = [one for one in ledger.files_of(case_id) if ledger.out_dir / one.path == path]
    try:
        return path.is_file() and bool(records) and not _leads_out(ledger, path) and is_unmodified(ledger, records[0])
    except OSError:
        return False


def refuse_foreign(ledger: Ledger, case_id: str, names: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse names under which stands what this case did not write, or what somebody changed since.

    Args:
        ledger: of the output folder.
        case_id: whose files may be replaced.
        names: where its files shall stand.
        overwrite: replace other files too, but never those of another case.

    Raises:
        OutputError: names the file.
    """
    own = {ledger.out_dir / record.path: record for record in ledger.files_of(case_id)}
    for path in names:
        if _leads_out(ledger, path):
            raise OutputError(f"{path.name}: its folder is a link out of the output folder; replace it by a folder.")
        try:
            path.lstat()  # of a link too that leads nowhere
            _refuse_foreign(ledger, path, own.get(path), overwrite=overwrite)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise OutputError(f"{path.name}: cannot be read, or is no name here ({error.strerror}).") from error


def _leads_out(ledger: Ledger, path: Path) -> bool:
    """Return whether a path of the output folder leads out of it through a link."""
    return not is_within(ledger.out_dir, path.relative_to(ledger.out_dir))


def _refuse_foreign(ledger: Ledger, path: Path, own: FileRecord | None, *, overwrite: bool) -> None:
    """Refuse a name under which something stands; `own` is what the case wrote there, if it did."""
    if path.is_dir():
        raise OutputError(f"{path.name}: is a folder, not a file; choose another output folder.")
    if own is None and (owner := ledger.owner_of(path.relative_to(ledger.out_dir))):
        raise OutputError(f"{path.name}: is a result of the case {owner}; rename the image of one of them.")
    if overwrite:
        return
    if own is None:
        raise OutputError(f"{path.name}: exists already; pass --overwrite, or choose another output folder.")
    if not is_unmodified(ledger, own):
        raise OutputError(f"{path.name}: was changed since it was written; move it away, or pass --overwrite.")


def publish_case(
    ledger: Ledger,
    report: CaseReport,
    finished: tuple[Path, Mapping[str, str]],
    versions: RunVersions,
    *,
    is_withheld: bool = False,
) -> None:
    """Give the files of a case their names, and note that it is done.

    Other files of the case go if they are of another input or bundle, if their kind was asked for and there is nothing
    to write of it, if they are of structures that the new ones leave out, or if the result is not one to be written.

    Args:
        ledger: of the output folder.
        report: of the case; its outputs are the names.
        finished: folder with the finished files, and their SHA-256 by kind.
        versions: of the result.
        is_withheld: whether the result is not as good as required.

    Raises:
        OutputError: a name cannot be given; what of the files stands all the same is the case's own, to be replaced.
    """
    scratch, sha256s = finished
    files = tuple(
        FileRecord(path.relative_to(ledger.out_dir), kind, sha256s[kind]) for kind, path in report.outputs.items()
    )
    removed = tuple(_outdated(ledger, ledger.entry(report.case_id), files, versions, is_withheld=is_withheld))
    plan = PublishPlan(scratch.relative_to(ledger.out_dir), files, removed)
    ledger.plan(report.case_id, plan, report, versions)
    try:
        _carry_out(ledger, report.case_id, plan, files)
    except OutputError as error:
        if fault_of(error) is not Fault.STORAGE:
            _give_up(ledger, report.case_id, plan)
        raise


def _outdated(
    ledger: Ledger, entry: Entry, files: tuple[FileRecord, ...], versions: RunVersions, *, is_withheld: bool
) -> Iterable[Path]:
    """Yield the files that the case wrote before and that its new files contradict."""
    old, kept = entry.versions, {file.path for file in files}
    is_same = (old.input_sha256, old.bundle_sha256) == (versions.input_sha256, versions.bundle_sha256)
    asked = old.asked == versions.asked or is_withheld
    renewed = {one_of for file in files if (one_of := set_of_kind(file.kind))}
    for record in ledger.files_of(entry.case_id):
        if record.path in kept:
            continue
        is_contradicted = asked or not is_same or set_of_kind(record.kind) in renewed
        if is_contradicted and is_intact(ledger, entry.case_id, ledger.out_dir / record.path):
            yield record.path


def _carry_out(ledger: Ledger, case_id: str, plan: PublishPlan, staged: Iterable[FileRecord]) -> None:
    """Give files of a plan their names, all that are not there yet, and note that it was carried out."""
    out_dir, scratch = ledger.out_dir, ledger.out_dir / plan.scratch
    moves = {out_dir / file.path: staged_place(scratch, file.path) for file in staged}
    try:
        if moves or plan.removed:
            scratch.mkdir(exist_ok=True)
            publish(moves, [out_dir / path for path in plan.removed], new_scratch(scratch))
        stamps = {file.path: stamp_of_path([out_dir / file.path]) for file in plan.files}
    except OSError as error:
        raise unwritable(case_id, error) from error
    ledger.finish(case_id, plan, stamps)
    shutil.rmtree(scratch, ignore_errors=True)


def _give_up(ledger: Ledger, case_id: str, plan: PublishPlan) -> None:
    """Note which files of a plan stand that cannot be carried out: the case's own, so that it may replace them."""
    whole = [file for file in plan.files if _has(ledger.out_dir / file.path, file.sha256)]
    stamps = {file.path: stamp_of_path([ledger.out_dir / file.path]) for file in whole}
    ledger.finish(case_id, replace(plan, files=tuple(whole), removed=()), stamps)
    ledger.wait(case_id)


def recover(ledger: Ledger) -> None:
    """Bring to its end what an earlier run began to rename, and remove what it left unfinished.

    Raises:
        OutputError: the output folder takes no files.
    """
    for case_id, plan in ledger.open_plans().items():
        try:
            _resume(ledger, case_id, plan)
        except OutputError as error:
            if fault_of(error) is Fault.STORAGE:
                raise
            logger.info("%s", error)
            _give_up(ledger, case_id, plan)
    _remove_scratch(ledger)


def _resume(ledger: Ledger, case_id: str, plan: PublishPlan) -> None:
    """Carry out a plan if its files are whole; else the case is done again."""
    out_dir = ledger.out_dir
    staged = [file for file in plan.files if _has(staged_place(out_dir / plan.scratch, file.path), file.sha256)]
    named = [file for file in plan.files if file not in staged]
    if not all(_has(out_dir / file.path, file.sha256) for file in named):
        _give_up(ledger, case_id, plan)
        return
    refuse_foreign(ledger, case_id, [out_dir / file.path for file in staged], overwrite=False)
    for path in plan.removed:
        if _leads_out(ledger, out_dir / path):
            raise OutputError(f"{path.name}: its folder is a link out of the output folder; replace it by a folder.")
    _carry_out(ledger, case_id, plan, staged)


def _has(path: Path, sha256: str) -> bool:
    try:
        return not path.is_symlink() and file_sha256(path) == sha256
    except OSError:
        return False


def _remove_scratch(ledger: Ledger) -> None:
    """Remove what was not finished, save the folders of open plans; no worker may be at work."""
    needed = {ledger.out_dir / plan.scratch for plan in ledger.open_plans().values()}
    for left in set(ledger.out_dir.glob(f"{SCRATCH_PREFIX}*{SCRATCH_SUFFIX}")) - needed:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
