"""An ASGI middleware that refuses requests before MONAI Label sees them: too large, too slow, foreign, of nobody."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from voxelgate.apps.label.ids import check_id, check_tag
from voxelgate.apps.label.patience import Bodies, Body, BodyError, Message, too_large
from voxelgate.core.errors import InputError, UsageError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refusal = tuple[int, str, Mapping[str, str]]
"""Status, sentence and headers of an answer."""

CheckLogin = Callable[[str], Refusal | None]
"""Is given the header `Authorization`, and returns nothing if it is that of a user."""

IDS = ("image", "id", "label", "session_id")
"""Query parameters of MONAI Label's endpoints that become names of files."""

TAG = "tag"

JSON_BYTES = 2**20
"""Most bytes of a body that is no upload; MONAI Label's own are below one KiB."""


OPEN = "/auth/"
"""Paths below this one are answered before a login; they are how one logs in."""

PAGE_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self'; "
        b"form-action 'self'; frame-ancestors 'self'",
    ),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-dns-prefetch-control", b"off"),
)
"""What every answer says: no page makes a browser ask another host. OHIF compiles code within its page."""


@dataclass(frozen=True)
class Guard:
    """Refuse what no annotator's program sends; pass everything else on.

    Args:
        app: the application behind it.
        most_bytes: of an upload; other bodies may have `JSON_BYTES`.
        hosts: names under which the server may be addressed; others are how web pages reach a loopback server by a
            name of theirs (DNS rebinding). Empty allows all.
        origins: pages of other servers that may send requests; a browser says from where a page comes.
        check_login: who is let in; None lets in everybody.

    Raises:
        UsageError: the limit is not positive.
    """

    app: App
    most_bytes: int
    hosts: Collection[str] = ()
    origins: Collection[str] = ()
    check_login: CheckLogin | None = None
    bodies: Bodies = field(default_factory=Bodies)

    def __post_init__(self) -> None:
        if self.most_bytes < 1:
            raise UsageError(f"a limit of {self.most_bytes} bytes lets nothing in; give a positive one.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with 4xx, or let it pass."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *PAGE_HEADERS]}
            await send(message)

        refusal = self._refusal(scope) or await self._who(scope)
        if refusal is not None:
            await _http_answer(sent, *refusal)
            return
        await self._limited(scope, receive, sent)

    async def _who(self, scope: Scope) -> Refusal | None:
        """Refuse strangers before a byte of their bodies is read; browsers ask for their preflights without a login."""
        if self.check_login is None or scope["path"].startswith(OPEN) or scope["method"] == "OPTIONS":
            return None
        return await asyncio.to_thread(self.check_login, _headers_of(scope).get("authorization", ""))

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = _headers_of(scope)
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if self.hosts and host not in self.hosts:
            return 421, "the server is not known by this name; address it as it was started.", {}
        origin = headers.get("origin")
        is_foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
        if is_foreign and origin not in self.origins:
            return 403, "requests from pages of other servers are not allowed; start the server with this origin.", {}
        try:
            _check_path(scope["path"])
            _check_query(scope["query_string"])
        except InputError as error:
            return 400, str(error), {}
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limit(scope):
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(self._limit(scope)), {}
        return None

    def _limit(self, scope: Scope) -> int:
        kinds = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
        is_upload = any(kind.lower().startswith((b"multipart/", b"application/dicom")) for kind in kinds)
        return self.most_bytes if is_upload else min(self.most_bytes, JSON_BYTES)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer 4xx or 503 where its body, whose length it need not say, is not taken whole."""
        body = Body(self._limit(scope), is_announced=_has_body(scope))
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            if body.refusal is None:
                has_begun = True
                await send(message)

        try:
            with self.bodies.place_for(body):
                await self.app(scope, partial(body.next, receive), watched)
        except BodyError:
            if has_begun:
                raise
        if body.refusal is not None and not has_begun:
            await _http_answer(send, body.refusal.status, body.refusal.sentence, {})


def _has_body(scope: Scope) -> bool:
    headers = _headers_of(scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _check_path(path: str) -> None:
    """Refuse a path that somebody behind this server could take for one that leads upwards.

    Raises:
        InputError: a part of it is made of dots, also up to a semicolon, where some servers cut it; or it is still
            encoded after it was decoded, and what sends it on will decode it again.
    """
    if any(part.partition(";")[0] in {"..", "."} for part in path.replace("\\", "/").split("/")):
        raise InputError("the path names a folder above it; leave the dots out.")
    if "%" in path:
        raise InputError("the path is encoded twice; encode it once.")


def _check_query(query: bytes) -> None:
    """Refuse names that could be paths.

    Raises:
        InputError: a value is no plain name.
    """
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="utf-8"):
        if name in IDS and value:
            check_id(value)
        if name == TAG and value:
            check_tag(value)


async def _http_answer(send: Send, status: int, sentence: str, more_headers: Mapping[str, str]) -> None:
    """Answer, and close the connection: what is still to come of the body is not waited for."""
    body = json.dumps({"detail": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *((name.lower().encode(), value.encode()) for name, value in more_headers.items()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
