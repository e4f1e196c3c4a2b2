"""The JavaScript of the report page: its own tests, run by Node, and its linter."""

import shutil
import subprocess

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "tests" / "js"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js, which runs the page's JavaScript")


def node(*arguments: str) -> None:
    done = subprocess.run(["node", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_of_the_page_passes_its_own_tests() -> None:
    node("--test")


@pytest.mark.skipif(not (FOLDER / "node_modules").is_dir(), reason="needs ESLint: npm ci --prefix tests/js")
def test_the_script_of_the_page_has_no_fault_that_the_linter_knows() -> None:
    node("lint.mjs")
