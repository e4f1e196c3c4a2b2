"""Files that are whole or not there."""

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from voxelgate.core.errors import OutputError
from voxelgate.core.exchange import exchange_names
from voxelgate.core.files import (
    LOCK_NAME,
    copy_file,
    file_sha256,
    is_held,
    is_within,
    locked,
    new_scratch,
    open_file,
    publish,
    refuse_existing,
    whole_file,
    write_bytes,
    write_text,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def broken_off(path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt


def overtaken(path: Path) -> None:
    with whole_file(path, overwrite=False) as partial:
        partial.write_text("ours", encoding="utf-8")
        path.write_text("the user's", encoding="utf-8")


def test_two_folders_exchange_their_names_or_nothing_happens(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").touch()

    is_done = exchange_names(tmp_path / "a", tmp_path / "b")

    assert names_in(tmp_path / "a") == (["of b"] if is_done else ["of a"])
    if is_done:
        with pytest.raises(FileNotFoundError):
            exchange_names(tmp_path / "a", tmp_path / "missing")


def test_a_system_that_exchanges_no_names_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())

    assert not exchange_names(tmp_path, tmp_path)


def test_a_file_has_its_name_only_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    with whole_file(path) as partial:
        partial.write_text("whole", encoding="utf-8")
        assert not path.exists()
        assert partial.parent == tmp_path

    assert path.read_text(encoding="utf-8") == "whole"
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("older", [None, "older"])
def test_a_writer_that_raises_leaves_what_was_there_and_nothing_else(tmp_path: Path, older: str | None) -> None:
    path = tmp_path / "a.txt"
    if older is not None:
        write_text(path, older)
    before = names_in(tmp_path)

    with pytest.raises(KeyboardInterrupt):
        broken_off(path)

    assert names_in(tmp_path) == before
    assert older is None or path.read_text(encoding="utf-8") == older


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.txt"):
        pass

    assert names_in(tmp_path) == []


def test_a_link_under_the_temporary_name_is_refused_and_what_it_leads_to_is_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("precious", encoding="utf-8")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "guessed")
    new_scratch(tmp_path).symlink_to(victim)

    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a.txt", "ours")

    assert victim.read_text(encoding="utf-8") == "precious"
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_that_is_replaced_keeps_its_rights(tmp_path: Path, mode: int) -> None:
    path, scratch = tmp_path / "a.txt", tmp_path / "scratch"
    scratch.mkdir()
    path.write_text("older", encoding="utf-8")
    path.chmod(mode)

    write_text(path, "newer")
    rewritten = stat.S_IMODE(path.stat().st_mode)
    (scratch / "a.txt").write_text("newest", encoding="utf-8")
    publish({path: scratch / "a.txt"}, [], scratch / "older")

    assert path.read_text(encoding="utf-8") == "newest"
    assert rewritten == stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_rights_that_a_plain_open_gives(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "whole", b"")
        (tmp_path / "plain").write_bytes(b"")
    finally:
        os.umask(before)

    whole, plain = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("whole", "plain"))
    assert whole == plain == 0o666 & ~mask


