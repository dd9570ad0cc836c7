"""OpenVINO Model Server: its config, and an IR that Intel's Model API opens as a detector. No torch here.

Model API knows several kinds of detectors by their outputs. This is the one with boxes as fractions of the image,
scores and labels, and with resize and suppression inside the graph (`embedded_processing`). It feeds an image as it is.
"""
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import MissingExtraError, WeightsError
from multibox.exporting.fixed_limits import (
    PREFIX,
    filter_model,
    filtered_twin,
    fixed_about,
    proof_images,
    same_detections,
    served_name,
    told,
)
from multibox.inference.engines import KEY, LIMITS, OUTPUTS, adapt, compile_openvino, limits, open_engine, openvino_core
from multibox.inference.load import detections_of
from multibox.privacy import import_openvino
from multibox.thresholds import just_below, lowest_scores

MODELS = "/models"
"""Where the server finds the folder: the place to mount it."""
BOXES = "bboxes"
"""Model API's name of the output."""


def write_ovms(model: Path, folder: Path, *, name: str, threshold: float | None = None) -> list[str]:
    """Write config.json, NAME/1/model.xml and model.bin, and return lines to print.

    Args:
        model: a .onnx or .xml file of dialect plain.
        folder: what the server mounts as /models.
        name: what the server calls the model, after `served_name`.
        threshold: lowest score that the model reports; None takes each class's own.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        WeightsError: the model with its limits built in differs from the plain one.
    """
    try:
        openvino = import_openvino()
    except ModuleNotFoundError:
        raise MissingExtraError("Writing a model for ovms", "export") from None
    name = served_name(name)
    about = open_engine(model, device="cpu").about
    lowest = lowest_scores(threshold, about["post"]["thresholds"], about["names"])
    _prove(model, about)
    built = build(model, about["post"], lowest)
    about = fixed_about(about, "ovms", lowest)
    built.set_rt_info(json.dumps(about, ensure_ascii=False, sort_keys=True), [KEY])
    for key, value in model_info(about, lowest).items():
        built.set_rt_info(value, ["model_info", key])
    place = folder / name / "1"
    place.mkdir(parents=True)
    openvino.save_model(built, place / "model.xml", compress_to_fp16=about.get("precision", "fp32") != "fp32")
    (folder / "config.json").write_text(json.dumps(config(name), indent=2) + "\n", "utf-8")
    return [
        f"{name}: {told(about)}",
        f"config.json expects this folder at {MODELS}; Model API opens {name}/1/model.xml as it is",
    ]


def config(name: str) -> dict[str, Any]:
    """Return the server's config. Shapes and layout stand in the model: any number of images of any one size."""
    return {"model_config_list": [{"config": {"name": name, "base_path": f"{MODELS}/{name}"}}]}


def model_info(about: Mapping[str, Any], lowest: NDArray[np.float32]) -> dict[str, str]:
    """Return what Model API reads from the model.

    Args:
        about: the model's description of itself.
        lowest: lowest score of each class to report [C].
    """
    height, width = about["input_size"]
    return {
        "model_type": "ssd",
        # Model API separates them by spaces
        "labels": " ".join("_".join(name.split()) or "_" for name in about["names"]),
        # It reports what lies above; the thresholds of the classes are inside the graph
        "confidence_threshold": repr(just_below(float(lowest.min()))),
        "iou_threshold": repr(float(about["post"]["nms_threshold"])),
        "nms_execute": "False",
        "embedded_processing": "True",
        "orig_height": str(height),
        "orig_width": str(width),
        "resize_type": "standard",
        "pad_value": "0",
        "reverse_input_channels": "False",
    }


def build(file: Path, post: Mapping[str, Any], lowest: NDArray[np.float32]) -> Any:
    """Return the openvino.Model with its limits built in, with boxes as fractions of the image.

    Args:
        file: a .onnx or .xml file of dialect plain.
        post: settings of the post-processing.
        lowest: lowest score of each class to report [C].
    """
    openvino = import_openvino()
    ops = openvino.opset13
    model = openvino_core().read_model(file)
    adapt(model)
    above = limits(just_below(float(lowest.min())), post["nms_threshold"], post["max_detections"])
    inputs = {name: port.get_node() for port in model.inputs for name in port.get_names()}
    for name in LIMITS:
        _replace(inputs[name], ops.constant(above[name], inputs[name].get_element_type()).output(0))
    outputs = {name: model.output(name).get_node().input_value(0) for name in OUTPUTS}
    if lowest.min() < lowest.max():
        outputs = _filter(outputs, lowest)
    images = inputs["images"]
    images.layout = openvino.Layout("NHWC")
    sides = ops.gather(ops.shape_of(images), ops.constant(np.array([2, 1, 2, 1])), ops.constant(0))
    shares = ops.divide(outputs.pop("boxes"), ops.convert(sides, "f32"))
    values = {BOXES: shares.output(0), **outputs}
    for name, value in values.items():
        value.get_tensor().set_names({name})
    return openvino.Model([ops.result(value) for value in values.values()], [images], "multibox")


def _filter(outputs: dict[str, Any], lowest: NDArray[np.float32]) -> dict[str, Any]:
    """Add what drops the detections below the lowest score [C] of their class."""
    for name, value in outputs.items():
        value.get_tensor().set_names({PREFIX + name})
    added = openvino_core().read_model(filter_model(lowest), b"")
    for port in added.inputs:
        (name,) = port.get_names()
        _replace(port.get_node(), outputs[name.removeprefix(PREFIX)])
    return {name: added.output(name).get_node().input_value(0) for name in OUTPUTS}


def _replace(node: Any, value: Any) -> None:
    """Let all that reads a node's output read the value instead."""
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(value)


def _prove(file: Path, about: Mapping[str, Any]) -> None:
    """Compare the plain model with a twin as `fixed_limits` does, both in OpenVINO.

    Raises:
        WeightsError: they differ.
    """
    plain = openvino_core().read_model(file)
    adapt(plain)
    names, images = tuple(about["names"]), proof_images()
    run = compile_openvino(plain, None, "float32")
    wanted, lowest = filtered_twin(lambda feeds: _outputs(run(dict(feeds)), OUTPUTS), about, images)
    twin = compile_openvino(build(file, about["post"], lowest), None, "float32")
    outputs = _outputs(twin({"images": images}), (BOXES, *OUTPUTS[1:]))
    height, width = images.shape[1:3]
    outputs["boxes"] = outputs.pop(BOXES) * np.array([width, height] * 2, np.float32)
    if not same_detections(detections_of(outputs, names), wanted):
        raise WeightsError("the model for ovms gives other detections than the plain one; please report it")


def _outputs(results: Any, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    return {name: np.array(results[name]) for name in names}
