"""What a browser sees: where to go, which endpoints there are, the log, and OHIF; nothing of it asks another host."""

import html
import re
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from monailabel import endpoints
from monailabel.config import settings
from monailabel.utils.others.generic import get_mime_type

VIEWER = Path(endpoints.__file__).parent / "static" / "ohif"
"""OHIF, as MONAI Label brings it."""

FOREIGN = re.compile(r"<link[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>", re.IGNORECASE)
"""Links of OHIF's page to fonts of other hosts; it does without them."""

STYLE = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td{padding:.1em 1em .1em 0}"

LEAST_REFRESH_S = 3
"""As in MONAI Label."""

MOST_LOG_LINES = 10_000


def front_page() -> HTMLResponse:
    """Say what this is and how to use it."""
    is_pacs = settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://"))
    viewer = '<li><a href="/ohif/">OHIF</a>, the viewer, on the images of the PACS</li>' if is_pacs else ""
    return _html_page(
        "voxelgate label",
        "<p>A MONAI Label server: it proposes label maps, takes corrected ones, and trains on them.</p><ul>"
        "<li>3D Slicer: enter the address of this page as <i>MONAI Label server</i> in the module MONAILabel</li>"
        f'{viewer}<li><a href="/info/">/info/</a>: models, labels, and how much is annotated</li>'
        '<li><a href="/docs">/docs</a>: all endpoints</li><li><a href="/logs/">/logs/</a>: the log</li></ul>',
    )


def endpoints_page(web: FastAPI) -> HTMLResponse:
    """List the endpoints."""
    rows = "".join(
        f"<tr><td>{html.escape(method.upper())}<td><code>{html.escape(path)}</code><td>{html.escape(_what_it_does(said))}"
        for path, methods in sorted(web.openapi()["paths"].items())
        for method, said in methods.items()
    )
    return _html_page(
        "Endpoints",
        f'<table>{rows}</table><p>As a document: <a href="/openapi.json">/openapi.json</a></p>',
    )


def _what_it_does(operation: Mapping[str, Any]) -> str:
    """Return what an endpoint does, in one sentence."""
    said: str = operation.get("description") or operation.get("summary", "")
    return said.partition("\n")[0]


def log_page(lines: int = 300, refresh: int = 0) -> Response:
    """Return the last lines of the log, as text; a browser asks again as often as it is told."""
    path = Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log"
    if not path.is_file():
        raise HTTPException(404, "there is no log yet.")
    wanted = min(max(lines, 1), MOST_LOG_LINES)
    with path.open(encoding="utf-8", errors="replace") as file:
        text = "".join(deque(file, wanted))
    headers = {"Refresh": str(max(refresh, LEAST_REFRESH_S))} if refresh > 0 else {}
    return PlainTextResponse(text, headers=headers)


def viewer_file(path: str) -> Response:
    """Return a file of OHIF, or its page for every address within it."""
    root = VIEWER.resolve()
    found = (root / path).resolve()
    if found.is_relative_to(root) and found.is_file() and found.suffix != ".html":
        return FileResponse(found, media_type=get_mime_type(found.name))
    return HTMLResponse(FOREIGN.sub("", (root / "index.html").read_text(encoding="utf-8")))


def _html_page(title: str, body: str) -> HTMLResponse:
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return HTMLResponse(f'<!doctype html><html lang="en">{head}<h1>{title}</h1>{body}</html>')
