"""Detectors as what can be timed, and exported files cut into resize, network and post-processing. No torch here."""
# pyright: reportUnknownMemberType=false

import math
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.benchmarking.clock import WHOLE, Seconds, numpy_ceiling, openvino_ceiling, seconds_of, timed
from multibox.benchmarking.workload import Images, Outputs
from multibox.errors import MultiboxError
from multibox.inference.engines import (
    LIMITS,
    OUTPUTS,
    PRECISIONS,
    adapt,
    compile_openvino,
    for_one,
    limits,
    openvino_core,
    unlocked,
)
from multibox.inference.load import ExportedDetector, detections_of, open_exported
from multibox.privacy import import_onnxruntime, import_openvino
from multibox.structures import Detections, Size

Run = Callable[[Mapping[str, NDArray[Any]]], Any]
PARTS = ("preprocess", "network", "post-process")
HEADS = ("logits", "offsets")
CUTS = {
    "resize": (("images",), ("resized",)),
    "network": (("resized",), HEADS),
    "post": (("images", *LIMITS, *HEADS), OUTPUTS),
}
"""Inputs and outputs of the parts; `post` only takes the size of the images."""
HOW = "parts: the graph cut in three, each compiled alone; the whole is the file as it is"
UNCUT = "parts cannot be told apart in onnxruntime without the package onnx: pip install onnx"


class DisagreementError(MultiboxError):
    """Two sides of a comparison gave different detections, so their times mean nothing."""


class Subject(NamedTuple):
    """A detector in an engine."""

    name: str
    """Engine and precision."""
    predict: Callable[[Images], list[Detections]]
    """Decoded images to detections above the config's score threshold."""
    run: Callable[[Images], Seconds]
    """The same, timed: the seconds of `PARTS`, if they can be told apart, and of the whole."""
    post: Callable[[Outputs, Size], Callable[[], list[Detections]]] | None
    """From a network's outputs and the images' size to post-processing alone, ready to run."""
    flops: int | None
    """Operations of the network per image; a multiplication and an addition count as two."""
    ceiling: Callable[[], float]
    """Measures the FLOP/s of a large matrix product in the same engine and precision."""
    outputs: tuple[int, int] | None
    """Anchors, and logits per anchor; None if they are unknown."""
    score: Any
    """softmax or sigmoid."""
    threshold: float
    """Scores above it are candidates."""
    exact: bool
    """Computed in float32."""
    how: str
    """How the parts were told apart."""


class Parts(NamedTuple):
    """A file's parts in its engine; each returns a list of its outputs."""

    resize: Run
    network: Run
    post: Run
    flops: int
    """Operations of the network per image."""
    outputs: tuple[int, int]
    """Anchors, and logits per anchor."""
    precision: str
    """Precision of the network."""
    ceiling: Callable[[], float]


def exported_subject(path: Path, threads: int | None = None, precision: str | None = None) -> Subject:
    """Return a .onnx or .xml file as a subject; arguments and errors are those of `engines.open_engine`."""
    detector = open_exported(path, threads, precision, "cpu")
    engine, about = detector.engine.name, detector.about
    parts: Parts | None = None
    if engine != "onnxruntime":
        parts = openvino_parts(path, Size(*about["input_size"]), threads, precision)
    elif find_spec("onnx"):
        parts = onnx_parts(path, threads)
    threshold = about["post"]["score_threshold"]

    def predict(images: Images) -> list[Detections]:
        return detector.predict(list(images), threshold)

    def run(images: Images) -> Seconds:
        found = {WHOLE: timed(lambda: predict(images))}
        return found if parts is None else _part_seconds(parts, detector, images) | found

    used = parts.precision if parts else "float32"
    kind = ", INT8" if about["precision"] == "int8" else ""
    return Subject(
        name=f"ours, {engine} {version(engine.lower())} {used}{kind}",
        predict=predict,
        run=run,
        post=partial(post_of, parts, detector) if parts else None,
        flops=parts.flops if parts else None,
        ceiling=parts.ceiling if parts else numpy_ceiling,
        outputs=parts.outputs if parts else None,
        score=about["score"],
        threshold=threshold,
        exact=used == "float32" and not kind,
        how=HOW if parts else UNCUT,
    )


