"""Let OHIF read the series of the PACS through this server: DICOMweb resources, read only, and nothing beside them.

MONAI Label's own sends on whatever it is asked, POST too, and answers nobody else meanwhile; `%252e%252e` in a path led
it out of DICOMweb, to the interface by which a PACS is administered.
"""

import re
from http import HTTPStatus

import requests
from fastapi import HTTPException, Request
from fastapi.responses import StreamingResponse
from monailabel.config import settings
from starlette.background import BackgroundTask

from voxelgate.core.errors import InputError

SERVICES = ("qido", "wado")
"""What OHIF puts before a path; the address of the PACS is one for both."""

PATIENCE_S = (10.0, 60.0)
"""How long to wait for a connection, and for further bytes."""

CHUNK_BYTES = 2**20

_RESOURCE = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.,_-]*/?)+")
"""Paths of PS3.18 10.1.1: words, UIDs and numbers of frames."""


def read_pacs(request: Request, path: str) -> StreamingResponse:
    """Return what the PACS answers to a question of OHIF.

    Raises:
        InputError: the path is none of DICOMweb.
        HTTPException: 502 where the PACS does not answer.
    """
    service, _, rest = path.partition("/")
    resource = rest if service in SERVICES else path
    if _RESOURCE.fullmatch(resource) is None:
        raise InputError("the path is none of DICOMweb; ask for studies, series or instances.")
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    try:
        answer = requests.get(
            f"{settings.MONAI_LABEL_STUDIES.rstrip('/')}/{resource}",
            params=list(request.query_params.multi_items()),
            auth=(user, password) if user and password else None,
            stream=True,
            timeout=PATIENCE_S,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        raise HTTPException(HTTPStatus.BAD_GATEWAY, "the PACS does not answer; look whether it runs.") from error
    kind = answer.headers.get("content-type")
    return StreamingResponse(
        answer.iter_content(CHUNK_BYTES),
        answer.status_code,
        headers={} if kind is None else {"content-type": kind},
        background=BackgroundTask(answer.close),
    )
