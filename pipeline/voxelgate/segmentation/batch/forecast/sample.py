"""Measure on real cases what a bundle needs: run the network on a block from their middle; do short ones whole."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import CastToTyped, Compose, Orientationd
from torch import nn

from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.predict import Bundle
from voxelgate.bundle.reading import Image
from voxelgate.core.errors import VoxelgateError
from voxelgate.core.geometry import Box, Grid, Shape, triple
from voxelgate.core.structures import measure_structures
from voxelgate.core.verdict import Quality
from voxelgate.evaluation.review import assess
from voxelgate.inference.memory import StreamingModel, available_bytes, measure_memory
from voxelgate.inference.runtimes.choice import RuntimeChoice
from voxelgate.inference.sliding_window import AIR_MARGIN_VOX, networks_of
from voxelgate.inference.threads import in_network_thread
from voxelgate.inference.windows import body_box, with_margin
from voxelgate.segmentation.batch.forecast.needs import Measured, WindowModel, Written
from voxelgate.segmentation.batch.worker import SHARED, Setup
from voxelgate.segmentation.cases import Case
from voxelgate.segmentation.options import Options
from voxelgate.segmentation.output_names import Output, staged_place
from voxelgate.segmentation.outputs import Result, write_results
from voxelgate.segmentation.preview import sketch
from voxelgate.segmentation.read import read_case
from voxelgate.segmentation.report import CaseReport, CaseStatus
from voxelgate.segmentation.segment import attempt
from voxelgate.transforms import ResampleToSpacingd
from voxelgate.transforms.io import as_image

Returned = TypeVar("Returned")

LEAST_S = 0.5
"""Time of a run of the network that says how fast it is; where a block takes less, a larger one is run."""

TRIALS, TRIALS_PAY_S = 3, 2.0
"""How often a case is done on trial that takes less than so many seconds: most of its first time is warming up."""

TRIED_S = 10.0
"""Longest time of the network in a case that is done on trial."""

PLANES_VOX = (48, 144)
"""Sides of the planes with which streaming is measured; its memory grows in a straight line with their area."""

UNREADABLE = (VoxelgateError, OSError, RuntimeError, ValueError)
"""What a case may raise that is damaged or too large; its report will say what is wrong with it."""


USUAL_WINDOW_VOX = 128
"""Side of a window of nnU-Net with usual memory, for inferers of several parts, each with a window of its own."""

SECOND_BLOCK = 1.5
"""Side of the second block that is run of an inferer of another kind, as a multiple of the first."""


@dataclass(frozen=True)
class Scale:
    """How a bundle makes the network grid of a source grid.

    Args:
        is_turned: the axes of the network grid are those of RAS, not those of the file.
        spacing_mm: of the network grid, if it is the same for all cases.
        factors: else voxels of the network grid for each voxel of the file, along the axes of the network grid.
        keeps_integers: integers of up to 16 bits stay what they are until they are resampled.
    """

    is_turned: bool
    spacing_mm: tuple[float, ...] | None
    factors: tuple[float, ...]
    keeps_integers: bool


@dataclass(frozen=True)
class Sample:
    """What was seen of a case.

    Args:
        measured: what it and the bundle took.
        scale: of the bundle.
    """

    measured: Measured
    scale: Scale


def sample(setup: Setup, cases: Sequence[Case]) -> list[Sample]:
    """Measure cases in this process, which is like those that will do the work, and has done nothing yet.

    Args:
        setup: of the batch.
        cases: what to read; a case that cannot be is left out.
    """
    opened = open_bundle(setup.bundle, setup.options.device, ensemble=setup.options.ensemble)
    bundle = opened.adjusted(setup.options.passing)
    base_bytes = memory_bytes("VmRSS")
    idle_bytes = max(0, memory_bytes("VmData") - base_bytes)
    samples = []
    for case in cases:
        try:
            samples.append(_sample_of(case, bundle, setup, (base_bytes, idle_bytes)))
        except UNREADABLE:
            continue
    return samples


def memory_bytes(name: str) -> int:
    """Return memory of this process: resident now (`VmRSS`) or at most (`VmHWM`), or allocated (`VmData`); Linux."""
    rows = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith(name))


def axes_of(grid: Grid, *, is_turned: bool) -> list[int]:
    """Return which axis of a file becomes each axis of the network grid."""
    towards = nib.io_orientation(grid.affine)[:, 0]
    return [int(np.flatnonzero(towards == axis)[0]) if is_turned else axis for axis in range(3)]


def _sample_of(case: Case, bundle: Bundle, setup: Setup, empty_bytes: tuple[int, int]) -> Sample:
    scan, read_s = _timed(
        lambda: read_case(case, bundle.labels, bundle.expected, setup.options.allow, bundle.image_spec)
    )
    whole, prepare_s = _timed(lambda: _prepared(bundle, scan))
    scale, body = _scale(bundle, scan.grid, _shape(whole)), _body(bundle, whole)
    side_mm, whole_vox = _window_mm(bundle, whole), _shape(whole)
    del whole
    choice = RuntimeChoice(bundle.network, bundle.inferer, bundle.fingerprint, setup.options.runtime)
    run = in_network_thread(_run_long_enough, bundle, choice, scan, side_mm)
    write_s = _write_s(run, scan, bundle, setup.options.outputs)
    windows, streaming = _models(bundle, run)
    computed = _computed(_shape(run.image), windows, streaming)
    fixed_bytes, slope = _growth(bundle, choice, scan, side_mm, run)
    measured = Measured(
        base_bytes=empty_bytes[0],
        idle_bytes=empty_bytes[1],
        channels=int(run.image.shape[1]),
        classes=len(bundle.labels.names) if windows is None else windows.memory.classes,
        body=body,
        streaming=streaming,
        windows=windows,
        whole_bytes=slope,
        whole_fixed_bytes=fixed_bytes,
        network_s=run.elapsed_s / computed,
        files_s=(read_s + prepare_s + write_s) / scan.voxels[0].size,
        is_on_host=bundle.device.type == "cpu",
    )
    box_vox = triple(max(1, math.ceil(n * share)) for n, share in zip(whole_vox, body, strict=True))
    computed = _computed(box_vox, windows, streaming)
    if windows is not None and measured.network_s * computed <= TRIED_S:
        measured = _tried(case, bundle, setup, measured, (scan.voxels[0].size, computed))
    return Sample(measured, scale)


def _computed(box: Shape, windows: WindowModel | None, streaming: StreamingModel | None) -> int:
    """Return how many voxels the network computes of a part of its grid: each once, but for windows."""
    return windows.plan(box, math.inf).computed_vox if windows is not None and streaming is None else math.prod(box)


def _tried(case: Case, bundle: Bundle, setup: Setup, measured: Measured, voxels: tuple[int, int]) -> Measured:
    """Return what doing a case takes, with all that is asked for; what is known already if it is refused.

    Args:
        case: to do, in a folder of its own.
        bundle: that is opened.
        setup: of the batch.
        measured: without this case.
        voxels: of the source, and those that the network computes.
    """
    seconds: list[Mapping[str, float]] = []
    while not seconds or (len(seconds) < TRIALS and sum(seconds[-1].values()) < TRIALS_PAY_S):
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder) / "files"
            report: CaseReport = attempt(case, bundle, (setup.out_dir, scratch), setup.options, SHARED).report
            if report.status is not CaseStatus.DONE:
                return measured
            size_of = {kind: staged_place(scratch, path).stat().st_size for kind, path in report.outputs.items()}
        seconds.append(report.seconds)
    fixed_bytes = size_of.get(Output.PREVIEW, 0) + size_of.get(Output.SR, 0)
    return replace(
        measured,
        network_s=min(one["network"] for one in seconds) / voxels[1],
        files_s=min(one["read"] + one["write"] for one in seconds) / voxels[0],
        written=Written((sum(size_of.values()) - fixed_bytes) / voxels[0], fixed_bytes),
    )


def _growth(bundle: Bundle, choice: RuntimeChoice, scan: Image, side_mm: float, run: "_Run") -> tuple[float, float]:
    """Return what an inferer of another kind takes for any image, and for each voxel of the network grid beside.

    A window takes as much in any image, while what is kept of its rows grows; so two blocks are run.
    """
    if bundle.sliding is not None:
        return 0.0, 0.0
    voxels = math.prod(_shape(run.image))
    larger = in_network_thread(_run_block, bundle, choice, _block(scan, SECOND_BLOCK * side_mm))
    more = math.prod(_shape(larger.image)) - voxels
    slope = max(0, larger.grown_bytes - run.grown_bytes) / more if more > 0 else 0.0
    return max(0.0, run.grown_bytes - slope * voxels), slope


def _models(bundle: Bundle, run: "_Run") -> tuple[WindowModel | None, StreamingModel | None]:
    """Return what windows take and, if volumes are streamed, what that takes; nothing of inferers of other kinds.

    Streaming is measured on PyTorch's meta device; all axes are taken to cost what the first does.
    """
    inferer, networks = bundle.sliding, networks_of(bundle.network)
    if inferer is None:
        return None, None
    memory = measure_memory(inferer.views(networks), run.image, inferer.roi_size, inferer.window_multiple)
    most_bytes = inferer.max_memory or available_bytes(run.image.device)
    windows = WindowModel(memory, inferer.windows(networks), most_bytes)
    if not (isinstance(run.network, nn.Module) and inferer.all_stream(networks_of(run.network))):
        return windows, None
    axes = inferer.streamable_axes
    low, high = (inferer.streaming_bytes(networks, (n, n), axes[0]) for n in PLANES_VOX)
    plane_bytes = (high - low) / (PLANES_VOX[1] ** 2 - PLANES_VOX[0] ** 2)
    return windows, StreamingModel(
        fixed_bytes=max(0, int(low - plane_bytes * PLANES_VOX[0] ** 2)),
        plane_bytes=plane_bytes,
        axes=axes,
        classes=memory.classes,
        views=len(networks) * 2 ** len(inferer.flip_axes),
        is_on_host=bundle.device.type == "cpu",
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """What the network made of a block.

    Args:
        image: (1, C, i, j, k) on the network grid.
        network: that ran.
        labels: (I, J, K) on the grid of the block.
        elapsed_s: for the inferer.
        grown_bytes: by how much the peak of the process rose.
    """

    image: MetaTensor
    network: object
    labels: npt.NDArray[Any]
    elapsed_s: float
    grown_bytes: int


def _run_long_enough(bundle: Bundle, choice: RuntimeChoice, scan: Image, side_mm: float) -> _Run:
    """Run a block as large as a window, then, now that all is warm, one that takes its time."""
    run = _run_block(bundle, choice, _block(scan, side_mm))
    if run.elapsed_s > 2 * LEAST_S:
        return run
    larger = max(1.0, math.cbrt(LEAST_S / max(run.elapsed_s, 1e-3)))
    return replace(_run_block(bundle, choice, _block(scan, side_mm * larger)), grown_bytes=run.grown_bytes)


def _run_block(bundle: Bundle, choice: RuntimeChoice, block: Image) -> _Run:
    image = _prepared(bundle, block).to(bundle.device)
    network = choice.for_image(image).network
    before_bytes = memory_bytes("VmRSS")
    result, elapsed_s = _timed(lambda: bundle.inferer(image, network))
    grown_bytes = max(0, memory_bytes("VmHWM") - before_bytes)
    labels: npt.NDArray[Any] = result.as_tensor()[0, 0].cpu().numpy()
    return _Run(image, network, labels, elapsed_s, grown_bytes)


def _write_s(run: _Run, scan: Image, bundle: Bundle, outputs: Sequence[Output]) -> float:
    """Judge and write a label map of the whole case that holds a block; DICOM outputs would need a real series."""
    chosen = Options((Output.NIFTI, *(kind for kind in outputs if kind is Output.PREVIEW)))
    labels = np.zeros(scan.grid.shape, run.labels.dtype, order="F")
    labels[_middle(labels.shape, run.labels.shape)] = run.labels
    volumes_ml = dict.fromkeys(bundle.labels.foreground.values(), 1.0)
    started_s = time.perf_counter()
    result = Result(labels, scan.grid, bundle.labels, volumes_ml, Quality(), None, sketch(scan.shown, scan.grid))
    with tempfile.TemporaryDirectory() as folder:
        write_results(result, Case("sample", None), chosen, None, Path(folder) / "files")
    assess(measure_structures(labels, scan.grid, bundle.labels), bundle.labels, bundle.expected)
    return time.perf_counter() - started_s


def _prepared(bundle: Bundle, image: Image) -> MetaTensor:
    """Return the image (1, C, i, j, k) on the network grid."""
    return cast("MetaTensor", bundle.prepare(as_image(image.voxels, image.grid, image.facts))[None])


def _block(scan: Image, side_mm: float) -> Image:
    """Return the middle of an image, a cube as far as it goes."""
    size_vox = triple(
        min(n, max(1, math.ceil(side_mm / gap))) for n, gap in zip(scan.grid.shape, scan.grid.spacing_mm, strict=True)
    )
    spans = _middle(scan.grid.shape, size_vox)
    return Image(np.asfortranarray(scan.voxels[:, *spans]), scan.grid.cropped(spans), (), scan.facts)


def _middle(shape: Shape, size: Shape) -> Box:
    return triple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(shape, size, strict=True))


def _window_mm(bundle: Bundle, image: MetaTensor) -> float:
    """Return the longest side of a window; where the inferer has none, of a usual one, or of the image if smaller."""
    usual = triple(min(n, USUAL_WINDOW_VOX) for n in _shape(image))
    gaps_mm = Grid.of(image).spacing_mm
    return max(n * gap_mm for n, gap_mm in zip(bundle.window_vox or usual, gaps_mm, strict=True))


def _scale(bundle: Bundle, source: Grid, network_vox: Shape) -> Scale:
    steps = bundle.preprocessing.transforms if isinstance(bundle.preprocessing, Compose) else ()
    is_turned = any(isinstance(step, Orientationd) for step in steps)
    spacings = [step.spacing_mm for step in steps if isinstance(step, ResampleToSpacingd)]
    source_vox = [source.shape[axis] for axis in axes_of(source, is_turned=is_turned)]
    factors = tuple(network / n for network, n in zip(network_vox, source_vox, strict=True))
    keeps_integers = not (steps and isinstance(steps[0], CastToTyped))
    return Scale(is_turned, spacings[-1] if spacings else None, factors, keeps_integers)


def _body(bundle: Bundle, image: MetaTensor) -> tuple[float, float, float]:
    """Return the part of the network grid along each axis that the inferer will run."""
    size, inferer = _shape(image), bundle.sliding
    if inferer is None or inferer.skip_below is None:
        return 1.0, 1.0, 1.0
    box = body_box(image.as_tensor(), inferer.skip_below)
    if box is None:
        return 1 / size[0], 1 / size[1], 1 / size[2]
    if bundle.streams:
        box = with_margin(box, size, AIR_MARGIN_VOX, (1, 1, 1), inferer.flip_axes)
    return triple((span.stop - span.start) / n for span, n in zip(box, size, strict=True))


def _shape(image: torch.Tensor) -> Shape:
    return triple(image.shape[2:])


def _timed(function: Callable[[], Returned]) -> tuple[Returned, float]:
    started_s = time.perf_counter()
    returned = function()
    return returned, time.perf_counter() - started_s
