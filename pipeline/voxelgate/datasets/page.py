"""A data set as tables for the terminal, and as a page with plots that needs no network."""

from dataclasses import dataclass
from pathlib import Path

from voxelgate.core.errors import OutputError
from voxelgate.core.files import write_text
from voxelgate.core.geometry import triple
from voxelgate.core.page import page_style, page_templates, policy_hash
from voxelgate.datasets.survey import Fingerprint, Survey

SIDES = ("right to left", "back to front", "foot to head")

NAMES_PX, PLOT_PX, VALUES_PX, ROW_PX = 150, 420, 190, 26
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


@dataclass(frozen=True)
class BoxPlot:
    """Bars on one scale, from the least of all values to the largest."""

    title: str
    bars: tuple[BoxPlotBar, ...]

    def places_px(self, bar: BoxPlotBar) -> tuple[float, float, float]:
        """Return where a bar begins, has its mark, and ends."""
        low, high = min(one.low for one in self.bars), max(one.high for one in self.bars)
        scale = PLOT_PX / ((high - low) or 1.0)
        return scale * (bar.low - low), scale * (bar.middle - low), scale * (bar.high - low)


def facts_tables(found: Survey) -> list[FactsTable]:
    """Return the tables of a data set: its sizes, its structures, its defects."""
    tables = [_size_table(found.fingerprint), _structures(found.fingerprint)]
    rows = tuple((defect.case_id, defect.found, defect.action) for defect in found.defects)
    return [*tables, FactsTable("defects", ("case", "found", "done"), rows)] if rows else tables


def write_facts_page(found: Survey, path: Path) -> None:
    """Write one HTML file with all tables and plots.

    Raises:
        OutputError: the file cannot be written.
    """
    style = page_style("voxelgate.datasets", "facts.css")
    page = page_templates("voxelgate.datasets").get_template("facts.html.j2")
    text = page.render(
        name=found.fingerprint.name,
        tables=facts_tables(found),
        plots=_plots(found.fingerprint),
        names_px=NAMES_PX,
        plot_px=PLOT_PX,
        values_px=VALUES_PX,
        row_px=ROW_PX,
        style=style,
        style_hash=policy_hash(style),
    )
    try:
        write_text(path, text + "\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def _size_table(facts: Fingerprint) -> FactsTable:
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
    return triple(", ".join(f"{channel[at]:.0f}" for channel in intensity) for at in (0, 2, 4))


def _plots(facts: Fingerprint) -> list[BoxPlot]:
    there = [one for one in facts.structures if one.cases]
    volumes = tuple(BoxPlotBar(one.name, *one.volume_ml) for one in there)
    plots = [BoxPlot("volume, ml: least, median, largest", volumes)]
    for channel, name in enumerate(facts.channel_names):
        spreads = ((one.name, one.intensity[channel]) for one in there)
        bars = tuple(BoxPlotBar(label, values[0], values[2], values[4]) for label, values in spreads)
        plots.append(BoxPlot(f"values in {name}: 1 %, 50 %, 99 %", bars))
    sides = zip(SIDES, facts.extent_range_mm, facts.shape_vox, facts.spacing_mm, strict=True)
    views = tuple(BoxPlotBar(side, low, min(high, max(low, n * gap)), high) for side, (low, high), n, gap in sides)
    return [*plots, BoxPlot("field of view, mm: least, median, largest", views)]
