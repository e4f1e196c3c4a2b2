"""The checksums of a bundle: recorded by `seal`, compared by `verify`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from voxelgate.bundle.metadata import Metadata
from voxelgate.core.documents import read_json
from voxelgate.core.errors import BundleError
from voxelgate.core.files import file_sha256, write_text

CHECKSUMS = "checksums.json"
"""File in a bundle with the SHA-256 of every file that is executed or loaded."""

SEALED = (
    "configs/*.json",
    "models/*.pt",
    "models/network.ts",
    "scripts/**/*.py",
    "plan.json",
    "fingerprint.json",
    "seen.json",
    "quality.json",
)

WEIGHTS = "models/model.pt"

QUALITY = "quality.json"
"""File in a bundle by which the Dice of its results is foretold; made by a cross-validation."""

FOLD_WEIGHTS = "models/fold_*.pt"
"""Weights of the folds of a cross-validation, which can be averaged instead of using `WEIGHTS`."""


def ensemble_fingerprint(fingerprint: str) -> str:
    """Return what names the networks of all folds of a bundle together."""
    return hashlib.sha256(f"{fingerprint} ensemble".encode()).hexdigest()


def is_sealed(root: Path) -> bool:
    """Return whether a bundle's checksums were recorded, which is the last thing a training does."""
    return (root / CHECKSUMS).is_file()


def seal(root: Path) -> str:
    """Record the checksums of a bundle's configs and weights; return its fingerprint.

    Do this after changing a bundle on purpose: from then on any other change is refused.

    Raises:
        BundleError: `root` is no bundle, one of its files is none that can be read, or its metadata are unfit; every
            unfit part is named.
    """
    Metadata.read(root).check()
    checksums = _checksums(root)
    write_text(root / CHECKSUMS, json.dumps(checksums, indent=2) + "\n")
    return fingerprint_of(checksums)


def verify(root: Path) -> str:
    """Compare a bundle's files with its recorded checksums; return its fingerprint.

    Raises:
        BundleError: not sealed, or files are missing, altered or new; each is named.
    """
    Metadata.read(root)
    path = root / CHECKSUMS
    if not path.is_file():
        raise BundleError(
            f"{root.name}: {CHECKSUMS} is missing, so its configs cannot be trusted; train the bundle, or run "
            "`voxelgate bundle seal` if you made it yourself"
        )
    try:
        recorded = dict(read_json(path))
    except (OSError, TypeError, ValueError) as error:
        raise BundleError(f"{root.name}: {CHECKSUMS} is no JSON object; restore the bundle") from error
    found = _checksums(root)
    changed = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
    if changed:
        raise BundleError(
            f"{root.name}: {', '.join(changed)} changed since the bundle was sealed; restore the files, or run "
            "`voxelgate bundle seal` if you changed them on purpose"
        )
    return fingerprint_of(found)


def _checksums(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that counts.

    Raises:
        BundleError: one cannot be read, or is a link, a pipe, a device or a folder.
    """
    names = sorted(path.relative_to(root).as_posix() for pattern in SEALED for path in root.glob(pattern))
    found = {}
    for name in names:
        _refuse_link(root, name)
        try:
            found[name] = file_sha256(root / name)
        except OSError as error:
            raise BundleError(f"{root.name}: {name} cannot be read ({error.strerror}); restore the bundle") from error
    return found


def _refuse_link(root: Path, name: str) -> None:
    """Refuse a file that lies elsewhere, where others may change it and whence nobody takes it along.

    Raises:
        BundleError: it is a link, or lies in a folder that is one; the bundle's own folder may be.
    """
    below = [root / name, *(root / part for part in Path(name).parents if part.name)]
    if link := next((path for path in below if path.is_symlink()), None):
        raise BundleError(
            f"{root.name}: {link.relative_to(root)} is a link, and a bundle holds its files itself; copy it with links "
            "followed (`cp -rL`)"
        )


def fingerprint_of(checksums: Mapping[str, str]) -> str:
    """Return the SHA-256 over checksums by name."""
    return hashlib.sha256(json.dumps(dict(sorted(checksums.items()))).encode()).hexdigest()
