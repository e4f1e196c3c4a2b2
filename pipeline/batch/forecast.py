"""What each case of a batch will need in memory, time and disk, from its size and what was measured on a sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.batch.demand import Shape, StreamingModel, WindowModel
from pipeline.results import Output

BLOCK_BYTES = 40 * 2**20
"""What interpolation of images takes for a block of planes, at most."""

WINDOWS_SLOWER = 1.3
"""Time for a voxel in a window to that for a voxel that is streamed; measured with the benchmark's network."""

MOST_UINT8 = 256
"""Classes above which a label takes four bytes until it is written."""

DISK_BYTES_PER_VOX: Mapping[Output, float] = {
    Output.SEG: 0.1,
    Output.RTSTRUCT: 0.3,
}
"""For each voxel of the source at most: a label map with RLE takes a third of that (100 segments), and of outlines, one
voxel in a hundred is a point of 30 characters."""

DISK_BYTES_PER_CASE: Mapping[Output, int] = {
    Output.NIFTI: 2**12,
    Output.SEG: 2**18,
    Output.RTSTRUCT: 2**16,
    Output.SR: 2**18,
    Output.PREVIEW: 2**18,
}
"""Headers, measurements and pictures at most."""

MOST_BIT_PLANES = 10
"""Segments that a DICOM SEG holds as planes of bits (`dicom.seg.MOST_BINARY_SEGMENTS`), one bit a voxel for each."""


class Way(StrEnum):
    """How the network sees a case."""

    STREAMING = "streaming"
    WINDOWS = "windows"
    UNKNOWN = "unknown"
    """By an inferer of another kind, in proportion to what the sample took."""


@dataclass(frozen=True)
class Size:
    """How large a case is, from its header.

    Args:
        case_id: of the case.
        source_vox: voxels of the file along the axes of the network grid.
        network_vox: voxels of the network grid.
        stored_bytes: of the voxels as they are read.
        turned_bytes: of the voxels as they are resampled, zero if they are resampled as they were read.
    """

    case_id: str
    source_vox: Shape
    network_vox: Shape
    stored_bytes: int
    turned_bytes: int


@dataclass(frozen=True)
class Measured:
    """What a bundle was seen to need on this machine.

    Args:
        base_bytes: resident memory of a process that has opened the bundle.
        channels: of the image on the network grid.
        classes: of the scores.
        body: part of the network grid along each axis that is run, 0 to 1.
        streaming: None if the bundle does not stream.
        windows: None if the inferer is of another kind.
        unknown_bytes: for each voxel of the network grid, of an inferer of another kind.
        network_s: for each voxel that the network computes.
        files_s: for each voxel of the source: read, prepared, judged and written.
        label_bytes: of a NIfTI label map, for each voxel of the source in the part that is run.
        is_on_host: the network computes in the memory of the process, not in that of a GPU.
    """

    base_bytes: int
    channels: int
    classes: int
    body: tuple[float, float, float]
    streaming: StreamingModel | None
    windows: WindowModel | None
    unknown_bytes: float
    network_s: float
    files_s: float
    label_bytes: float
    is_on_host: bool = True


@dataclass(frozen=True)
class Room:
    """What there is for a batch.

    Args:
        process_bytes: resident memory of a process at most.
        processes: that share the work.
        cases_at_a_time: in a process: one has the network while another is read or written.
        outputs: what is written of each case.
    """

    process_bytes: float = math.inf
    processes: int = 1
    cases_at_a_time: int = 1
    outputs: tuple[Output, ...] = (Output.NIFTI,)


@dataclass(frozen=True)
class CaseForecast:
    """What a case will need, beside an idle process.

    Args:
        case_id: of the case.
        way: in which the network will see it.
        files_bytes: peak while it is read and prepared.
        network_bytes: peak while the network has it.
        held_bytes: part of `network_bytes` that is not the network's: image and labels.
        files_s: read, prepare, judge and write.
        network_s: the network.
        disk_bytes: of its results at most.
    """

    case_id: str
    way: Way
    files_bytes: int
    network_bytes: int
    held_bytes: int
    files_s: float
    network_s: float
    disk_bytes: int

    @property
    def alone_bytes(self) -> int:
        """Return its peak in a process that has no other case."""
        return max(self.files_bytes, self.network_bytes)


@dataclass(frozen=True)
class Forecast:
    """What a batch will need.

    Args:
        cases: that fit.
        unfit: a sentence for each case that does not, by its id.
        peak_bytes: resident memory of a process at most.
        cases_at_a_time: in a process, so that it stays within its limit.
        network_bytes: what the network may take in a process; None for any.
        elapsed_s: for all cases that fit.
        disk_bytes: of all results at most.
    """

    cases: tuple[CaseForecast, ...]
    unfit: Mapping[str, str] = field(default_factory=dict)
    peak_bytes: int = 0
    cases_at_a_time: int = 1
    network_bytes: int | None = None
    elapsed_s: float = 0.0
    disk_bytes: int = 0


