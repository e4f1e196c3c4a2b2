"""Every declared Python compiles the package and shows its names; one that is not on this machine is skipped."""

import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
DECLARED = [
    found[1]
    for line in PROJECT["project"]["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
]


def interpreters(version: str) -> Iterator[str]:
    """Yield the programs of a version: of the path, and of pyenv, whose programs on the path may be switched off."""
    if (found := shutil.which(f"python{version}")) is not None:
        yield found
    yield from map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))


def works(python: str, version: str) -> bool:
    said = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
    return said.stdout.startswith(f"Python {version}.")


@pytest.fixture(params=DECLARED)
def python(request: pytest.FixtureRequest) -> str:
    """Return a program of a declared version."""
    found = next((python for python in interpreters(request.param) if works(python, request.param)), None)
    if found is None:
        pytest.skip(f"needs Python {request.param}")
    return found


def test_the_declared_versions_are_those_that_may_be_installed_with() -> None:
    lowest, highest = DECLARED[0].split(".")[1], DECLARED[-1].split(".")[1]
    assert PROJECT["project"]["requires-python"] == f">=3.{lowest},<3.{int(highest) + 1}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py3{lowest}"


def test_every_module_compiles_without_a_warning(python: str, tmp_path: Path) -> None:
    compiling = [python, "-W", "error", "-m", "compileall", "-q", REPOSITORY / "pipeline"]
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path)}

    done = subprocess.run(compiling, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_shows_its_names_without_loading_what_is_compiled(python: str, tmp_path: Path) -> None:
    program = "import sys, voxelgate; print(*dir(voxelgate)); assert not {'numpy', 'torch'} & sys.modules.keys()"
    path = os.pathsep.join((str(REPOSITORY / "pipeline"), sysconfig.get_path("purelib")))  # which has `lazy_loader`
    environment = os.environ | {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(tmp_path)}

    done = subprocess.run([python, "-s", "-c", program], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "open_bundle" in done.stdout.split()
