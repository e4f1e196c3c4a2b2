"""Segment what there is in some folders into one output folder: the whole way from paths to reports."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from voxelgate.bundle.checksums import ensemble_fingerprint, verify
from voxelgate.bundle.metadata import image_spec_of, read_metadata, series_rule_of
from voxelgate.bundle.opened import open_bundle
from voxelgate.core.errors import UsageError
from voxelgate.core.files import locked, make_folder, refuse_file
from voxelgate.inference.attention.maps import gate_levels
from voxelgate.segmentation.batch.dispatch import Limits
from voxelgate.segmentation.batch.engines import engine_of
from voxelgate.segmentation.batch.forecast.preflight import preflight, summary
from voxelgate.segmentation.batch.ledger import Ledger
from voxelgate.segmentation.batch.runner import run_cases
from voxelgate.segmentation.batch.watch import Patience, watch
from voxelgate.segmentation.batch.worker import Setup
from voxelgate.segmentation.cases import Case, find_cases, with_hashed_name
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.report import CaseReport

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


def setup_of(
    bundle: Path, out_dir: Path, options: Options, device: str | None = None, *, is_ensemble: bool = False
) -> Setup:
    """Return what all cases of a run share; the network is not loaded.

    Raises:
        OutputError: the output folder is a file.
        BundleError: the bundle is none, or was altered.
    """
    refuse_file(out_dir)
    fingerprint, metadata = verify(bundle), read_metadata(bundle)
    if is_ensemble:
        fingerprint = ensemble_fingerprint(fingerprint)
    name, version = metadata["name"], metadata["version"]
    return Setup(bundle.absolute(), fingerprint, name, version, out_dir.absolute(), options, device, is_ensemble)


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
    found = find_cases(
        [path.absolute() for path in inputs],  # workers may have another working directory
        rule=series_rule_of(setup.bundle),
        images=image_spec_of(setup.bundle),
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


def segment_cases(cases: Sequence[Case], setup: Setup, means: ExecutionOptions | None = None) -> Iterator[CaseReport]:
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
) -> Iterator[CaseReport]:
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
    rule, images = series_rule_of(setup.bundle), image_spec_of(setup.bundle)
    if images.files > 1:
        raise UsageError(f"--watch takes images of one file, but the bundle takes {images.files}; leave out --watch.")
    arrivals = watch(folders, patience, rule=rule, allow=setup.options.allow, out_dir=setup.out_dir, images=images)
    return _segment((_named(cases, setup) for cases in arrivals), setup, means or ExecutionOptions())


def _named(cases: Sequence[Case], setup: Setup) -> list[Case]:
    return list(map(with_hashed_name, cases)) if setup.options.hashed_names else list(cases)


def _segment(arrivals: Iterator[Sequence[Case]], setup: Setup, means: ExecutionOptions) -> Iterator[CaseReport]:
    make_folder(setup.out_dir)
    with locked(setup.out_dir), closing(Ledger(setup.out_dir)) as ledger:
        engine = engine_of(means.engine, means.max_gib)
        ledger.begin_run(means.engine, f"{setup.name} {setup.version}", hashed_names=setup.options.hashed_names)
        with closing(run_cases(arrivals, setup, engine, ledger, means.limits)) as reports:
            yield from reports
