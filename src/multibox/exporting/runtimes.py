"""Exported models in their own runtimes, as plain functions; what the verification calls."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.inference.engines import openvino_core
from multibox.privacy import import_onnxruntime

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], Arrays]
STAGES = ("resized", "logits", "offsets")
"""Values inside the graph that can be looked at."""


def run_onnx(data: bytes, stages: bool = False) -> Run:
    """Open an ONNX model in onnxruntime; with `stages` the function also answers what is inside."""
    import onnx

    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()

    def open_session(data: bytes) -> Run:
        session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True))

    whole = open_session(data)
    if not stages:
        return whole
    proto = onnx.load_from_string(data)
    known = {output.name for output in proto.graph.output}
    for name in STAGES:
        if name not in known:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return _both(open_session(proto.SerializeToString()), whole)


def run_openvino(model: Any, stages: bool = False) -> Run:
    """Compile an openvino.Model in float32; with `stages` the function also answers what is inside."""
    whole = _compile(model)
    if not stages:
        return whole
    known = {name for output in model.outputs for name in output.get_names()}
    opened = model.clone()
    opened.add_outputs([name for name in STAGES if name not in known])
    return _both(_compile(opened), whole)


def _both(opened: Run, whole: Run) -> Run:
    """Answer what the file itself answers, and from its opened twin the stages only.

    A runtime plans its memory by the outputs it must keep: a fault there may vanish when a stage becomes an output
    (seen with OpenVINO 2026.4 and the operator If).
    """
    return lambda feeds: opened(feeds) | whole(feeds)


def _compile(model: Any) -> Run:
    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [_name(output) for output in compiled.outputs]
    inputs = {name for port in compiled.inputs for name in port.get_names()}

    def run(feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        answer = compiled({name: value for name, value in feeds.items() if name in inputs})
        return {name: np.array(value) for name, value in zip(names, answer.values(), strict=True)}

    return run


def _name(output: Any) -> str:
    names = output.get_names()
    return next((name for name in STAGES if name in names), None) or min(names)
