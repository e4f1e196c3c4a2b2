"""Small pictures of a case and its labels in three planes, for the report page.

A preview is one WebP file. Any viewer shows its picture, grey slices of three planes below each other in three columns;
two chunks of our own, which viewers pass over (RFC 9649, 2.7.1.6), hold what lies where and the labels of the pixels.
"""

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.dicom.plausibility import AIR_HU, LEAST_AIR, LEAST_TISSUE, SOFT_TISSUE_HU
from pipeline.errors import InputError, OutputError
from pipeline.geometry import Grid
from pipeline.labels import LabelTable
from pipeline.structures import structure_boxes

Picture = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]
Cuts = npt.NDArray[np.float64]

LONGEST_PX = 128
MOST_CELLS = 750_000
"""Cells along the longest side of an image, and in all: what fits `IMAGE_BYTES` and still shows small organs."""

SLICES = {"axial": 18, "coronal": 14, "sagittal": 14}
"""Most slices of each plane."""

IMAGE_BYTES = 40_000
"""Size of a picture that is aimed at, so that a thousand cases make a page of at most 60 MB."""

QUALITIES = (85, 70, 55, 40, 30)
"""WebP qualities that are tried until a picture is small enough; below the last one organs lose their borders."""

WINDOW_HU = (-160.0, 240.0)
"""The usual abdominal window: level 40 HU, width 400 HU."""

WINDOW_PERCENTILES = (1.0, 99.5)
"""Of an image whose values are not HU: what becomes black and white."""

SMALLEST_WINDOW = 1e-6
"""Added where all cells are equal, so that they become black."""

LEAST_SEEN = 0.03
"""Share of a plane that is not black where there is a body; the table and the head rest are less."""

MARGIN = 0.1
"""Part of the labels' extent that is shown beyond either end."""

LAYOUT_CHUNK, LABEL_CHUNK = b"VGLY", b"VGLB"


Shown = tuple[range, range, range]
"""Cells of a sketch that are shown, along each of its axes."""


class Plane(NamedTuple):
    """A plane of the patient: which axis it cuts, and the letters at the left, right, upper and lower edge."""

    name: str
    axis: int
    edges: str

    @property
    def others(self) -> tuple[int, int]:
        """Return the axes that run across and down."""
        across, down = sorted({0, 1, 2} - {self.axis})
        return across, down


