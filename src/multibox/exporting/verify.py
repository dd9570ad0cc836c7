"""Proof that an exported file is the same detector: each stage compared with PyTorch, in the file's own runtime.

The resize is compared with Pillow's, the network with PyTorch's on the graph's own resized images, decoding and
suppression with PyTorch's on the graph's own logits. So an error names the stage where the difference arises.
"""
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from multibox.config import Config
from multibox.data.images import resize_image
from multibox.data.sprites import render
from multibox.errors import MultiboxError
from multibox.exporting.graph import ULTRALYTICS_ROWS, Dialect
from multibox.inference.detector import Detector
from multibox.inference.engines import limits, openvino_core
from multibox.inference.load import Pixels, detections_of
from multibox.models.anchor_layout import anchors_for
from multibox.ops.coding import decode
from multibox.postprocess import detect
from multibox.privacy import import_onnxruntime
from multibox.structures import Detections, Size
from multibox.tensors import HeadOutputs

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], Arrays]
STAGES = ("resized", "logits", "offsets")
"""Values inside the graph that can be read."""

GREY_LEVELS = 1.001
"""Largest difference of the resize."""
RAW, RAW_HALF = 1e-3, 5e-2
"""Largest difference of logits and offsets (as a share of those above 1); with weights in float16."""
SCORE, BOX = 1e-4, 1e-3
"""Largest difference of a pair's scores, and of its corners as a share of the image's longer side."""
UNMATCHED = 0.01
"""Share of detections that may differ: an overlap or a score may equal a threshold to the last bit."""
AT_ONCE = 256
"""Detections compared with every anchor at once."""
WANTED = 50
"""Detections per image to compare; the score threshold is lowered until there are about as many."""


class VerificationError(MultiboxError):
    """The exported file does not compute what the detector computes."""


class Pairs(NamedTuple):
    """How the detections of two lists pair up."""

    matched: int
    swapped: int
    """Detections of the second list that the first replaces by others of equal rank. Near-equal scores changed places,
    and the box that came first suppressed its neighbour or took the last place."""
    unexplained: int
    """Detections that are neither, in the list that has more of them."""
    score: float
    """Largest difference of a pair's scores."""
    box: float
    """Largest difference of a pair's corners, as a share of the image's longer side."""


class Cuts(NamedTuple):
    """Where post-processing stops counting; among scores that tie there, any choice is right."""

    candidates: NDArray[np.floating]
    """[classes]; the lowest score that enters suppression, minus infinity if all do."""
    per_class: int
    """Most detections per class; 0 for no limit."""
    total: int
    """Most detections."""


class Report(NamedTuple):
    """Largest differences over all images; those of stages that a dialect does not have are 0."""

    images: int = 0
    resize: float = 0.0
    """Grey levels."""
    logits: float = 0.0
    """Share of max(1, value), as for the offsets."""
    offsets: float = 0.0
    detections: int = 0
    """Detections of PyTorch."""
    matched: int = 0
    swapped: int = 0
    """Detections of PyTorch in whose place the file has others of equal rank (`Pairs.swapped`)."""
    score: float = 0.0
    """Largest difference of a pair's scores."""
    box: float = 0.0
    """Largest difference of a pair's corners, as a share of the image's longer side."""


def run_onnx(data: bytes, stages: bool = False) -> Run:
    """Open an ONNX model in onnxruntime; with `stages` the function also returns `STAGES`."""
    import onnx

    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()

    def open_session(data: bytes) -> Run:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
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
    """Compile an openvino.Model in float32; with `stages` the function also returns `STAGES`."""

    def compile_model(model: Any) -> Run:
        compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        names = [_name(output.get_names()) for output in compiled.outputs]
        inputs = {name for port in compiled.inputs for name in port.get_names()}

        def run(feeds: Mapping[str, NDArray[Any]]) -> Arrays:
            outputs = compiled({name: value for name, value in feeds.items() if name in inputs})
            return {name: np.array(value) for name, value in zip(names, outputs.values(), strict=True)}

        return run

    whole = compile_model(model)
    if not stages:
        return whole
    known = {name for output in model.outputs for name in output.get_names()}
    opened = model.clone()
    opened.add_outputs([name for name in STAGES if name not in known])
    return _both(compile_model(opened), whole)


def _name(names: set[str]) -> str:
    """Return a stage's name if a value has one, else the first."""
    return next((name for name in STAGES if name in names), None) or min(names)


