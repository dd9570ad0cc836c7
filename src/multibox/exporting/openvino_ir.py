"""From the ONNX graph to OpenVINO's IR, in float or in INT8."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from PIL import Image

from multibox.data.images import load_image, resize_image
from multibox.evaluation.report import Metrics, evaluate
from multibox.evaluation.voc_metrics import precision_recall
from multibox.exporting.runtimes import Run
from multibox.exporting.verify import VerificationError
from multibox.files import write_bytes_whole
from multibox.inference.detector import Detector
from multibox.inference.engines import KEY, adapt, openvino_core
from multibox.structures import Dataset, Detections, Sample, Size
from multibox.thresholds import class_thresholds


def to_openvino(model: ir.Model) -> Any:
    """Return the openvino.Model of an ONNX model of ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(ir.to_proto(model).SerializeToString())
        found = openvino_core().read_model(path)
        adapt(found)
        return found


def quantize(model: Any, images: Iterable[Image.Image], size: Size) -> Any:
    """Return the model with its network in INT8, calibrated on images; resize and post-processing stay as they are.

    So do depthwise and grouped convolutions: OpenVINO computes them in float all the same, and the steps to INT8 and
    back made each slower.

    Args:
        model: from `to_openvino`.
        images: what the detector will see; 300 are enough.
        size: of the network's input.
    """
    import nncf
    import openvino

    inside = {name: _find(model, name) for name in ("resized", "logits", "offsets")}
    head = openvino.opset13.parameter([-1, 3, *size], openvino.Type.f32, "resized")
    for target in inside["resized"].get_target_inputs():
        target.replace_source_output(head.output(0))
    ends = [openvino.opset13.result(inside[name]) for name in ("logits", "offsets")]
    network = openvino.Model(ends, [head], "network")  # pyright: ignore[reportGeneralTypeIssues]
    seen = [np.asarray(resize_image(image, size)) for image in images]
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


LEAST_AGREEMENT = 0.8
"""Below this an INT8 file is not written; a network whose numbers
do not fit 8 bits, or wrong calibration images, end far below."""
FEWEST = 3
"""Detections per image that serve as objects at least, on average; thresholds are lowered until there are as many."""


def measure_agreement(run: Run, reference: Run, detector: Detector, images: Iterable[Image.Image]) -> dict[str, Any]:
    """Return how well a file finds what its float twin finds.

    The detections that the float file reports serve as objects. The agreement is the average precision at IoU .5 of the
    file's detections, per class, weighted by objects.

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
        pixels = np.asarray(load_image(sample))
        eager.append(detector.predict(pixels, detector.config.post.score_threshold))
        file.append(_detect(run, detector, pixels))
    ours, its = (_figures(evaluate(each, data, detector.names)) for each in (eager, file))
    return {"labelled_images": len(data), **{f"{k}_eager": v for k, v in ours.items()}, **its}


def _detect(run: Run, detector: Detector, pixels: NDArray[np.uint8]) -> Detections:
    """Return what a file finds in one image, down to the config's lowest score."""
    post = detector.config.post
    limits = {
        "score_threshold": np.array(post.score_threshold, np.float32),
        "nms_threshold": np.array(post.nms_threshold, np.float32),
        "max_detections": np.array(post.max_detections, np.int64),
    }
    answer = run({"images": pixels[None], **limits})
    return Detections(answer["boxes"][0], answer["scores"][0], answer["labels"][0], detector.names)


def _reported(found: list[Detections], thresholds: NDArray[np.float64]) -> list[Sample]:
    """Return the detections from their class's threshold on as labelled images; from a lower one if those are few."""
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


def _figures(figures: Metrics) -> dict[str, float | None]:
    return {name: figures["coco"][name] for name in ("AP", "AP50")}
