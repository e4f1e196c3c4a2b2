"""What each case of a batch will need in memory, time and disk, from its size and what was measured on a sample."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from voxelgate.core.geometry import Shape, triple
from voxelgate.core.machine import GIB
from voxelgate.dicom.write.seg import MOST_BINARY_SEGMENTS
from voxelgate.inference.memory import MemoryModel, StreamingModel, Windows
from voxelgate.inference.windows import WindowPlan
from voxelgate.segmentation.output_names import Output

BLOCK_BYTES = 40 * 2**20
"""What interpolation of images takes for a block of planes, at most."""

GROWN_BYTES = 96 * 2**20
"""What a process takes over many cases: kernels made for their sizes, and holes in the heap; 60 to 130 MiB were seen in
200 cases of ever other sizes, most of it in the first 60."""

CASE_S = 0.1
"""Time of a case that is not its own: hashes, the ledger, the names of its files; measured on a local disk."""

WINDOWS_SLOWER = 1.3
"""Time for a voxel in a window to that for a voxel that is streamed; measured with the benchmark's network."""

MOST_UINT8 = 256
"""Classes above which a label takes four bytes until it is written."""

DISK_BYTES_PER_VOX: Mapping[Output, float] = {
    Output.NIFTI: 0.05,
    Output.SEG: 0.1,
    Output.RTSTRUCT: 0.3,
    Output.STRUCTURES: 0.1,
    Output.PROBABILITIES: 4.0,
}
"""For each voxel of the source at most: a label map takes 0.002 to 0.025 bytes with gzip, one of 100 segments 0.03 with
RLE, and one voxel in a hundred is a point of an outline, in 30 characters."""

DISK_BYTES_PER_CASE: Mapping[Output, int] = {
    Output.NIFTI: 2**12,
    Output.SEG: 2**18,
    Output.RTSTRUCT: 2**16,
    Output.SR: 2**18,
    Output.STRUCTURES: 2**18,
    Output.PROBABILITIES: 2**18,
    Output.PREVIEW: 2**17,
}
"""Headers, measurements and pictures at most."""


class Way(StrEnum):
    """How the network sees a case."""

    STREAMING = "streaming"
    WINDOWS = "windows"
    WHOLE = "whole"
    """By an inferer of another kind, in proportion to what the sample took."""


@dataclass(frozen=True)
class Size:
    """How large a case is, from its header.

    Args:
        case_id: of the case.
        source_vox: voxels of the file along the axes of the network grid.
        network_vox: voxels of the network grid.
        stored_bytes: of the voxels as they are read, which are there until the case is prepared.
        turned_bytes: of the copies that preprocessing makes of them before it resamples.
    """

    case_id: str
    source_vox: Shape
    network_vox: Shape
    stored_bytes: int
    turned_bytes: int


@dataclass(frozen=True)
class WindowModel:
    """Where the windows of an inferer will lie, and the least they take.

    Args:
        memory: of the network.
        windows: of the inferer.
        most_bytes: what they may take by the settings of the bundle, if they are enlarged.
    """

    memory: MemoryModel
    windows: Windows
    most_bytes: float = math.inf

    def least_bytes(self, box_vox: Shape) -> int:
        """Return what the windows that were trained take in a part of the network grid."""
        return self.memory.needed_bytes(self.windows.smallest(box_vox))

    def plan(self, box_vox: Shape, room_bytes: float) -> WindowPlan:
        """Return where windows will lie in a part of the network grid, if so much memory is enough for any."""
        room = min(room_bytes, self.most_bytes)
        if not self.windows.is_enlarged or self.least_bytes(box_vox) > room:
            return self.windows.smallest(box_vox)
        return self.windows.within(box_vox, self.memory, room)


@dataclass(frozen=True)
class Written:
    """What the files of cases took that were done on trial.

    Args:
        vox_bytes: for each voxel of the source, of all files but previews and reports.
        case_bytes: for each case, of these.
    """

    vox_bytes: float
    case_bytes: float


