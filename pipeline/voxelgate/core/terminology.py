"""Codes that say what a structure is, and a table of anatomical names that have one.

`terminology.json` holds facts, not text, of three sources: SNOMED CT codes and colours of the TotalSegmentator mapping
(Apache-2.0), of 3D Slicer's general anatomy list as dcmqi ships it (BSD-3), and of the context groups of DICOM PS3.16
as pydicom lists them (`pydicom.sr`, MIT). Where PS3.16 contradicts the mapping, PS3.16 counts: 29700009 is the right
subclavian artery only, and the left auricular appendage has a code of its own. The anterior and posterior parts of the
hippocampus are its code with an anatomic modifier (CID 2). A name without a code there has none: nothing is guessed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

Rgb = tuple[int, int, int]

SNOMED_CT = "SCT"
"""Coding scheme designator of SNOMED CT (PS3.16 table 8-1)."""

ANATOMICAL_STRUCTURE = "123037004"
"""SNOMED CT category of a structure whose entry names no other one (PS3.16 CID 7150)."""

MOST_VALUE_CHARACTERS = 16
"""Length of Code Value and of Coding Scheme Designator, VR SH (PS3.5 6.2)."""

MOST_MEANING_CHARACTERS = 64
"""Length of Code Meaning, VR LO (PS3.5 6.2)."""

_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")
"""Between two words of `RightParotid`."""

_CODED_KEYS = ("category", "type", "modifier", "region", "region_modifier")


@dataclass(frozen=True)
class Code:
    """A concept of a coding scheme.

    Args:
        value: the code, such as "64033007".
        scheme: who defined it, such as "SCT" for SNOMED CT.
        meaning: what it says in words.

    Raises:
        ValueError: a part is empty, too long for DICOM, or holds a backslash or control character.
    """

    value: str
    scheme: str
    meaning: str

    def __post_init__(self) -> None:
        limits = (
            (self.value, MOST_VALUE_CHARACTERS),
            (self.scheme, MOST_VALUE_CHARACTERS),
            (self.meaning, MOST_MEANING_CHARACTERS),
        )
        for text, most in limits:
            if not isinstance(text, str) or not text.strip() or len(text) > most:
                raise ValueError(f"a part of a code is text of 1 to {most} characters, found {text!r}")
            if "\\" in text or not text.isprintable():
                raise ValueError(f"a part of a code holds no backslash or control character, found {text!r}")

    def __str__(self) -> str:
        """Return code, scheme and meaning, as people write it.

        >>> str(Code("64033007", "SCT", "Kidney"))
        '(64033007, SCT, "Kidney")'
        """
        return f'({self.value}, {self.scheme}, "{self.meaning}")'

    @classmethod
    def from_mapping(cls, parts: Mapping[str, str]) -> "Code":
        """Build a code from `{"value": ..., "scheme": ..., "meaning": ...}`.

        Raises:
            ValueError: a part is missing, unknown or unfit.
        """
        if not isinstance(parts, Mapping) or set(parts) != {"value", "scheme", "meaning"}:
            raise ValueError(f"a code has value, scheme and meaning, found {parts!r}")
        return cls(parts["value"], parts["scheme"], parts["meaning"])


@dataclass(frozen=True)
class Coding:
    """What a segment is, in the terms of a DICOM segment description (PS3.3 C.8.20.4).

    Args:
        category: the kind of thing, such as an anatomical structure.
        type: the thing, such as a kidney.
        modifier: the side of the thing, or another modifier; None if there is none.
        region: where an abnormality lies, such as the liver; None if the type says it.
        region_modifier: the side of the region; only with a region.
        rgb: colour to show it in, three numbers from 0 to 255; None if the source recommends none.

    Raises:
        ValueError: a side of no region, or a colour that is not three whole numbers from 0 to 255.
    """

    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None
    rgb: Rgb | None = None

    def __post_init__(self) -> None:
        if self.region_modifier is not None and self.region is None:
            raise ValueError("a region modifier needs a region")
        if self.rgb is not None:
            object.__setattr__(self, "rgb", _rgb(self.rgb))

    @classmethod
    def from_mapping(cls, parts: Mapping[str, Any]) -> "Coding":
        """Build a coding from what JSON holds: codes by the names of the fields, `rgb` as a list.

        Raises:
            ValueError: category or type is missing, a name is unknown, or a value is unfit.
        """
        if not isinstance(parts, Mapping):
            raise ValueError(f"a coding is a table of codes, found {parts!r}")  # noqa: TRY004 - a value of a file
        if unknown := set(parts) - {*_CODED_KEYS, "rgb"}:
            raise ValueError(f"a coding has no {', '.join(sorted(unknown))}, only {', '.join(_CODED_KEYS)} and rgb")
        if missing := {"category", "type"} - set(parts):
            raise ValueError(f"a coding needs {' and '.join(sorted(missing))}")
        codes = {key: Code.from_mapping(parts[key]) for key in _CODED_KEYS if key in parts}
        return cls(**codes, rgb=parts.get("rgb"))

    def to_mapping(self) -> dict[str, Any]:
        """Return what `from_mapping` reads."""
        codes = {key: asdict(code) for key in _CODED_KEYS if (code := getattr(self, key)) is not None}
        return codes | ({} if self.rgb is None else {"rgb": list(self.rgb)})

    def __str__(self) -> str:
        """Return the type with what modifies it, and where it lies."""
        modifiers = (self.modifier, self.region, self.region_modifier)
        return ", ".join(map(str, (self.type, *(code for code in modifiers if code is not None))))


def normalised(name: str) -> str:
    """Return the words of a name in lower case and alphabetical order: what a lookup compares.

    >>> normalised("Kidney, left") == normalised("kidney_left") == normalised("LeftKidney")
    True
    """
    return " ".join(sorted(_WORD.findall(_HUMP.sub(" ", name).casefold())))


def find_coding(name: str) -> Coding | None:
    """Return the coding of an anatomical name, or None: only the very words of the table are found, nothing similar.

    >>> find_coding("Left kidney").type.meaning
    'Kidney'
    """
    return _codings().get(normalised(name))


def similar_names(name: str, most: int = 3) -> list[str]:
    """Return names of the table that have a word of this one, those that have the most in common first.

    >>> similar_names("left kidny cyst")[0]
    'kidney cyst left'
    """
    words = normalised(name)
    sharing = [known for known in _codings() if set(known.split()) & set(words.split())]
    nearest = get_close_matches(words, sharing, n=most, cutoff=0.0)
    named = {normalised(known): known for known in _table()["structures"]}
    return [named[known] for known in nearest]


@cache
def _codings() -> dict[str, Coding]:
    table = _table()
    codes = {value: Code(value, SNOMED_CT, meaning) for value, meaning in table["codes"].items()}
    return {normalised(name): _from_table(entry, codes) for name, entry in table["structures"].items()}


@cache
def _table() -> dict[str, Any]:
    return dict(json.loads(files("voxelgate.core").joinpath("terminology.json").read_text(encoding="utf-8")))


def _from_table(entry: Mapping[str, str], codes: Mapping[str, Code]) -> Coding:
    known = {"category": ANATOMICAL_STRUCTURE, **entry}
    parts = {key: codes[known[key]] for key in _CODED_KEYS if key in known}
    colour = bytes.fromhex(entry.get("rgb", ""))
    return Coding(**parts, rgb=(colour[0], colour[1], colour[2]) if colour else None)


def _rgb(values: Any) -> Rgb:
    is_list = isinstance(values, list | tuple) and len(values) == 3
    if not is_list or any(type(value) is not int or not 0 <= value <= 255 for value in values):
        raise ValueError(f"a colour is three whole numbers from 0 to 255, found {values!r}")
    return values[0], values[1], values[2]
