"""A TorchScript file from elsewhere: its code is looked through before anything loads it, its configs are laid out."""

import shutil
import zipfile
from pathlib import Path

from voxelgate.bundle.imports.program_code import reaching_out
from voxelgate.bundle.imports.unpacking import DAMAGED_ZIP, refuse_unsafe
from voxelgate.core.errors import InputError

PROGRAM = "models/network.ts"
"""Where the file lies, in what is laid out here and in a bundle."""

CONFIGS = ("inference.json", "inference.yaml", "inference.yml", "metadata.json")

MOST_CONFIG_BYTES = 2**24

_OTHER_FORMAT = ("model.json", "bytecode.pkl")
"""Records of formats that keep code elsewhere: of before PyTorch 1.4, and of mobile devices."""


def lay_out_program(path: Path, folder: Path) -> None:
    """Copy a TorchScript file, with the configs in it or beside it, into a folder as a MONAI bundle has them.

    Raises:
        InputError: its code reaches for more than tensors, or the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_unsafe(archive.infolist(), path, folder)
            _refuse_reaching_out(archive, path)
            inside = _configs_in(archive, path)
        for name in CONFIGS:
            content = inside.get(name) or _beside(path, name)
            if content:
                _write_new(folder / "configs" / name, content)
        (folder / PROGRAM).parent.mkdir()
        shutil.copyfile(path, folder / PROGRAM)
    except DAMAGED_ZIP as error:
        raise InputError(f"{path.name}: is damaged ({error}); copy it again.") from error
    except OSError as error:
        raise InputError(f"{path.name}: cannot be copied ({error.strerror}); free the disk, or set TMPDIR.") from error


def _refuse_reaching_out(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a program that does more than compute.

    Raises:
        InputError: it may read or write files, or its code is not where it can be looked through.
    """
    for member in archive.infolist():
        name = member.filename.partition("/")[2].casefold()  # PyTorch finds records whatever their case
        if name in _OTHER_FORMAT:
            raise InputError(f"{path.name}: holds {name}, as files of other formats do; save it with torch.jit.save.")
        if name.startswith("code/") and name.endswith(".py"):
            try:
                found = reaching_out(archive.read(member).decode("utf-8", "replace"))
            except ValueError as error:
                raise InputError(f"{path.name}: {error}; it is not loaded.") from error
            if found:
                raise InputError(
                    f"{path.name}: its code names {found}, which does more than compute with tensors; it is not loaded."
                )


def _configs_in(archive: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    """Return the configs among the extra files of a program, by name."""
    found = {}
    for member in archive.infolist():
        parts = member.filename.split("/")
        if len(parts) == 3 and parts[1] == "extra" and parts[2] in CONFIGS:
            if member.file_size > MOST_CONFIG_BYTES:
                raise InputError(f"{path.name}: its {parts[2]} is larger than any config; it is not read.")
            found[parts[2]] = archive.read(member)
    return found


def _beside(path: Path, name: str) -> bytes:
    """Return a config from the folder of a program, or from that of the bundle in whose `models` it lies."""
    places = (path.absolute().parent / name, path.absolute().parents[1] / "configs" / name)
    place = next((one for one in places if one.is_file() and one.stat().st_size <= MOST_CONFIG_BYTES), None)
    return place.read_bytes() if place else b""


def _write_new(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
