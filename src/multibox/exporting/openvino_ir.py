"""OpenVINO files: from the ONNX graph to its IR, in float or in INT8, and how much INT8 loses."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from PIL import Image

from multibox.data.images import load_image, resize_image
from multibox.evaluation.report import evaluate
from multibox.evaluation.voc_metrics import precision_recall
from multibox.exporting.verify import Run, VerificationError
from multibox.files import write_bytes_whole
from multibox.inference.detector import Detector
from multibox.inference.engines import KEY, adapt, limits, openvino_core
from multibox.inference.load import detections_of
from multibox.privacy import import_openvino
from multibox.structures import Dataset, Detections, Sample, Size
from multibox.thresholds import class_thresholds

LEAST_AGREEMENT = 0.8
"""An INT8 file that agrees less is not written. A network whose numbers do not fit 8 bits, or wrong calibration images,
end far below."""
FEWEST = 3
"""Least average of detections per image that serve as objects; thresholds are lowered until there are as many."""


def to_openvino(model: ir.Model) -> Any:
    """Return the openvino.Model of an ONNX model of ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(ir.to_proto(model).SerializeToString())
        converted = openvino_core().read_model(path)
    adapt(converted)
    return converted


def quantize(model: Any, images: Iterable[Image.Image], size: Size) -> Any:
    """Return the model with its network in INT8, calibrated on images; resize and post-processing stay as they are.

    So do depthwise and grouped convolutions: OpenVINO computes them in float anyway, and the conversion to INT8 and
    back made each slower.

    Args:
        model: from `to_openvino`.
        images: like those that the detector will see; 300 are enough.
        size: of the network's input.
    """
    import nncf  # pyright: ignore[reportMissingTypeStubs]

    openvino = import_openvino()
    inside = {name: _find(model, name) for name in ("resized", "logits", "offsets")}
    head = openvino.opset13.parameter([-1, 3, *size], openvino.Type.f32, "resized")
    for target in inside["resized"].get_target_inputs():
        target.replace_source_output(head.output(0))
    ends = [openvino.opset13.result(inside[name]) for name in ("logits", "offsets")]
    network = openvino.Model(ends, [head], "network")
    seen = [np.asarray(resize_image(image, size)) for image in images]
    grouped = nncf.IgnoredScope(types=["GroupConvolution"], validate=False)
    mixed = nncf.QuantizationPreset.MIXED
    data = nncf.Dataset(seen, _as_input)
    quantized = nncf.quantize(network, data, preset=mixed, subset_size=len(seen), ignored_scope=grouped)
    for target in quantized.inputs[0].get_target_inputs():
        target.replace_source_output(inside["resized"])
    for name, output in zip(("logits", "offsets"), quantized.outputs, strict=True):
        value = output.get_node().input_value(0)
        value.get_tensor().add_names({name})
        for target in inside[name].get_target_inputs():
            if target.get_node() not in ends:
                target.replace_source_output(value)
    return openvino.Model(model.get_results(), model.get_parameters(), "multibox")


def _as_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def as_stored(model: Any, half: bool) -> Any:
    """Return the model as a file would hold it."""
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=half)
        return openvino_core().read_model(path)


def save_openvino(model: Any, path: Path, metadata: str, half: bool) -> None:
    """Write `path` (.xml) and its .bin, each whole; weights as float16 if `half`."""
    openvino = import_openvino()
    model.set_rt_info(metadata, [KEY])
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / path.name
        openvino.save_model(model, scratch, compress_to_fp16=half)
        write_bytes_whole(path.with_suffix(".bin"), scratch.with_suffix(".bin").read_bytes())
        write_bytes_whole(path, scratch.read_bytes())


def _find(model: Any, name: str) -> Any:
    return next(o for node in model.get_ordered_ops() for o in node.outputs() if name in o.get_names())


def measure_agreement(run: Run, reference: Run, detector: Detector, images: Iterable[Image.Image]) -> dict[str, Any]:
    """Return how well the detections of a file agree with those of its float twin.

    The detections that the float file reports serve as objects. The agreement is the average precision at IoU .5 of the
    file's detections, averaged over classes by their numbers of objects.

    Args:
        run: the file, of dialect plain.
        reference: its float twin.
        detector: what was exported.
        images: such as the calibration images.

    Raises:
        VerificationError: the agreement is below `LEAST_AGREEMENT`.
    """
    found: list[Detections] = []
    wanted: list[Detections] = []
    for image in images:
        pixels = np.asarray(image)
        found.append(_detect(run, detector, pixels))
        wanted.append(_detect(reference, detector, pixels))
    objects = _reported(wanted, np.array(class_thresholds(detector.thresholds, detector.names)))
    curves = precision_recall(found, objects, detector.names, plus_one=False)
    scores = [(curve.ap12 or 0.0, curve.objects) for curve in curves.values() if curve.objects]
    total = sum(count for _, count in scores)
    agreement = sum(score * count for score, count in scores) / total if total else 1.0
    if agreement < LEAST_AGREEMENT:
        raise VerificationError(
            f"INT8 differs: its detections agree with the float file's to {agreement:.2f} (AP at IoU .5 on "
            f"{len(found)} calibration images), expected at least {LEAST_AGREEMENT}; calibrate on more images like "
            "those that the detector will see, or export with --fp16"
        )
    return {"agreement": agreement, "images": len(found), "objects": total}


def measure_loss(run: Run, detector: Detector, data: Dataset) -> dict[str, Any]:
    """Return COCO's AP and AP50 of eager and of the file (dialect plain) on a labelled split."""
    eager: list[Detections] = []
    file: list[Detections] = []
    for sample in data:
        pixels = np.asarray(load_image(sample, detector.background))
        eager.append(detector.predict(pixels, detector.config.post.score_threshold))
        file.append(_detect(run, detector, pixels))
    before, after = (evaluate(each, data, detector.names)["coco"] for each in (eager, file))
    metrics = ("AP", "AP50")
    return {
        "labelled_images": len(data),
        **{f"{name}_eager": before[name] for name in metrics},
        **{name: after[name] for name in metrics},
    }


def _detect(run: Run, detector: Detector, pixels: NDArray[np.uint8]) -> Detections:
    """Return a file's detections in one image, down to the config's lowest score."""
    post = detector.config.post
    outputs = run({"images": pixels[None], **limits(post.score_threshold, post.nms_threshold, post.max_detections)})
    return detections_of(outputs, detector.names)[0]


def _reported(found: list[Detections], thresholds: NDArray[np.float64]) -> list[Sample]:
    """Return the detections that reach their class's threshold, or a lower one if those are few, as labelled images."""
    excess = np.concatenate([each.scores - thresholds[each.labels] for each in found] or [np.zeros(0)])
    few = FEWEST * len(found)
    lowest = 0.0 if (excess >= 0).sum() >= few or len(excess) < few else float(np.sort(excess)[-few])
    kept = [each[each.scores - thresholds[each.labels] >= lowest] for each in found]
    return [
        Sample(
            name=str(index),
            path=Path(str(index)),
            boxes_xyxy=each.boxes.astype(np.float64),
            labels=each.labels,
            difficult=np.zeros(len(each), np.bool_),
            crowd=np.zeros(len(each), np.bool_),
        )
        for index, each in enumerate(kept)
    ]
