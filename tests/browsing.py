"""Pages in a real Chromium, for the tests that click."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SIZE = {"width": 1400, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:  # playwright is not always there
    """Return Debian's Chromium without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


class OpenedPage:
    """A page that was opened, and all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: object) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_context(**({"viewport": SIZE} | options)).new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
