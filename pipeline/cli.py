"""The `voxelgate` command: arguments in, exit code out; the work is done elsewhere."""

import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.bundle import is_bundle, labels_of, open_bundle, seal, verify
from pipeline.case_report import CaseReport, CaseStatus
from pipeline.cases import find_cases, read_case
from pipeline.demo.run import run_demo
from pipeline.dicom.findings import Allow
from pipeline.dicom.inspect import Inspected, inspect
from pipeline.errors import OutputError, UsageError, VoxelgateError
from pipeline.evaluation import LabelScores, evaluate_pairs, pair_files, summarise, write_csv
from pipeline.inference.choice import calibrate_windows
from pipeline.inference.execution import Runtime
from pipeline.inference.runtime import keep_large_buffers
from pipeline.manifest import load
from pipeline.manifest_build import build, write
from pipeline.monai_io import as_image
from pipeline.networks import describe
from pipeline.planning import Plan, fingerprint, plan, write_bundle
from pipeline.results import Output
from pipeline.segment import Options, segment_all
from pipeline.training import TRAINING, Job, evaluate_fold, train

_Choice = TypeVar("_Choice", bound=StrEnum)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, check and run 3D medical image segmentation as MONAI bundles. For research; not a medical device.",
)
bundle_app = typer.Typer(no_args_is_help=True, help="Look after a bundle: verify, seal, describe.")
app.add_typer(bundle_app, name="bundle")

PIPED_WIDTH = 120
"""Columns of a table that goes to a file or another program."""

SERIES_COLUMNS = ("series", "modality", "images", "size", "spacing mm", "verdict", "reasons")
SCORE_COLUMNS = ("label", "Dice", "IoU", "HD95 mm", "ASSD mm", "MSSD mm", "RAVD %", "volume ml", "missed")

errors = Console(stderr=True, highlight=False)
console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)

BundleArgument = Annotated[Path, typer.Argument(help="Folder of a bundle.", show_default=False)]
ManifestArgument = Annotated[Path, typer.Argument(help="Manifest (JSON).", show_default=False)]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder the manifest's paths start from.", show_default="its own folder")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines for programs instead of text.")]
Allowed = Annotated[
    str, typer.Option(help="Faults of DICOM series to mend by resampling: gaps, tilt.", show_default="none")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the bundle's config, as ID=VALUE; may be repeated.")
]


