"""Make a manifest."""

from pathlib import Path
from typing import Annotated

import typer

from voxelgate.apps.cli.options import Overwrite
from voxelgate.apps.cli.terminal import console, progress_bar
from voxelgate.datasets.build_manifest import build_manifest, write_manifest

app = typer.Typer(add_completion=False)


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="Folder with images/ and labels/, or pairs of files.")],
    out: Annotated[Path, typer.Option(help="Manifest to write.", show_default="FOLDER/manifest.json")] = Path(),
    name: Annotated[str, typer.Option(help="Name of the data set.", show_default="the folder's")] = "",
    modality: Annotated[str, typer.Option(help="CT, MRI, or PICTURE for PNG, TIFF and JPEG.")] = "CT",
    licence: Annotated[str, typer.Option(help="Licence of the data.")] = "not stated",
    labels: Annotated[
        str, typer.Option(help="Names of label 1, 2, ..., separated by commas.", show_default=False)
    ] = "",
    folds: Annotated[int, typer.Option(min=2, help="Cross-validation folds.")] = 5,
    overwrite: Overwrite = False,
) -> None:
    """Make a manifest from a folder of images and labels, and check every file."""
    names = [name.strip() for name in labels.split(",")] if labels else []
    table = {str(value): text for value, text in enumerate(("background", *names))} if names else None
    with progress_bar("checking") as progress:
        manifest = build_manifest(
            folder,
            name=name or folder.resolve().name,
            modality=modality.upper(),
            licence=licence,
            folds=folds,
            labels=table,
            progress=progress,
        )
    path = folder / "manifest.json" if out == Path() else out
    write_manifest(manifest, path, overwrite=overwrite)
    console.print(f"{path}: {len(manifest.cases)} cases, labels {', '.join(manifest.labels.names)}")
