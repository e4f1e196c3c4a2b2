"""JSON documents from elsewhere: whatever is wrong with one is a ValueError, and no key hides another."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from voxelgate.core.files import read_text

DEEPEST = 100
"""Objects and lists inside each other; ours have ten at most, and Python ends at about a thousand."""

_UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""What no name of a file and no output can hold."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; a byte order mark before it does not matter.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8 or no JSON, is nested too deeply, says something twice, or holds texts with NUL or
            half of a surrogate pair; the message names no file.
    """
    return parse_json(read_text(path).removeprefix("\ufeff"))


def parse_json(text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: as for `read_json`.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    ValueError: the key 'a' stands 2 times in one object
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [document]
    for _ in range(DEEPEST):
        level = [part for one in level for part in _checked_parts(one)]
        if not level:
            return document
    raise ValueError("it is nested too deeply")


def _checked_parts(value: Any) -> list[Any]:
    """Return what a value consists of, and refuse texts that nothing can be done with."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, str) and (odd := _UNUSABLE.search(value)):
        what = "NUL" if odd[0] == "\0" else "half of a surrogate pair"
        raise ValueError(f"the text {value!a} holds {what}")
    return value if isinstance(value, list) else []


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise ValueError(f"the key {key!r} stands {times} times in one object")
    return dict(pairs)
