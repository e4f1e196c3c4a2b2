"""Foreign folders as opened bundles, by the way of the command `import`."""

from pathlib import Path
from typing import Any

from voxelgate.bundle.imports.imported import ImportOptions
from voxelgate.bundle.imports.readers import read_model
from voxelgate.bundle.imports.sealed import write_imported
from voxelgate.bundle.imports.source import opened_source
from voxelgate.bundle.opened import open_bundle
from voxelgate.bundle.predict import Bundle


def imported_bundle(path: Path, out: Path, **options: Any) -> Bundle:
    """Import a folder as a bundle `out`, and open it on the CPU."""
    with opened_source(path) as source:
        write_imported(out, read_model(source, ImportOptions(**options)), source)
    return open_bundle(out, "cpu")