def _both(opened: Run, whole: Run) -> Run:
    """Return the outputs of the file itself, and the stages of its opened twin.

    A runtime plans its memory by the outputs it must keep: a fault there may vanish when a stage becomes an output
    (seen with OpenVINO 2026.4 and the operator If).
    """
    return lambda feeds: opened(feeds) | whole(feeds)


def sample_images() -> list[Pixels]:
    """Return synthetic images to verify on: sprites, and noise of odd sizes.

    None is one pixel high or wide: such an image gives whole rows of equal scores, whose order means nothing.
    """
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((9, 37), (61, 12), (233, 317))]
    return [render(index, seed=5, classes=3, objects=(2, 4), size=192)[0] for index in range(2)] + noise


@torch.inference_mode()
def verify(run: Run, detector: Detector, dialect: Dialect, images: Sequence[Pixels], half: bool = False) -> Report:
    """Compare a file with PyTorch; each image stands in one batch with itself turned by 180 degrees.

    Args:
        run: the file, with `STAGES` among its outputs except in the dialect jetson.
        detector: what was exported.
        dialect: which outputs the file has.
        images: uint8 RGB [h, w, 3], of any sizes.
        half: the file's weights are float16.

    Raises:
        VerificationError: they differ; the message names the stage.
    """
    check = _check_jetson if dialect == "jetson" else _check
    raw = RAW_HALF if half else RAW
    # A copy: `Detector` moves the network to its device
    eager = Detector(copy.deepcopy(detector.model), detector.config, detector.names, "cpu")
    reports = [check(run, eager, dialect, np.stack([each, each[::-1, ::-1]]), raw) for each in images]
    counted = {"images", "detections", "matched", "swapped"}
    columns = zip(*reports, strict=True)
    return Report(*(sum(c) if f in counted else max(c) for f, c in zip(Report._fields, columns, strict=True)))


def _check(run: Run, detector: Detector, dialect: Dialect, batch: Pixels, raw: float) -> Report:
    config, size = detector.config, Size(*batch.shape[1:3])
    resized = _resized(batch, detector)
    feeds: dict[str, NDArray[Any]] = {"images": batch}
    if dialect == "plain":
        config = _lowered(detector.model(torch.from_numpy(resized)), config)
        post = config.post
        feeds |= limits(post.score_threshold, post.nms_threshold, post.max_detections)
    if dialect == "ultralytics":
        config = config.updated({"post.max_detections": ULTRALYTICS_ROWS})
    got = run(feeds)
    levels = largest_difference("resize", got["resized"], resized, GREY_LEVELS, relative=False)
    outputs = detector.model(torch.from_numpy(got["resized"]))
    logits = largest_difference("network (logits)", got["logits"], outputs.logits.numpy(), raw)
    offsets = largest_difference("network (offsets)", got["offsets"], outputs.offsets.numpy(), raw)
    report = Report(len(batch), levels, logits, offsets)
    if dialect == "raw":
        return report
    shown = HeadOutputs(torch.from_numpy(got["logits"]), torch.from_numpy(got["offsets"]), outputs.feature_shapes)
    return compare_detections(_detections(got, detector.names), shown, config, size, report)


def _check_jetson(run: Run, detector: Detector, dialect: Dialect, batch: Pixels, raw: float) -> Report:
    resized, config = _resized(batch, detector), detector.config
    got = run({"input_0": resized / np.float32(127.5) - np.float32(1)})
    outputs = detector.model(torch.from_numpy(resized))
    scores, boxes = _scores(outputs, config), _boxes(outputs, config)
    score = largest_difference("network (scores)", got["scores"][..., 1:], scores.numpy(), raw)
    box = largest_difference("network or decode (boxes)", got["boxes"], boxes.numpy(), raw)
    return Report(len(batch), score=score, box=box)


def _resized(batch: Pixels, detector: Detector) -> NDArray[np.float32]:
    size = detector.config.model.input_size
    pixels = np.stack([np.asarray(resize_image(Image.fromarray(each), size)) for each in batch])
    return pixels.transpose(0, 3, 1, 2).astype(np.float32)


def _lowered(outputs: HeadOutputs, config: Config) -> Config:
    """Return the config with a score threshold low enough that there are detections to compare."""
    best = _scores(outputs, config).flatten(1)
    low = float(best.topk(min(WANTED, best.shape[1])).values[:, -1].min())
    return config.updated({"post.score_threshold": float(np.float32(min(config.post.score_threshold, low)))})


