"""What the numbers of a label map mean: names, codes, and which of them are the two sides of one structure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxelgate.core.errors import OutputError
from voxelgate.core.terminology import Coding, find_coding

IGNORED = -1
"""Value, in label maps that were read, of voxels that neither train nor count."""

HIGHEST = 65_535
"""Value of a label that a label map can hold."""

_SIDE = re.compile(r"(?<![A-Za-z])(?:left|right|LEFT|RIGHT)(?![a-z])|(?:Left|Right)(?![a-z])")
"""A side as a word of its own, also in `kidney_left` and `LeftKidney`, not in "bright"."""

_ONE_OF_ITS_KIND = re.compile(
    r"atri(um|al|a)(?![a-z])|ventric(le|ular)|bundle.?branch|coronary|gastric|colic(?![a-z])|colon(?![a-z])"
    r"|hepatic|liver|portal|middle.?lobe",
    re.IGNORECASE,
)
"""Parts of organs of which there is one, whatever side their names tell: of heart, liver, stomach, bowel and lungs.

In the mirror a left kidney would be a right one that nobody labelled; a left atrium is still the left atrium."""

_IN_THE_BRAIN = re.compile(r"lat(eral)?(?![a-z])|inf(erior)?.?lat|brain|cerebr|thalam|trigon", re.IGNORECASE)
"""Ventricles and atria that do have two sides."""

_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class LabelTable:
    """Names of the label values 0 (background), 1, 2, ... of a label map.

    Args:
        names: one name for each value, background first; all different. An empty one between others is a gap: no voxel
            has this value.
        codings: value and coding of the structures that say themselves what they are, in ascending order; a structure
            without one is looked up by its name.

    Raises:
        ValueError: fewer than two names, names that are not unique, a first or last one that is empty, or a coding of
            no structure.

    >>> LabelTable(("background", "left parotid", "right parotid")).side_pairs
    ((1, 2),)
    """

    names: tuple[str, ...]
    codings: tuple[tuple[int, Coding], ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(f"a label table names the background and at least one structure, found {self.names}")
        named = [name.strip().lower() for name in self.names if name]
        if len(set(named) - {""}) != len(named) or not (self.names[0] and self.names[-1]):
            raise ValueError(f"label names must be unique and not empty, found {self.names}")
        coded = [value for value, _ in self.codings]
        if coded != sorted(set(coded) & set(self.foreground)):
            raise ValueError(f"codes belong to the values 1 to {len(self.names) - 1}, each once, found {coded}")

    @classmethod
    def from_mapping(
        cls, names: Mapping[str, str], codings: Mapping[str, Any] | None = None, *, gaps: bool = False
    ) -> "LabelTable":
        """Build a table from `{"0": "background", "1": ...}`, the layout of manifests and of `channel_def`.

        Args:
            names: name of each value.
            codings: `{"1": {"category": {"value": ..., "scheme": ..., "meaning": ...}, "type": ...}}`, as
                `Coding.from_mapping` reads it; the layout of `label_codes` in a bundle's metadata.
            gaps: whether values may be left out.

        Raises:
            ValueError: keys are not 0, 1, 2, ... up to `HIGHEST`, or not without a gap, or a coding is unfit or of no
                structure.
        """
        values = range(len(names)) if not gaps else [value for value in range(HIGHEST + 1) if str(value) in names]
        if sorted(names) != sorted(map(str, values)):
            rule = f"0 to {HIGHEST}" if gaps else "0, 1, 2, ... without a gap"
            raise ValueError(f"label values must be {rule}, found {', '.join(sorted(names))}")
        if not set(codings or {}) <= set(names):
            raise ValueError(f"codes belong to label values, found {', '.join(map(str, codings or ()))}")
        coded = {int(value): Coding.from_mapping(parts) for value, parts in (codings or {}).items()}
        return cls(
            tuple(names.get(str(index), "") for index in range(max(values, default=-1) + 1)),
            tuple((value, coded[value]) for value in sorted(coded)),
        )

    def to_mapping(self) -> dict[str, str]:
        """Return `{"0": "background", "1": ...}`, without gaps."""
        return {str(index): name for index, name in enumerate(self.names) if name}

    def find_coding(self, value: int) -> Coding | None:
        """Return what the structure of this value is: as the table says, else as its name says, else None."""
        return dict(self.codings).get(value) or find_coding(self.names[value])

    def coding(self, value: int) -> Coding:
        """Return what the structure of this value is.

        Raises:
            OutputError: neither the table nor the name gives a code; none is ever invented.
        """
        coding = self.find_coding(value)
        if coding is None:
            raise OutputError(
                f"label {value} ({self.names[value]}): no code is known for this name, and DICOM demands one; write it "
                "into the bundle's metadata with `voxelgate bundle codes`."
            )
        return coding

    @property
    def foreground(self) -> dict[int, str]:
        """Return value and name of every structure, without the background and without gaps."""
        return {index: name for index, name in enumerate(self.names) if index and name}

    @property
    def side_pairs(self) -> tuple[tuple[int, int], ...]:
        """Return the pairs of values whose names differ only in left and right."""
        index_of = {name.lower(): index for index, name in enumerate(self.names)}
        pairs = {
            tuple(sorted((index, index_of[mirrored])))
            for name, index in index_of.items()
            if (mirrored := _other_side(name)) != name and mirrored in index_of
        }
        return tuple(sorted((low, high) for low, high in pairs))

    @property
    def unpaired_sides(self) -> tuple[str, ...]:
        """Return the names of a side of the body without its partner; an image of one must not be mirrored."""
        paired = {index for pair in self.side_pairs for index in pair}
        return tuple(name for index, name in enumerate(self.names) if _has_side(name) and index not in paired)


def _has_side(name: str) -> bool:
    """Return whether a name tells the side of the body, and not which part of an organ that has no mirror image."""
    return bool(_SIDE.search(name)) and (not _ONE_OF_ITS_KIND.search(name) or bool(_IN_THE_BRAIN.search(name)))


def _other_side(name: str) -> str:
    return _SIDE.sub(lambda side: _OTHER_SIDE[side.group().lower()], name)
