"""Keep pydicom, highdicom and the decoders from printing values of a header, which may be those of a patient."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOISY = ("pydicom", "highdicom")
_SILENT = logging.CRITICAL + 1


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Drop warnings and log records of the DICOM libraries while the block runs; what matters becomes a finding."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(_SILENT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
