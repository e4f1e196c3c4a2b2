"""Stored values of DICOM images: raw ones straight from the bytes, compressed ones through pydicom's decoders."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import gdcm
import numpy as np
import numpy.typing as npt

from voxelgate.core.findings import FindingCode
from voxelgate.core.workers import ProcessPool
from voxelgate.dicom.quiet import quiet_pydicom
from voxelgate.dicom.read.decoding import EXACT_FLOAT32, PixelError, Values, is_raw, layout_of, stored_frames
from voxelgate.dicom.read.headers import Header, ImagePlane
from voxelgate.dicom.read.stack import Slice

CHUNK_FRAMES = 8
"""Frames of a multi-frame file that are read at a time by one worker; more means more memory, less more parsing."""

PROCESSES_PAY_S = 1.0
"""Decoding that takes longer than this is shared with other processes, which need about half a second to start."""

THREADS_PAY_S = 0.3
"""Reading raw pixels that takes longer than this is waiting for a disk; from memory threads only hinder each other."""


gdcm.Trace.WarningOff()
gdcm.Trace.ErrorOff()


def read_stack(
    slices: Sequence[Slice], *, workers: int, progress: Callable[[int, int], None] | None = None
) -> npt.NDArray[np.float32]:
    """Return the rescaled values of all slices, slope x stored + intercept (PS3.3 C.11.1.1), each with its own numbers.

    Where it takes long enough, raw pixels are read by threads and compressed ones decoded by processes, since none of
    the decoders lets go of the interpreter's lock (measured: two threads are 0.95 to 1.06 times as fast as one).

    Args:
        slices: in order, all of one size; without slope and intercept these count as 1 and 0.
        workers: threads or processes to use, this one included.
        progress: called with the number of slices that were read and of all slices.

    Returns:
        (columns, rows, slices) float32, with slices one after the other in memory.

    Raises:
        PixelError: a slice cannot be read; its number is counted from 1.
    """
    layout = layout_of(slices[0].header)
    stack = np.empty((len(slices), layout.rows, layout.columns), dtype=np.float32)
    done = 0
    with quiet_pydicom():
        for chunk, frames in _read_chunks(_chunks(slices), workers):
            for index, stored in enumerate(frames, start=chunk.first):
                _rescale(stored, slices[index].plane, stack[index])
                done += 1
                if progress is not None:
                    progress(done, len(slices))
    return stack.transpose(2, 1, 0)


class _Chunk(NamedTuple):
    """Consecutive slices of one file, which are read together.

    Args:
        header: of the file, without its planes: it is sent to other processes.
        first: number of the first slice, from 0.
        total: number of slices of the series, for messages.
        frames: their frames in the file.
    """

    header: Header
    first: int
    total: int
    frames: tuple[int, ...]


def _chunks(slices: Sequence[Slice]) -> list[_Chunk]:
    chunks: list[_Chunk] = []
    first = 0
    for _, group in groupby(slices, key=lambda part: id(part.header)):
        parts = list(group)
        header = replace(parts[0].header, planes=())
        frames = tuple(part.plane.frame for part in parts)
        steps = range(0, len(frames), CHUNK_FRAMES)
        chunks += [_Chunk(header, first + at, len(slices), frames[at : at + CHUNK_FRAMES]) for at in steps]
        first += len(frames)
    return chunks


def _read_chunk(chunk: _Chunk) -> list[Values]:
    frames: list[Values] = []
    try:
        frames.extend(stored_frames(chunk.header, chunk.frames))
    except PixelError as error:
        number = chunk.first + len(frames) + 1
        raise PixelError(error.code, f"slice {number} of {chunk.total}: {error.reason}") from error
    return frames


def _read_chunk_quietly(chunk: _Chunk) -> list[Values]:
    """Read in a process of its own, whose warnings nobody else turns off."""
    with quiet_pydicom():
        return _read_chunk(chunk)


def _read_chunks(chunks: Sequence[_Chunk], workers: int) -> Iterator[tuple[_Chunk, list[Values]]]:
    """Yield every chunk with its frames, in any order; only a few of them are in memory at a time."""
    waiting = deque(chunks)
    start_s = time.perf_counter()
    first = waiting.popleft()
    frames = _read_chunk(first)
    left_s = (time.perf_counter() - start_s) * len(waiting)
    yield first, frames
    has_only_raw = all(is_raw(chunk.header) for chunk in waiting)
    if workers > 1 and has_only_raw and left_s > THREADS_PAY_S:
        with ThreadPoolExecutor(workers - 1) as threads:
            yield from _shared_out(waiting, threads, _read_chunk, 2 * workers)
    elif workers > 1 and not has_only_raw and left_s > PROCESSES_PAY_S:
        with ProcessPool(workers - 1) as processes:
            yield from _shared_out(waiting, processes, _read_chunk_quietly, 2 * workers)
    else:
        yield from ((chunk, _read_chunk(chunk)) for chunk in waiting)


def _shared_out(
    waiting: deque[_Chunk], executor: Executor, read: Callable[[_Chunk], list[Values]], most: int
) -> Iterator[tuple[_Chunk, list[Values]]]:
    """Yield chunks that were read by the workers or, while they are busy, by the caller."""
    running: dict[Future[list[Values]], _Chunk] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                chunk = waiting.popleft()
                running[executor.submit(read, chunk)] = chunk
            if waiting:
                chunk = waiting.popleft()
                yield chunk, _read_chunk(chunk)
            finished = wait(running, timeout=0 if waiting else None, return_when=FIRST_COMPLETED).done
            yield from ((running.pop(future), future.result()) for future in finished)
    except BrokenExecutor as error:
        raise PixelError(FindingCode.UNDECODABLE, "a process that decoded its pixel data has crashed") from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _rescale(stored: Values, plane: ImagePlane, out: npt.NDArray[np.float32]) -> None:
    """Write slope x stored + intercept; what float32 holds exactly is not computed in float64."""
    slope = 1.0 if plane.slope is None else plane.slope
    intercept = 0.0 if plane.intercept is None else plane.intercept
    if slope == 1 and intercept.is_integer() and stored.dtype.itemsize < 4 and abs(intercept) < EXACT_FLOAT32 // 2:
        np.add(stored, np.float32(intercept), out=out)
    else:
        out[...] = stored * np.float64(slope) + intercept
