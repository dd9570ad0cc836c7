"""The outermost layer: limits of bodies, errors as JSON, counts and log entries, the same for every address."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multibox.serving.answers import INSIDE, Refused, as_problem, problem
from multibox.serving.logs import CLOSE

LOG = logging.getLogger("multibox.serving")
GONE = 499
"""Status under which a request is counted whose client went away; nothing is sent."""
LINGER = 2.0
"""Seconds in which what a client still sends is read and dropped, so that it sees why its request was refused."""
_TEMPLATES = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT")


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them, may take."""

    body: int = 1 << 26
    """Bytes of a body."""
    in_flight: int = 512_000_000
    """Bytes of all bodies that are being received or waiting."""
    receive: float = 60.0
    """Seconds in which a body has to arrive."""
    answer: float = 60.0
    """Seconds in which an image has to be looked at."""


@dataclass(slots=True)
class Exchange:
    """One request and its response, for counts and the log."""

    method: str
    path: str
    """As it was asked for; only for the log."""
    route: str
    """The address as the schema names it, "other" if there is none: few values."""
    status: int
    seconds: float
    received: int
    """Bytes of the body."""
    sent: int
    """Bytes of the response's body."""
    client: str
    images: int
    model: str


Told = Callable[[Exchange], None]


class Front:
    """Runs an application within limits and answers what it raises.

    Args:
        app: Routes behind a guard. They may raise any error of `answers.as_problem`.
        limits: Of bodies.
        told: Called after each request.
    """

    def __init__(self, app: ASGIApp, limits: Limits, told: Told) -> None:
        self.app, self.limits, self.told = app, limits, told
        self.in_flight = 0
        """Bytes of bodies held now."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - an ASGI application
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await _Run(self, scope, receive, send).run()
        else:
            await send({"type": "websocket.close"})


class Answering:
    """Runs routes and answers what they raise, as JSON.

    Args:
        app: The routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - an ASGI application
        # With it, routes raise on an unknown path or method instead of answering in plain text
        scope["app"] = self
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except ClientDisconnect:
            raise
        except Exception as error:
            if started:
                raise
            await _response(error, scope)(scope, receive, send)


def _response(error: Exception, scope: Scope) -> ASGIApp:
    if isinstance(error, HTTPException):
        what = _SENTENCES.get(error.status_code, error.detail)
        if error.status_code == 405 and error.headers:
            what += f"; use {_methods(error.headers['Allow'])}"
        return problem(error.status_code, what, error.headers)
    response = as_problem(error)
    if response is None:
        LOG.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
        response = problem(500, INSIDE)
    return response


class _Run:
    """One request on its way."""

    __slots__ = (
        "app",
        "began",
        "front",
        "has_body",
        "length",
        "limits",
        "read",
        "received",
        "reply",
        "scope",
        "sent",
        "source",
        "started",
        "status",
    )

    def __init__(self, front: Front, scope: Scope, receive: Receive, send: Send) -> None:
        self.front, self.limits, self.scope = front, front.limits, scope
        self.source, self.reply = receive, send
        self.began = time.perf_counter()
        self.received = self.sent = self.status = 0
        self.started = self.read = False
        """Whether the response has begun, and whether the body came to its end."""
        self.has_body, self.length = False, 0

    async def run(self) -> None:
        scope = self.scope
        scope["multibox"] = notes = dict[str, Any]()
        try:
            length, chunked = _framing(scope)
            self.length = length or 0
            self.has_body = chunked or bool(length)
            if chunked and length is not None:
                # Two readers of one stream may see different requests in it
                refusal = problem(400, "the request has both content-length and transfer-encoding; send one")
                await refusal(scope, self.receive, self.send)
            else:
                await self.front.app(scope, self.receive, self.send)
        except ClientDisconnect:
            self.status = self.status or GONE
        except BaseException:
            self.status = self.status or GONE
            raise
        finally:
            self.front.in_flight -= self.received
            self._tell(notes)

    async def receive(self) -> Message:
        """Pass on the body, within the limits; then wait for the client to go away."""
        if self.read:
            return await self.source()
        limits = self.limits
        if self.length > limits.body:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.began + limits.receive - time.perf_counter()):
                message = await self.source()
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {limits.receive:g} s") from None
        size = len(message.get("body", b""))
        self.received += size
        self.front.in_flight += size
        self.read = not message.get("more_body", False)
        if self.received > limits.body:
            raise self._too_large()
        if self.front.in_flight > limits.in_flight:
            raise Refused(503, "the server holds too many bodies; try again in 1 s", {"retry-after": "1"})
        return message

    def _too_large(self) -> Refused:
        return Refused(
            413, f"the body is larger than {self.limits.body:,} bytes; send smaller images, or fewer at once"
        )

    async def send(self, message: Message) -> None:
        """Pass on the response; if the body is unread, close the connection after what still comes was dropped."""
        unread = self.has_body and not self.read
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            if unread:
                message["headers"] = [*message.get("headers", ()), CLOSE]
        else:
            self.sent += len(message.get("body", b""))
            if unread and not message.get("more_body", False):
                await self.reply({**message, "more_body": True})
                await self._drop()
                message = {"type": "http.response.body", "body": b""}
        await self.reply(message)

    async def _drop(self) -> None:
        try:
            async with asyncio.timeout(LINGER):
                while (await self.source()).get("more_body", False):
                    pass
        except TimeoutError:
            pass

    def _tell(self, notes: dict[str, Any]) -> None:
        scope, client = self.scope, self.scope.get("client")
        method = scope["method"]
        self.front.told(
            Exchange(
                method=method if method in _TEMPLATES else "other",
                path=scope["path"],
                route=getattr(scope.get("route"), "path", "other"),
                status=self.status,
                seconds=time.perf_counter() - self.began,
                received=self.received,
                sent=self.sent,
                client=client[0] if client else "",
                images=notes.get("images", 0),
                model=notes.get("model", ""),
            )
        )


_SENTENCES = {404: "there is nothing at this address", 405: "this address does not answer this method"}


def _methods(allowed: str) -> str:
    """Return the methods of an `Allow` header as words, in a fixed order; HEAD is for programs that know of it."""
    return " or ".join(sorted(method for method in allowed.split(", ") if method != "HEAD"))


def _framing(scope: Scope) -> tuple[int | None, bool]:
    """Return the length that a request states, and whether its body comes in chunks."""
    length, chunked = None, False
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = True
    return length, chunked


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
