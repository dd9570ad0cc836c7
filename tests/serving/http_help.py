"""A server of models that are made up, in a thread, and a client that sends what it is told to, byte by byte."""

import asyncio
import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import numpy as np
import uvicorn
from PIL import Image

from multibox.cli.monitor import listen
from multibox.serving.app import make_app
from multibox.serving.batching import Looked
from multibox.serving.connections import Connection
from multibox.serving.looking import open_pixels
from multibox.structures import Detections
from multibox.thresholds import drop_low_scores, lowest_scores

NAMES = ("cat", "dog")
POST = {"nms_threshold": 0.45, "max_detections": 100}


class Fake:
    """A model that finds a cat that fills the image and a dog in its upper left quarter."""

    def __init__(self, name: str = "pets", seconds: float = 0.0) -> None:
        self.name, self.source, self.seconds = name, name, seconds
        self.detector = SimpleNamespace(
            names=NAMES, thresholds=(0.25, 0.5), background=(255, 255, 255), about={"post": POST}
        )
        self.waiting, self.ready, self.version = 0, True, "abc-1"
        self.done = 0
        self.cancelled = 0

    def drift(self):
        return []

    async def look(self, image, threshold=None, *, raw=False, nms=None, most=None):
        lowest = lowest_scores(threshold, self.detector.thresholds, NAMES)
        self.waiting += 1
        try:
            await asyncio.sleep(self.seconds)
            height, width = (await asyncio.to_thread(open_pixels, image)).shape[:2]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        self.done += 1
        boxes = np.array([[0, 0, width, height], [0, 0, width / 2, height / 2]], np.float32)
        found = Detections(boxes, np.array([0.876543, 0.4], np.float32), np.array([0, 1]), NAMES)
        return Looked(width, height, drop_low_scores(found, lowest), found if raw else None)


def found(width, height):
    """Return what the server answers about an image of this size."""
    return {
        "width": width,
        "height": height,
        "detections": [{"label": 0, "name": "cat", "score": 0.87654, "box": [0.0, 0.0, width, height]}],
    }


@contextmanager
def serving(*models: Fake, **options) -> Iterator[int]:
    """Serve in a thread and yield the port."""
    named = {model.name: model for model in models or (Fake(),)}
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        app = make_app(named, port=port, **options)
        config = uvicorn.Config(
            app, http=Connection, ws="none", log_level="critical", access_log=False, server_header=False,
            proxy_headers=False, lifespan="off", timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


class Answer(SimpleNamespace):
    """A response: `status`, `headers` by lower-case name, `body`; `value` and `error` of JSON."""

    @property
    def value(self):
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert list(self.value) == ["error"]
        return self.value["error"]


def ask(port, path="/predict", body=None, method=None, **headers) -> Answer:
    """Send one request; `content_type="image/png"` is a header."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, names)
    try:
        return read_answer(connection.getresponse())
    finally:
        connection.close()


def read_answer(response) -> Answer:
    named = {name.lower(): value for name, value in response.getheaders()}
    return Answer(status=response.status, headers=named, body=response.read())


class Wire:
    """A connection for single bytes; what came behind one response stays for the next one."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.file = _Kept(self.socket)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def makefile(self, mode: str) -> "_Kept":
        """Return the file from which `HTTPResponse` reads."""
        return self.file

    def close(self) -> None:
        self.socket.close()


class _Kept(io.BufferedReader):
    """A file that a response does not close."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(socket.SocketIO(connection, "rb"))

    def close(self) -> None:
        pass


def send(port, data: bytes, *, end: bool = False) -> Wire:
    """Return a connection through which these bytes were sent."""
    wire = Wire(port)
    # The server may refuse before it has read all
    with suppress(ConnectionError):
        wire.socket.sendall(data)
        if end:
            wire.socket.shutdown(socket.SHUT_WR)
    return wire


def receive(wire: Wire) -> Answer:
    """Return the next response of a connection."""
    response = http.client.HTTPResponse(wire)  # pyright: ignore[reportArgumentType]
    response.begin()
    return read_answer(response)


def is_closed(wire: Wire) -> bool:
    """Return whether the server closes the connection within the time-out without a further byte."""
    try:
        return wire.file.read(1) == b""
    except ConnectionResetError:
        return True


def picture(width=40, height=30, kind="PNG", mode="RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind, **options)
    return file.getvalue()
