"""What files beside the images of a data set say: whose case it is, and what the label values mean."""

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from voxelgate.core.documents import read_json
from voxelgate.core.errors import ManifestError, UsageError
from voxelgate.datasets.manifest import named_values, schema_problem

SUBJECTS_FILE = "subjects.json"
"""May say which cases belong to one subject (`subject_group`), and name the `labels`."""

LABELS_FILE = "labels.json"
"""May name the label values: `{"1": "liver"}`, or the same under `labels`."""

_NAMES = {"type": "object", "additionalProperties": {"type": "string"}, "propertyNames": {"pattern": "^[0-9]+$"}}
_NOTES = Draft202012Validator(
    {
        "type": "object",
        "properties": {
            "subject_group": {"type": "object", "additionalProperties": {"type": ["string", "integer"]}},
            "labels": _NAMES,
        },
    }
)
"""Layout of both files, where a name stands under `labels`; what else they say is left alone."""

_TABLE = Draft202012Validator({"type": "object", "additionalProperties": {"type": ["string", "integer"]}})
_ONLY_NAMES = Draft202012Validator(_NAMES)


@dataclass(frozen=True)
class Notes:
    """What is said beside the images; empty or None where nothing is.

    Args:
        subject_group: subject of a case id, or of the number it ends with.
        labels: name of each label value, background included.
    """

    subject_group: Mapping[str, str]
    labels: Mapping[str, str] | None


def read_notes(root: Path) -> Notes:
    """Return what `subjects.json` and `labels.json` in a folder say.

    Raises:
        ManifestError: one of them cannot be understood, or they give the values different names.
    """
    subjects, named = _content_of_notes(root / SUBJECTS_FILE), _content_of_notes(root / LABELS_FILE)
    is_bare = "labels" not in named and "subject_group" not in named
    if named and is_bare:
        _check_notes(LABELS_FILE, _ONLY_NAMES, named)
    stated = [names for names in (subjects.get("labels"), named if is_bare else named.get("labels")) if names]
    tables = [{"0": "background"} | {str(int(value)): name for value, name in names.items()} for names in stated]
    if len(tables) > 1 and tables[0] != tables[1]:
        raise ManifestError([f"{SUBJECTS_FILE} and {LABELS_FILE} give the label values other names; keep one of them."])
    return Notes(
        {key: str(group) for key, group in subjects.get("subject_group", {}).items()}, tables[0] if tables else None
    )


def read_subjects(path: Path) -> dict[str, str]:
    """Return the subject of every case that a file lists.

    Args:
        path: CSV whose first two columns are case and subject, with a line of titles; or JSON such as
            `{"case_1": "person"}`, also under `subject_group`.

    Raises:
        UsageError: it cannot be read, or lists a case twice with different subjects.
    """
    try:
        pairs = _pairs_of_json(path) if path.suffix.lower() == ".json" else _pairs_of_csv(path)
    except (OSError, ValueError, ValidationError, csv.Error) as error:
        reason = schema_problem(error).rstrip(".") if isinstance(error, ValidationError) else error
        raise UsageError(
            f"{path.name}: no table of subjects ({reason}); write lines such as case_1,person_7 under the titles "
            "case,subject"
        ) from error
    subject_of: dict[str, str] = {}
    for case, subject in pairs:
        if subject_of.setdefault(case, subject) != subject:
            raise UsageError(f"{path.name}: case {case} has two subjects; keep one line of it")
    return subject_of


def subjects_by_pattern(case_ids: Iterable[str], pattern: str) -> dict[str, str]:
    r"""Return the subject of every case: what the first group of a regular expression finds in its id.

    Raises:
        UsageError: it is none, has no group, or finds nothing in some case.

    >>> subjects_by_pattern(["Image_01L", "Image_01R"], r"Image_(\d+)")
    {'Image_01L': '01', 'Image_01R': '01'}
    """
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"subjects {pattern!r}: neither a file nor a regular expression ({error})") from error
    if rule.groups < 1:
        raise UsageError(
            f"subjects {pattern!r}: no such file, and no pattern with a group for the subject such as Image_([0-9]+)"
        )
    found = {case_id: rule.search(case_id) for case_id in case_ids}
    if without := [case_id for case_id, match in found.items() if match is None or not match[1]]:
        raise UsageError(
            f"subjects {pattern!r}: finds no subject in {len(without)} of {len(found)} cases, such as {without[0]}; "
            "widen the pattern"
        )
    return {case_id: match[1] for case_id, match in found.items() if match is not None}


def _content_of_notes(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ManifestError([f"{path.name}: {error}."]) from error
    _check_notes(path.name, _NOTES, content)
    return dict(content)


def _check_notes(name: str, layout: Draft202012Validator, content: Any) -> None:
    try:
        layout.validate(content)
        if names := content.get("labels", content if layout is _ONLY_NAMES else {}):
            named_values({"0": "background"} | dict(names), ())
    except ValueError as error:
        raise ManifestError([f"{name}: {error}."]) from error
    except ValidationError as error:
        raise ManifestError([f"{name}: {schema_problem(error)}"]) from error


def _pairs_of_json(path: Path) -> list[tuple[str, str]]:
    content = read_json(path)
    table = content.get("subject_group", content) if isinstance(content, dict) else content
    _TABLE.validate(table)
    return [(case, str(subject)) for case, subject in table.items()]


def _pairs_of_csv(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        _, *rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)] or [[]]
    if short := [number for number, row in enumerate(rows, 2) if len(row) < 2 or not all(map(str.strip, row[:2]))]:
        raise ValueError(f"line {short[0]} has no case and subject")
    if not rows:
        raise ValueError("no line but the titles")
    return [(row[0].strip(), row[1].strip()) for row in rows]
