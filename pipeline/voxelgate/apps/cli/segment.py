"""Segment volumes."""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from voxelgate.apps.cli.options import (
    Allowed,
    AsJson,
    BundleArgument,
    DataRoot,
    choices,
    listed_names,
    refuse_given,
    refuse_unfit,
)
from voxelgate.apps.cli.terminal import console, errors, progress_bar, write_json
from voxelgate.core.errors import UsageError
from voxelgate.core.files import refuse_file
from voxelgate.core.findings import Allow
from voxelgate.core.verdict import NOT_CALIBRATED, Require, Verdict
from voxelgate.core.workers import EngineKind, engine_named
from voxelgate.datasets.manifest import is_manifest
from voxelgate.dicom.write.seg_kind import SegKind
from voxelgate.images.passed_over import kinds_text
from voxelgate.images.pictures import PIXELS_PER_ML
from voxelgate.inference.pass_options import PassOptions
from voxelgate.inference.runtimes.kinds import Runtime
from voxelgate.segmentation.batch.watch import watched_folders
from voxelgate.segmentation.options import DEFAULT_WORKERS, Options
from voxelgate.segmentation.output_names import Output
from voxelgate.segmentation.report import CaseReport, CaseStatus

if TYPE_CHECKING:
    from voxelgate.segmentation.batch.run_batch import Reports, RunKeywords

MOST_ROWS = 50
"""Cases that are listed on the screen; of more there is the table in the output folder."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal, as shells have it."""


app = typer.Typer(add_completion=False)


