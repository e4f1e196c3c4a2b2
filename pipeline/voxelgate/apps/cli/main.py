"""The `voxelgate` command: arguments in, exit code out; the work is done elsewhere."""

import logging
import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from keyword import iskeyword
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from voxelgate.apps.cli.terminal import console, errors, write_any_letter
from voxelgate.core.errors import OutputError, VoxelgateError
from voxelgate.core.process import refuse_current_folder
from voxelgate.core.text import log_to_stderr

COMMANDS = {
    "manifest": "Make a manifest from a folder of images and labels, and check every file.",
    "plan": "Make an untrained bundle whose numbers fit a data set and a budget, and give the reason of each.",
    "import": "Make a bundle of a model of nnU-Net, TotalSegmentator or MONAI's model zoo, or of a TorchScript file.",
    "train": "Train a bundle; its best weights by validation Dice are kept, with what helps on validation cases.",
    "evaluate": "Measure label maps against references: Dice, IoU, HD95, ASSD, MSSD, RAVD, volumes.",
    "inspect": "Say of every DICOM series whether it can be used, and why not; of a manifest, what is in its data.",
    "segment": "Segment volumes; each result lies on the very grid of its image. The same command goes on where it was "
    "ended.",
    "status": "Say how far `segment` is with a folder, while it runs or after it ended.",
    "report": "Make a page, report.html with report_files beside it, that shows every case of an output folder.",
    "label": "Start MONAI Label: annotate with bundles in 3D Slicer or OHIF, and train them on what was annotated.",
    "demo": "Make a synthetic CT cohort, train a small bundle on it, segment held-out volumes, and show them.",
    "bundle": "Look after a bundle: list, verify, seal, codes, describe, export, calibrate.",
}
"""Modules of `voxelgate.apps.cli`, and what `--help` says of them without importing PyTorch, which takes seconds."""


class _Commands(TyperGroup):
    """Knows its commands by name, and imports the one that is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, stub, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else stub, rest


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, check and run 3D medical image segmentation as MONAI bundles. For research; not a medical device.",
)
for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def load_command(name: str) -> Any:
    """Import a command, with all that it needs."""
    module = import_module(f"voxelgate.apps.cli.{name}_" if iskeyword(name) else f"voxelgate.apps.cli.{name}")
    if "torch" in sys.modules:
        import_module("voxelgate.inference.precision").keep_large_buffers()
    return typer.main.get_command(module.app)


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


def main() -> None:
    """Run the command line; errors of the user's become one sentence and an exit code."""
    is_debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    refuse_current_folder()
    write_any_letter()
    _set_up_logging(is_debug=is_debug)
    try:
        app(args=arguments)
    except VoxelgateError as error:
        _end(error, is_debug=is_debug)
    except OSError as error:
        _end(OutputError(f"{error.filename or 'a file'}: {error.strerror or error}"), is_debug=is_debug)


def _end(error: VoxelgateError, *, is_debug: bool) -> None:
    if is_debug:
        raise error
    errors.print(f"{type(error).__name__}: {error}", soft_wrap=True)
    raise SystemExit(error.exit_code) from error


def _set_up_logging(*, is_debug: bool) -> None:
    log_to_stderr(logging.DEBUG if is_debug else logging.INFO)
    if not is_debug:
        for name in ("ignite", "monai", "matplotlib", "PIL"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.simplefilter("ignore")
