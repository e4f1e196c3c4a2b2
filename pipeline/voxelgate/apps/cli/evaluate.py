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
from voxelgate.bundle.shipped import find_bundle, kept_bundles, shipped_bundles
from voxelgate.core.files import refuse_existing
from voxelgate.core.labels import LabelTable
from voxelgate.datasets.manifest import Manifest, Split, is_manifest, load_manifest, part_cases
from voxelgate.evaluation.pairs import LabelMapPair, pair_cases, pair_files
from voxelgate.evaluation.scores import LabelScores, evaluate_pairs
from voxelgate.evaluation.table import write_csv
from voxelgate.images.label_maps import LabelValues
from voxelgate.segmentation.output_names import is_no_label_map

app = typer.Typer(add_completion=False)


def _prediction(text: str) -> Path:
    """Return what a text names: a shipped bundle, or any file or folder."""
    return find_bundle(text) if text in shipped_bundles() | kept_bundles() else Path(text)


@app.command()
def run(
    context: typer.Context,
    prediction: Annotated[
        Path,
        typer.Argument(
            parser=_prediction, metavar="prediction", help="Label map, folder of label maps, or a trained bundle."
        ),
    ],
    reference: Annotated[
        Path, typer.Argument(help="Reference label map, folder of them, or a manifest; for a bundle, a manifest.")
    ],
    fold: Annotated[
        int | None,
        typer.Option(min=-1, help="With a manifest: the fold to evaluate.", show_default="0 of a bundle, else all"),
    ] = None,
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
    if csv is not None:
        refuse_existing([csv], overwrite=overwrite)
    if is_bundle(prediction):
        refuse_given(context, ["subjects", "labels_from", "workers"], "is for label maps, and this is a bundle")
        verify(prediction)
        load_manifest(reference, data_root)
        from voxelgate.training.train import evaluate_fold

        with tempfile.TemporaryDirectory() as scratch:
            scores = evaluate_fold(prediction, reference, Path(scratch), data_root=data_root, fold=fold or 0)
        subjects = reference
    elif is_manifest(reference):
        refuse_given(context, ["subjects", "labels_from"], "is said by the manifest")
        scores = _scores_by_manifest(prediction, load_manifest(reference, data_root), fold, workers)
        subjects = reference
    else:
        refuse_given(context, ["fold", "data_root"], "goes with a manifest, and these are label maps")
        table = None if labels_from is None else Metadata.read(labels_from).labels
        scores = _measured(pair_files(prediction, reference, is_no_label_map), table, workers)
    if csv is not None:
        write_csv(scores, csv, overwrite=overwrite)
    subject_of = {} if subjects is None else {case.case_id: case.subject for case in load_manifest(subjects).all_cases}
    cases = len({row.case_id for row in scores})
    print_scores(scores, f"{cases} case{'' if cases == 1 else 's'}", subject_of)


def _scores_by_manifest(prediction: Path, manifest: Manifest, fold: int | None, workers: int) -> list[LabelScores]:
    """Measure label maps against those of a manifest, which says what their values mean and which are ignored."""
    cases = manifest.all_cases if fold is None else part_cases(manifest, fold, Split.VALIDATION)
    references = {case.case_id: found for case in cases if (found := manifest.reference_of(case)) is not None}
    pairs = pair_cases(prediction, references, is_no_label_map)
    return _measured(pairs, manifest.labels, workers, manifest.values)


def _measured(
    pairs: list[LabelMapPair], table: LabelTable | None, workers: int, values: LabelValues | None = None
) -> list[LabelScores]:
    with progress_bar("measuring") as progress:
        found = evaluate_pairs(pairs, table, workers=workers, progress=progress, values=values)
        return [row for rows in found for row in rows]
