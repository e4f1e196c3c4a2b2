"""Whose fault an error is, and how it is worded."""

import errno
import sqlite3
from collections.abc import Iterator
from enum import StrEnum

import torch

from voxelgate.core.errors import VoxelgateError
from voxelgate.dicom.read.series import Series
from voxelgate.segmentation.cases import Case

STORAGE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""The disk or the quota is full, or the file system read-only."""

MEMORY_TEXTS = ("DefaultCPUAllocator: can't allocate memory", "std::bad_alloc")
"""How PyTorch's CPU allocator (c10/core/impl/alloc_cpu.cpp) and C++ libraries say it, as plain `RuntimeError`."""


class Fault(StrEnum):
    """Why an attempt failed, where that is not the fault of the image."""

    MEMORY = "memory"
    """There was too little memory; with smaller windows there may be enough."""

    STORAGE = "storage"
    """The output folder, or its ledger, takes nothing, so no other case would fare better."""


def fault_of(error: BaseException) -> Fault | None:
    """Return whether memory or the output folder is at fault, as far as that is sure."""
    for cause in _causes(error):
        is_full = isinstance(cause, OSError) and cause.errno in STORAGE_ERRORS
        if is_full or isinstance(cause, sqlite3.Error):
            return Fault.STORAGE
        is_memory = isinstance(cause, MemoryError | torch.OutOfMemoryError)
        if is_memory or (isinstance(cause, RuntimeError) and any(text in str(cause) for text in MEMORY_TEXTS)):
            return Fault.MEMORY
    return None


def sentence_of(error: Exception, ours: VoxelgateError | None, case: Case) -> str:
    """Word an error; what a library says of a DICOM file may quote its header, and thus a patient."""
    if ours is not None:
        return case.redacted(str(ours))
    kind = type(error).__name__
    if isinstance(case.image, Series):
        return f"{kind} while {case.case_id} was worked on; run it again with --debug to see where."
    return case.redacted(f"{kind}: {str(error).strip().partition(chr(10))[0]}")


def first_of_ours(error: BaseException) -> VoxelgateError | None:
    """Return the error that a library wrapped in its own, as MONAI's `apply_transform` does, if it is one of ours."""
    return next((cause for cause in _causes(error) if isinstance(cause, VoxelgateError)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
