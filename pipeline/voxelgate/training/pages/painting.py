"""Drawings as one picture of pixels, for TensorBoard."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from voxelgate.core.terminology import Rgb
from voxelgate.training.pages.case_drawing import Picture
from voxelgate.training.pages.slice_outlines import Outlines

WHITE = (255, 255, 255)
"""Of what is true; what was found has the colour of its structure."""


def painted(
    pictures: Sequence[Picture], truth: Sequence[Outlines], result: Sequence[Outlines], colours: Mapping[int, Rgb]
) -> Picture:
    """Return slices side by side, (rows, columns, 3), with white lines around what is true and coloured ones.

    Args:
        pictures: of the slices, grey or in colours.
        truth: outlines in each of them.
        result: the same of what was found.
        colours: of the structures, by label value.
    """
    painted_ones = [
        _painted_slice(picture, [(true, None), (found, colours)])
        for picture, true, found in zip(pictures, truth, result, strict=True)
    ]
    height = max(len(one) for one in painted_ones)
    return np.hstack([np.pad(one, ((0, height - len(one)), (0, 0), (0, 0))) for one in painted_ones])


def _painted_slice(picture: Picture, layers: Sequence[tuple[Outlines, Mapping[int, Rgb] | None]]) -> Picture:
    image = Image.fromarray(picture).convert("RGB")
    pen = ImageDraw.Draw(image)
    for outlines, colours in layers:
        for value, lines in outlines.items():
            for line in lines:
                pen.line(
                    [(x, y) for x, y in line.tolist()], fill=WHITE if colours is None else colours.get(value, WHITE)
                )
    return np.asarray(image)