PLANES = (Plane("axial", 2, "RLAP"), Plane("coronal", 1, "RLSI"), Plane("sagittal", 0, "APSI"))
"""Radiological convention: the patient's right is on the left, as seen from the feet and from the front."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """A small copy of an image, ready to be shown.

    Args:
        cells: (x, y, z) grey values; the axes run to the patient's right, front and head, as nearly as the grid's do.
        cell_mm: sides of a cell.
        weights: for each of these axes, the share of each voxel of the source in each cell, (cells, voxels).
        axes: for each of these axes, the axis of the source.
        window: source values that became black and white.
        is_hu: whether those are HU.
    """

    cells: Picture
    cell_mm: tuple[float, float, float]
    weights: tuple[Weights, Weights, Weights]
    axes: tuple[int, int, int]
    window: tuple[float, float]
    is_hu: bool

    @property
    def source_shape(self) -> tuple[int, int, int]:
        """Return the voxels of the source along its own axes."""
        voxels = {axis: weights.shape[1] for axis, weights in zip(self.axes, self.weights, strict=True)}
        return voxels[0], voxels[1], voxels[2]

    def source_index(self, axis: int, cell: int) -> int:
        """Return the voxel of the source in the middle of a cell, along an axis of the sketch."""
        weights = self.weights[axis][cell]
        return int(weights @ np.arange(len(weights)) / weights.sum() + 0.5)


@dataclass(frozen=True)
class Preview:
    """What a preview file holds.

    Args:
        image: picture of all slices, WebP.
        labels: label of each pixel, row by row, deflated (zlib); 8 bits each, or 16 with the low byte first.
        layout: JSON, see `write_preview`.
    """

    image: bytes
    labels: bytes
    layout: str


def sketch(voxels: npt.NDArray[Any], grid: Grid) -> Sketch:
    """Return a small copy of an image, to be made before the network runs; the image is then not needed any more.

    Every cell is the mean of its voxels, windowed for soft tissue if they are HU, else by percentiles. Axes are only
    turned by right angles and reduced, never tilted: an oblique image is shown in the planes it was taken in.

    Args:
        voxels: (I, J, K), any real type, finite.
        grid: where they lie, RAS+ mm.
    """
    orientation = nib.io_orientation(grid.affine)
    axes = [int(np.flatnonzero(orientation[:, 0] == side)[0]) for side in range(3)]
    sides_mm = np.array(grid.shape) * grid.spacing_mm
    cell_mm = max(float(sides_mm.max()) / LONGEST_PX, float(np.cbrt(sides_mm.prod() / MOST_CELLS)))
    weights = []
    for axis in axes:
        shares = _shares(grid.shape[axis], max(1, min(grid.shape[axis], round(sides_mm[axis] / cell_mm))))
        weights.append(shares if orientation[axis, 1] > 0 else shares[:, ::-1])
    means = _reduced(voxels, [weights[axes.index(axis)] for axis in range(3)]).transpose(axes)
    window, is_hu = _window(means)
    grey = np.clip((means - window[0]) / (window[1] - window[0]), 0, 1)
    sides = [float(sides_mm[axis]) / len(shares) for axis, shares in zip(axes, weights, strict=True)]
    return Sketch(
        np.rint(255 * grey).astype(np.uint8),
        (sides[0], sides[1], sides[2]),
        (weights[0], weights[1], weights[2]),
        (axes[0], axes[1], axes[2]),
        window,
        is_hu,
    )


def write_preview(path: Path, sketch: Sketch, labels: npt.NDArray[Any], table: LabelTable) -> None:
    """Write the preview of a case under a temporary name, then rename it; equal input gives equal bytes.

    The slices of a plane lie below each other, evenly spread over the labels' extent and a margin, moved so that each
    structure is cut where it is widest. A structure that is in a slice has at least one pixel there. The layout names
    the planes with their place in the picture (`x`, `width`, `height` in pixels), the size of a slice (`size_mm`), the
    letters at its `edges`, the slice to `start` with, and for each slice its cell along the axis that the plane cuts
    (`cells`, of the `shown` ones) and its number in the `source`, from 1. It says nothing of the patient.

    Args:
        path: of the file, which ends in `.webp`; its folder exists.
        sketch: of the image.
        labels: (I, J, K) integers on the grid of the image.
        table: what they mean.

    Raises:
        ValueError: labels of another shape than the image.
        OutputError: the file cannot be written.
    """
    if labels.shape != sketch.source_shape:
        raise ValueError(f"labels of shape {labels.shape} for an image of shape {sketch.source_shape}")
    places = _places(sketch, labels, table)
    shown = _shown_box(sketch, places)
    chosen = {plane: _chosen(plane, shown[plane.axis], places) for plane in PLANES}
    bits = 8 if len(table.names) <= 256 else 16
    grey = [[_grey_slice(sketch, plane, cell, shown) for cell in chosen[plane]] for plane in PLANES]
    coded = [[_label_slice(sketch, labels, plane, cell, shown) for cell in chosen[plane]] for plane in PLANES]
    layout = {
        "planes": list(_described(sketch, chosen, shown, places)),
        "bits": bits,
        "names": list(table.foreground.values()),
        "window": [round(limit, 4) for limit in sketch.window],
        "is_hu": sketch.is_hu,
    }
    values = _sprite(coded).astype("u1" if bits == 8 else "<u2")
    chunks = {LAYOUT_CHUNK: json.dumps(layout).encode(), LABEL_CHUNK: zlib.compress(values.tobytes(), 9)}
    _write(path, _file(_sprite(grey).astype(np.uint8), chunks))


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
    return Preview(_riff({b"VP8 ": chunks[b"VP8 "]}), chunks[LABEL_CHUNK], layout)


def _shares(voxels: int, cells: int) -> Weights:
    """Return the share of each voxel in each of equally wide cells, (cells, voxels); the shares of a cell sum to 1."""
    edges = np.linspace(0, voxels, cells + 1)
    starts = np.arange(voxels)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    shares: Weights = (np.clip(overlap, 0, None) * cells / voxels).astype(np.float32)
    return shares


def _reduced(voxels: npt.NDArray[Any], weights: Sequence[Weights]) -> npt.NDArray[np.float32]:
    """Return the means of cells, float32; a few planes of the source at a time become float32."""
    order = np.argsort([-abs(stride) for stride in voxels.strides], kind="stable").tolist()
    swept = voxels.transpose(order)
    slow, middle, fast = (weights[axis] for axis in order)
    means = np.empty((len(slow), len(middle), len(fast)), np.float32)
    for row, mean in zip(slow, means, strict=True):
        used = np.flatnonzero(row)
        planes = swept[used[0] : used[-1] + 1].astype(np.float32)
        mean[...] = middle @ np.tensordot(row[used[0] : used[-1] + 1], planes, 1) @ fast.T
    return means.transpose(np.argsort(order))


def _window(means: npt.NDArray[np.float32]) -> tuple[tuple[float, float], bool]:
    """Return the values that become black and white, and whether they are HU: then some are of air and soft tissue."""
    air, tissue = (float(np.mean((means >= low) & (means <= high))) for low, high in (AIR_HU, SOFT_TISSUE_HU))
    if air >= LEAST_AIR and tissue >= LEAST_TISSUE:
        return WINDOW_HU, True
    low, high = np.percentile(means, WINDOW_PERCENTILES).tolist()
    if low == high:
        low, high = float(means.min()), float(means.max()) + SMALLEST_WINDOW
    return (low, high), False


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a structure lies in the cells of a sketch.

    Args:
        voxels: about how many cells it fills.
        spans: the cells it touches, along each axis.
        cuts: for each of these cells, the size of its cut there, relative to the largest one.
    """

    voxels: int
    spans: Shown
    cuts: tuple[Cuts, Cuts, Cuts]

    def widest(self, axis: int) -> int:
        """Return the cell in which it is cut widest."""
        return self.spans[axis][int(self.cuts[axis].argmax())]

    def cut(self, axis: int, cell: int) -> float:
        """Return the relative size of its cut in any cell."""
        span = self.spans[axis]
        return float(self.cuts[axis][span.index(cell)]) if cell in span else 0.0


