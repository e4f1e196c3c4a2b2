"""What numbers a plan may hold, so that a slip in a file of overrides is told before any work starts."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from voxelgate.core.errors import UsageError


class RangeRule(NamedTuple):
    """What a number must be: for people, and as a test."""

    wanted: str
    holds: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return type(value) in {int, float}


COUNT = RangeRule("a whole number from 1", lambda value: type(value) is int and value >= 1)
WHOLE = RangeRule("a whole number from 0", lambda value: type(value) is int and value >= 0)
AMOUNT = RangeRule("a number from 0", lambda value: _is_number(value) and value >= 0)
POSITIVE = RangeRule("a number above 0", lambda value: _is_number(value) and value > 0)
SHARE = RangeRule("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
BELOW_1 = RangeRule("a number from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1)


def expect(record: object, rule: RangeRule, *names: str) -> None:
    """Refuse a record with a field that breaks a rule; of tuples each number is tested, however deep.

    Raises:
        UsageError: names the field, what it holds and what was expected.
    """
    for name in names:
        value = getattr(record, name)
        if not all(map(rule.holds, _numbers(value))):
            raise UsageError(f"{name} is {value!r}, expected {rule.wanted}")


def expect_axes(record: object, *names: str) -> None:
    """Refuse a record with a field that does not hold a number for each of three axes, or tuples of such.

    Raises:
        UsageError: names the field, and what it holds.
    """
    for name in names:
        value = getattr(record, name)
        rows = value if value and isinstance(value[0], tuple) else (value,)
        if any(len(row) != 3 for row in rows):
            raise UsageError(f"{name} is {value!r}, expected a number for each of three axes")


def _numbers(value: Any) -> Iterator[Any]:  # a number, or tuples of them
    if isinstance(value, tuple):
        for part in value:
            yield from _numbers(part)
    else:
        yield value
