"""What a case is segmented with, and what is written of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from voxelgate.core.errors import UsageError
from voxelgate.core.findings import Allow
from voxelgate.inference.runtimes.runtimes import Runtime
from voxelgate.segmentation.outputs import Output


@dataclass(frozen=True)
class Options:
    """What is written, and what is accepted.

    Args:
        outputs: kinds of files to write; at least one.
        overwrite: replace results that are there.
        allow: faults of DICOM series to mend, as given to `find_cases`.
        runtime: how the network runs; None for the fastest that is known here to give the same labels.
        check_flips: run the network on the mirrored image too, and let the quality tell where the results differ.
        attention: levels of the gates whose maps are written and judged, all that `gate_levels` returns; or none.
        hashed_names: call cases by a hash of where their files lie, in whatever is written or said of them.

    Raises:
        UsageError: no output but previews, or a report without the DICOM SEG that it refers to.
    """

    outputs: tuple[Output, ...] = (Output.NIFTI,)
    overwrite: bool = False
    allow: tuple[Allow, ...] = ()
    runtime: Runtime | None = None
    check_flips: bool = False
    attention: tuple[int, ...] = ()
    hashed_names: bool = False

    def __post_init__(self) -> None:
        if not set(self.outputs) - {Output.PREVIEW}:
            raise UsageError(f"no output but previews is asked for; choose of {', '.join(Output)}.")
        if Output.SR in self.outputs and Output.SEG not in self.outputs:
            raise UsageError("an SR refers to the segments of a SEG; ask for both, as in --outputs seg,sr.")


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
