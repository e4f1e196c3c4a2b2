"""What a zoo bundle says of itself beside its configs: terms, modality, description."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from voxelgate.bundle.imports.foreign_records import licence_in, text_of
from voxelgate.bundle.imports.source import ImportSource
from voxelgate.bundle.imports.zoo_labels import part_of
from voxelgate.bundle.metadata import MODALITY_OF
from voxelgate.datasets.manifest import Modality

LICENCE_FILES = ("LICENSE", "docs/data_license.txt", "docs/license.txt")
"""Files with the terms of code, weights and data; those that are there are copied."""

KEPT_FACTS = ("authors", "copyright", "intended_use", "data_source", "references")
"""Entries of `metadata.json` that stay as they are."""

_TITLE_WORDS = 12


def description_of(metadata: Mapping[str, Any], name: str) -> str:
    """Return a sentence on what a bundle does."""
    said = text_of(metadata, "description") or text_of(metadata, "task") or f"Imported from {name}"
    return said if said.endswith(".") else f"{said}."


def modality_of(metadata: Mapping[str, Any]) -> str:
    """Return the modality by our name, such as MRI for what others call MR, or what the bundle says."""
    said = text_of(part_of(metadata, "inputs", "image"), "modality")
    known = MODALITY_OF.get(said.upper(), said)
    return str(Modality.MRI) if known == "MR" else known


def licence_of(source: ImportSource, metadata: Mapping[str, Any]) -> str:
    """Return the terms in short: the title of the licence file, else what the metadata say; empty if neither is there.

    Raises:
        InputError: the file cannot be read.
    """
    if not source.has(LICENCE_FILES[0]):
        return licence_in(metadata)
    lines = [" ".join(line.split()) for line in source.text(LICENCE_FILES[0]).splitlines() if line.strip()]
    has_version = len(lines) > 1 and lines[1].startswith("Version ")
    title = ", ".join(lines[:2] if has_version else lines[:1])
    return " ".join(title.split()[:_TITLE_WORDS])


def on_packages(metadata: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the packages that a bundle requires and that are not installed here; none if all are."""
    required = metadata.get("required_packages_version")
    names = sorted(str(name) for name in required) if isinstance(required, Mapping) else []
    missing = [name for name in names if not _is_installed(name)]
    return (
        [f"It names packages that are not installed: {', '.join(missing)}; most serve its training."] if missing else []
    )


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except (PackageNotFoundError, ValueError):
        return False
    return True
