"""The page that shows what the demo did: a table of scores, and pictures of truth and prediction on held-out cases."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from voxelgate.core.errors import InputError, OutputError
from voxelgate.core.files import write_bytes
from voxelgate.core.geometry import Grid
from voxelgate.core.labels import LabelTable
from voxelgate.evaluation.scores import LabelScores, Measure
from voxelgate.evaluation.table import summarise
from voxelgate.images.volumes import read_volume

Colour = tuple[int, int, int]
Picture = npt.NDArray[np.float32]
Window = tuple[float, float]

OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
"""Colours that people with any colour vision tell apart; Okabe & Ito 2008, jfly.uni-koeln.de/color. Used in turn."""

SOFT_TISSUE_WINDOW_HU: Window = (-160.0, 240.0)
"""The usual abdominal window: level 40 HU, width 400 HU."""

PANEL_PX = 380
"""Pixels along the longest side of the volume; the other sides follow in mm."""

SUPERSAMPLING = 2
"""Pictures are drawn this much larger and then reduced, so that lines are smooth."""

OUTLINE_PX, FILL_SHARE = 2, 0.38
"""Width of the line around the truth, and share of the colour of the prediction."""

BACKGROUND: Colour = (11, 13, 16)
INK: Colour = (222, 226, 230)
FAINT_INK: Colour = (150, 157, 165)
MARGIN_PX, LEGEND_PX, FONT_PX = 14, 40, 15


@dataclass(frozen=True)
class View:
    """One plane as radiologists look at it.

    Args:
        name: of the plane.
        across: patient axis (0 right, 1 front, 2 head) that runs across the picture, and its sign from left to right.
        down: patient axis that runs down the picture, and its sign from top to bottom.
        edges: letters at the left, right, upper and lower edge.
    """

    name: str
    across: tuple[int, int]
    down: tuple[int, int]
    edges: str

    @property
    def through(self) -> int:
        """Return the patient axis that the plane cuts."""
        return 3 - self.across[0] - self.down[0]


VIEWS = (
    View("axial", across=(0, -1), down=(1, -1), edges="RLAP"),
    View("coronal", across=(0, -1), down=(2, -1), edges="RLSI"),
    View("sagittal", across=(1, -1), down=(2, -1), edges="APSI"),
)
"""Radiological convention: the patient's right is on the left, as seen from the feet and from the front."""


@dataclass(frozen=True)
class HeldOutCase:
    """A case that the network was not trained on: three files on one grid, and one score for each structure."""

    case_id: str
    image: Path
    truth: Path
    prediction: Path
    scores: tuple[LabelScores, ...]


@dataclass(frozen=True)
class DemoRun:
    """What was done, for the sentences of the page.

    Args:
        network: as a sentence would call it, with its article, such as "an attention U-Net".
        device: as a reader would call it, such as "2 CPU cores".
        seed: with which everything can be repeated.
        training_cases: number of cases trained on.
        steps: optimiser steps of the training.
        training_s: how long that took.
        segmentation_s: mean time for one held-out case.
    """

    network: str
    device: str
    seed: int
    training_cases: int
    steps: int
    training_s: float
    segmentation_s: float


@dataclass(frozen=True)
class Command:
    """A command line to show, and in a few words what it does."""

    purpose: str
    line: str


def write_page(
    folder: Path, run: DemoRun, cases: Sequence[HeldOutCase], labels: LabelTable, commands: Sequence[Command]
) -> Path:
    """Write `pictures/<case>.png` and `index.html`, which holds the pictures too and needs nothing else.

    Args:
        folder: made if it is not there.
        run: what was done.
        cases: the held-out cases, at least one; each scored for every structure of `labels`, in its order.
        labels: names of the label values.
        commands: to do the same with data of one's own.

    Returns:
        The path of `index.html`.

    Raises:
        InputError: no cases, scores that do not follow the table, or a case whose files cannot be drawn.
        OutputError: the folder holds a page already.
    """
    index, pictures = folder / "index.html", folder / "pictures"
    if index.exists():
        raise OutputError(f"{index} exists already; name another folder for the page.")
    _check_scores(cases, labels)
    pictures.mkdir(parents=True, exist_ok=True)
    figures = []
    for case in cases:
        png = _png(draw_overlay(case, labels))
        write_bytes(pictures / f"{case.case_id.replace('/', '_')}.png", png)
        figures.append((case, base64.b64encode(png).decode("ascii")))
    write_bytes(index, _html(run, figures, labels, commands).encode("utf-8"))
    return index


