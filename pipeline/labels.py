"""What the numbers of a label map mean: their names, and which of them are the two sides of one structure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SIDE = re.compile(r"left|right", re.IGNORECASE)
_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class LabelTable:
    """Names of the label values 0 (background), 1, 2, ... of a label map.

    Args:
        names: one name for each value, background first; all different, none empty.

    Raises:
        ValueError: fewer than two names, or names that are empty or not unique.

    >>> LabelTable(("background", "left parotid", "right parotid")).side_pairs
    ((1, 2),)
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(f"a label table names the background and at least one structure, found {self.names}")
        if len({name.strip().lower() for name in self.names} - {""}) != len(self.names):
            raise ValueError(f"label names must be unique and not empty, found {self.names}")

    @classmethod
    def from_mapping(cls, names: Mapping[str, str]) -> "LabelTable":
        """Build a table from `{"0": "background", "1": ...}`, the layout of manifests and of `channel_def`.

        Raises:
            ValueError: keys are not 0, 1, 2, ... without a gap.
        """
        if sorted(names) != sorted(str(index) for index in range(len(names))):
            raise ValueError(f"label values must be 0, 1, 2, ... without a gap, found {', '.join(sorted(names))}")
        return cls(tuple(names[str(index)] for index in range(len(names))))

    def to_mapping(self) -> dict[str, str]:
        """Return `{"0": "background", "1": ...}`."""
        return {str(index): name for index, name in enumerate(self.names)}

    @property
    def foreground(self) -> dict[int, str]:
        """Return value and name of every structure, without the background."""
        return dict(enumerate(self.names[1:], start=1))

    @property
    def side_pairs(self) -> tuple[tuple[int, int], ...]:
        """Return the pairs of values whose names differ only in left and right."""
        index_of = {name.lower(): index for index, name in enumerate(self.names)}
        pairs = {
            tuple(sorted((index, index_of[mirrored])))
            for name, index in index_of.items()
            if (mirrored := _mirrored(name)) != name and mirrored in index_of
        }
        return tuple(sorted((low, high) for low, high in pairs))

    @property
    def unpaired_sides(self) -> tuple[str, ...]:
        """Return the names that have a side but no partner; an image with one of them must not be mirrored."""
        paired = {index for pair in self.side_pairs for index in pair}
        return tuple(name for index, name in enumerate(self.names) if _SIDE.search(name) and index not in paired)


def _mirrored(name: str) -> str:
    return _SIDE.sub(lambda side: _OTHER_SIDE[side.group().lower()], name)
