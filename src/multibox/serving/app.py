"""The server's addresses: `POST /predict`, the protocol of other servers, health, metrics, the schema, the page."""

import asyncio
import math
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from multibox.errors import ImageError, did_you_mean
from multibox.pages.live_page import page_of
from multibox.pages.page_guard import Guard, is_loopback, known_names
from multibox.serving.answers import Refused, as_answer, json_answer, problem
from multibox.serving.batching import Busy, Looked
from multibox.serving.bodies import Upload, read_images
from multibox.serving.counters import Counters
from multibox.serving.front import Answering, Front, Limits, Told
from multibox.serving.hosted import Hosted, Models
from multibox.serving.looking import ENCODED
from multibox.serving.open_inference import inference_routes
from multibox.serving.open_inference_schema import inference_paths
from multibox.serving.schema import OPEN, schema

PARAMETERS = ("threshold", "raw", "model")
AT_ONCE = 8
"""Images of one request that wait for a detector at once."""
PAUSE = 0.05
"""Seconds after which the next image of a request that was begun is tried again where the queue is full."""
_NUMBER = re.compile(r"[0-9.eE+-]{1,32}", re.ASCII)
_SWITCH = {"1": True, "true": True, "0": False, "false": False}

Value = TypeVar("Value")


def make_app(
    models: Models,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    allowed_hosts: Iterable[str] = (),
    limits: Limits = Limits(),  # noqa: B008 - frozen
    counters: Counters | None = None,
    told: Told | None = None,
    ready: Callable[[], bool] = lambda: True,
) -> ASGIApp:
    """Return the server as an ASGI application.

    Args:
        models: By name; the first one answers where none is named.
        host: The address that the server is bound to.
        port: Where it listens, for the cookie's name.
        token: What every request but those for health has to bring; None lets everyone in.
        allowed_hosts: Further names under which the server may be asked, as behind a proxy; "*" allows all.
        limits: Of requests.
        counters: For `/metrics`; None makes new ones.
        told: Called after each request, such as by a log.
        ready: Whether new requests are welcome; False while the server ends.
    """
    counters = counters or Counters(models)
    pages = _Pages(models, limits, counters, token is not None)
    routes = [
        Route("/predict", pages.predict, methods=["POST"]),
        Route("/", pages.page),
        Route("/metrics", pages.metrics),
        Route("/openapi.json", pages.schema),
        *inference_routes(models, pages.look, ready, limits.body),
    ]
    guard = Guard(
        Answering(Router(routes, redirect_slashes=False)),
        names=known_names(host) | set(allowed_hosts),
        loopback=is_loopback(host),
        token=token,
        cookie=f"multibox-serve-{port}",
        verb="serve",
        programs=True,
        open_paths=OPEN,
        refuse=problem,
    )
    listeners = [counters.add, *([] if told is None else [told])]

    def tell(exchange: Any) -> None:
        for each in listeners:
            each(exchange)

    return Front(guard, limits, tell)