@app.command()
def run(
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
            help="What to write of each case, separated by commas: nifti (of pictures PNG or TIFF), seg, rtstruct, "
            "sr, structures (a mask of each), probabilities (of each structure)."
        ),
    ] = "nifti",
    data_root: DataRoot = None,
    series: Annotated[
        str,
        typer.Option(
            help="The DICOM series to take, by UID (or its end), number or description (* for any letters), as "
            "`inspect` shows them.",
            show_default="what fits the bundle best",
        ),
    ] = "",
    allow: Allowed = "",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="cuda if there is one")
    ] = None,
    runtime: Annotated[
        Runtime | None, typer.Option(help="How the network runs.", show_default="the fastest known here")
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="Run an imported model fast, not exactly as its makers do; the report says how labels agree."
        ),
    ] = False,
    step_size: Annotated[
        float | None,
        typer.Option(help="At which part of a window the next one begins.", show_default="what the bundle says"),
    ] = None,
    no_mirroring: Annotated[
        bool, typer.Option("--no-mirroring", help="Do not average over mirrored images, where a bundle does.")
    ] = False,
    roi_subset: Annotated[
        str,
        typer.Option(
            help='Structures to look for, such as liver,spleen; "kidney, left" where a name has a comma.',
            show_default="all",
        ),
    ] = "",
    is_ensemble: Annotated[bool, typer.Option("--ensemble", help="Average the networks of all folds.")] = False,
    engine: Annotated[
        str, typer.Option(help="Where cases run: serial, processes:N, or dask:ADDRESS of a scheduler.")
    ] = DEFAULT_WORKERS,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after which an attempt at a case is ended.")
    ] = Options.timeout_s,
    attempts: Annotated[
        int, typer.Option(min=1, help="How often a case is tried that hangs, crashes or runs out of memory.")
    ] = Options.attempts,
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
    require: Annotated[
        Require,
        typer.Option(help="The least verdict with which a result is written; of others there are previews only."),
    ] = Options.require,
    seg_type: Annotated[
        SegKind | None, typer.Option(help="Form of the DICOM SEG.", show_default="binary up to ten structures")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there, which somebody else wrote or changed.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Do cases again whose results stand.")] = False,
    is_private: Annotated[
        bool, typer.Option("--private", help="Let nobody else of this machine read what is written (umask 077).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Segment volumes; each result lies on the very grid of its image. The same command goes on where it was ended."""
    if not any(map(is_manifest, inputs)):
        refuse_given(context, ["data_root"], "is for a manifest, and none is given")
    if not is_watching:
        refuse_given(context, ["settle", "idle_exit"], "goes with --watch")
    kinds = choices(Output, f"{outputs},{Output.PREVIEW}" if previews else outputs, "--outputs")
    wanted = listed_names(roi_subset, "--roi-subset") if roi_subset.strip() else ()
    asked: RunKeywords = {
        "outputs": kinds,
        "workers": engine,
        "overwrite": overwrite,
        "again": again,
        "allow": choices(Allow, allow, "--allow"),
        "series": series,
        "runtime": runtime,
        "device": device,
        "ensemble": is_ensemble,
        "check_flips": check_flips,
        "attention": attention,
        "hashed_names": hashed_names,
        "timeout_s": timeout,
        "attempts": attempts,
        "max_memory_gib": max_memory,
        "require": require,
        "seg_type": seg_type,
        "fast": fast,
        "step_size": step_size,
        "mirroring": not no_mirroring,
        "roi_subset": wanted,
    }
    passing = PassOptions(fast, step_size, not no_mirroring, wanted)
    if is_private:
        _let_nobody_else_read(engine)
    Options(kinds, workers=engine, runtime=runtime, passing=passing)
    refuse_file(out)
    refuse_unfit(bundle, [] if is_watching else inputs, data_root)
    watched_folders(inputs if is_watching else [])
    from voxelgate.segmentation.batch.run_batch import segment, watch

    if is_watching:
        reports = watch(bundle, inputs, out, settle_s=settle, idle_s=idle_exit, **asked)
    else:
        with progress_bar("reading headers") as progress:
            reports = segment(bundle, inputs, out, forecast=forecast, data_root=data_root, progress=progress, **asked)
    _print_beginning(reports, as_json=as_json)
    ended, is_interrupted = _show_reports(reports, require, as_json=as_json)
    if not as_json:
        _print_reports(ended, out, reports.passed_over)
    if is_interrupted:
        errors.print("Interrupted; the same command goes on with the cases that are left.")
        raise typer.Exit(INTERRUPTED)
    if not ended.are_well:
        raise typer.Exit(1)


def _let_nobody_else_read(engine: str) -> None:
    """Give all that this process, and those that it starts, make from now on to the user alone."""
    if engine_named(engine).kind is EngineKind.DASK:
        raise UsageError("--private is for work on this machine; start the workers of the cluster with umask 077.")
    os.umask(0o077)


@dataclass
class _Tally:
    """What is kept of the reports of a run, of which there may be many: as many as are listed, and numbers."""

    listed: list[CaseReport] = field(default_factory=list)
    ended: int = 0
    done: int = 0
    refused: int = 0
    are_well: bool = True

    def take(self, report: CaseReport, require: Require) -> None:
        """Count a report."""
        is_done = report.status is CaseStatus.DONE
        self.ended += 1
        self.done += is_done
        self.refused += report.verdict is Verdict.REFUSE
        self.are_well &= _is_well(report, require)
        if is_done and self.done <= MOST_ROWS:
            self.listed.append(report)


def _is_well(report: CaseReport, require: Require) -> bool:
    """Return whether a case has a result that is neither refused nor worse than required."""
    verdict = report.verdict
    return verdict is not None and verdict is not Verdict.REFUSE and require.admits(verdict)


def _print_beginning(reports: "Reports", *, as_json: bool) -> None:
    """Print what is known before the first case; as JSON the first line says what is passed over, if anything is."""
    for line in filter(None, (reports.unwritable, reports.forecast)):
        errors.print(line, soft_wrap=True)
    if reports.passed_over:
        kinds = kinds_text(reports.passed_over)
        errors.print(f"Passed over: {kinds}; convert those that are images to NIfTI (.nii.gz).", soft_wrap=True)
        if as_json:
            write_json({"passed_over": reports.passed_over})


def _show_reports(reports: "Reports", require: Require, *, as_json: bool) -> tuple[_Tally, bool]:
    """Print reports as they come; return what is kept of them, and whether Ctrl-C ended them."""
    tally = _Tally()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as behind `nohup`
        signal.signal(signal.SIGINT, _interrupt_once)
    with progress_bar("segmenting", reports.total) as progress:
        try:
            for report in reports:
                tally.take(report, require)
                if reports.total is not None:
                    progress(tally.ended, reports.total)
                if as_json:
                    write_json(json.loads(report.to_json()))
                else:
                    _print_findings(report)
                    for gate in report.attention:
                        console.print(f"{report.case_id}: {gate}", soft_wrap=True)
        except KeyboardInterrupt:
            return tally, True
    if signal.getsignal(signal.SIGINT) is _interrupt_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return tally, False


def _interrupt_once(_number: int, _frame: object) -> None:
    """Interrupt at the first Ctrl-C, and let those after it not disturb how the run ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _print_findings(report: CaseReport) -> None:
    """Print why a case ended badly, or what should be looked at."""
    if report.status is not CaseStatus.DONE:
        line = f"{report.case_id}: {report.status}: {' '.join(map(str, report.findings))}"
        errors.print(line, soft_wrap=True)
        return
    for finding in report.findings:
        errors.print(f"{report.case_id}: {finding}", soft_wrap=True)
    if report.quality is not None and report.verdict is Verdict.REFUSE:
        errors.print(f"{report.case_id}: refused: {' '.join(report.quality.reasons)}", soft_wrap=True)


def _print_reports(tally: _Tally, out: Path, passed_over: Mapping[str, int]) -> None:
    """Print a table of the cases that are done, how many there are, and how many files were passed over."""
    done, refused = tally.listed, tally.refused
    in_pixels = bool(done) and all(report.is_picture for report in done)
    table = Table(
        "case",
        *(f"{name} {'px' if in_pixels else 'ml'}" for name in (done[0].volumes_ml if done else ())),
        "predicted Dice",
        "verdict",
        "seconds",
        box=box.SIMPLE_HEAD,
    )
    for report in done:
        volumes = (
            f"{value * PIXELS_PER_ML:.0f}" if in_pixels else f"{value:.2f}" for value in report.volumes_ml.values()
        )
        verdict = report.verdict.in_words if report.verdict else ""
        dice = None if report.quality is None else report.quality.predicted_dice
        foretold = NOT_CALIBRATED if dice is None else f"{dice:.3f}"
        table.add_row(report.case_id, *volumes, foretold, verdict, f"{sum(report.seconds.values()):.1f}")
    if 0 < tally.done <= MOST_ROWS:
        console.print(table)
    told = f"; {refused} of the results {'is' if refused == 1 else 'are'} refused" if refused else ""
    others = f"; passed over: {kinds_text(passed_over)}" if passed_over else ""
    console.print(f"{tally.done} of {tally.ended} volumes segmented into {out}{others}{told}", soft_wrap=True)
