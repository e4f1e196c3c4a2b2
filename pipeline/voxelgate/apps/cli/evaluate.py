"""Measure label maps against references."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from voxelgate.apps.cli.options import DataRoot, Overwrite, refuse_given
from voxelgate.apps.cli.tables import print_scores
from voxelgate.apps.cli.terminal import progress_bar
from voxelgate.bundle.checksums import verify
from voxelgate.bundle.metadata import Metadata, is_bundle
from voxelgate.bundle.shipped import find_bundle, shipped_bundles
from voxelgate.datasets.manifest import load_manifest
from voxelgate.evaluation.pairs import pair_files
from voxelgate.evaluation.scores import evaluate_pairs
from voxelgate.evaluation.table import write_csv
from voxelgate.segmentation.output_names import is_attention_map

app = typer.Typer(add_completion=False)


def _prediction(text: str) -> Path:
    """Return what a text names: a shipped bundle, or any file or folder."""
    return find_bundle(text) if text in shipped_bundles() else Path(text)


@app.command()
def run(
    context: typer.Context,
    prediction: Annotated[
        Path,
        typer.Argument(
            parser=_prediction, metavar="prediction", help="Label map, folder of label maps, or a trained bundle."
        ),
    ],
    reference: Annotated[Path, typer.Argument(help="Reference label map or folder; for a bundle, a manifest.")],
    fold: Annotated[int, typer.Option(min=-1, help="For a bundle: the fold to evaluate.")] = 0,
    data_root: DataRoot = None,
    subjects: Annotated[
        Path | None, typer.Option(help="Manifest that says whose each case is; means are then by subject.")
    ] = None,
    labels_from: Annotated[
        Path | None,
        typer.Option(parser=find_bundle, metavar="bundle", help="Bundle that names the labels.", show_default=False),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Table to write, a row for each case and label.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Cases at a time.")] = 2,
    overwrite: Overwrite = False,
) -> None:
    """Measure label maps against references: Dice, IoU, HD95, ASSD, MSSD, RAVD, volumes."""
    if is_bundle(prediction):
        refuse_given(context, ["subjects", "labels_from", "workers"], "is for label maps, and this is a bundle")
        verify(prediction)
        load_manifest(reference, data_root)
        from voxelgate.training.train import evaluate_fold

        with tempfile.TemporaryDirectory() as scratch:
            scores = evaluate_fold(prediction, reference, Path(scratch), data_root=data_root, fold=fold)
        subjects = reference
    else:
        refuse_given(context, ["fold", "data_root"], "is for a bundle, and these are label maps")
        table = None if labels_from is None else Metadata.read(labels_from).labels
        pairs = pair_files(prediction, reference, is_attention_map)
        with progress_bar("measuring") as progress:
            found = evaluate_pairs(pairs, table, workers=workers, progress=progress)
            scores = [row for rows in found for row in rows]
    if csv is not None:
        write_csv(scores, csv, overwrite=overwrite)
    subject_of = {} if subjects is None else {case.case_id: case.subject for case in load_manifest(subjects).all_cases}
    cases = len({row.case_id for row in scores})
    print_scores(scores, f"{cases} case{'' if cases == 1 else 's'}", subject_of)