@app.command("manifest")
def manifest_command(
    folder: Annotated[Path, typer.Argument(help="Folder with images/ and labels/, or pairs of files.")],
    out: Annotated[Path, typer.Option(help="Manifest to write.", show_default="FOLDER/manifest.json")] = Path(),
    name: Annotated[str, typer.Option(help="Name of the data set.", show_default="the folder's")] = "",
    modality: Annotated[str, typer.Option(help="CT or MRI.")] = "CT",
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
    with _progress("checking") as progress:
        document = build(
            folder,
            name=name or folder.resolve().name,
            modality=modality.upper(),
            licence=licence,
            folds=folds,
            labels=table,
            progress=progress,
        )
    path = folder / "manifest.json" if out == Path() else out
    write(document, path, overwrite=overwrite)
    console.print(f"{path}: {len(document['training'])} cases, labels {', '.join(document['labels'].values())}")


@app.command("plan")
def plan_command(
    manifest: ManifestArgument,
    out: Annotated[Path, typer.Option(help="Bundle folder to make.")],
    data_root: DataRoot = None,
    epochs: Annotated[int, typer.Option(min=1, help="Length of the training, in epochs of 100 steps.")] = 40,
) -> None:
    """Make an untrained bundle whose numbers fit a data set."""
    cases = load(manifest, data_root)
    data = {"name": cases.name, "licence": cases.licence, "reference": cases.reference}
    made = plan(fingerprint(cases), epochs=epochs, data=data)
    write_bundle(made, out)
    _print_plan(made)
    console.print(f"{out}: bundle written; train it with `voxelgate train {out} {manifest} --out {out}_trained`")


@app.command("train")
def train_command(
    bundle: BundleArgument,
    manifest: ManifestArgument,
    out: Annotated[Path, typer.Option(help="Folder of the trained bundle, made as a copy of BUNDLE.")],
    data_root: DataRoot = None,
    fold: Annotated[int, typer.Option(min=-1, help="Fold that validates; -1 trains on all cases.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, show_default="the bundle's", help="Length of training.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted training stopped.")] = False,
    settings: Settings = None,
) -> None:
    """Train a bundle; its best weights by validation Dice are kept."""
    overrides = _overrides(settings) | ({} if epochs is None else {"epochs": epochs})
    job = Job(bundle, manifest, out, data_root, fold, resume, overrides)
    with _progress("checking cases") as progress:
        trained = train(job, progress=progress)
    if fold >= 0:
        subject_of = {case.case_id: case.subject for case in load(manifest, data_root).cases}
        _print_scores(
            evaluate_fold(trained, manifest, trained / TRAINING, data_root=data_root, fold=fold),
            f"fold {fold}, not seen in training",
            subject_of,
        )
    console.print(f"{trained}: trained bundle; use it with `voxelgate segment {trained} SCAN --out FOLDER`")


@app.command("evaluate")
def evaluate_command(
    prediction: Annotated[Path, typer.Argument(help="Label map, folder of label maps, or a trained bundle.")],
    reference: Annotated[Path, typer.Argument(help="Reference label map or folder; for a bundle, a manifest.")],
    fold: Annotated[int, typer.Option(min=-1, help="For a bundle: the fold to evaluate.")] = 0,
    data_root: DataRoot = None,
    subjects: Annotated[
        Path | None, typer.Option(help="Manifest that says whose each case is; means are then by subject.")
    ] = None,
    labels_from: Annotated[Path | None, typer.Option(help="Bundle that names the labels.", show_default=False)] = None,
    csv: Annotated[Path | None, typer.Option(help="Table to write, a row for each case and label.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Cases at a time.")] = 2,
    overwrite: Overwrite = False,
) -> None:
    """Measure label maps against references: Dice, IoU, HD95, ASSD, MSSD, RAVD, volumes."""
    if is_bundle(prediction):
        verify(prediction)
        with tempfile.TemporaryDirectory() as scratch:
            scores = evaluate_fold(prediction, reference, Path(scratch), data_root=data_root, fold=fold)
        subjects = reference
    else:
        table = None if labels_from is None else labels_of(labels_from)
        pairs = pair_files(prediction, reference)
        with _progress("measuring") as progress:
            found = evaluate_pairs(pairs, table, workers=workers, progress=progress)
            scores = [row for rows in found for row in rows]
    if csv is not None:
        write_csv(scores, csv, overwrite=overwrite)
    subject_of = {} if subjects is None else {case.case_id: case.subject for case in load(subjects).all_cases}
    cases = len({row.case_id for row in scores})
    _print_scores(scores, f"{cases} case{'' if cases == 1 else 's'}", subject_of)


@app.command("inspect")
def inspect_command(
    inputs: Annotated[list[Path], typer.Argument(help="Folder, zip, DICOMDIR or DICOM file.", show_default=False)],
    allow: Allowed = "",
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not decode the pixels of what can be used.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say of every DICOM series whether it can be used, and why not."""
    with _progress("reading headers") as headers, _progress("reading pixels") as pixels:
        found = inspect(
            inputs, allow=_choices(Allow, allow, "--allow"), headers_only=headers_only, progress=(headers, pixels)
        )
    if as_json:
        sys.stdout.write(json.dumps([one.summary() for one in found], indent=2, ensure_ascii=False) + "\n")
    else:
        _print_series(found)
    if not any(one.series.is_usable for one in found):
        raise typer.Exit(1)


@app.command("segment")
def segment_command(
    bundle: BundleArgument,
    inputs: Annotated[
        list[Path], typer.Argument(help="Volumes, DICOM series, or folders or zips of them.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    outputs: Annotated[
        str, typer.Option(help="What to write of each case: nifti, seg, rtstruct, sr, separated by commas.")
    ] = "nifti",
    allow: Allowed = "",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="cuda if there is one")
    ] = None,
    runtime: Annotated[
        Runtime | None, typer.Option(help="How the network runs.", show_default="the fastest known here")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Segment volumes; each result lies on the very grid of its image."""
    options = Options(_choices(Output, outputs, "--outputs"), overwrite, _choices(Allow, allow, "--allow"), runtime)
    opened = open_bundle(bundle, device)
    with _progress("reading headers") as progress:
        cases = find_cases(inputs, rule=opened.series_rule, allow=options.allow, out_dir=out, progress=progress)
    reports = []
    with _progress("segmenting", len(cases)) as progress:
        for report in segment_all(cases, opened, out, options):
            reports.append(report)
            progress(len(reports), len(cases))
            if as_json:
                sys.stdout.write(report.to_json() + "\n")
            else:
                _print_findings(report)
    if not as_json:
        _print_reports(reports, out)
    if any(report.status is not CaseStatus.DONE for report in reports):
        raise typer.Exit(1)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("out"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of cohort and training.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make a synthetic CT cohort, train a small bundle on it, segment held-out volumes, and show them."""
    result = run_demo(out, seed=seed, say=lambda text: console.print(text, markup=False), overwrite=overwrite)
    _print_scores(list(result.scores), "held-out volumes")
    console.print(f"Mean Dice {result.mean_dice:.3f}. Open {result.page} in a browser.\n\nWith your own data:")
    for command in result.next_commands:
        console.print(f"  {command.line}    # {command.purpose}", markup=False, soft_wrap=True)


@bundle_app.command("verify")
def bundle_verify(bundle: BundleArgument) -> None:
    """Check that configs and weights are whole and fit each other."""
    opened = open_bundle(bundle)
    console.print(f"{opened.name} {opened.version}: whole, sha256 {opened.fingerprint}")


@bundle_app.command("seal")
def bundle_seal(bundle: BundleArgument) -> None:
    """Record the checksums of a bundle that was changed on purpose."""
    console.print(f"{bundle}: sealed, sha256 {seal(bundle)}")


@bundle_app.command("describe")
def bundle_describe(bundle: BundleArgument) -> None:
    """Print the network's sizes, parameters, operations and memory for one window."""
    opened = open_bundle(bundle)
    console.print(str(describe(opened.network, (1, 1, *opened.inferer.roi_size))), markup=False)  # type: ignore[attr-defined]  # any MONAI inferer may stand here


@bundle_app.command("calibrate")
def bundle_calibrate(
    bundle: BundleArgument,
    image: Annotated[Path, typer.Argument(help="A volume with the structures in its middle.", show_default=False)],
) -> None:
    """Measure every way to run the network here; `segment` then takes the fastest that gives equal labels."""
    opened = open_bundle(bundle)
    (case,) = find_cases([image], rule=opened.series_rule)
    scan = read_case(case, opened.labels)
    prepared = opened.preprocessing({"image": as_image(scan.voxels, scan.grid)})["image"][None].to(opened.device)
    measured = calibrate_windows(opened.network, opened.inferer, opened.fingerprint, prepared)
    console.print(str(measured), markup=False)


def main() -> None:
    """Run the command line; errors of the user's become one sentence and an exit code."""
    is_debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    _set_up_logging(is_debug=is_debug)
    keep_large_buffers()
    try:
        app(args=arguments)
    except VoxelgateError as error:
        _end(error, is_debug=is_debug)
    except OSError as error:
        _end(OutputError(f"{error.filename or 'a file'}: {error.strerror or error}"), is_debug=is_debug)


def _end(error: VoxelgateError, *, is_debug: bool) -> None:
    if is_debug:
        raise error
    errors.print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
    raise SystemExit(error.exit_code) from error


def _set_up_logging(*, is_debug: bool) -> None:
    logging.basicConfig(level=logging.DEBUG if is_debug else logging.INFO, format="%(message)s", force=True)
    if not is_debug:
        for name in ("ignite", "monai", "matplotlib", "PIL"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.simplefilter("ignore")


def _overrides(settings: list[str] | None) -> dict[str, Any]:
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


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def show(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of, visible=done < of)
            if done >= of:
                bar.stop()  # what follows, such as a training, shows its own

        yield show


def _choices(kind: type[_Choice], text: str, option: str) -> tuple[_Choice, ...]:
    """Return the members of a closed set that a text names, separated by commas, in the order of the set."""
    names = {name.strip().lower() for name in text.split(",") if name.strip()}
    if unknown := names - {member.value for member in kind}:
        raise UsageError(f"{option} {', '.join(sorted(unknown))}: expected some of {', '.join(kind)}")
    return tuple(member for member in kind if member.value in names)


def _print_findings(report: CaseReport) -> None:
    """Print why a case ended badly, or what should be looked at."""
    if report.status is not CaseStatus.DONE:
        line = f"{report.case_id}: {report.status}: {' '.join(report.findings)}"
        errors.print(line, markup=False, soft_wrap=True)
        return
    for finding in report.findings:
        errors.print(f"{report.case_id}: {finding}", markup=False, soft_wrap=True)


def _print_series(found: list[Inspected]) -> None:
    table = Table(*SERIES_COLUMNS, box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for one in found:
        facts = one.summary()
        shape, spacing = facts["shape"] or (), facts["spacing_mm"] or ()
        table.add_row(
            facts["series_id"],
            facts["modality"],
            str(facts["images"]),
            " x ".join(map(str, shape)),
            " x ".join(f"{value:.2f}" for value in spacing),
            "[green]usable[/]" if one.series.is_usable else "[red]refused[/]",
            ", ".join(finding.code for finding in one.series.findings),
        )
    console.print(table)
    for one in found:
        for finding in one.series.findings:
            console.print(f"{one.series.series_id}: {finding.severity}: {finding}", markup=False, soft_wrap=True)
    console.print(f"{sum(one.series.is_usable for one in found)} of {len(found)} series can be used")


def _print_plan(made: Plan) -> None:
    is_window = made.intensity.low_hu is not None
    table = Table("choice", "value", title=made.name)
    table.add_row("spacing", " x ".join(f"{s:g}" for s in made.spacing_mm) + " mm")
    table.add_row(
        "intensity", f"HU {made.intensity.low_hu:g} to {made.intensity.high_hu:g}" if is_window else "z-score"
    )
    table.add_row("patch", " x ".join(map(str, made.patch_vox)))
    table.add_row("channels", ", ".join(map(str, made.channels)))
    table.add_row("training", f"{made.training.epochs} epochs of {made.training.steps_per_epoch} steps")
    table.add_row("left/right flips", "yes" if made.augmentation.flip_sagittal else "no")
    console.print(table)


def _print_scores(scores: list[LabelScores], title: str, subject_of: Mapping[str, str] | None = None) -> None:
    summaries = summarise(scores, subject_of or None)
    if subject_of:
        title += f", means by subject of {len({subject_of[row.case_id] for row in scores})}"
    table = Table(*SCORE_COLUMNS, title=title, box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for row in summaries:
        values = {measure.value: statistic.mean for measure, statistic in row.statistics.items()}
        table.add_row(
            row.label,
            f"{values['dice']:.3f}",
            f"{values['iou']:.3f}",
            *(f"{values[name]:.2f}" for name in ("hd95_mm", "assd_mm", "mssd_mm")),
            f"{values['ravd_percent']:.3f}",
            f"{values['volume_ml']:.2f}",
            str(row.missed),
        )
    console.print(table)


def _print_reports(reports: list[CaseReport], out: Path) -> None:
    done = [report for report in reports if report.status is CaseStatus.DONE]
    table = Table(
        "case", *(f"{name} ml" for name in (done[0].volumes_ml if done else ())), "seconds", box=box.SIMPLE_HEAD
    )
    for report in done:
        volumes = (f"{value:.2f}" for value in report.volumes_ml.values())
        table.add_row(report.case_id, *volumes, f"{sum(report.seconds.values()):.1f}")
    if done:
        console.print(table)
    console.print(f"{len(done)} of {len(reports)} volumes segmented into {out}")
