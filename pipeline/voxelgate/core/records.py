"""What pydantic finds wrong with a record, in one sentence."""

from typing import Any

from pydantic import ValidationError

ABSENT = {"missing", "missing_argument"}
UNKNOWN = {"unexpected_keyword_argument", "extra_forbidden"}


def record_problem(error: ValidationError) -> str:
    """Return the first problem: which field, what it holds and what was expected."""
    first = error.errors(include_url=False)[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] in ABSENT:
        return f"{field} is missing"
    if first["type"] in UNKNOWN:
        return f"{field} is not a value of it"
    reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{field} is {_shortened(first['input'])}, {reason}" if field else reason


def _shortened(value: Any) -> str:  # what was found may be anything
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


LONGEST_VALUE = 80
"""Characters of a value that are shown; it may be a whole record."""
