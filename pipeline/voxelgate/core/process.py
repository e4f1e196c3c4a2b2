"""Settings of the whole process, made when this module is imported: before PyTorch, which reads them only once.

And how further processes start, so that they run nothing but what is installed.
"""

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

# MONAI says at import that an optional GPU decoder is absent; nobody here misses it, and it would head every output.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)

# Threads of libgomp, which PyTorch brings and which reads this when it is loaded, spin at barriers for milliseconds.
# Beside another busy program that made networks of two threads 18 times slower; with fifty thousand turns it is 6.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")

# oneDNN keeps a kernel for each size of a convolution, 1024 of them; volumes of ever other sizes only fill memory so.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


_STARTING = threading.RLock()
"""What processes inherit is changed by one thread at a time."""


def refuse_current_folder() -> None:
    """Let this program, and all that it starts, import nothing from the current folder, which may be an inbox.

    For programs of our own; in those of others `installed_only` does it while a process starts.
    """
    sys.path[:] = installed_path()
    os.environ |= safe_environment()


@contextmanager
def installed_only() -> Iterator[None]:
    """Keep processes that start inside from code that nobody installed: the caller's script, and the current folder.

    The script may be heavy, or start all anew; the folder may hold a `random.py` of whoever filled it.
    """
    with _STARTING:
        main, path, added = sys.modules["__main__"], sys.path, safe_environment()
        before = {name: os.environ.get(name) for name in added}
        sys.modules["__main__"], sys.path = ModuleType("__main__"), installed_path()
        os.environ |= added
        try:
            yield
        finally:
            sys.modules["__main__"], sys.path = main, path
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def end_with_parent() -> None:
    """Let this process end when the one that started it has ended, however that ended, and whatever hangs here."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def installed_path() -> list[str]:
    """Return where modules are looked for, without the current folder, unless it is known as one of code.

    It is if `PYTHONPATH` names it, or this program has imported a module from it, of which its script is none.
    """
    here = Path.cwd()
    known = {*map(Path, _named_folders()), *_import_folders()}
    is_kept = any(folder.resolve() == here for folder in known)
    return [entry for entry in sys.path if entry and (is_kept or Path(entry).resolve() != here)]


def safe_environment() -> dict[str, str]:
    """Return the variables that keep the current folder from where a Python looks for modules (`python -P`)."""
    named = {"PYTHONPATH": os.pathsep.join(_named_folders())} if "PYTHONPATH" in os.environ else {}
    return {"PYTHONSAFEPATH": "1"} | named


def _import_folders() -> Iterator[Path]:
    """Yield the folders from which this program has imported modules and packages."""
    for name, module in [*sys.modules.items()]:
        if "." not in name and name != "__main__" and (file := getattr(module, "__file__", None)):
            folder = Path(file).parent
            yield folder.parent if Path(file).stem == "__init__" else folder


def _named_folders() -> list[str]:
    """Return the folders of `PYTHONPATH`; one without a name, as a colon at its end makes it, is the current one."""
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
