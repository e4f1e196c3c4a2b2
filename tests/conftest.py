"""What several tests share: the folder of real data, and small volumes made on the spot."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("VOXELGATE_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data; tests that need it are skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"needs the real data folder {REAL_DATA}; set VOXELGATE_DATA")
    return REAL_DATA


@pytest.fixture(scope="session")
def hippocampus(real_data: Path) -> Path:
    """Return the hippocampus data set: `images/`, `labels/`, `subjects.json`."""
    return real_data / "hippocampus"
