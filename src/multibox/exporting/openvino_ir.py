"""From the ONNX graph to OpenVINO's IR, in float or in INT8."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from PIL import Image

from multibox.data.pictures import resize_picture
from multibox.files import write_bytes_whole
from multibox.inference.engines import KEY, adapt, openvino_core


def to_openvino(model: ir.Model) -> Any:
    """Return the openvino.Model of an ONNX model of ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(ir.to_proto(model).SerializeToString())
        found = openvino_core().read_model(path)
        adapt(found)
        return found


def quantize(model: Any, pictures: Iterable[Image.Image], size: tuple[int, int]) -> Any:
    """Return the model with its network in INT8, calibrated on pictures; resize and post-processing stay as they are.

    So do depthwise and grouped convolutions: OpenVINO computes them in float all the same, and the steps to INT8 and
    back made each slower.

    Args:
        model: from `to_openvino`.
        pictures: what the detector will see; 300 are enough.
        size: height and width of the network's input.
    """
    import nncf
    import openvino

    inside = {name: _find(model, name) for name in ("resized", "logits", "offsets")}
    head = openvino.opset13.parameter([-1, 3, *size], openvino.Type.f32, "resized")
    for target in inside["resized"].get_target_inputs():
        target.replace_source_output(head.output(0))
    ends = [openvino.opset13.result(inside[name]) for name in ("logits", "offsets")]
    network = openvino.Model(ends, [head], "network")  # pyright: ignore[reportGeneralTypeIssues]
    seen = [np.asarray(resize_picture(picture, size)) for picture in pictures]
    data = nncf.Dataset(seen, lambda pixels: pixels.transpose(2, 0, 1)[None].astype(np.float32))
    grouped = nncf.IgnoredScope(types=["GroupConvolution"], validate=False)
    mixed = nncf.QuantizationPreset.MIXED
    quantized = nncf.quantize(network, data, preset=mixed, subset_size=len(seen), ignored_scope=grouped)
    for target in quantized.inputs[0].get_target_inputs():
        target.replace_source_output(inside["resized"])
    for name, output in zip(("logits", "offsets"), quantized.outputs, strict=True):
        answer = output.get_node().input_value(0)
        answer.get_tensor().add_names({name})
        for target in inside[name].get_target_inputs():
            if target.get_node().get_type_name() != "Result" or target.get_node() not in ends:
                target.replace_source_output(answer)
    return openvino.Model(model.get_results(), model.get_parameters(), "multibox")  # pyright: ignore[reportGeneralTypeIssues]


def as_stored(model: Any, half: bool) -> Any:
    """Return the model as a file would hold it."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=half)
        return openvino_core().read_model(path)


def save_openvino(model: Any, path: Path, metadata: str, half: bool) -> None:
    """Write `path` (.xml) and its .bin, each whole; weights as float16 if `half`."""
    import openvino

    model.set_rt_info(metadata, [KEY])
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / path.name
        openvino.save_model(model, scratch, compress_to_fp16=half)
        write_bytes_whole(path.with_suffix(".bin"), scratch.with_suffix(".bin").read_bytes())
        write_bytes_whole(path, scratch.read_bytes())


def _find(model: Any, name: str) -> Any:
    return next(o for node in model.get_ordered_ops() for o in node.outputs() if name in o.get_names())
