"""Connections that say nothing are closed: uvicorn waits for the headers of a request for ever."""

from asyncio import TimerHandle, Transport

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_WITHIN_S = 20.0
"""How long a connection may go without a whole request."""


class PatientProtocol(H11Protocol):  # type: ignore[misc]  # uvicorn is of the optional extra
    """HTTP/1.1 of uvicorn, which waits for ever for the headers of a request."""

    _timer: TimerHandle | None = None
    _seen: object = None  # the cycle with which it was idle at the last look

    def connection_made(self, transport: Transport) -> None:
        """Begin to look at the connection now and then."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEADERS_WITHIN_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Close the connection if no request has come since the last look, and none is being answered."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle if is_idle else self
        self._timer = self.loop.call_later(HEADERS_WITHIN_S, self._look)
