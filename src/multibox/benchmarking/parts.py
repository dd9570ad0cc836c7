"""An exported file cut at `resized`, `logits` and `offsets`: its parts, each a model of its own. No torch here."""

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.benchmarking.clock import numpy_ceiling, openvino_ceiling
from multibox.inference.engines import (
    LIMITS,
    OUTPUTS,
    PRECISIONS,
    adapt,
    compile_openvino,
    for_one,
    openvino_core,
    unlocked,
)
from multibox.structures import Size

Run = Callable[[Mapping[str, NDArray[Any]]], Any]
HEADS = ("logits", "offsets")
CUTS = {
    "resize": (("images",), ("resized",)),
    "network": (("resized",), HEADS),
    "post": (("images", *LIMITS, *HEADS), OUTPUTS),
}
"""Inputs and outputs of the parts; of the images, `post` takes the size."""


class Parts(NamedTuple):
    """A file's parts in its engine; each answers a list of its outputs."""

    resize: Run
    network: Run
    post: Run
    flops: int
    """Of the network for one image."""
    outputs: tuple[int, int]
    """Anchors, logits an anchor."""
    precision: str
    """In which the network is computed."""
    ceiling: Callable[[], float]


def openvino_parts(path: Path, size: Size, threads: int | None = None, precision: str | None = None) -> Parts:
    """Cut a .onnx or .xml file for OpenVINO.

    Args:
        path: the file.
        size: of the network's input.
        threads: as `open_engine` takes them, like the precision.
        precision: of the network.
    """
    compile_model = partial(compile_openvino, threads=threads, precision=precision)
    models = [_cut_openvino(path, name) for name in CUTS]
    one = fixed_network(path, 1, size)
    anchors, logits = one.output(0).get_shape()[1:]
    hint = compile_model(one).get_property("INFERENCE_PRECISION_HINT").to_string()
    return Parts(
        *(_of_any_batch(model, compile_model) for model in models),
        flops=_openvino_flops(one),
        outputs=(int(anchors), int(logits)),
        precision=next((name for name, theirs in PRECISIONS.items() if theirs == hint), hint),
        ceiling=lambda: openvino_ceiling(compile_model),
    )


def fixed_network(path: Path, batch: int, size: Size) -> Any:
    """Return a file's network alone as openvino.Model for one batch size, which is the fastest it can be."""
    network = _cut_openvino(path, "network")
    network.reshape([batch, 3, *size])
    return network


def openvino_network(path: Path, batch: int, size: Size, threads: int | None, precision: str | None) -> Run:
    """Compile a file's network alone for one batch size."""
    return _call(compile_openvino(fixed_network(path, batch, size), threads, precision))


def _of_any_batch(model: Any, compile_model: Callable[[Any], Any]) -> Run:
    """Compile a part as `open_engine` compiles the whole: for one image, and for any number of them."""

    @cache
    def run_for(alone: bool) -> Run:
        return _call(compile_model(for_one(model) if alone else model))

    return lambda feeds: run_for(all(len(each) == 1 for each in feeds.values() if each.ndim))(feeds)


def _call(compiled: Any) -> Run:
    """Hand arrays over and back without copies, by one request; what comes back holds until the next call."""
    import openvino

    request = compiled.create_infer_request()

    def run(feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        for name, value in feeds.items():
            array = unlocked(np.require(value, requirements="C"))
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.infer()
        return [request.get_tensor(port).data for port in compiled.outputs]

    return run


def _cut_openvino(path: Path, part: str) -> Any:
    import openvino
    from openvino import opset13

    model = openvino_core().read_model(path)
    adapt(model)
    inputs, outputs = CUTS[part]
    values = {name: out for node in model.get_ordered_ops() for out in node.outputs() for name in out.get_names()}
    parameters = []
    for name in inputs:
        inside = values[name]
        if inside.get_node().get_type_name() == "Parameter":
            parameters.append(inside.get_node())
            continue
        given = opset13.parameter(inside.get_partial_shape(), inside.get_element_type(), name)
        given.output(0).get_tensor().set_names({name})
        for target in inside.get_target_inputs():
            target.replace_source_output(given.output(0))
        parameters.append(given)
    # A second result of one value is more than the CPU plugin can tell apart
    ends = {name: end for end in model.get_results() for name in end.input_value(0).get_names()}
    results = [ends[name] if name in ends else opset13.result(values[name]) for name in outputs]
    return openvino.Model(results, parameters, part)  # pyright: ignore[reportGeneralTypeIssues]


def _openvino_flops(network: Any) -> int:
    """Count multiplications and additions of convolutions; weights are [out, in, h, w] or [groups, out, in, h, w]."""
    total = 0
    for node in network.get_ordered_ops():
        first = {"Convolution": 1, "GroupConvolution": 2}.get(node.get_type_name())
        if first is not None:
            kernel = node.input(1).get_shape()[first:]
            total += 2 * math.prod(kernel) * math.prod(node.output(0).get_shape())
    return total


def onnx_parts(path: Path, threads: int | None = None) -> Parts:
    """Cut a .onnx file for onnxruntime.

    Raises:
        ModuleNotFoundError: the package onnx, which cuts, is not installed.
    """
    import onnx
    from onnx.utils import Extractor

    proto = onnx.load(path)
    extractor = Extractor(proto)
    resize, network, post = (extractor.extract_model(list(ins), list(outs)) for ins, outs in CUTS.values())
    sides = {
        value.name: [each.dim_value for each in value.type.tensor_type.shape.dim] for value in proto.graph.value_info
    }
    _, anchors, logits = sides["logits"]
    return Parts(
        *(_onnx_run(part, threads) for part in (resize, network, post)),
        flops=_onnx_flops(network, sides),
        outputs=(anchors, logits),
        precision="float32",
        ceiling=numpy_ceiling,
    )


def _onnx_run(model: Any, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every input that has a default
    if threads is not None:
        options.intra_op_num_threads = threads
    data = model.SerializeToString()
    session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, dict(feeds))


def _onnx_flops(network: Any, sides: Mapping[str, list[int]]) -> int:
    """Count multiplications and additions of convolutions for one image; `sides` are the shapes of values."""
    # Weights of 8 bits are computed in the graph
    weights = {**sides, **{tensor.name: tuple(tensor.dims) for tensor in network.graph.initializer}}
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]
    return sum(
        2 * math.prod(weights[node.input[1]][1:]) * math.prod(sides[node.output[0]][1:]) for node in convolutions
    )
