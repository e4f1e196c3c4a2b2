"""Make a manifest."""

import re
from pathlib import Path
from typing import Annotated

import typer

from voxelgate.apps.cli.options import Overwrite, listed_names
from voxelgate.apps.cli.terminal import console, progress_bar
from voxelgate.core.errors import UsageError
from voxelgate.core.files import make_folder, refuse_existing
from voxelgate.datasets.build_manifest import build_manifest, write_manifest
from voxelgate.datasets.manifest import Manifest
from voxelgate.datasets.notes import read_subjects
from voxelgate.images.passed_over import image_kinds_below, kinds_text

app = typer.Typer(add_completion=False)


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="Folder with images/ and labels/, pairs of files, or a dataset.json.")],
    out: Annotated[Path, typer.Option(help="Manifest to write.", show_default="FOLDER/manifest.json")] = Path(),
    name: Annotated[
        str, typer.Option(help="Name of the data set.", show_default="what dataset.json says, or the folder's")
    ] = "",
    modality: Annotated[
        str,
        typer.Option(help="CT, MRI, or PICTURE for PNG, TIFF and JPEG.", show_default="what dataset.json says, or CT"),
    ] = "",
    licence: Annotated[
        str, typer.Option(help="Licence of the data.", show_default="what dataset.json says, or not stated")
    ] = "",
    labels: Annotated[
        str,
        typer.Option(
            help="Names of label 1, 2, ..., or of values, such as 200=liver,210=spleen; separated by commas.",
            show_default="what labels.json says, or the values found",
        ),
    ] = "",
    subjects: Annotated[
        str,
        typer.Option(
            metavar="FILE|PATTERN",
            help="CSV or JSON of case and subject; or a pattern whose group is the subject, such as 'Image_([0-9]+)'.",
            show_default="what names and subjects.json tell",
        ),
    ] = "",
    ignore: Annotated[
        str, typer.Option(help="Values of voxels that nobody labelled, such as 255.", show_default=False)
    ] = "",
    folds: Annotated[
        int | None,
        typer.Option(min=1, help="Cross-validation folds; 1 for none.", show_default="5, or one for each subject"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a manifest from a folder of images and labels, and check every file."""
    path = (folder.parent if folder.is_file() else folder) / "manifest.json" if out == Path() else out
    table, ignored = names_by_value(labels) if labels else None, ignored_values(ignore)
    told = read_subjects(Path(subjects)) if subjects and Path(subjects).is_file() else subjects or None
    if folder.exists():
        make_folder(path.parent)
        refuse_existing([path], overwrite=overwrite)
    with progress_bar("checking") as progress:
        manifest = build_manifest(
            folder,
            name=name,
            modality=modality.upper(),
            licence=licence,
            folds=folds,
            labels=table,
            ignore=ignored,
            subjects=told,
            progress=progress,
        )
    write_manifest(manifest, path, overwrite=overwrite)
    console.print(f"{path}: {'; '.join(_understood(manifest))}", markup=False, soft_wrap=True)


def names_by_value(text: str) -> dict[str, str]:
    """Return the name of each value that `--labels` gives; 0 is the background unless it says otherwise.

    Raises:
        UsageError: some names have a value and others none, a value is given twice, or a quotation mark once.
    """
    names = listed_names(text, "--labels")
    pairs = [re.fullmatch(r"(\d+)\s*=\s*(.*)", name) for name in names]
    if not any(pairs):
        return {str(value): name for value, name in enumerate(("background", *names))}
    table: dict[str, str] = {}
    for name, pair in zip(names, pairs, strict=True):
        if pair is None or str(int(pair[1])) in table:
            wrong = "has no value from 0" if pair is None else "has a value that another name has"
            raise UsageError(f"--labels: {name!r} {wrong}; give each name one, such as 200=liver,210=spleen.")
        table[str(int(pair[1]))] = pair[2]
    return {"0": "background"} | table


def ignored_values(text: str) -> list[int]:
    """Return the values that `--ignore` gives.

    Raises:
        UsageError: not whole numbers separated by commas.
    """
    try:
        return [int(value) for value in text.split(",")] if text else []
    except ValueError as error:
        raise UsageError(f"--ignore {text}: expected whole numbers, such as 255 or 254,255.") from error


def _understood(manifest: Manifest) -> list[str]:
    """Return what was understood of a folder, in parts of a sentence."""
    cases, folds = len(manifest.cases), len(manifest.folds)
    count = f"{cases} case{'' if cases == 1 else 's'}" + (f" in {folds} folds" if folds else " without folds")
    if len(manifest.channel_names) > 1:
        count += f", {len(manifest.channel_names)} channels ({', '.join(manifest.channel_names)})"
    values, names = manifest.values, manifest.labels.names
    if values.values == tuple(range(len(names))):
        named = [f"labels {', '.join(names)}"]
    else:
        named = [f"labels {', '.join(f'{v} {name}' for v, name in zip(values.values, names, strict=True))}"]
        named.append(f"results will have the values 0 to {len(names) - 1} in this order")
    ignored = [f"voxels of {', '.join(map(str, values.ignored))} are ignored"] if values.ignored else []
    taken = {path for case in manifest.all_cases for path in case.files}
    are_series = any(case.is_dicom for case in manifest.all_cases)  # whose files the manifest does not name
    others = {} if are_series else image_kinds_below(manifest.data_root, taken)
    passed_over = [f"passed over: {kinds_text(others)}; convert those that are images to NIfTI"] if others else []
    return [count, *named, *ignored, *passed_over]
