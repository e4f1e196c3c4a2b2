"""Whether what follows the pixels of an image is padding, or the header is wrong about their size."""

from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

MOST_PADDING_BYTES = 2**24
"""Padding that is looked at; it fills a block of a disk or of a transfer, at most some MB."""


class RawLayout(NamedTuple):
    """What a header says of pixels that are not compressed."""

    rows: int
    columns: int
    pixel_bytes: int
    frames: int

    @property
    def bytes(self) -> int:
        """Return how long they are."""
        return self.rows * self.columns * self.pixel_bytes * self.frames


def is_padding(stream: IO[bytes], offset: int, length: int, layout: RawLayout) -> bool:
    """Return whether pixel data are longer than their rows and columns because of padding: bytes of one value.

    If as many columns more would explain the length, too, the last rows may be the image's background. Then the columns
    that the header tells must fit the image better: its rows resemble each other.

    Args:
        stream: of the file.
        offset: byte at which the pixel data start.
        length: of the pixel data.
        layout: what the header says; shorter than `length`, and of one frame at least.
    """
    surplus = length - layout.bytes
    if not 0 < surplus <= MOST_PADDING_BYTES:
        return False
    stream.seek(offset + layout.bytes)
    if len(set(stream.read(surplus))) != 1:
        return False
    further, rest = divmod(surplus, layout.rows * layout.pixel_bytes * layout.frames)
    if rest:
        return True
    stream.seek(offset)
    content = stream.read(layout.rows * layout.columns * layout.pixel_bytes)
    pixels = np.frombuffer(content, f"<u{layout.pixel_bytes}").astype(np.float64)
    return _unlikeness(pixels, layout.columns) <= _unlikeness(pixels, layout.columns + further)


def _unlikeness(pixels: npt.NDArray[np.float64], columns: int) -> float:
    """Return how much pixels differ from those one row on, if rows have so many columns."""
    return float(np.abs(pixels[columns:] - pixels[:-columns]).mean()) if len(pixels) > columns else 0.0
