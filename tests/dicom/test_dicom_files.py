"""Which files are found below a path, and which archives and media are refused."""

import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from pydicom.fileset import FileSet

from tests import planted
from voxelgate.core.errors import InputError
from voxelgate.core.findings import FindingCode
from voxelgate.dicom.read import dicom_files as files
from voxelgate.dicom.read.dicom_files import list_files
from voxelgate.dicom.read.series import scan_dicom


def zipped(folder: Path, archive: Path, *, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, f"{prefix}{path.relative_to(folder)}")
    return archive


def medium(folder: Path) -> Path:
    """Write a DICOMDIR with the slices that it names."""
    source = folder.parent / "source"
    file_set = FileSet()
    for path in planted.write(planted.ct_series(), source):
        file_set.add(path)
    file_set.write(folder)
    return folder / "DICOMDIR"


def test_files_of_all_sub_folders_are_found_but_not_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "a/.hidden", ".git/3", "c/d/e/4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [str(ref.path.relative_to(tmp_path)) for ref in list_files(tmp_path)] == ["a/1", "b/2", "c/d/e/4"]


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "inside" / "gone").symlink_to(tmp_path / "nothing")
    assert list_files(tmp_path) == []


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list_files(tmp_path / "nothing")


def test_a_zip_gives_the_same_series_as_its_folder(tmp_path: Path) -> None:
    planted.write(planted.ct_series(), tmp_path / "folder")
    archive = zipped(tmp_path / "folder", tmp_path / "study.ZIP")
    (folder,), (packed,) = scan_dicom(tmp_path / "folder"), scan_dicom(archive)
    assert packed.series_id == folder.series_id
    assert packed.findings == folder.findings == ()
    assert packed.grid.agrees(folder.grid)


def test_a_zip_inside_a_folder_is_searched_too(tmp_path: Path) -> None:
    planted.write(planted.ct_series(), tmp_path / "one")
    planted.write(planted.mr_series(), tmp_path / "two")
    zipped(tmp_path / "two", tmp_path / "one" / "more.zip", prefix="deep/er/")
    shutil.rmtree(tmp_path / "two")
    assert [len(series.headers) for series in scan_dicom(tmp_path)] == [12, 12]


def test_members_are_read_in_place_with_their_size(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/y", b"12345")
        file.writestr("x/.DS_Store", b"junk")
    (ref,) = list_files(archive)
    assert (ref.member, ref.size, ref.read()) == ("x/y", 5, b"12345")
    assert ref.folder == (archive, "x")


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_pipe_that_a_dicomdir_names_is_told_as_unreadable_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    media = medium(tmp_path / "medium")
    some, *others = [ref.path for ref in list_files(media)]
    some.unlink()
    os.mkfifo(some if kind == "pipe" else tmp_path / "pipe")
    if kind == "link":
        some.symlink_to(tmp_path / "pipe")

    found = scan_dicom(media)

    assert {one.code for series in found for one in series.findings} >= {FindingCode.UNREADABLE_FILE}
    assert sum(len(series.headers) for series in found) == len(others)


def test_an_archive_that_changed_is_opened_anew(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    for content in (b"first", b"second one"):
        archive.unlink(missing_ok=True)
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("x", content)
        assert list_files(archive)[0].read() == content


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/etc/out", "C:/out", "\\\\server\\out", "a\\..\\..\\out"])
def test_an_archive_with_paths_that_leave_it_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(InputError, match="leave it"):
        list_files(tmp_path / "a.zip")


def test_an_archive_with_links_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, b"/etc/passwd")
    with pytest.raises(InputError, match="links"):
        list_files(tmp_path / "a.zip")


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x", b"x")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        list_files(tmp_path / "a.zip")


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", b"\0" * 10_000_000)
    with pytest.raises(InputError, match="more than 100 times its size"):
        list_files(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("ZIP_MOST_FILES", 2, "holds 3 files, expected at most 2"),
        ("ZIP_MOST_BYTES", 2, "more than is accepted"),
        ("ZIP_MOST_FILE_BYTES", 0, "a file of the archive is too large"),
    ],
)
def test_an_archive_beyond_a_limit_is_refused(
    limit: str, value: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, limit, value)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in "xyz":
            file.writestr(name, b"1")
    with pytest.raises(InputError, match=reason):
        list_files(tmp_path / "a.zip")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    planted.write(planted.ct_series(), tmp_path / "folder")
    content = zipped(tmp_path / "folder", tmp_path / "a.zip").read_bytes()
    at = content.index(b"PK\x01\x02")
    (tmp_path / "b.zip").write_bytes(content[:at] + b"PK\x09\x09" + content[at + 4 :])
    with pytest.raises(InputError, match="damaged"):
        list_files(tmp_path / "b.zip")


