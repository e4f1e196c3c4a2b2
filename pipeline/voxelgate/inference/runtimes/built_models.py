"""Models that took long to build, kept on disk and read only if they are whole."""

import hashlib
import logging
from pathlib import Path

from voxelgate.core.files import write_bytes

logger = logging.getLogger(__name__)

DIGEST_BYTES = hashlib.sha256().digest_size


def keep_built(built: bytes, stored: Path | None) -> None:
    """Write a model with its SHA-256; where that cannot be, it is built again next time.

    Args:
        built: the model.
        stored: its file, or None to keep none.
    """
    if stored is None:
        return
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(stored, hashlib.sha256(built).digest() + built)
    except OSError as error:
        logger.warning("a built model cannot be kept in %s: %s", stored, error.strerror)


def read_built(stored: Path | None) -> bytes | None:
    """Return a model that was kept, None if there is none or it is damaged."""
    if stored is None or not stored.is_file():
        return None
    content = stored.read_bytes()
    digest, built = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return built if hashlib.sha256(built).digest() == digest else None
