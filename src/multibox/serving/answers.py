"""What the server answers: detections and mistakes as JSON."""

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from multibox.errors import ConfigError, ImageError, MultiboxError
from multibox.inference.results import detection_entries
from multibox.serving.batching import Busy, Looked

JSON = "application/json"
INSIDE = "the server failed on this request; its log says why"
"""All that a client learns of a mistake of ours."""

_encode = msgspec.json.Encoder().encode


class Refused(MultiboxError):
    """A request that is answered with `{"error"}`.

    Args:
        status: Of the response.
        what: One sentence.
        headers: Further ones of the response.
    """

    def __init__(self, status: int, what: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(what)
        self.status, self.headers = status, headers


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return any plain value as JSON."""
    return Response(_encode(value), status, headers, JSON)


def problem(status: int, what: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a mistake as `{"error": what}`."""
    return json_answer({"error": what}, status, headers)


def as_problem(error: Exception) -> Response | None:
    """Return the response to an error that says what the client can do; None for a mistake of ours."""
    if isinstance(error, Refused):
        return problem(error.status, str(error), error.headers)
    if isinstance(error, Busy):
        return problem(503, str(error), {"retry-after": str(error.seconds)})
    if isinstance(error, ImageError):
        return problem(413 if error.kind == "huge-image" else 422, str(error))
    if isinstance(error, ConfigError):
        return problem(400, str(error))
    return None


def as_answer(looked: Looked) -> dict[str, Any]:
    """Return what was found in one image, as `predict --json` writes it, without the file."""
    answer: dict[str, Any] = {
        "width": looked.width,
        "height": looked.height,
        "detections": detection_entries(looked.found),
    }
    if looked.candidates is not None:
        answer["candidates"] = detection_entries(looked.candidates)
    return answer
