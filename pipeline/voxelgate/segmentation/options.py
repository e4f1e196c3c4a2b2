"""What a case is segmented with, and what is written of it."""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from monai.data import MetaTensor

from voxelgate.core.errors import UsageError
from voxelgate.core.findings import Allow
from voxelgate.core.labels import LabelTable
from voxelgate.evaluation.expectations import Expected
from voxelgate.images.spec import ImageSpec
from voxelgate.inference.runtimes.runtimes import Runtime
from voxelgate.segmentation.outputs import Output


class NamedBundle(Protocol):
    """What a report says of a bundle."""

    @property
    def name(self) -> str:
        """Return the bundle's name."""

    @property
    def version(self) -> str:
        """Return the bundle's version."""


class LoadedBundle(NamedBundle, Hashable, Protocol):
    """What `segment` needs of a bundle; `voxelgate.bundle.opened.Bundle` has it."""

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the bundle, in hex."""

    @property
    def labels(self) -> LabelTable:
        """Return what the label values mean."""

    @property
    def preprocessing(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return what turns `{"image": MetaTensor (C, I, J, K)}` into one (C, i, j, k) on the network grid."""

    @property
    def inferer(self) -> Callable[[MetaTensor, Callable[..., torch.Tensor]], MetaTensor]:
        """Return what gives labels (1, 1, I, J, K) on the source grid, e.g. `RestoringSlidingWindowInferer`."""

    @property
    def cleaning(self) -> Callable[[MetaTensor], MetaTensor]:
        """Return what takes mistakes out of these labels, as cross-validation found it to help."""

    @property
    def network(self) -> torch.nn.Module:
        """Return the network, in eval mode."""

    @property
    def device(self) -> torch.device:
        """Return where the network's weights are."""

    @property
    def expected(self) -> Expected | None:
        """Return what images the bundle was trained on, if it says so."""

    @property
    def images(self) -> ImageSpec:
        """Return what its images consist of."""


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
