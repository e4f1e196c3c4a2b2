"""Texts from elsewhere, such as names of files, as a line can show them."""

import logging
import unicodedata

UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of what no line can show: control and formatting, ends of lines, bytes that are no text."""


def shown(text: str) -> str:
    """Return a text as a line can show it, and UTF-8 can hold it.

    >>> shown("two" + chr(10) + "lines")
    'two_lines'
    """
    if text.isprintable():
        return text
    return "".join("_" if unicodedata.category(char) in UNSHOWN else char for char in text)


def shown_lines(text: str) -> str:
    """Return a text of several lines as a terminal can show it: no other control character is left.

    >>> shown_lines("one" + chr(27) + "[2J")
    'one_[2J'
    """
    return "\n".join(map(shown, text.split("\n")))


class ShownFormatter(logging.Formatter):
    """Formats what is logged, the names in it as a terminal can show them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        return shown_lines(super().format(record))


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Let this process log its sentences to its standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(ShownFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
