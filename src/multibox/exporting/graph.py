"""The whole exported graph: resize, network and post-processing in one ONNX model, in one of four dialects."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnxscript import GraphBuilder
from torch import Tensor

from multibox.config import Config
from multibox.exporting.graph_parts import (
    FLOAT,
    INT,
    Found,
    Limits,
    add_postprocess,
    class_scores,
    decode,
    decoding_table,
    resize,
)
from multibox.exporting.network import OPSET, checked_opset, lower, trace
from multibox.inference.detector import Detector
from multibox.inference.engines import FORMAT_VERSION
from multibox.models.anchor_layout import make_anchors

Dialect = Literal["plain", "raw", "ultralytics", "jetson"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
ULTRALYTICS_ROWS = 300
_LIMITS = {"score_threshold": FLOAT, "nms_threshold": FLOAT, "max_detections": INT}
_PATH = re.compile(r"(?<![\w/:])(?:[A-Za-z]:|~|\.{1,2})?(?:[\\/][^\s\\/,;:()\"']+){2,}")
"""A path with folders that is absolute, or begins with ~, . or ..; not the end of a URL."""


class _Parts(NamedTuple):
    """Parts of which the dialects are made."""

    builder: Any
    network: ir.Graph
    table: NDArray[np.float32]
    config: Config
    classes: int


def build_onnx(
    detector: Detector,
    dialect: Dialect = "plain",
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ir.Model:
    """Return the detector as one ONNX model of an opset; None takes the dialect's own.

    Inputs and outputs:

    * plain: `images` uint8 [batch, height, width, 3] RGB of any size, one or more; the scalars `score_threshold` float,
      `nms_threshold` float and `max_detections` int64, whose defaults stand in the metadata under `post` ->
      `boxes` [batch, n, 4] xyxy in pixels of the images, `scores` [batch, n], `labels` int64 [batch, n] (-1 pads),
      `counts` int64 [batch].
    * raw: `images` as above -> `logits` [batch, anchors, k], `offsets` [batch, anchors, 4].
    * ultralytics: `images` alone, with fixed thresholds -> `output0` [batch, 300, 6]: x1, y1, x2, y2, score, label;
      zeros pad.
    * jetson (jetson-inference's detectNet): `input_0` [batch, 3, height, width] of the network's size, RGB scaled to
      -1 .. 1 -> `scores` [batch, anchors, 1 + classes] with background first, `boxes` [batch, anchors, 4] xyxy as
      fractions of the image.

    All but jetson have the values `resized`, `logits` and `offsets` inside the graph.

    Raises:
        ConfigError: an opset outside the range that is written.
    """
    opset = checked_opset(opset, dialect)
    size = detector.config.model.input_size
    network = trace(detector.model, size)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="multibox")
    parts = _Parts(GraphBuilder(graph), network, _table(detector), detector.config, len(detector.names))
    write = {"plain": _plain, "raw": _raw, "ultralytics": _ultralytics, "jetson": _jetson}
    for name, value in write[dialect](parts).items():
        _output(parts, value, name, dialect)
    for node in graph:
        node.metadata_props.clear()
    model = ir.Model(graph, ir_version=10, producer_name="multibox", metadata_props=dict(metadata or {}))
    lower(model, opset)
    return model


def _table(detector: Detector) -> NDArray[np.float32]:
    model = detector.config.model
    with torch.inference_mode():
        blank = torch.zeros(1, 3, *model.input_size, device=detector.device)
        shapes = detector.model(blank).feature_shapes
    anchors = make_anchors(detector.config.anchors, shapes, model.input_size)
    return decoding_table(anchors.numpy(), model.variances, model.coder)


def _plain(parts: _Parts) -> dict[str, ir.Value]:
    # Inputs, not replaceable initialisers: onnxruntime warns of each at every load, others silently read constants
    return _found(parts, Limits(*(parts.builder.input(name, kind, []) for name, kind in _LIMITS.items())))._asdict()


def _raw(parts: _Parts) -> dict[str, ir.Value]:
    _, logits, offsets = _outputs(parts)
    return {"logits": logits, "offsets": offsets}


def _ultralytics(parts: _Parts) -> dict[str, ir.Value]:
    op = parts.builder.op
    post = parts.config.post
    limits = Limits(
        op.Constant(value=ir.tensor(np.float32(post.score_threshold))),
        op.Constant(value=ir.tensor(np.float32(post.nms_threshold))),
        op.Constant(value=ir.tensor(np.int64(ULTRALYTICS_ROWS))),
    )
    for name, value in limits._asdict().items():
        value.name = name
    found = _found(parts, limits)
    labels = op.Unsqueeze(op.Cast(op.Max(found.labels, 0), to=FLOAT), [2])
    rows = op.Concat(found.boxes, op.Unsqueeze(found.scores, [2]), labels, axis=2)
    rows = op.Slice(rows, [0], [ULTRALYTICS_ROWS], [1])
    missing = op.Sub([ULTRALYTICS_ROWS], op.Shape(rows, start=1, end=2))
    padded = op.Pad(rows, op.Concat([0, 0, 0, 0], missing, [0], axis=0), 0.0)
    return {"output0": op.Reshape(padded, [-1, ULTRALYTICS_ROWS, 6])}


def _jetson(parts: _Parts) -> dict[str, ir.Value]:
    op, model = parts.builder.op, parts.config.model
    images = parts.builder.input("input_0", FLOAT, ["batch", 3, *model.input_size])
    logits, offsets = _splice(parts, op.Mul(op.Add(images, 1.0), 127.5))
    scores = class_scores(op, logits, model)
    if model.score == "sigmoid":
        background = op.Sub(1.0, op.ReduceMax(scores, [2], keepdims=1))
        scores = op.Concat(background, scores, axis=2)
    else:
        scores = op.Softmax(logits, axis=-1)
    table = op.Constant(value=ir.tensor(parts.table))
    return {"scores": scores, "boxes": op.Clip(decode(op, offsets, table, model.coder), 0.0, 1.0)}


def _found(parts: _Parts, limits: Limits) -> Found:
    op = parts.builder.op
    images, logits, offsets = _outputs(parts)
    sides = op.Cast(op.Gather(op.Shape(images), [2, 1, 2, 1]), to=FLOAT)
    return add_postprocess(op, (logits, offsets), sides, limits, parts.table, parts.config, parts.classes)


def _outputs(parts: _Parts) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Add resize and network; return images, logits and offsets."""
    images = parts.builder.input("images", ir.DataType.UINT8, ["batch", "height", "width", 3])
    resized = resize(parts.builder.op, images, parts.config.model.input_size)
    resized.name = "resized"
    return images, *_splice(parts, resized)


def _splice(parts: _Parts, resized: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Move the network's nodes into the graph, behind `resized`; return logits and offsets."""
    network, graph = parts.network, parts.builder.graph
    ir.convenience.replace_all_uses_with(network.inputs[0], resized)
    logits, offsets = network.outputs
    nodes = list(network)
    for value in list(network.initializers.values()):
        network.initializers.pop(str(value.name))
        value.name = f"network.{value.name}"
        graph.register_initializer(value)
    network.outputs.clear()
    network.remove(nodes)
    graph.extend(nodes)
    return logits, offsets


def _output(parts: _Parts, value: ir.Value, name: str, dialect: Dialect) -> None:
    """Name a value and make it an output; its type and shape follow from its name."""
    columns = parts.classes + (dialect == "jetson" or parts.config.model.score == "softmax")
    shapes: dict[str, tuple[str | int, ...]] = {
        "boxes": ("batch", "detections", 4),
        "scores": ("batch", "detections"),
        "labels": ("batch", "detections"),
        "counts": ("batch",),
        "output0": ("batch", ULTRALYTICS_ROWS, 6),
        "logits": ("batch", len(parts.table), columns),
        "offsets": ("batch", len(parts.table), 4),
    }
    if dialect == "jetson":
        shapes |= {"boxes": shapes["offsets"], "scores": shapes["logits"]}
    value.dtype = INT if name in ("labels", "counts") else FLOAT
    value.shape = ir.Shape(shapes[name])
    parts.builder.add_output(value, name)


def describe(
    detector: Detector, dialect: Dialect, *, license: str = "", source: str = "", precision: str = "fp32"
) -> dict[str, Any]:
    """Return the metadata, except the report of the verification."""
    config = detector.config
    return {
        "format_version": FORMAT_VERSION,
        "dialect": dialect,
        "precision": precision,
        "names": list(detector.names),
        "preset": config.preset,
        "input_size": list(config.model.input_size),
        "background": list(config.model.background),
        "score": config.model.score,
        "post": config.to_dict()["post"],
        "license": license,
        "source": without_folders(source),
        "weights_sha256": weights_hash(detector.model.state_dict()),
        **({"merge": list(detector.merge)} if detector.merge else {}),
        **({"statistics": detector.statistics} if detector.statistics else {}),
    }


def without_folders(text: str) -> str:
    """Replace every path with folders by its last name: exported files go to others, who need no home folders."""
    return _PATH.sub(lambda path: re.split(r"[\\/]", path[0])[-1], text)


def as_text(values: Mapping[str, Any]) -> str:
    """Return the metadata as text for the file."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes and values of all weights, sorted by name, whatever their memory layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
