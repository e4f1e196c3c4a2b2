"""Fill the reference pages when the site is built: commands from their `--help`, names from `voxelgate.__all__`."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import voxelgate
from voxelgate.apps.cli.main import COMMANDS, load_command

COMMANDS_HERE, NAMES_HERE = "<!-- commands -->", "<!-- names -->"

ERRORS, FUNCTIONS, TYPES, COMPONENTS = "Errors", "Functions", "Types", "MONAI components"

COMPONENT_ROOMS = ("networks", "inference", "transforms", "training", "dicom")
"""Classes of these rooms are components for configs, but for the records of a training."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the places of generated text; MkDocs calls this for every page."""
    if COMMANDS_HERE in markdown:
        markdown = markdown.replace(COMMANDS_HERE, commands_text())
    if NAMES_HERE in markdown:
        markdown = markdown.replace(NAMES_HERE, names_text())
    return markdown


def commands_text() -> str:
    """Return a section for every command, with its arguments, options and defaults."""
    return "\n".join(line for name in COMMANDS for line in _command_lines(name, load_command(name)))


def _command_lines(name: str, command: Any) -> Iterator[str]:
    yield f"## voxelgate {name}\n\n{command.help}\n"
    if parts := getattr(command, "commands", None):
        for part, one in parts.items():
            yield from _command_lines(f"{name} {part}", one)
        return
    yield "| argument or option | | |\n|---|---|---|"
    for one in command.params:
        yield f"| `{_names_of(one)}` | {_default_of(one)} | {_cell(one.help or '')} |"
    yield ""


def _names_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"{parameter.name.upper()}{'...' if parameter.nargs != 1 else ''}"
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def _default_of(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return f"default: {_cell(parameter.show_default)}"
    is_given = parameter.default not in (None, False, "", (), [])
    return f"default: {_cell(str(parameter.default))}" if is_given and parameter.show_default else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def names_text() -> str:
    """Return a section for every kind of public name, and an mkdocstrings entry for each name."""
    kinds: dict[str, list[str]] = {kind: [] for kind in (FUNCTIONS, TYPES, COMPONENTS, ERRORS)}
    for name in sorted(voxelgate.__all__, key=str.lower):
        kinds[_kind_of(getattr(voxelgate, name))].append(name)
    return "\n".join(line for kind, names in kinds.items() for line in _kind_lines(kind, names))


def _kind_of(thing: Any) -> str:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return ERRORS
    if inspect.ismodule(thing):
        return COMPONENTS
    if not inspect.isclass(thing):
        return FUNCTIONS
    is_plain = hasattr(thing, "__dataclass_fields__") or thing.__module__.split(".")[1] not in COMPONENT_ROOMS
    return TYPES if is_plain else COMPONENTS


def _kind_lines(kind: str, names: list[str]) -> Iterator[str]:
    yield f"## {kind}\n"
    for name in names:
        yield f"::: {path_of(getattr(voxelgate, name))}\n"


def path_of(thing: Any) -> str:
    """Return the dotted path where a public name is written, which is where its docstring stands."""
    if inspect.ismodule(thing):
        return thing.__name__
    path = f"{thing.__module__}.{thing.__qualname__}"
    if getattr(importlib.import_module(thing.__module__), thing.__qualname__, None) is not thing:
        raise ValueError(f"{path} is not where {thing!r} is written")
    return path
