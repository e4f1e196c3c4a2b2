"""What documents of foreign models say: records, or a sentence on what is wrong with them, and texts."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from voxelgate.core.errors import BundleError
from voxelgate.core.records import record_problem

T = TypeVar("T")


def text_of(document: Mapping[str, Any], key: str) -> str:
    """Return a text of a document on one line; empty if there is none."""
    found = document.get(key)
    return " ".join(found.split()) if isinstance(found, str) else ""


def licence_in(document: Mapping[str, Any]) -> str:
    """Return the licence that a document states in either spelling; empty if it states none."""
    return text_of(document, "licence") or text_of(document, "license")


def as_record(kind: type[T], given: Any, where: str) -> T:
    """Return what a document holds as a pydantic record.

    Args:
        kind: of the record.
        given: what the document holds.
        where: file and part that it was read from, for messages.

    Raises:
        BundleError: something is missing, of another type or out of its limits.
    """
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        raise BundleError(f"{where}: {record_problem(error)}; such a model cannot be imported.") from error
