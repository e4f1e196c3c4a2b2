"""One colour for each structure, the same wherever it is shown: SEG, RTSTRUCT, report page and MONAI Label."""

from itertools import product

import numpy as np
import numpy.typing as npt

from voxelgate.core.labels import LabelTable
from voxelgate.core.terminology import Rgb

OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
"""Colours that people with any colour vision tell apart (Okabe and Ito 2008, "Color Universal Design")."""

ALIKE = 60.0
"""Distance of two colours, of at most 765, below which they are taken for one."""

GRID_STEP = 17
"""Between the values of red, green and blue of the colours that are looked through: 16 of each."""

LEAST_COLOURFUL = 102
"""Least difference of the parts of a colour, so that it is not taken for a grey of the image."""

Colours = npt.NDArray[np.float64]


def structure_colours(table: LabelTable) -> dict[int, Rgb]:
    """Return the colour of each structure, by value: always the same for the same table, and no two alike.

    What its coding recommends comes first, unless an earlier structure has a colour like it. The others get those of
    Okabe and Ito, then whatever lies farthest from all that are taken; beyond some hundred structures colours become
    alike.

    >>> structure_colours(LabelTable(("background", "femur", "something new")))
    {1: (216, 54, 56), 2: (230, 159, 0)}
    """
    chosen: dict[int, Rgb] = {}
    for value in table.foreground:
        coding = table.find_coding(value)
        if coding is not None and coding.rgb is not None and _is_new(coding.rgb, list(chosen.values())):
            chosen[value] = coding.rgb
    free = [colour for colour in OKABE_ITO if _is_new(colour, list(chosen.values()))]
    left = [value for value in table.foreground if value not in chosen]
    chosen |= dict(zip(left, free, strict=False))
    chosen |= dict(zip(left[len(free) :], _farthest(list(chosen.values()), len(left) - len(free)), strict=True))
    return {value: chosen[value] for value in table.foreground}


def _is_new(colour: Rgb, taken: list[Rgb]) -> bool:
    return not taken or float(_distances(np.array(taken, float), np.array(colour, float)).min()) >= ALIKE


def _farthest(taken: list[Rgb], count: int) -> list[Rgb]:
    """Return so many colours, each as far as can be from those that are taken and those before it."""
    if count <= 0:
        return []
    grid = np.array(list(product(range(0, 256, GRID_STEP), repeat=3)), float)
    grid = grid[np.ptp(grid, axis=1) >= LEAST_COLOURFUL]
    nearest = np.min([_distances(grid, np.array(colour, float)) for colour in taken], axis=0)
    found: list[Rgb] = []
    for _ in range(count):
        colour = grid[int(nearest.argmax())]
        nearest = np.minimum(nearest, _distances(grid, colour))
        red, green, blue = (int(part) for part in colour)
        found.append((red, green, blue))
    return found


def _distances(colours: Colours, other: Colours) -> Colours:
    """Return how far colours (n, 3) look from another one, 0 to 765 (Riemersma, compuphase.com/cmetric.htm)."""
    red = (colours[:, 0] + other[0]) / 2
    squares = (colours - other) ** 2
    weights = np.stack([2 + red / 256, np.full_like(red, 4.0), 2 + (255 - red) / 256], axis=1)
    return np.asarray(np.sqrt((weights * squares).sum(axis=1)))
