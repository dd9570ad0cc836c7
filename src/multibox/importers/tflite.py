"""SSD over MobileNetV1 in a TF Lite file of TensorFlow's object detection API, with 8-bit or float weights.

The file is a flatbuffer; the package `tflite` reads its schema. Batch norms come folded into the convolutions, so ours
are set to do nothing but add the bias.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multibox.errors import MissingExtraError, WeightsError
from multibox.importers.common import coco_names, finish, name_classes
from multibox.models.anchor_layout import make_anchors
from multibox.models.backbones.mobilenetv1 import BLOCKS
from multibox.models.checkpoint import Checkpoint
from multibox.presets import resolve
from multibox.structures import Size

CONV, DEPTHWISE = 3, 4
"""Numbers of the two operators in TF Lite's schema."""
DTYPES = {0: "<f4", 1: "<f2", 2: "<i4", 3: "u1", 4: "<i8", 9: "i1"}
"""NumPy's names of TF Lite's tensor types."""
POSTPROCESS = "TFLite_Detection_PostProcess"
WHAT = "a TF Lite SSD over MobileNetV1"
NORM_EPS = 1e-3
ANCHORS = (3, 6, 6, 6, 6, 6)
"""Anchors of a cell of each map."""
ANCHOR_TOLERANCE = 0.01
"""As fractions of the image: the file keeps its anchors in 8 bits."""
NMS_THRESHOLD = 0.6

