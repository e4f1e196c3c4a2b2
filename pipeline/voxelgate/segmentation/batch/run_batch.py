"""Segment what there is in some folders into one output folder: the whole way from paths to reports."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

from voxelgate.bundle.checksums import ensemble_fingerprint, verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.opened import open_bundle, read_inferer
from voxelgate.bundle.passing import labels_looked_for, refuse_unfit_pass
from voxelgate.bundle.predict import Bundle
from voxelgate.bundle.probabilities import refuse_without_probabilities
from voxelgate.bundle.shipped import find_bundle
from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.files import locked, make_folder, refuse_file
from voxelgate.core.findings import Allow
from voxelgate.core.verdict import Require
from voxelgate.core.workers import EngineKind, engine_named
from voxelgate.dicom.read.series import look_apart, look_at_each
from voxelgate.dicom.write.seg_kind import SegKind
from voxelgate.inference.attention.maps import gate_levels
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.segmentation.batch.engines import engine_of
from voxelgate.segmentation.batch.forecast.preflight import preflight, summary
from voxelgate.segmentation.batch.ledger import Ledger
from voxelgate.segmentation.batch.runner import run_cases
from voxelgate.segmentation.batch.watch import Inbox, complete_cases, watched_folders
from voxelgate.segmentation.batch.worker import Setup
from voxelgate.segmentation.cases import Case, Found, find_inputs, with_hashed_name
from voxelgate.segmentation.options import DEFAULT_WORKERS, Options
from voxelgate.segmentation.output_names import ONE_A_STRUCTURE, Output
from voxelgate.segmentation.outputs import unwritable_kinds
from voxelgate.segmentation.report import CaseReport

Choice = TypeVar("Choice", bound=StrEnum)

FORETOLD_CASES = 10
"""Batches of at least so many are foretold, which takes 10 to 40 s."""

EXTRA = " Attention maps and mirroring take time and disk beyond that."
"""What a forecast says of them where no case was done on trial."""


class RunKeywords(TypedDict, total=False):
    """The keywords that `segment` and `watch` have in common, which become `Options`; explained in `segment`."""

    outputs: Sequence[Output | str]
    workers: str
    overwrite: bool
    again: bool
    allow: Sequence[Allow | str]
    series: str
    runtime: Runtime | str | None
    device: str | None
    ensemble: bool
    check_flips: bool
    attention: bool
    hashed_names: bool
    timeout_s: float
    attempts: int
    max_memory_gib: float | None
    require: Require | str
    seg_type: SegKind | str | None
    fast: bool
    step_size: float | None
    mirroring: bool
    roi_subset: Sequence[str]


class Reports(Iterator[CaseReport]):
    """The reports of a run as its cases end; letting go of it ends the run, which the same call continues.

    Args:
        reports: what is handed on.
        total: how many cases there are; None where more may come.
        forecast: a line on what the run will need; empty if nothing was foretold.
        passed_over: how many files of the inputs, by kind, are neither images nor DICOM.
        unwritable: a line on outputs that cannot be written of any case, since the bundle lacks what they need, while
            all else is written; empty if there are none.

    >>> reports = vg.segment("my_bundle", ["data/images"], "reported", workers="serial")
    >>> reports.total, [report.case_id for report in reports]
    (4, ['case_0', 'case_1', 'case_2', 'case_3'])
    """

    def __init__(
        self,
        reports: Generator[CaseReport, None, None],
        total: int | None = None,
        forecast: str = "",
        passed_over: Mapping[str, int] | None = None,
        unwritable: str = "",
    ) -> None:
        self._reports = reports
        self.total = total
        self.forecast = forecast
        self.passed_over = dict(passed_over or {})
        self.unwritable = unwritable

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
    workers: str = DEFAULT_WORKERS,
    overwrite: bool = False,
    again: bool = False,
    allow: Sequence[Allow | str] = (),
    series: str = "",
    runtime: Runtime | str | None = None,
    device: str | None = None,
    ensemble: bool = False,
    check_flips: bool = False,
    attention: bool = False,
    hashed_names: bool = False,
    timeout_s: float = Options.timeout_s,
    attempts: int = Options.attempts,
    max_memory_gib: float | None = None,
    require: Require | str = Options.require,
    seg_type: SegKind | str | None = None,
    fast: bool = False,
    step_size: float | None = None,
    mirroring: bool = True,
    roi_subset: Sequence[str] = (),
    forecast: bool = True,
    data_root: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Reports:
    """Segment what there is in files and folders, and write each result on the grid of its image.

    The same call continues a run that was ended; cases that are done already are only reported, unless `again`.

    Args:
        bundle: opened, or its folder, or the name of a shipped one.
        inputs: images, DICOM series, folders or zips of them, or manifests.
        out: folder of the results, which is made.
        outputs: what to write of each case: `nifti`, `seg`, `rtstruct`, `sr`, `structures` (a mask of each),
            `probabilities` (of each structure), and `preview` for the report page.
        workers: where cases run: `serial`, `processes:N`, or `dask:ADDRESS` of a scheduler.
        overwrite: replace files that are there, which somebody else wrote or changed.
        again: do cases again whose results stand.
        allow: faults of DICOM series to mend instead of refusing them: `gaps`, `tilt`, `merge-series`.
        series: the DICOM series to take, by UID or its end, number or description; empty for what fits best.
        runtime: how the network runs; None for the fastest that is known here to give the same labels.
        device: cpu, cuda or cuda:N; None for what the bundle chooses.
        ensemble: average the networks of all folds.
        check_flips: segment the mirrored image too, and judge the result by it.
        attention: write and judge the maps of the network's attention gates too.
        hashed_names: call cases by a hash, where files or folders name patients.
        timeout_s: seconds after which an attempt at a case is ended.
        attempts: how often a case is tried that hangs, crashes or runs out of memory.
        max_memory_gib: memory that each process may allocate; None for any.
        require: the least verdict with which a result is written, `accept`, `review` or `any`; of others there are
            previews only. A run that requires something else does cases again.
        seg_type: form of the DICOM SEG, `binary` or `labelmap`; None for binary up to ten structures, else a label map.
        fast: of an imported model, leave exactness to the last voxel for speed; the report says how well labels agree.
        step_size: at which part of a window the next one begins; None for the bundle's.
        mirroring: average over mirrored images, if the bundle does.
        roi_subset: names of the structures that are looked for; empty for all.
        forecast: say first what a batch of ten or more will need (`Reports.forecast`), and refuse what cannot fit.
        data_root: folder that the paths of manifests start from; their own folder if None.
        progress: called with the number of DICOM files that were looked at and of all.

    Returns:
        Reports, which come as cases end, and their number; the run goes on only while they are taken.

    Raises:
        InputError: an input does not exist or holds nothing to segment.
        BundleError: the bundle is not one, was altered, or lacks the codes that all outputs need.
        OutputError: the output folder takes no files, or another run works in it.
        UsageError: there is no such output, worker, runtime or device, or the machine is too small.

    >>> for report in vg.segment("my_bundle", "scan.nii.gz", "results", workers="serial"):
    ...     print(report.case_id, report.status, sorted(report.volumes_ml))
    scan done ['femur']
    """
    setup = _setup_as_asked(
        bundle,
        out,
        outputs=outputs,
        workers=workers,
        overwrite=overwrite,
        again=again,
        allow=allow,
        series=series,
        runtime=runtime,
        device=device,
        ensemble=ensemble,
        check_flips=check_flips,
        attention=attention,
        hashed_names=hashed_names,
        timeout_s=timeout_s,
        attempts=attempts,
        max_memory_gib=max_memory_gib,
        require=require,
        seg_type=seg_type,
        fast=fast,
        step_size=step_size,
        mirroring=mirroring,
        roi_subset=roi_subset,
    )
    unwritable = _unwritable_of(setup)
    cases, passed_over = cases_in(_paths_of(inputs), setup, progress, data_root=data_root)
    line, setup, refused = foretell(cases, setup) if forecast else ("", setup, {})
    return Reports(segment_cases([cases], setup, refused), len(cases), line, passed_over, unwritable)


def watch(
    bundle: Bundle | Path | str,
    folders: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    settle_s: float = 30.0,
    idle_s: float | None = None,
    **asked: Unpack[RunKeywords],
) -> Reports:
    """Segment what is in some folders and what comes into them, each study or file when it is complete.

    Args:
        bundle: opened, or its folder, or the name of a shipped one; of images that are one file.
        folders: that something else fills.
        out: folder of the results, which is made.
        settle_s: seconds without change after which a study is complete.
        idle_s: end after so many seconds without news; None for never.
        **asked: keywords of `segment`, all from `outputs` to `roi_subset`.

    Raises:
        InputError: an input is not a folder.
        UsageError: an image consists of several files, and nobody knows when all of them have come.
        VoxelgateError: as for `segment`.

    >>> reports = vg.watch("my_bundle", "study", "watched", settle_s=0.1, idle_s=0, workers="serial")
    >>> [str(report.status) for report in reports]
    ['done']
    """
    setup = _setup_as_asked(bundle, out, **asked)
    unwritable = _unwritable_of(setup)
    metadata = Metadata.read(setup.bundle)
    rule, images = replace(metadata.series_rule, asked=setup.options.series), metadata.image_spec
    if images.files > 1:
        raise UsageError(f"--watch takes images of one file, but the bundle takes {images.files}; leave out --watch.")
    watched = watched_folders(_paths_of(folders))
    inbox = Inbox(watched, rule, setup.options.allow, setup.out_dir, images)
    arrivals = (_named(cases, setup) for cases in complete_cases(inbox, settle_s, idle_s))
    return Reports(segment_cases(arrivals, setup), unwritable=unwritable)


def _setup_as_asked(bundle: Bundle | Path | str, out: Path | str, **asked: Unpack[RunKeywords]) -> Setup:
    """Return what all cases of a run share, with names as members of their closed sets."""
    root = bundle.root if isinstance(bundle, Bundle) else find_bundle(bundle)
    known: dict[str, Any] = {**asked, "attention": ()}
    for keyword, kind in {"outputs": Output, "allow": Allow}.items():
        if keyword in asked:
            known[keyword] = _members_of(kind, known[keyword])
    for keyword, kind in {"runtime": Runtime, "require": Require, "seg_type": SegKind}.items():
        if known.get(keyword) is not None:
            (known[keyword],) = _members_of(kind, [known[keyword]])
    if asked.get("attention"):
        known["attention"] = attention_of(root, is_ensemble=asked.get("ensemble", False))
    names = labels_looked_for(
        PassOptions(roi_subset=tuple(asked.get("roi_subset", ()))), Metadata.read(root).labels
    ).foreground
    known["structures"] = tuple(names.values()) if set(ONE_A_STRUCTURE) & set(known.get("outputs", ())) else ()
    passing = {name: known.pop(name) for name in ("fast", "step_size", "mirroring", "roi_subset") if name in known}
    options = Options(**known, passing=PassOptions(**passing | {"roi_subset": tuple(passing.get("roi_subset", ()))}))
    _refuse_unfit_inferer(root, options)
    return setup_of(root, Path(out), options)


def _refuse_unfit_inferer(root: Path, options: Options) -> None:
    """Refuse what a bundle's way to run does not give; it is only read where something beyond its labels is asked for.

    Raises:
        UsageError: as for `refuse_unfit_pass`, or probabilities are asked of a model that tells none.
    """
    is_asked = bool(options.passing.changes) or options.runtime is not None
    if not is_asked and Output.PROBABILITIES not in options.outputs:
        return
    inferer = read_inferer(root)
    if is_asked:
        refuse_unfit_pass(inferer, options.passing, options.runtime, Metadata.read(root).labels)
    if Output.PROBABILITIES in options.outputs:
        refuse_without_probabilities(inferer)


def _unwritable_of(setup: Setup) -> str:
    """Return a line on outputs that the bundle lets nobody write; empty if there are none.

    Raises:
        BundleError: none but previews are left.
    """
    labels = labels_looked_for(setup.options.passing, Metadata.read(setup.bundle).labels)
    _, sentence = unwritable_kinds(setup.options.outputs, labels)
    return f"{setup.name}: {sentence}" if sentence else ""


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


def setup_of(bundle: Path, out_dir: Path, options: Options) -> Setup:
    """Return what all cases of a run share; the network is not loaded.

    Raises:
        OutputError: the output folder is a file.
        BundleError: the bundle is none, or was altered.
    """
    refuse_file(out_dir)
    fingerprint, metadata = verify(bundle), Metadata.read(bundle)
    if options.ensemble:
        fingerprint = ensemble_fingerprint(fingerprint)
    return Setup(bundle.absolute(), fingerprint, metadata.name, metadata.version, out_dir.absolute(), options)


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
) -> Found:
    """List what there is to segment in files and folders, by the rules of the bundle; arguments as for `find_cases`.

    Raises:
        InputError: no input, or as for `find_cases`.
    """
    if not inputs:
        raise InputError("no input is given; name images, DICOM series, folders or a manifest.")
    metadata = Metadata.read(setup.bundle)
    found = find_inputs(
        [path.absolute() for path in inputs],  # workers may have another working directory
        rule=replace(metadata.series_rule, asked=setup.options.series),
        images=metadata.image_spec,
        data_root=data_root,
        allow=setup.options.allow,
        out_dir=setup.out_dir,
        progress=progress,
        look=look_at_each if setup.options.workers == EngineKind.SERIAL else look_apart,
    )
    return Found(_named(found.cases, setup), found.passed_over)


def foretell(cases: Sequence[Case], setup: Setup) -> tuple[str, Setup, Mapping[str, str]]:
    """Foretell what a batch will need: return that in a line, a setup with which it fits, and what `run_cases` refuses.

    A few cases are not worth it: it reads and segments two of them. Nor can other machines' memory be told.

    Raises:
        OutputError: the disk is too small.
        UsageError: so many processes need more memory than the machine has.
    """
    options, engine = setup.options, engine_named(setup.options.workers)
    is_worth_it = len(cases) >= FORETOLD_CASES or options.max_memory_gib is not None
    if engine.kind is not EngineKind.PROCESSES or not is_worth_it:
        return "", setup, {}
    found = preflight(cases, setup)
    is_more = bool(options.attention or options.check_flips) and not found.is_tried
    identity_of = {case.case_id: case.identity for case in cases}
    refused = {identity_of[case_id]: sentence for case_id, sentence in found.unfit.items()}
    line = summary(found, engine.count) + (EXTRA if is_more else "")
    fitted = replace(setup, network_bytes=found.network_bytes, cases_at_a_time=found.cases_at_a_time)
    return line, fitted, refused


def segment_cases(
    arrivals: Iterable[Sequence[Case]], setup: Setup, refused: Mapping[str, str] | None = None
) -> Generator[CaseReport, None, None]:
    """Segment cases into the output folder, which no other run may use meanwhile; arguments as for `run_cases`.

    Raises:
        OutputError: the output folder takes no files, or another run works in it.
        UsageError: no such engine.
        VoxelgateError: as for `run_cases`.
    """
    options = setup.options
    make_folder(setup.out_dir)
    with locked(setup.out_dir), closing(Ledger(setup.out_dir)) as ledger:
        engine = engine_of(options.workers, options.max_memory_gib)
        ledger.begin_run(options.workers, f"{setup.name} {setup.version}", hashed_names=options.hashed_names)
        with closing(run_cases(arrivals, setup, engine, ledger, refused)) as reports:
            yield from reports


def _named(cases: Sequence[Case], setup: Setup) -> list[Case]:
    return list(map(with_hashed_name, cases)) if setup.options.hashed_names else list(cases)
