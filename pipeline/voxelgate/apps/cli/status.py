"""Say how far a batch is."""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from voxelgate.apps.cli.options import AsJson
from voxelgate.apps.cli.terminal import console, write_json
from voxelgate.core.verdict import Verdict
from voxelgate.segmentation.batch.case_table import write_tables
from voxelgate.segmentation.batch.status import Status, status

app = typer.Typer(add_completion=False)


@app.command()
def run(
    out: Annotated[Path, typer.Argument(help="Folder of the results.", show_default=False)],
    has_tables: Annotated[
        bool, typer.Option("--tables", help="Write cases.csv and inputs.csv as of now; a run writes them at its end.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say how far `segment` is with a folder, while it runs or after it ended."""
    found = status(out)
    if has_tables:
        write_tables(out)
    if as_json:
        write_json(asdict(found))
    else:
        _print_status(found)


def _print_status(found: Status) -> None:
    """Print how far a run is."""
    console.print("A run works in this folder." if found.is_running else "No run works in this folder.")
    console.print(", ".join(f"{count} {state}" for state, count in found.counts.items() if count) or "no cases")
    verdicts = ", ".join(f"{count} {Verdict(verdict).in_words}" for verdict, count in found.verdicts.items() if count)
    if verdicts:
        console.print(f"Verdicts: {verdicts}")
    if found.ended_per_hour:
        left = "" if found.left_s is None else f", about {timedelta(seconds=round(found.left_s))} left"
        console.print(f"{found.ended_per_hour:g} cases an hour{left}")
    for case in found.running:
        line = f"{case.case_id}: for {case.elapsed_s:.0f} s on {case.worker}, attempt {case.attempt}"
        console.print(line, soft_wrap=True)
    for bad in found.bad:
        console.print(f"{bad.case_id}: {bad.status}: {bad.reason}", soft_wrap=True)
