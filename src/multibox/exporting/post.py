"""From logits and offsets to boxes in pixels, as graph: the counterpart of `postprocess.py` and `inference/detect.py`.

Candidates are cut before they cost anything: the scores above the threshold of the fullest class say how many rows a
class needs (at most `pre_nms_topk`), and only those are decoded and compared.
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


class _Some(NamedTuple):
    """The anchors worth a look, `width` a picture."""

    logits: ir.Value
    """[b, width, k]"""
    row: ir.Value
    """[b * width], the row among all pictures' anchors."""
    real: ir.Value
    """[b, width]; False pads."""
    width: ir.Value
    """[1]"""


class _Candidates(NamedTuple):
    """The best `width` anchors of every picture and class."""

    scores: ir.Value
    """[b * c, 1, width]"""
    boxes: ir.Value
    """[b * c, width, 4], 0 to 1 of the input."""
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
    logits, offsets = outputs
    possible = _possible(op, logits, limits.score_threshold, config.model)
    if config.post.min_size:
        possible = op.And(possible, op.Not(_small(op, offsets, table, config)))
    some = _gather_possible(op, possible, logits, (len(table), classes + (config.model.score == "softmax")))
    scores = op.Transpose(class_scores(op, some.logits, config.model), perm=[0, 2, 1])
    if not config.post.multi_label and classes > 1:
        best = op.ArgMax(scores, axis=1, keepdims=1)
        own = op.Equal(best, _constant(op, np.arange(classes).reshape(1, classes, 1)))
        scores = op.Where(own, scores, 0.0)
    scores = op.Where(op.Unsqueeze(some.real, [1]), scores, -1.0)
    candidates = _candidates(op, scores, some, offsets, limits, table, config)
    row, picture, label = _suppress(op, candidates, limits, config, classes)
    shape = op.Shape(logits, start=0, end=1)
    return _pack(op, candidates, (row, picture, label), (shape, scale), limits, config)


def _possible(op: Any, logits: ir.Value, threshold: ir.Value, model: ModelConfig) -> ir.Value:
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


def _gather_possible(op: Any, possible: ir.Value, logits: ir.Value, shape: tuple[int, int]) -> _Some:
    """Add the rows of possible anchors, in order, each picture's padded to those of the fullest; `shape` is (a, k)."""
    anchors, logits_each = shape
    counts = op.ReduceSum(op.Cast(possible, to=INT), [1], keepdims=0)
    # At least one, for runtimes that do not like empty tensors
    width = op.Reshape(op.Max(op.ReduceMax(counts, keepdims=0), 1), [1])
    picture, anchor = op.Split(op.NonZero(possible), num_outputs=2, axis=0, _outputs=2)
    starts = op.Sub(op.CumSum(counts, 0), counts)
    picture, anchor = op.Squeeze(picture, [0]), op.Squeeze(anchor, [0])
    number = op.Range(0, op.Squeeze(op.Shape(anchor), [0]), 1)
    place = op.Sub(number, op.Gather(starts, picture, axis=0))
    blank = op.ConstantOfShape(op.Concat(op.Shape(counts), width, axis=0), value=ir.tensor(np.zeros(1, np.int64)))
    where = op.Concat(op.Unsqueeze(picture, [1]), op.Unsqueeze(place, [1]), axis=1)
    index = op.ScatterND(blank, where, anchor)
    pictures = op.Unsqueeze(op.Range(0, op.Squeeze(op.Shape(counts), [0]), 1), [1])
    rows = op.Reshape(op.Add(index, op.Mul(pictures, anchors)), [-1])
    answers = op.Gather(op.Reshape(logits, [-1, logits_each]), rows, axis=0)
    answers = op.Reshape(answers, op.Concat(op.Shape(counts), width, [logits_each], axis=0))
    real = op.Less(op.Unsqueeze(op.Range(0, op.Squeeze(width, [0]), 1), [0]), op.Unsqueeze(counts, [1]))
    return _Some(answers, rows, real, width)


def _candidates(
    op: Any,
    scores: ir.Value,
    some: _Some,
    offsets: ir.Value,
    limits: Limits,
    table: np.ndarray,
    config: Config,
) -> _Candidates:
    """Add the best rows of each picture and class; as many as the fullest class has above the threshold."""
    classes = op.Shape(scores, start=1, end=2)
    # One axis of pictures and classes from here on: OpenVINO wants to know the last axis of boxes
    scores = op.Reshape(scores, op.Concat([-1], some.width, axis=0))
    above = op.Cast(op.Greater(scores, limits.score_threshold), to=ir.DataType.INT32)
    fullest = op.Cast(op.ReduceMax(op.ReduceSum(above, [1], keepdims=0), keepdims=0), to=INT)
    width = op.Reshape(op.Max(op.Min(fullest, config.post.pre_nms_topk), 1), [1])
    top, place = op.TopK(scores, width, axis=1, largest=1, sorted=1, _outputs=2)
    picture = op.Div(op.Range(0, op.Squeeze(op.Shape(scores, start=0, end=1), [0]), 1), classes)
    row = op.Gather(some.row, op.Add(place, op.Unsqueeze(op.Mul(picture, some.width), [1])), axis=0)
    near = op.Gather(op.Reshape(offsets, [-1, 4]), row, axis=0)
    anchor = op.Sub(row, op.Unsqueeze(op.Mul(picture, len(table)), [1]))
    boxes = _decode(op, near, op.Gather(_constant(op, table), anchor, axis=0), config)
    return _Candidates(op.Unsqueeze(top, [1]), boxes, width)


