"""The Open Inference Protocol v2 over HTTP: health, metadata and inference, as tritonclient and KServe ask for them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import multibox
from multibox.errors import did_you_mean
from multibox.limits import available_cores
from multibox.serving.answers import Refused, json_answer
from multibox.serving.batching import Looked
from multibox.serving.bodies import Upload
from multibox.serving.hosted import MOST_DETECTIONS, Hosted, Models
from multibox.serving.inference_bodies import (
    Port,
    Tensors,
    inflate,
    length_of_json,
    meant_name,
    read_request,
    wants_bytes,
    write_answer,
)
from multibox.structures import Detections
from multibox.thresholds import class_thresholds

Look: TypeAlias = Callable[[Request, Hosted, Sequence[Upload], Mapping[str, Any]], Awaitable[list[Looked]]]
"""Looks at the images of a request with options of `Hosted.look`."""

VERSION = "1"
"""The one version of each model: a model that is read again keeps it."""
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters")
LIMITS = {"score_threshold": "threshold", "nms_threshold": "nms", "max_detections": "most"}
"""Inputs beside the images, or parameters of a request, and what `Hosted.look` calls them."""
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
SMALL = 65_536
"""Bytes of JSON that is read at once; more of it takes a while."""
UNPACKED = 2
"""Requests per process at a time whose bodies are compressed, or long JSON; one per core where there are more cores."""
_FOREIGN = "sequence_", "triton_", "priority", "timeout", "binary_data_output"
_MEMORY = "shared memory", "send tensors as bytes or as JSON"
_STATISTICS = "statistics", "GET /metrics has them"
_CONFIG = "Triton's model configuration", "GET /v2/models/NAME describes a model"
_TRACE = "traces", "`multibox serve --help` tells what it logs"
_ABSENT = {
    "/v2/systemsharedmemory/{rest:path}": _MEMORY,
    "/v2/cudasharedmemory/{rest:path}": _MEMORY,
    "/v2/trace/{rest:path}": _TRACE,
    "/v2/models/{name}/trace/{rest:path}": _TRACE,
    "/v2/logging": _TRACE,
    "/v2/models/stats": _STATISTICS,
    "/v2/models/{name}/stats": _STATISTICS,
    "/v2/models/{name}/versions/{version}/stats": _STATISTICS,
    "/v2/models/{name}/config": _CONFIG,
    "/v2/models/{name}/versions/{version}/config": _CONFIG,
}
"""Addresses of Triton's extensions that are not answered, what they are for, and what to do instead."""
_ALL = ["GET", "POST", "DELETE", "PUT"]


def inference_routes(
    models: Models, look: Look, ready: Callable[[], bool] = lambda: True, most_bytes: int = 1 << 25
) -> list[Route]:
    """Return the protocol's addresses.

    Args:
        models: By name.
        look: Looks at the images of a request.
        ready: Whether new requests are welcome; False while the server ends.
        most_bytes: Length of a body without compression.
    """
    pages = _Protocol(models, look, ready, most_bytes)
    model = "/v2/models/{name}"
    of_model = [("", pages.metadata, "GET"), ("/ready", pages.model_ready, "GET"), ("/infer", pages.infer, "POST")]
    return [
        *(Route(address, pages.server, methods=["GET"]) for address in ("/v2", "/v2/")),
        Route("/v2/health/live", pages.live, methods=["GET"]),
        Route("/v2/health/ready", pages.ready, methods=["GET"]),
        Route("/v2/repository/index", pages.index, methods=["POST"]),
        *(Route("/v2/repository/models/{name}/" + verb, pages.fixed, methods=["POST"]) for verb in ("load", "unload")),
        *(Route(address, _absent(*what), methods=_ALL) for address, what in _ABSENT.items()),
        *(
            Route(f"{model}{version}{end}", page, methods=[method])
            for version in ("", "/versions/{version}")
            for end, page, method in of_model
        ),
    ]


def _absent(what: str, instead: str) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        raise Refused(501, f"multibox serve does not answer requests for {what}; {instead}")

    return page


