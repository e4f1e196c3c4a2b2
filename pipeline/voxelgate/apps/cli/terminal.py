"""What commands print to: the two streams, and a bar with the time left."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from voxelgate.core.text import shown_lines

PIPED_WIDTH = 120
"""Columns of a table that goes to a file or another program."""


class LiteralConsole(Console):
    """Prints texts as they are: names of files are neither markup, nor emoji, nor commands to the terminal."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return a text, whether it is printed or in a table, without control characters."""
        return super().render_str(shown_lines(text), **settings)


errors = LiteralConsole(stderr=True)

console = LiteralConsole(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def write_any_letter() -> None:
    """Let the two streams write what their encoding lacks as an escape, instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write_json(document: Any) -> None:
    """Write a document as a line of JSON for programs, in ASCII, so that every stream can hold it."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


@contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left on a terminal; what is yielded takes how many are done, and of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def show(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of, visible=done < of)
            if done >= of:
                bar.stop()  # what follows, such as a training, shows its own

        yield show
