"""Make the preview of a case: the slices that are shown, the labels and the attention of their pixels.

The true labels of a case are cut in the same way later, where there are any.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.core.palette import structure_colours
from voxelgate.core.view_planes import PLANES, ViewPlane
from voxelgate.segmentation.preview.cells import Lattice, Sketch, Weights, lattice
from voxelgate.segmentation.preview.file import LABEL_TYPES, write_file
from voxelgate.segmentation.preview.layout import Layout, PlaneLayout
from voxelgate.segmentation.preview.slices import (
    Shown,
    SlicePlace,
    chosen_cells,
    places_of,
    planes_of,
    shown_box,
    start_of,
)

Floats = npt.NDArray[np.float32]
Chosen = Mapping[ViewPlane, Sequence[int]]

NO_COLOUR = (0, 0, 0)
"""Of a label value that no structure has."""


def write_preview(
    path: Path,
    sketch: Sketch,
    labels: npt.NDArray[Any],
    table: LabelTable,
    attention: Mapping[int, Floats] | None = None,
) -> None:
    """Write the preview of a case, whole or not at all; equal input gives equal bytes.

    The slices of a plane lie below each other, evenly spread over the labels' extent and a margin, moved so that each
    structure is cut where it is widest. A structure that is in a slice has at least one pixel there. An image of one
    slice, such as a picture, has one plane.

    Args:
        path: of the file, which ends in `.webp`; its folder exists.
        sketch: of the image.
        labels: (I, J, K) integers on the grid of the image.
        table: what they mean.
        attention: by level of the gate, on the cells of the sketch, (x, y, z), 0..1.

    Raises:
        ValueError: labels of another shape than the image.
        OutputError: the file cannot be written.
    """
    laid = sketch.lattice
    if labels.shape != laid.source_shape:
        raise ValueError(f"labels of shape {labels.shape} for an image of shape {laid.source_shape}")
    places = places_of(laid, labels, table)
    shown = shown_box(sketch, places)
    chosen = {plane: chosen_cells(plane, shown[plane.axis], places) for plane in planes_of(laid)}
    bits: Literal[8, 16] = 8 if len(table.names) <= 256 else 16
    low, high = sketch.window
    colours = structure_colours(table)
    layout = Layout(
        tuple(_described(laid, chosen, shown, places)),
        sketch.cells.shape,
        (shown[0][0], shown[1][0], shown[2][0]),
        bits,
        table.names[1:],
        (round(low, 4), round(high, 4)),
        sketch.is_hu,
        tuple(attention or ()),
        laid.is_picture,
        tuple(colours.get(value, NO_COLOUR) for value in range(1, len(table.names))),
    )
    pictures = [sketch.cells, *(np.rint(255 * alpha).astype(np.uint8) for alpha in (attention or {}).values())]
    grey, *maps = (
        _sprite([[_shown_part(cells, plane, cell, shown) for cell in chosen[plane]] for plane in chosen])
        for cells in pictures
    )
    write_file(path, grey, _coded(laid, labels, chosen, shown, bits), layout, maps)


def labels_as_shown(layout: Layout, labels: npt.NDArray[Any], grid: Grid) -> bytes:
    """Return other labels of the same image, such as the true ones, at the pixels of its preview.

    Args:
        layout: of the preview.
        labels: (I, J, K) integers on the grid of the image, none above the number of the layout's names.
        grid: of the image.

    Returns:
        Labels as `Preview` has them.
    """
    shown = layout.shown
    chosen = {
        plane: [shown[plane.axis][cell] for cell in layout.plane_of[plane.name].cells]
        for plane in PLANES
        if plane.name in layout.plane_of
    }
    return _coded(lattice(grid, layout.lattice), labels, chosen, shown, layout.bits)


def _coded(laid: Lattice, labels: npt.NDArray[Any], chosen: Chosen, shown: Shown, bits: int) -> bytes:
    slices = [[_label_slice(laid, labels, plane, cell, shown) for cell in cells] for plane, cells in chosen.items()]
    return zlib.compress(_sprite(slices).astype(LABEL_TYPES[bits]).tobytes(), 9)


def _shown_part(cells: npt.NDArray[np.uint8], plane: ViewPlane, cell: int, shown: Shown) -> npt.NDArray[np.uint8]:
    """Return a slice of cells (x, y, z) as it is seen."""
    across, down = plane.others
    return _as_seen(np.moveaxis(cells, plane.axis, 0)[cell][np.ix_(shown[across], shown[down])])


def _label_slice(
    laid: Lattice, labels: npt.NDArray[Any], plane: ViewPlane, cell: int, shown: Shown
) -> npt.NDArray[np.uint16]:
    """Return the label that fills most of each pixel, 0 where none fill half of it together.

    The middle plane of the cells counts. A structure that would get no pixel, or is in their other planes only, gets
    the pixel that it fills most.
    """
    across, down = plane.others
    is_turned = laid.axes[across] > laid.axes[down]
    planes = np.moveaxis(labels, laid.axes[plane.axis], 0)
    used = np.flatnonzero(laid.weights[plane.axis][cell])
    middle, block = planes[laid.source_index(plane.axis, cell)], planes[used[0] : used[-1] + 1]
    shares = {}
    for value in np.flatnonzero(np.bincount(block.ravel()))[1:].tolist():
        mask = middle == value
        mask = mask if mask.any() else (block == value).any(axis=0)
        mask = (mask.T if is_turned else mask).astype(np.float32)
        left, right = (laid.weights[axis][list(shown[axis])] for axis in (across, down))
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


def _described(laid: Lattice, chosen: Chosen, shown: Shown, places: Sequence[SlicePlace]) -> Iterator[PlaneLayout]:
    """Yield the layout of each plane."""
    x = 0
    for plane, cells in chosen.items():
        across, down = plane.others
        width, height = len(shown[across]), len(shown[down])
        yield PlaneLayout(
            plane.name,
            "" if laid.is_picture else plane.edges,
            x,
            width,
            height,
            (_six_digits(width * laid.cell_mm[across]), _six_digits(height * laid.cell_mm[down])),
            tuple(cell - shown[plane.axis][0] for cell in cells),
            len(shown[plane.axis]),
            tuple(laid.source_index(plane.axis, cell) + 1 for cell in cells),
            laid.weights[plane.axis].shape[1],
            start_of(plane, cells, places),
        )
        x += width


def _six_digits(length_mm: float) -> float:
    """Return a length with six digits, wherever its point stands."""
    return float(f"{length_mm:.6g}")


def _sprite(columns: Sequence[Sequence[npt.NDArray[Any]]]) -> npt.NDArray[Any]:
    """Return the slices of each plane below each other, and the planes side by side."""
    stacks = [np.vstack(list(slices)) for slices in columns]
    height = max(len(stack) for stack in stacks)
    return np.hstack([np.pad(stack, ((0, height - len(stack)), (0, 0))) for stack in stacks])
