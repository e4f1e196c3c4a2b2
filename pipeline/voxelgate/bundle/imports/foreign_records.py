"""Documents of foreign models as records, or a sentence on what is wrong with them."""

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from voxelgate.core.errors import BundleError
from voxelgate.core.records import record_problem

T = TypeVar("T")


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