@dataclass(frozen=True)
class Measured:
    """What a bundle was seen to need on this machine.

    Args:
        base_bytes: resident memory of a process that has opened the bundle.
        idle_bytes: what it has allocated beyond that, which `RLIMIT_DATA` counts too.
        channels: of the image on the network grid.
        classes: of the scores.
        body: part of the network grid along each axis that is run, above 0 to 1.
        streaming: None if the bundle does not stream.
        windows: None if the inferer is of another kind.
        whole_bytes: for each voxel of the network grid, of an inferer of another kind.
        whole_fixed_bytes: what such an inferer takes for any image, as for a window.
        network_s: for each voxel that the network computes.
        files_s: for each voxel of the source: read, prepared, judged and written.
        is_on_host: the network computes in the memory of the process, not in that of a GPU.
        written: what files take; None if no case was done on trial, and `network_s` is that of a pass over a block.
    """

    base_bytes: int
    idle_bytes: int
    channels: int
    classes: int
    body: tuple[float, float, float]
    streaming: StreamingModel | None
    windows: WindowModel | None
    whole_bytes: float
    network_s: float
    files_s: float
    is_on_host: bool = True
    written: Written | None = None
    whole_fixed_bytes: float = 0.0

    def of_whole(self, voxels: int) -> float:
        """Return what an inferer of another kind takes for so many voxels of the network grid."""
        return self.whole_fixed_bytes + self.whole_bytes * voxels


