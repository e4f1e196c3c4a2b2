"""What is imported: a folder, zip or file from elsewhere, in which nothing is run and no link followed outside."""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from voxelgate.bundle.checksums import CHECKSUMS
from voxelgate.bundle.imports.programs import lay_out_program
from voxelgate.bundle.imports.unpacking import is_torch_archive, unpack
from voxelgate.core.documents import parse_json, read_json
from voxelgate.core.errors import InputError
from voxelgate.core.files import file_sha256, read_text

_TRAINER = re.compile(r"[^/_][^/]*__[^/]+__[^/]+")
"""Name of an nnU-Net folder of one configuration: TRAINER__PLANS__CONFIGURATION."""

_STOPS = re.compile(rf"{_TRAINER.pattern}|fold_.+")
"""What lies in a model of nnU-Net and is none itself."""

_DESCRIPTIONS = ("plans.json", "dataset.json")
"""What nnU-Net writes beside the folds of a configuration."""

_DATA_SET = re.compile(r"Dataset\d{3,}_.+")

LARGEST_TEXT_BYTES = 2**26
"""Of plans, data sets and scripts; a data set that lists a hundred thousand images has 20 MB."""

_KNOWN = (
    "an nnU-Net v2 folder (DatasetNNN_NAME, or TRAINER__PLANS__CONFIGURATION in it), its exported zip, a folder of "
    "TotalSegmentator's weights, a MONAI bundle (folder or zip), or a TorchScript file with its inference.json"
)


class Kind(StrEnum):
    """What a source is, in words."""

    NNUNET_CONFIGURATION = "nnU-Net folder of one configuration"
    NNUNET_DATA_SET = "nnU-Net folder of one data set"
    NNUNET_RESULTS = "nnU-Net results folder of several data sets"
    MONAI_BUNDLE = "MONAI bundle"
    TORCHSCRIPT = "TorchScript file"


