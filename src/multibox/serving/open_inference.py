"""The Open Inference Protocol v2 over HTTP: health, metadata and inference, as tritonclient and KServe ask for them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import multibox
from multibox.errors import ConfigError, ImageError, MultiboxError, did_you_mean
from multibox.serving.answers import problem
from multibox.serving.batching import Busy, Looked
from multibox.serving.hosted import Hosted, Models
from multibox.serving.inference_bodies import (
    InferenceError,
    Port,
    Tensors,
    inflate,
    read_request,
    wants_bytes,
    write_answer,
)
from multibox.thresholds import class_thresholds

VERSION = "1"
"""The one version of each model: a model that is read again keeps it."""
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters")
LIMITS = ("score_threshold", "nms_threshold", "max_detections")
"""Inputs beside the images, and parameters of a request."""
INPUTS = {
    "images": Port("UINT8", (-1, -1, -1, 3), "RGB pixels; either this or `image`"),
    "image": Port("BYTES", (-1,), "encoded files, as base64 in JSON; either this or `images`"),
    "score_threshold": Port("FP32", (), "optional: lowest score to report, 0 to 1"),
    "nms_threshold": Port("FP32", (), "optional: overlap above which a box is suppressed, 0 to 1"),
    "max_detections": Port("INT64", (), "optional: most detections per image"),
}
OUTPUTS = {
    "boxes": Port("FP32", (-1, -1, 4), "xyxy in pixels of the upright image; zeros pad"),
    "scores": Port("FP32", (-1, -1), "best first; zeros pad"),
    "labels": Port("INT64", (-1, -1), "class indices without background; -1 pads"),
    "counts": Port("INT64", (-1,), "detections per image"),
    "names": Port("BYTES", (-1, -1), "class names; only where requested; empty ones pad"),
}
_ON_REQUEST = ("names",)
_FOREIGN = "sequence_", "triton_", "priority", "timeout", "binary_data_output"
_ABSENT = {
    "/v2/systemsharedmemory": "shared memory",
    "/v2/cudasharedmemory": "shared memory",
    "/v2/trace": "tracing",
    "/v2/logging": "settings of the log",
    "/v2/models/stats": "statistics",
    "/v2/models/{name}/stats": "statistics",
    "/v2/models/{name}/versions/{version}/stats": "statistics",
    "/v2/models/{name}/config": "Triton's model configuration",
    "/v2/models/{name}/versions/{version}/config": "Triton's model configuration",
    "/v2/models/{name}/trace": "tracing",
}
_INSTEAD = {"statistics": "GET /metrics has them", "Triton's model configuration": "GET /v2/models/NAME describes it"}
_ALL = ["GET", "POST", "DELETE", "PUT"]


def inference_routes(
    models: Models, ready: Callable[[], bool] = lambda: True, most_bytes: int = 1 << 26
) -> list[Route]:
    """Return the protocol's addresses.

    Args:
        models: By name.
        ready: Whether new requests are welcome; False while the server ends.
        most_bytes: Length of a body, uncompressed.
    """
    pages = _Protocol(models, ready, most_bytes)
    model = "/v2/models/{name}"
    of_model = [("", pages.metadata, "GET"), ("/ready", pages.model_ready, "GET"), ("/infer", pages.infer, "POST")]
    return [
        Route("/v2", pages.server, methods=["GET"]),
        Route("/v2/health/live", pages.live, methods=["GET"]),
        Route("/v2/health/ready", pages.ready, methods=["GET"]),
        Route("/v2/repository/index", pages.index, methods=["POST"]),
        Route("/v2/repository/models/{name}/{verb:path}", pages.fixed, methods=["POST"]),
        *(Route(_whole(address), _absent(what), methods=_ALL) for address, what in _ABSENT.items()),
        *(
            Route(f"{model}{version}{end}", page, methods=[method])
            for version in ("", "/versions/{version}")
            for end, page, method in of_model
        ),
    ]


def _whole(address: str) -> str:
    """Return an address that is not answered with what may follow it."""
    return f"{address}/{{rest:path}}" if address.endswith(("memory", "trace")) else address


def _absent(what: str) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        instead = _INSTEAD.get(what, "send tensors as bytes or as JSON" if "memory" in what else "see docs/serve.md")
        return problem(501, f"multibox serve does not answer requests for {what}; {instead}")

    return page


class _Protocol:
    """What is answered, by address."""

    def __init__(self, models: Models, ready: Callable[[], bool], most_bytes: int) -> None:
        self.models, self.is_ready, self.most_bytes = models, ready, most_bytes

    async def server(self, request: Request) -> Response:
        """`GET /v2`: what this server is."""
        return JSONResponse({"name": "multibox", "version": multibox.__version__, "extensions": list(EXTENSIONS)})

    async def live(self, request: Request) -> Response:
        """`GET /v2/health/live`: whether the process answers."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """`GET /v2/health/ready`: whether it takes requests; 503 while it ends."""
        ready = self.is_ready()
        return JSONResponse({"live": True, "ready": ready}, 200 if ready else 503)

    async def index(self, request: Request) -> Response:
        """`POST /v2/repository/index`: the models."""
        states = [{"name": name, "version": VERSION, "state": "READY", "reason": ""} for name in self.models]
        return JSONResponse(states)

    async def fixed(self, request: Request) -> Response:
        """`POST /v2/repository/models/NAME/load|unload`: refused."""
        return problem(403, "clients cannot load or unload models; whoever runs the server names them and sends SIGHUP")

    async def metadata(self, request: Request) -> Response:
        """`GET /v2/models/NAME`: its inputs, outputs and classes."""
        try:
            model = self._model(request)
        except InferenceError as error:
            return problem(error.status, str(error))
        return JSONResponse(metadata_of(model))

    async def model_ready(self, request: Request) -> Response:
        """`GET /v2/models/NAME/ready`."""
        try:
            model = self._model(request)
        except InferenceError as error:
            return problem(error.status, str(error))
        ready = self.is_ready()
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        """`POST /v2/models/NAME/infer`: detections as tensors."""
        try:
            model = self._model(request)
            body = await request.body()
            length = request.headers.get("inference-header-content-length")
            encoding = request.headers.get("content-encoding", "")
            tensors = await asyncio.to_thread(self._read, body, encoding, length)
            return await _answer(model, tensors)
        except InferenceError as error:
            return problem(error.status, str(error))
        except ConfigError as error:
            return problem(400, str(error))
        except ImageError as error:
            return problem(422, str(error))
        except Busy as error:
            return problem(503, str(error), {"retry-after": str(error.seconds)})

    def _read(self, body: bytes, encoding: str, header_length: str | None) -> Tensors:
        body = inflate(body, encoding, self.most_bytes)
        if header_length is not None and header_length.strip() == "0":
            # Triton's raw request: the body is the only tensor
            return Tensors({"image": [body]}, {}, {}, None)
        return read_request(body, header_length, INPUTS)

    def _model(self, request: Request) -> Hosted:
        name, version = request.path_params["name"], request.path_params.get("version", VERSION)
        if name not in self.models:
            hint = did_you_mean(name, self.models) or f"; there are {', '.join(self.models)}"
            raise InferenceError(f"model {name!r} is unknown{hint}", 404)
        if version != VERSION:
            raise InferenceError(f"model {name} has no version {version!r}; its only one is {VERSION}", 404)
        return self.models[name]


def metadata_of(model: Hosted) -> dict[str, Any]:
    """Return the description of a model."""
    detector = model.detector
    engine = getattr(detector, "engine", None)
    thresholds = class_thresholds(detector.thresholds, detector.names)
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "pytorch_safetensors" if engine is None else f"{engine.name.lower()}_{engine.opened[0].suffix[1:]}",
        "inputs": [_described(name, port) for name, port in INPUTS.items()],
        "outputs": [_described(name, port) for name, port in OUTPUTS.items()],
        "parameters": {"names": list(detector.names), "thresholds": [round(each, 5) for each in thresholds]},
    }


def _described(name: str, port: Port) -> dict[str, Any]:
    shape = list(port.shape)
    return {"name": name, "datatype": port.datatype, "shape": shape, "parameters": {"description": port.about}}


async def _answer(model: Hosted, tensors: Tensors) -> Response:
    wanted = _wanted(tensors)
    limits = _limits(tensors)
    images = _images(tensors.inputs)
    if "nms_threshold" in limits:
        raise InferenceError("nms_threshold is not answered yet")
    looked = await _look_at_all(model, images, limits.get("score_threshold"))
    arrays = as_tensors(looked, [name for name, _ in wanted])
    head: dict[str, Any] = {} if tensors.id is None else {"id": tensors.id}
    head |= {"model_name": model.name, "model_version": VERSION}
    outputs = [(name, OUTPUTS[name].datatype, arrays[name], binary) for name, binary in wanted]
    body, headers = await asyncio.to_thread(write_answer, head, outputs)
    return Response(body, headers=headers)


def _wanted(tensors: Tensors) -> list[tuple[str, bool]]:
    """Return the outputs to give, and whether each goes as bytes."""
    default = wants_bytes(tensors)
    if unknown := [name for name in tensors.outputs if name not in OUTPUTS]:
        hint = did_you_mean(unknown[0], OUTPUTS) or f"; there are {', '.join(OUTPUTS)}"
        raise InferenceError(f"output {unknown[0]!r} is unknown{hint}")
    if not tensors.outputs:
        return [(name, default) for name in OUTPUTS if name not in _ON_REQUEST]
    return [(name, default if binary is None else binary) for name, binary in tensors.outputs.items()]


def _limits(tensors: Tensors) -> dict[str, Any]:
    """Return the limits that a request sets, from its inputs or its parameters."""
    limits: dict[str, Any] = {name: array.item() for name, array in tensors.inputs.items() if name in LIMITS}
    for name, value in tensors.parameters.items():
        if name in LIMITS:
            if limits.get(name, value) != value:
                raise InferenceError(f"{name} is given as an input and as a parameter, with different values")
            limits[name] = value
        elif not name.startswith(_FOREIGN) and (hint := did_you_mean(name, LIMITS)):
            raise InferenceError(f"parameter {name!r} is unknown{hint}")
    return limits


def _images(inputs: Mapping[str, Any]) -> Sequence[Any]:
    given = [name for name in ("images", "image") if name in inputs]
    if len(given) != 1:
        raise InferenceError(
            f"the request has {' and '.join(given) or 'no images'}; expected either images (UINT8 RGB pixels) or image "
            "(BYTES, encoded files)"
        )
    return inputs[given[0]]


async def _look_at_all(model: Hosted, images: Sequence[Any], threshold: float | None) -> list[Looked]:
    """Return what is found in each image, or fail as a whole."""
    tasks = [asyncio.ensure_future(model.look(image, threshold)) for image in images]
    try:
        return await asyncio.gather(*tasks)
    except MultiboxError as error:
        failed = next((number for number, task in enumerate(tasks, 1) if task.done() and task.exception() is error), 1)
        if len(tasks) > 1 and isinstance(error, ImageError):
            raise ImageError(f"image {failed} of {len(tasks)}: {error}") from None
        raise
    finally:
        for task in tasks:
            task.cancel()


def as_tensors(looked: Sequence[Looked], wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return detections as the tensors of an exported graph, padded to the longest."""
    counts = np.array([len(each.found) for each in looked], np.int64)
    size = (len(looked), int(counts.max(initial=0)))
    arrays: dict[str, NDArray[Any]] = {
        "boxes": np.zeros((*size, 4), np.float32),
        "scores": np.zeros(size, np.float32),
        "labels": np.full(size, -1, np.int64),
        "names": np.full(size, "", object),
    }
    for row, (each, count) in enumerate(zip(looked, counts.tolist(), strict=True)):
        found = each.found
        arrays["boxes"][row, :count], arrays["scores"][row, :count] = found.boxes, found.scores
        arrays["labels"][row, :count] = found.labels
        if "names" in wanted:
            arrays["names"][row, :count] = [found.names[label] for label in found.labels.tolist()]
    return {"counts": counts, **arrays}