def draw_overlay(case: HeldOutCase, labels: LabelTable, window: Window = SOFT_TISSUE_WINDOW_HU) -> Image.Image:
    """Draw three planes of a case, with truth as outline and prediction as fill, and a legend.

    The planes lie at `widest_cut_mm`. Image and masks are interpolated linearly to equal mm along
    both sides; a mask ends where it falls below one half.

    Args:
        case: the files, which must lie on one grid.
        labels: names of the label values, which choose the colours.
        window: values that become black and white, HU for CT.

    Raises:
        InputError: a file cannot be read, or the grids differ.
    """
    image, grid = read_volume(case.image)
    truth, prediction = (_on_grid(path, grid, case.case_id) for path in (case.truth, case.prediction))
    centre_mm = widest_cut_mm(truth if truth.any() else prediction, grid)
    corners_mm = grid.corners_mm()
    pixel_mm = float(np.ptp(corners_mm, axis=0).max()) / (PANEL_PX * SUPERSAMPLING)
    panels = []
    for view in VIEWS:
        index = _plane_index(view, grid, centre_mm, pixel_mm)
        grey = (_sample(image, index, outside=window[0]) - window[0]) / (window[1] - window[0])
        picture = np.repeat(np.clip(grey, 0, 1)[..., None] * 255, 3, axis=-1)
        for value in labels.foreground:
            colour = OKABE_ITO[(value - 1) % len(OKABE_ITO)]
            shown = _sample(prediction == value, index) > 0.5, _sample(truth == value, index) > 0.5
            picture = _painted(picture, *shown, colour)
        panels.append(Image.fromarray(np.rint(picture).astype(np.uint8)).reduce(SUPERSAMPLING))
    return _composed(panels, labels)


def widest_cut_mm(labels: npt.NDArray[Any], grid: Grid) -> tuple[float, float, float]:
    """Return the RAS+ position whose planes cut most structures widely.

    Each structure counts by the root of its cut relative to its widest one, so that three fair cuts beat two best ones.

    Args:
        labels: label values, (I, J, K); without any structure the centre of the grid is returned.
        grid: where they lie.
    """
    index = np.argwhere(labels)
    if not len(index):
        x, y, z = grid.corners_mm().mean(axis=0).tolist()
        return x, y, z
    values = labels[tuple(index.T)]
    points_mm = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    step_mm = max(grid.spacing_mm)
    x, y, z = (_widest_cut_mm(points_mm[:, axis], values, step_mm) for axis in range(3))
    return x, y, z


def _widest_cut_mm(positions_mm: npt.NDArray[np.float64], values: npt.NDArray[Any], step_mm: float) -> float:
    bins = np.floor((positions_mm - positions_mm.min()) / step_mm).astype(np.intp)
    width = np.zeros(int(bins.max()) + 1)
    for value in np.unique(values):
        voxels = np.bincount(bins[values == value], minlength=len(width))
        width += np.sqrt(voxels / voxels.max())
    return float(positions_mm.min() + (int(width.argmax()) + 0.5) * step_mm)


def _on_grid(path: Path, grid: Grid, case_id: str) -> npt.NDArray[Any]:
    labels, own_grid = read_volume(path)
    difference = grid.difference(own_grid)
    if difference is not None:
        raise InputError(
            f"{case_id}: {path.name} lies on another grid than the image ({difference}); restore it first."
        )
    return labels


def _plane_index(
    view: View, grid: Grid, centre_mm: tuple[float, float, float], pixel_mm: float
) -> npt.NDArray[np.float64]:
    """Return the voxel index of each pixel, (3, H, W); the plane covers the box around the whole volume."""
    corners_mm = grid.corners_mm()
    points_mm = {view.through: np.array(centre_mm[view.through])}
    for (axis, sign), shape in ((view.across, (1, -1)), (view.down, (-1, 1))):
        ticks_mm = np.arange(corners_mm[:, axis].min(), corners_mm[:, axis].max(), pixel_mm)
        points_mm[axis] = ticks_mm[::sign].reshape(shape)
    x, y, z = np.broadcast_arrays(points_mm[0], points_mm[1], points_mm[2])
    to_index = np.linalg.inv(grid.affine)
    index: npt.NDArray[np.float64] = np.tensordot(to_index[:3, :3], np.stack((x, y, z)), axes=1)
    index += to_index[:3, 3].reshape(3, 1, 1)
    return index


def _sample(volume: npt.NDArray[Any], index: npt.NDArray[np.float64], *, outside: float = 0.0) -> Picture:
    picture: Picture = ndimage.map_coordinates(
        volume.astype(np.float32), index, order=1, mode="constant", cval=outside, output=np.float32
    )
    return picture


