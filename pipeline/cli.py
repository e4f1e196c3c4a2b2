"""The `voxelgate` command: arguments in, exit code out; the work is done elsewhere."""

import json
import logging
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pipeline.batch.dispatch import Limits
from pipeline.batch.report import build as build_report
from pipeline.batch.segmentation import (
    DEFAULT_ENGINE,
    Means,
    attention_of,
    cases_in,
    fitted,
    segment_arrivals,
    segment_cases,
    setup_of,
)
from pipeline.batch.status import status_of
from pipeline.batch.watch import Patience
from pipeline.bundle import is_bundle, labels_of, open_bundle, seal, verify
from pipeline.bundle_export import export
from pipeline.bundle_gates import pass_gates
from pipeline.case_report import CaseReport, CaseStatus
from pipeline.cases import find_cases, is_manifest, read_case
from pipeline.demo.run import run_demo
from pipeline.dicom.findings import Allow
from pipeline.dicom.inspect import inspect
from pipeline.errors import OutputError, UsageError, VoxelgateError
from pipeline.evaluation import evaluate_pairs, pair_files, write_csv
from pipeline.inference.choice import calibrate_windows
from pipeline.inference.execution import Runtime
from pipeline.inference.exporting import Format
from pipeline.inference.runtime import keep_large_buffers
from pipeline.label_app.server import LOOPBACK, MOST_MIB, Serving, serve
from pipeline.manifest import load
from pipeline.manifest_build import build, write
from pipeline.monai_io import as_image
from pipeline.networks import describe
from pipeline.planning import Device, read_overrides, survey
from pipeline.planning.make import budget_here, make_bundle
from pipeline.planning.show import facts_tables, write_facts_page
from pipeline.results import Output
from pipeline.segment import Options
from pipeline.terminal import (
    console,
    errors,
    print_facts,
    print_findings,
    print_plan,
    print_reports,
    print_scores,
    print_series,
    print_status,
    progress_bar,
)
from pipeline.training import TRAINING, Job, evaluate_fold, train
from pipeline.training_folds import devices_here, executor_named, train_folds

_Choice = TypeVar("_Choice", bound=StrEnum)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, check and run 3D medical image segmentation as MONAI bundles. For research; not a medical device.",
)
bundle_app = typer.Typer(no_args_is_help=True, help="Look after a bundle: verify, seal, describe, export, calibrate.")
app.add_typer(bundle_app, name="bundle")


INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal, as shells have it."""


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


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        console.print(f"voxelgate {version('voxelgate')}")
        raise typer.Exit


@app.callback()
def voxelgate(
    is_version: Annotated[  # its callback does it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    is_debug: Annotated[  # `main` takes it out wherever it stands
        bool, typer.Option("--debug", help="Show tracebacks and what is logged.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command("manifest")
def manifest_command(
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
    minutes: Annotated[float, typer.Option(min=1, help="What the training of one fold may take here.")] = 60,
    device: Annotated[Device | None, typer.Option(help="Where.", show_default="a GPU if there is one")] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.5, help="GB for training.", show_default="4, or what the GPU has free")
    ] = None,
    override: Annotated[
        Path | None, typer.Option(help="JSON file of values that count instead.", show_default=False)
    ] = None,
) -> None:
    """Make an untrained bundle whose numbers fit a data set and a budget, and give the reason of each."""
    overrides = None if override is None else read_overrides(override)
    budget = budget_here(minutes, device, memory)
    with progress_bar("measuring cases") as progress:
        made = make_bundle(manifest, out, budget, data_root=data_root, overrides=overrides, progress=progress)
    for facts in facts_tables(made.survey):
        print_facts(facts)
    print_plan(made.plan)
    root = "" if data_root is None and made.manifest == manifest else f" --data-root {data_root or manifest.parent}"
    console.print(
        f"{out}: bundle written; train it with `voxelgate train {out} {made.manifest}{root} --out {out}_trained`",
        soft_wrap=True,
    )


@app.command("train")
def train_command(
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
    engine: Annotated[
        str, typer.Option(help="With --folds: serial, processes:N, or dask:ADDRESS of a scheduler.")
    ] = "serial",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted training stopped.")] = False,
    settings: Settings = None,
) -> None:
    """Train a bundle; its best weights by validation Dice are kept."""
    if folds is None:
        _refuse_given(context, ["engine"], "goes with --folds")
    else:
        _refuse_given(context, ["fold"], "goes without --folds")
    overrides = _overrides(settings) | ({} if epochs is None else {"epochs": epochs})
    job = Job(bundle, manifest, out, data_root, fold, resume, overrides)
    if folds is not None:
        _train_folds(job, folds, engine)
        return
    with progress_bar("checking cases") as progress:
        trained = train(job, progress=progress)
    if fold >= 0:
        subject_of = {case.case_id: case.subject for case in load(manifest, data_root).cases}
        print_scores(
            evaluate_fold(trained, manifest, trained / TRAINING, data_root=data_root, fold=fold),
            f"fold {fold}, not seen in training but used to choose the best epoch: slightly optimistic",
            subject_of,
        )
    console.print(f"{trained}: trained bundle; use it with `voxelgate segment {trained} SCAN --out FOLDER`")


def _train_folds(job: Job, folds: int, engine: str) -> None:
    with progress_bar("checking cases") as progress, executor_named(engine) as executor:
        done = train_folds(job, folds, executor=executor, devices=devices_here(), progress=progress)
    subject_of = {case.case_id: case.subject for case in load(job.manifest, job.data_root).cases}
    title = f"{folds} folds, none seen in training, each used to choose its best epoch: slightly optimistic"
    print_scores(list(done.scores), title, subject_of)
    console.print(f"mean Dice of each fold: {', '.join(f'{dice:.3f}' for dice in done.mean_dice)}")
    console.print(
        f"{done.bundle}: the best fold; use it with `voxelgate segment {done.bundle} SCAN --out FOLDER`, or all "
        "together with --ensemble",
        soft_wrap=True,
    )


@app.command("evaluate")
def evaluate_command(
    context: typer.Context,
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
        _refuse_given(context, ["subjects", "labels_from", "workers"], "is for label maps, and this is a bundle")
        verify(prediction)
        with tempfile.TemporaryDirectory() as scratch:
            scores = evaluate_fold(prediction, reference, Path(scratch), data_root=data_root, fold=fold)
        subjects = reference
    else:
        _refuse_given(context, ["fold", "data_root"], "is for a bundle, and these are label maps")
        table = None if labels_from is None else labels_of(labels_from)
        pairs = pair_files(prediction, reference)
        with progress_bar("measuring") as progress:
            found = evaluate_pairs(pairs, table, workers=workers, progress=progress)
            scores = [row for rows in found for row in rows]
    if csv is not None:
        write_csv(scores, csv, overwrite=overwrite)
    subject_of = {} if subjects is None else {case.case_id: case.subject for case in load(subjects).all_cases}
    cases = len({row.case_id for row in scores})
    print_scores(scores, f"{cases} case{'' if cases == 1 else 's'}", subject_of)


@app.command("inspect")
def inspect_command(
    inputs: Annotated[
        list[Path], typer.Argument(help="Folder, zip, DICOMDIR or DICOM file; or one manifest.", show_default=False)
    ],
    allow: Allowed = "",
    data_root: DataRoot = None,
    page: Annotated[
        Path | None, typer.Option(help="For a manifest: HTML page with plots to write.", show_default=False)
    ] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not decode the pixels of what can be used.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say of every DICOM series whether it can be used, and why not; of a manifest, what is in its data."""
    is_manifest = len(inputs) == 1 and inputs[0].suffix == ".json"
    if not is_manifest and (page is not None or data_root is not None):
        raise UsageError("--page and --data-root are for a manifest; name one, or leave them out.")
    if is_manifest and (as_json or headers_only or allow):
        raise UsageError("--json, --headers-only and --allow are for DICOM; leave them out for a manifest.")
    if is_manifest:
        _inspect_manifest(inputs[0], data_root, page)
        return
    with progress_bar("reading headers") as headers, progress_bar("reading pixels") as pixels:
        found = inspect(
            inputs, allow=_choices(Allow, allow, "--allow"), headers_only=headers_only, progress=(headers, pixels)
        )
    if as_json:
        sys.stdout.write(json.dumps([one.summary() for one in found], indent=2, ensure_ascii=False) + "\n")
    else:
        print_series(found)
    if not any(one.series.is_usable for one in found):
        raise typer.Exit(1)


def _inspect_manifest(manifest: Path, data_root: Path | None, page: Path | None) -> None:
    with progress_bar("measuring cases") as progress:
        found = survey(load(manifest, data_root), progress=progress)
    for facts in facts_tables(found):
        print_facts(facts)
    if page is not None:
        write_facts_page(found, page)