def _scores(outputs: HeadOutputs, config: Config) -> Tensor:
    """Return the scores [b, a, c], without background."""
    return outputs.logits.softmax(2)[..., 1:] if config.model.score == "softmax" else outputs.logits.sigmoid()


def _boxes(outputs: HeadOutputs, config: Config) -> Tensor:
    """Return the boxes [b, a, 4], clipped to the image, 0 to 1."""
    return decode(outputs.offsets, anchors_for(outputs, config), config.model.variances, config.model.coder).clamp(0, 1)


def _detections(outputs: Arrays, names: tuple[str, ...]) -> list[Detections]:
    """Return the detections in the outputs of dialect plain or ultralytics."""
    if "output0" in outputs:
        rows = outputs["output0"]
        outputs = {"boxes": rows[..., :4], "scores": rows[..., 4], "labels": rows[..., 5]}
        outputs["counts"] = (rows[..., 2] > rows[..., 0]).sum(1)
    return detections_of(outputs, names)


def largest_difference(stage: str, got: NDArray[np.floating], want: NDArray[np.floating], limit: float,
                       relative: bool = True) -> float:  # fmt: skip
    """Return the largest difference, as a share of max(1, |want|) if `relative`.

    Raises:
        VerificationError: it is above `limit`, not a number, or the shapes differ; the sentence names `stage`.
    """
    if got.shape != want.shape:
        raise VerificationError(f"{stage} differs: shape {list(got.shape)}, expected {list(want.shape)}")
    difference = np.abs(got.astype(np.float64) - want) / (np.maximum(1, np.abs(want)) if relative else 1)
    largest = float(difference.max(initial=0))
    if not largest <= limit:
        raise VerificationError(f"{stage} differs by up to {largest:.3g}, expected at most {limit:g}")
    return largest


def compare_detections(
    found: list[Detections], outputs: HeadOutputs, config: Config, size: Size, report: Report
) -> Report:
    """Compare a file's detections with PyTorch's from the same outputs, and return the report with the counts added.

    Scores may tie where post-processing stops counting, as in a network whose scores are all 1. Then any choice among
    the tied is right.

    Args:
        found: per image, all of one size.
        outputs: logits and offsets as the file computed them.
        config: the detector's, with the limits that the file was given.
        size: of the images.
        report: differences of the earlier stages.

    Raises:
        VerificationError: boxes that PyTorch does not decode, or other boxes than suppression keeps.
    """
    wanted = detect(outputs, anchors_for(outputs, config), [size] * len(found), config, found[0].names)
    scores, boxes = _candidates(outputs, config, size)
    cuts = [_cuts(each, config) for each in scores]
    pairs = [match(a, b, max(size), cut) for a, b, cut in zip(found, wanted, cuts, strict=True)]
    report = report._replace(
        detections=sum(map(len, wanted)),
        matched=sum(pair.matched for pair in pairs),
        swapped=sum(pair.swapped for pair in pairs),
        score=max(pair.score for pair in pairs),
        box=max(pair.box for pair in pairs),
    )
    total = sum(map(len, found))
    known = sum(_known(*each, max(size)) for each in zip(found, scores, boxes, strict=True))
    if known < total * (1 - UNMATCHED) - 1:
        raise VerificationError(f"decode differs: {total - known} of {total} detections are none of eager's boxes")
    if sum(pair.unexplained for pair in pairs) > UNMATCHED * report.detections + 1:
        raise VerificationError(
            f"NMS differs: {report.matched + report.swapped} of eager's {report.detections} detections are among the "
            f"file's {total}, or give way to others of equal score"
        )
    return report


def _candidates(outputs: HeadOutputs, config: Config, size: Size) -> tuple[Tensor, Tensor]:
    """Return PyTorch's scores [b, a, c] and boxes [b, a, 4] in pixels before anything is cut off by rank."""
    scores, boxes, post = _scores(outputs, config), _boxes(outputs, config), config.post
    if not post.multi_label:
        scores = scores.where(scores >= scores.amax(2, keepdim=True), 0.0)
    if post.min_size:
        small = (boxes[..., 2:] - boxes[..., :2]).amin(2, keepdim=True) <= post.min_size
        scores = scores.where(~small, 0.0)
    return scores, boxes * torch.tensor([size.width, size.height] * 2)


