"""Train a bundle, on one fold or on several."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxelgate.apps.cli.options import BundleArgument, DataRoot, ManifestArgument, Overwrite, Settings, refuse_given
from voxelgate.apps.cli.tables import print_scores
from voxelgate.apps.cli.terminal import console, progress_bar
from voxelgate.bundle.metadata import Metadata
from voxelgate.bundle.shipped import find_own_bundle
from voxelgate.core.errors import UsageError
from voxelgate.core.files import refuse_existing
from voxelgate.core.workers import engine_named, executor_named
from voxelgate.datasets.manifest import load_manifest
from voxelgate.evaluation.scores import LabelScores
from voxelgate.evaluation.table import write_csv

if TYPE_CHECKING:
    from voxelgate.training.train import TrainingJob

app = typer.Typer(add_completion=False)


@app.command()
def run(
    context: typer.Context,
    bundle: BundleArgument,
    manifest: ManifestArgument,
    out: Annotated[Path, typer.Option(help="Folder of the trained bundle, made as a copy of BUNDLE.")],
    data_root: DataRoot = None,
    fold: Annotated[int, typer.Option(min=-1, help="Fold that validates; -1 trains on all cases.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, show_default="the bundle's", help="Length of training.")] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Train so many folds, and put them together.", show_default=False)
    ] = None,
    final_minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --folds: of the training on all cases in the end; 0 takes the best fold instead.",
            show_default="as for a fold",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="With --folds: serial, processes:N, or dask:ADDRESS of a scheduler.")
    ] = "serial",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted training stopped.")] = False,
    csv: Annotated[
        Path | None, typer.Option(help="Table to write of the validation, a row for each case and label.")
    ] = None,
    overwrite: Overwrite = False,
    settings: Settings = None,
) -> None:
    """Train a bundle; its best weights by validation Dice are kept, with what helps on validation cases."""
    started_s = time.monotonic()
    if csv is not None:
        refuse_existing([csv], overwrite=overwrite)
    if folds is None:
        refuse_given(context, ["engine", "final_minutes"], "goes with --folds")
        if fold < 0:
            refuse_given(context, ["csv"], "needs a fold that validates")
    else:
        refuse_given(context, ["fold"], "goes without --folds")
    overrides = _settings_given(settings) | ({} if epochs is None else {"epochs": epochs})
    own = find_own_bundle(out)
    load_manifest(manifest, data_root)
    Metadata.read(bundle)
    engine_named(engine)
    from voxelgate.training.train import TRAINING, TrainingJob, evaluate_fold, train

    job = TrainingJob(bundle, manifest, own, data_root, fold, resume, overrides)
    if folds is not None:
        _train_folds(job, folds, engine, csv, final_minutes)
        return
    with progress_bar("checking cases") as progress:
        trained = train(job, progress=progress, started_s=started_s)
    if fold >= 0:
        title = f"fold {fold}, not seen in training but used to choose the best epoch: slightly optimistic"
        _show(evaluate_fold(trained, manifest, trained / TRAINING, data_root=data_root, fold=fold), title, job, csv)
    console.print(f"{trained / TRAINING / 'progress.html'}: how the training went, with pictures", soft_wrap=True)
    console.print(f"{trained}: trained bundle; use it with `voxelgate segment {trained} SCAN --out FOLDER`")


def _train_folds(job: "TrainingJob", folds: int, engine: str, csv: Path | None, final_minutes: float | None) -> None:
    from voxelgate.training.cross_validation import devices_here, train_folds
    from voxelgate.training.pages.folds_page import FOLDS_PAGE
    from voxelgate.training.train import TRAINING

    with progress_bar("checking cases") as progress, executor_named(engine) as executor:
        done = train_folds(
            job, folds, executor=executor, devices=devices_here(), progress=progress, final_minutes=final_minutes
        )
    title = f"{folds} folds, none seen in training, each used to choose its best epoch: slightly optimistic"
    _show(list(done.scores), title, job, csv)
    console.print(f"mean Dice of each fold: {', '.join(f'{dice:.3f}' for dice in done.mean_dice)}")
    console.print(f"{done.bundle / TRAINING / FOLDS_PAGE}: every case, from the worst to the best", soft_wrap=True)
    which = "the best fold" if final_minutes == 0 else "trained on all cases"
    console.print(
        f"{done.bundle}: {which}; use it with `voxelgate segment {done.bundle} SCAN --out FOLDER`, or all folds "
        "together with --ensemble",
        soft_wrap=True,
    )


def _show(scores: list[LabelScores], title: str, job: "TrainingJob", csv: Path | None) -> None:
    """Print scores and perhaps write them, for those in the bundle name no case."""
    subject_of = {case.case_id: case.subject for case in load_manifest(job.manifest, job.data_root).cases}
    print_scores(scores, title, subject_of)
    if csv is not None:
        write_csv(scores, csv, overwrite=True)


def _settings_given(settings: list[str] | None) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for setting in settings or []:
        name, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"--set {setting}: expected ID=VALUE, for example --set learning_rate=0.001")
        try:
            overrides[name] = json.loads(text)
        except ValueError:
            overrides[name] = text
    return overrides
