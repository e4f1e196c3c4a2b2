"""Manifests that tests write as the documents they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelgate.datasets.build_manifest import write_manifest
from voxelgate.datasets.manifest import manifest_from_document


def write_document(document: Mapping[str, Any], path: Path, *, overwrite: bool = False) -> None:
    """Write a manifest whose paths are relative to its folder."""
    write_manifest(manifest_from_document(dict(document), path.parent), path, overwrite=overwrite)
