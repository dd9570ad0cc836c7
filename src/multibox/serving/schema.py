"""The description of the server's interface (OpenAPI 3.1): addresses, parameters, bodies, responses, errors."""

from collections.abc import Mapping, Sequence
from typing import Any

import multibox
from multibox.serving.bodies import MOST_PARTS
from multibox.serving.front import Limits
from multibox.serving.looking import MOST_PIXELS

Schema = dict[str, Any]
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}

REASONS = {
    400: "malformed parameters or body",
    401: "a token is needed, or another one",
    403: "a page of another site asked",
    404: "there is no such model",
    408: "the body did not arrive in time",
    413: "too many bytes, pixels or images",
    415: "the body is of a kind that is not read",
    421: "the Host header names no address of this server",
    422: "an image that cannot be read",
    500: "a failure of the server",
    503: "the server is busy; Retry-After says when to ask again",
}
"""By status, what an error means."""
OPEN = ("/v2/health/live", "/v2/health/ready")
"""Addresses that need no token: whoever watches over the server has none."""
EVERYWHERE = (400, 401, 403, 421)
"""Errors that every address may answer."""


def schema(
    models: Sequence[str], limits: Limits, protocol: Mapping[str, Schema] | None = None, *, secured: bool = False
) -> Schema:
    """Return the description of a server.

    Args:
        models: Names of its models; the first one is the default.
        limits: Of its requests.
        protocol: Further paths.
        secured: Whether a token is needed.
    """
    paths: dict[str, Schema] = {
        "/predict": {"post": _predict(models, limits)},
        "/": {"get": _get("The page that tries the model.", {"text/html": {"schema": {"type": "string"}}})},
        "/metrics": {"get": _get("Counts for Prometheus.", {"text/plain": {"schema": {"type": "string"}}})},
        "/openapi.json": {"get": _get("This description.", {"application/json": {"schema": {"type": "object"}}})},
        **(protocol or {}),
    }
    for path in OPEN:
        if path in paths:
            paths[path]["get"]["security"] = []
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "multibox serve",
            "version": multibox.__version__,
            "summary": "Objects in images: their classes, scores and boxes.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}] if secured else [],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _SCHEMAS,
            "responses": {f"E{status}": _error(status) for status in REASONS},
        },
    }


def responses(good: Schema, *errors: int) -> Schema:
    """Return the responses of an operation: a good one and errors by status."""
    numbers = sorted({*EVERYWHERE, *errors, 500})
    return {"200": good, **{str(each): {"$ref": f"#/components/responses/E{each}"} for each in numbers}}


def _get(what: str, content: Schema) -> Schema:
    return {"summary": what, "responses": responses({"description": what, "content": content})}


def _predict(models: Sequence[str], limits: Limits) -> Schema:
    one, several = (
        {"$ref": "#/components/schemas/Found"},
        {"type": "array", "items": {"$ref": "#/components/schemas/Found"}},
    )
    base64 = {"type": "string", "contentEncoding": "base64", "minLength": 1}
    files: Schema = {"type": "array", "items": {"type": "string", "contentMediaType": "image/*"}}
    content: Schema = {
        "image/*": {"schema": {"type": "string", "format": "binary", "minLength": 1}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}},
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": base64},
                "additionalProperties": False,
            }
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {**files, "minItems": 1, "maxItems": MOST_PARTS}},
                "required": ["image"],
            }
        },
    }
    good = {
        "description": "What was found; a list, in their order, for images sent as multipart/form-data.",
        "content": {"application/json": {"schema": {"oneOf": [one, several]}}},
    }
    return {
        "summary": "Find objects in one image or several.",
        "description": f"A body has at most {limits.body:,} bytes, an image at most {MOST_PIXELS:,} pixels.",
        "parameters": _parameters(models),
        "requestBody": {"required": True, "content": content},
        "responses": responses(good, 404, 408, 413, 415, 422, 503),
    }


def _parameters(models: Sequence[str]) -> list[Schema]:
    number = {"type": "number", "minimum": 0, "maximum": 1}
    return [
        _parameter("threshold", "Lowest score to report. Default: the model's of each class, or 0.3.", number),
        _parameter(
            "raw",
            "Whether boxes before suppression are wanted, too.",
            {"type": "string", "enum": ["0", "1", "false", "true"]},
        ),
        _parameter("model", f"Default: {next(iter(models), '')}.", {"type": "string", "enum": list(models)}),
    ]


def _parameter(name: str, what: str, kind: Schema) -> Schema:
    return {"name": name, "in": "query", "required": False, "description": what, "schema": kind}


def _error(status: int) -> Schema:
    headers: Schema = {}
    if status == 503:
        headers = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}}
    if status == 401:
        headers = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": f"In one sentence: {REASONS[status]}.", "headers": headers, "content": content}


_ROWS: Schema = {"type": "array", "items": {"$ref": "#/components/schemas/Detection"}}
_SCHEMAS: Schema = {
    "Found": {
        "type": "object",
        "required": ["width", "height", "detections"],
        "properties": {
            "width": {**_COUNT, "minimum": 1, "description": "Of the image as a person sees it, as is the height."},
            "height": {**_COUNT, "minimum": 1},
            "detections": {**_ROWS, "description": "Best first."},
            "candidates": {**_ROWS, "description": "Boxes before suppression, best first; only with raw=1."},
        },
        "additionalProperties": False,
    },
    "Detection": {
        "type": "object",
        "required": ["label", "name", "score", "box"],
        "properties": {
            "label": {**_COUNT, "description": "Number of the class, from 0."},
            "name": {"type": "string"},
            "score": {**_NUMBER, "minimum": 0, "maximum": 1},
            "box": {
                "type": "array",
                "items": _NUMBER,
                "minItems": 4,
                "maxItems": 4,
                "description": "x1, y1, x2, y2 in pixels.",
            },
        },
        "additionalProperties": False,
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string", "minLength": 1}},
        "additionalProperties": False,
    },
}