# What readers of flatbuffers raise on broken files, found by feeding them truncated and flipped bytes
_BROKEN = (struct.error, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Array = NDArray[Any]


@dataclass
class Layer:
    """A convolution as the file has it."""

    weights: Array
    """[out, h, w, in], a depthwise one's [1, h, w, channels]."""
    bias: Array
    depthwise: bool


@dataclass
class Graph:
    """What is needed from a file."""

    layers: dict[str, Layer]
    """By the scope that their names share."""
    input_size: Size
    input_scale: float
    input_zero: float
    """Of an 8-bit input: (value - zero) * scale goes into the network."""
    anchors_yxhw: Array | None
    nms_threshold: float
    """Of the post-processing operator, or TensorFlow's own."""


def read(file: Path, class_names: list[str]) -> Checkpoint:
    """Read the weights as float32, compare the file's anchors with ours and keep its post-processing.

    Raises:
        MissingExtraError: the package tflite is not installed.
        WeightsError: the file is no TF Lite file, or holds another network.
    """
    graph = read_graph(file)
    stem = next((layer for scope, layer in graph.layers.items() if scope.endswith("MobilenetV1/Conv2d_0")), None)
    heads = [f"BoxPredictor_{level}/ClassPredictor" for level in range(len(ANCHORS))]
    if stem is None or any(head not in graph.layers for head in heads):
        found = ", ".join(list(graph.layers)[:3]) or "no convolutions"
        raise WeightsError(
            f"{file} is not {WHAT}: expected layers such as Conv2d_0 and BoxPredictor_0 to _5, found {found}"
        )
    state = arrange(graph.layers, file)
    # TensorFlow's heads have a background column that a sigmoid does not need
    count = len(state["heads.classification.1.bias"]) // ANCHORS[1]
    classes = name_classes(file, count, class_names, (coco_names(gaps=True),))
    changes = {
        "model.width": stem.weights.shape[0] / 32,
        "model.input_size": graph.input_size,
        "model.mean": (float(graph.input_zero),) * 3,
        "model.std": (1 / graph.input_scale,) * 3,
        "post.nms_threshold": graph.nms_threshold,
    }
    checkpoint = finish(
        file, resolve("ssd300-mobilenetv1", changes=changes), classes, state, f"TF Lite file {file.name}"
    )
    _check_anchors(file, checkpoint, graph)
    return checkpoint


def arrange(layers: Mapping[str, Layer], file: Path) -> dict[str, Tensor]:
    """Return the layers' values, of any type, under our names and in our order of axes, coordinates and classes.

    Raises:
        WeightsError: a layer that the network lacks, or outputs that the anchors cannot share.
    """
    state: dict[str, Tensor] = {}
    for scope, layer in layers.items():
        weights, bias = torch.from_numpy(layer.weights), torch.from_numpy(layer.bias)
        # To [out, in, h, w]; a depthwise kernel's channels are its outputs
        weights = weights.permute(3, 0, 1, 2) if layer.depthwise else weights.permute(0, 3, 1, 2)
        if match := re.fullmatch(r"BoxPredictor_(\d)/(Box|Class)\w*Predictor", scope):
            anchors, boxes = ANCHORS[int(match[1])], match[2] == "Box"
            if boxes and len(bias) != 4 * anchors:
                raise WeightsError(f"{file}: {scope} has {len(bias)} outputs, expected 4 for each of {anchors} anchors")
            if len(bias) % anchors:
                raise WeightsError(f"{file}: {scope} has {len(bias)} outputs, which {anchors} anchors cannot share")
            ours = f"heads.{'localization' if boxes else 'classification'}.{match[1]}"
            for name, values in (("weight", weights), ("bias", bias)):
                each = values.view(anchors, -1, *values.shape[1:])
                # (y, x, h, w) of every anchor becomes (x, y, w, h); class 0 is the background
                each = each[:, [1, 0, 3, 2]] if boxes else each[:, 1:]
                state[f"{ours}.{name}"] = each.reshape(-1, *values.shape[1:])
        else:
            conv, norm = _ours(scope, file)
            state[f"{conv}.weight"] = weights
            state |= {f"{norm}.{name}": value for name, value in folded_norm(bias).items()}
    return state


def folded_norm(bias: Tensor, eps: float = NORM_EPS) -> dict[str, Tensor]:
    """Return a batch norm that only adds `bias`: its statistics are those of a normalised input."""
    one, zero = torch.ones_like(bias), torch.zeros_like(bias)
    return {"weight": one, "bias": bias, "running_mean": zero, "running_var": one - eps}


def _ours(scope: str, file: Path) -> tuple[str, str]:
    """Return the names of our convolution and of the batch norm after it."""
    if match := re.search(r"Conv2d_13_pointwise_([12])_Conv2d_([2-5])_\w+$", scope):
        layer, first = f"backbone.extras.{int(match[2]) - 2}", 0 if match[1] == "1" else 3
        return f"{layer}.{first}", f"{layer}.{first + 1}"
    if match := re.search(r"Conv2d_(\d+)(?:_(depthwise|pointwise))?$", scope):
        index = int(match[1])
        if index <= len(BLOCKS) and (index == 0) == (match[2] is None):
            layer, first = f"backbone.layers.{index}", 3 if match[2] == "pointwise" else 0
            return f"{layer}.{first}", f"{layer}.{first + 1}"
    raise WeightsError(f"{file} is not {WHAT}: it has the layer {scope}, which MobileNetV1's SSD lacks")


def _check_anchors(file: Path, checkpoint: Checkpoint, graph: Graph) -> None:
    if graph.anchors_yxhw is None:
        return
    theirs, shapes = graph.anchors_yxhw, list[tuple[int, int]]()
    rows, columns = (-(-side // 16) for side in graph.input_size)
    for _ in ANCHORS:
        shapes.append((rows, columns))
        rows, columns = -(-rows // 2), -(-columns // 2)
    count = sum(rows * columns * anchors for (rows, columns), anchors in zip(shapes, ANCHORS, strict=True))
    # Anchors are only made where their number fits: a broken file's input may be enormous
    if theirs.shape == (count, 4):
        ours = make_anchors(checkpoint.config.anchors, tuple(shapes), graph.input_size).numpy()
        center, half = theirs[:, [1, 0]], theirs[:, [3, 2]] / 2
        corners = np.concatenate([center - half, center + half], 1)
        if np.abs(corners - ours).max() < ANCHOR_TOLERANCE:
            return
    raise WeightsError(
        f"{file} has {len(theirs)} anchors that are not those of TensorFlow's default generator ({count} here); "
        "other ones cannot be brought over"
    )


def read_graph(file: Path) -> Graph:
    """Read convolutions, input, anchors and post-processing from a TF Lite file.

    Raises:
        MissingExtraError: the package tflite is not installed.
        WeightsError: the file is no TF Lite file, or broken.
    """
    try:
        import tflite
    except ModuleNotFoundError:
        raise MissingExtraError("Reading TF Lite files", "tflite") from None
    data = file.read_bytes()
    if data[4:8] != b"TFL3":
        raise WeightsError(f"{file} is no TF Lite file: bytes 4 to 8 are {data[4:8]!r}, expected b'TFL3'")
    try:
        return _parse(tflite.Model.GetRootAs(data, 0), file)
    except _BROKEN as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{file} is a broken TF Lite file ({reason}); was it copied whole?") from None


def _parse(model: Any, file: Path) -> Graph:
    from flatbuffers import flexbuffers

    graph: Any = model.Subgraphs(0)
    layers: dict[str, Layer] = {}
    anchors, nms_threshold = None, NMS_THRESHOLD
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        inputs = operator.InputsAsNumpy()
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if kind in (CONV, DEPTHWISE):
            scope = scope_of(graph.Tensors(inputs[1]))
            weights, bias = (_values(model, graph.Tensors(place), file) for place in inputs[1:3])
            layers[scope] = Layer(weights, bias, kind == DEPTHWISE)
            if weights.ndim != 4 or bias.shape != (weights.shape[3 if kind == DEPTHWISE else 0],):
                raise WeightsError(f"{file}: {scope} has weights {weights.shape} and bias {bias.shape}, no convolution")
        elif (code.CustomCode() or b"").decode() == POSTPROCESS:
            anchors = _values(model, graph.Tensors(inputs[2]), file)
            options = cast("Mapping[str, Any]", flexbuffers.Loads(bytes(operator.CustomOptionsAsNumpy())))
            nms_threshold = round(float(options.get("nms_iou_threshold", NMS_THRESHOLD)), 6)
    first = graph.Tensors(graph.Inputs(0))
    _, height, width, _ = (int(side) for side in first.ShapeAsNumpy())
    if first.Type() == 0:  # float: TensorFlow's own preprocessing, -1 to 1
        return Graph(layers, Size(height, width), 1 / 127.5, 127.5, anchors, nms_threshold)
    quantization = first.Quantization()
    scale, zero = quantization.ScaleAsNumpy()[0], quantization.ZeroPointAsNumpy()[0]
    if not scale > 0:
        raise WeightsError(f"{file}: its input is scaled by {scale}, expected a number above 0")
    return Graph(layers, Size(height, width), float(scale), int(zero), anchors, nms_threshold)


def scope_of(tensor: Any) -> str:
    """Return the layer that a tensor belongs to: its name up to the part that says what the tensor is."""
    parts = r"/(weights|depthwise_weights|Conv2D|depthwise|BiasAdd|FakeQuant).*$"
    return re.sub(parts, "", tensor.Name().decode())


def _values(model: Any, tensor: Any, file: Path) -> Array:
    """Return a constant tensor as float32, dequantised by tensor or by channel."""
    name = tensor.Name().decode()
    if tensor.Type() not in DTYPES:
        raise WeightsError(
            f"{file}: tensor {name} has TF Lite's type {tensor.Type()}; floats and integers of 8 to 64 bits are read"
        )
    raw = model.Buffers(tensor.Buffer()).DataAsNumpy()
    if isinstance(raw, int):  # flatbuffers' way to say that there is nothing
        raise WeightsError(
            f"{file}: tensor {name} is computed, not stored, as in files of 16-bit floats; give an 8-bit or 32-bit one"
        )
    values = np.frombuffer(raw.tobytes(), DTYPES[tensor.Type()]).reshape(tensor.ShapeAsNumpy()).astype(np.float32)
    quantization = tensor.Quantization()
    if quantization is None or quantization.ScaleLength() == 0:
        return values
    scale, zero = quantization.ScaleAsNumpy(), quantization.ZeroPointAsNumpy().astype(np.float32)
    if len(scale) > 1:
        axes = [1] * values.ndim
        axes[quantization.QuantizedDimension()] = -1
        scale, zero = scale.reshape(axes), zero.reshape(axes)
    return ((values - zero) * scale).astype(np.float32)
