"""From logits and offsets to boxes in pixels, as graph: the counterpart of `postprocess.py` and `inference/detect.py`.

Anchors are cut before they cost anything: only those that may score above the threshold get scores and boxes. There
are few operators on purpose: each costs a runtime some ten microseconds, however small its tensors.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from multibox.config import Config, ModelConfig
from multibox.ops.coding import BoxCode, Variances

FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT64


class Limits(NamedTuple):
    """Scalars that a caller of the graph may change."""

    score_threshold: ir.Value
    nms_threshold: ir.Value
    max_detections: ir.Value


class Found(NamedTuple):
    """What the graph answers, best first."""

    boxes: ir.Value
    """float [b, n, 4], xyxy in pixels; padding is 0."""
    scores: ir.Value
    """float [b, n]; padding is 0."""
    labels: ir.Value
    """int64 [b, n]; 0-based without background, -1 pads."""
    counts: ir.Value
    """int64 [b]"""


class _Candidates(NamedTuple):
    """The anchors of each picture that are worth a look, `width` of them."""

    scores: ir.Value
    """[b, c, width]"""
    boxes: ir.Value
    """[b, width, 4], 0 to 1 of the input."""
    width: ir.Value
    """[1]"""


def class_scores(op: Any, logits: ir.Value, model: ModelConfig) -> ir.Value:
    """Add the scores [b, a, c] of logits [b, a, k], without background."""
    if model.score == "sigmoid":
        return op.Sigmoid(logits)
    return op.Slice(op.Softmax(logits, axis=-1), [1], [np.iinfo(np.int64).max], [2])


def decode(op: Any, offsets: ir.Value, table: ir.Value, code: BoxCode) -> ir.Value:
    """Add the boxes xyxy [..., 4] of offsets [..., 4] and the rows of `decoding_table` [..., 8] beside them."""
    scale, base = op.Split(table, num_outputs=2, axis=-1, _outputs=2)
    if code != "center_size":
        return op.Add(op.Mul(offsets, scale), base)
    moved, grown = op.Split(offsets, num_outputs=2, axis=-1, _outputs=2)
    by, exponent = op.Split(scale, num_outputs=2, axis=-1, _outputs=2)
    center, half = op.Split(base, num_outputs=2, axis=-1, _outputs=2)
    center = op.Add(op.Mul(moved, by), center)
    half = op.Mul(op.Exp(op.Mul(grown, exponent)), half)
    return op.Concat(op.Sub(center, half), op.Add(center, half), axis=-1)


def decoding_table(anchors_xyxy: np.ndarray, variances: Variances, code: BoxCode) -> np.ndarray:
    """Return float32 [a, 8]: what offsets are multiplied by, and what they are added to or grow from."""
    low, high = anchors_xyxy[:, :2], anchors_xyxy[:, 2:]
    size = np.maximum(high - low, np.float32(1e-8))
    first, second = np.array(variances, np.float32).reshape(2, 2)
    if code == "center_size":
        columns = [size * first, np.broadcast_to(second, size.shape), (low + high) * np.float32(0.5), size * 0.5]
    else:
        unit = size if code == "corner_size" else np.ones_like(size)
        columns = [unit * first, unit * second, low, high]
    return np.concatenate(columns, axis=1).astype(np.float32)


def find(op: Any, outputs: tuple[ir.Value, ir.Value], scale: ir.Value, limits: Limits, table: np.ndarray,
         config: Config, classes: int) -> Found:  # fmt: skip
    """Add scoring, selection, decoding, suppression and packing.

    Args:
        op: where nodes go.
        outputs: logits [b, a, k] and offsets [b, a, 4].
        scale: float [4]; width, height, width, height of the pictures in pixels.
        limits: thresholds and number of detections.
        table: `decoding_table` of the anchors.
        config: how to score, decode, clip and select.
        classes: c, without background.
    """
    candidates = _candidates(op, outputs, limits.score_threshold, table, config, classes)
    scores = candidates.scores
    if not config.post.multi_label and classes > 1:
        best = op.ArgMax(scores, axis=1, keepdims=1)
        own = op.Equal(best, _constant(op, np.arange(classes).reshape(1, classes, 1)))
        scores = op.Where(own, scores, -1.0)
    if config.post.min_size:
        scores = op.Where(op.Unsqueeze(_small(op, candidates.boxes, config), [1]), -1.0, scores)
    scores = _best_of_each_class(op, scores, candidates.width, config.post.pre_nms_topk)
    candidates = candidates._replace(scores=scores)
    kept = _suppress(op, candidates, limits, config)
    return _pack(op, candidates, kept, scale, limits, (classes, config.post.clip == "after_nms"))


def _likely(op: Any, logits: ir.Value, threshold: ir.Value, model: ModelConfig) -> ir.Value:
    """Add which anchors [b, a] may have a score above the threshold, without computing scores.

    exp(class - background) is above any class's share of the softmax; so one pass over the logits spares most anchors
    exponentials, sorting and decoding.
    """
    if model.score == "sigmoid":
        best = op.ReduceMax(logits, [2], keepdims=0)
        least = op.Log(op.Div(threshold, op.Sub(1.0, threshold)))
    else:
        best = op.ReduceMax(op.Slice(logits, [1], [np.iinfo(np.int64).max], [2]), [2], keepdims=0)
        best = op.Sub(best, op.Gather(logits, 0, axis=2))
        least = op.Log(threshold)
    # A little lower, for rounding must not lose anybody
    return op.Greater(best, op.Sub(least, 1e-3))


def _candidates(
    op: Any, outputs: tuple[ir.Value, ir.Value], threshold: ir.Value, table: np.ndarray, config: Config, classes: int
) -> _Candidates:
    """Add scores and boxes of as many anchors of each picture as the fullest has that may exceed the threshold."""
    logits, offsets = outputs
    likely = op.Cast(_likely(op, logits, threshold, config.model), to=FLOAT)
    fullest = op.ReduceMax(op.ReduceSum(likely, [1], keepdims=0), keepdims=0)
    # At least one, for runtimes that do not like empty tensors
    width = op.Reshape(op.Cast(op.Max(fullest, 1.0), to=INT), [1])
    # Ones before zeros, and by ONNX's rule for equals in order of the anchors; OpenVINO leaves that order open
    _, anchor = op.TopK(likely, width, axis=1, largest=1, sorted=1, _outputs=2)
    row = op.Add(anchor, op.Mul(_pictures(op, logits), len(table)))
    some = op.Gather(op.Reshape(logits, [-1, classes + (config.model.score == "softmax")]), row, axis=0)
    near = op.Gather(op.Reshape(offsets, [-1, 4]), row, axis=0)
    scores = op.Transpose(class_scores(op, some, config.model), perm=[0, 2, 1])
    return _Candidates(scores, _decode(op, near, op.Gather(_constant(op, table), anchor, axis=0), config), width)


def _pictures(op: Any, batched: ir.Value) -> ir.Value:
    """Add the numbers [b, 1] of the pictures."""
    return op.Unsqueeze(op.Range(0, op.Squeeze(op.Shape(batched, start=0, end=1), [0]), 1), [1])


def _best_of_each_class(op: Any, scores: ir.Value, width: ir.Value, most: int) -> ir.Value:
    """Set scores [b, c, width] outside the best `most` of their class to -1; no sorting where there are not so many."""
    crowded = op.Greater(width, [most])
    top, _ = op.TopK(scores, op.Where(crowded, [most], [1]), axis=2, largest=1, sorted=1, _outputs=2)
    floor = op.Where(crowded, op.Slice(top, [-1], [np.iinfo(np.int64).max], [2]), -1.0)
    return op.Where(op.GreaterOrEqual(scores, floor), scores, -1.0)


def _decode(op: Any, offsets: ir.Value, table: ir.Value, config: Config) -> ir.Value:
    """Add the boxes that suppression compares."""
    boxes = decode(op, offsets, table, config.model.coder)
    if config.model.coder != "center_size":
        # Swapped corners are no box to us, but NonMaxSuppression would swap them back
        low, high = op.Split(boxes, num_outputs=2, axis=-1, _outputs=2)
        boxes = op.Concat(low, op.Max(low, high), axis=-1)
    return op.Clip(boxes, 0.0, 1.0) if config.post.clip == "before_nms" else boxes


def _small(op: Any, boxes: ir.Value, config: Config) -> ir.Value:
    """Add which boxes [b, n] are too narrow or too low."""
    return op.LessOrEqual(_extent(op, boxes), config.post.min_size)


def _extent(op: Any, boxes: ir.Value) -> ir.Value:
    """Add the shorter side [...] of boxes [..., 4]."""
    low, high = op.Split(boxes, num_outputs=2, axis=-1, _outputs=2)
    return op.ReduceMin(op.Sub(high, low), [-1], keepdims=0)


def _suppress(op: Any, candidates: _Candidates, limits: Limits, config: Config) -> ir.Value:
    """Add NMS in every picture and class; return picture, label and place of what stays [n, 3]."""
    overlap = limits.nms_threshold
    if config.post.nms_inclusive:
        # The next smaller float32: above it is what reaches the threshold
        overlap = op.Mul(overlap, 1 - 2.0**-24)
    return op.NonMaxSuppression(
        candidates.boxes,
        candidates.scores,
        # Not `max_detections`, for what clipping leaves no area takes nobody's place
        [config.post.max_per_class or config.post.pre_nms_topk],
        op.Reshape(overlap, [1]),
        op.Reshape(limits.score_threshold, [1]),
    )


def _pack(op: Any, candidates: _Candidates, kept: ir.Value, scale: ir.Value, limits: Limits,
          how: tuple[int, bool]) -> Found:  # fmt: skip
    """Add each picture's best detections, in pixels, without boxes that clipping left no area.

    `how` is the number of classes, and whether boxes are clipped here.
    """
    classes, clip = how
    # A row of no picture, for runtimes that do not like empty tensors
    kept = op.Concat(kept, _constant(op, np.array([[-1, 0, 0]])), axis=0)
    picture, label, place = (op.Gather(kept, column, axis=1) for column in range(3))
    first = op.Max(picture, 0)
    boxes = op.Gather(op.Reshape(candidates.boxes, [-1, 4]), op.Add(op.Mul(first, candidates.width), place), axis=0)
    boxes = op.Clip(boxes, 0.0, 1.0) if clip else boxes
    row = op.Add(op.Mul(op.Add(op.Mul(first, classes), label), candidates.width), place)
    scores = op.Gather(op.Reshape(candidates.scores, [-1]), row, axis=0)
    own = op.Equal(op.Unsqueeze(picture, [0]), _pictures(op, candidates.boxes))
    own = op.And(own, op.Greater(_extent(op, boxes), 0.0))
    counts = op.Min(op.ReduceSum(op.Cast(own, to=INT), [1], keepdims=0), limits.max_detections)
    longest = op.Reshape(op.ReduceMax(counts, keepdims=0), [1])
    table = op.Where(own, scores, -1.0)
    scores, place = op.TopK(table, op.Max(longest, 1), axis=1, largest=1, sorted=1, _outputs=2)
    scores, place = (op.Slice(values, [0], longest, [1]) for values in (scores, place))
    real = op.Greater(scores, -0.5)
    boxes = op.Where(op.Unsqueeze(real, [2]), op.Mul(op.Gather(boxes, place, axis=0), scale), 0.0)
    labels = op.Where(real, op.Gather(label, place, axis=0), -1)
    return Found(boxes, op.Where(real, scores, 0.0), labels, counts)


def _constant(op: Any, values: np.ndarray) -> ir.Value:
    return op.Constant(value=ir.tensor(values))