def _cuts(scores: Tensor, config: Config) -> Cuts:
    """Return where post-processing stops counting, for the scores [a, c] of one image."""
    post, (anchors, classes) = config.post, scores.shape
    lowest = np.full(classes, -np.inf)
    if anchors > post.pre_nms_topk:
        lowest = scores.topk(post.pre_nms_topk, dim=0).values[-1].numpy()
    per_class = 0 if post.max_per_class == "none" else post.max_per_class
    return Cuts(lowest, per_class, post.max_detections)


def _known(found: Detections, scores: Tensor, boxes: Tensor, side: float) -> int:
    """Count the detections with the score [a, c] and the box [a, 4] of one of PyTorch's anchors."""
    known = 0
    for start in range(0, len(found), AT_ONCE):
        some = found[slice(start, start + AT_ONCE)]
        alike = (scores[:, some.labels].T - torch.from_numpy(some.scores)[:, None]).abs() <= SCORE
        row, anchor = alike.nonzero(as_tuple=True)
        near = (boxes[anchor] - torch.from_numpy(some.boxes)[row]).abs().amax(1) <= BOX * side
        known += len(row[near].unique())
    return known


def match(found: Detections, wanted: Detections, side: float, cuts: Cuts | None = None) -> Pairs:
    """Pair detections of one label whose scores and boxes agree, each at most once, in any order.

    Args:
        found: the file's, for one image.
        wanted: PyTorch's.
        side: the image's longer side in pixels.
        cuts: where both stop counting; None if nothing is cut.
    """
    cuts = cuts or Cuts(np.full(len(wanted.names), -np.inf), 0, 0)
    first, second, score, box = _pairs(found, wanted, side)
    lost, extra = wanted[_others(wanted, first)], found[_others(found, second)]
    swapped = _explained(lost, extra, _floor(found, cuts))
    added = _explained(extra, lost, _floor(wanted, cuts))
    unexplained = max(len(lost) - swapped, len(extra) - added)
    return Pairs(len(first), swapped, unexplained, score, box)


def _pairs(
    found: Detections, wanted: Detections, side: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], float, float]:
    """Return the rows of `wanted` and `found` that pair up, and the largest differences of scores and boxes."""
    if not len(found) or not len(wanted):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0, 0.0
    score = np.abs(wanted.scores[:, None] - found.scores)
    box = np.abs(wanted.boxes[:, None] - found.boxes).max(2) / side
    distance = score / SCORE + box / BOX
    apart = (wanted.labels[:, None] != found.labels) | (score > SCORE) | (box > BOX)
    distance[apart] = np.inf
    first, second = np.arange(len(wanted)), distance.argmin(1)
    # Mutual choice; the order decides between equal boxes with equal scores
    both = np.isfinite(distance[first, second]) & (distance.argmin(0)[second] == first)
    first, second = first[both], second[both]
    return first, second, float(score[first, second].max(initial=0)), float(box[first, second].max(initial=0))


def _others(detections: Detections, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    rest = np.ones(len(detections), np.bool_)
    rest[rows] = False
    return rest


def _floor(kept: Detections, cuts: Cuts) -> NDArray[np.float64]:
    """Return for each class the score at which `kept` may have been cut, [classes]; minus infinity if it was not."""
    floor = cuts.candidates.astype(np.float64)
    if cuts.per_class:
        lowest = np.full(len(floor), np.inf)
        np.minimum.at(lowest, kept.labels, kept.scores)
        full = np.bincount(kept.labels, minlength=len(floor)) >= cuts.per_class
        floor = np.maximum(floor, np.where(full, lowest, -np.inf))
    return np.maximum(floor, kept.scores.min()) if 0 < cuts.total <= len(kept) else floor


def _explained(missing: Detections, instead: Detections, floor: NDArray[np.float64]) -> int:
    """Count the missing detections that are cut at `floor`, or suppressed by one that only the other list has."""
    if not len(missing):
        return 0
    cut = missing.scores <= floor[missing.labels] + SCORE
    low = np.maximum(missing.boxes[:, None, :2], instead.boxes[None, :, :2])
    high = np.minimum(missing.boxes[:, None, 2:], instead.boxes[None, :, 2:])
    meet = (missing.labels[:, None] == instead.labels) & (high > low).all(2)
    suppressed = (meet & (instead.scores >= missing.scores[:, None] - SCORE)).any(1)
    return int((cut | suppressed).sum())
