"""The versions of a model: sealed bundles in numbered folders that never change, and which of them is in use."""

import json
import logging
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from voxelgate.bundle.checksums import verify
from voxelgate.bundle.metadata import Metadata
from voxelgate.core.errors import BundleError, InputError, UsageError
from voxelgate.core.files import write_text

logger = logging.getLogger(__name__)

MODELS = "model"
"""Folder of an app with the versions of each model; MONAI Label makes one of this name too."""

ORIGIN = "origin.json"
"""File in the folder of a version that says where it comes from; no part of the bundle's fingerprint."""

CURRENT = "current"
"""File beside the versions with the number of the one in use."""

SCRATCH_PREFIX = ".candidate-"


@dataclass(frozen=True)
class Origin:
    """Where a version comes from.

    Args:
        parent: number of the version it was trained from; None for a bundle that was given.
        training_cases: how many annotated images it was trained on here.
        validation_cases: on how many others it was compared with its parent.
        dice: mean Dice on these; None for a bundle that was given.
        parent_dice: that of its parent.
        better_cases: on how many of these its Dice is higher than that of its parent.
        worse_cases: on how many it is lower.
    """

    parent: int | None = None
    training_cases: int = 0
    validation_cases: int = 0
    dice: float | None = None
    parent_dice: float | None = None
    better_cases: int = 0
    worse_cases: int = 0


@dataclass(frozen=True)
class ModelVersions:
    """The versions of one model in a folder.

    Every step is one rename, so that the server sees a version whole or not at all while another process trains.

    Args:
        root: folder of the model.
    """

    root: Path

    def numbers(self) -> list[int]:
        """Return the numbers of all versions, oldest first."""
        return sorted(int(path.name) for path in self.root.glob("[0-9]*") if path.is_dir())

    def path(self, number: int) -> Path:
        """Return the folder of a version.

        Raises:
            InputError: there is none of that number.
        """
        if number not in self.numbers():
            raise InputError(f"{self.root.name} has the versions {self._listed()}, not {number}; choose one of them.")
        return self.root / str(number)

    def origin(self, number: int) -> Origin:
        """Return where a version comes from."""
        return Origin(**json.loads((self.path(number) / ORIGIN).read_text(encoding="utf-8")))

    @property
    def current(self) -> int:
        """Return the number of the version in use.

        Raises:
            BundleError: nothing says which.
        """
        try:
            number = int((self.root / CURRENT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"{self.root.name}: nothing says which version is in use; import the bundle.") from error
        return number

    @property
    def current_path(self) -> Path:
        """Return the folder of the version in use."""
        return self.path(self.current)

    @property
    def previous(self) -> int | None:
        """Return the version that the one in use was trained from, if any."""
        return self.origin(self.current).parent

    def use(self, number: int) -> None:
        """Put a version into use, an earlier one too.

        Raises:
            InputError: there is none of that number.
            BundleError: its files have changed.
        """
        verify(self.path(number))
        write_text(self.root / CURRENT, f"{number}\n")
        logger.info("%s: version %d is in use", self.root.name, number)

    def scratch(self) -> Path:
        """Return a folder that does not exist, in which a candidate may grow."""
        return self.root / f"{SCRATCH_PREFIX}{secrets.token_hex(4)}"

    def remove_left_behind(self) -> None:
        """Remove the candidates of processes that died; one at a time makes any: the server, later a training."""
        for left_behind in self.root.glob(f"{SCRATCH_PREFIX}*"):
            shutil.rmtree(left_behind)

    def add(self, candidate: Path, origin: Origin) -> int:
        """Make a sealed bundle the newest version, not yet in use; return its number.

        Args:
            candidate: folder in `root`; it is renamed.
            origin: where it comes from.

        Raises:
            BundleError: its files are not those that were sealed.
        """
        verify(candidate)
        write_text(candidate / ORIGIN, json.dumps(asdict(origin)) + "\n")
        number = max(self.numbers(), default=0) + 1
        os.rename(candidate, self.root / str(number))  # noqa: PTH104 - fails where a folder of that name has files
        return number

    def _listed(self) -> str:
        return ", ".join(map(str, self.numbers())) or "none"


def import_bundle(bundle: Path, models: Path) -> ModelVersions:
    """Put a bundle into use as a version of the model of its name; one that is known already changes nothing.

    So the bundle that was given at the first start stays behind what was trained since, and a newer one replaces it.

    Args:
        bundle: folder of a sealed bundle.
        models: folder of all models; made if missing.

    Raises:
        BundleError: it is no sealed bundle, or its files have changed.
        UsageError: the versions of its name that are known have other labels.
    """
    fingerprint, metadata = verify(bundle), Metadata.read(bundle)
    versions = ModelVersions(models / str(metadata.name))
    versions.root.mkdir(parents=True, exist_ok=True)
    versions.remove_left_behind()
    if fingerprint in {verify(versions.path(number)) for number in versions.numbers()}:
        return versions
    if versions.numbers() and Metadata.read(versions.current_path).labels.names != metadata.labels.names:
        raise UsageError(
            f"{bundle.name}: {models.parent} holds versions of {versions.root.name} with other labels, which it cannot "
            "replace; choose another folder with --work."
        )
    candidate = versions.scratch()
    shutil.copytree(bundle, candidate, ignore=shutil.ignore_patterns("training", "training_*"))
    versions.use(versions.add(candidate, Origin()))
    return versions
