"""The file of a preview: a WebP picture that any viewer shows, with labels and attention as XMP of our own.

XMP is what Pillow keeps for us unchanged (ISO 16684-1; RFC 9649 2.7.1.5). Attention is not further frames of an
animation, for no browser but Chromium can show one of them by its number, and Pillow codes them as differences.
"""

import base64
import errno
import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Base64Bytes, TypeAdapter

from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.files import open_file, write_bytes
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import structure_colours
from voxelgate.segmentation.preview.layout import Layout

Picture = npt.NDArray[np.uint8]

IMAGE_BYTES = 40_000
"""Size of a picture that is aimed at, so that a thousand cases make a page of at most 60 MB."""

ATTENTION_BYTES = 30_000
"""The same for the attention of a gate, which is there on request only."""

QUALITIES = (85, 70, 55, 40, 30)
"""WebP qualities that are tried until a picture is small enough; below the last one organs lose their borders."""

MOST_BYTES = 2**24
"""More than any preview: ten gates, and labels that nothing compresses, take half of it."""

DAMAGED_WEBP = (
    *(OSError, SyntaxError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, EOFError, struct.error),
    *(zlib.error, Warning, Image.DecompressionBombError),
)
"""What Pillow, zlib and we raise on something else than a preview."""

OPENING = b"<voxelgate:preview>"
CLOSING = b"</voxelgate:preview>"
PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:voxelgate="urn:voxelgate">%b</rdf:Description></rdf:RDF></x:xmpmeta>'
)
"""XMP with one property, whose text is JSON."""

LABEL_TYPES = {8: "u1", 16: "<u2"}
"""How the label of a pixel is kept, by its bits."""

FOR_XML = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}
"""How JSON writes what would be markup."""


@dataclass(frozen=True)
class Preview:
    """What a preview file holds.

    Args:
        image: picture of all slices, WebP: the file as it is.
        labels: label of each pixel, row by row, deflated (zlib); 8 bits each, or 16 with the low byte first.
        layout: where the slices lie.
        attention: pictures of the same layout, WebP, in the order of the layout's `gates`; black is 0, white 1.
    """

    image: bytes
    labels: bytes
    layout: Layout
    attention: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class _Packet:
    layout: Layout
    labels: Base64Bytes
    attention: tuple[Base64Bytes, ...]


_ADAPTER = TypeAdapter(_Packet)


def write_file(path: Path, picture: Picture, labels: bytes, layout: Layout, attention: Sequence[Picture] = ()) -> None:
    """Write a preview, whole or not at all.

    Args:
        path: of the file; its folder exists.
        picture: (rows, columns) grey values.
        labels: as in `Preview`.
        layout: as in `Preview`.
        attention: (rows, columns) of each gate.

    Raises:
        OutputError: it cannot be written.
    """
    ours = {
        "layout": asdict(layout),
        "labels": _text(labels),
        "attention": [_text(_webp(one, ATTENTION_BYTES)) for one in attention],
    }
    packet = PACKET % (OPENING + json.dumps(ours).translate(FOR_XML).encode() + CLOSING)
    try:
        write_bytes(path, _webp(picture, IMAGE_BYTES, packet))
    except OSError as error:
        raise OutputError(f"{path.name}: cannot be written ({error.strerror}); free the disk or its rights.") from error


def read_preview(path: Path) -> Preview:
    """Read a preview; all that is shown of it is as `write_preview` makes it.

    Raises:
        InputError: no such file, or no preview of this version, or a damaged one.
    """
    try:
        content = _preview_bytes(path)
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror}); segment the case again.") from error
    try:
        size_px, text = _opened_webp(content)
        packet = _ADAPTER.validate_json(text.split(OPENING)[1].split(CLOSING)[0])
        _check(packet, size_px)
    except DAMAGED_WEBP as error:
        raise InputError(f"{path.name}: is no preview of a case, or damaged; segment the case again.") from error
    return Preview(content, packet.labels, _coloured(packet.layout), packet.attention)


def _preview_bytes(path: Path) -> bytes:
    """Return all bytes of a file, if they can be those of a preview."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read()


def _opened_webp(content: bytes) -> tuple[tuple[int, int], bytes]:
    """Return the width and height of a picture, and its XMP; it is not decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=("WEBP",)) as picture:
            return picture.size, picture.info.get("xmp", b"")


def _check(packet: _Packet, size_px: tuple[int, int]) -> None:
    """Refuse pictures and labels of another size than the layout says, and labels without a name."""
    layout = packet.layout
    sizes = [size_px, *(_opened_webp(one)[0] for one in packet.attention)]
    if len(packet.attention) != len(layout.gates) or set(sizes) != {layout.size_px}:
        raise ValueError(f"pictures of {sizes}, expected {len(layout.gates) + 1} of {layout.size_px}")
    columns, rows = layout.size_px
    wanted = columns * rows * layout.bits // 8
    stream = zlib.decompressobj()
    labels = stream.decompress(packet.labels, wanted + 1)
    if len(labels) != wanted or not stream.eof:
        raise ValueError(f"labels of another number than {columns * rows} pixels")
    if np.frombuffer(labels, LABEL_TYPES[layout.bits]).max() > len(layout.names):
        raise ValueError("labels without a name")


def _coloured(layout: Layout) -> Layout:
    """Return a layout with the colours of its structures, of which older previews say nothing."""
    table = LabelTable(("background", *layout.names))
    return layout if layout.colours else replace(layout, colours=tuple(structure_colours(table).values()))


def _webp(picture: Picture, most_bytes: int, packet: bytes = b"") -> bytes:
    """Return a picture in the best quality that is small enough; what it carries does not count."""
    content = b""
    for quality in QUALITIES:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "webp", quality=quality, method=4, xmp=packet)
        content = stream.getvalue()
        if len(content) - len(packet) <= most_bytes:
            break
    return content


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
