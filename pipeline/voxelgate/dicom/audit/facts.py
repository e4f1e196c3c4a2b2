"""What the rules of the audit look at, and how they word what they find."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from voxelgate.core.findings import Allow, Finding, FindingCode, Severity
from voxelgate.dicom.read.headers import Header
from voxelgate.dicom.read.stack import Slice, by_position, slices_of
from voxelgate.dicom.read.stack_shape import StackShape, measure_stack

SHOWN_NUMBERS = 5
"""Instance numbers that a sentence names before it says how many more there are."""


@dataclass(frozen=True, eq=False)
class SeriesFacts:
    """The headers of one series, and what several rules derive from them.

    Args:
        headers: at least one, without copies.
        allow: faults that will be mended.
    """

    headers: tuple[Header, ...]
    allow: frozenset[Allow] = frozenset()

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """Return every plane, in the order of the headers."""
        return slices_of(self.headers)

    @cached_property
    def positions(self) -> tuple[tuple[Slice, ...], ...]:
        """Return the planes grouped by position along the normal; all must have a sound geometry."""
        return by_position(self.slices)

    @cached_property
    def stack(self) -> tuple[Slice, ...]:
        """Return the planes in order; each must have a position of its own."""
        return tuple(group[0] for group in self.positions)

    @cached_property
    def shape(self) -> StackShape:
        """Return how evenly and how straight the stack is; it needs two planes at least."""
        return measure_stack(self.stack)

    @property
    def modality(self) -> str:
        """Return the modality; the rules on kinds see to it that there is one."""
        return self.headers[0].modality


def refuse(code: FindingCode, message: str) -> Finding:
    """Return a finding that speaks against reading."""
    return Finding(code, Severity.REFUSE, message)


def warn(code: FindingCode, message: str) -> Finding:
    """Return a finding that somebody should look at."""
    return Finding(code, Severity.WARN, message)


def note(code: FindingCode, message: str) -> Finding:
    """Return a finding that changes nothing."""
    return Finding(code, Severity.NOTE, message)


def share(found: Sequence[Header] | Sequence[Slice], of: Sequence[Header] | Sequence[Slice]) -> str:
    """Say how many, and which by their numbers where it is not all.

    >>> share((), ())
    'all 0 images'
    """
    if len(found) == len(of):
        return f"all {len(of)} images" if len(of) != 1 else "the only image"
    return f"{len(found)} of {len(of)} images{_listed_numbers(found)}"


def _listed_numbers(found: Sequence[Header] | Sequence[Slice]) -> str:
    numbers = sorted({number for part in found if (number := _number_of_slice(part)) is not None})
    if not numbers:
        return ""
    shown = ", ".join(str(number) for number in numbers[:SHOWN_NUMBERS])
    more = f" and {len(numbers) - SHOWN_NUMBERS} more" if len(numbers) > SHOWN_NUMBERS else ""
    return f" (number {shown}{more})"


def _number_of_slice(part: Header | Slice) -> int | None:
    if isinstance(part, Header):
        return part.instance_number
    before = part.header.concatenation.offset or 0 if part.header.concatenation else 0
    return before + part.plane.frame + 1 if part.header.frames > 1 else part.header.instance_number
