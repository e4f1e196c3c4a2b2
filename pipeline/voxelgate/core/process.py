"""Settings of the whole process, made when this module is imported: before PyTorch, which reads them only once."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# MONAI says at import that an optional GPU decoder is absent; nobody here misses it, and it would head every output.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)

# Threads of libgomp, which PyTorch brings and which reads this when it is loaded, spin at barriers for milliseconds.
# Beside another busy program that made networks of two threads 18 times slower; with fifty thousand turns it is 6.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")

# oneDNN keeps a kernel for each size of a convolution, 1024 of them; volumes of ever other sizes only fill memory so.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


@contextmanager
def without_main() -> Iterator[None]:
    """Keep processes that start inside from importing the caller's script, which may be heavy or start all anew."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
