"""What a newcomer reads first is true: help, version, and every command and option that README and docs print."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.conftest import REPOSITORY, Run
from voxelgate.apps.cli.main import COMMANDS as STATED
from voxelgate.apps.cli.main import load_command

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
LOADED = {name: load_command(name) for name in STATED}
COMMANDS = {**LOADED, **{f"bundle {name}": one for name, one in LOADED["bundle"].commands.items()}}
COMMAND = re.compile(r"(?:^|`)voxelgate (bundle [a-z]+|[a-z]+)\b([^`#\n]*)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def options_of(name: str) -> set[str]:
    return {text for one in COMMANDS[name].params for text in (*one.opts, *one.secondary_opts)} | {"--help"}


@pytest.mark.parametrize(("name", "arguments"), sorted(set(COMMAND.findall(TEXT))))
def test_a_command_of_the_pages_exists_with_its_options(name: str, arguments: str) -> None:
    assert name in COMMANDS
    assert set(OPTION.findall(arguments)) <= options_of(name)


def test_every_option_that_the_pages_name_is_one_of_some_program() -> None:
    ours = set().union(*(options_of(name) for name in COMMANDS), {"--debug", "--version"})
    others = {
        "--conf",
        "--config_file",
        "--manifest",
        "--data_root",
        "--cache",
        "--only",
        "--law",
        "--repeats",
        "--thin",
    }
    others |= {"--logdir", "--constraint", "--count", "--side", "--engines"}
    others |= {"--host", "--port", "--nthreads", "--minutes", "--clock", "--batch", "--channels", "--plot", "--steps"}
    others |= {"--epoch"}  # a mistake, shown as one
    others |= {"--rows", "--foreign", "--variant", "--cases", "--seeds"}  # of benchmarks
    others |= {"--roi_subset", "--remove_small_blobs"}  # of TotalSegmentator

    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", TEXT)) <= ours | others


def test_every_command_stands_in_the_readme() -> None:
    table = README[README.index("## Commands") : README.index("## Read on")]
    names = {name.removeprefix("bundle ") for name in COMMANDS}

    assert {name for name in names if not re.search(rf"[` ]{name}\b", table)} == set()


@pytest.mark.parametrize("name", sorted(STATED.keys() - {"bundle"}))
def test_the_list_of_commands_says_of_each_what_its_own_help_says(name: str) -> None:
    assert STATED[name] == LOADED[name].help


def test_the_list_of_commands_names_those_of_a_bundle() -> None:
    stated = STATED["bundle"].removesuffix(".").rpartition(": ")[2]

    assert stated.split(", ") == list(LOADED["bundle"].commands)


def test_help_does_not_wait_for_pytorch() -> None:
    program = "import sys; from voxelgate.apps.cli.main import main; sys.argv[1:] = ['--help']\ntry: main()\nfinally: "
    program += "assert 'torch' not in sys.modules"

    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in STATED)


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
