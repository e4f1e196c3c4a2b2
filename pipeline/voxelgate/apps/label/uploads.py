"""Files that clients send: saved under names of ours, and read first by a process that may die of them."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import BoundedSemaphore

from fastapi import UploadFile

from voxelgate.apps.label.crowd import Crowd
from voxelgate.apps.label.environment import child_environment
from voxelgate.core.errors import InputError
from voxelgate.images.volumes import is_volume

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Formats of one file; `.mhd` and `.nhdr` name others, which clients cannot send and must not name."""

READ_WITHIN_S = 120
"""Reading 2 GiB that are packed as gzip takes 20 s; whatever takes longer is made to."""

AT_A_TIME = 2
"""Files that are read at once; each may take memory up to `client_file.limit`."""

_readers = BoundedSemaphore(AT_A_TIME)
_crowd = Crowd("their uploads to be read")


def upload_suffix(file: UploadFile, allowed: tuple[str, ...]) -> str:
    """Return which of some suffixes the name has that a client gives.

    Raises:
        InputError: none.
    """
    name = Path(file.filename or "").name.lower()
    suffix = next((suffix for suffix in allowed if name.endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"a file of this format is not taken; send {', '.join(allowed)}.")
    return suffix


def save_upload(file: UploadFile, folder: Path, allowed: tuple[str, ...], most_bytes: int) -> Path:
    """Write an upload under a name of ours, of the client's name only a known suffix counts, and have it read.

    Args:
        file: of the client.
        folder: for it.
        allowed: suffixes that are taken.
        most_bytes: of voxels, once it is unpacked.

    Raises:
        InputError: another format, or as for `check_client_file`.
    """
    path = folder / f"upload{upload_suffix(file, allowed)}"
    with path.open("wb") as stream:
        shutil.copyfileobj(file.file, stream)
    if is_volume(path):
        check_client_file(path, most_bytes)
    return path


def check_client_file(path: Path, most_bytes: int) -> None:
    """Do nothing if a file can be read whole by a process with limits of time and memory; nobody here opens it before.

    Args:
        path: of the file.
        most_bytes: of voxels, once it is unpacked.

    Raises:
        InputError: it cannot be read, is too large, or ends the process.
        HTTPException: 503 where too many wait for theirs.
    """
    with _crowd.place(), _readers:
        try:
            ended = subprocess.run(  # noqa: S603 - this program
                [sys.executable, "-P", "-m", "voxelgate.apps.label.client_file", str(path), str(most_bytes)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=path.parent,
                env=child_environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                timeout=READ_WITHIN_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"reading the file takes longer than {READ_WITHIN_S} s; export it again.") from None
    if ended.returncode < 0:
        by = signal.Signals(-ended.returncode).name
        raise InputError(f"the file ends the program that reads it ({by}), so it is not taken; export it again.")
    if ended.returncode:
        raise InputError(_refusal(ended.stdout))


def _refusal(said: bytes) -> str:
    try:
        return str(json.loads(said)["refused"])
    except (ValueError, KeyError, TypeError):
        return "the file cannot be read; export it again."
