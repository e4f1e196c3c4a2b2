"""The reference pages leave nothing out: every finding, command, option and public name."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import voxelgate
from tests.conftest import REPOSITORY
from voxelgate.apps.cli.main import COMMANDS, load_command
from voxelgate.core.errors import VoxelgateError
from voxelgate.core.findings import FindingCode, Severity
from voxelgate.segmentation.batch.case_table import table_text

DOCS = REPOSITORY / "docs"
FINDING_ROW = re.compile(r"^\| `([A-Z0-9_]+)` \| ([a-z, ]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """Return the hook that MkDocs calls."""
    pytest.importorskip("click")
    specification = importlib.util.spec_from_file_location("reference_pages", DOCS / "reference_pages.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_finding_is_explained_once_with_what_to_do_about_it() -> None:
    rows = FINDING_ROW.findall((DOCS / "reference" / "findings.md").read_text(encoding="utf-8"))

    assert sorted(code for code, *_ in rows) == sorted(FindingCode)
    assert all(set(severity.split(", ")) <= set(Severity) for _, severity, *_ in rows)


def test_the_commands_page_has_every_command_and_option(pages: ModuleType) -> None:
    text = pages.commands_text()

    for name in COMMANDS:
        command = load_command(name)
        for one in getattr(command, "commands", {"": command}).values():
            assert all(
                f"`{', '.join([*option.opts, *option.secondary_opts])}`" in text
                for option in one.params
                if option.opts[0].startswith("-")
            )
            assert one.help in text


def test_the_python_page_has_every_public_name(pages: ModuleType) -> None:
    text = pages.names_text()

    assert text.count(":::") == len(voxelgate.__all__)
    assert f"::: {VoxelgateError.__module__}.VoxelgateError" in text


def test_every_column_of_the_table_of_cases_is_described() -> None:
    described = (DOCS / "reference" / "file-formats.md").read_text(encoding="utf-8")

    assert all(f"`{column}`" in described for column in table_text(DOCS, []).strip().split(","))


def test_no_page_fetches_anything_from_elsewhere() -> None:
    for page in DOCS.rglob("*.md"):
        assert not re.search(r"<script|<link|!\[[^\]]*\]\(http|src=\"http", page.read_text(encoding="utf-8")), page


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra dev")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]

    built = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=False,
        capture_output=True,
        text=True,
    )

    assert (built.returncode, built.stderr) == (0, "")
    assert not re.search(
        r"(src|href)=\"(https?:)?//[^\"]*\.(js|css|woff2?)", (tmp_path / "site" / "index.html").read_text("utf-8")
    )