def post_of(parts: Parts, detector: ExportedDetector, heads: Outputs, size: Size) -> Callable[[], list[Detections]]:
    """Return a file's post-processing alone, ready to run (`Subject.post`)."""
    images = np.zeros((len(heads.logits), *size, 3), np.uint8)
    feeds = {"images": images, **_limits(detector), **heads._asdict()}

    def work() -> list[Detections]:
        # Copied, as the engine does
        outputs = {str(name): np.array(value) for name, value in zip(OUTPUTS, parts.post(feeds), strict=True)}
        return detections_of(outputs, detector.names)

    return work


def _part_seconds(parts: Parts, detector: ExportedDetector, images: Images) -> Seconds:
    """Run the parts one after another."""
    times = [time.perf_counter()]
    batch = np.stack(list(images))
    (resized,) = parts.resize({"images": batch})
    times.append(time.perf_counter())
    heads = parts.network({"resized": resized})
    times.append(time.perf_counter())
    parts.post({"images": batch, **_limits(detector), **dict(zip(HEADS, heads, strict=True))})
    times.append(time.perf_counter())
    return seconds_of(PARTS, times)


def _limits(detector: ExportedDetector) -> dict[str, NDArray[Any]]:
    return limits(*(detector.about["post"][name] for name in LIMITS))


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


def _of_any_batch(model: Any, compile_model: Callable[[Any], Any]) -> Run:
    """Compile a part as `open_engine` compiles the whole: for one image, and for any number of them."""

    @cache
    def run_for(alone: bool) -> Run:
        return run_compiled(compile_model(for_one(model) if alone else model))

    return lambda feeds: run_for(all(len(each) == 1 for each in feeds.values() if each.ndim))(feeds)


def run_compiled(compiled: Any) -> Run:
    """Return a function that passes arrays in and out without copies; outputs are valid until the next call."""
    openvino = import_openvino()
    request = compiled.create_infer_request()

    def run(feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        for name, value in feeds.items():
            array = unlocked(np.require(value, requirements="C"))
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.infer()
        return [request.get_tensor(port).data for port in compiled.outputs]

    return run


def _cut_openvino(path: Path, part: str) -> Any:
    """Return one part of a file as openvino.Model, with the inputs and outputs of `CUTS`."""
    openvino = import_openvino()
    model = openvino_core().read_model(path)
    adapt(model)
    inputs, outputs = CUTS[part]
    values = {name: out for node in model.get_ordered_ops() for out in node.outputs() for name in out.get_names()}
    parameters: list[Any] = []
    for name in inputs:
        inside = values[name]
        if inside.get_node().get_type_name() == "Parameter":
            parameters.append(inside.get_node())
            continue
        given = openvino.opset13.parameter(inside.get_partial_shape(), inside.get_element_type(), name)
        given.output(0).get_tensor().set_names({name})
        for target in inside.get_target_inputs():
            target.replace_source_output(given.output(0))
        parameters.append(given)
    # The CPU plugin cannot tell two results of one value apart
    ends = {name: end for end in model.get_results() for name in end.input_value(0).get_names()}
    results = [ends[name] if name in ends else openvino.opset13.result(values[name]) for name in outputs]
    return openvino.Model(results, parameters, part)


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
        ModuleNotFoundError: the package onnx is not installed.
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
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every input that has a default
    if threads is not None:
        options.intra_op_num_threads = threads
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, dict(feeds))


def _onnx_flops(network: Any, sides: Mapping[str, list[int]]) -> int:
    """Count multiplications and additions of convolutions for one image; `sides` are the shapes of values."""
    # Weights of 8 bits are computed in the graph
    weights = {**sides, **{tensor.name: tuple(tensor.dims) for tensor in network.graph.initializer}}
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]
    return sum(
        2 * math.prod(weights[node.input[1]][1:]) * math.prod(sides[node.output[0]][1:]) for node in convolutions
    )
