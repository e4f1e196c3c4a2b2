"""Make the page of an output folder."""

from pathlib import Path
from typing import Annotated

import typer

from voxelgate.apps.cli.options import DataRoot
from voxelgate.apps.cli.terminal import console, progress_bar
from voxelgate.core.errors import UsageError
from voxelgate.segmentation.batch.ledger import read_ledger

app = typer.Typer(add_completion=False)


@app.command()
def run(
    out: Annotated[Path, typer.Argument(help="Folder that `voxelgate segment` wrote into.", show_default=False)],
    reference: Annotated[
        Path | None,
        typer.Option(help="True labels to compare with: folder, or the manifest.", show_default="none"),
    ] = None,
    data_root: DataRoot = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Put the pictures into the page too, to send it or keep it.")
    ] = False,
) -> None:
    """Make a page, report.html with report_files beside it, that shows every case of an output folder."""
    if reference is None and data_root is not None:
        raise UsageError("--data-root is for a manifest; name one with --reference, or leave it out.")
    read_ledger(out, is_strict=False)
    from voxelgate.segmentation.page import write_page

    with progress_bar("comparing with the true labels", 0 if reference is None else None) as progress:
        page = write_page(out, reference, data_root=data_root, single_file=single_file, progress=progress)
    console.print(f"{page}: report written; open it in a browser", soft_wrap=True)
