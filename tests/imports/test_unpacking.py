"""A zip is looked at as a whole before any of it is written, and one that is not safe leaves nothing behind."""

import contextlib
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from voxelgate.bundle.imports import unpacking
from voxelgate.bundle.imports.unpacking import is_torch_archive, unpack
from voxelgate.core.errors import InputError

Fill = Callable[[zipfile.ZipFile], None]


def named(*names: str) -> Fill:
    def fill(archive: zipfile.ZipFile) -> None:
        for name in names:
            archive.writestr(name, "x")

    return fill


def of_kind(kind: int) -> Fill:
    def fill(archive: zipfile.ZipFile) -> None:
        member = zipfile.ZipInfo("model/link")
        member.external_attr = (kind | 0o777) << 16
        archive.writestr(member, "/etc/passwd")

    return fill


def encrypted(archive: zipfile.ZipFile) -> None:
    archive.writestr("model/x", "x")
    archive.filelist[0].flag_bits |= 1


def bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("model/zeros", bytes(2**27), zipfile.ZIP_DEFLATED)


UNSAFE: dict[str, tuple[Fill, str]] = {
    "climbs": (named("model/x", "../canary"), "leads out of the folder"),
    "climbs inside": (named("model/../../canary"), "leads out of the folder"),
    "absolute": (named("/canary/x"), "leads out of the folder"),
    "drive": (named("C:/canary"), "other systems read as another path"),
    "backslash": (named("..\\canary"), "other systems read as another path"),
    "link": (of_kind(stat.S_IFLNK), "a link, pipe or device"),
    "device": (of_kind(stat.S_IFCHR), "a link, pipe or device"),
    "twice": (named("model/a", "model/A"), "stands in it twice"),
    "file and folder": (named("model", "model/a"), "stands in it twice"),
    "encrypted": (encrypted, "is encrypted"),
    "bomb": (bomb, "times as large"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("fill", "reason"), UNSAFE.values(), ids=UNSAFE)
def test_an_unsafe_zip_is_refused_and_nothing_is_written(tmp_path: Path, fill: Fill, reason: str) -> None:
    (tmp_path / "in").mkdir()
    packed, folder = tmp_path / "in" / "m.zip", tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(packed, "w") as archive:
        fill(archive)

    with pytest.raises(InputError, match=f"m.zip: .*{reason}"):
        unpack(packed, folder)

    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "in", "m.zip", "out"]
    assert not Path("/canary").exists()


def test_a_zip_of_very_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, folder = tmp_path / "m.zip", tmp_path / "out"
    folder.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        named("model/a", "model/b", "model/c")(archive)
    monkeypatch.setattr(unpacking, "MOST_MEMBERS", 2)

    with pytest.raises(InputError, match="holds 3 files, no model has so many"):
        unpack(packed, folder)


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    packed, folder = tmp_path / "m.zip", tmp_path / "out"
    folder.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("model/x", os.urandom(2000))
    content = bytearray(packed.read_bytes())
    content[500] ^= 0xFF
    packed.write_bytes(content)

    with pytest.raises(InputError, match=r"m\.zip: is no zip that can be unpacked"):
        unpack(packed, folder)


def test_whatever_bytes_are_changed_a_zip_is_unpacked_or_refused_in_a_sentence(tmp_path: Path) -> None:
    packed, rng = tmp_path / "m.zip", np.random.default_rng(0)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        named("model/x", "model/y", "model/ü")(archive)
    content = packed.read_bytes()

    for number in range(150):
        changed = bytearray(content)
        for _ in range(int(rng.choice((1, 2, 30)))):
            changed[rng.integers(len(changed))] = rng.integers(256)
        packed.write_bytes(changed)
        (tmp_path / str(number)).mkdir()
        assert is_torch_archive(packed) in {True, False}
        with contextlib.suppress(InputError):
            unpack(packed, tmp_path / str(number))

    assert all(path.name == "m.zip" or path.name.isdecimal() for path in tmp_path.iterdir())


def test_what_macos_adds_is_left_out(tmp_path: Path) -> None:
    packed, folder = tmp_path / "m.zip", tmp_path / "out"
    folder.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        named("model/x", "model/.DS_Store", "__MACOSX/model/._x")(archive)

    unpack(packed, folder)

    assert [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))] == ["model", "model/x"]


def test_a_zip_for_which_there_is_no_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, folder = tmp_path / "m.zip", tmp_path / "out"
    folder.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        named("model/x")(archive)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=len(folder.name)))

    with pytest.raises(InputError, match="only 0 MiB are free"):
        unpack(packed, folder)
