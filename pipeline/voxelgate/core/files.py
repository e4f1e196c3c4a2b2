"""Files that are whole or not there, however the process ends and whoever reads or writes meanwhile."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from filelock import FileLock, Timeout

from voxelgate.core.errors import OutputError

SCRATCH_PREFIX, SCRATCH_SUFFIX = ".voxelgate-", ".partial"
"""Names of what is not finished: files, and folders in which several are finished before they get their names."""

LOCK_NAME = ".voxelgate.lock"

PATIENCE_S = 1.0
"""How long a lock is asked for: `is_held` takes it for a moment."""

MOST_TEXT_BYTES = 2**30
"""More than any text of ours: a manifest of a million cases takes half of it."""

ANYBODY, OWNER = 0o666, 0o600
"""Modes of files: of a plain open, less the umask; and while a file is written that will replace another."""


# --- one file -------------------------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path, *, suffix: str = "", overwrite: bool = True) -> Iterator[Path]:
    """Lend a temporary name in the same folder; the file becomes `path` when the block ends well, else it vanishes.

    It is on the disk before it has its name, and so is its name when this returns. Several processes may write the same
    file at once: each gets a temporary name of its own, and the last one stands. Nobody can know that name beforehand;
    the file is there already, empty, made by this process alone. What replaces a file gets the rights that it had.

        with whole_file(path, suffix=".nii.gz") as partial:
            nib.save(image, partial)

    Args:
        path: of the file to be; its folder exists.
        suffix: ending of the temporary name, for writers that choose the format by it.
        overwrite: whether a file of that name is replaced.

    Raises:
        FileExistsError: something has the name by then, and `overwrite` is not given.
        FileNotFoundError: the block wrote nothing.
        OSError: the file cannot be written, or its name cannot be given.
    """
    partial = path.with_name(f"{new_scratch(path.parent).name}{suffix}")
    replaced = _mode_of(path) if overwrite else None
    _make_alone(partial, ANYBODY if replaced is None else OWNER)
    try:
        yield partial
        if not partial.lstat().st_mtime_ns:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), partial)
        sync(partial)
        if replaced is not None:
            partial.chmod(replaced)
        if overwrite:
            partial.replace(path)
        else:
            _give_free_name(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a text as UTF-8, its line ends as they are; see `whole_file`."""
    write_bytes(path, text.encode(), overwrite=overwrite)


def write_bytes(path: Path, content: bytes, *, overwrite: bool = True) -> None:
    """Write bytes; see `whole_file`."""
    with whole_file(path, overwrite=overwrite) as partial:
        partial.write_bytes(content)


def copy_file(path: Path, to: Path) -> None:
    """Copy what a file holds; a file `to` is replaced; see `whole_file`."""
    with whole_file(to) as partial:
        shutil.copyfile(path, partial)


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading, and wait for nobody: what is a pipe or a device, or a link to one, is no file.

    Raises:
        OSError: the file cannot be read, or is none (EINVAL).
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is no file, but a pipe, a device or a folder", os.fspath(path))
    return file


def read_text(path: Path) -> str:
    """Return what a file of UTF-8 holds, if it can be a text of ours at all.

    Raises:
        OSError: as for `open_file`, or it is larger than any text of ours (EFBIG).
        UnicodeDecodeError: it is no UTF-8.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_TEXT_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
        return file.read(MOST_TEXT_BYTES).decode()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        OSError: as for `open_file`.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power failure.

    Raises:
        OSError: the disk fails. Where the file system cannot do this to folders (EINVAL, fsync(2)) nothing happens.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _make_alone(path: Path, mode: int) -> None:
    """Make an empty file that nobody else has made or put a link for; its time is 0 until something is written."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.utime(descriptor, ns=(0, 0))
    finally:
        os.close(descriptor)


def _mode_of(path: Path) -> int | None:
    """Return the rights of a file; None if there is none, or only a link."""
    try:
        found = path.lstat().st_mode
    except OSError:
        return None
    return stat.S_IMODE(found) if stat.S_ISREG(found) else None


def _give_free_name(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)  # unlike a rename this refuses a name that is taken
    except FileExistsError:
        raise
    except OSError:  # the file system knows no second names
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        partial.replace(path)


# --- several files, all of them or none -----------------------------------------------------------------------------


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another output folder.") from error


def new_scratch(folder: Path) -> Path:
    """Return a name in a folder, used by nobody, for what is not finished."""
    return folder / f"{SCRATCH_PREFIX}{secrets.token_hex(8)}{SCRATCH_SUFFIX}"


