"""What a newcomer reads first is true: help, version, and every command and option that the README prints."""

import re
from importlib.metadata import version

import pytest
import typer

from pipeline.cli import app
from tests.conftest import REPOSITORY, Run

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
GROUP = typer.main.get_command(app)
COMMANDS = {**GROUP.commands, **{f"bundle {name}": one for name, one in GROUP.commands["bundle"].commands.items()}}
COMMAND = re.compile(r"voxelgate (bundle [a-z]+|[a-z]+)\b([^`#\n]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def options_of(name: str) -> set[str]:
    return {text for one in COMMANDS[name].params for text in (*one.opts, *one.secondary_opts)} | {"--help"}


@pytest.mark.parametrize(("name", "arguments"), sorted(set(COMMAND.findall(README))))
def test_a_command_of_the_readme_exists_with_its_options(name: str, arguments: str) -> None:
    assert name in COMMANDS
    assert set(OPTION.findall(arguments)) <= options_of(name)


def test_every_option_that_the_readme_names_is_one_of_some_program() -> None:
    ours = set().union(*(options_of(name) for name in COMMANDS), {"--debug", "--version"})
    others = {"--conf", "--config_file", "--manifest", "--data_root", "--cache", "--only", "--law", "--repeats"}
    others |= {"--logdir", "--constraint", "--count", "--side", "--engines"}

    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", README)) <= ours | others


def test_every_command_stands_in_the_readme() -> None:
    table = README[README.index("## Commands") : README.index("## Use the parts alone")]
    names = {name.removeprefix("bundle ") for name in COMMANDS}

    assert {name for name in names if not re.search(rf"[` ]{name}\b", table)} == set()


def test_version_and_help_are_told(run: Run) -> None:
    assert run("--version").stdout == f"voxelgate {version('voxelgate')}\n"
    assert "segment" in run("-h").stdout
    assert "--out" in run("segment", "-h").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("study", "--page", "x.html"),
        ("study", "--data-root", "x"),
        ("manifest.json", "--json"),
        ("manifest.json", "--headers-only"),
        ("manifest.json", "--allow", "gaps"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(run: Run, arguments: tuple[str, ...]) -> None:
    result = run("inspect", *arguments)

    assert result.returncode == 2
    assert "UsageError" in result.stderr
