"""Codes of structures that somebody wrote down for an import: JSON or CSV, by name or value of the label."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelgate.core.documents import parse_json
from voxelgate.core.errors import InputError, UsageError
from voxelgate.core.files import read_text
from voxelgate.core.labels import LabelTable
from voxelgate.core.terminology import (
    ANATOMICAL_STRUCTURE,
    SNOMED_CT,
    Code,
    Coding,
    find_coding,
    similar_names,
)

_COLUMNS = "label and known_as, or label, code and meaning"
_STRUCTURE = Code(ANATOMICAL_STRUCTURE, SNOMED_CT, "Anatomical Structure")


def read_label_codes(path: Path) -> dict[str, Coding]:
    """Read the coding of each label, by its name or value.

    Args:
        path: JSON such as `{"kidney": "left kidney", "2": {"category": {...}, "type": {...}}}`, a name of the table of
            codes or a coding as `label_codes` in `metadata.json` has it; or CSV with the columns label and known_as, or
            label, code, meaning and perhaps scheme, which is SNOMED CT's (SCT) where none is given.

    Raises:
        InputError: it cannot be read, or an entry is no code and no name of the table.
    """
    try:
        text = read_text(path).removeprefix("\ufeff")
        stated = _from_csv(text) if path.suffix.lower() == ".csv" else parse_json(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a JSON or CSV file of codes.") from error
    except ValueError as error:
        raise InputError(f"{path}: is no table of codes ({error}); see `voxelgate import` in the reference.") from error
    if not isinstance(stated, dict):
        raise InputError(f"{path}: holds a {type(stated).__name__}, expected a code for each name of a label.")
    return {str(label): _coding_of(path, label, value) for label, value in stated.items()}


def with_codes(labels: LabelTable, codes: Mapping[str, Coding]) -> LabelTable:
    """Return a table in which some labels, given by name or value, have these codes.

    Raises:
        UsageError: there is no such label.
    """
    values = {name: value for value, name in labels.foreground.items()}
    values |= {str(value): value for value in labels.foreground}
    if unknown := sorted(set(codes) - set(values)):
        known = ", ".join(labels.foreground.values())
        raise UsageError(f"--codes: {unknown[0]} is no label of this model, which has {known}; correct the file.")
    coded = dict(labels.codings) | {values[label]: coding for label, coding in codes.items()}
    return LabelTable(labels.names, tuple(sorted(coded.items())))


def _from_csv(text: str) -> dict[str, Any]:
    rows = list(csv.DictReader(text.splitlines()))
    found: dict[str, Any] = {}
    for row in rows:
        label = (row.get("label") or "").strip()
        if not label or not ({"known_as"} <= row.keys() or {"code", "meaning"} <= row.keys()):
            raise ValueError(f"expected the columns {_COLUMNS} in every line, found {', '.join(map(str, row))}")
        if label in found:
            raise ValueError(f"the label {label!r} stands in it twice")
        found[label] = row["known_as"] if row.get("known_as") else _coded_row(row)
    return found


def _coded_row(row: Mapping[str, Any]) -> dict[str, Any]:
    kind = {"value": row.get("code"), "scheme": row.get("scheme") or SNOMED_CT, "meaning": row.get("meaning")}
    structure = {"value": _STRUCTURE.value, "scheme": _STRUCTURE.scheme, "meaning": _STRUCTURE.meaning}
    return {"category": structure, "type": kind}


def _coding_of(path: Path, label: object, value: Any) -> Coding:
    if isinstance(value, str):
        coding = find_coding(value)
        if coding is None:
            like = ", ".join(similar_names(value)) or "nothing like it"
            raise InputError(f"{path}: {value!r} of {label} is no name of the table of codes, which has {like}.")
        return coding
    try:
        return Coding.from_mapping(value)
    except ValueError as error:
        raise InputError(f"{path}: the code of {label} cannot be used ({error}); correct it.") from error