def _places(sketch: Sketch, labels: npt.NDArray[Any], table: LabelTable) -> list[_Place]:
    """Return the place of each structure in a label map, small ones first."""
    turned = labels.transpose(sketch.axes)
    centres = [[sketch.source_index(axis, cell) for cell in range(len(sketch.weights[axis]))] for axis in range(3)]
    cells = turned[np.ix_(*centres)]
    places = []
    for value, box in structure_boxes(turned, len(table.names) - 1).items():
        touched = [np.flatnonzero(sketch.weights[axis][:, box[axis]].any(axis=1)) for axis in range(3)]
        x, y, z = (range(int(cell[0]), int(cell[-1]) + 1) for cell in touched)
        inside = cells[np.ix_(x, y, z)] == value
        cuts = [_relative(inside.sum(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        places.append(_Place(int(inside.sum()), (x, y, z), (cuts[0], cuts[1], cuts[2])))
    return sorted(places, key=lambda place: place.voxels)


def _relative(cut: npt.NDArray[np.int64]) -> Cuts:
    """Return cuts relative to the largest; where no centre of a cell met the structure, its middle counts."""
    if not cut.any():
        cut = np.eye(len(cut), dtype=np.int64)[len(cut) // 2]
    relative: Cuts = cut / cut.max()
    return relative


def _shown_box(sketch: Sketch, places: Sequence[_Place]) -> Shown:
    """Return the cells that are shown along each axis: those of the labels, and what is not black all around."""
    spans = []
    for axis in range(3):
        seen = np.flatnonzero((sketch.cells > 0).mean(axis=tuple({0, 1, 2} - {axis})) > LEAST_SEEN)
        ends = [*seen[:1], *seen[-1:], *(place.spans[axis][end] for place in places for end in (0, -1))]
        spans.append(range(int(min(ends, default=0)), int(max(ends, default=sketch.cells.shape[axis] - 1)) + 1))
    return spans[0], spans[1], spans[2]


def _chosen(plane: Plane, shown: range, places: Sequence[_Place]) -> list[int]:
    """Return the cells whose slices are shown, evenly spread and then moved to where structures are widest."""
    low = min((place.spans[plane.axis][0] for place in places), default=shown[0])
    high = max((place.spans[plane.axis][-1] for place in places), default=shown[-1])
    margin = round(MARGIN * (high - low + 1)) + 1
    low, high = max(shown[0], low - margin), min(shown[-1], high + margin)
    count = min(SLICES[plane.name], high - low + 1)
    free = sorted(set(np.linspace(low, high, count).round().astype(int).tolist()))
    fixed: list[int] = []
    for cell in dict.fromkeys(place.widest(plane.axis) for place in places):
        if free:
            free.remove(min(free, key=lambda other: (abs(other - cell), other)))
            fixed.append(cell)
    return sorted({*free, *fixed})


def _start(plane: Plane, cells: Sequence[int], places: Sequence[_Place]) -> int:
    """Return which slice cuts most structures widely; by their roots, so that two fair cuts beat one large one."""
    if not places:
        return len(cells) // 2
    return int(np.argmax([sum(place.cut(plane.axis, cell) ** 0.5 for place in places) for cell in cells]))


def _grey_slice(sketch: Sketch, plane: Plane, cell: int, shown: Shown) -> Picture:
    across, down = plane.others
    return _as_seen(np.moveaxis(sketch.cells, plane.axis, 0)[cell][np.ix_(shown[across], shown[down])])


def _label_slice(
    sketch: Sketch, labels: npt.NDArray[Any], plane: Plane, cell: int, shown: Shown
) -> npt.NDArray[np.uint16]:
    """Return the label that fills most of each pixel, 0 where none fill half of it together.

    The middle plane of the cells counts. A structure that would get no pixel, or is in their other planes only, gets
    the pixel that it fills most.
    """
    across, down = plane.others
    is_turned = sketch.axes[across] > sketch.axes[down]
    planes = np.moveaxis(labels, sketch.axes[plane.axis], 0)
    used = np.flatnonzero(sketch.weights[plane.axis][cell])
    middle, block = planes[sketch.source_index(plane.axis, cell)], planes[used[0] : used[-1] + 1]
    shares = {}
    for value in np.flatnonzero(np.bincount(block.ravel()))[1:].tolist():
        mask = middle == value
        mask = mask if mask.any() else (block == value).any(axis=0)
        mask = (mask.T if is_turned else mask).astype(np.float32)
        left, right = (sketch.weights[axis][list(shown[axis])] for axis in (across, down))
        shares[value] = left @ mask @ right.T
    return _as_seen(_winners(shares, (len(shown[across]), len(shown[down]))))


def _winners(shares: Mapping[int, Weights], shape: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """Return the label with the largest share in each cell, from the share of each label."""
    winner = np.zeros(shape, np.uint16)
    if not shares:
        return winner
    stack, values = np.stack(list(shares.values())), np.array(list(shares), np.uint16)
    winner[:] = np.where(stack.sum(axis=0) >= 0.5, values[stack.argmax(axis=0)], 0)
    for value, share in shares.items():
        if not (winner == value).any():
            winner[np.unravel_index(share.argmax(), share.shape)] = value
    return winner


def _as_seen(cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Turn cells (first axis, second axis) to a picture: the first runs from right to left, the second upwards."""
    return cells[::-1, ::-1].T


def _described(
    sketch: Sketch, chosen: Mapping[Plane, Sequence[int]], shown: Shown, places: Sequence[_Place]
) -> Iterator[dict[str, Any]]:
    """Yield the layout of each plane."""
    x = 0
    for plane, cells in chosen.items():
        width, height = (len(shown[axis]) for axis in plane.others)
        width_mm, height_mm = (len(shown[axis]) * sketch.cell_mm[axis] for axis in plane.others)
        yield {
            "name": plane.name,
            "edges": plane.edges,
            "x": x,
            "width": width,
            "height": height,
            "size_mm": [round(width_mm, 2), round(height_mm, 2)],
            "cells": [cell - shown[plane.axis][0] for cell in cells],
            "shown": len(shown[plane.axis]),
            "source": [sketch.source_index(plane.axis, cell) + 1 for cell in cells],
            "source_slices": sketch.weights[plane.axis].shape[1],
            "start": _start(plane, cells, places),
        }
        x += width


def _sprite(columns: Sequence[Sequence[npt.NDArray[Any]]]) -> npt.NDArray[Any]:
    """Return the slices of each plane below each other, and the planes side by side."""
    stacks = [np.vstack(list(slices)) for slices in columns]
    height = max(len(stack) for stack in stacks)
    return np.hstack([np.pad(stack, ((0, height - len(stack)), (0, 0))) for stack in stacks])


def _file(picture: Picture, chunks: Mapping[bytes, bytes]) -> bytes:
    """Return a WebP file with further chunks, which ask for the extended layout (RFC 9649, 2.7)."""
    image = dict(_chunks(_small_webp(picture)))
    height, width = picture.shape
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return _riff({b"VP8X": canvas, b"VP8 ": image[b"VP8 "], **chunks})


def _small_webp(picture: Picture) -> bytes:
    content = b""
    for quality in QUALITIES:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "webp", quality=quality, method=4)
        content = stream.getvalue()
        if len(content) <= IMAGE_BYTES:
            break
    return content


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
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path.name}: cannot be written ({error.strerror}); free the disk or its rights.") from error
