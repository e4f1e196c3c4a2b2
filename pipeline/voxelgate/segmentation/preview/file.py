"""The file of a preview: a WebP picture that any viewer shows, with labels and attention as XMP of our own.

XMP is what Pillow keeps for us unchanged (ISO 16684-1; RFC 9649 2.7.1.5). Attention is not further frames of an
animation, for no browser but Chromium can show one of them by its number, and Pillow codes them as differences.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.files import write_bytes
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import structure_colours

Picture = npt.NDArray[np.uint8]

IMAGE_BYTES = 40_000
"""Size of a picture that is aimed at, so that a thousand cases make a page of at most 60 MB."""

ATTENTION_BYTES = 30_000
"""The same for the attention of a gate, which is there on request only."""

QUALITIES = (85, 70, 55, 40, 30)
"""WebP qualities that are tried until a picture is small enough; below the last one organs lose their borders."""

OPENING = b"<voxelgate:preview>"
CLOSING = b"</voxelgate:preview>"
PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:voxelgate="urn:voxelgate">%b</rdf:Description></rdf:RDF></x:xmpmeta>'
)
"""XMP with one property, whose text is JSON."""

FOR_XML = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}
"""How JSON writes what would be markup."""


@dataclass(frozen=True)
class Preview:
    """What a preview file holds.

    Args:
        image: picture of all slices, WebP: the file as it is.
        labels: label of each pixel, row by row, deflated (zlib); 8 bits each, or 16 with the low byte first.
        layout: see `write_preview`.
        attention: pictures of the same layout, WebP, in the order of the layout's `gates`; black is 0, white 1.
    """

    image: bytes
    labels: bytes
    layout: Mapping[str, Any]
    attention: tuple[bytes, ...] = ()


def write_file(
    path: Path, picture: Picture, labels: bytes, layout: Mapping[str, Any], attention: Sequence[Picture] = ()
) -> None:
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
        "layout": layout,
        "labels": _text(labels),
        "attention": [_text(_webp(one, ATTENTION_BYTES)) for one in attention],
    }
    packet = PACKET % (OPENING + json.dumps(ours).translate(FOR_XML).encode() + CLOSING)
    try:
        write_bytes(path, _webp(picture, IMAGE_BYTES, packet))
    except OSError as error:
        raise OutputError(f"{path.name}: cannot be written ({error.strerror}); free the disk or its rights.") from error


def read_preview(path: Path) -> Preview:
    """Read a preview.

    Raises:
        InputError: no such file, or no preview of this version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror}); segment the case again.") from error
    try:
        with Image.open(io.BytesIO(content), formats=("WEBP",)) as picture:
            text = picture.info["xmp"].split(OPENING)[1].split(CLOSING)[0]
        ours = json.loads(text)
        attention = tuple(map(base64.b64decode, ours["attention"]))
        table = LabelTable(("background", *ours["layout"]["names"]))  # older previews say nothing of colours
        layout = {"colours": list(structure_colours(table).values())} | ours["layout"]
        return Preview(content, base64.b64decode(ours["labels"]), layout, attention)
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path.name}: is no preview of a case; segment the case again.") from error


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