def is_scratch(path: Path) -> bool:
    """Return whether a name is one of `new_scratch`."""
    return path.name.startswith(SCRATCH_PREFIX) and path.name.endswith(SCRATCH_SUFFIX)


def is_within(folder: Path, relative: Path) -> bool:
    """Return whether a path that somebody wrote down leads to a place below a folder, links followed but the last.

    >>> is_within(Path("results"), Path("../thesis.txt"))
    False
    """
    if relative.is_absolute() or not relative.name or ".." in relative.parts:
        return False
    return (folder / relative).parent.resolve().is_relative_to(folder.resolve())


def refuse_file(folder: Path) -> None:
    """Refuse an output folder that is a file, before anything is worked out for it.

    Raises:
        OutputError: it is.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, not a folder; choose another output folder.")


def refuse_existing(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse names that are taken, by a link that leads nowhere too.

    Raises:
        OutputError: a file has one of the names and may not be replaced, or a folder has.
    """
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path.name}: is a folder, not a file; choose another output folder.")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(f"{path.name}: exists already; pass --overwrite, or choose another output folder.")


def publish(moves: Mapping[Path, Path], removed: Iterable[Path], older: Path) -> None:
    """Give finished files their names, all of them or none: after a fault each name has again what it had.

    Args:
        moves: the finished file for each name; folders are made, what stands there is replaced, and its rights kept.
        removed: names whose files go, such as DICOM objects that the new label map would contradict.
        older: folder to make in one that is there, for what stood there; on the file system of the names.

    Raises:
        OutputError: a name cannot be given.
    """
    names = [*moves, *removed]
    try:
        older.mkdir()
        for folder in {path.parent for path in moves}:
            make_folder(folder)
        try:
            for number, path in enumerate(names):
                _give_name(path, moves.get(path), older / str(number))
            for folder in {path.parent for path in names if path.parent.is_dir()}:
                sync(folder)
        except BaseException:
            _put_back(moves, names, older)
            raise
    except OSError as error:
        raise unwritable(next((path.name for path in names), older.name), error) from error


def unwritable(name: str, error: OSError) -> OutputError:
    """Return what to raise where the files of a name, such as a case's, cannot be written."""
    reason = error.strerror or type(error).__name__
    return OutputError(f"{name}: its files cannot be written ({reason}); free the disk or its rights.")


def _give_name(path: Path, finished: Path | None, spare: Path) -> None:
    """Give a finished file its name, or take the name away; what stood there gets a second name."""
    if os.path.lexists(path):
        _keep_older(path, spare)
    if finished is None:
        path.unlink(missing_ok=True)
        return
    if (mode := _mode_of(path)) is not None:
        finished.chmod(mode)
    finished.replace(path)


def _put_back(moves: Mapping[Path, Path], names: Sequence[Path], older: Path) -> None:
    """Give back what stood there, and to finished files the names that they had, so that they may be tried again."""
    for number, path in enumerate(names):
        if path in moves and not moves[path].exists() and path.exists():
            path.replace(moves[path])
        if os.path.lexists(older / str(number)):
            (older / str(number)).replace(path)


def _keep_older(path: Path, spare: Path) -> None:
    """Give a file, or a link itself, a second name, or where the file system knows none, a copy."""
    try:
        os.link(path, spare)  # on Linux of a link itself, wherever it leads
    except OSError:
        shutil.copy2(path, spare, follow_symlinks=False)


# --- one process at a time in a folder ------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder; it ends with the process, however that ends.

    Raises:
        OutputError: another run holds it, or the folder cannot be written, or something else has the lock's name.
    """
    path = folder / LOCK_NAME
    if os.path.lexists(path) and _mode_of(path) is None:
        raise OutputError(
            f"{folder}: {LOCK_NAME} in it is no file, as a run makes one, but a folder, a link or a pipe; remove it, "
            "or choose another output folder."
        )
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, ANYBODY))
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another output folder.") from error
    lock = FileLock(path, timeout=PATIENCE_S, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"{folder}: another run works in this folder; wait for it, or choose another folder."
        ) from None
    except OSError as error:
        raise OutputError(
            f"{folder}: its file system keeps no locks ({error.strerror}), so that two runs could mix their results; "
            "choose a folder on another, or have locks turned on."
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Return whether a run works in an output folder now; whoever may read the folder can ask, several at once.

    `FileLock` cannot tell: to ask it takes the lock, for which it must write, and alone.
    """
    try:
        with open_file(folder / LOCK_NAME) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or a file system without locks, so nobody can hold one
        return False
    return False
