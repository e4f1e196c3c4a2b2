"""Lines of Dice against minutes, which double from mark to mark, as an SVG file."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

COLOURS = ("#1f4e79", "#c55a11", "#548235")
WIDTH, HEIGHT, MARGIN = 520, 320, 60
"""Pixels of the plot, and of the room for its axes."""

Point = tuple[float, float]
"""Minutes and Dice."""


def draw(path: Path, title: str, lines: Mapping[str, Sequence[Point]]) -> None:
    """Draw one line for each name, with its values.

    Args:
        path: of the file; replaced.
        title: above the plot.
        lines: points of each, at most as many lines as `COLOURS`.
    """
    points = [point for line in lines.values() for point in line]
    low, high = (math.log2(end(minutes for minutes, _ in points)) for end in (min, max))
    bottom = math.floor(min(dice for _, dice in points) * 50 - 0.5) / 50
    top = math.ceil(max(dice for _, dice in points) * 50 + 0.5) / 50

    def place(point: Point) -> Point:
        across = (math.log2(point[0]) - low) / ((high - low) or 1.0)
        up = (point[1] - bottom) / (top - bottom)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    drawn = [
        _line(name, line, [place(point) for point in line], colour)
        for (name, line), colour in zip(lines.items(), COLOURS, strict=False)
    ]
    names = "" if len(lines) == 1 else "".join(map(_legend, enumerate(zip(lines, COLOURS, strict=False))))
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{WIDTH / 2}" y="24" text-anchor="middle">{escape(title)}</text>{names}'
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#888"/>'
        f'<text x="{MARGIN - 8}" y="{HEIGHT - MARGIN}" text-anchor="end">{bottom:.2f}</text>'
        f'<text x="{MARGIN - 8}" y="{MARGIN + 5}" text-anchor="end">{top:.2f}</text>{"".join(drawn)}</svg>\n',
        encoding="utf-8",
    )


def _line(name: str, points: Sequence[Point], places: Sequence[Point], colour: str) -> str:
    marks = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(name)}</title></circle>'
        f'<text x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">{dice:.3f}</text>'
        f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle">{minutes:g}</text>'
        for (minutes, dice), (x, y) in zip(points, places, strict=True)
    ]
    ends = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{ends}" fill="none" stroke="{colour}" stroke-width="2"/>{"".join(marks)}'


def _legend(numbered: tuple[int, tuple[str, str]]) -> str:
    number, (name, colour) = numbered
    return f'<text x="{MARGIN + 10}" y="{MARGIN + 18 * number}" fill="{colour}">{escape(name)}</text>'
