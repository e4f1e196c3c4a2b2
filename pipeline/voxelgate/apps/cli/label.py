"""Start MONAI Label."""

from pathlib import Path
from typing import Annotated

import typer

from voxelgate.apps.label.serving import LOOPBACK, MOST_MIB, Serving, refuse_without_monai_label
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.shipped import find_bundle

app = typer.Typer(add_completion=False)


@app.command()
def run(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            parser=find_bundle,
            metavar="bundles",
            help="Names or folders of bundles with the same labels.",
            show_default=False,
        ),
    ],
    studies: Annotated[str, typer.Option(help="Folder of images, or the address of a DICOMweb server.")],
    work: Annotated[Path, typer.Option(help="Folder for versions of the models, logs and copies.")] = Path(
        "label-work"
    ),
    host: Annotated[str, typer.Option(help="Address to listen at; beyond this machine, annotators log in.")] = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Page of another server that may use this one; may be repeated.", show_default="none"),
    ] = None,
    most_mib: Annotated[int, typer.Option(min=1, help="Largest upload, also once it is unpacked.")] = MOST_MIB,
    login: Annotated[
        bool | None,
        typer.Option(
            "--login/--no-login",
            help="Ask for a name and the password in the work folder; without, all who reach it may do everything.",
            show_default="beyond this machine",
        ),
    ] = None,
) -> None:
    """Start MONAI Label: annotate with bundles in 3D Slicer or OHIF, and train them on what was annotated."""
    serving = Serving(tuple(bundles), studies, work, host, port, tuple(origin or ()), most_mib, login)
    for bundle in bundles:
        Metadata.read(bundle)
    refuse_without_monai_label()
    from voxelgate.apps.label.server import serve_label

    serve_label(serving)
