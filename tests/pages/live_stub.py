"""A server of the live page whose model is a table: what it finds stands in each test, so tests are quick and exact."""

import asyncio
import io
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from multibox.cli.monitor import listen
from multibox.pages.live_page import live_page

NAMES = ["cat", "dog", "<img src=x onerror=alert(1)>"]
THRESHOLDS = [0.5, 0.6, 0.5]
NMS, MOST = 0.5, 100


def overlap(one: list[float], other: list[float]) -> float:
    """Return the IoU of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def suppress(rows: list[dict[str, Any]], nms: float) -> list[dict[str, Any]]:
    """Return what greedy suppression keeps of candidates that stand best first."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        if all(row["label"] != one["label"] or overlap(one["box"], row["box"]) <= nms for one in kept):
            kept.append(row)
    return kept


def candidate(label: int, score: float, *box: float) -> dict[str, Any]:
    return {"label": label, "name": NAMES[label], "score": score, "box": list(box)}


def random_candidates(count: int, width: int, height: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return candidates of all classes, best first."""
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.uniform(0.05, 1, count))[::-1].round(5).tolist()
    rows: list[dict[str, Any]] = []
    for score in scores:
        x, y = rng.uniform(0, 0.7 * width), rng.uniform(0, 0.7 * height)
        box = [x, y, x + rng.uniform(0.05, 0.3) * width, y + rng.uniform(0.05, 0.3) * height]
        rows.append(candidate(int(rng.integers(len(NAMES))), score, *(round(side, 2) for side in box)))
    return rows


def photo(width: int = 320, height: int = 240, **options: Any) -> bytes:
    """Return a PNG whose pixel at x, y is (x % 256, y % 256, 99)."""
    rows, columns = np.indices((height, width))
    pixels = np.stack([columns % 256, rows % 256, np.full_like(rows, 99)], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


class Stub:
    """The server; its fields may be changed while it answers.

    Attributes:
        candidates: What it finds in any image.
        asked: Query and headers of each `POST /predict`.
        refusals: Answers to give first, in order, in place of detections.
        delay: Seconds that each answer takes.
        kept: What it says it keeps; None suppresses.
        most_candidates: Of an answer.
        most_at_once: Requests that it answered at the same time, at most.
        options: Of `live_page`, in place of those above.
    """

    def __init__(self) -> None:
        self.candidates = [
            candidate(0, 0.9, 20, 30, 120, 130),
            candidate(1, 0.8, 200, 100, 300, 220),
            candidate(0, 0.7, 30, 34, 124, 134),  # overlaps the first cat by 0.73
            candidate(0, 0.55, 220, 10, 260, 50),
            candidate(1, 0.55, 10, 180, 60, 230),  # below the threshold of dogs
            candidate(2, 0.2, 150, 10, 180, 40),
        ]
        self.asked: list[dict[str, Any]] = []
        self.refusals: list[Response] = []
        self.delay = 0.0
        self.kept: list[dict[str, Any]] | None = None
        self.most_candidates = 1000
        self.at_once = self.most_at_once = 0
        self.options: dict[str, Any] = {}
        routes = [Route("/", self.page), Route("/predict", self.predict, methods=["POST"])]
        self.app = Starlette(routes=routes)

    async def page(self, request: Request) -> Response:
        settings: dict[str, Any] = {"title": "stub", "names": NAMES, "thresholds": THRESHOLDS, "nms": NMS, "most": MOST}
        return HTMLResponse(live_page(**settings | self.options))

    async def predict(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append({**request.query_params, "headers": dict(request.headers), "bytes": len(body)})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay)
        self.at_once -= 1
        if self.refusals:
            return self.refusals.pop(0)
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
        rows = self.candidates
        kept = suppress(rows, NMS)[:MOST] if self.kept is None else self.kept
        answer: dict[str, Any] = {"width": image.width, "height": image.height, "detections": kept}
        return JSONResponse(answer | {"candidates": rows[: self.most_candidates]})


@contextmanager
def serve(app: Any) -> Generator[str]:
    """Serve an ASGI application while the block lasts; yield its address."""
    import uvicorn

    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(5)


def wait_until(page: Any, expression: str, seconds: float = 10) -> None:
    """Wait until an expression is true; Playwright's own waiting is eval, which the page forbids."""
    began = time.monotonic()
    while not page.evaluate(expression):
        assert time.monotonic() - began < seconds, expression
        page.wait_for_timeout(30)