def test_a_member_that_is_damaged_is_reported_as_unreadable(tmp_path: Path) -> None:
    planted.write(planted.ct_series(), tmp_path / "folder")
    content = bytearray(zipped(tmp_path / "folder", tmp_path / "a.zip").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "a.zip").write_bytes(content)
    codes = {finding.code for series in scan_dicom(tmp_path / "a.zip") for finding in series.findings}
    assert FindingCode.UNREADABLE_FILE in codes


def test_what_is_only_called_a_zip_is_told_as_unreadable_and_does_not_hide_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no archive at all")
    planted.write(planted.ct_series(4), tmp_path / "series")
    found = scan_dicom(tmp_path)
    assert sorted(series.is_usable for series in found) == [False, True]
    assert {series.series_id for series in found if not series.is_usable} == {"unreadable"}


def test_a_dicomdir_gives_the_files_that_it_names(tmp_path: Path) -> None:
    dicomdir = medium(tmp_path / "medium")
    planted.write(planted.mr_series(), tmp_path / "medium" / "not_named")
    (series,) = scan_dicom(dicomdir)
    assert len(series.headers) == 12
    assert series.is_usable
    assert len(scan_dicom(dicomdir.parent)) == 2


def test_a_dicomdir_of_another_name_is_one_too(tmp_path: Path) -> None:
    dicomdir = medium(tmp_path / "medium")
    assert len(list_files(dicomdir.rename(dicomdir.with_name("dirfile")))) == 12


def test_a_medium_copied_with_lower_case_names_is_read(tmp_path: Path) -> None:
    dicomdir = medium(tmp_path / "medium")
    for path in sorted(dicomdir.parent.rglob("*"), key=lambda path: -len(path.parts)):
        if path != dicomdir:
            path.rename(path.with_name(path.name.lower()))
    assert len(scan_dicom(dicomdir)[0].headers) == 12


def test_a_file_that_a_dicomdir_names_and_that_is_gone_is_reported(tmp_path: Path) -> None:
    dicomdir = medium(tmp_path / "medium")
    list_files(dicomdir)[5].path.unlink()
    codes = {finding.code for series in scan_dicom(dicomdir) for finding in series.findings}
    assert FindingCode.MISSING_FILE in codes
    assert not any(series.is_usable and not series.findings for series in scan_dicom(dicomdir))


def test_a_dicomdir_that_names_files_outside_its_folder_is_refused(tmp_path: Path) -> None:
    dicomdir = medium(tmp_path / "medium")
    name = list_files(dicomdir)[0].path.relative_to(dicomdir.parent).parts[0].encode()
    content = dicomdir.read_bytes()
    assert name + b"\\" in content
    dicomdir.write_bytes(
        content.replace(name + b"\\", b".." + name[2:] + b"\\").replace(name[2:] + b"\\", b"\\" * 2 + name[4:] + b"\\")
    )
    with pytest.raises(InputError, match="outside its folder"):
        list_files(dicomdir)


def test_a_damaged_dicomdir_is_refused(tmp_path: Path) -> None:
    dicomdir = medium(tmp_path / "medium")
    dicomdir.write_bytes(dicomdir.read_bytes()[:700])
    with pytest.raises(InputError, match="damaged"):
        list_files(dicomdir)


def test_an_archive_with_two_files_of_one_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("IM1", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("IM1", b"two")
    with pytest.raises(InputError, match="several files of one name"):
        list_files(tmp_path / "a.zip")


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="cannot be listed") as caught:
        list_files(tmp_path)
    assert "closed" not in str(caught.value)
