"""What several tests share: the folder of real data, and small volumes made on the spot."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.browsing import browser
from voxelgate.apps.cli.main import main

__all__ = ["browser"]  # a fixture that tests find here

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # a busy machine is no fault of the code

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("VOXELGATE_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def no_kept_bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep away from the bundles that somebody keeps on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOXELGATE_BUNDLES", str(tmp_path_factory.mktemp("bundles")))
        yield


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


@dataclass(frozen=True)
class Result:
    """What a command returned and printed."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `voxelgate` with arguments in this process, in an empty folder."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["voxelgate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, *capsys.readouterr())

    yield command
    root.handlers[:] = handlers
    root.setLevel(level)
