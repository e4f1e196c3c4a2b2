"""Say what DICOM series and data sets hold."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from voxelgate.apps.cli.options import Allowed, AsJson, DataRoot, choices
from voxelgate.apps.cli.tables import print_facts
from voxelgate.apps.cli.terminal import console, progress_bar, write_json
from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.findings import Allow
from voxelgate.datasets.manifest import is_manifest, load_manifest
from voxelgate.dicom.read.dicom_files import list_files

if TYPE_CHECKING:
    from voxelgate.dicom.inspect import InspectedSeries

SERIES_COLUMNS = ("series", "number", "description", "UID", "size", "spacing mm", "verdict")

SHOWN_OF_UID = 10
"""Characters at the end of a UID that tell it from others on the screen, and to `segment --series`."""


app = typer.Typer(add_completion=False)


@app.command()
def run(
    inputs: Annotated[
        list[Path], typer.Argument(help="Folder, zip, DICOMDIR or DICOM file; or one manifest.", show_default=False)
    ],
    allow: Allowed = "",
    data_root: DataRoot = None,
    page: Annotated[
        Path | None, typer.Option(help="For a manifest: HTML page with plots to write.", show_default=False)
    ] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not decode the pixels of what can be used.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say of every DICOM series whether it can be used, and why not; of a manifest, what is in its data."""
    is_of_manifest = len(inputs) == 1 and is_manifest(inputs[0])
    if not is_of_manifest and (page is not None or data_root is not None):
        raise UsageError("--page and --data-root are for a manifest; name one, or leave them out.")
    if is_of_manifest and (as_json or headers_only or allow):
        raise UsageError("--json, --headers-only and --allow are for DICOM; leave them out for a manifest.")
    if is_of_manifest:
        _inspect_manifest(inputs[0], data_root, page)
        return
    mended = choices(Allow, allow, "--allow")
    for path in inputs:
        list_files(path)
    from voxelgate.dicom.inspect import inspect

    with progress_bar("reading headers") as headers, progress_bar("reading pixels") as pixels:
        found = inspect(inputs, allow=mended, headers_only=headers_only, progress=(headers, pixels))
    _refuse_nothing(found, inputs)
    if as_json:
        for one in found:
            write_json(one.summary())
    else:
        _print_series(found)
    if not any(one.series.is_usable for one in found):
        raise typer.Exit(1)


def _refuse_nothing(found: list["InspectedSeries"], inputs: list[Path]) -> None:
    """Refuse inputs without any series: an empty table would not say what was expected."""
    if not found:
        names = ", ".join(path.name or str(path) for path in inputs)
        raise InputError(
            f"{names}: holds no DICOM image; name DICOM, or a manifest; `segment` checks volume files itself."
        )


def _inspect_manifest(manifest: Path, data_root: Path | None, page: Path | None) -> None:
    loaded = load_manifest(manifest, data_root)
    from voxelgate.datasets.page import facts_tables, write_facts_page
    from voxelgate.datasets.survey import survey

    with progress_bar("measuring cases") as progress:
        found = survey(loaded, progress=progress)
    for facts in facts_tables(found):
        print_facts(facts)
    if page is not None:
        write_facts_page(found, page)


def _print_series(found: list["InspectedSeries"]) -> None:
    """Print a table of DICOM series, and where each lies and what was found about it."""
    table = Table(*SERIES_COLUMNS, box=box.SIMPLE_HEAD)
    for column in table.columns:
        column.no_wrap = column.header != "description"
    for one in found:
        facts = one.summary()
        shape, spacing = facts["shape"] or (), facts["spacing_mm"] or ()
        table.add_row(
            facts["series_id"],
            "" if one.series.number is None else str(one.series.number),
            one.series.description,
            _shown_uid(one.series.series_uids),
            " x ".join(map(str, shape)) or f"{facts['images']} image{'s' * (facts['images'] != 1)}",
            " x ".join(f"{value:.2f}" for value in spacing),
            Text("usable", "green") if one.series.is_usable else Text("rejected", "red"),
        )
    console.print(table)
    for one in found:
        console.print(f"{one.series.series_id}: {one.series.place}", soft_wrap=True)
        for finding in one.series.findings:
            console.print(f"{one.series.series_id}: {finding.severity}: {finding}", soft_wrap=True)
    console.print(f"{sum(one.series.is_usable for one in found)} of {len(found)} series can be used")


def _shown_uid(uids: tuple[str, ...]) -> str:
    """Return the end of a UID, from a dot on if there is one."""
    if len(uids) != 1:
        return f"{len(uids)} UIDs" if uids else ""
    end = uids[0][-SHOWN_OF_UID:]
    return uids[0] if end == uids[0] else f"...{end[max(end.find('.'), 0) :]}"
