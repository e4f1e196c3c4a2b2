"""Before a batch starts: what it will need, whether that is there, and settings with which it fits."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from voxelgate.core.apart import each_apart
from voxelgate.core.errors import OutputError, UsageError
from voxelgate.core.geometry import Grid, triple
from voxelgate.core.machine import GIB
from voxelgate.core.workers import engine_named
from voxelgate.inference.memory import SHARE, available_bytes
from voxelgate.segmentation.batch.forecast.needs import Forecast, Measured, Room, Size, Written, forecast
from voxelgate.segmentation.batch.forecast.sample import Sample, Scale, axes_of, sample
from voxelgate.segmentation.batch.forecast.volume_facts import volume_of
from voxelgate.segmentation.batch.ledger import LEDGER_NAME, StoredEntries
from voxelgate.segmentation.batch.worker import Setup
from voxelgate.segmentation.batch.worker_process import CASES_AT_A_TIME, WorkerProcess
from voxelgate.segmentation.cases import Case

UNKNOWN = "What it will need is not known: none of the first images could be tried"

SAMPLES = 2
"""Cases that are read to see how much of an image is air."""

SAMPLES_S = 300.0
"""Longest time for them; whoever has slower cases learns from the first ones that end."""

UNPACKED = frozenset({"uint8", "int8", "int16"})
"""Types that `transforms.io.as_image` leaves as they are; all others become float32."""


def preflight(cases: Sequence[Case], setup: Setup) -> Forecast:
    """Foretell what a batch needs on this machine, and refuse one that cannot be done.

    Headers say how large cases are; two of them, of middling size, are read and tried in a process of their own, whole
    if that does not take long.

    Args:
        cases: of the batch; those that nothing can be said of are in no part of the result.
        setup: of the batch; what is done in its output folder is counted, and needs nothing more.

    Returns:
        What it will need; empty if no header, or none of the samples, can be read and segmented.

    Raises:
        OutputError: the disk is too small, or a ledger that is there cannot be read.
        UsageError: so many processes need more memory than the machine has.
    """
    if not (left := _left(cases, setup)):
        return Forecast(cases_at_a_time=CASES_AT_A_TIME, done=len(cases))
    volumes = _volumes_of(left)
    processes, max_gib = engine_named(setup.options.workers).count, setup.options.max_memory_gib
    middling = _middling([case for case in left if case.case_id in volumes], volumes)
    samples = _sampled(setup, middling, processes)
    if not samples:
        return Forecast(cases_at_a_time=CASES_AT_A_TIME, done=len(cases) - len(left), unknown=len(left))
    sizes = [
        _size_of_input(case_id, grid, voxel_type, samples[0].scale) for case_id, (grid, voxel_type) in volumes.items()
    ]
    room = Room(
        process_bytes=math.inf if max_gib is None else max_gib * GIB,
        machine_bytes=free_bytes(),
        processes=processes,
        cases_at_a_time=min(CASES_AT_A_TIME, len(sizes)),
        outputs=setup.options.outputs,
    )
    found = _fitted(sizes, _together(samples), room)
    _refuse_crowd(found, room)
    _refuse_full_disk(found, setup.out_dir)
    return replace(found, done=len(cases) - len(left), unknown=len(left) - len(sizes))


def _volumes_of(cases: Sequence[Case]) -> dict[str, tuple[Grid, "np.dtype[Any]"]]:
    """Return grid and type of the voxels of cases, by id; nothing of those whose headers cannot be read at all.

    Files are opened in a process that may die of them; of series the headers have been read.
    """
    files = [case for case in cases if isinstance(case.image, Path)]
    found = dict(zip((case.case_id for case in files), each_apart(volume_of, files), strict=True))
    found |= {case.case_id: volume_of(case) for case in cases if not isinstance(case.image, Path)}
    return {case_id: volume for case_id, volume in found.items() if volume is not None}


def summary(found: Forecast, processes: int = 1) -> str:
    """Say in one line what a batch will need.

    >>> summary(Forecast())
    'What it will need is not known: none of the first images could be tried.'
    """
    is_known = bool(found.cases or found.unfit)
    if found.done and not is_known and not found.unknown:
        return "All cases are done already."
    return f"{'; '.join([_needs(found, processes) if is_known else UNKNOWN, *_remarks(found)])}."


def _needs(found: Forecast, processes: int) -> str:
    where = "" if processes == 1 else f" in each of {processes} processes"
    return (
        f"{_count(len(found.cases))}, about {_duration(found.elapsed_s)}, {found.peak_bytes / GIB:.1f} GiB of "
        f"memory{where}, {'' if found.is_tried else 'at most '}{_size_text(found.disk_bytes)} of disk"
    )


def _remarks(found: Forecast) -> list[str]:
    remarks = []
    if found.cases_at_a_time == 1 and len(found.cases) > 1:
        remarks.append("one at a time in a process, since memory does not hold two")
    if found.unstreamed:
        which = "all" if found.unstreamed == len(found.cases) else f"{found.unstreamed} of them"
        remarks.append(f"{which} in windows, since memory is too small to stream, which changes labels a little")
    if found.unfit:
        remarks.append(f"{len(found.unfit)} more {'does' if len(found.unfit) == 1 else 'do'} not fit in memory")
    if found.done:
        remarks.append(f"{found.done} more {'is' if found.done == 1 else 'are'} done already")
    return remarks


def free_bytes() -> float:
    """Return the memory that is free on this machine now, or in this control group."""
    return available_bytes(torch.device("cpu")) / SHARE


def _left(cases: Sequence[Case], setup: Setup) -> list[Case]:
    """Return the cases that the output folder has no results of, made by this bundle with these options.

    Raises:
        OutputError: its ledger cannot be read.
    """
    if setup.options.again or not (setup.out_dir / LEDGER_NAME).is_file():
        return list(cases)
    done = {
        entry.identity for entry in StoredEntries(setup.out_dir) if entry.is_done_as(setup.bundle_sha256, setup.choices)
    }
    return [case for case in cases if case.identity not in done]


def _fitted(sizes: Sequence[Size], measured: Measured, room: Room) -> Forecast:
    """Foretell with the limit that was asked for; where the machine has less, with that of the machine."""
    found = forecast(sizes, measured, room)
    if found.peak_bytes <= room.machine_bytes:
        return found
    return forecast(sizes, measured, replace(room, process_bytes=min(room.process_bytes, room.machine_bytes)))


def _refuse_crowd(found: Forecast, room: Room) -> None:
    if room.processes * found.peak_bytes <= room.machine_bytes:
        return
    raise UsageError(
        f"{room.processes} processes of {found.peak_bytes / GIB:.1f} GiB each need more than the "
        f"{room.machine_bytes / GIB:.1f} GiB of memory that are free; "
        f"pass --engine processes:{max(1, int(room.machine_bytes // found.peak_bytes))}."
    )


def _refuse_full_disk(found: Forecast, out_dir: Path) -> None:
    folder = next(path for path in (out_dir, *out_dir.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if found.disk_bytes > free:
        raise OutputError(
            f"the results may need {_size_text(found.disk_bytes)}, but {out_dir.name} has {_size_text(free)} of free "
            "disk; make room, or choose another output folder."
        )


def _sampled(setup: Setup, cases: Sequence[Case], processes: int) -> list[Sample]:
    """Measure in a process like those of `ProcessEngine`; nothing is known if a case ends it, or takes too long.

    Raises:
        VoxelgateError: the bundle or the device cannot be used.
    """
    if not cases:
        return []
    worker = WorkerProcess(max(1, torch.get_num_threads() // processes))
    try:
        return worker.submit(sample, setup, cases).result(SAMPLES_S)
    except (RuntimeError, TimeoutError):  # of the process, or what no case should raise; its report will tell
        return []
    finally:
        worker.kill()


def _middling(cases: Sequence[Case], volumes: Mapping[str, tuple[Grid, "np.dtype[Any]"]]) -> list[Case]:
    """Return the cases nearest the median size."""
    if not cases:
        return []
    voxels = {case_id: math.prod(grid.shape) for case_id, (grid, _) in volumes.items()}
    median = float(np.median(list(voxels.values())))
    return sorted(cases, key=lambda case: abs(voxels[case.case_id] - median))[:SAMPLES]


def _together(samples: Sequence[Sample]) -> Measured:
    """Return what holds of all samples: the best speed, since the first is slow to start, and the most of a body."""
    measured = [one.measured for one in samples]
    written = [one.written for one in measured if one.written is not None]
    return replace(
        measured[0],
        written=Written(
            float(np.mean([one.vox_bytes for one in written])), float(np.mean([one.case_bytes for one in written]))
        )
        if written
        else None,
        body=triple(max(shares) for shares in zip(*(one.body for one in measured), strict=True)),
        network_s=min(one.network_s for one in measured),
        files_s=min(one.files_s for one in measured),
    )


def _size_of_input(case_id: str, grid: Grid, voxel_type: "np.dtype[Any]", scale: Scale) -> Size:
    axes = axes_of(grid, is_turned=scale.is_turned)
    source = [grid.shape[axis] for axis in axes]
    spacing_mm = [grid.spacing_mm[axis] for axis in axes]
    ratios = scale.factors
    if scale.spacing_mm is not None:
        ratios = tuple(gap_mm / wanted_mm for gap_mm, wanted_mm in zip(spacing_mm, scale.spacing_mm, strict=True))
    voxels = math.prod(grid.shape)
    is_unpacked = voxel_type.name in UNPACKED
    is_copied = voxel_type != np.float32 and not (is_unpacked and scale.keeps_integers)
    working = voxel_type.itemsize if is_unpacked and scale.keeps_integers else 4
    is_flipped = scale.is_turned and bool((nib.io_orientation(grid.affine)[:, 1] < 0).any())
    return Size(
        case_id,
        triple(source),
        triple(max(1, round((n - 1) * ratio) + 1) for n, ratio in zip(source, ratios, strict=True)),
        stored_bytes=voxels * voxel_type.itemsize,
        turned_bytes=voxels * working * (is_copied + is_flipped),
    )


def _count(cases: int) -> str:
    return "1 case" if cases == 1 else f"{cases} cases"


def _duration(elapsed_s: float) -> str:
    return f"{elapsed_s:.0f} s" if elapsed_s < 90 else f"{elapsed_s / 60:.0f} min"


def _size_text(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{math.ceil(size / 2**20)} MiB"
