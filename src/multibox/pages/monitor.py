"""The server of `multibox monitor`: a live page over run folders, fed by server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from multibox.pages.monitor_hub import Hub, Viewer, parse_position
from multibox.pages.page import build_page, to_json
from multibox.pages.page_guard import Guard, is_loopback, known_names
from multibox.pages.run_folders import STOPPABLE, ask_to_stop, compare_settings, sample_bytes, text

BEAT, HEARTBEAT = 1.0, 15.0
"""Seconds between two looks, and after which a silent stream says that it lives."""
SLICE = 0.2
"""Seconds in which a stream notices that the server ends."""
RETRY = 2000
"""Milliseconds after which a page that lost its stream asks again."""
MOST_STREAMS = 32
MOST_BODY = 4096
"""Bytes of a request."""


def make_app(
    root: Path, *, host: str = "127.0.0.1", token: str | None = None, port: int = 0, ending: Callable[[], bool]
) -> ASGIApp:
    """Return the monitor as an ASGI application.

    Args:
        root: A folder of run folders, or one run folder.
        host: The address it is bound to.
        token: Which a browser has to know; None lets everyone in.
        port: Where it listens, for the cookie's name.
        ending: Says whether the server is to end, so that open streams do.
    """
    pages = _Pages(root, ending)
    routes = [
        Route("/", pages.page),
        Route("/events", pages.events),
        Route("/image", pages.image),
        Route("/settings", pages.settings),
        Route("/stop", pages.stop, methods=["POST"]),
    ]
    app = Starlette(routes=routes)
    names, loopback = known_names(host), is_loopback(host)
    return Guard(app, names=names, loopback=loopback, token=token, cookie=f"multibox-monitor-{port}")


class _Pages:
    """What the server answers, by address."""

    def __init__(self, root: Path, ending: Callable[[], bool]) -> None:
        self.root = root
        self.hub = Hub(root)
        self.ending = ending
        self.streams = 0

    async def page(self, request: Request) -> Response:
        """The page, with the runs that there are; their curves come through `/events`."""
        runs = await run_in_threadpool(self.hub.all_states)
        body = '<div id="monitor"></div><noscript>This page needs JavaScript.</noscript>'
        data = {"runs": runs, "root": text(str(self.root)) or ""}
        scripts = ["monitor.css", "monitor_charts.js", "monitor.js"]
        return HTMLResponse(build_page("multibox monitor", body=body, data=data, scripts=scripts, connect=True))

    async def events(self, request: Request) -> Response:
        """Server-sent events: states of all runs, curves of those in `?show=ID:CURSOR~ID:CURSOR`."""
        if self.streams >= MOST_STREAMS:
            return _problem(503, f"{MOST_STREAMS} pages look already; close some")
        # After a lost connection the browser says by itself what it got last
        position = request.headers.get("last-event-id") or request.query_params.get("show", "")
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(
            self._stream(Viewer(parse_position(position))), media_type="text/event-stream", headers=headers
        )

    async def _stream(self, viewer: Viewer) -> AsyncIterator[str]:
        self.streams += 1
        try:
            yield f"retry: {RETRY}\n\n"
            silent = 0.0
            while not self.ending():
                news, more = await run_in_threadpool(self.hub.news, viewer)
                if news is not None:
                    yield f"id: {viewer.position}\ndata: {to_json(news)}\n\n"
                    silent = 0.0
                elif silent >= HEARTBEAT:
                    yield ": still here\n\n"
                    silent = 0.0
                if not more:
                    silent += await self._wait(BEAT)
            yield "event: bye\ndata: {}\n\n"
        finally:
            self.streams -= 1

    async def _wait(self, seconds: float) -> float:
        waited = 0.0
        while waited < seconds and not self.ending():
            await asyncio.sleep(SLICE)
            waited += SLICE
        return waited

    async def image(self, request: Request) -> Response:
        """Sample predictions: `?run=ID&name=step-000123.jpg`."""
        run = await run_in_threadpool(self.hub.get, request.query_params.get("run", ""))
        name = request.query_params.get("name", "")
        data = None if run is None else await run_in_threadpool(sample_bytes, run, name)
        return _problem(404, "there is no such image") if data is None else Response(data, media_type="image/jpeg")

    async def settings(self, request: Request) -> Response:
        """In which settings runs differ: `?run=ID&run=ID`."""
        runs = await run_in_threadpool(self.hub.get_all, request.query_params.getlist("run"))
        return JSONResponse(await run_in_threadpool(compare_settings, runs))

    async def stop(self, request: Request) -> Response:
        """Ask a run to save and end: {"run": ID}."""
        key = await _asked_run(request)
        run = None if key is None else await run_in_threadpool(self.hub.get, key)
        if run is None:
            return _problem(404, "there is no such run")
        state = await run_in_threadpool(self.hub.state, run.id)
        if state["state"] not in STOPPABLE:
            return _problem(409, "the run is not training, so there is nothing to stop")
        try:
            await run_in_threadpool(ask_to_stop, run)
        except OSError as error:
            return _problem(500, f"{run.folder} cannot be written to ({error.strerror}); press Ctrl-C where it trains")
        return JSONResponse({"asked": True})


async def _asked_run(request: Request) -> str | None:
    """Return the run that a request's body names; None for any other body."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return None
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY:
            return None
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    run: object = cast(dict[str, Any], asked).get("run") if isinstance(asked, dict) else None
    return run if isinstance(run, str) else None


def _problem(status: int, what: str) -> Response:
    return JSONResponse({"error": what}, status)
