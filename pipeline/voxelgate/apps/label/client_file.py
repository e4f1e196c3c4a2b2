"""The process that reads one file of a client before anybody else does, with little memory and little time.

It is handed no password (`environment`), can write no file, and ends with a sentence where the file cannot be used.
That sentence is all the server takes of it, as JSON; `core.apart`, for the user's own files, hands on more.
"""

import json
import math
import resource
import sys
from pathlib import Path

from voxelgate.core.errors import InputError
from voxelgate.images.volumes import read_volume, read_volume_header

CPU_S = 100
"""Less than the server waits, so that the process ends itself."""

LIBRARIES_BYTES = 2**29
"""What Python and its libraries take."""

COPIES = 3
"""How often voxels may be held at a time: packed, as the file has them, and in the type of their values."""

MOST_FILES = 64
"""Files that may be open; libraries hold some."""


def limit(most_bytes: int) -> None:
    """Take away from this process what reading a file of so many bytes does not need."""
    most = LIBRARIES_BYTES + COPIES * most_bytes
    for kind, value in (
        (resource.RLIMIT_DATA, most),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MOST_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def check_file(path: Path, most_bytes: int) -> None:
    """Read a file whole.

    Raises:
        InputError: it cannot be read, or holds more than it may.
    """
    header = read_volume_header(path, may_name_others=False)
    found = math.prod(header.shape) * max(header.voxel_type.itemsize, header.stored_type.itemsize)
    if found > most_bytes:
        raise InputError(
            f"the file unpacks to {found} bytes, expected at most {most_bytes}; send the part that matters."
        )
    try:
        read_volume(path)
    except MemoryError as error:
        raise InputError(f"the file needs more memory than its {found} bytes explain; export it again.") from error


def check_named_file() -> int:
    """Check the file that is named; print why it is refused, as JSON, and return the exit code."""
    path, most_bytes = Path(sys.argv[1]), int(sys.argv[2])
    limit(most_bytes)
    try:
        check_file(path, most_bytes)
    except InputError as error:
        print(json.dumps({"refused": str(error)}))  # noqa: T201 - what the server reads
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(check_named_file())
