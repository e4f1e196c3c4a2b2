"""What a case is segmented with, and what is written of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from voxelgate.core.errors import UsageError
from voxelgate.core.findings import Allow
from voxelgate.core.verdict import Require
from voxelgate.core.workers import engine_named
from voxelgate.dicom.write.seg_kind import SegKind
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.segmentation.output_names import Output, stem_of_structure

DEFAULT_WORKERS = "processes:1"
"""One process, so that an image that crashes the network ends its own case and no more."""


@dataclass(frozen=True)
class Options:
    """What was asked for: first what `segment_case` needs for a case, then what a run of many cases needs.

    Args:
        outputs: kinds of files to write; at least one.
        overwrite: replace files that are there, which somebody else wrote or changed.
        allow: faults of DICOM series to mend, as given to `find_cases`.
        series: which DICOM series to take, as for `is_called`; empty for the one that fits the bundle best.
        runtime: how the network runs; None for the fastest that is known here to give the same labels.
        check_flips: run the network on the mirrored image too, and let the quality tell where the results differ.
        attention: levels of the gates whose maps are written and judged, all that `gate_levels` returns; or none.
        structures: names of the structures that get a file each, all that the bundle looks for, if such are written.
        hashed_names: call cases by a hash of where their files lie, in whatever is written or said of them.
        device: where the network runs; None for what the bundle chooses.
        ensemble: average the networks of all folds.
        workers: where cases run, as for `engine_named`.
        timeout_s: longest time for one attempt at a case.
        attempts: how often a case is tried that hangs, runs out of memory or loses its worker.
        max_memory_gib: memory that a worker process may allocate; None for any.
        require: with which verdict a result is written; of the others there are previews only.
        seg_type: form of the DICOM SEG; None for binary up to ten structures, else a label map.
        again: do cases again whose results stand.
        passing: what is asked of the pass of the network.

    Raises:
        UsageError: no output but previews, a report without the DICOM SEG that it refers to, no such engine, or no
            attempt or time.
    """

    outputs: tuple[Output, ...] = (Output.NIFTI,)
    overwrite: bool = False
    allow: tuple[Allow, ...] = ()
    series: str = ""
    runtime: Runtime | None = None
    check_flips: bool = False
    attention: tuple[int, ...] = ()
    structures: tuple[str, ...] = ()
    hashed_names: bool = False
    device: str | None = None
    ensemble: bool = False
    workers: str = DEFAULT_WORKERS
    timeout_s: float = 1800
    attempts: int = 3
    max_memory_gib: float | None = None
    require: Require = Require.REVIEW
    seg_type: SegKind | None = None
    again: bool = False
    passing: PassOptions = field(default_factory=PassOptions)

    def __post_init__(self) -> None:
        if not set(self.outputs) - {Output.PREVIEW}:
            raise UsageError(f"no output but previews is asked for; choose of {', '.join(Output)}.")
        if Output.SR in self.outputs and Output.SEG not in self.outputs:
            raise UsageError("an SR refers to the segments of a SEG; ask for both, as in --outputs seg,sr.")
        if self.seg_type is not None and Output.SEG not in self.outputs:
            raise UsageError("a type of SEG is asked for, but no SEG; add seg to the outputs.")
        if len({stem_of_structure(name).casefold() for name in self.structures}) < len(self.structures):
            raise UsageError("two structures of the bundle would get files of one name; leave out structures, or one.")
        if self.passing.fast and self.runtime is not None:
            raise UsageError("--fast and --runtime: give one of them, --fast for an imported model.")
        engine_named(self.workers)
        if not self.timeout_s > 0 or self.attempts < 1:
            raise UsageError(
                f"a case is tried once or more, for some time; found {self.attempts} x {self.timeout_s} s."
            )


def call_here(call: Callable[..., Any], *args: Any) -> Any:
    """Return what a call returns."""
    return call(*args)


class SharedResources(NamedTuple):
    """What cases that are segmented at a time in one process take turns at.

    Args:
        files: reading, preprocessing and writing; the DICOM libraries are kept quiet for a whole process.
        network: calls what runs the network, which has the memory and the processors to itself, and returns its result.
    """

    files: AbstractContextManager[Any] = nullcontext()
    network: Callable[..., Any] = call_here
