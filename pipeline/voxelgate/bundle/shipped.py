"""The bundles that are found by name from any folder: those that come with the package, and those that are kept."""

import os
from pathlib import Path

from voxelgate.core.errors import BundleError, UsageError

PACKAGED = Path(__file__).resolve().parents[1] / "bundles"
"""Where a wheel carries them; `hatch_build.py` puts them there."""

CHECKOUT = Path(__file__).resolve().parents[3] / "bundles"
"""Where they stand in a checkout, which has no others."""


KEPT = "VOXELGATE_BUNDLES"
"""Environment variable that names the folder in which bundles are kept."""


def shipped_bundles() -> dict[str, Path]:
    """Return the folder of every bundle that comes with the package, by name.

    >>> sorted(shipped_bundles())
    ['head_neck_ct_segmentation', 'hippocampus_mri_segmentation']
    """
    return _bundles_in(PACKAGED if PACKAGED.is_dir() else CHECKOUT)


def folder_of_kept() -> Path:
    """Return where bundles are kept: as `KEPT` says, else in XDG's folder of data (`~/.local/share`)."""
    if asked := os.environ.get(KEPT):
        return Path(asked).absolute()
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (data if data.is_absolute() else Path.home() / ".local" / "share") / "voxelgate" / "bundles"


def kept_bundles() -> dict[str, Path]:
    """Return the folder of every bundle that is kept, by name; `voxelgate import` puts them there."""
    return _bundles_in(folder_of_kept())


def _bundles_in(folder: Path) -> dict[str, Path]:
    found = sorted(path.parents[1] for path in folder.glob("*/configs/metadata.json"))
    return {path.name: path for path in found if not path.name.startswith(".")}


def find_bundle(name_or_path: str | Path) -> Path:
    """Return the folder of a bundle that is given by its name or by its path.

    Args:
        name_or_path: a text without a separator is the name of a bundle that is shipped or kept, or else of a folder in
            the current one; a text with a separator (`./mine`) and a `Path` are always a folder.

    Raises:
        UsageError: several bundles have this name, or a bundle and a folder in the current one.
        BundleError: nothing has this name.

    >>> find_bundle("hippocampus_mri_segmentation").name
    'hippocampus_mri_segmentation'
    >>> find_bundle("./mine")
    PosixPath('mine')
    """
    path = Path(name_or_path)
    if not _is_name(name_or_path):
        return path
    found = [known[path.name] for known in (shipped_bundles(), kept_bundles()) if path.name in known]
    if path.is_dir() and not any(path.samefile(other) for other in found):
        found = [*found, path]
    if len(found) > 1:
        raise UsageError(
            f"{path} names {' and '.join(str(one.absolute()) for one in found)}; write the whole path of the one you "
            f"mean, or ./{path} for a folder of this one."
        )
    if found:
        return path if path.is_dir() else found[0]
    if path.exists():
        return path
    raise BundleError(
        f"{path} is neither a folder nor a bundle that is shipped or kept; name the folder of a bundle, or one of "
        f"{', '.join(sorted(shipped_bundles() | kept_bundles())) or 'none'}."
    )


def find_own_bundle(name_or_path: str | Path) -> Path:
    """Return the folder of a bundle that a command writes into, found as `find_bundle` does.

    Raises:
        UsageError: it is a shipped bundle, or as `find_bundle` says.
        BundleError: nothing has this name.
    """
    found = find_bundle(name_or_path)
    is_named = _is_name(name_or_path) and found in shipped_bundles().values()
    if is_named or found.resolve().is_relative_to(PACKAGED):
        raise UsageError(
            f"{found.name} came with the program and is only read; copy {found} and name the copy, or export "
            "with --out."
        )
    return found


def _is_name(name_or_path: str | Path) -> bool:
    """Return whether a text is a bare name; of a `Path` nobody knows whether `./` stood before it."""
    return isinstance(name_or_path, str) and name_or_path == Path(name_or_path).name
