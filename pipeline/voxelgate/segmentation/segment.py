"""Segment one case: read, check, infer, write, and report what became of it."""

import logging
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from monai.data import MetaTensor

from voxelgate.bundle.predict import Bundle, Prediction, Segmentation
from voxelgate.core.errors import OutputError
from voxelgate.core.files import new_scratch, publish, refuse_existing
from voxelgate.core.findings import Finding, Severity, remark
from voxelgate.core.geometry import Grid, counts_pixels
from voxelgate.core.labels import LabelTable
from voxelgate.dicom.write.segmented import Algorithm, in_one_line
from voxelgate.dicom.write.sources import SourceSeries
from voxelgate.inference.attention.maps import diagnose
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.faults import Fault, fault_of, first_of_ours, sentence_of
from voxelgate.segmentation.options import Options, SharedResources
from voxelgate.segmentation.output_names import Output, output_paths, staged_place
from voxelgate.segmentation.outputs import Result, check_outputs, unwritable_kinds, write_results
from voxelgate.segmentation.preview import Sketch, sketch
from voxelgate.segmentation.read import read_case
from voxelgate.segmentation.report import MEMORY, WINDOWS_FOR_MEMORY, CaseReport, CaseStatus
from voxelgate.transforms.io import as_image

logger = logging.getLogger(__name__)

UNSTREAMED_SENTENCE = (
    "there was too little memory to pass the image through the network slice by slice, so it was done in windows, "
    "which changes labels a little; free memory, or raise --max-memory, and pass --again for the usual labels."
)


FAST_SENTENCE = (
    "the network ran fast (--fast), which changes labels a little: on a part of the first image {:.4%} of the voxels "
    "got the label that the exact way gives."
)


@dataclass(frozen=True)
class Attempt:
    """What came of one case.

    Args:
        report: its outputs are the names that the files shall get.
        fault: set where a failure is not the image's.
    """

    report: CaseReport
    fault: Fault | None = None


