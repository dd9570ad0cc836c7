"""The server's addresses: `POST /predict`, health, metrics, the page."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from multibox.errors import ConfigError, ImageError
from multibox.serving.answers import as_answer, problem
from multibox.serving.batching import Busy
from multibox.serving.hosted import Models
from multibox.serving.open_inference import inference_routes


def make_app(models: Models) -> ASGIApp:
    """Return the server as an ASGI application.

    Args:
        models: By name; the first one answers where none is named.
    """
    pages = _Pages(models)
    return Starlette(routes=[Route("/predict", pages.predict, methods=["POST"]), *inference_routes(models)])


class _Pages:
    """What the server answers, by address."""

    def __init__(self, models: Models) -> None:
        self.models = models

    async def predict(self, request: Request) -> Response:
        """`POST /predict?threshold=0.3&raw=1&model=NAME` with an image as body."""
        model = next(iter(self.models.values()))
        threshold = request.query_params.get("threshold")
        raw = request.query_params.get("raw", "0") not in ("", "0", "false")
        try:
            lowest = None if threshold is None else float(threshold)
            looked = await model.look(await request.body(), lowest, raw=raw)
        except (ConfigError, ValueError) as error:
            return problem(400, str(error))
        except ImageError as error:
            return problem(422, str(error))
        except Busy as error:
            return problem(503, str(error), {"retry-after": str(error.seconds)})
        return JSONResponse(as_answer(looked))
