"""Segment one case after the other: read, check, infer, write, and report what became of each."""

import functools
import logging
import os
import platform
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor

from pipeline.case_report import CaseReport, CaseStatus
from pipeline.cases import Case, read_case
from pipeline.dicom.findings import Allow
from pipeline.dicom.plausibility import Expected
from pipeline.dicom.series import Series
from pipeline.dicom.writing.derived import Algorithm
from pipeline.errors import BundleError, OutputError, UsageError, VoxelgateError
from pipeline.geometry import Grid
from pipeline.inference.choice import RuntimeChoice
from pipeline.inference.execution import Runtime
from pipeline.labels import LabelTable
from pipeline.monai_io import as_image
from pipeline.results import Output, Result, check_outputs, make_folder, output_paths, write_results

logger = logging.getLogger(__name__)

RESULTS_NAME = "results.jsonl"
"""File in the output folder with one line of JSON for each case, in the order in which they ended."""


class LoadedBundle(Hashable, Protocol):
    """What `segment` needs of a bundle; `pipeline.bundle.Bundle` has it."""

    @property
    def name(self) -> str:
        """Return the bundle's name."""

    @property
    def version(self) -> str:
        """Return the bundle's version."""

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the bundle, in hex."""

    @property
    def labels(self) -> LabelTable:
        """Return what the label values mean."""

    @property
    def preprocessing(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return what turns `{"image": MetaTensor (1, I, J, K)}` into one (C, i, j, k) on the network grid."""

    @property
    def inferer(self) -> Callable[[MetaTensor, Callable[..., torch.Tensor]], MetaTensor]:
        """Return what gives labels (1, 1, I, J, K) on the source grid, e.g. `RestoringSlidingWindowInferer`."""

    @property
    def network(self) -> torch.nn.Module:
        """Return the network, in eval mode."""

    @property
    def device(self) -> torch.device:
        """Return where the network's weights are."""

    @property
    def expected(self) -> Expected | None:
        """Return what images the bundle was trained on, if it says so."""


@dataclass(frozen=True)
class Options:
    """What is written, and what is accepted.

    Args:
        outputs: kinds of files to write; at least one.
        overwrite: replace results that are there.
        allow: faults of DICOM series to mend, as given to `find_cases`.
        runtime: how the network runs; None for the fastest that is known here to give the same labels.

    Raises:
        UsageError: no output, or a report without the DICOM SEG that it refers to.
    """

    outputs: tuple[Output, ...] = (Output.NIFTI,)
    overwrite: bool = False
    allow: tuple[Allow, ...] = ()
    runtime: Runtime | None = None

    def __post_init__(self) -> None:
        if not self.outputs:
            raise UsageError(f"no output is asked for; choose of {', '.join(Output)}.")
        if Output.SR in self.outputs and Output.SEG not in self.outputs:
            raise UsageError("an SR refers to the segments of a SEG; ask for both, as in --outputs seg,sr.")


def segment(case: Case, bundle: LoadedBundle, out_dir: Path, options: Options | None = None) -> CaseReport:
    """Segment one volume and write its label map on the grid of the volume; never raise on a bad case.

    Refused are images that `read_case` refuses, an output that exists, and DICOM outputs of what is not DICOM or lacks
    what DICOM demands. Every other error makes the case failed; its traceback goes to the log at DEBUG.

    Args:
        case: the volume.
        bundle: the opened bundle.
        out_dir: folder of the results, which are named after the case; it is made.
        options: what to write and accept; by default a new NIfTI file.
    """
    try:
        return _segment_or_raise(case, bundle, out_dir, options or Options())
    except Exception as error:  # one bad case must not end a batch; the only broad except of the package
        logger.debug("case %s ended with an error", case.case_id, exc_info=True)
        ours = _first_of_ours(error)
        status = CaseStatus.FAILED if ours is None else CaseStatus.REFUSED
        return CaseReport(case.case_id, status, bundle.fingerprint, _versions(bundle), (_sentence(error, ours, case),))


def segment_all(
    cases: Iterable[Case], bundle: LoadedBundle, out_dir: Path, options: Options | None = None
) -> Iterator[CaseReport]:
    """Segment cases one by one, yield each report when its case ends, and add it to `results.jsonl`.

    A line is added after the results are in place; lines of earlier runs stay. A case that is named like an earlier one
    of the run, such as a converted copy of a series, is refused, also if files may be replaced.

    Args:
        cases: from `find_cases`.
        bundle: the opened bundle.
        out_dir: folder of the results; made if missing.
        options: what to write and accept.

    Raises:
        OutputError: `out_dir` or `results.jsonl` cannot be written.
    """
    make_folder(out_dir)
    names: set[str] = set()
    for case in cases:
        name = case.case_id.casefold()  # one file where a file system ignores case
        report = _refused_twin(case, bundle) if name in names else segment(case, bundle, out_dir, options)
        names.add(name)
        _append_line(out_dir / RESULTS_NAME, report.to_json())
        yield report


