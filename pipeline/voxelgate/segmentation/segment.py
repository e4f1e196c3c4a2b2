"""Segment one case: read, check, infer, write, and report what became of it."""

import copy
import functools
import logging
import platform
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from monai.data import MetaTensor

from voxelgate.bundle.predict import flip_dice
from voxelgate.core.errors import BundleError, OutputError, UsageError
from voxelgate.core.files import new_scratch, publish, refuse_existing
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.structures import Structure, measure_structures
from voxelgate.dicom.write.segmented import Algorithm
from voxelgate.dicom.write.sources import SourceSeries
from voxelgate.evaluation.review import assess
from voxelgate.inference.attention.maps import GateMap, diagnose, gate_levels, gate_maps
from voxelgate.inference.runtimes.choice import RuntimeChoice
from voxelgate.inference.runtimes.runtimes import Runtime
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.faults import Fault, fault_of, first_of_ours, sentence_of
from voxelgate.segmentation.options import LoadedBundle, NamedBundle, Options, SharedResources
from voxelgate.segmentation.outputs import (
    Output,
    Result,
    check_outputs,
    output_paths,
    write_results,
)
from voxelgate.segmentation.preview import Sketch, sketch
from voxelgate.segmentation.read import read_case
from voxelgate.segmentation.report import CaseReport, CaseStatus
from voxelgate.transforms.io import as_image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """What came of one case.

    Args:
        report: its outputs are the names that the files shall get.
        fault: set where a failure is not the image's.
    """

    report: CaseReport
    fault: Fault | None = None


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
    chosen = options or Options()
    paths = output_paths(case, out_dir, chosen.outputs, chosen.attention)
    scratch = new_scratch(out_dir)
    try:
        refuse_existing(paths.values(), overwrite=chosen.overwrite)
        report = attempt(case, bundle, (out_dir, scratch), chosen).report
        if report.status is CaseStatus.DONE:
            finished = {paths[kind] for kind in report.outputs}
            publish({path: scratch / path.name for path in finished}, set(paths.values()) - finished, scratch / "older")
    except OutputError as error:
        return unfinished(case.case_id, CaseStatus.REFUSED, bundle.fingerprint, versions(bundle), str(error))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def attempt(
    case: Case, bundle: LoadedBundle, folders: tuple[Path, Path], options: Options, turns: SharedResources | None = None
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
        status = CaseStatus.FAILED if ours is None else CaseStatus.REFUSED
        sentence = sentence_of(error, ours, case)
        return Attempt(
            unfinished(case.case_id, status, bundle.fingerprint, versions(bundle), sentence), fault_of(error)
        )


def unfinished(
    case_id: str, status: CaseStatus, bundle_sha256: str, versions: Mapping[str, str], sentence: str
) -> CaseReport:
    """Return the report of a case without a result."""
    return CaseReport(case_id, status, bundle_sha256, versions, (sentence,))


def _segment_or_raise(
    case: Case, bundle: LoadedBundle, folders: tuple[Path, Path], options: Options, turns: SharedResources
) -> CaseReport:
    out_dir, scratch = folders
    with turns.files:
        prepared = _prepare(case, bundle, options)
    found: _Found = turns.network(_infer, prepared, bundle, options)
    with turns.files:
        started_s = time.perf_counter()
        measured = _measured(found.labels, prepared.grid, bundle.labels)
        volumes_ml = dict.fromkeys(bundle.labels.foreground.values(), 0.0)
        volumes_ml |= {name: round(one.volume_ml, 4) for name, one in measured.items()}
        result = Result(
            found.labels, prepared.grid, bundle.labels, volumes_ml, prepared.algorithm, prepared.sketch, found.gates
        )
        staged = write_results(result, case, options.outputs, prepared.source, scratch)
        findings = prepared.findings
        names = output_paths(case, out_dir, options.outputs, options.attention)
        if not any(volumes_ml.values()):
            older = [kind for kind, path in names.items() if kind not in staged and path.exists()]
            findings += (_nothing_found(case, older),)
        quality = assess(
            measured,
            bundle.labels,
            bundle.expected,
            findings=findings,
            confidence=found.confidence,
            flip_dice=found.flip_dice,
        )
        attention = diagnose(found.gates, found.labels, prepared.grid)
    seconds = {"read": prepared.elapsed_s, "network": found.elapsed_s, "write": time.perf_counter() - started_s}
    return CaseReport(
        case.case_id,
        CaseStatus.DONE,
        bundle.fingerprint,
        versions(bundle) | {"runtime": found.runtime},
        findings,
        {str(kind): names[kind] for kind in staged},
        volumes_ml,
        {stage: round(elapsed_s, 3) for stage, elapsed_s in seconds.items()},
        quality,
        _peak_mib(),
        attention,
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
    findings: tuple[str, ...]
    source: SourceSeries | None
    algorithm: Algorithm | None
    sketch: Sketch | None
    elapsed_s: float


@dataclass(frozen=True, eq=False)
class _Found:
    """What the network found.

    Args:
        labels: (I, J, K) on the grid of the file.
        runtime: how the network ran.
        confidence: mean probability of each class where it won, if the inferer says it.
        flip_dice: agreement with the mirrored image by structure, if asked for.
        gates: their maps, if asked for.
        elapsed_s: for all this.
    """

    labels: npt.NDArray[Any]
    runtime: str
    confidence: Sequence[float] | None
    flip_dice: Mapping[str, float] | None
    gates: Sequence[GateMap]
    elapsed_s: float


def _prepare(case: Case, bundle: LoadedBundle, options: Options) -> _Prepared:
    started_s = time.perf_counter()
    source = check_outputs(case, options.outputs, bundle.labels)
    algorithm = None if source is None else Algorithm(bundle.name, bundle.version, bundle.fingerprint)
    scan = read_case(case, bundle.labels, bundle.expected, options.allow, bundle.images)
    small = sketch(scan.shown, scan.grid) if Output.PREVIEW in options.outputs else None
    image = bundle.preprocessing({"image": as_image(scan.voxels, scan.grid)})["image"]
    findings = tuple(map(case.redacted, scan.findings))
    elapsed_s = time.perf_counter() - started_s
    return _Prepared(image, scan.grid, findings, source, algorithm, small, elapsed_s)


def _infer(prepared: _Prepared, bundle: LoadedBundle, options: Options) -> _Found:
    started_s = time.perf_counter()
    image = prepared.image[None].to(bundle.device)
    chosen = _choice(bundle, options.runtime).for_image(image)
    result = bundle.inferer(image, chosen.network)
    confidence = _confidence(result)
    result = bundle.cleaning(result)
    labels = _labels_on(prepared.grid, result)
    agreement = None
    if options.check_flips:
        agreement = _agreement_with_mirrored(image, bundle, labels)
    gates = _gates(image, bundle, options.attention)
    return _Found(labels, chosen.name, confidence, agreement, gates, time.perf_counter() - started_s)


def _gates(image: MetaTensor, bundle: LoadedBundle, asked: tuple[int, ...]) -> list[GateMap]:
    """Return the maps of all gates for an image (1, C, i, j, k) as it is; none if none are asked for."""
    if not asked:
        return []
    if (levels := gate_levels(bundle.network)) != asked:
        raise UsageError(f"attention maps of gates {asked}, but the network has gates {levels}; ask for all of them.")
    grid = Grid(tuple(image.shape[2:]), image.affine.reshape(4, 4).cpu().numpy())
    window_vox = getattr(bundle.inferer, "roi_size", grid.shape)  # an inferer of another kind takes the whole image
    return gate_maps(bundle.network, image.as_tensor(), grid, window_vox)


def _agreement_with_mirrored(image: MetaTensor, bundle: LoadedBundle, labels: npt.NDArray[Any]) -> Mapping[str, float]:
    """Return Dice with the result of the mirrored image; an inferer that averages over both is asked without that."""
    plain = copy.copy(bundle.inferer)
    if getattr(plain, "flip_axes", ()):
        plain.flip_axes = ()  # type: ignore[attr-defined]  # it has them, as was just seen
        labels = plain(image, bundle.network).as_tensor()[0, 0].cpu().numpy()
    return flip_dice(image, bundle.network, plain, labels, bundle.labels)


def _confidence(result: MetaTensor) -> list[float] | None:
    """Return what an inferer says of its own result, from metadata as they are or collated to a batch of one."""
    stated = result.meta.get("confidence")
    return None if stated is None else torch.as_tensor(stated).flatten().tolist()


def _nothing_found(case: Case, removed: Sequence[str]) -> str:
    sentence = f"{case.case_id}: no structure was found; check that it shows what the bundle segments."
    return f"{sentence} The {', '.join(sorted(removed))} of an earlier run were removed." if removed else sentence


def _peak_mib() -> float:
    """Return the highest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


@functools.lru_cache(maxsize=4)
def _choice(bundle: LoadedBundle, runtime: Runtime | None) -> RuntimeChoice:
    """Return what a process knows of a bundle's runtimes; each is prepared and checked once."""
    return RuntimeChoice(bundle.network, bundle.inferer, bundle.fingerprint, runtime)


def _labels_on(grid: Grid, labels: MetaTensor) -> npt.NDArray[Any]:
    """Return labels (I, J, K), provided that they lie on the grid of the file."""
    found = Grid(tuple(labels.shape[2:]), labels.affine.reshape(4, 4).cpu().numpy())
    if (difference := grid.difference(found)) is not None:
        raise BundleError(
            f"the bundle's result does not lie on the image's grid: {difference}; let the bundle infer with "
            "RestoringSlidingWindowInferer."
        )
    array: npt.NDArray[Any] = labels.as_tensor()[0, 0].cpu().numpy()
    return array


def _measured(labels: npt.NDArray[Any], grid: Grid, table: LabelTable) -> dict[str, Structure]:
    if (highest := int(labels.max())) >= len(table.names):
        raise BundleError(f"the network gives label {highest}, but the bundle names only {len(table.names)}.")
    return measure_structures(labels, grid, table)


def versions(bundle: NamedBundle) -> dict[str, str]:
    """Return the versions of a bundle and of the software that runs it."""
    software = {name: version(name) for name in ("voxelgate", "monai", "torch")}
    return {"bundle": f"{bundle.name} {bundle.version}", **software, "python": platform.python_version()}
