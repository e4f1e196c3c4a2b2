"""What waits between the layers of a streamed network: the slices that a layer will need again, and no others.

A *slab* is a few consecutive slices of an image or a feature map, (n, h, w, c), channels last. Layers hand slabs on
from generator to generator. A slab owns its memory and is never written again, so whoever needs it later may keep it.
"""

from collections import deque
from collections.abc import Iterator

import torch

Slab = torch.Tensor
Plane = tuple[int, int]


class Line:
    """The slices that a sliding layer still needs, oldest first, side by side in one block of memory.

    Because they lie side by side, any of them together are a channels-last tensor without a copy. New slices are
    written straight behind the few that are carried over.

    Args:
        plane: rows and columns of a slice.
        channels: numbers for each voxel.
        dtype: of the numbers.
        device: where they lie.
    """

    def __init__(self, plane: Plane, channels: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._slices = torch.empty((0, *plane, channels), dtype=dtype, device=device)
        self._start = 0  # of the oldest slice still needed; behind `_stop` if that one has not come yet
        self._stop = 0

    def __len__(self) -> int:
        return max(self._stop - self._start, 0)

    @property
    def nbytes(self) -> int:
        """Return the memory that is held."""
        return self._slices.nbytes

    def room(self, count: int) -> torch.Tensor:
        """Return the place of the next `count` slices, (count, h, w, c), which the caller writes at once."""
        carried = self._slices[self._start : self._stop]
        if self._start < len(carried):  # it moves onto itself
            carried = carried.clone()
        self._start = max(self._start - self._stop, 0)
        self._stop = len(carried) + count
        if self._stop > len(self._slices):
            self._slices = self._slices.new_empty((self._stop, *self._slices.shape[1:]))
        self._slices[: len(carried)] = carried
        return self._slices[len(carried) : self._stop]

    def append(self, slab: torch.Tensor) -> None:
        """Copy a slab behind the newest slice."""
        self.room(len(slab)).copy_(slab)

    def append_zeros(self, count: int) -> None:
        """Pad with `count` slices of zeros."""
        self.room(count).zero_()

    def oldest(self, count: int) -> torch.Tensor:
        """Return the `count` oldest slices, (count, h, w, c), as a view that the next `room` invalidates."""
        return self._slices[self._start : self._start + count]

    def drop(self, count: int) -> None:
        """Forget the `count` oldest slices; those that have not come yet will be forgotten as they come."""
        self._start += count


class SkipQueue:
    """Slabs of a skip connection that wait, uncopied, for the decoder to catch up."""

    def __init__(self) -> None:
        self._slabs: deque[Slab] = deque()

    @property
    def nbytes(self) -> int:
        """Return the memory that is held; a slab counts whole until its last slice is taken."""
        return sum(slab.untyped_storage().nbytes() for slab in self._slabs)

    def remember(self, slab: Slab) -> Slab:
        """Keep a slab, and return it, so that it can be watched passing by: `map(queue.remember, slabs)`."""
        self._slabs.append(slab)
        return slab

    def pour(self, out: torch.Tensor) -> None:
        """Move the oldest slices into `out`, (n, h, w, c), across the borders of slabs; n must have been remembered."""
        while len(out):
            slab = self._slabs.popleft()
            count = min(len(slab), len(out))
            out[:count] = slab[:count]
            out = out[count:]
            if count < len(slab):
                self._slabs.appendleft(slab[count:])


class Buffers:
    """All lines and queues of one stream.

    Args:
        dtype: of the numbers in the lines.
        device: where they lie.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._held: list[Line | SkipQueue] = []

    @property
    def nbytes(self) -> int:
        """Return the memory that is held between two slabs."""
        return sum(buffer.nbytes for buffer in self._held)

    def line(self, plane: Plane, channels: int) -> Line:
        """Return a new line; see `Line`."""
        line = Line(plane, channels, dtype=self._dtype, device=self._device)
        self._held.append(line)
        return line

    def queue(self) -> SkipQueue:
        """Return a new, empty queue."""
        queue = SkipQueue()
        self._held.append(queue)
        return queue


def first(slabs: Iterator[Slab], count: int) -> Iterator[Slab]:
    """Yield slabs up to `count` slices in total, the last one cut."""
    for slab in slabs:
        yield slab[:count]
        count -= len(slab)
        if count <= 0:
            return


def at_most(slabs: Iterator[Slab], count: int) -> Iterator[Slab]:
    """Yield the same slices in slabs of at most `count`."""
    for slab in slabs:
        for start in range(0, len(slab), count):
            yield slab[start : start + count]


def in_step(slabs: Iterator[Slab], others: Iterator[Slab]) -> Iterator[tuple[Slab, Slab]]:
    """Yield two sequences, equally long in total but cut differently, as pairs of equally many slices."""
    waiting = next(others)
    for slab in slabs:
        while len(slab):
            waiting = waiting if len(waiting) else next(others)
            count = min(len(slab), len(waiting))
            yield slab[:count], waiting[:count]
            slab, waiting = slab[count:], waiting[count:]  # noqa: PLW2901  # what is left of it
