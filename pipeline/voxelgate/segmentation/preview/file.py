"""The file of a preview: a WebP picture that any viewer shows, with chunks of our own that viewers pass over.

See RFC 9649: 2.7 for the extended layout, and 2.7.1.6 for chunks that are not known.
"""

import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.files import write_bytes

Picture = npt.NDArray[np.uint8]

IMAGE_BYTES = 40_000
"""Size of a picture that is aimed at, so that a thousand cases make a page of at most 60 MB."""

ATTENTION_BYTES = 30_000
"""The same for the attention of a gate, which is there on request only."""

QUALITIES = (85, 70, 55, 40, 30)
"""WebP qualities that are tried until a picture is small enough; below the last one organs lose their borders."""

LAYOUT_CHUNK, LABEL_CHUNK, ATTENTION_CHUNK = b"VGLY", b"VGLB", b"VA%02d"


@dataclass(frozen=True)
class Preview:
    """What a preview file holds.

    Args:
        image: picture of all slices, WebP.
        labels: label of each pixel, row by row, deflated (zlib); 8 bits each, or 16 with the low byte first.
        layout: JSON, see `write_preview`.
        attention: pictures of the same layout, WebP, in the order of the layout's `gates`; black is 0, white 1.
    """

    image: bytes
    labels: bytes
    layout: str
    attention: tuple[bytes, ...] = ()


def write_file(path: Path, picture: Picture, labels: bytes, layout: str, attention: Sequence[Picture] = ()) -> None:
    """Write a preview under a temporary name, then rename it.

    Args:
        path: of the file; its folder exists.
        picture: (rows, columns) grey values.
        labels: as in `Preview`.
        layout: as in `Preview`.
        attention: (rows, columns) of each gate.

    Raises:
        OutputError: it cannot be written.
    """
    chunks = {LAYOUT_CHUNK: layout.encode(), LABEL_CHUNK: labels}
    for number, one in enumerate(attention):
        chunks[ATTENTION_CHUNK % number] = _bitstream(one, ATTENTION_BYTES)
    height, width = picture.shape
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    _write(path, _riff({b"VP8X": canvas, b"VP8 ": _bitstream(picture, IMAGE_BYTES), **chunks}))


def read_preview(path: Path) -> Preview:
    """Read a preview.

    Raises:
        InputError: no such file, or no preview.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror}); segment the case again.") from error
    chunks = dict(_chunks(content))
    if not {b"VP8 ", LAYOUT_CHUNK, LABEL_CHUNK} <= chunks.keys():
        raise InputError(f"{path.name}: is no preview of a case; segment the case again.")
    layout = chunks[LAYOUT_CHUNK].decode()
    names = [ATTENTION_CHUNK % number for number in range(len(json.loads(layout).get("gates", ())))]
    attention = tuple(_simple(chunks[name]) for name in names if name in chunks)
    return Preview(_simple(chunks[b"VP8 "]), chunks[LABEL_CHUNK], layout, attention)


def _bitstream(picture: Picture, most_bytes: int) -> bytes:
    """Return a picture as WebP without its container, in the best quality that is small enough."""
    content = b""
    for quality in QUALITIES:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "webp", quality=quality, method=4)
        content = dict(_chunks(stream.getvalue()))[b"VP8 "]
        if len(content) <= most_bytes:
            break
    return content


def _simple(bitstream: bytes) -> bytes:
    """Return a WebP file of nothing but a picture."""
    return _riff({b"VP8 ": bitstream})


def _riff(chunks: Mapping[bytes, bytes]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for name, content in chunks.items()
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of the chunks of a WebP file; of anything else and of what is cut off, none."""
    position = 12 if file[:4] == b"RIFF" and file[8:12] == b"WEBP" else len(file)
    while position + 8 <= len(file):
        name, size = file[position : position + 4], int.from_bytes(file[position + 4 : position + 8], "little")
        if position + 8 + size <= len(file):
            yield name, file[position + 8 : position + 8 + size]
        position += 8 + size + size % 2


def _write(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except OSError as error:
        raise OutputError(f"{path.name}: cannot be written ({error.strerror}); free the disk or its rights.") from error
