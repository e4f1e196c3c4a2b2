"""What runs in a worker: one case from its files to finished files under temporary names; the bundle is opened once."""

import copy
import functools
import json
import math
import os
import shutil
import socket
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from voxelgate.bundle.opened import forget_opened, open_bundle
from voxelgate.bundle.predict import Bundle
from voxelgate.core.errors import BundleError
from voxelgate.core.files import file_sha256
from voxelgate.core.findings import Finding, remark
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.headers import Header, UnreadableFileError, read_header
from voxelgate.dicom.read.series import Series
from voxelgate.inference.memory import available_bytes
from voxelgate.inference.sliding_window import RestoringSlidingWindowInferer, WindowSize
from voxelgate.inference.threads import in_network_thread
from voxelgate.segmentation.batch.input_stamps import content_sha256, lasting_stamp_of, stamp_of
from voxelgate.segmentation.batch.worker_process import CASES_AT_A_TIME
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.faults import Fault
from voxelgate.segmentation.options import Options, SharedResources
from voxelgate.segmentation.output_names import staged_place
from voxelgate.segmentation.report import MEMORY, CaseReport, CaseStatus
from voxelgate.segmentation.segment import attempt, unfinished

SMALLEST_WINDOW_VOX = 32
"""Side below which a window is not halved: overlaps and context would cost more than memory is won."""

