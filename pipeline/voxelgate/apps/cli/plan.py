"""Plan a bundle."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from voxelgate.apps.cli.options import DataRoot, ManifestArgument
from voxelgate.apps.cli.tables import print_facts
from voxelgate.apps.cli.terminal import console, progress_bar
from voxelgate.bundle.shipped import find_bundle
from voxelgate.datasets.manifest import load_manifest
from voxelgate.datasets.page import facts_tables
from voxelgate.training.planning import Device, Plan, read_overrides
from voxelgate.training.planning.explain import explain

app = typer.Typer(add_completion=False)


@app.command()
def run(
    manifest: ManifestArgument,
    out: Annotated[Path, typer.Option(help="Bundle folder to make.")],
    data_root: DataRoot = None,
    minutes: Annotated[float, typer.Option(min=1, help="By the clock, that the training of one fold shall take.")] = 60,
    device: Annotated[Device | None, typer.Option(help="Where.", show_default="a GPU if there is one")] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.5, help="GB for training.", show_default="4, or what the GPU has free")
    ] = None,
    adopted: Annotated[
        Path | None,
        typer.Option(
            "--from",
            parser=find_bundle,
            metavar="bundle",
            help="Imported nnU-Net bundle to go on from: its network and preparation are taken.",
            show_default=False,
        ),
    ] = None,
    override: Annotated[
        Path | None, typer.Option(help="JSON file of values that count instead.", show_default=False)
    ] = None,
) -> None:
    """Make an untrained bundle whose numbers fit a data set and a budget, and give the reason of each."""
    overrides = None if override is None else read_overrides(override)
    load_manifest(manifest, data_root)
    from voxelgate.training.planning.make_bundle import budget_here, make_bundle

    budget = budget_here(minutes, device, memory)
    with progress_bar("measuring cases") as progress:
        made = make_bundle(
            manifest, out, budget, data_root=data_root, overrides=overrides, adopted=adopted, progress=progress
        )
    for facts in facts_tables(made.survey):
        print_facts(facts)
    _print_plan(made.plan)
    root = "" if data_root is None and made.manifest == manifest else f" --data-root {data_root or manifest.parent}"
    fold = "" if made.survey.manifest.folds else " --fold -1"
    trained = f"{root}{fold} --out {out}_trained"
    console.print(
        f"{out}: bundle written; train it with `voxelgate train {out} {made.manifest}{trained}`",
        soft_wrap=True,
    )


def _print_plan(made: Plan) -> None:
    """Print the choices of a plan and their reasons."""
    table = Table("choice", "value", "reason", title=made.name, box=box.SIMPLE_HEAD)
    for row in explain(made):
        table.add_row(row.name, row.value, row.reason)
    console.print(table)
