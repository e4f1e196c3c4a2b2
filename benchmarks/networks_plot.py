"""Points of Dice against time, a pair for each network, as an SVG file."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 840, 470, 64, 66, 52
"""Pixels of the plot and its margins."""

NAMES, AXIS_END, LINE = 570, 530, 20
"""Pixels: where the column of names begins, where the axis of time ends, distance of two names."""

TICKS = 4
MIDDLE, END = ' text-anchor="middle"', ' text-anchor="end"'


@dataclass(frozen=True)
class Mark:
    """A network in the plot.

    Args:
        name: written beside it.
        colour: of its kind.
        time: along the horizontal axis.
        dice: one for each seed.
    """

    name: str
    colour: str
    time: float
    dice: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean over the seeds."""
        return statistics.fmean(self.dice)


@dataclass(frozen=True)
class _Scale:
    """Where times lie, which double from mark to mark, and Dice."""

    shortest: int
    longest: int
    low: float
    high: float

    def x(self, time: float) -> float:
        return LEFT + (math.log2(time) - self.shortest) / (self.longest - self.shortest) * (AXIS_END - LEFT)

    def y(self, dice: float) -> float:
        return TOP + 16 + (self.high - dice) / ((self.high - self.low) or 1.0) * (HEIGHT - TOP - BOTTOM - 32)


def draw(path: Path, marks: Sequence[Mark], kinds: Mapping[str, str], time_name: str) -> None:
    """Draw the Dice of every seed against time, and the names in a column beside them, best first.

    Args:
        path: of the file; replaced.
        marks: of all networks.
        kinds: colour of each kind of network.
        time_name: of the horizontal axis.
    """
    values, powers = [dice for mark in marks for dice in mark.dice], [math.log2(mark.time) for mark in marks]
    scale = _Scale(math.floor(min(powers) - 0.1), math.ceil(max(powers) + 0.1), min(values), max(values))
    parts = [*_axes(scale, time_name), *_legend(kinds)]
    ranked = sorted(marks, key=lambda mark: -mark.mean)
    first_y = (TOP + HEIGHT - BOTTOM - LINE * (len(ranked) - 1)) / 2
    for rank, mark in enumerate(ranked):
        parts += _drawn(mark, scale, first_y + LINE * rank)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="13">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n",
        encoding="utf-8",
    )


def _drawn(mark: Mark, scale: _Scale, name_y: float) -> list[str]:
    """Return a point for each seed, the line that joins them, and one that leads to the name."""
    x, heights = scale.x(mark.time), [scale.y(dice) for dice in mark.dice]
    return [
        f'<path d="M{x + 6:.1f} {scale.y(mark.mean):.1f}L{NAMES - 6} {name_y:.1f}" stroke="#ccc"/>',
        f'<path d="M{x:.1f} {min(heights):.1f}V{max(heights):.1f}" stroke="{mark.colour}" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{mark.colour}" stroke="white"/>' for y in heights),
        _text(NAMES, name_y + 4, f"{mark.name}, {mark.mean:.3f}", f' fill="{mark.colour}"'),
    ]


def _axes(scale: _Scale, time_name: str) -> list[str]:
    """Return axes, of time and of Dice from the lowest to the highest, with a few numbers."""
    floor = HEIGHT - BOTTOM
    times = [2.0**power for power in range(scale.shortest, scale.longest + 1)]
    steps = [scale.low + (scale.high - scale.low) * tick / TICKS for tick in range(TICKS + 1)]
    return [
        f'<path d="M{LEFT} {TOP}V{floor}H{AXIS_END}" fill="none" stroke="#888"/>',
        *(_text(scale.x(time), floor + 18, f"{time:g}", MIDDLE) for time in times),
        *(_text(LEFT - 8, scale.y(dice) + 4, f"{dice:.3f}", END) for dice in steps),
        _text((LEFT + AXIS_END) / 2, HEIGHT - 12, time_name, MIDDLE),
        _text(14, TOP - 14, "Dice of cases not seen, a point for each seed; with the name the mean"),
    ]


def _legend(kinds: Mapping[str, str]) -> list[str]:
    parts, x = [], 14
    for kind, colour in kinds.items():
        parts.append(f'<circle cx="{x + 5}" cy="17" r="5" fill="{colour}"/>{_text(x + 15, 21, kind)}')
        x += 40 + 7 * len(kind)
    return parts


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>'
