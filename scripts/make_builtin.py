"""Make the files of the built-in models in src/multibox/builtin_models from the published weights in ../shared/weights.

    python scripts/make_builtin.py

Needs the extras of `dev`. The same input gives the same bytes on one machine. `coco` keeps the 8-bit weights as they
were published, with scale and zero point; `face` its float32 weights and batch norms. Each graph names byte ranges of
the .safetensors file as its external data, so that every weight is stored once, and dequantises them by Cast, Sub and
Mul: onnxruntime and OpenVINO fold these to constants when they load it, where onnxruntime would keep
DequantizeLinear.
"""

import dataclasses
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import tflite as schema
import torch
from builtin_thresholds import FACE_THRESHOLD, find_thresholds
from torch import Tensor, nn

from multibox.builtin import FOLDER, MODELS
from multibox.exporting.graph import as_text, build_onnx, describe
from multibox.files import write_bytes_whole
from multibox.importers import tflite
from multibox.importers.pytorch_ssds import read_linzaer
from multibox.inference.detector import Detector
from multibox.inference.engines import KEY
from multibox.models.build import build_model
from multibox.models.checkpoint import SCALE, ZERO_POINT, Checkpoint, save_checkpoint
from multibox.models.prediction import convolutions_before_norms
from multibox.models.ssd import SSD

WEIGHTS = Path(__file__).resolve().parents[2] / "shared/weights"
PUBLISHED = {
    "coco": (
        "ssd_mobilenet_v1_coco/coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite",
        "61d598093ed03ed41aa47c3a39a28ac01e960d6a810a5419b9a5016a1e9c469b",
    ),
    "face": (
        "face_rfb320/version-RFB-320.pth",
        "c722b4427cc71642768baef6e15c659931b56f07425e5d2b0ec033ad41b145b3",
    ),
}
"""File below ../shared/weights, and its SHA-256."""
NETWORK = "network.model."
"""What the exporter puts before the names of the network's weights."""


def make(name: str, folder: Path) -> None:
    """Write NAME.safetensors and NAME.onnx into a folder."""
    imported, packed = READERS[name](published_file(name))
    detector = open_detector(imported)
    thresholds = find_thresholds(detector) if name == "coco" else (FACE_THRESHOLD,)
    config = imported.config.updated({"post.thresholds": thresholds})
    about = MODELS[name]
    weights = folder / f"{name}.safetensors"
    save_checkpoint(
        weights, dataclasses.replace(imported, state=packed, config=config, source=about.source, license=about.license)
    )
    detector = Detector(detector.model, config, imported.class_names)
    text = as_text(describe(detector, "plain", license=about.license, source=about.source) | {"builtin": name})
    graph = build_onnx(detector, metadata={KEY: text})
    refer(graph.graph, detector.model, weights)
    write_bytes_whole(folder / f"{name}.onnx", ir.to_proto(graph).SerializeToString(deterministic=True))


def published_file(name: str) -> Path:
    """Return the published file, after a look at its checksum."""
    file, expected = PUBLISHED[name]
    found = hashlib.sha256((WEIGHTS / file).read_bytes()).hexdigest()
    if found != expected:
        raise SystemExit(f"{WEIGHTS / file} has SHA-256 {found}, expected {expected}")
    return WEIGHTS / file


def open_detector(checkpoint: Checkpoint) -> Detector:
    """Return the detector of an imported checkpoint."""
    model = build_model(checkpoint.config, len(checkpoint.class_names))
    model.load_state_dict(dict(checkpoint.state))
    return Detector(model, checkpoint.config, checkpoint.class_names)