@dataclass(frozen=True)
class ImportSource:
    """A foreign model, looked at; get one from `opened_source`.

    Args:
        root: folder that its names are relative to; of a zip, where it is unpacked for now.
        kind: what it is.
        name: of the file or folder that was given.
        names: of every file below `root`, with `/`, sorted; links among them may lead out, and are refused when read.
        file: the zip or program that was given; None of a folder.
    """

    root: Path
    kind: Kind
    name: str
    names: tuple[str, ...]
    file: Path | None = None

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name below the root."""
        return name in self.names

    def matching(self, pattern: str) -> tuple[str, ...]:
        """Return the names that a regular expression matches as a whole."""
        return tuple(name for name in self.names if re.fullmatch(pattern, name))

    def configurations(self, data_set: str = "") -> list[str]:
        """Return the nnU-Net folders TRAINER__PLANS__CONFIGURATION that have plans, in a folder or in the root."""
        prefix = f"{re.escape(data_set)}/" if data_set else ""
        found = self.matching(rf"{prefix}{_TRAINER.pattern}/plans\.json")
        return [name.rpartition("/")[0] for name in found]

    def path(self, name: str) -> Path:
        """Return where a file lies.

        Raises:
            InputError: there is none of this name, or it is a link that leads out of the source.
        """
        if name not in self.names:
            raise InputError(f"{self.name}: has no {name}; copy it again with all its files.")
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise InputError(
                f"{self.name}: {name} is a link that leads out of it; copy it with links followed (`cp -rL`) first."
            )
        return path

    def text(self, name: str) -> str:
        """Return what a file of UTF-8 holds, as `path` finds it.

        Raises:
            InputError: as for `path`, or it cannot be read.
        """
        path = self.path(name)
        try:
            if path.stat().st_size > LARGEST_TEXT_BYTES:
                raise InputError(f"{self.name}: {name} is larger than any such text ({LARGEST_TEXT_BYTES >> 20} MiB).")
            return read_text(path).removeprefix("\ufeff")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8"
            raise InputError(f"{self.name}: {name} cannot be read ({reason}); copy it again.") from error

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object that a file holds.

        Raises:
            InputError: as for `text`, or it is none.
        """
        try:
            document = parse_json(self.text(name))
        except ValueError as error:
            raise InputError(f"{self.name}: {name} is no JSON ({error}); copy it again.") from error
        if not isinstance(document, dict):
            raise InputError(f"{self.name}: {name} holds a {type(document).__name__}, expected a JSON object.")
        return document

    def checksums(self, names: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of files by name.

        Raises:
            InputError: as for `path`, or one cannot be read.
        """
        found = {}
        for name in sorted(set(names)):
            try:
                found[name] = file_sha256(self.path(name))
            except OSError as error:
                raise InputError(f"{self.name}: {name} cannot be read ({error.strerror}); copy it again.") from error
        return found


@contextmanager
def opened_source(path: Path) -> Iterator[ImportSource]:
    """Look at a folder, zip or TorchScript file; what a zip holds is unpacked as long as the block runs.

    Raises:
        InputError: there is nothing, it is nothing that can be imported, or the zip is not safe to unpack.
    """
    if path.is_dir():
        yield _source_in(path, path.resolve().name)
    elif not path.is_file():
        raise InputError(f"{path}: is neither a file nor a folder; name {_KNOWN}.")
    else:
        with tempfile.TemporaryDirectory(prefix="voxelgate-import-") as folder:
            yield replace(_in_archive(path, Path(folder)), file=path)


def _in_archive(path: Path, folder: Path) -> ImportSource:
    if not is_zipfile(path):
        raise InputError(f"{path.name}: is no zip and no TorchScript file, or cannot be read; name {_KNOWN}.")
    if is_torch_archive(path):
        lay_out_program(path, folder)
        return ImportSource(folder, Kind.TORCHSCRIPT, path.name, tuple(_files_below(folder)))
    unpack(path, folder)
    return _source_in(folder, path.name)


def _source_in(folder: Path, name: str) -> ImportSource:
    root = _innermost(folder)
    kind = _kind_of(root, name)
    return ImportSource(root, kind, name, tuple(_files_below(root)))


def _innermost(folder: Path) -> Path:
    """Go down where a folder is no model but holds one other folder and nothing else, as zips do, or one data set."""
    while not _is_monai_bundle(folder):
        seen = [one for one in sorted(folder.iterdir()) if not one.name.startswith(".")]
        inner = [one for one in seen if _is_data_set(one)] or seen
        if len(inner) != 1 or not inner[0].is_dir() or inner[0].is_symlink() or _STOPS.fullmatch(inner[0].name):
            break
        folder = inner[0]
    return folder


def _is_monai_bundle(folder: Path) -> bool:
    return (folder / "configs" / "metadata.json").is_file()


def _is_data_set(folder: Path) -> bool:
    return _DATA_SET.fullmatch(folder.name) is not None and any(map(_is_configuration, _folders_in(folder)))


def _is_configuration(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _DESCRIPTIONS)


def _folders_in(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []


def _kind_of(root: Path, name: str) -> Kind:
    """Return what a folder is.

    Raises:
        InputError: nothing that can be imported.
    """
    _refuse_known_others(root, name)
    if _is_monai_bundle(root):
        return Kind.MONAI_BUNDLE
    if _is_configuration(root):
        return Kind.NNUNET_CONFIGURATION
    if any(_is_configuration(one) for one in _folders_in(root) if _TRAINER.fullmatch(one.name)):
        return Kind.NNUNET_DATA_SET
    if any(map(_is_data_set, _folders_in(root))):
        return Kind.NNUNET_RESULTS
    _refuse_incomplete(root, name)
    raise InputError(f"{name}: holds no model that can be imported; name {_KNOWN}.")


def _refuse_incomplete(root: Path, name: str) -> None:
    """Refuse a folder of nnU-Net, or one that holds such, from which a file is missing that says what it is.

    Raises:
        InputError: names the file.
    """
    inner = _folders_in(root)
    data_sets = [one for one in inner if _DATA_SET.fullmatch(one.name)]
    for folder in (root, *inner, *(one for data_set in data_sets for one in _folders_in(data_set))):
        missing = [one for one in _DESCRIPTIONS if not (folder / one).is_file()]
        is_trained = _TRAINER.fullmatch(folder.name) or any(folder.glob("fold_*/checkpoint_*.pth"))
        if is_trained and missing:
            where = folder.relative_to(root).as_posix()
            raise InputError(
                f"{name}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
                f"{'' if folder == root else f' in {where}'}; nnU-Net writes {' and '.join(_DESCRIPTIONS)} beside the "
                "folds, copy them too."
            )


def _refuse_known_others(root: Path, name: str) -> None:
    """Refuse what looks like a model and is known to be none of those that can be imported.

    Raises:
        InputError: it is such a one.
    """
    if (root / CHECKSUMS).is_file() and ((root / "plan.json").is_file() or _was_imported(root)):
        raise InputError(f"{name}: is a bundle of this program already; use it as it is.")
    if (root / "data.pkl").is_file():
        raise InputError(f"{name}: is a file of weights alone, which do not say what they are for; name {_KNOWN}.")
    if any(root.glob("checkpoint_*.pth")):
        raise InputError(f"{name}: is one fold of nnU-Net; name the folder above it, TRAINER__PLANS__CONFIGURATION.")
    if (root / "plans.pkl").is_file():
        raise InputError(
            f"{name}: is a model of nnU-Net v1, whose plans are a pickle that can run code; only v2 can be imported."
        )


def _was_imported(root: Path) -> bool:
    try:
        return "imported_from" in read_json(root / "configs" / "metadata.json")
    except (OSError, ValueError, TypeError):
        return False


def _files_below(root: Path) -> list[str]:
    """Return the names of all files, also of links to files; linked folders are not entered."""
    found = []
    for folder, _, names in os.walk(root, followlinks=False):
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return sorted(name for name in found if (root / name).is_file())
