"""JSON documents from elsewhere: whatever is wrong with one is a ValueError, and no key hides another."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from voxelgate.core.files import read_text


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8 or no JSON, is nested too deeply, or says something twice.
    """
    return parse_json(read_text(path))


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
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise ValueError(f"the key {key!r} stands {times} times in one object")
    return dict(pairs)