def read_coco(file: Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Return the imported checkpoint, and its state with the 8-bit values in place of the convolutions' weights."""
    checkpoint = tflite.read(file, [])
    layers, scales, zero_points = _quantised_layers(file)
    packed = dict(checkpoint.state)
    # The importer arranges values of any type, so also scales and zero points repeated for every value
    arranged = [tflite.arrange(each, file) for each in (layers, scales, zero_points)]
    for name in [name for name, value in arranged[0].items() if value.dtype == torch.uint8]:
        values, scale, zero_point = (each[name] for each in arranged)
        scale, zero_point = scale.unique(), zero_point.unique()
        wanted = (values.float() - zero_point.float()) * scale
        if not torch.equal(wanted, checkpoint.state[name]):
            raise SystemExit(f"{name}: the 8-bit values are not those of the imported weights")
        packed |= {name: values, name + SCALE: scale.squeeze(), name + ZERO_POINT: zero_point.squeeze()}
    return checkpoint, packed


def _quantised_layers(file: Path) -> tuple[dict[str, tflite.Layer], ...]:
    """Return the file's convolutions with 8-bit weights; the same with scales, and with zero points in their place."""
    model: Any = schema.Model.GetRootAs(file.read_bytes(), 0)
    graph: Any = model.Subgraphs(0)
    found: tuple[dict[str, tflite.Layer], ...] = ({}, {}, {})
    layers = tflite.read_graph(file).layers
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        scope = tflite.scope_of(tensor)
        layer = layers.get(scope)
        if (
            layer is None
            or tensor.Type() != schema.TensorType.UINT8
            or tuple(tensor.ShapeAsNumpy()) != layer.weights.shape
        ):
            continue
        raw = model.Buffers(tensor.Buffer()).DataAsNumpy()
        if isinstance(raw, int):  # computed, such as a layer's output
            continue
        quantization = tensor.Quantization()
        (scale,), (zero_point,) = quantization.ScaleAsNumpy(), quantization.ZeroPointAsNumpy()
        values = np.array(raw, np.uint8).reshape(layer.weights.shape)
        contents = (values, np.full(values.shape, scale, np.float32), np.full(values.shape, zero_point, np.uint8))
        for each, content in zip(found, contents, strict=True):
            each[scope] = dataclasses.replace(layer, weights=content)
    if found[0].keys() != layers.keys():
        raise SystemExit(f"{file}: no 8-bit weights for {sorted(layers.keys() - found[0].keys())}")
    return found


def read_face(file: Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Return the imported checkpoint, and its state as it is."""
    checkpoint = read_linzaer(file, [])
    return checkpoint, dict(checkpoint.state)


READERS = {"coco": read_coco, "face": read_face}


def refer(graph: ir.Graph, model: SSD, weights: Path) -> None:
    """Let a graph read its weights from a checkpoint."""
    file = _External(graph, weights)
    norms = _norms(model)
    for node in [node for node in graph if node.op_type == "Conv"]:
        weight = str(node.inputs[1].name).removeprefix(NETWORK)  # pyright: ignore[reportOptionalMemberAccess]
        layer = weight.removesuffix(".weight")
        node.replace_input_with(1, file.read(weight))
        if layer not in norms:
            node.replace_input_with(2, file.read(f"{layer}.bias"))
            continue
        norm, eps, trivial = norms[layer]
        if trivial:
            node.replace_input_with(2, file.read(f"{norm}.bias"))
        else:
            _insert_norm(node, [file.read(f"{norm}.{part}") for part in NORM_PARTS], eps)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)
    if left := [name for name, value in graph.initializers.items() if value.const_value.nbytes > 1000 and
                not isinstance(value.const_value, ir.ExternalTensor)]:  # fmt: skip
        raise SystemExit(f"these weights would be stored twice: {left}")


NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


def _norms(model: SSD) -> dict[str, tuple[str, float, bool]]:
    """Return, for each convolution before a batch norm, that one's name, eps, and whether it only adds its bias."""
    norms: dict[str, tuple[str, float, bool]] = {}
    for conv, name in convolutions_before_norms(model):
        norm = model.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        wanted = tflite.folded_norm(norm.bias, norm.eps)
        norms[conv] = name, norm.eps, all(torch.equal(norm.state_dict()[part], wanted[part]) for part in NORM_PARTS)
    return norms


def _insert_norm(conv: ir.Node, parameters: list[ir.Value], eps: float) -> None:
    """Put a batch norm behind a convolution, whose own bias goes."""
    output = conv.outputs[0]
    conv.replace_input_with(2, None)
    norm = ir.node("BatchNormalization", [output, *parameters], {"epsilon": eps})
    norm.outputs[0].name = f"{output.name}.norm"
    norm.outputs[0].dtype, norm.outputs[0].shape = output.dtype, output.shape
    ir.convenience.replace_all_uses_with(output, norm.outputs[0])
    norm.replace_input_with(0, output)
    assert conv.graph is not None
    conv.graph.insert_after(conv, norm)


class _External:
    """Values of a graph that stand in a safetensors file beside it."""

    def __init__(self, graph: ir.Graph, file: Path) -> None:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            self.entries: dict[str, Any] = json.loads(stream.read(length))
        self.start = 8 + length
        self.graph, self.file = graph, file
        self.first = graph[0]

    def read(self, name: str) -> ir.Value:
        """Return a tensor of the checkpoint, dequantised where it is of 8 bits."""
        value = self._initializer(name)
        if name + SCALE not in self.entries:
            return value
        scale, zero_point = self._initializer(name + SCALE), self._initializer(name + ZERO_POINT)
        # Differences of whole numbers, for OpenVINO would keep a float Sub and compute those layers in 8 bits
        zero = self._node("Cast", [zero_point], f"{name}.zero", ir.DataType.INT32)
        wide = self._node("Cast", [value], f"{name}.wide", ir.DataType.INT32)
        shifted = self._node("Sub", [wide, zero], f"{name}.shifted", ir.DataType.INT32)
        exact = self._node("Cast", [shifted], f"{name}.exact", ir.DataType.FLOAT)
        return self._node("Mul", [exact, scale], f"{name}.float", ir.DataType.FLOAT)

    def _initializer(self, name: str) -> ir.Value:
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        kind = {"U8": ir.DataType.UINT8, "F32": ir.DataType.FLOAT}[entry["dtype"]]
        shape = ir.Shape(entry["shape"])
        tensor = ir.ExternalTensor(
            self.file.name, self.start + begin, end - begin, kind, shape=shape, name=name, base_dir=self.file.parent
        )
        value = ir.Value(name=name, type=ir.TensorType(kind), shape=shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def _node(self, operator: str, inputs: list[ir.Value], name: str, kind: ir.DataType) -> ir.Value:
        node = ir.node(operator, inputs, {"to": kind} if operator == "Cast" else None)
        node.outputs[0].name = name
        node.outputs[0].dtype, node.outputs[0].shape = kind, inputs[0].shape
        self.graph.insert_before(self.first, node)
        return node.outputs[0]


if __name__ == "__main__":
    for model in MODELS:
        make(model, FOLDER)
        sizes = ", ".join(f"{each.name} {each.stat().st_size:,} bytes" for each in sorted(FOLDER.glob(f"{model}.*")))
        print(sizes)
