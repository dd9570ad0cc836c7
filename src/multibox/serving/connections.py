"""Connections that send nothing, or too slowly, or too many: how they end without hurting others.

uvicorn limits the time between two requests of a connection; here, the time for the head of each request as well, and
the number of connections.
"""

import asyncio
import sys
from typing import ClassVar

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""Seconds in which the head of a request has to arrive, from the connection or from its first byte on."""
SPARE_FILES = 64
"""Open files that are kept for other purposes than connections."""
MOST_CONNECTIONS = 2000
_SENTENCES = {
    431: "the head of the request is too large",
    501: "the transfer-encoding is not known; send chunked, or content-length",
}


def most_connections() -> int:
    """Return how many connections this process may hold."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft < 0 else max(16, min(MOST_CONNECTIONS, soft - SPARE_FILES))


class Connection(H11Protocol):
    """A connection of uvicorn with a deadline for heads; the one that has waited longest goes where there are too many.

    Give it to `uvicorn.Config(http=Connection)`.
    """

    most: ClassVar[int] = most_connections()

    since: float = 0.0
    """When it began to wait for the present request."""
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self._await_head()
        if len(self.connections) > self.most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Take what came; a head that has begun has to come to its end in time."""
        if self._waits and self._deadline is None:
            self._await_head()
        super().data_received(data)

    def handle_events(self) -> None:
        """Run requests that have come whole; from then on, the application keeps the time."""
        super().handle_events()
        if not self._waits:
            self._forget()

    def on_response_complete(self) -> None:
        """Wait for the next head; uvicorn's time between two requests runs."""
        self.since = self.loop.time()
        super().on_response_complete()
        if self._waits and self._deadline is None and self.conn.trailing_data[0]:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._forget()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as JSON, and end the connection."""
        self._forget()
        error = sys.exception()
        hint = getattr(error, "error_status_hint", 400)
        status = hint if hint in _SENTENCES else 400
        body = msgspec.json.encode({"error": _SENTENCES.get(status, "this is no valid HTTP/1.1 request")})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"connection", b"close"),
        ]
        try:
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # a response is on its way already
        self.transport.close()

    @property
    def _waits(self) -> bool:
        """Whether no request is being received or answered."""
        return self.cycle is None or self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self._waits and not self.transport.is_closing():
            self.transport.close()

    def _make_room(self) -> None:
        """Close the connection that has waited longest for a head or a body; the newest if all are being answered."""
        ours: list[Connection] = [each for each in self.connections if isinstance(each, Connection)]  # pyright: ignore[reportUnknownVariableType]
        oldest = min((each for each in ours if each.is_idle), key=lambda each: each.since, default=self)
        oldest.transport.abort()

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost if the connection ended: its request has not come whole."""
        return not self.transport.is_closing() and bool(self._waits or self.cycle.more_body)
