"""How long the server waits for the bodies of requests: one that never ends gives way."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, NoReturn

SILENCE_S = 30.0
"""How long a body may make the server wait in all, beyond what `LEAST_BYTES_PER_S` needs."""

LEAST_BYTES_PER_S = 10_000
"""The slowest line that anybody annotates over."""

MOST_BODIES = 64
"""Bodies that may be on their way at a time."""

SILENT_S = 1.0
"""How long one of them must have been silent to give its place to another."""

Message = MutableMapping[str, Any]


def too_large(limit: int) -> str:
    """Say that a body is."""
    return f"the body is too large, expected at most {limit} bytes; send less, or raise the server's limit."


class BodyError(Exception):
    """A body is not waited for, or not read on.

    Args:
        status: of the answer.
        sentence: for the client.
    """

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Body:
    """The body of one request, on its way.

    Args:
        most_bytes: that it may have.
        is_announced: the headers say that it comes; else there is nothing to wait for.
    """

    def __init__(self, most_bytes: int, *, is_announced: bool) -> None:
        self.most_bytes = most_bytes
        self.is_announced = is_announced
        self.began_s = self.heard_s = time.monotonic()
        self.received_bytes = 0
        self.is_whole = False
        self.waiting: asyncio.Timeout | None = None
        self.refusal: BodyError | None = None

    async def next(self, receive: Callable[[], Awaitable[Message]]) -> Message:
        """Return the next message; after the last of the body, what the server says of the connection.

        Raises:
            BodyError: it does not come in time, or the body is too large.
        """
        if self.is_whole:
            return await receive()
        due_s = self.began_s + SILENCE_S + self.received_bytes / LEAST_BYTES_PER_S
        try:
            async with asyncio.timeout(due_s - time.monotonic() if self.is_announced else None) as self.waiting:
                message = await receive()
        except TimeoutError:
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, "the body comes too slowly; send it again.")
        finally:
            self.waiting = None
        self.heard_s = time.monotonic()
        self.received_bytes += len(message.get("body", b""))
        if self.received_bytes > self.most_bytes:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(self.most_bytes))
        self.is_whole = not message.get("more_body", False)
        return message

    def refuse(self, status: HTTPStatus, sentence: str) -> NoReturn:
        """Take the body no further.

        Raises:
            BodyError: always.
        """
        self.refusal = BodyError(status, sentence)
        raise self.refusal


class Bodies:
    """The bodies that are on their way; one that has fallen silent gives its place to a new one."""

    def __init__(self) -> None:
        self._places: list[Body] = []

    @contextmanager
    def place_for(self, body: Body) -> Iterator[None]:
        """Give a body a place until the block ends; it counts until it has come whole.

        Raises:
            BodyError: there is none.
        """
        on_their_way = sum(other.is_announced and not other.is_whole for other in self._places)
        if body.is_announced and on_their_way >= MOST_BODIES:
            self._make_room(body)
        self._places.append(body)
        try:
            yield
        finally:
            self._places.remove(body)

    def _make_room(self, body: Body) -> None:
        waiting = [other for other in self._places if other.is_announced and other.waiting is not None]
        quietest = min(waiting, key=lambda other: other.heard_s, default=None)
        if quietest is None or quietest.waiting is None or time.monotonic() - quietest.heard_s < SILENT_S:
            body.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many uploads are on their way; send it later.")
        quietest.waiting.reschedule(asyncio.get_running_loop().time())
        quietest.heard_s = math.inf  # it leaves as soon as it is told
