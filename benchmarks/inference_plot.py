"""Bars of seconds by stage, as an SVG file."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

COLOURS = ("#7f7f7f", "#bcbd22", "#1f77b4", "#ff7f0e", "#2ca02c")
LEFT, WIDTH, BAR, STEP, TOP = 210, 560, 18, 28, 40
"""Pixels: room for names, length of the longest bar, thickness and distance of bars, room for the legend."""


def draw(path: Path, stages: Sequence[str], seconds: Mapping[str, Sequence[float]]) -> None:
    """Draw one stacked bar for each name.

    Args:
        path: of the file; replaced.
        stages: names of the parts of a bar, at most as many as `COLOURS`.
        seconds: of each stage, by name of the bar.
    """
    scale = WIDTH / max(sum(parts) for parts in seconds.values())
    height = TOP + STEP * len(seconds) + 4
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 70}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, (stage, colour) in enumerate(zip(stages, COLOURS, strict=True)):
        x = LEFT + 110 * index
        lines.append(f'<rect x="{x}" y="10" width="12" height="12" fill="{colour}"/>{_text(x + 17, 21, stage)}')
    for index, (name, parts) in enumerate(seconds.items()):
        lines += _bar(TOP + STEP * index, name, [part * scale for part in parts], sum(parts))
    path.write_text("\n".join([*lines, "</svg>"]) + "\n", encoding="utf-8")


def _bar(y: int, name: str, widths: Sequence[float], total_s: float) -> list[str]:
    lines, x = [_text(LEFT - 8, y + 14, name, ' text-anchor="end"')], float(LEFT)
    for width, colour in zip(widths, COLOURS, strict=True):
        lines.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')
        x += width
    return [*lines, _text(x + 6, y + 14, f"{total_s:.1f} s")]


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}"{more}>{escape(text)}</text>'
