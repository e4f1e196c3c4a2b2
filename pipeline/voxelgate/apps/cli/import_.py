"""Make a bundle of a model that somebody else trained."""

import re
from pathlib import Path
from typing import Annotated

import typer

from voxelgate.apps.cli.options import Overwrite, listed_names
from voxelgate.apps.cli.terminal import console
from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.label_codes import read_label_codes
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.imports.target import name_of_kept, refuse_taken
from voxelgate.bundle.shipped import folder_of_kept
from voxelgate.core.errors import UsageError
from voxelgate.images.file_facts import StoredOrder

app = typer.Typer(add_completion=False)

_FOLD = re.compile(r"\d+|all")


@app.command()
def run(
    source: Annotated[
        Path,
        typer.Argument(
            help="nnU-Net v2 folder or exported zip, TotalSegmentator's weights, MONAI bundle (folder or zip), or "
            "TorchScript file.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the bundle to make.", show_default="where bundles are kept")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the bundle.", show_default="after the source")] = "",
    configuration: Annotated[
        str,
        typer.Option(
            help="Configuration, such as 3d_fullres; several, separated by commas, are an ensemble.",
            show_default="the only one",
        ),
    ] = "",
    folds: Annotated[
        str,
        typer.Option(help="Folds that are averaged, such as 0,1; all is fold_all.", show_default="those there"),
    ] = "",
    checkpoint: Annotated[str, typer.Option(help="Which checkpoint of each fold: final or best.")] = "final",
    task: Annotated[
        str, typer.Option(help="Task of TotalSegmentator, where there are several.", show_default="the only one")
    ] = "",
    postprocessing: Annotated[
        bool, typer.Option("--postprocessing", help="Take over the postprocessing that nnU-Net found to help.")
    ] = False,
    dicom_order: Annotated[
        StoredOrder,
        typer.Option(help="Stored order of the images that the model was trained on.", case_sensitive=False),
    ] = StoredOrder.LAS,
    faithful: Annotated[
        bool, typer.Option("--faithful", help="Run a MONAI bundle's own chain, and only check its result.")
    ] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Copy the Python files of a MONAI bundle, which run with it.")
    ] = False,
    labels: Annotated[
        str,
        typer.Option(help="Name of each label value of a MONAI bundle, as 1=NCR,2=ED.", show_default="its own"),
    ] = "",
    codes: Annotated[
        Path | None,
        typer.Option(help="Codes of labels whose names have none (JSON or CSV).", show_default="by their names"),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Licence of the model, where its files state none.", show_default="not stated")
    ] = "",
    overwrite: Overwrite = False,
) -> None:
    """Make a bundle of a model of nnU-Net, TotalSegmentator or MONAI's model zoo, or of a TorchScript file."""
    options = ImportOptions(
        name=name,
        configurations=_parts_of(configuration),
        folds=_named_folds(folds),
        checkpoint=checkpoint,
        task=task,
        applies_postprocessing=postprocessing,
        dicom_order=dicom_order,
        is_faithful=faithful,
        trusts_code=trust_code,
        label_values=_label_values(labels),
        licence=licence.strip(),
        codes={} if codes is None else read_label_codes(codes),
    )
    with opened_source(source) as opened:
        options.refuse_others(opened.kind)
        if out is not None or name:
            refuse_taken(out or folder_of_kept() / name_of_kept(name), opened, overwrite=overwrite)
        console.print(f"{opened.name}: {opened.kind}", soft_wrap=True)
        from voxelgate.bundle.imports.readers import read_model
        from voxelgate.bundle.imports.sealed import write_imported

        imported = read_model(opened, options)
        for sentence in imported.summary:
            console.print(sentence, soft_wrap=True)
        target = out or folder_of_kept() / imported.name
        fingerprint = write_imported(target, imported, opened, overwrite=overwrite)
    console.print(f"{target}: sealed, sha256 {fingerprint}", soft_wrap=True)


def _parts_of(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _named_folds(text: str) -> tuple[str, ...]:
    """Return the folds that a text names.

    Raises:
        UsageError: one is no number and not `all`, or stands there twice.
    """
    found = _parts_of(text)
    if len(set(found)) < len(found) or not all(map(_FOLD.fullmatch, found)):
        raise UsageError(f"--folds {text}: expected different numbers, such as 0,1, or all, which is fold_all.")
    return found


def _label_values(text: str) -> dict[int, str]:
    """Return the values and names of labels that a text lists.

    Raises:
        UsageError: a part of it is not VALUE=NAME.
    """
    found = {}
    for part in filter(None, listed_names(text, "--labels")):
        value, _, name = (side.strip() for side in part.partition("="))
        if not value.isdecimal() or int(value) < 1 or not name or int(value) in found:
            raise UsageError(f"--labels {part}: expected a different whole number above 0 and its name, as 1=NCR,2=ED.")
        found[int(value)] = name
    return found
