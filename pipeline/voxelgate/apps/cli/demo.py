"""Show everything on a synthetic cohort."""

from pathlib import Path
from typing import Annotated

import typer

from voxelgate.apps.cli.options import Overwrite
from voxelgate.apps.cli.tables import print_scores
from voxelgate.apps.cli.terminal import console
from voxelgate.apps.demo.leavings import earlier_demo

app = typer.Typer(add_completion=False)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("out"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of cohort and training.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make a synthetic CT cohort, train a small bundle on it, segment held-out volumes, and show them."""
    earlier_demo(out, overwrite=overwrite)
    from voxelgate.apps.demo.run import run_demo

    result = run_demo(out, seed=seed, say=console.print, overwrite=overwrite)
    print_scores(list(result.scores), "held-out volumes")
    console.print(f"Mean Dice {result.mean_dice:.3f}. Open {result.page} in a browser.\n\nWith your own data:")
    for command in result.next_commands:
        console.print(f"  {command.line}    # {command.purpose}", soft_wrap=True)
