"""What the processes that the server starts see of its environment: no passwords, and no foreign folder of code.

`python -m` puts the current folder first where modules are looked for, and so does an empty part of `PYTHONPATH`; who
can write there could run code. And the environment of a process is a file, which a damaged image must not reach.
"""

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

NEEDED = re.compile(
    r"PATH|HOME|USER|LANG|LANGUAGE|TZ|TMPDIR|LD_LIBRARY_PATH|LC_\w+|(CUDA|NVIDIA|OMP|MKL|OPENBLAS|GOMP|KMP|ONEDNN|TORCH|"
    r"PYTORCH|MONAI)\w*|(https?|no)_proxy",
    re.IGNORECASE,
)
"""Names of what programs here ask for; nothing else is handed on."""

SECRET = re.compile(r"PASSWORD|USERNAME|TOKEN|SECRET|KEY|CREDENTIAL")
"""What stands in the names of secrets. They are handed to nobody, and those of MONAI Label are hidden."""


SOURCE = Path(__file__).parents[3]
"""Folder that holds this very package."""


def child_environment(paths: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment of a process that the server starts.

    Args:
        paths: further folders to load modules from.
    """
    asked = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(path).is_absolute()]
    handed_on = {
        name: value
        for name, value in os.environ.items()
        if NEEDED.fullmatch(name) and not SECRET.search(name) and not _has_login(name, value)
    }
    return {
        **handed_on,
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(SOURCE), *paths, *asked])),
    }


def hide_secrets() -> None:
    """Take the secrets of MONAI Label out of the environment, also out of what the system shows of it.

    Whoever needs them has read them before. `environ(7)`: other processes of the user can read /proc/PID/environ, which
    is the memory that the process was started with; so that is overwritten.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    for name in [name for name in os.environ if name.startswith("MONAI_") and SECRET.search(name)]:
        if sys.platform == "linux" and (place := libc.getenv(os.fsencode(name))):
            ctypes.memset(place, 0, len(os.fsencode(os.environ[name])))
        del os.environ[name]


def _has_login(name: str, value: str) -> bool:
    return name.lower().endswith("_proxy") and "@" in value
