"""An ASGI middleware that refuses requests before MONAI Label sees them: too large, from elsewhere, or naming paths."""

import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from voxelgate.apps.label.ids import check_id, check_tag
from voxelgate.core.errors import InputError, UsageError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

IDS = ("image", "id", "label", "session_id")
"""Query parameters of MONAI Label's endpoints that become names of files."""

TAG = "tag"

JSON_BYTES = 2**20
"""Most bytes of a body that is no upload; MONAI Label's own are below one KiB."""


class _TooLargeError(Exception):
    """The body went on beyond the limit while it was read."""


@dataclass(frozen=True)
class Guard:
    """Refuse what no annotator's program sends; pass everything else on.

    Args:
        app: the application behind it.
        most_bytes: of an upload; other bodies may have `JSON_BYTES`.
        hosts: names under which the server may be addressed; others are how web pages reach a loopback server by a
            name of theirs (DNS rebinding). Empty allows all.
        origins: pages of other servers that may send requests; a browser says from where a page comes.

    Raises:
        UsageError: the limit is not positive.
    """

    app: App
    most_bytes: int
    hosts: Collection[str] = ()
    origins: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.most_bytes < 1:
            raise UsageError(f"a limit of {self.most_bytes} bytes lets nothing in; give a positive one.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with 4xx, or let it pass."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _http_answer(send, *refusal)
            return
        await self._limited(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if self.hosts and host not in self.hosts:
            return 421, "the server is not known by this name; address it as it was started."
        origin = headers.get("origin")
        is_foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
        if is_foreign and origin not in self.origins:
            return 403, "requests from pages of other servers are not allowed; start the server with this origin."
        try:
            _check_path(scope["path"])
            _check_query(scope["query_string"])
        except InputError as error:
            return 400, str(error)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limit(scope):
            return _too_large(self._limit(scope))
        return None

    def _limit(self, scope: Scope) -> int:
        kinds = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
        is_upload = any(kind.lower().startswith((b"multipart/", b"application/dicom")) for kind in kinds)
        return self.most_bytes if is_upload else min(self.most_bytes, JSON_BYTES)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer 413 where its body, whose length it need not say, goes beyond the limit."""
        limit = left = self._limit(scope)
        has_answered = False

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal has_answered
            if left >= 0:
                await send(message)
            elif not has_answered:
                has_answered = True
                await _http_answer(send, *_too_large(limit))

        try:
            await self.app(scope, counted, watched)
        except _TooLargeError:
            await watched({})


def _too_large(limit: int) -> tuple[int, str]:
    return 413, f"the body is too large, expected at most {limit} bytes; send less, or raise the server's limit."


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


async def _http_answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
