"""The bundles that come with the package, which are found by name from any folder."""

from pathlib import Path

from voxelgate.core.errors import BundleError, UsageError

PACKAGED = Path(__file__).resolve().parents[1] / "bundles"
"""Where a wheel carries them; `hatch_build.py` puts them there."""

CHECKOUT = Path(__file__).resolve().parents[3] / "bundles"
"""Where they stand in a checkout, which has no others."""


def shipped_bundles() -> dict[str, Path]:
    """Return the folder of every bundle that comes with the package, by name.

    >>> sorted(shipped_bundles())
    ['head_neck_ct_segmentation', 'hippocampus_mri_segmentation']
    """
    folder = PACKAGED if PACKAGED.is_dir() else CHECKOUT
    found = sorted(path.parents[1] for path in folder.glob("*/configs/metadata.json"))
    return {path.name: path for path in found}


def find_bundle(name_or_path: str | Path) -> Path:
    """Return the folder of a bundle that is given by its name or by its path.

    Args:
        name_or_path: a text without a separator is the name of a shipped bundle, or else of a folder in the current
            one; a text with a separator (`./mine`) and a `Path` are always a folder.

    Raises:
        UsageError: a shipped bundle and a folder in the current one have this name.
        BundleError: nothing has this name.

    >>> find_bundle("hippocampus_mri_segmentation").name
    'hippocampus_mri_segmentation'
    >>> find_bundle("./mine")
    PosixPath('mine')
    """
    path = Path(name_or_path)
    if not _is_name(name_or_path):
        return path
    shipped = shipped_bundles()
    inside = shipped.get(path.name)
    if inside is None and not path.exists():
        raise BundleError(
            f"{path} is neither a folder nor a shipped bundle; name the folder of a bundle, or one of "
            f"{', '.join(shipped) or 'none'}."
        )
    if inside is None or not path.is_dir():
        return inside or path
    if path.samefile(inside):
        return path
    raise UsageError(
        f"{path} names both the shipped bundle {inside} and the folder {path.absolute()}; write ./{path} for the "
        "folder, or run this elsewhere for the shipped bundle."
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