def segment_case(case: Case, bundle: Bundle, out_dir: Path, options: Options | None = None) -> CaseReport:
    """Segment one volume and write its label map on the grid of the volume; never raise on a bad case.

    Rejected are images that `read_case` refuses, an output that exists, and DICOM outputs of what is not DICOM or lacks
    what DICOM demands. Every other error makes the case failed; its traceback goes to the log at DEBUG.

    Args:
        case: the volume.
        bundle: the opened bundle.
        out_dir: folder of the results, which are named after the case; it is made.
        options: what to write and accept; by default a new NIfTI file.
    """
    chosen = options or Options()
    paths = output_paths(case, out_dir, chosen.outputs, chosen.attention, chosen.structures)
    scratch = new_scratch(out_dir)
    try:
        refuse_existing(paths.values(), overwrite=chosen.overwrite)
        report = attempt(case, bundle, (out_dir, scratch), chosen).report
        if report.status is CaseStatus.DONE:
            finished = {paths[kind] for kind in report.outputs}
            publish(
                {path: staged_place(scratch, path) for path in finished},
                set(paths.values()) - finished,
                scratch / "older",
            )
    except OutputError as error:
        return unfinished(
            case.case_id, CaseStatus.REJECTED, bundle.fingerprint, versions(bundle.name, bundle.version), str(error)
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def attempt(
    case: Case, bundle: Bundle, folders: tuple[Path, Path], options: Options, turns: SharedResources | None = None
) -> Attempt:
    """Segment one volume and finish its files under temporary names; never raise on a bad case.

    Args:
        case: the volume.
        bundle: the opened bundle.
        folders: where the files shall stand, and a folder to make in which they are finished, each under its name.
        options: what to write and accept; whether a name is taken is for the caller to see.
        turns: what to wait for where several cases are worked on at a time.
    """
    try:
        return Attempt(_segment_or_raise(case, bundle, folders, options, turns or SharedResources()))
    except Exception as error:  # one bad case must not end a batch; the only broad except of the package
        logger.debug("case %s ended with an error", case.case_id, exc_info=True)
        ours = first_of_ours(error)
        status = CaseStatus.FAILED if ours is None else CaseStatus.REJECTED
        sentence = sentence_of(error, ours, case)
        return Attempt(
            unfinished(case.case_id, status, bundle.fingerprint, versions(bundle.name, bundle.version), sentence),
            fault_of(error),
        )


def unfinished(
    case_id: str, status: CaseStatus, bundle_sha256: str, versions: Mapping[str, str], sentence: str
) -> CaseReport:
    """Return the report of a case without a result."""
    return CaseReport(case_id, status, bundle_sha256, versions, (remark(sentence, Severity.REFUSE),))


def _segment_or_raise(
    case: Case, bundle: Bundle, folders: tuple[Path, Path], options: Options, turns: SharedResources
) -> CaseReport:
    out_dir, scratch = folders
    with turns.files:
        prepared = _prepare(case, bundle, options)
    found: Prediction
    found, network_s = turns.network(_infer, prepared, bundle, options)
    with turns.files:
        started_s = time.perf_counter()
        made = bundle.review(found, prepared.grid, prepared.findings)
        result = Result(
            found.labels,
            prepared.grid,
            bundle.labels,
            made.volumes_ml,
            made.review,
            prepared.algorithm,
            prepared.sketch,
            found.gates,
            found.probabilities,
        )
        staged = write_results(result, case, options, prepared.source, scratch)
        names = output_paths(case, out_dir, options.outputs, options.attention, options.structures)
        older = [kind for kind, path in names.items() if kind not in staged and path.exists()]
        findings = prepared.findings + tuple(_remarks_on(made, bundle.labels, options, older))
        if found.is_unstreamed:
            findings += (remark(UNSTREAMED_SENTENCE),)
        if found.agreement is not None:
            findings += (remark(FAST_SENTENCE.format(found.agreement)),)
        attention = diagnose(found.gates, found.labels, prepared.grid)
    seconds = {"read": prepared.elapsed_s, "network": network_s, "write": time.perf_counter() - started_s}
    return CaseReport(
        case.case_id,
        CaseStatus.DONE,
        bundle.fingerprint,
        versions(bundle.name, bundle.version) | _of_result(found, bundle, options),
        findings,
        {str(kind): names[kind] for kind in staged},
        made.volumes_ml,
        {stage: round(elapsed_s, 3) for stage, elapsed_s in seconds.items()},
        made.review,
        _peak_mib(),
        attention,
        counts_pixels(prepared.grid),
    )


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What the network and the writers need of a case; the voxels of the file are not among it, for they are large.

    Args:
        image: (C, i, j, k) on the network grid.
        grid: of the file, RAS+ mm.
        findings: so far.
        source: of DICOM outputs.
        algorithm: that DICOM outputs name.
        sketch: for previews.
        elapsed_s: for all this.
    """

    image: MetaTensor
    grid: Grid
    findings: tuple[Finding, ...]
    source: SourceSeries | None
    algorithm: Algorithm | None
    sketch: Sketch | None
    elapsed_s: float


def _prepare(case: Case, bundle: Bundle, options: Options) -> _Prepared:
    started_s = time.perf_counter()
    left_out, _ = unwritable_kinds(options.outputs, bundle.labels)
    source = check_outputs(case, [kind for kind in options.outputs if kind not in left_out])
    algorithm = None
    if source is not None:
        algorithm = Algorithm(bundle.name, bundle.version, bundle.fingerprint, licence=in_one_line(bundle.licence))
    scan = read_case(case, bundle.labels, bundle.expected, options.allow, bundle.image_spec)
    small = sketch(scan.shown, scan.grid) if Output.PREVIEW in options.outputs else None
    image = bundle.prepare(as_image(scan.voxels, scan.grid, scan.facts))
    findings = tuple(replace(finding, message=case.redacted(finding.message)) for finding in scan.findings)
    elapsed_s = time.perf_counter() - started_s
    return _Prepared(image, scan.grid, findings, source, algorithm, small, elapsed_s)


def _infer(prepared: _Prepared, bundle: Bundle, options: Options) -> tuple[Prediction, float]:
    """Return what the network found, and the seconds that it took."""
    started_s = time.perf_counter()
    found = bundle.predict(
        prepared.image,
        prepared.grid,
        runtime=options.runtime,
        check_flips=options.check_flips,
        attention=options.attention,
        probabilities=Output.PROBABILITIES in options.outputs,
    )
    return found, time.perf_counter() - started_s


def _of_result(found: Prediction, bundle: Bundle, options: Options) -> dict[str, str]:
    """Return what a report says of how a result came about, and under which licence its model stands."""
    asked = ", ".join(
        name if value is True else f"{name} {'+'.join(value) if isinstance(value, list) else value}"
        for name, value in options.passing.changes.items()
    )
    return {
        "runtime": found.runtime,
        **({MEMORY: WINDOWS_FOR_MEMORY} if found.is_unstreamed else {}),
        **({"asked": asked} if asked else {}),
        **({} if found.agreement is None else {"agreement": f"{found.agreement:.3%}"}),
        **({"licence": bundle.licence} if bundle.licence else {}),
    }


def _remarks_on(made: Segmentation, table: LabelTable, options: Options, removed: Sequence[str]) -> Iterator[Finding]:
    """Yield why something that was asked for was not written, and what of an earlier run went with it."""
    older = f" Files of an earlier run were removed: {', '.join(sorted(removed))}." if removed else ""
    _, unwritable = unwritable_kinds(options.outputs, table)
    if unwritable:
        yield remark(unwritable)
    if not options.require.admits(verdict := made.review.verdict):
        sentence = f"the result is {verdict.in_words}, so it was not written, as --require {options.require} says."
        yield remark(f"{sentence}{older}", Severity.WARN)
    elif not any(made.volumes_ml.values()):
        sentence = "no structure was found; check that it shows what the bundle segments."
        yield remark(f"{sentence}{older}", Severity.WARN)


def _peak_mib() -> float:
    """Return the highest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def versions(bundle_name: str, bundle_version: str) -> dict[str, str]:
    """Return the versions of a bundle and of the software that runs it."""
    software = {name: version(name) for name in ("voxelgate", "monai", "torch")}
    return {"bundle": f"{bundle_name} {bundle_version}", **software, "python": platform.python_version()}