@app.command("segment")
def segment_command(
    context: typer.Context,
    bundle: BundleArgument,
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Images, DICOM series, folders or zips of them, or a manifest.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    outputs: Annotated[
        str,
        typer.Option(
            help="What to write of each case, separated by commas: nifti (of pictures PNG or TIFF), seg, rtstruct, sr."
        ),
    ] = "nifti",
    data_root: DataRoot = None,
    allow: Allowed = "",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="cuda if there is one")
    ] = None,
    runtime: Annotated[
        Runtime | None, typer.Option(help="How the network runs.", show_default="the fastest known here")
    ] = None,
    is_ensemble: Annotated[bool, typer.Option("--ensemble", help="Average the networks of all folds.")] = False,
    engine: Annotated[
        str, typer.Option(help="Where cases run: serial, processes:N, or dask:ADDRESS of a scheduler.")
    ] = DEFAULT_ENGINE,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which an attempt at a case is ended.")] = 1800,
    attempts: Annotated[
        int, typer.Option(min=1, help="How often a case is tried that hangs, crashes or runs out of memory.")
    ] = 3,
    max_memory: Annotated[
        float | None, typer.Option(min=0.5, help="GiB that each process may allocate.", show_default="no limit")
    ] = None,
    forecast: Annotated[
        bool, typer.Option(help="Say first what a batch of ten or more will need, and refuse what cannot fit.")
    ] = True,
    previews: Annotated[bool, typer.Option(help="Write the pictures that the report page shows.")] = True,
    check_flips: Annotated[
        bool, typer.Option("--check-flips", help="Segment the mirrored image too, and judge the result by it.")
    ] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Write and judge the maps of the network's attention gates too.")
    ] = False,
    hashed_names: Annotated[
        bool, typer.Option("--hashed-names", help="Call cases by a hash, where files or folders name patients.")
    ] = False,
    is_watching: Annotated[
        bool, typer.Option("--watch", help="Go on with what comes into the folders, until Ctrl-C.")
    ] = False,
    settle: Annotated[
        float, typer.Option(min=0.1, help="With --watch: seconds without change after which a study is complete.")
    ] = 30,
    idle_exit: Annotated[
        float | None,
        typer.Option(min=0, help="With --watch: end after so many seconds without news.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Segment volumes; each result lies on the very grid of its image. The same command goes on where it was ended."""
    if not any(map(is_manifest, inputs)):
        _refuse_given(context, ["data_root"], "is for a manifest, and none is given")
    if not is_watching:
        _refuse_given(context, ["settle", "idle_exit"], "goes with --watch")
    wanted = _choices(Output, f"{outputs},{Output.PREVIEW}" if previews else outputs, "--outputs")
    gates = attention_of(bundle, is_ensemble=is_ensemble) if attention else ()
    options = Options(wanted, overwrite, _choices(Allow, allow, "--allow"), runtime, check_flips, gates, hashed_names)
    setup = setup_of(bundle, out, options, device, is_ensemble=is_ensemble)
    means = Means(engine, Limits(timeout, attempts), max_memory)
    if is_watching:
        reports, total = segment_arrivals(inputs, setup, Patience(settle, idle_exit), means), None
    else:
        with progress_bar("reading headers") as progress:
            cases = cases_in(inputs, setup, progress, data_root=data_root)
        foretold, setup, means = fitted(cases, setup, means) if forecast else ("", setup, means)
        if foretold:
            errors.print(foretold, markup=False, soft_wrap=True)
        reports, total = segment_cases(cases, setup, means), len(cases)
    ended, is_interrupted = _show_reports(reports, total, as_json=as_json)
    if not as_json:
        print_reports(ended, out)
    if is_interrupted:
        errors.print("Interrupted; the same command goes on with the cases that are left.")
        raise typer.Exit(INTERRUPTED)
    if any(report.status is not CaseStatus.DONE for report in ended):
        raise typer.Exit(1)


@app.command("status")
def status_command(
    out: Annotated[Path, typer.Argument(help="Folder of the results.", show_default=False)], as_json: AsJson = False
) -> None:
    """Say how far `segment` is with a folder, while it runs or after it ended."""
    status = status_of(out)
    if as_json:
        sys.stdout.write(status.to_json() + "\n")
    else:
        print_status(status)


@app.command("report")
def report_command(
    out: Annotated[Path, typer.Argument(help="Folder that `voxelgate segment` wrote into.", show_default=False)],
    reference: Annotated[
        Path | None,
        typer.Option(help="True labels to compare with: folder, or the manifest.", show_default="none"),
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Make one page, report.html, that shows every case of an output folder."""
    if reference is None and data_root is not None:
        raise UsageError("--data-root is for a manifest; name one with --reference, or leave it out.")
    with progress_bar("comparing with the true labels", 0 if reference is None else None) as progress:
        page = build_report(out, reference, data_root=data_root, progress=progress)
    console.print(f"{page}: report written; open it in a browser", soft_wrap=True)


@app.command("label")
def label_command(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles with the same labels.", show_default=False)],
    studies: Annotated[str, typer.Option(help="Folder of images, or the address of a DICOMweb server.")],
    work: Annotated[Path, typer.Option(help="Folder for versions of the models, logs and copies.")] = Path(
        "label-work"
    ),
    host: Annotated[
        str, typer.Option(help="Address to listen at; without a token check, all who reach it may do everything.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Page of another server that may use this one; may be repeated.", show_default="none"),
    ] = None,
    most_mib: Annotated[int, typer.Option(min=1, help="Largest upload.")] = MOST_MIB,
) -> None:
    """Start MONAI Label: annotate with bundles in 3D Slicer or OHIF, and train them on what was annotated."""
    serve(Serving(tuple(bundles), studies, work, host, port, tuple(origin or ()), most_mib))


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("out"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of cohort and training.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make a synthetic CT cohort, train a small bundle on it, segment held-out volumes, and show them."""
    result = run_demo(out, seed=seed, say=lambda text: console.print(text, markup=False), overwrite=overwrite)
    print_scores(list(result.scores), "held-out volumes")
    console.print(f"Mean Dice {result.mean_dice:.3f}. Open {result.page} in a browser.\n\nWith your own data:")
    for command in result.next_commands:
        console.print(f"  {command.line}    # {command.purpose}", markup=False, soft_wrap=True)


@bundle_app.command("verify")
def bundle_verify(bundle: BundleArgument) -> None:
    """Check that a bundle is whole: files, metadata, network, configs, properties, export, two iterations."""
    verify(bundle)
    for gate in pass_gates(bundle):
        console.print(f"{gate.name}: {gate.seen}", markup=False, soft_wrap=True)
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
    shape = (1, len(opened.images.channels), *opened.inferer.roi_size)  # type: ignore[attr-defined]  # any MONAI inferer may stand here
    console.print(str(describe(opened.network, shape)), markup=False)


@bundle_app.command("export")
def bundle_export(
    bundle: BundleArgument,
    form: Annotated[Format, typer.Option("--to", help="Format of the file.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="models/model.* in the bundle")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", help="An image to compare on; repeat for its files.", show_default="a phantom"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the network as a file for other systems, provided that it says the same as the network."""
    exported = export(bundle, form, out, images=images or [], overwrite=overwrite)
    console.print(f"{exported.path}: {exported}", markup=False, soft_wrap=True)


@bundle_app.command("calibrate")
def bundle_calibrate(
    bundle: BundleArgument,
    images: Annotated[
        list[Path],
        typer.Argument(help="An image with the structures in its middle; its files.", show_default=False),
    ],
) -> None:
    """Measure every way to run the network here; `segment` then takes the fastest that gives equal labels."""
    opened = open_bundle(bundle)
    cases = find_cases(images, rule=opened.series_rule, images=opened.images)
    if len(cases) != 1:
        raise UsageError(f"{len(cases)} images are given, but one is measured; name its files.")
    scan = read_case(cases[0], opened.labels, images=opened.images)
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


def _choices(kind: type[_Choice], text: str, option: str) -> tuple[_Choice, ...]:
    """Return the members of a closed set that a text names, separated by commas, in the order of the set."""
    names = {name.strip().lower() for name in text.split(",") if name.strip()}
    if unknown := names - {member.value for member in kind}:
        raise UsageError(f"{option} {', '.join(sorted(unknown))}: expected some of {', '.join(kind)}")
    return tuple(member for member in kind if member.value in names)


def _refuse_given(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Refuse options that would count for nothing.

    Raises:
        UsageError: one of them was given.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')} {reason}; leave it out.")


def _show_reports(reports: Iterator[CaseReport], total: int | None, *, as_json: bool) -> tuple[list[CaseReport], bool]:
    """Print reports as they come; return them, and whether Ctrl-C ended them."""
    ended: list[CaseReport] = []
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as behind `nohup`
        signal.signal(signal.SIGINT, _interrupt_once)
    with progress_bar("segmenting", total) as progress:
        try:
            for report in reports:
                ended.append(report)
                if total is not None:
                    progress(len(ended), total)
                if as_json:
                    sys.stdout.write(report.to_json() + "\n")
                    sys.stdout.flush()
                else:
                    print_findings(report)
                    for gate in report.attention:
                        console.print(f"{report.case_id}: {gate}", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            return ended, True
    if signal.getsignal(signal.SIGINT) is _interrupt_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return ended, False


def _interrupt_once(_number: int, _frame: object) -> None:
    """Interrupt at the first Ctrl-C, and let those after it not disturb how the run ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
