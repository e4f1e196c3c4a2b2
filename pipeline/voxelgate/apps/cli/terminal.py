"""What commands print to: the two streams, and a bar with the time left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PIPED_WIDTH = 120
"""Columns of a table that goes to a file or another program."""

errors = Console(stderr=True, highlight=False)

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


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
