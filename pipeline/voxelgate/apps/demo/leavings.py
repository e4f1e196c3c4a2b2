"""What a demo leaves in its folder, and what the next one there may replace."""

from pathlib import Path

from voxelgate.core.errors import OutputError
from voxelgate.core.files import refuse_file

LEAVINGS = ("data", "held_out", "bundle", "trained_bundle", "segmented", "index.html")


def earlier_demo(out: Path, *, overwrite: bool) -> list[Path]:
    """Return what an earlier demo left in a folder.

    Raises:
        OutputError: `out` is a file, or holds something that may not be replaced.
    """
    refuse_file(out)
    found = [out / name for name in LEAVINGS if (out / name).exists()]
    if found and not overwrite:
        raise OutputError(f"{out} holds {found[0].name} already; name another folder (--out), or pass --overwrite")
    return found