def _decode(op: Any, offsets: ir.Value, table: ir.Value, config: Config) -> ir.Value:
    """Add the boxes that suppression compares."""
    boxes = decode(op, offsets, table, config.model.coder)
    if config.model.coder != "center_size":
        # Swapped corners are no box to us, but NonMaxSuppression would swap them back
        low, high = op.Split(boxes, num_outputs=2, axis=-1, _outputs=2)
        boxes = op.Concat(low, op.Max(low, high), axis=-1)
    return op.Clip(boxes, 0.0, 1.0) if config.post.clip == "before_nms" else boxes


def _small(op: Any, offsets: ir.Value, table: np.ndarray, config: Config) -> ir.Value:
    """Add which boxes [b, a] are too narrow or too low."""
    low, high = op.Split(_decode(op, offsets, _constant(op, table), config), num_outputs=2, axis=2, _outputs=2)
    least = op.ReduceMin(op.Sub(high, low), [2], keepdims=0)
    return op.LessOrEqual(least, config.post.min_size)


def _suppress(
    op: Any, candidates: _Candidates, limits: Limits, config: Config, classes: int
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Add NMS in every picture and class; return row among all candidates, picture and label of what stays [n]."""
    most, overlap = limits.max_detections, limits.nms_threshold
    if config.post.max_per_class:
        most = op.Min(most, config.post.max_per_class)
    if config.post.nms_inclusive:
        # The next smaller float32: above it is what reaches the threshold
        overlap = op.Mul(overlap, 1 - 2.0**-24)
    kept = op.NonMaxSuppression(
        candidates.boxes,
        candidates.scores,
        op.Reshape(most, [1]),
        op.Reshape(overlap, [1]),
        op.Reshape(limits.score_threshold, [1]),
    )
    group, place = op.Gather(kept, 0, axis=1), op.Gather(kept, 2, axis=1)
    row = op.Add(op.Mul(group, candidates.width), place)
    picture = op.Div(group, classes)
    return row, picture, op.Sub(group, op.Mul(picture, classes))


def _pack(op: Any, candidates: _Candidates, kept: tuple[ir.Value, ir.Value, ir.Value],
          pictures: tuple[ir.Value, ir.Value], limits: Limits, config: Config) -> Found:  # fmt: skip
    """Add each picture's best detections, in pixels, without boxes that clipping left no area."""
    row, picture, label = (op.Concat(values, [fill], axis=0) for values, fill in zip(kept, (0, -1, -1), strict=True))
    batch, scale = pictures
    every = op.Unsqueeze(op.Range(0, op.Squeeze(batch, [0]), 1), [1])
    own = op.Equal(op.Unsqueeze(picture, [0]), every)
    scores = op.Gather(op.Reshape(candidates.scores, [-1]), row, axis=0)
    table = op.Where(own, op.Unsqueeze(scores, [0]), -1.0)
    total = op.ReduceSum(op.Cast(own, to=INT), [1], keepdims=0)
    most = op.Max(op.Min(op.ReduceMax(total, keepdims=0), limits.max_detections), 1)
    scores, place = op.TopK(table, op.Reshape(most, [1]), axis=1, largest=1, sorted=1, _outputs=2)
    boxes = op.Gather(op.Reshape(candidates.boxes, [-1, 4]), op.Gather(row, place, axis=0), axis=0)
    if config.post.clip == "after_nms":
        boxes = op.Clip(boxes, 0.0, 1.0)
    boxes = op.Mul(boxes, scale)
    low, high = op.Split(boxes, num_outputs=2, axis=2, _outputs=2)
    extent = op.ReduceMin(op.Sub(high, low), [2], keepdims=0)
    real = op.And(op.Greater(extent, 0.0), op.Greater(scores, -0.5))
    return _close_ranks(op, op.Where(real, scores, -1.0), boxes, op.Gather(label, place, axis=0))


def _close_ranks(op: Any, scores: ir.Value, boxes: ir.Value, labels: ir.Value) -> Found:
    """Move rows with a score of -1 to the end of each picture and cut what no picture fills."""
    counts = op.ReduceSum(op.Cast(op.Greater(scores, -0.5), to=INT), [1], keepdims=0)
    longest = op.Reshape(op.ReduceMax(counts, keepdims=0), [1])
    scores, place = op.TopK(scores, op.Shape(scores, start=1, end=2), axis=1, largest=1, sorted=1, _outputs=2)
    scores, place = (op.Slice(values, [0], longest, [1]) for values in (scores, place))
    real = op.Greater(scores, -0.5)
    # One picture's place is a row of the flat list
    start = op.Mul(op.Range(0, op.Squeeze(op.Shape(scores, start=0, end=1), [0]), 1), op.Gather(op.Shape(boxes), 1))
    row = op.Add(place, op.Unsqueeze(start, [1]))
    boxes = op.Gather(op.Reshape(boxes, [-1, 4]), row, axis=0)
    labels = op.Gather(op.Reshape(labels, [-1]), row, axis=0)
    return Found(
        op.Where(op.Unsqueeze(real, [2]), boxes, 0.0), op.Where(real, scores, 0.0), op.Where(real, labels, -1), counts
    )


def _constant(op: Any, values: np.ndarray) -> ir.Value:
    return op.Constant(value=ir.tensor(values))
