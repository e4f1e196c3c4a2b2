"""A data set as tables for the terminal, and as a page with plots that needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from voxelgate.core.errors import OutputError
from voxelgate.core.files import write_text
from voxelgate.datasets.survey import Fingerprint, Survey

SIDES = ("right to left", "back to front", "foot to head")

NAMES_PX, PLOT_PX, VALUES_PX, ROW_PX = 150, 420, 150, 26
"""Width of the names, of the bars and of the values of a plot, and height of a row."""


@dataclass(frozen=True)
class FactsTable:
    """A table: its title, the names of its columns, and rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class BoxPlotBar:
    """A row of a plot: from the least to the largest value, with a mark at the middle one."""

    name: str
    low: float
    middle: float
    high: float


def facts_tables(found: Survey) -> list[FactsTable]:
    """Return the tables of a data set: its sizes, its structures, its defects."""
    tables = [_sizes(found.fingerprint), _structures(found.fingerprint)]
    rows = tuple((defect.case_id, defect.found, defect.action) for defect in found.defects)
    return [*tables, FactsTable("defects", ("case", "found", "done"), rows)] if rows else tables


def write_facts_page(found: Survey, path: Path) -> None:
    """Write one HTML file with all tables and plots.

    Raises:
        OutputError: the file cannot be written.
    """
    parts = [_html(table) for table in facts_tables(found)]
    plots = [f"<h2>{escape(title)}</h2>{_svg(bars)}" for title, bars in _plots(found.fingerprint)]
    name = escape(found.fingerprint.name)
    style = "body{font:14px sans-serif;margin:2em}td,th{padding:2px 12px;text-align:left}svg{font:12px sans-serif}"
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{style}</style>'
    try:
        write_text(path, f"{page}<h1>{name}</h1>{''.join(parts + plots)}</html>\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def _sizes(facts: Fingerprint) -> FactsTable:
    columns = ("side", "median voxels", "median mm", "mm from", "mm to", "field of view mm from", "to", "structures")
    rows = tuple(
        (side, f"{shape:g}", f"{gap:g}", *(f"{v:g}" for v in gaps), *(f"{v:g}" for v in views), f"{box:g}")
        for side, shape, gap, gaps, views, box in zip(
            SIDES,
            facts.shape_vox,
            facts.spacing_mm,
            facts.spacing_range_mm,
            facts.extent_range_mm,
            facts.foreground_vox,
            strict=True,
        )
    )
    offset = f", stored as HU + {facts.hu_offset:g}" if facts.hu_offset else ""
    title = f"{facts.name}: {facts.cases} {facts.modality} cases of {facts.subjects} subjects{offset}"
    return FactsTable(f"{title}, body in {facts.body_share:.0%} of a volume", columns, rows)


def _structures(facts: Fingerprint) -> FactsTable:
    columns = ("structure", "cases", "ml from", "median", "to", "share", "pieces", "values 1 %", "50 %", "99 %")
    paired = {value for pair in facts.labels.side_pairs for value in pair}
    rows = tuple(
        (
            f"{one.name} (paired)" if value in paired else one.name,
            str(one.cases),
            *(f"{volume:.2f}" for volume in one.volume_ml),
            f"{one.foreground_share:.1%}",
            f"{one.components:g}",
            *_values(one.intensity),
        )
        for value, one in enumerate(facts.structures, start=1)
    )
    return FactsTable(f"structures, the largest {facts.imbalance:.1f} times the smallest", columns, rows)


def _values(intensity: tuple[tuple[float, ...], ...]) -> tuple[str, str, str]:
    """Return the first, the middle and the last percentile of every channel."""
    low, middle, high = (", ".join(f"{channel[at]:.0f}" for channel in intensity) for at in (0, 2, 4))
    return low, middle, high


def _plots(facts: Fingerprint) -> list[tuple[str, list[BoxPlotBar]]]:
    there = [one for one in facts.structures if one.cases]
    plots = [("volume, ml: least, median, largest", [BoxPlotBar(one.name, *one.volume_ml) for one in there])]
    for channel, name in enumerate(facts.channel_names):
        spreads = [(one.name, one.intensity[channel]) for one in there]
        title = f"values in {name}: 1 %, 50 %, 99 %"
        plots.append((title, [BoxPlotBar(label, values[0], values[2], values[4]) for label, values in spreads]))
    sides = zip(SIDES, facts.extent_range_mm, facts.shape_vox, facts.spacing_mm, strict=True)
    views = [BoxPlotBar(side, low, min(high, max(low, n * gap)), high) for side, (low, high), n, gap in sides]
    return [*plots, ("field of view, mm: least, median, largest", views)]


def _html(table: FactsTable) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<h2>{escape(table.title)}</h2><table><tr>{head}</tr>{body}</table>"


def _svg(bars: Sequence[BoxPlotBar]) -> str:
    low, high = min(bar.low for bar in bars), max(bar.high for bar in bars)
    scale = PLOT_PX / ((high - low) or 1.0)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{NAMES_PX + PLOT_PX + VALUES_PX}" '
        f'height="{ROW_PX * len(bars) + 4}">'
    ]
    for row, bar in enumerate(bars):
        y = ROW_PX * row
        start, mark, end = (NAMES_PX + scale * (value - low) for value in (bar.low, bar.middle, bar.high))
        lines += [
            f'<text x="{NAMES_PX - 8}" y="{y + 17}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect x="{start:.1f}" y="{y + 6}" width="{max(1.0, end - start):.1f}" height="14" fill="#86b6d6"/>',
            f'<rect x="{mark - 1.5:.1f}" y="{y + 3}" width="3" height="20" fill="#1f4e79"/>',
            f'<text x="{NAMES_PX + PLOT_PX + 8}" y="{y + 17}">{bar.low:g} | {bar.middle:g} | {bar.high:g}</text>',
        ]
    return "".join([*lines, "</svg>"])
