"""DICOM in and out: find series, say what is wrong with them, read them exactly, and write results that are re-read."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voxelgate.dicom.read.reader import CheckedDicomReader

__all__ = ["CheckedDicomReader"]


def __getattr__(name: str) -> object:
    """Import the reader on first use: it needs MONAI, which the processes that decode pixels would load for nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("voxelgate.dicom.read.reader"), name)
