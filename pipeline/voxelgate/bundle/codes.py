"""Codes of a bundle's structures: which it has, which the table has by name, and how they get into its metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxelgate.bundle.checksums import is_sealed, seal, verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.core.errors import UsageError
from voxelgate.core.labels import LabelTable
from voxelgate.core.terminology import Coding, find_coding, similar_names


@dataclass(frozen=True)
class StructureCode:
    """A structure of a bundle and its code.

    Args:
        value: of the label.
        name: of the structure.
        coding: None if neither the bundle nor the table has one.
        similar: without a code, names of the table that are somewhat like this one.
    """

    value: int
    name: str
    coding: Coding | None
    similar: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return value, name and code, or what could be meant."""
        if self.coding is not None:
            return f"{self.value} {self.name}: {self.coding}"
        meant = f"; the table has {', '.join(self.similar)}" if self.similar else ""
        return f"{self.value} {self.name}: no code{meant}"


def propose_codes(root: Path, known_as: Mapping[str, str] | None = None) -> list[StructureCode]:
    """Return the code of each structure: that of the bundle, or what the table has under its name in any word order.

    Args:
        root: the bundle's folder.
        known_as: for some structures, what the table calls them; this counts before what the bundle has.

    Raises:
        BundleError: no bundle.
        UsageError: the bundle has no such structure, or the table no such name.
    """
    table, wanted = Metadata.read(root).labels, dict(known_as or {})
    if unknown := sorted(set(wanted) - set(table.foreground.values())):
        known = ", ".join(table.foreground.values())
        raise UsageError(f"{unknown[0]}: is no structure of {root.name}; its structures are {known}.")
    for other in wanted.values():
        if find_coding(other) is None:
            like = ", ".join(similar_names(other)) or "nothing like it"
            raise UsageError(f"{other}: is no name of the table of codes, which has {like}; name one of the table.")
    return [_code_of(table, value, wanted.get(name)) for value, name in table.foreground.items()]


def _code_of(table: LabelTable, value: int, known_as: str | None) -> StructureCode:
    coding = table.find_coding(value) if known_as is None else find_coding(known_as)
    similar = () if coding is not None else tuple(similar_names(table.names[value]))
    return StructureCode(value, table.names[value], coding, similar)


def write_codes(root: Path, proposed: Sequence[StructureCode]) -> str:
    """Write codes into a bundle's metadata, and seal it anew if it was sealed; return its fingerprint, or nothing.

    Args:
        root: the bundle's folder; where it is sealed, nothing but the codes may have changed since.
        proposed: from `propose_codes`; those without a code are left out.

    Raises:
        BundleError: it was altered since it was sealed, or its metadata are unfit or cannot be written.
    """
    sealed = is_sealed(root)
    if sealed:
        verify(root)
    codes = {str(one.value): one.coding.to_mapping() for one in proposed if one.coding is not None}
    Metadata.read(root).write_with(label_codes=codes or None)
    return seal(root) if sealed else ""
