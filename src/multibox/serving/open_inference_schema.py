"""The part of `/openapi.json` that describes the Open Inference Protocol v2."""

from collections.abc import Sequence

from multibox.serving.bodies import MOST_PARTS
from multibox.serving.hosted import MOST_DETECTIONS
from multibox.serving.inference_bodies import MOST_INPUTS, Port
from multibox.serving.open_inference import INPUTS, OUTPUTS, VERSION
from multibox.serving.schema import Schema, responses

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_SHAPE: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_LIMITS: Schema = {
    "score_threshold": {"type": "number", "minimum": 0, "maximum": 1},
    "nms_threshold": {"type": "number", "minimum": 0, "maximum": 1},
    "max_detections": {"type": "integer", "minimum": 1, "maximum": MOST_DETECTIONS},
}
_PARAMETERS: Schema = {
    "type": ["object", "null"],
    "additionalProperties": {"type": ["boolean", "number", "string", "null"]},
}
_LENGTH = {
    "description": "Bytes of the JSON, where bytes of tensors follow it; 0 if the body is one encoded image.",
    "schema": {"type": "integer", "minimum": 0},
}


def inference_paths(models: Sequence[str]) -> Schema:
    """Return the protocol's paths for an OpenAPI document.

    Args:
        models: Names of the models.
    """
    ready = {"name": _TEXT, "ready": _FLAG}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": list(models)}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "enum": [VERSION]}}
    paths: Schema = {
        "/v2": {"get": _get("What this server is.", {"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)})},
        "/v2/health/live": {"get": _get("Whether the process answers.", {"live": _FLAG})},
        "/v2/health/ready": {"get": _probe("Whether requests are welcome.", {"live": _FLAG, "ready": _FLAG})},
        "/v2/repository/index": {"post": _index()},
    }
    for place, parameters in (("", [name]), ("/versions/{version}", [name, version])):
        start = f"/v2/models/{{name}}{place}"
        paths[start] = {"get": {**_get("Inputs, outputs and classes.", _METADATA, 404), "parameters": parameters}}
        paths[f"{start}/ready"] = {"get": {**_probe("Whether a model answers.", ready, 404), "parameters": parameters}}
        paths[f"{start}/infer"] = {"post": _infer(parameters)}
    return paths


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _object(properties: Schema, *, needed: Sequence[str] | None = None) -> Schema:
    return {"type": "object", "required": list(properties if needed is None else needed), "properties": properties}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _get(what: str, properties: Schema, *errors: int) -> Schema:
    good = {"description": "As the protocol says.", "content": _json(_object(properties))}
    return {"summary": what, "responses": responses(good, *errors)}


def _probe(what: str, properties: Schema, *errors: int) -> Schema:
    """Return an operation that tells by its status, too."""
    operation = _get(what, properties, *errors)
    operation["responses"]["503"] = {"description": "Not now.", "content": _json(_object(properties))}
    return operation


def _index() -> Schema:
    row = _object({"name": _TEXT, "version": _TEXT, "state": {"enum": ["READY", "LOADING"]}, "reason": _TEXT})
    good = {"description": "All models.", "content": _json(_list(row))}
    return {"summary": "The models (an extension of Triton's).", "responses": responses(good)}


def _tensors(ports: dict[str, Port]) -> Schema:
    return _list(
        _object(
            {
                "name": {"type": "string", "enum": list(ports)},
                "datatype": {"type": "string", "enum": sorted({port.datatype for port in ports.values()})},
                "shape": _list({"type": "integer", "minimum": -1}),
                "parameters": {"type": "object"},
            }
        )
    )


_METADATA: Schema = {
    "name": _TEXT,
    "versions": _list(_TEXT),
    "platform": _TEXT,
    "inputs": _tensors(INPUTS),
    "outputs": _tensors(OUTPUTS),
    "parameters": _object({"names": _list(_TEXT), "thresholds": _list({"type": "number"})}),
}


def _infer(parameters: list[Schema]) -> Schema:
    header = {"name": "Inference-Header-Content-Length", "in": "header", "required": False, **_LENGTH}
    told = "; ".join(f"`{name}` {port.datatype} {list(port.shape)}: {port.about}" for name, port in INPUTS.items())
    given = "; ".join(f"`{name}` {port.datatype} {list(port.shape)}: {port.about}" for name, port in OUTPUTS.items())
    binary: Schema = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    good = {
        "description": f"{given}.",
        "headers": {"Inference-Header-Content-Length": _LENGTH},
        "content": {**_json(_RESPONSE), **binary},
    }
    return {
        "summary": "Find objects in images; tensors in, tensors out.",
        "description": f"Inputs: {told}. At most {MOST_PARTS} images.",
        "parameters": [*parameters, header],
        "requestBody": {"required": True, "content": {**_json(_REQUEST), **binary}},
        "responses": responses(good, 404, 408, 413, 415, 422, 503),
    }


_TENSOR: Schema = {
    "name": _TEXT,
    "shape": _SHAPE,
    "datatype": {"type": "string", "enum": ["UINT8", "BYTES", "FP32", "INT64"]},
    "parameters": _PARAMETERS,
}
_INPUT = _object(
    {
        **_TENSOR,
        "name": {"type": "string", "enum": list(INPUTS)},
        "data": {"type": ["array", "number", "null"], "description": "Flat or nested; null where bytes follow."},
    },
    needed=("name", "shape", "datatype"),
)
_OUTPUT = _object({"name": {"type": "string", "enum": list(OUTPUTS)}, "parameters": _PARAMETERS}, needed=("name",))
_REQUEST = _object(
    {
        "id": {"type": ["string", "null"]},
        "parameters": {**_PARAMETERS, "properties": {**_LIMITS, "binary_data_output": {"type": ["boolean", "null"]}}},
        "inputs": {**_list(_INPUT), "minItems": 1, "maxItems": MOST_INPUTS},
        "outputs": {"type": ["array", "null"], "items": _OUTPUT},
    },
    needed=("inputs",),
)
_RESPONSE = _object(
    {
        "id": _TEXT,
        "model_name": _TEXT,
        "model_version": _TEXT,
        "outputs": _list(_object({**_TENSOR, "data": {"type": "array"}}, needed=("name", "shape", "datatype"))),
    },
    needed=("model_name", "model_version", "outputs"),
)