class _Pages:
    """What the server answers, by address."""

    def __init__(self, models: Models, limits: Limits, counters: Counters, secured: bool) -> None:
        self.models, self.limits, self.counters, self.secured = models, limits, counters, secured

    async def page(self, request: Request) -> Response:
        """`GET /?model=NAME`: try a model in a browser."""
        return HTMLResponse(page_of(self.models, request.query_params.get("model"), secured=self.secured))

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        text, kind = self.counters.exposition()
        return Response(text, media_type=kind)

    async def schema(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        models = list(self.models)
        return json_answer(schema(models, self.limits, inference_paths(models), secured=self.secured))

    async def predict(self, request: Request) -> Response:
        """`POST /predict?threshold=0.3&raw=1&model=NAME` with one image or several as body."""
        given = _parameters(request)
        model = self._model(given.get("model"))
        lowest = None if "threshold" not in given else _threshold(given["threshold"])
        raw = _switch(given.get("raw", "0"))
        images, several = await read_images(request)
        found = await self.look(request, model, images, {"threshold": lowest, "raw": raw})
        return json_answer([as_answer(each) for each in found] if several else as_answer(found[0]))

    async def look(
        self, request: Request, model: Hosted, images: Sequence[Upload], options: Mapping[str, Any]
    ) -> list[Looked]:
        """Return what is found in the images of a request; all or nothing.

        Args:
            request: Given up when its client goes away.
            model: The model.
            images: The images.
            options: Of `Hosted.look`.
        """
        notes = request.scope["multibox"]
        notes["model"], notes["images"] = model.name, len(images)
        work = self._look_at_all(images, partial(self._look, model, options=options))
        return await _while_connected(request, work, self.limits.answer)

    def _model(self, name: str | None) -> Hosted:
        if name is None:
            return next(iter(self.models.values()))
        if (model := self.models.get(name)) is None:
            hint = did_you_mean(name[:100], self.models) or f"; the models are: {', '.join(self.models)}"
            raise Refused(404, f"there is no model {name[:100]!r}{hint}")
        return model

    async def _look(self, model: Hosted, image: Upload, *, options: Mapping[str, Any]) -> Looked:
        try:
            looked = await model.look(image.data, **options)
        except ImageError as error:
            raise ImageError(str(error).replace(ENCODED, image.where, 1), kind=error.kind) from None
        self.counters.looked(model.name, looked)
        return looked

    async def _look_at_all(
        self, images: Sequence[Upload], look: Callable[[Upload], Coroutine[Any, Any, Looked]]
    ) -> list[Looked]:
        found: dict[int, Looked] = {}
        if len(images) == 1:
            return [await look(images[0])]

        begun = 0

        async def work(numbers: Iterable[int]) -> None:
            nonlocal begun
            for number in numbers:
                # What was begun is not given up for a moment in which the queue is full
                while number not in found:
                    begun += 1
                    try:
                        found[number] = await look(images[number])
                    except Busy:
                        if begun == 1 and not found:
                            raise
                    finally:
                        begun -= 1
                    if number not in found:
                        await asyncio.sleep(PAUSE)

        numbers = iter(range(len(images)))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(images))):
                    group.create_task(work(numbers))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [found[number] for number in range(len(images))]


async def _while_connected(request: Request, work: Coroutine[Any, Any, Value], seconds: float) -> Value:
    """Return the result of `work`; give it up when the client goes away or the time is over.

    Raises:
        ClientDisconnect: The client went away.
        Refused: The time is over.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = late = False

    async def watch() -> None:
        nonlocal gone, late
        try:
            async with asyncio.timeout(seconds):
                while (await request.receive())["type"] != "http.disconnect":
                    pass
            gone = True
        except TimeoutError:
            late = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone:
            task.uncancel()
            raise ClientDisconnect from None
        if late:
            task.uncancel()
            raise Refused(503, f"no result within {seconds:g} s; try again in 1 s", {"retry-after": "1"}) from None
        raise
    finally:
        watcher.cancel()


def _parameters(request: Request) -> dict[str, str]:
    """Return the parameters in the address, each once.

    Raises:
        Refused: One is unknown or given twice.
    """
    found: dict[str, str] = {}
    if not request.scope["query_string"]:
        return found
    for name, value in request.query_params.multi_items():
        if name not in PARAMETERS:
            hint = did_you_mean(name[:50], PARAMETERS) or f"; expected {', '.join(PARAMETERS)}"
            raise Refused(400, f"parameter {name[:50]!r} is unknown{hint}")
        if name in found:
            raise Refused(400, f"parameter {name} is given twice")
        found[name] = value
    return found


def _threshold(text: str) -> float:
    try:
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise Refused(400, f"threshold={text[:50]!r}: expected a number from 0 to 1, the lowest score to report")
    return value


def _switch(text: str) -> bool:
    value = _SWITCH.get(text)
    if value is None:
        raise Refused(400, f"raw={text[:50]!r}: expected 1 or 0, whether boxes before suppression are wanted, too")
    return value
