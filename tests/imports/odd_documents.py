"""Documents in which one place holds something odd, and what is said of each."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from voxelgate.core.errors import VoxelgateError


def places_in(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, part in parts:
        yield (*path, key)
        yield from places_in(part, (*path, key))


ODD = [10**9, -1, 0, 10**400, 1e308, math.nan, math.inf, True, None, "", "x", [], {}, [[]], [None], {"x": None}]


def changed(document: Mapping[str, Any], path: tuple[Any, ...], value: Any) -> Any:
    copied: Any = copy.deepcopy(document)
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = copy.deepcopy(value)
    return copied


def refusals(read: Callable[[Any], object], document: Mapping[str, Any], odds: Sequence[Any] = ODD) -> list[str]:
    """Return what is said where one place of a document holds something odd."""
    said = []
    for path in places_in(document):
        for odd in odds:
            try:
                read(changed(document, path, odd))
            except VoxelgateError as error:
                said.append(str(error))
    return said
