"""A case drawn in a few slices, with the outlines of what is true and what was found, as values that JSON has."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from PIL import Image
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass
from scipy import ndimage

from voxelgate.core.geometry import Grid, counts_pixels
from voxelgate.core.view_planes import PlaneName
from voxelgate.training.pages.slice_frames import Labels, SliceFrame, frames_of
from voxelgate.training.pages.slice_outlines import Outlines, outlines_of, svg_paths

Picture = npt.NDArray[np.uint8]

WINDOW_PERCENTILES = (1.0, 99.8)
"""Values that become black and white."""

LOOKED_AT = 200_000
"""Voxels, evenly spread, that say what those are."""

COLOURS = 3
"""Channels of a picture in colours."""

WEBP_QUALITY = 82

SCALE_BARS_MM = (100, 50, 20, 10, 5, 2, 1)

HIGHEST = 2**16
"""No label value is larger."""


@dataclass(frozen=True)
class DrawnPlane:
    """A slice of a case.

    Args:
        name: of the plane.
        edges: letters at the left, right, upper and lower edge; none of a picture, which shows no sides of a patient.
        size_px: width and height.
        place: number of the slice, from 1, and how many there are.
        picture: WebP, base64.
        truth: outlines of each true structure, by label value, as data of SVG paths in tenths of pixels.
        result: the same of what was found.
    """

    name: PlaneName
    edges: str
    size_px: tuple[int, int]
    place: tuple[int, int]
    picture: str
    truth: dict[int, str]
    result: dict[int, str]


@dataclass(frozen=True)
class CaseDrawing:
    """The slices of a case; nothing of it says whose they are.

    Args:
        planes: on one scale.
        bar: length of a bar in pixels, and what it says; none of a picture, whose pixels have no length.
    """

    planes: tuple[DrawnPlane, ...]
    bar: tuple[float, str] | None


DRAWING = TypeAdapter(CaseDrawing)
"""Reads and writes drawings as JSON."""


def draw_case(image: MetaTensor, result: Labels, truth: Labels, grid: Grid) -> CaseDrawing:
    """Draw a case where its true structures are cut widest; where it has none, what was found.

    Args:
        image: (C, I, J, K), on any grid, such as that of the network; a picture in three channels is in colours.
        result: label values that were found, (I, J, K).
        truth: those that are true, (I, J, K); below 1 is no structure.
        grid: where both lie.
    """
    frames = frames_of(truth if (truth > 0).any() else result, grid, HIGHEST)
    return drawing_of(
        pictures_of(image, frames),
        frames,
        truth=[cut_outlines(truth[frame.slab], frame) for frame in frames],
        result=[cut_outlines(result[frame.slab], frame) for frame in frames],
    )


def cut_outlines(cut: Labels, frame: SliceFrame) -> Outlines:
    """Return the outlines of the label values in a slice, cut out by its `slab`."""
    return outlines_of(frame.as_seen(cut), frame.scale)


def drawing_of(
    pictures: Sequence[Picture], frames: Sequence[SliceFrame], truth: Sequence[Outlines], result: Sequence[Outlines]
) -> CaseDrawing:
    """Put together what belongs to each slice: its picture, and the outlines of what is true and what was found."""
    planes = [
        DrawnPlane(
            frame.plane.name,
            "" if counts_pixels(frame.grid) else frame.plane.edges,
            frame.size_px,
            frame.place,
            _as_webp(picture),
            svg_paths(true),
            svg_paths(found),
        )
        for picture, frame, true, found in zip(pictures, frames, truth, result, strict=True)
    ]
    return CaseDrawing(tuple(planes), _bar(frames))


def pictures_of(image: MetaTensor, frames: Sequence[SliceFrame]) -> list[Picture]:
    """Return the image of each slice, (rows, columns) grey values, or (rows, columns, 3) of a picture in colours."""
    voxels, grid = image.numpy(force=True), Grid.of(image)
    is_colour = counts_pixels(frames[0].grid) and len(voxels) == COLOURS
    channels = voxels if is_colour else voxels[:1]
    low, high = _grey_range(channels)
    to_index = np.linalg.inv(grid.affine)
    pictures = []
    for frame in frames:
        points = np.tensordot(to_index[:3, :3], frame.points_mm(), 1) + to_index[:3, 3, None, None]
        sampled = [ndimage.map_coordinates(one, points, order=1, mode="nearest") for one in channels]
        grey = np.clip((np.stack(sampled, axis=-1) - low) / (high - low), 0, 1)
        picture = np.rint(255 * grey).astype(np.uint8)
        pictures.append(picture if is_colour else picture[..., 0])
    return pictures


def _grey_range(channels: npt.NDArray[Any]) -> tuple[float, float]:
    values = channels.ravel()
    low, high = np.percentile(values[:: max(1, len(values) // LOOKED_AT)], WINDOW_PERCENTILES).tolist()
    return low, high if high > low else low + 1.0


def _bar(frames: Sequence[SliceFrame]) -> tuple[float, str] | None:
    """Return a bar of a round length that is no longer than a third of the narrowest slice."""
    if counts_pixels(frames[0].grid):
        return None
    room_mm = min(frame.size_px[0] for frame in frames) / frames[0].px_per_mm / 3
    length_mm = next((mm for mm in SCALE_BARS_MM if mm <= room_mm), SCALE_BARS_MM[-1])
    return round(length_mm * frames[0].px_per_mm, 1), f"{length_mm} mm"


def _as_webp(picture: Picture) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "webp", quality=WEBP_QUALITY, method=4)
    return base64.b64encode(stream.getvalue()).decode("ascii")