def test_of_two_writers_at_once_neither_sees_the_other_and_the_last_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")

    assert path.read_text(encoding="utf-8") == "first"  # its block ended last
    assert names_in(tmp_path) == ["a.txt"]


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    contents = [bytes([number]) * 100_000 for number in range(8)]

    threads = [threading.Thread(target=write_bytes, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert path.read_bytes() in contents
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    path, steps = tmp_path / "a.txt", []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append(("folder" if is_folder else "file", os.fstat(descriptor).st_size or None, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    write_text(path, "whole", overwrite=overwrite)

    assert [(kind, has_name) for kind, _, has_name in steps] == [("file", False), ("folder", True)]
    assert steps[0][1] == len("whole")  # all of it had been handed to the system


def test_a_disk_that_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "a.txt", "older")
    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.txt", "newer")

    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "older"
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("knows_links", [True, False])
def test_a_name_that_was_taken_meanwhile_is_not_overwritten_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows_links: bool
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not knows_links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.txt"

    with pytest.raises(FileExistsError):
        overtaken(path)

    assert path.read_text(encoding="utf-8") == "the user's"
    assert names_in(tmp_path) == ["a.txt"]
    write_text(tmp_path / "b.txt", "free", overwrite=False)
    assert names_in(tmp_path) == ["a.txt", "b.txt"]


def test_a_temporary_name_can_end_as_a_writer_wants_it(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a", suffix=".nii.gz") as partial:
        partial.write_bytes(b"")
        assert partial.name.startswith(".")
        assert partial.name.endswith(".partial.nii.gz")


def test_text_keeps_its_line_ends_and_letters(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Käse\r\nund\n")

    assert (tmp_path / "a.txt").read_bytes() == "Käse\r\nund\n".encode()


def test_a_copy_holds_the_same_bytes_and_has_the_same_hash(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    write_bytes(tmp_path / "a.bin", content)

    copy_file(tmp_path / "a.bin", tmp_path / "b.bin")

    assert (tmp_path / "b.bin").read_bytes() == content
    assert file_sha256(tmp_path / "b.bin") == hashlib.sha256(content).hexdigest()


def test_several_files_get_their_names_or_none_does(tmp_path: Path) -> None:
    scratch = new_scratch(tmp_path)
    scratch.mkdir()
    for name in ("a", "b"):
        (scratch / name).write_text("new", encoding="utf-8")
    (tmp_path / "a").write_text("old", encoding="utf-8")
    (tmp_path / "gone").write_text("old", encoding="utf-8")
    (tmp_path / "b" / "in the way").mkdir(parents=True)

    with pytest.raises(OutputError, match="a: its files cannot be written"):
        publish({tmp_path / name: scratch / name for name in ("a", "b")}, [tmp_path / "gone"], scratch / "older")

    assert (tmp_path / "a").read_text(encoding="utf-8") == "old"
    assert (tmp_path / "gone").read_text(encoding="utf-8") == "old"
    (tmp_path / "b" / "in the way").rmdir()
    (tmp_path / "b").rmdir()
    again = new_scratch(tmp_path)
    again.mkdir()
    for name in ("a", "b"):
        (again / name).write_text("new", encoding="utf-8")
    publish({tmp_path / name: again / name for name in ("a", "b")}, [tmp_path / "gone"], again / "older")
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in ("a", "b")] == ["new", "new"]
    assert not (tmp_path / "gone").exists()


def test_links_that_lead_nowhere_are_names_that_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.symlink_to("nowhere")

    with pytest.raises(OutputError, match="a: exists already"):
        refuse_existing([path], overwrite=False)


def test_links_that_lead_nowhere_stand_again_where_not_all_files_get_their_names(tmp_path: Path) -> None:
    scratch = new_scratch(tmp_path)
    scratch.mkdir()
    for name in ("a", "b"):
        (scratch / name).write_text("new", encoding="utf-8")
    (tmp_path / "a").symlink_to("nowhere")
    (tmp_path / "b" / "in the way").mkdir(parents=True)

    with pytest.raises(OutputError, match="a: its files cannot be written"):
        publish({tmp_path / name: scratch / name for name in ("a", "b")}, [], scratch / "older")

    assert (tmp_path / "a").readlink() == Path("nowhere")


def test_files_whose_names_cannot_be_made_lasting_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    scratch = new_scratch(tmp_path)
    scratch.mkdir()
    for name in ("a", "b"):
        (scratch / name).write_text("new", encoding="utf-8")
    (tmp_path / "a").write_text("old", encoding="utf-8")
    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OutputError, match="Input/output error"):
        publish({tmp_path / name: scratch / name for name in ("a", "b")}, [], scratch / "older")

    assert names_in(tmp_path) == [scratch.name, "a"]
    assert names_in(scratch) == ["a", "b", "older"]
    assert (tmp_path / "a").read_text(encoding="utf-8") == "old"


def test_nothing_to_publish_is_nothing_to_do(tmp_path: Path) -> None:
    publish({}, [], tmp_path / "older")


def test_a_folder_that_is_gone_is_not_made_again_by_publishing(tmp_path: Path) -> None:
    out = tmp_path / "out"

    with pytest.raises(OutputError, match="No such file"):
        publish({out / "a": out / "scratch" / "a"}, [], out / "scratch" / "older")

    assert names_in(tmp_path) == []


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [make_pipe, make_endless, Path.mkdir])
@pytest.mark.parametrize("read", [open_file, file_sha256])
def test_what_is_a_pipe_a_device_or_a_folder_is_no_file(
    tmp_path: Path, make: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    make(tmp_path / "a")

    with pytest.raises(OSError, match=r"is no file|Is a directory"):
        read(tmp_path / "a")


@pytest.mark.parametrize(
    ("path", "leads_within"),
    [(path, True) for path in ("a", "b/a", "new/a", "link")]
    + [(path, False) for path in ("../a", "b/../../a", "/etc/a", "", ".", "..", "link/a")],
)
def test_a_path_that_was_written_down_must_lead_to_a_place_below_its_folder(
    tmp_path: Path, path: str, leads_within: bool
) -> None:
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "link").symlink_to(tmp_path)

    assert is_within(tmp_path / "out", Path(path)) is leads_within


# --- one process at a time in a folder ------------------------------------------------------------------------------

HOLD = "import sys, time; from pathlib import Path; from voxelgate.core.files import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(float(sys.argv[2]))"


@contextmanager
def holder(folder: Path, hold_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """Hold the lock of a folder in another process."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(hold_s)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path, 60) as process:
        assert is_held(tmp_path)
        with pytest.raises(OutputError, match="another run works in this folder"), locked(tmp_path):
            pass
        process.kill()
        process.wait()

        assert not is_held(tmp_path)
        with locked(tmp_path):
            assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_a_lock_is_waited_for_a_moment(tmp_path: Path) -> None:
    with holder(tmp_path, 0.3), locked(tmp_path):
        assert is_held(tmp_path)


def test_who_asks_whether_a_lock_is_held_needs_no_right_to_write_and_makes_no_file(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    assert not is_held(tmp_path / "none")
    assert names_in(tmp_path) == []

    with locked(tmp_path):
        (tmp_path / LOCK_NAME).chmod(0o444)
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_who_asks_does_not_hinder_others_who_ask(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).touch()
    with (tmp_path / LOCK_NAME).open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not is_held(tmp_path)


def test_a_folder_that_is_not_there_is_not_locked(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), locked(tmp_path / "none"):
        pass
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("make", [make_pipe, make_endless, Path.mkdir])
def test_a_lock_that_is_no_file_is_refused_in_a_sentence(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / LOCK_NAME)

    assert not is_held(tmp_path)
    with pytest.raises(OutputError, match="is no file, as a run makes one"), locked(tmp_path):
        pass


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OutputError, match="is no file, as a run makes one"), locked(tmp_path):
        pass

    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_that_ended_with_an_error_is_free(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert not is_held(tmp_path)
