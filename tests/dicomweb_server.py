"""A small DICOMweb server for tests: it lists series and sends them, and can be a PACS that means no good."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydicom import Dataset

BOUNDARY = "images"


@dataclass
class Pacs:
    """What a server has, where it is, and what it was asked."""

    url: str
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)


@contextmanager
def dicomweb(series: Mapping[str, Sequence[Dataset]]) -> Iterator[Pacs]:
    """Serve series, by the UIDs that the server gives them."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            pacs.asked.append(("GET", parts.path, dict(parse_qsl(parts.query))))
            uid = parts.path.rpartition("/")[2]
            if parts.path.endswith("/series"):
                rows = [row(uid, images[0]) for uid, images in series.items()]
                self._answer("application/dicom+json", json.dumps(rows).encode())
            elif uid in series:
                self._answer(f'multipart/related; type="application/dicom"; boundary={BOUNDARY}', whole(series[uid]))
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            pacs.asked.append(("POST", self.path, {}))
            self.send_error(404)

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        pacs = Pacs(f"http://127.0.0.1:{server.server_port}/dicom-web")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield pacs
        server.shutdown()


def row(uid: str, image: Dataset) -> dict[str, Any]:
    return {
        "0020000D": {"vr": "UI", "Value": [str(image.StudyInstanceUID)]},
        "0020000E": {"vr": "UI", "Value": [uid]},
    }


def whole(images: Sequence[Dataset]) -> bytes:
    parts = b""
    for image in images:
        stream = BytesIO()
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.save_as(stream, enforce_file_format=True)
        parts += f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + stream.getvalue() + b"\r\n"
    return parts + f"--{BOUNDARY}--\r\n".encode()
