"""What is printed is what was meant: names of files are text, whatever they hold."""

import io
import json
import sys

import pytest
from rich.table import Table

from voxelgate.apps.cli.terminal import LiteralConsole, write_any_letter, write_json

ODD_NAMES = ("kidney [left]", "femur [/left]", "[b]", "a[/]b", ":smile: x", "data [v2]/manifest.json", "[link=x]y")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_printed_as_it_is(name: str) -> None:
    seen = io.StringIO()
    console = LiteralConsole(file=seen, width=200)
    table = Table("case", name, title=name)
    table.add_row("1", name)

    console.print(name)
    console.print(table)

    assert seen.getvalue().count(name) == 4


@pytest.mark.parametrize("name", ["a\x1b]0;owned\x07b", "a\x1b[2Jb", "a\x9b31mb", "a\rb", "a\x08b", "a\u202eb"])
def test_no_control_character_of_a_name_reaches_the_terminal(name: str) -> None:
    seen = io.StringIO()
    console = LiteralConsole(file=seen, width=200)
    table = Table(name)
    table.add_row(name)

    console.print(name)
    console.print(table)

    assert set(seen.getvalue()).isdisjoint("\x1b\x07\x9b\r\x08\u202e")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_stream_of_any_encoding_takes_every_letter(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    write_any_letter()

    LiteralConsole(file=sys.stdout, width=80).print("Größe 頭")
    write_json({"name": "Größe 頭"})
    sys.stdout.flush()

    assert json.loads(raw.getvalue().splitlines()[-1]) == {"name": "Größe 頭"}