class _Protocol:
    """What is answered, by address."""

    def __init__(self, models: Models, look: Look, ready: Callable[[], bool], most_bytes: int) -> None:
        self.models, self.look, self.is_ready, self.most_bytes = models, look, ready, most_bytes
        self.unpacking = asyncio.Semaphore(max(UNPACKED, available_cores()))

    async def server(self, request: Request) -> Response:
        """`GET /v2`: what this server is."""
        return json_answer({"name": "multibox", "version": multibox.__version__, "extensions": EXTENSIONS})

    async def live(self, request: Request) -> Response:
        """`GET /v2/health/live`: whether the process answers."""
        return json_answer({"live": True})

    async def ready(self, request: Request) -> Response:
        """`GET /v2/health/ready`: whether it takes requests; 503 before the models are warm, and while it ends."""
        ready = self.is_ready() and all(model.ready for model in self.models.values())
        return json_answer({"live": True, "ready": ready}, 200 if ready else 503)

    async def index(self, request: Request) -> Response:
        """`POST /v2/repository/index`: the models."""
        states = [
            {"name": name, "version": VERSION, "state": "READY" if model.ready else "LOADING", "reason": ""}
            for name, model in self.models.items()
        ]
        return json_answer(states)

    async def fixed(self, request: Request) -> Response:
        """`POST /v2/repository/models/NAME/load|unload`: refused."""
        raise Refused(403, "clients cannot load or unload models; whoever runs the server names them and sends SIGHUP")

    async def metadata(self, request: Request) -> Response:
        """`GET /v2/models/NAME`: its inputs, outputs and classes."""
        return json_answer(metadata_of(self._model(request)))

    async def model_ready(self, request: Request) -> Response:
        """`GET /v2/models/NAME/ready`."""
        model = self._model(request)
        ready = self.is_ready() and model.ready
        return json_answer({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        """`POST /v2/models/NAME/infer`: detections as tensors."""
        model = self._model(request)
        body = await request.body()
        length = request.headers.get("inference-header-content-length")
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding == "identity" and length_of_json(length, len(body)) <= SMALL:
            return await self._answer(request, model, self._read(body, encoding, length))
        # Unpacked bodies, and pixels as text, take many times the memory that the limits count
        async with self.unpacking:
            tensors = await asyncio.to_thread(self._read, body, encoding, length)
            return await self._answer(request, model, tensors)

    def _read(self, body: bytes, encoding: str, header_length: str | None) -> Tensors:
        body = inflate(body, encoding, self.most_bytes)
        if header_length is not None and header_length.strip() == "0":
            # Triton's raw request: the body is the only tensor
            return Tensors({"image": [body]}, {}, {}, None)
        return read_request(body, header_length, INPUTS)

    def _model(self, request: Request) -> Hosted:
        name, version = request.path_params["name"], request.path_params.get("version", VERSION)
        if name not in self.models:
            hint = did_you_mean(name[:100], self.models) or f"; the models are: {', '.join(self.models)}"
            raise Refused(404, f"there is no model {name[:100]!r}{hint}")
        if version != VERSION:
            raise Refused(404, f"model {name} has no version {version[:100]!r}; its only one is {VERSION}")
        return self.models[name]

    async def _answer(self, request: Request, model: Hosted, tensors: Tensors) -> Response:
        wanted = _wanted(tensors)
        found = await self.look(request, model, _images(tensors.inputs), _limits(tensors))
        arrays = as_tensors([each.found for each in found], [name for name, _ in wanted])
        head: dict[str, Any] = {} if tensors.id is None else {"id": tensors.id}
        head |= {"model_name": model.name, "model_version": VERSION}
        outputs = [(name, OUTPUTS[name].datatype, arrays[name], binary) for name, binary in wanted]
        body, headers = write_answer(head, outputs)
        return Response(body, headers=headers)


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


def _wanted(tensors: Tensors) -> list[tuple[str, bool]]:
    """Return the outputs to give, and whether each goes as bytes."""
    default = wants_bytes(tensors)
    if unknown := [name for name in tensors.outputs if name not in OUTPUTS]:
        hint = did_you_mean(unknown[0], OUTPUTS) or f"; the outputs are: {', '.join(OUTPUTS)}"
        raise Refused(400, f"output {unknown[0]!r} is unknown{hint}")
    if not tensors.outputs:
        return [(name, default) for name in OUTPUTS if name not in _ON_REQUEST]
    return [(name, default if binary is None else binary) for name, binary in tensors.outputs.items()]


def _limits(tensors: Tensors) -> dict[str, Any]:
    """Return the options of `Hosted.look` that a request sets, by its inputs or its parameters."""
    limits: dict[str, Any] = {name: array.item() for name, array in tensors.inputs.items() if name in LIMITS}
    for name, value in tensors.parameters.items():
        if name in limits:
            raise Refused(400, f"{name} is given as an input and as a parameter; give one of them")
        if name in LIMITS:
            limits[name] = value
        elif not name.startswith(_FOREIGN) and (hint := meant_name(name[:100], LIMITS)):
            raise Refused(400, f"parameter {name[:100]!r} is unknown{hint}")
    for name, value in limits.items():
        whole = name == "max_detections"
        most = MOST_DETECTIONS if whole else 1
        kinds = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not int(whole) <= value <= most:
            expected = f"a whole number from 1 to {most}" if whole else "a number from 0 to 1"
            raise Refused(400, f"{name} is {str(value)[:100]}, expected {expected}")
    return {LIMITS[name]: value for name, value in limits.items()}


def _images(inputs: Mapping[str, Any]) -> list[Upload]:
    given = [name for name in ("images", "image") if name in inputs]
    if len(given) != 1:
        raise Refused(
            400,
            f"the request has {' and '.join(given) or 'no images'}; expected either images (UINT8 RGB pixels) or image "
            "(BYTES, encoded files)",
        )
    images = inputs[given[0]]
    several = len(images) > 1
    return [
        Upload(f"image {number} of {len(images)}" if several else "the image", image)
        for number, image in enumerate(images, 1)
    ]


def as_tensors(found: Sequence[Detections], wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return detections of images as the tensors of an exported graph, padded to the longest."""
    counts = np.array([len(each) for each in found], np.int64)
    size = (len(found), int(counts.max(initial=0)))
    arrays: dict[str, NDArray[Any]] = {
        "boxes": np.zeros((*size, 4), np.float32),
        "scores": np.zeros(size, np.float32),
        "labels": np.full(size, -1, np.int64),
        "names": np.full(size, "", object),
    }
    for row, (each, count) in enumerate(zip(found, counts.tolist(), strict=True)):
        arrays["boxes"][row, :count], arrays["scores"][row, :count] = each.boxes, each.scores
        arrays["labels"][row, :count] = each.labels
        if "names" in wanted:
            arrays["names"][row, :count] = [each.names[label] for label in each.labels.tolist()]
    return {"counts": counts, **arrays}
