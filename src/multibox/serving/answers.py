"""What the server answers: detections and mistakes as JSON."""

from typing import Any

from starlette.responses import JSONResponse

from multibox.serving.batching import Looked
from multibox.structures import Detections

SCORE_DIGITS, BOX_DIGITS = 5, 2
"""Digits behind the point, as in the files of `multibox predict`."""


def as_answer(looked: Looked) -> dict[str, Any]:
    """Return what was found in one image, as `predict --json` writes it, without the file."""
    answer: dict[str, Any] = {
        "width": looked.width,
        "height": looked.height,
        "detections": as_rows(looked.found),
    }
    if looked.candidates is not None:
        answer["candidates"] = as_rows(looked.candidates)
    return answer


def as_rows(found: Detections) -> list[dict[str, Any]]:
    """Return detections as plain values, in their order."""
    columns = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return [
        {
            "label": label,
            "name": found.names[label],
            "score": round(score, SCORE_DIGITS),
            "box": [round(side, BOX_DIGITS) for side in box],
        }
        for label, score, box in columns
    ]


def problem(status: int, what: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return a mistake as `{"error": what}`."""
    return JSONResponse({"error": what}, status, headers)


CODES = {400: "bad request", 413: "too large", 415: "unsupported kind of body", 422: "unreadable image"}
"""Statuses of mistakes of the client."""
