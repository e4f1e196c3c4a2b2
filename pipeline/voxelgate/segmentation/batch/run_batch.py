"""Segment what there is in some folders into one output folder: the whole way from paths to reports."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from voxelgate.bundle.checksums import ensemble_fingerprint, verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.predict import Bundle
from voxelgate.bundle.shipped import find_bundle
from voxelgate.core.errors import UsageError
from voxelgate.core.files import locked, make_folder, refuse_file
from voxelgate.core.findings import Allow
from voxelgate.inference.attention.maps import gate_levels
from voxelgate.inference.runtimes.runtimes import Runtime
from voxelgate.segmentation.batch.dispatch import Limits
from voxelgate.segmentation.batch.engines import engine_of
from voxelgate.segmentation.batch.forecast.preflight import preflight, summary
from voxelgate.segmentation.batch.ledger import Ledger
from voxelgate.segmentation.batch.runner import run_cases
from voxelgate.segmentation.batch.watch import Patience, complete_cases
from voxelgate.segmentation.batch.worker import Setup
from voxelgate.segmentation.cases import Case, find_cases, with_hashed_name
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.outputs import Output
from voxelgate.segmentation.report import CaseReport

Choice = TypeVar("Choice", bound=StrEnum)

DEFAULT_ENGINE = "processes:1"
"""One process, so that an image that crashes the network ends its own case and no more."""


FORETOLD_CASES = 10
"""Batches of at least so many are foretold, which takes 10 to 40 s."""


EXTRA = " Attention maps and mirroring take time and disk beyond that."
"""What a forecast says of them where no case was done on trial."""


@dataclass(frozen=True)
class ExecutionOptions:
    """With what cases are segmented; changes no result.

    Args:
        engine: `serial`, `processes:N` or `dask:ADDRESS`.
        limits: of a case.
        max_gib: memory that a process may allocate; None for any.
    """

    engine: str = DEFAULT_ENGINE
    limits: Limits = field(default_factory=Limits)
    max_gib: float | None = None


class Reports(Iterator[CaseReport]):
    """The reports of a run as its cases end; letting go of it ends the run, which the same call continues.

    Args:
        reports: what is handed on.
        total: how many cases there are; None where more may come.
        forecast: a line on what the run will need; empty if nothing was foretold.

    >>> reports = vg.segment("my_bundle", ["data/images"], "reported", workers="serial")
    >>> reports.total, [report.case_id for report in reports]
    (4, ['case_0', 'case_1', 'case_2', 'case_3'])
    """

    def __init__(
        self, reports: Generator[CaseReport, None, None], total: int | None = None, forecast: str = ""
    ) -> None:
        self._reports = reports
        self.total = total
        self.forecast = forecast

    def __next__(self) -> CaseReport:
        """Return the report of the next case that ended."""
        return next(self._reports)

    def close(self) -> None:
        """End the run; cases that are worked on now wait for the next one."""
        self._reports.close()


def segment(  # noqa: PLR0913  # every keyword is one decision of whoever segments
    bundle: Bundle | Path | str,
    inputs: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    outputs: Sequence[Output | str] = (Output.NIFTI,),
    workers: str = DEFAULT_ENGINE,
    overwrite: bool = False,
    allow: Sequence[Allow | str] = (),
    runtime: Runtime | str | None = None,
    device: str | None = None,
    ensemble: bool = False,
    check_flips: bool = False,
    attention: bool = False,
    hashed_names: bool = False,
    timeout_s: float = Limits.timeout_s,
    attempts: int = Limits.attempts,
    max_memory_gib: float | None = None,
    forecast: bool = True,
    data_root: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Reports:
    """Segment what there is in files and folders, and write each result on the grid of its image.

    The same call continues a run that was ended; cases that are done already are only reported.

    Args:
        bundle: opened, or its folder, or the name of a shipped one.
        inputs: images, DICOM series, folders or zips of them, or manifests.
        out: folder of the results, which is made.
        outputs: what to write of each case: `nifti`, `seg`, `rtstruct`, `sr`, and `preview` for the report page.
        workers: where cases run: `serial`, `processes:N`, or `dask:ADDRESS` of a scheduler.
        overwrite: replace results that are there.
        allow: faults of DICOM series to mend by resampling instead of refusing them: `gaps`, `tilt`.
        runtime: how the network runs; None for the fastest that is known here to give the same labels.
        device: cpu, cuda or cuda:N; None for what the bundle chooses.
        ensemble: average the networks of all folds.
        check_flips: segment the mirrored image too, and judge the result by it.
        attention: write and judge the maps of the network's attention gates too.
        hashed_names: call cases by a hash, where files or folders name patients.
        timeout_s: seconds after which an attempt at a case is ended.
        attempts: how often a case is tried that hangs, crashes or runs out of memory.
        max_memory_gib: memory that each process may allocate; None for any.
        forecast: say first what a batch of ten or more will need (`Reports.forecast`), and refuse what cannot fit.
        data_root: folder that the paths of manifests start from; their own folder if None.
        progress: called with the number of DICOM files that were looked at and of all.

    Returns:
        Reports, which come as cases end, and their number; the run goes on only while they are taken.

    Raises:
        InputError: an input does not exist or holds nothing to segment.
        BundleError: the bundle is not one, or was altered.
        OutputError: the output folder takes no files, or another run works in it.
        UsageError: there is no such output, worker, runtime or device, or the machine is too small.

    >>> for report in vg.segment("my_bundle", "scan.nii.gz", "results", workers="serial"):
    ...     print(report.case_id, report.status, sorted(report.volumes_ml))
    scan done ['femur']
    """
    root = _root_of(bundle)
    gates = attention_of(root, is_ensemble=ensemble) if attention else ()
    options = _options_of(outputs, allow, runtime, (overwrite, check_flips, hashed_names), gates)
    setup = setup_of(root, Path(out), options, device, is_ensemble=ensemble)
    means = ExecutionOptions(workers, Limits(timeout_s, attempts), max_memory_gib)
    cases = cases_in(_paths_of(inputs), setup, progress, data_root=data_root)
    line, setup, means = plan_resources(cases, setup, means) if forecast else ("", setup, means)
    return Reports(segment_cases(cases, setup, means), len(cases), line)


def watch(  # noqa: PLR0913  # as for `segment`
    bundle: Bundle | Path | str,
    folders: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    settle_s: float = Patience.settle_s,
    idle_s: float | None = Patience.idle_s,
    outputs: Sequence[Output | str] = (Output.NIFTI,),
    workers: str = DEFAULT_ENGINE,
    overwrite: bool = False,
    allow: Sequence[Allow | str] = (),
    runtime: Runtime | str | None = None,
    device: str | None = None,
    ensemble: bool = False,
    check_flips: bool = False,
    attention: bool = False,
    hashed_names: bool = False,
    timeout_s: float = Limits.timeout_s,
    attempts: int = Limits.attempts,
    max_memory_gib: float | None = None,
) -> Reports:
    """Segment what is in some folders and what comes into them, each study or file when it is complete.

    Args:
        bundle: opened, or its folder, or the name of a shipped one; of images that are one file.
        folders: that something else fills.
        out: folder of the results, which is made.
        settle_s: seconds without change after which a study is complete.
        idle_s: end after so many seconds without news; None for never.
        outputs: this and all that follow as for `segment`.
        workers: where cases run.
        overwrite: replace results that are there.
        allow: faults of DICOM series to mend.
        runtime: how the network runs.
        device: where it runs.
        ensemble: average the networks of all folds.
        check_flips: segment the mirrored image too.
        attention: write and judge the maps of the attention gates too.
        hashed_names: call cases by a hash.
        timeout_s: seconds for an attempt at a case.
        attempts: how often a case is tried.
        max_memory_gib: memory that each process may allocate.

    Raises:
        InputError: an input is not a folder.
        UsageError: an image consists of several files, and nobody knows when all of them have come.
        VoxelgateError: as for `segment`.

    >>> reports = vg.watch("my_bundle", "study", "watched", settle_s=0.1, idle_s=0, workers="serial")
    >>> [str(report.status) for report in reports]
    ['done']
    """
    root = _root_of(bundle)
    gates = attention_of(root, is_ensemble=ensemble) if attention else ()
    options = _options_of(outputs, allow, runtime, (overwrite, check_flips, hashed_names), gates)
    setup = setup_of(root, Path(out), options, device, is_ensemble=ensemble)
    means = ExecutionOptions(workers, Limits(timeout_s, attempts), max_memory_gib)
    return Reports(segment_arrivals(_paths_of(folders), setup, Patience(settle_s, idle_s), means))


def _options_of(
    outputs: Sequence[str],
    allow: Sequence[str],
    runtime: str | None,
    switches: tuple[bool, bool, bool],
    gates: tuple[int, ...],
) -> Options:
    """Return the options of a case; switches are `overwrite`, `check_flips` and `hashed_names`."""
    overwrite, check_flips, hashed_names = switches
    way = None if runtime is None else _members_of(Runtime, [runtime])[0]
    wanted, mended = _members_of(Output, outputs), _members_of(Allow, allow)
    return Options(wanted, overwrite, mended, way, check_flips, gates, hashed_names)


def _root_of(bundle: Bundle | Path | str) -> Path:
    return bundle.root if isinstance(bundle, Bundle) else find_bundle(bundle)


def _paths_of(given: Path | str | Sequence[Path | str]) -> list[Path]:
    return [Path(path) for path in ([given] if isinstance(given, Path | str) else given)]


def _members_of(kind: type[Choice], given: Sequence[str]) -> tuple[Choice, ...]:
    """Return the members of a closed set that are named.

    Raises:
        UsageError: one of them is not there.
    """
    names = [given] if isinstance(given, str) else given
    try:
        return tuple(dict.fromkeys(kind(name) for name in names))
    except ValueError as error:
        raise UsageError(f"{', '.join(map(str, names))}: choose of {', '.join(kind)}.") from error


def setup_of(
    bundle: Path, out_dir: Path, options: Options, device: str | None = None, *, is_ensemble: bool = False
) -> Setup:
    """Return what all cases of a run share; the network is not loaded.

    Raises:
        OutputError: the output folder is a file.
        BundleError: the bundle is none, or was altered.
    """
    refuse_file(out_dir)
    fingerprint, metadata = verify(bundle), Metadata.read(bundle)
    if is_ensemble:
        fingerprint = ensemble_fingerprint(fingerprint)
    named = metadata.name, metadata.version
    return Setup(bundle.absolute(), fingerprint, *named, out_dir.absolute(), options, device, is_ensemble)


def attention_of(bundle: Path, *, is_ensemble: bool = False) -> tuple[int, ...]:
    """Return what `Options.attention` must hold for the maps of a bundle's gates.

    Raises:
        UsageError: the network has no gates to show, or there are several networks.
        BundleError: as for `open_bundle`.
    """
    return gate_levels(open_bundle(bundle.absolute(), "cpu", ensemble=is_ensemble).network)


def cases_in(
    inputs: Sequence[Path],
    setup: Setup,
    progress: Callable[[int, int], None] | None = None,
    *,
    data_root: Path | None = None,
) -> list[Case]:
    """List what there is to segment in files and folders, by the rules of the bundle; arguments as for `find_cases`.

    Raises:
        InputError: as for `find_cases`.
    """
    metadata = Metadata.read(setup.bundle)
    found = find_cases(
        [path.absolute() for path in inputs],  # workers may have another working directory
        rule=metadata.series_rule,
        images=metadata.image_spec,
        data_root=data_root,
        allow=setup.options.allow,
        out_dir=setup.out_dir,
        progress=progress,
    )
    return _named(found, setup)


def plan_resources(cases: Sequence[Case], setup: Setup, means: ExecutionOptions) -> tuple[str, Setup, ExecutionOptions]:
    """Foretell what a batch will need, and return that in a line, and settings with which it fits.

    A few cases are not worth it: it reads and segments two of them. Nor can other machines' memory be told.

    Args:
        cases: from `cases_in`.
        setup: from `setup_of`.
        means: what was asked for.

    Raises:
        OutputError: the disk is too small.
        UsageError: so many processes need more memory than the machine has.
    """
    kind, _, count = means.engine.partition(":")
    if kind != "processes" or (len(cases) < FORETOLD_CASES and means.max_gib is None):
        return "", setup, means
    processes = int(count) if count.isdecimal() else 1
    found = preflight(cases, setup, processes=processes, max_gib=means.max_gib)
    is_more = bool(setup.options.attention or setup.options.check_flips) and not found.is_tried
    line = summary(found, processes) + (EXTRA if is_more else "")
    identity_of = {case.case_id: case.identity for case in cases}
    refused = {identity_of[case_id]: sentence for case_id, sentence in found.unfit.items()}
    return (
        line,
        replace(setup, network_bytes=found.network_bytes),
        replace(means, limits=replace(means.limits, refused=refused)),
    )


def segment_cases(
    cases: Sequence[Case], setup: Setup, means: ExecutionOptions | None = None
) -> Generator[CaseReport, None, None]:
    """Segment cases and yield the report of each when it ends, those that are done already too.

    Args:
        cases: from `cases_in`.
        setup: from `setup_of`.
        means: where, and at what cost.

    Raises:
        OutputError: the output folder takes no files, or another run works in it.
        UsageError: no such engine.
        VoxelgateError: as for `run_cases`.
    """
    return _segment(iter([cases]), setup, means or ExecutionOptions())


def segment_arrivals(
    inputs: Sequence[Path], setup: Setup, patience: Patience, means: ExecutionOptions | None = None
) -> Generator[CaseReport, None, None]:
    """Segment what is in some folders and what comes into them, each study or file when it is complete.

    Args:
        inputs: folders that something else fills.
        setup: from `setup_of`.
        patience: when something is complete, and when to end.
        means: where, and at what cost.

    Raises:
        InputError: an input is no folder.
        UsageError: an image consists of several files, and nobody knows when all of them have come.
        VoxelgateError: as for `segment_cases`.
    """
    folders = [path.absolute() for path in inputs]
    metadata = Metadata.read(setup.bundle)
    rule, images = metadata.series_rule, metadata.image_spec
    if images.files > 1:
        raise UsageError(f"--watch takes images of one file, but the bundle takes {images.files}; leave out --watch.")
    arrivals = complete_cases(
        folders, patience, rule=rule, allow=setup.options.allow, out_dir=setup.out_dir, images=images
    )
    return _segment((_named(cases, setup) for cases in arrivals), setup, means or ExecutionOptions())


def _named(cases: Sequence[Case], setup: Setup) -> list[Case]:
    return list(map(with_hashed_name, cases)) if setup.options.hashed_names else list(cases)


def _segment(
    arrivals: Iterator[Sequence[Case]], setup: Setup, means: ExecutionOptions
) -> Generator[CaseReport, None, None]:
    make_folder(setup.out_dir)
    with locked(setup.out_dir), closing(Ledger(setup.out_dir)) as ledger:
        engine = engine_of(means.engine, means.max_gib)
        ledger.begin_run(means.engine, f"{setup.name} {setup.version}", hashed_names=setup.options.hashed_names)
        with closing(run_cases(arrivals, setup, engine, ledger, means.limits)) as reports:
            yield from reports