@dataclass(frozen=True)
class Room:
    """What there is for a batch.

    Args:
        process_bytes: memory that a process may allocate.
        machine_bytes: that all of them may have.
        processes: that share the work.
        cases_at_a_time: in a process: one has the network while another is read or written.
        outputs: what is written of each case.
    """

    process_bytes: float = math.inf
    machine_bytes: float = math.inf
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
        elapsed_s: from the file to its results.
        busy_s: for which the next case has to wait where two are done at a time: with the network, or all the rest.
        disk_bytes: of its results; at most, if nothing was tried.
    """

    case_id: str
    way: Way
    files_bytes: float
    network_bytes: float
    elapsed_s: float
    busy_s: float
    disk_bytes: int

    @property
    def alone_bytes(self) -> float:
        """Return its peak in a process that has no other case."""
        return max(self.files_bytes, self.network_bytes)


@dataclass(frozen=True)
class Forecast:
    """What a batch will need.

    Args:
        cases: that fit.
        unfit: a sentence for each case that does not, by its id.
        peak_bytes: resident memory of a process.
        cases_at_a_time: in a process, so that it stays within what there is.
        network_bytes: what the network may take beside image and labels; None for any, as on a GPU.
        elapsed_s: for all cases that fit.
        disk_bytes: of all results.
        is_tried: a case was done on trial with all that is asked for; else `disk_bytes` is a bound, and attention maps
            and mirroring are not counted.
        unstreamed: how many cases take windows because there is too little memory to stream.
        done: how many further cases are done already.
        unknown: how many others nothing can be said of.
    """

    cases: tuple[CaseForecast, ...] = ()
    unfit: Mapping[str, str] = field(default_factory=dict)
    peak_bytes: int = 0
    cases_at_a_time: int = 1
    network_bytes: int | None = None
    elapsed_s: float = 0.0
    disk_bytes: int = 0
    is_tried: bool = False
    unstreamed: int = 0
    done: int = 0
    unknown: int = 0


def forecast(sizes: Sequence[Size], measured: Measured, room: Room | None = None) -> Forecast:
    """Say what a batch will need, and which of its cases cannot be done in the memory of a process.

    Where a network that streams does not fit, windows are taken, which compute more and take less.

    Args:
        sizes: of the cases.
        measured: of the bundle.
        room: what there is; by default one process without limits.
    """
    given = room or Room()
    limit_bytes = given.process_bytes - measured.base_bytes - measured.idle_bytes
    least = {size.case_id: _least_bytes(size, measured) for size in sizes}
    fitting = [size for size in sizes if least[size.case_id] <= limit_bytes]
    held_bytes = max((_held_bytes(size, measured) for size in fitting), default=0)
    network_bytes = limit_bytes - held_bytes if measured.is_on_host else math.inf  # of all cases, for the one inferer
    found = [_needs_of_case(size, measured, network_bytes, given.outputs) for size in fitting]
    cases = tuple(case for case in found if case.alone_bytes <= limit_bytes)
    needed = least | {case.case_id: case.alone_bytes for case in found}
    unfit = {case_id: most for case_id, most in needed.items() if most > limit_bytes}
    together_bytes = _together_bytes(cases, measured.base_bytes)
    is_company = given.cases_at_a_time > 1 and _allows(given, together_bytes, measured.idle_bytes)
    alone_bytes = measured.base_bytes + max((case.alone_bytes for case in cases), default=0)
    total_s = sum(case.busy_s if is_company else case.elapsed_s for case in cases)
    return Forecast(
        cases,
        {case_id: _sentence(case_id, given.process_bytes, most - limit_bytes) for case_id, most in unfit.items()},
        peak_bytes=int(together_bytes if is_company else alone_bytes),
        cases_at_a_time=given.cases_at_a_time if is_company else 1,
        network_bytes=int(network_bytes) if math.isfinite(network_bytes) else None,
        elapsed_s=max(total_s / given.processes, max((case.elapsed_s for case in cases), default=0.0)),
        disk_bytes=sum(case.disk_bytes for case in cases),
        is_tried=measured.written is not None,
        unstreamed=0 if measured.streaming is None else sum(case.way is Way.WINDOWS for case in cases),
    )


def _needs_of_case(size: Size, measured: Measured, room_bytes: float, outputs: Iterable[Output]) -> CaseForecast:
    source, box = math.prod(size.source_vox), _box(size, measured)
    way, work_bytes, computed = _work(box, measured, room_bytes)
    network_s, others_s = measured.network_s * computed, CASE_S + measured.files_s * source
    return CaseForecast(
        size.case_id,
        way,
        _files_bytes(size, measured),
        _held_bytes(size, measured) + work_bytes,
        network_s + others_s,
        max(network_s, others_s),
        _disk_bytes(size, measured, outputs),
    )


def _least_bytes(size: Size, measured: Measured) -> float:
    """Return the memory without which a case cannot be done in any way, beside an idle process."""
    box = _box(size, measured)
    ways = [model.least_bytes(box) for model in (measured.streaming, measured.windows) if model is not None]
    work_bytes = min(ways) * measured.is_on_host if ways else measured.of_whole(math.prod(size.network_vox))
    return max(_files_bytes(size, measured), _held_bytes(size, measured) + work_bytes)


def _held_bytes(size: Size, measured: Measured) -> int:
    """Return the size of image and labels, which are there while the network runs."""
    return _image_bytes(size, measured) + math.prod(size.source_vox) * (1 if measured.classes <= MOST_UINT8 else 4)


def _image_bytes(size: Size, measured: Measured) -> int:
    return 4 * measured.channels * math.prod(size.network_vox)


def _files_bytes(size: Size, measured: Measured) -> int:
    """Return the peak of reading (as bytes, and as voxels) and of resampling."""
    image_bytes = _image_bytes(size, measured)
    return size.stored_bytes + max(size.stored_bytes, size.turned_bytes + image_bytes + min(BLOCK_BYTES, image_bytes))


def _box(size: Size, measured: Measured) -> Shape:
    return triple(max(1, math.ceil(n * share)) for n, share in zip(size.network_vox, measured.body, strict=True))


def _work(box: Shape, measured: Measured, room_bytes: float) -> tuple[Way, float, float]:
    """Return how the network sees a part of its grid, what that takes, and how many voxels it computes."""
    streaming, windows = measured.streaming, measured.windows
    if windows is None:
        return Way.WHOLE, measured.of_whole(math.prod(box)), math.prod(box)
    if streaming is not None and streaming.least_bytes(box) <= room_bytes:
        return Way.STREAMING, streaming.expected_bytes(box), math.prod(box)
    plan = windows.plan(box, room_bytes)
    slower = 1.0 if streaming is None else WINDOWS_SLOWER
    return Way.WINDOWS, windows.memory.expected_bytes(plan) * measured.is_on_host, slower * plan.computed_vox


def _together_bytes(cases: Sequence[CaseForecast], base_bytes: int) -> float:
    """Return the peak of a process in which one case has the network and another one is read."""
    if len(cases) < 2:
        return base_bytes + max((case.alone_bytes for case in cases), default=0)
    network = sorted(cases, key=lambda case: case.network_bytes)[-2:]
    files = sorted(cases, key=lambda case: case.files_bytes)[-2:]
    two_bytes = max(one.network_bytes + other.files_bytes for one in network for other in files if one != other)
    return base_bytes + GROWN_BYTES + two_bytes


def _allows(room: Room, peak_bytes: float, idle_bytes: int) -> bool:
    return peak_bytes + idle_bytes <= room.process_bytes and room.processes * peak_bytes <= room.machine_bytes


def _disk_bytes(size: Size, measured: Measured, outputs: Iterable[Output]) -> int:
    voxels, segments, written = math.prod(size.source_vox), measured.classes - 1, measured.written
    if written is not None:
        return math.ceil(written.vox_bytes * voxels + written.case_bytes)
    per_vox = dict(DISK_BYTES_PER_VOX)
    if segments <= MOST_BINARY_SEGMENTS:
        per_vox[Output.SEG] = segments / 8
    return sum(int(per_vox.get(kind, 0.0) * voxels) + DISK_BYTES_PER_CASE[kind] for kind in outputs)


def _sentence(case_id: str, limit_bytes: float, beyond_bytes: float) -> str:
    return (
        f"{case_id}: needs {(limit_bytes + beyond_bytes) / GIB:.2f} GiB of memory, and a process may have "
        f"{limit_bytes / GIB:.2f} GiB; raise --max-memory, take a machine with more memory, or crop the image."
    )