def _refused_twin(case: Case, bundle: LoadedBundle) -> CaseReport:
    sentence = f"{case.case_id}: another input of this run has the same name; rename the file, or segment it by itself."
    return CaseReport(case.case_id, CaseStatus.REFUSED, bundle.fingerprint, _versions(bundle), (sentence,))


def _segment_or_raise(case: Case, bundle: LoadedBundle, out_dir: Path, options: Options) -> CaseReport:
    source = check_outputs(case, out_dir, options.outputs, bundle.labels, overwrite=options.overwrite)
    algorithm = None if source is None else Algorithm(bundle.name, bundle.version, bundle.fingerprint)
    started = time.perf_counter()
    scan = read_case(case, bundle.labels, bundle.expected, options.allow)
    image = bundle.preprocessing({"image": as_image(scan.voxels, scan.grid)})["image"]
    grid, findings = scan.grid, scan.findings
    del scan  # the voxels are needed no more, and the network wants the memory
    read = time.perf_counter()
    image = image[None].to(bundle.device)
    chosen = _choice(bundle, options.runtime).for_image(image)
    labels = _labels_on(grid, bundle.inferer(image, chosen.network), case)
    volumes_ml = _volumes_ml(labels, grid, bundle.labels)
    inferred = time.perf_counter()
    result = Result(labels, grid, bundle.labels, volumes_ml, algorithm)
    paths = output_paths(case, out_dir, options.outputs)
    older = {kind for kind, path in paths.items() if path.exists()}
    outputs = write_results(result, case, paths, source, overwrite=options.overwrite)
    written = time.perf_counter()
    if not any(volumes_ml.values()):
        findings += (_nothing_found(case, sorted(older - outputs.keys())),)
    seconds = {"read": read - started, "network": inferred - read, "write": written - inferred}
    return CaseReport(
        case.case_id,
        CaseStatus.DONE,
        bundle.fingerprint,
        _versions(bundle) | {"runtime": chosen.name},
        findings,
        {str(kind): path for kind, path in outputs.items()},
        volumes_ml,
        {stage: round(elapsed_s, 3) for stage, elapsed_s in seconds.items()},
    )


def _nothing_found(case: Case, removed: Sequence[Output]) -> str:
    sentence = f"{case.case_id}: no structure was found; check that it shows what the bundle segments."
    return f"{sentence} The {', '.join(removed)} of an earlier run were removed." if removed else sentence


@functools.lru_cache(maxsize=4)
def _choice(bundle: LoadedBundle, runtime: Runtime | None) -> RuntimeChoice:
    """Return what a process knows of a bundle's runtimes; each is prepared and checked once."""
    return RuntimeChoice(bundle.network, bundle.inferer, bundle.fingerprint, runtime)


def _labels_on(grid: Grid, labels: MetaTensor, case: Case) -> npt.NDArray[Any]:
    """Return labels (I, J, K), provided that they lie on the grid of the file."""
    found = Grid(tuple(labels.shape[2:]), labels.affine.reshape(4, 4).cpu().numpy())
    if (difference := grid.difference(found)) is not None:
        raise BundleError(
            f"{case.case_id}: the bundle's result does not lie on the image's grid: {difference}; let the bundle infer "
            "with RestoringSlidingWindowInferer."
        )
    array: npt.NDArray[Any] = labels.as_tensor()[0, 0].cpu().numpy()
    return array


def _volumes_ml(labels: npt.NDArray[Any], grid: Grid, table: LabelTable) -> dict[str, float]:
    if (highest := int(labels.max())) >= len(table.names):
        raise BundleError(f"the network gives label {highest}, but the bundle names only {len(table.names)}.")
    counts = np.zeros(len(table.names), dtype=np.int64)
    for plane in labels:  # one at a time: bincount makes int64 of them
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return {name: round(float(counts[value]) * grid.voxel_ml, 4) for value, name in table.foreground.items()}


def _versions(bundle: LoadedBundle) -> dict[str, str]:
    software = {name: version(name) for name in ("voxelgate", "monai", "torch")}
    return {"bundle": f"{bundle.name} {bundle.version}", **software, "python": platform.python_version()}


def _sentence(error: Exception, ours: VoxelgateError | None, case: Case) -> str:
    """Word an error; what a library says of a DICOM file may quote its header, and thus a patient."""
    if ours is not None:
        return str(ours)
    kind = type(error).__name__
    if isinstance(case.image, Series):
        return f"{kind} while {case.case_id} was worked on; run it again with --debug to see where."
    return f"{kind}: {str(error).strip().partition(chr(10))[0]}"


def _first_of_ours(error: BaseException) -> VoxelgateError | None:
    """Return the error that a library wrapped in its own, as MONAI's `apply_transform` does, if it is one of ours."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, VoxelgateError):
        cause = cause.__cause__
    return cause


def _append_line(path: Path, line: str) -> None:
    """Add a line; one that an earlier run left without an end stays a line of its own."""
    try:
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size and file.seek(size - 1) is not None and file.read(1) != b"\n":
                line = f"\n{line}"
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free the disk or its rights.") from error