UNREADABLE = (OSError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a file or a member of an archive may raise; `RuntimeError` if it is encrypted."""

SHARED = SharedResources(threading.Lock(), in_network_thread)
"""Of this process: while one case has the network, another is read or written."""


@dataclass(frozen=True)
class Setup:
    """What all cases of a run share.

    Args:
        bundle: its folder, absolute; every worker sees it, and the inputs and the output folder, under the same name.
        bundle_sha256: its fingerprint; a bundle that changes meanwhile ends the run.
        name: of the bundle.
        version: of the bundle.
        out_dir: the output folder, absolute.
        options: what was asked for.
        network_bytes: what the network may take beside image and labels; None for any.
        cases_at_a_time: that a worker may have; it may take fewer.
    """

    bundle: Path
    bundle_sha256: str
    name: str
    version: str
    out_dir: Path
    options: Options
    network_bytes: int | None = None
    cases_at_a_time: int = CASES_AT_A_TIME

    @property
    def choices(self) -> str:
        """Return the options on which a result depends, as the ledger keeps them."""
        options = self.options
        chosen = {
            "outputs": sorted(options.outputs),
            "allow": sorted(options.allow),
            "runtime": options.runtime,
            "check_flips": options.check_flips,
            "device": options.device,
        }
        newer = {  # of which older ledgers know nothing
            **options.passing.changes,
            "attention": options.attention,
            "require": None if options.require is Options.require else options.require,
            "seg_type": options.seg_type,
        }
        return json.dumps(chosen | {name: value for name, value in newer.items() if value}, sort_keys=True)

    def choices_with(self, memory: str) -> str:
        """Return `choices`, with what a case was done with because memory was too small for the rest, if it was."""
        return json.dumps(json.loads(self.choices) | {MEMORY: memory}, sort_keys=True) if memory else self.choices


@dataclass(frozen=True)
class CaseJob:
    """One attempt at one case; `repr` does not show it, since a cluster logs that, and folders are named like patients.

    Args:
        case: the volume.
        setup: of the run.
        scratch: folder to make, in which its files are finished.
        shrinks: how often memory ran out before.
        known_sha256: of an input whose results stand; if it still is that, there is nothing to do.
    """

    case: Case = field(repr=False)
    setup: Setup = field(repr=False)
    scratch: Path
    shrinks: int = 0
    known_sha256: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Args:
        report: None if the input is what it was.
        input_sha256: of what the input files hold; empty if they cannot be read.
        input_stamp: by which a later change of them shows; empty if it would not.
        sha256s: of the finished files, by kind.
        fault: set where a failure is not the image's.
    """

    report: CaseReport | None
    input_sha256: str
    input_stamp: str
    sha256s: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None


def worker_name() -> str:
    """Return host and number of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def work(job: CaseJob) -> Outcome:
    """Do one job; never raise on a bad case.

    Raises:
        VoxelgateError: the bundle or the device cannot be used, so that no case can be done.
    """
    bundle = SHARED.network(_bundle, job.setup, job.shrinks)
    before = _read_off(stamp_of, job.case)
    with SHARED.files:
        sha256 = _read_off(content_sha256, job.case)
    if sha256 and sha256 == job.known_sha256:
        return Outcome(None, sha256, _read_off(lasting_stamp_of, job.case))
    case = replace(job.case, findings=job.case.findings + memory_note(bundle, job))
    made = attempt(case, bundle, (job.setup.out_dir, job.scratch), job.setup.options, SHARED)
    report = made.report
    if report.status is CaseStatus.DONE and (_read_off(stamp_of, job.case) != before or not _is_as_found(job.case)):
        report = _changed(report)
    if report.status is not CaseStatus.DONE:
        shutil.rmtree(job.scratch, ignore_errors=True)
    sha256s = {kind: file_sha256(staged_place(job.scratch, path)) for kind, path in report.outputs.items()}
    return Outcome(report, sha256, _read_off(lasting_stamp_of, job.case), sha256s, made.fault)


def _read_off(measure: Callable[[Case], str], case: Case) -> str:
    """Return what a function finds out about the input files; nothing if they cannot be read, which reading tells."""
    try:
        return measure(case)
    except UNREADABLE:
        return ""


def _is_as_found(case: Case) -> bool:
    """Return whether the files of a series are those that were found, hours ago perhaps, and not another patient's."""
    if not isinstance(case.image, Series):
        return True
    with SHARED.files, quiet_pydicom():
        try:
            return all(
                _identity_of_header(read_header(header.file)) == _identity_of_header(header)
                for header in case.image.headers
            )
        except UnreadableFileError:
            return False


def _identity_of_header(header: Header | None) -> tuple[object, ...]:
    """Return which image of which patient a file holds, and where."""
    if header is None:
        return ()
    return (
        header.sop_instance_uid,
        header.series_uid,
        header.study_uid,
        header.patient,
        header.size,
        header.pixel_offset,
    )


def _changed(report: CaseReport) -> CaseReport:
    sentence = (
        f"{report.case_id}: its files are others than those that were found, or changed while they were read; run the "
        "command again when they are complete."
    )
    return unfinished(report.case_id, CaseStatus.REJECTED, report.bundle_sha256, report.versions, sentence)


@functools.lru_cache(maxsize=4)
def _bundle(setup: Setup, shrinks: int) -> Bundle:
    """Open the bundle, with windows as small as memory was found to demand; on a GPU, then on the CPU."""
    device, is_ensemble = setup.options.device, setup.options.ensemble
    bundle = open_bundle(setup.bundle, device, ensemble=is_ensemble)
    if bundle.fingerprint != setup.bundle_sha256:  # a worker of a cluster may have it from an earlier run
        forget_opened()
        bundle = open_bundle(setup.bundle, device, ensemble=is_ensemble)
    if bundle.fingerprint != setup.bundle_sha256:
        raise BundleError(
            f"{setup.bundle.name}: changed while it was used; run the command again with one or the other."
        )
    asked = setup.options.passing
    if not shrinks:
        return bundle.adjusted(asked).within(setup.network_bytes)
    if bundle.device.type != "cpu" and (shrinks > 1 or bundle.sliding is None):
        bundle = open_bundle(setup.bundle, "cpu", ensemble=is_ensemble)
    adjusted = bundle.adjusted(asked)
    if adjusted.sliding is None:
        return adjusted.within((setup.network_bytes or available_bytes(bundle.device)) >> shrinks)
    return replace(adjusted, inferer=with_smaller_windows(adjusted.sliding, shrinks))


def with_smaller_windows(inferer: RestoringSlidingWindowInferer, halvings: int) -> RestoringSlidingWindowInferer:
    """Return the inferer with windows whose sides were halved some times, which it neither enlarges nor streams."""
    smaller = copy.copy(inferer)
    i, j, k = (_halved(size, inferer.window_multiple, halvings) for size in inferer.roi_size)
    smaller.roi_size = i, j, k
    smaller.sw_batch_size = 1
    smaller.window = WindowSize.AS_TRAINED
    smaller.streaming = False
    smaller.max_memory = None
    return smaller


def _halved(size_vox: int, multiple: int, halvings: int) -> int:
    half = math.ceil((size_vox >> halvings) / multiple) * multiple
    return min(size_vox, max(half, SMALLEST_WINDOW_VOX))


def memory_note(bundle: Bundle, job: CaseJob) -> tuple[Finding, ...]:
    """Return what a report says of an attempt with less memory."""
    if not job.shrinks:
        return ()
    size = bundle.window_vox
    windows = "" if size is None else f" with windows of {' x '.join(map(str, size))} voxels"
    return (remark(f"{job.case.case_id}: memory ran out, so it was done{windows} on {bundle.device.type}."),)
