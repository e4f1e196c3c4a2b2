"""Tables for spreadsheets: CSV in which no cell is a formula."""

import csv
import io
import re
from collections.abc import Iterable

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""With these a cell would be a formula in a spreadsheet (OWASP, CSV injection); the last four are their wide forms."""

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
"""What may begin with a sign."""


def csv_text(rows: Iterable[Iterable[str]]) -> str:
    """Return rows as CSV (RFC 4180); `'` stands before what a spreadsheet would take for a formula.

    >>> csv_text([("=A0", "-1.5")]).strip()
    "'=A0,-1.5"
    """
    text = io.StringIO()
    writer = csv.writer(text)
    for row in rows:
        writer.writerow(map(_no_formula, row))
    return text.getvalue()


def _no_formula(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) and not _NUMBER.fullmatch(cell) else cell