def _painted(picture: Picture, filled: npt.NDArray[Any], outlined: npt.NDArray[Any], colour: Colour) -> Picture:
    """Return an RGB picture with one area tinted and another one's inner rim in full colour."""
    paint = np.array(colour, dtype=np.float32)
    rim = outlined & ~ndimage.binary_erosion(outlined, iterations=OUTLINE_PX * SUPERSAMPLING)
    tinted = np.where(filled[..., None], (1 - FILL_SHARE) * picture + FILL_SHARE * paint, picture)
    painted: Picture = np.where(rim[..., None], paint, tinted).astype(np.float32)
    return painted


def _composed(panels: Sequence[Image.Image], labels: LabelTable) -> Image.Image:
    """Return the panels side by side with letters at their edges, above the legend."""
    height = max(panel.height for panel in panels)
    width = sum(panel.width for panel in panels) + MARGIN_PX * (len(panels) + 1)
    canvas = Image.new("RGB", (width, height + 2 * MARGIN_PX + LEGEND_PX), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX)
    left = MARGIN_PX
    for panel, view in zip(panels, VIEWS, strict=True):
        top = MARGIN_PX + (height - panel.height) // 2
        canvas.paste(panel, (left, top))
        right, bottom = left + panel.width, top + panel.height
        middle = ((left + right) // 2, (top + bottom) // 2)
        sides = ((left + 4, middle[1], "lm"), (right - 4, middle[1], "rm"))
        ends = ((middle[0], top + 3, "mt"), (middle[0], bottom - 3, "mb"))
        for letter, (x, y, anchor) in zip(view.edges, (*sides, *ends), strict=True):
            draw.text((x, y), letter, INK, font, anchor, stroke_width=2, stroke_fill=BACKGROUND)
        draw.text((left + 4, top + 3), view.name, FAINT_INK, font, "lt", stroke_width=2, stroke_fill=BACKGROUND)
        left = right + MARGIN_PX
    _draw_legend(canvas, labels)
    return canvas


def _draw_legend(canvas: Image.Image, labels: LabelTable) -> None:
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX)
    x, y, side = MARGIN_PX, canvas.height - LEGEND_PX // 2 - 4, 14
    for value, name in labels.foreground.items():
        colour = OKABE_ITO[(value - 1) % len(OKABE_ITO)]
        tint = tuple(
            round((1 - FILL_SHARE) * grey + FILL_SHARE * part) for grey, part in zip((90,) * 3, colour, strict=True)
        )
        draw.rectangle((x, y - side // 2, x + side, y + side // 2), tint, colour, OUTLINE_PX)
        draw.text((x + side + 7, y), name, INK, font, "lm")
        x += side + 7 + int(draw.textlength(name, font)) + 22
    draw.text((canvas.width - MARGIN_PX, y), "outline: truth   fill: prediction", FAINT_INK, font, "rm")


def _check_scores(cases: Sequence[HeldOutCase], labels: LabelTable) -> None:
    if not cases:
        raise InputError("there is no held-out case to show; keep at least one case out of the training.")
    names = list(labels.foreground.values())
    for case in cases:
        if [item.label for item in case.scores] != names:
            raise InputError(f"{case.case_id}: scores must be of {', '.join(names)}, in this order.")


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def _html(
    run: DemoRun, figures: Sequence[tuple[HeldOutCase, str]], labels: LabelTable, commands: Sequence[Command]
) -> str:
    environment = Environment(
        loader=PackageLoader("voxelgate.apps.demo", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "dice": _dice, "ml": _ml, "described": _described}
    summaries = summarise([item for case, _ in figures for item in case.scores])
    return environment.get_template("page.html.j2").render(
        run=run,
        figures=figures,
        commands=commands,
        colours=dict(zip(labels.foreground.values(), _css_colours(), strict=False)),
        means=[(item.label, item.statistics[Measure.DICE].mean, item.missed + item.invented) for item in summaries],
    )


def duration(elapsed_s: float) -> str:
    """Say a time as a person would.

    >>> duration(3.21), duration(59.9), duration(754)
    ('3.2 s', '60 s', '12 min 34 s')
    """
    if elapsed_s < 10:
        return f"{elapsed_s:.1f} s"
    minutes, seconds = divmod(round(elapsed_s), 60)
    return f"{minutes} min {seconds} s" if elapsed_s >= 60 else f"{elapsed_s:.0f} s"


def _css_colours() -> Iterator[str]:
    while True:
        yield from ("#{:02x}{:02x}{:02x}".format(*colour) for colour in OKABE_ITO)


def _dice(value: float) -> str:
    return "not there" if math.isnan(value) else f"{value:.3f}"


def _ml(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _described(case: HeldOutCase) -> str:
    """Return the alternative text of a picture."""
    found = ", ".join(f"{item.label} {_dice(item.dice)}" for item in case.scores)
    return (
        f"{case.case_id} in axial, coronal and sagittal planes, the truth as outlines and the prediction as fill; "
        f"Dice: {found}."
    )
