"""Lines and dots on two axes, as a template draws them in SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

NAME_PX = 13.0
"""Least distance between the names at the ends of lines."""

LEAST_MARK_PX = 40.0
"""About the least distance between marks of an axis upwards."""

MOST_NAMES = 12
"""Lines that are named at their ends; of more, a table beside the chart tells the names."""

ROUND_STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class ChartLine:
    """A line of a chart.

    Args:
        name: at its end; empty if it has none.
        kind: class of the style sheet.
        points: from left to right.
    """

    name: str
    kind: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class LineChart:
    """Lines on axes whose ends are given; what is beyond them is not drawn.

    Args:
        lines: later ones lie above earlier ones.
        x_span: ends of the axis to the right.
        y_span: ends of the axis upwards.
        x_name: what the axis to the right counts.
        height: of all, in units of which it is `width` wide.
        width: of all.
        margins: left, right, upper and lower room around the axes.
    """

    lines: tuple[ChartLine, ...]
    x_span: Point
    y_span: Point
    x_name: str
    height: float = 260
    width: float = 640
    margins: tuple[float, float, float, float] = (48, 16, 10, 34)

    @property
    def left(self) -> float:
        """Return where the axes begin."""
        return self.margins[0]

    @property
    def right(self) -> float:
        """Return where the axis to the right ends."""
        return self.width - self.margins[1]

    @property
    def top(self) -> float:
        """Return where the axis upwards ends."""
        return self.margins[2]

    @property
    def bottom(self) -> float:
        """Return where the axis upwards begins."""
        return self.height - self.margins[3]

    def x(self, value: float) -> float:
        """Return where a value stands on the axis to the right."""
        low, high = self.x_span
        return round(self.left + (self.right - self.left) * (value - low) / ((high - low) or 1.0), 1)

    def y(self, value: float) -> float:
        """Return where a value stands on the axis upwards."""
        low, high = self.y_span
        return round(self.bottom - (self.bottom - self.top) * (value - low) / ((high - low) or 1.0), 1)

    def path(self, line: ChartLine) -> str:
        """Return the data of a line's path."""
        return "M" + "L".join(f"{self.x(x):g} {self.y(y):g}" for x, y in line.points) if line.points else ""

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Return marks of the axis to the right: where, and what they say."""
        return [(self.x(value), f"{value:,.10g}") for value in round_values(self.x_span, 6) if value.is_integer()]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Return marks of the axis upwards: where, and what they say."""
        return [(self.y(value), text) for value, text in self._y_marks]

    @property
    def _y_marks(self) -> list[tuple[float, str]]:
        room = (self.bottom - self.top) / LEAST_MARK_PX
        return [(value, f"{value:,.10g}") for value in round_values(self.y_span, max(2, min(5, int(room))))]

    @property
    def x_ticks_alike(self) -> list[tuple[float, str]]:
        """Return marks of the axis to the right where both axes count the same: the marks of the other."""
        return [(self.x(value), text) for value, text in self._y_marks]

    @property
    def names(self) -> list[tuple[ChartLine, float]]:
        """Return the lines that are named at their ends, and where their names stand so that each can be read."""
        named = [line for line in self.lines if line.name and line.points]
        if len(named) > MOST_NAMES:
            return []
        return list(spread([(line, self.y(line.points[-1][1])) for line in named], self.top, self.bottom))


def spread(wanted: Sequence[tuple[ChartLine, float]], top: float, bottom: float) -> list[tuple[ChartLine, float]]:
    """Move names apart, the upper ones up and the lower ones down, within the chart where there is room."""
    placed: list[tuple[ChartLine, float]] = []
    for line, at in sorted(wanted, key=lambda one: one[1]):
        placed.append((line, max(at, top, placed[-1][1] + NAME_PX if placed else top)))
    below = bottom
    for number in reversed(range(len(placed))):
        line, at = placed[number]
        placed[number] = (line, min(at, below))
        below = placed[number][1] - NAME_PX
    return placed


def round_values(span: Point, count: int) -> list[float]:
    """Return about so many round numbers within a span.

    >>> round_values((0.0, 1.0), 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    low, high = span
    if not low < high:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in ROUND_STEPS if power * one >= 0.999 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def thinned_out(points: Sequence[Point], most: int) -> tuple[Point, ...]:
    """Return as many points at most, each the mean of neighbours."""
    group = -(-len(points) // most) or 1
    groups = [points[start : start + group] for start in range(0, len(points), group)]
    return tuple((sum(x for x, _ in one) / len(one), sum(y for _, y in one) / len(one)) for one in groups)


def smoothed(points: Sequence[Point], reach: float) -> tuple[Point, ...]:
    """Return a line that follows points with a lag of so many of them, fair to the first ones too."""
    keep = reach / (1 + reach)
    value, weight, line = 0.0, 0.0, []
    for x, y in points:
        value, weight = keep * value + (1 - keep) * y, keep * weight + (1 - keep)
        line.append((x, value / weight))
    return tuple(line)
