"""What the server says while it runs: one line per request and event on standard error, for people or as JSON."""

import logging
import queue
import re
import secrets
import sys
import threading
import time
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multibox.errors import one_line

TEXT, JSON = "text", "json"
MOST_LINES = 10_000
"""Lines that wait to be written; further ones are dropped and counted, so that a full pipe never stops the server."""
REQUEST_ID = b"x-request-id"
_GIVEN_ID = re.compile(rb"[\w.:/+=-]{1,128}", re.ASCII)
CLOSE = (b"connection", b"close")
"""Header that asks a client to close its connection."""
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}
"""Attributes that every record has; further ones are those of its event."""

log = logging.getLogger("multibox.serving")
notes_of_request: ContextVar[dict[str, Any] | None] = ContextVar("notes_of_request", default=None)
"""What becomes known of the present request on its way, for its line in the log."""


class _Lines(logging.Handler):
    """Writes lines from a thread of its own."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream
        self.dropped = 0
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_LINES)
        self._writer = threading.Thread(target=self._write, name="multibox-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Write what waits; a stream that takes nothing is given up after a second."""
        try:
            self._lines.put(None, timeout=1)
            self._writer.join(1)
        except queue.Full:
            pass
        super().close()

    def _about_dropped(self) -> str:
        message = f"{self.dropped} lines dropped: whoever reads the log is too slow"
        values = {"levelno": logging.WARNING, "levelname": "WARNING", "msg": message, "event": "dropped"}
        return self.format(logging.makeLogRecord(values))

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            lines = [line]
            try:
                while (line := self._lines.get_nowait()) is not None:
                    lines.append(line)
            except queue.Empty:
                pass
            if self.dropped:
                lines.append(self._about_dropped())
                self.dropped = 0
            try:
                self.stream.write("\n".join(lines) + "\n")
                self.stream.flush()
            except (OSError, ValueError):  # nobody reads it any more
                pass
            if line is None:
                return


class _Text(logging.Formatter):
    """Lines for people: the time, what happened, and the level unless it is `info`."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        worker = f" [{record.__dict__['worker']}]" if "worker" in record.__dict__ else ""
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}{worker} {level}{_message(record)}"
        return line if record.exc_info is None else f"{line}\n{_trace(record)}"


class _Json(logging.Formatter):
    """One JSON object per line: `time`, `level`, `event`, `message` and what the event adds."""

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": "log",
            **{name: value for name, value in record.__dict__.items() if name not in _STANDARD},
            "message": _message(record),
        }
        notes = notes_of_request.get()
        if notes is not None:
            values.setdefault("id", notes["id"])
        if record.exc_info is not None:
            values["exception"] = _trace(record)
        return msgspec.json.encode(values, enc_hook=str).decode()


def start_logging(kind: str = TEXT, worker: int | None = None, stream: TextIO | None = None) -> logging.Handler:
    """Send the log of the server, and uvicorn's warnings, to a stream; return the handler, for `end_logging`.

    Args:
        kind: `text` or `json`.
        worker: Number of this process among several, which stands in every line.
        stream: None is standard error.
    """
    handler = _Lines(stream or sys.stderr)
    handler.setFormatter(_Json() if kind == JSON else _Text())
    if worker is not None:

        def number(record: logging.LogRecord) -> bool:
            record.worker = worker
            return True

        handler.addFilter(number)
    for name, level in (("multibox", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    return handler


def end_logging(handler: logging.Handler) -> None:
    """Write what waits and let the loggers be."""
    for name in ("multibox", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)
    handler.close()


def tell_exchange(exchange: Any) -> None:
    """Log a request that has ended (an `Exchange`): never its query, body or headers, which may hold a secret."""
    if not log.isEnabledFor(logging.INFO):
        return
    notes = notes_of_request.get() or {}
    milliseconds = round(exchange.seconds * 1e3, 1)
    extra = {
        "event": "request",
        "method": exchange.method,
        "path": one_line(exchange.path[:200]),
        "status": exchange.status,
        "ms": milliseconds,
        "bytes": exchange.received,
        "images": exchange.images,
        "client": exchange.client,
        **notes,
    }
    if exchange.model:
        extra["model"] = exchange.model
    log.info("%s %s %d, %.1f ms", exchange.method, extra["path"], exchange.status, milliseconds, extra=extra)


def note(**values: float | str) -> None:
    """Add something to the line of the present request in the log; of several images the largest number stays."""
    notes = notes_of_request.get()
    if notes is None:
        return
    for name, value in values.items():
        old = notes.get(name)
        notes[name] = max(old, value) if isinstance(old, float) and isinstance(value, float) else value


class Envelope:
    """The outermost layer: names each request, and asks clients to close their connection while the server ends.

    A request keeps its `x-request-id`, or gets one; the response and every line of the log about it have it.

    Args:
        app: Answers the requests.
        draining: Whether the server ends.
    """

    def __init__(self, app: ASGIApp, draining: Any) -> None:
        self.app, self.draining = app, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - an ASGI application
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
        identity = given if _GIVEN_ID.fullmatch(given) else secrets.token_hex(8).encode()
        notes_of_request.set({"id": identity.decode()})

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (REQUEST_ID, identity)]
                if self.draining() and CLOSE not in headers:
                    headers.append(CLOSE)
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, sending)


def _message(record: logging.LogRecord) -> str:
    return one_line(record.getMessage())


def _trace(record: logging.LogRecord) -> str:
    return "".join(traceback.format_exception(*record.exc_info)).rstrip() if record.exc_info else ""