def forecast(sizes: Sequence[Size], measured: Measured, room: Room | None = None) -> Forecast:
    """Say what a batch will need, and which of its cases cannot be done in the memory of a process.

    Where a network that streams does not fit, windows are taken, which compute more and take less.

    Args:
        sizes: of the cases.
        measured: of the bundle.
        room: what there is; by default one process without limits.
    """
    given = room or Room()
    all_cases = [_case(size, measured, given) for size in sizes]
    limit = given.process_bytes - measured.base_bytes
    cases = tuple(case for case in all_cases if case.alone_bytes <= limit)
    unfit = {
        case.case_id: _sentence(case, measured, given.process_bytes) for case in all_cases if case.alone_bytes > limit
    }
    if not cases:
        return Forecast((), unfit)
    together_bytes = _together_bytes(cases) if given.cases_at_a_time > 1 else math.inf
    alone_bytes = max(case.alone_bytes for case in cases)
    is_company = together_bytes <= limit
    return Forecast(
        cases,
        unfit,
        peak_bytes=measured.base_bytes + (int(together_bytes) if is_company else alone_bytes),
        cases_at_a_time=given.cases_at_a_time if is_company else 1,
        network_bytes=None if math.isinf(limit) else int(limit - max(case.held_bytes for case in cases)),
        elapsed_s=max(
            sum(case.files_s + case.network_s for case in cases) / given.processes,
            max(case.files_s + case.network_s for case in cases),
        ),
        disk_bytes=sum(case.disk_bytes for case in cases),
    )


def _case(size: Size, measured: Measured, room: Room) -> CaseForecast:
    source, network = math.prod(size.source_vox), math.prod(size.network_vox)
    image_bytes = 4 * measured.channels * network
    label_bytes = source * (1 if measured.classes <= MOST_UINT8 else 4)
    held_bytes = image_bytes + label_bytes
    box = _box(size.network_vox, measured.body)
    way, work_bytes, computed = _work(box, measured, room.process_bytes - measured.base_bytes - held_bytes)
    reading_bytes = 2 * size.stored_bytes
    preparing_bytes = size.stored_bytes + size.turned_bytes + image_bytes + min(BLOCK_BYTES, image_bytes)
    in_body = math.prod(box) / network
    return CaseForecast(
        size.case_id,
        way,
        files_bytes=max(reading_bytes, preparing_bytes),
        network_bytes=held_bytes + work_bytes,
        held_bytes=held_bytes,
        files_s=measured.files_s * source,
        network_s=measured.network_s * computed,
        disk_bytes=_disk_bytes(source, in_body, measured, room.outputs),
    )


def _box(network_vox: Shape, body: tuple[float, float, float]) -> Shape:
    i, j, k = (max(1, math.ceil(n * share)) for n, share in zip(network_vox, body, strict=True))
    return i, j, k


def _work(box: Shape, measured: Measured, room_bytes: float) -> tuple[Way, float, float]:
    """Return how the network sees a part of its grid, its memory, and how many voxels it computes, as those measured.

    What does not fit in any way needs what the last way needs.
    """
    voxels, streaming, windows = math.prod(box), measured.streaming, measured.windows
    if windows is None:
        return Way.UNKNOWN, measured.unknown_bytes * voxels, voxels
    plan = windows.plan(box, room_bytes)
    if streaming is not None and (streaming.fits(box, room_bytes) or plan is None):
        return Way.STREAMING, streaming.needed_bytes(box), voxels
    if plan is None:
        return Way.WINDOWS, math.inf, math.inf
    slower = 1.0 if streaming is None else WINDOWS_SLOWER
    return Way.WINDOWS, windows.needed_bytes(plan) * measured.is_on_host, slower * plan.computed_vox


def _together_bytes(cases: Sequence[CaseForecast]) -> float:
    """Return the peak of one case with the network and another one being read; infinite if there is no other."""
    if len(cases) < 2:
        return math.inf
    by_network = sorted(cases, key=lambda case: case.network_bytes)[-2:]
    by_files = sorted(cases, key=lambda case: case.files_bytes)[-2:]
    return max(a.network_bytes + b.files_bytes for a in by_network for b in by_files if a is not b)


def _disk_bytes(source: int, in_body: float, measured: Measured, outputs: Sequence[Output]) -> int:
    per_vox = dict(DISK_BYTES_PER_VOX)
    per_vox[Output.NIFTI] = measured.label_bytes * in_body
    if (segments := measured.classes - 1) <= MOST_BIT_PLANES:
        per_vox[Output.SEG] = segments / 8
    return sum(int(per_vox.get(kind, 0.0) * source) + DISK_BYTES_PER_CASE[kind] for kind in outputs)


def _sentence(case: CaseForecast, measured: Measured, limit_bytes: float) -> str:
    needed = (measured.base_bytes + case.alone_bytes) / 2**30
    return (
        f"{case.case_id}: needs {needed:.2f} GiB, but a process has {limit_bytes / 2**30:.2f} GiB; raise --max-memory, "
        "use a machine with more memory, or crop the image."
    )
