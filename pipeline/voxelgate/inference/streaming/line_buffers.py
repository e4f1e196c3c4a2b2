"""What waits between the layers of a streamed network: the slices that a layer will need again, and no others.

A *slab* is a few consecutive slices of an image or a feature map, (n, h, w, c), channels last. Layers hand slabs on
from generator to generator. A slab owns its memory and is never written again, so whoever needs it later may keep it.
"""

from collections import deque
from collections.abc import Iterator

import torch

SlabTensor = torch.Tensor
PlaneSize = tuple[int, int]


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

    def __init__(self, plane: PlaneSize, channels: int, *, dtype: torch.dtype, device: torch.device) -> None:
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


class SkipLine(Line):
    """A line whose slices wait, when its layer has seen them, until the decoder has caught up and takes them too.

    Slices lie in blocks, each with those in front that the layer will see again. Blocks are used again and again for as
    long as the volume lasts: slabs that come and go at ever other times would leave the heap full of holes.
    """

    def __init__(self, plane: PlaneSize, channels: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(plane, channels, dtype=dtype, device=device)
        self._blocks: list[torch.Tensor] = []
        self._waiting: deque[tuple[torch.Tensor, int, int]] = deque()  # block, from where to where; oldest first

    @property
    def nbytes(self) -> int:
        """Return the memory that is held."""
        return sum(block.nbytes for block in self._blocks)

    def room(self, count: int) -> torch.Tensor:
        """Return the place of the next `count` slices, which the caller writes at once; they wait for nobody."""
        carried = self._slices[self._start : self._stop]
        self._slices = self._free_block(len(carried) + count)
        self._slices[: len(carried)] = carried
        self._start = max(self._start - self._stop, 0)
        self._stop = len(carried) + count
        return self._slices[len(carried) : self._stop]

    def append(self, slab: torch.Tensor) -> None:
        """Copy a slab behind the newest slice; it waits to be poured."""
        super().append(slab)
        self._waiting.append((self._slices, self._stop - len(slab), self._stop))

    def pour(self, out: torch.Tensor) -> None:
        """Move the slices that have waited longest into `out`, (n, h, w, c); so many must wait."""
        while len(out):
            block, start, stop = self._waiting.popleft()
            count = min(stop - start, len(out))
            out[:count] = block[start : start + count]
            out = out[count:]
            if start + count < stop:
                self._waiting.appendleft((block, start + count, stop))

    def _free_block(self, count: int) -> torch.Tensor:
        """Return a block of at least `count` slices of which none is needed any more."""
        needed = {id(self._slices), *(id(block) for block, _, _ in self._waiting)}
        free = [block for block in self._blocks if len(block) >= count and id(block) not in needed]
        if not free:
            free = [self._slices.new_empty((count, *self._slices.shape[1:]))]
            self._blocks += free
        return free[0]


class Buffers:
    """All lines of one stream.

    Args:
        dtype: of the numbers in the lines.
        device: where they lie.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._held: list[Line] = []

    @property
    def nbytes(self) -> int:
        """Return the memory that is held between two slabs."""
        return sum(buffer.nbytes for buffer in self._held)

    def line(self, plane: PlaneSize, channels: int) -> Line:
        """Return a new line; see `Line`."""
        line = Line(plane, channels, dtype=self._dtype, device=self._device)
        self._held.append(line)
        return line

    def skip_line(self, plane: PlaneSize, channels: int) -> SkipLine:
        """Return a new line for slices that a skip connection takes too; see `SkipLine`."""
        line = SkipLine(plane, channels, dtype=self._dtype, device=self._device)
        self._held.append(line)
        return line


def first_slices(slabs: Iterator[SlabTensor], count: int) -> Iterator[SlabTensor]:
    """Yield slabs up to `count` slices in total, the last one cut."""
    for slab in slabs:
        yield slab[:count]
        count -= len(slab)
        if count <= 0:
            return


def at_most(slabs: Iterator[SlabTensor], count: int) -> Iterator[SlabTensor]:
    """Yield the same slices in slabs of at most `count`."""
    for slab in slabs:
        for start in range(0, len(slab), count):
            yield slab[start : start + count]


def in_step(slabs: Iterator[SlabTensor], others: Iterator[SlabTensor]) -> Iterator[tuple[SlabTensor, SlabTensor]]:
    """Yield two sequences, equally long in total but cut differently, as pairs of equally many slices."""
    waiting = next(others)
    for slab in slabs:
        while len(slab):
            waiting = waiting if len(waiting) else next(others)
            count = min(len(slab), len(waiting))
            yield slab[:count], waiting[:count]
            slab, waiting = slab[count:], waiting[count:]  # noqa: PLW2901  # what is left of it
