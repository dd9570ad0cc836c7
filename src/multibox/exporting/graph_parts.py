"""Parts of the exported graph: the resize before the network and the post-processing behind it.

The resize is Pillow's antialiased bilinear filter as two products with banded matrices. An output row is a weighted sum
of the few source rows under its triangle. Neighbouring output rows share one window of source rows, gathered as bytes,
and one small matrix product; a product with the full matrix would multiply mostly zeros (measured in
docs/decisions.md). Windows and weights are computed in the graph from the image's size.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from multibox.config import Config, ModelConfig
from multibox.ops.coding import BoxCode, Variances
from multibox.structures import Size

FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT64
MIDDLE = 128.0
"""Grey level that the second product sees as 0: half the range is half the rounding in bfloat16."""
ROWS, COLUMNS = 16, 32
"""Neighbouring outputs that share a window, about. Columns in longer runs are copied faster."""
_ALL = np.iinfo(np.int64).max


class Limits(NamedTuple):
    """Scalars that a caller of the graph may change."""

    score_threshold: ir.Value
    nms_threshold: ir.Value
    max_detections: ir.Value


class Found(NamedTuple):
    """Detections that the graph returns, best first."""

    boxes: ir.Value
    """float [b, n, 4], xyxy in pixels; padding is 0."""
    scores: ir.Value
    """float [b, n]; padding is 0."""
    labels: ir.Value
    """int64 [b, n]; 0-based without background, -1 pads."""
    counts: ir.Value
    """int64 [b]"""


class _Candidates(NamedTuple):
    """Anchors of each image that may have a score above the threshold, `width` of them."""

    scores: ir.Value
    """[b, c, width]"""
    boxes: ir.Value
    """[b, width, 4], 0 to 1 of the input."""
    width: ir.Value
    """[1]"""


def resize(op: Any, images: ir.Value, size: Size) -> ir.Value:
    """Add the resize of uint8 [b, h, w, 3] to float [b, 3, *size], grey levels 0 to 255, not rounded.

    Pillow rounds to whole levels after each of its two passes, so it is within one level of this exact result.
    """
    (tall, high), (wide, broad) = _groups(size.height, ROWS), _groups(size.width, COLUMNS)
    batch, columns = op.Shape(images, start=0, end=1), op.Shape(images, start=2, end=3)
    index, weights = _windows(op, op.Shape(images, start=1, end=2), size.height, (tall, high))
    window = op.Cast(op.Gather(images, index, axis=1), to=ir.DataType.FLOAT)
    # Behind the cast for OpenVINO, which multiplies in float32 if a factor comes from integers directly
    window = op.Reshape(window, op.Concat(batch, [tall], op.Shape(index, start=1, end=2), [-1], axis=0))
    down = op.Sub(_product(op, window, weights, 4), MIDDLE)
    down = op.Reshape(down, op.Concat(batch, [tall], columns, [3 * high], axis=0))
    index, weights = _windows(op, columns, size.width, (wide, broad))
    across = _product(op, op.Gather(down, index, axis=2), weights, 5)
    # From blocks of high x broad outputs to planes
    across = op.Reshape(across, op.Concat(batch, [tall, wide, 3, high, broad], axis=0))
    across = op.Transpose(across, perm=[0, 3, 1, 4, 2, 5])
    planes = op.Add(op.Reshape(across, op.Concat(batch, [3, tall * high, wide * broad], axis=0)), MIDDLE)
    return planes if (tall * high, wide * broad) == size else op.Slice(planes, [0, 0], [*size], [2, 3])


def _groups(size: int, longest: int) -> tuple[int, int]:
    """Return number and length of the groups of outputs that share a window; the length divides `size` if possible."""
    lengths = range(longest, longest * 3 // 4 - 1, -1)
    length = next((length for length in lengths if size % length == 0), longest)
    return -(-size // length), length


def _product(op: Any, window: ir.Value, weights: ir.Value, rank: int) -> ir.Value:
    """Add the sums of windows [..., r, m] weighted by [g, r, o], as [..., m, o].

    Transposed, at no cost in a matrix product, because the other side is contracted next.
    """
    return op.MatMul(op.Transpose(window, perm=[*range(rank - 2), rank - 1, rank - 2]), weights)


def _windows(op: Any, count: ir.Value, size: int, groups: tuple[int, int]) -> tuple[ir.Value, ir.Value]:
    """Add the source rows [g, r] of each group and their weights [g, r, o] for its outputs; `count` [1] source rows.

    Output i is centred on (i + 1/2) * count / size and its triangle reaches max(count / size, 1) to either side. In
    units of 1 / (2 * size) all of these are whole numbers, so neither large images nor bfloat16 lose precision.
    """
    number, length = groups
    outputs = 2 * np.arange(number * length, dtype=np.int64).reshape(number, 1, length) + 1
    longer = op.Max(count, [size])
    reach = op.Mul(longer, [2])
    span = op.Min(op.Add(op.Div(op.Mul(longer, [length + 1]), [size]), [2]), count)
    first = op.Add(op.Mul(count, _constant(op, outputs[:, :, 0])), op.Sub([size], reach))
    # A window is moved inwards at the far border rather than cut, so that all have one length
    first = op.Min(op.Div(op.Max(first, [0]), [2 * size]), op.Sub(count, span))
    index = op.Add(first, op.Range(0, op.Squeeze(span, [0]), 1))
    places = op.Add(op.Mul(op.Unsqueeze(index, [2]), [2 * size]), [size])
    distance = op.Abs(op.Sub(places, op.Mul(count, _constant(op, outputs))))
    weights = op.Cast(op.Max(op.Sub(reach, distance), [0]), to=ir.DataType.FLOAT)
    # Rows beyond the last output, which only pad the last group, may cover no pixel
    return index, op.Div(weights, op.Max(op.ReduceSum(weights, [1], keepdims=1), 1.0))


def _constant(op: Any, values: NDArray[Any]) -> ir.Value:
    return op.Constant(value=ir.tensor(values))


def class_scores(op: Any, logits: ir.Value, model: ModelConfig) -> ir.Value:
    """Add the scores [b, a, c] of logits [b, a, k], without background."""
    if model.score == "sigmoid":
        return op.Sigmoid(logits)
    return op.Slice(op.Softmax(logits, axis=-1), [1], [_ALL], [2])


def decode(op: Any, offsets: ir.Value, table: ir.Value, code: BoxCode) -> ir.Value:
    """Add the boxes xyxy [..., 4] of offsets [..., 4] and the rows of `decoding_table` [..., 8] beside them."""
    scale, base = op.Split(table, num_outputs=2, axis=-1, _outputs=2)
    moved = op.Add(op.Mul(offsets, scale), base)
    if code != "center_size":
        return moved
    center, half = op.Split(moved, num_outputs=2, axis=-1, _outputs=2)
    half = op.Exp(half)
    return op.Concat(op.Sub(center, half), op.Add(center, half), axis=-1)


def decoding_table(anchors_xyxy: NDArray[Any], variances: Variances, code: BoxCode) -> NDArray[Any]:
    """Return float32 [a, 8]: factors of the offsets, then summands; for sizes these are the logarithm of the half."""
    low, high = anchors_xyxy[:, :2], anchors_xyxy[:, 2:]
    size = np.maximum(high - low, np.float32(1e-8))
    first, second = np.array(variances, np.float32).reshape(2, 2)
    if code == "center_size":
        columns = [size * first, np.broadcast_to(second, size.shape), (low + high) / 2, np.log(size / 2)]
    else:
        unit = size if code == "corner_size" else np.ones_like(size)
        columns = [unit * first, unit * second, low, high]
    return np.concatenate(columns, axis=1).astype(np.float32)


def add_postprocess(op: Any, outputs: tuple[ir.Value, ir.Value], scale: ir.Value, limits: Limits, table: NDArray[Any],
         config: Config, classes: int) -> Found:  # fmt: skip
    """Add scoring, selection, decoding, suppression and packing.

    Args:
        op: takes the nodes.
        outputs: logits [b, a, k] and offsets [b, a, 4].
        scale: float [4]; width, height, width, height of the images in pixels.
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
        scores = op.Where(own, scores, 0.0)
    if config.post.min_size:
        small = _small(op, candidates.boxes, config.post.min_size)
        scores = op.Where(op.Unsqueeze(small, [1]), 0.0, scores)
    scores = _best_of_each_class(op, scores, candidates.width, config.post.pre_nms_topk)
    candidates = candidates._replace(scores=scores)
    kept = _add_suppression(op, candidates, limits, config)
    if config.post.clip == "after_nms":
        candidates = candidates._replace(boxes=op.Clip(candidates.boxes, 0.0, 1.0))
    return _pack(op, candidates, kept, scale, limits.max_detections)


def _likely(op: Any, logits: ir.Value, threshold: ir.Value, width: int, model: ModelConfig) -> ir.Value:
    """Add which anchors [b, a] may have a score above the threshold, without computing scores.

    exp(class - background) is above the softmax of any class. So one pass over the logits, `width` per anchor, spares
    most anchors exponentials, sorting and decoding.
    """
    if model.score == "sigmoid":
        best = op.ReduceMax(logits, [2], keepdims=0)
        bar = op.Log(op.Div(threshold, op.Sub(1.0, threshold)))
    else:
        # One window ends at the background and one begins behind it; slices would cost as much as the maximum
        pairs = op.MaxPool(logits, kernel_shape=[width], strides=[width], pads=[width - 1, 1])
        background, best = op.Split(pairs, num_outputs=2, axis=2, _outputs=2)
        best = op.Squeeze(best, [2])
        bar = op.Add(op.Squeeze(background, [2]), op.Log(threshold))
    # A little lower, so that rounding loses no candidate
    return op.Greater(best, op.Add(bar, -1e-3))


def _candidates(
    op: Any, outputs: tuple[ir.Value, ir.Value], threshold: ir.Value, table: NDArray[Any], config: Config, classes: int
) -> _Candidates:
    """Add scores and boxes of the likely anchors of each image; all images get as many as the one that has most."""
    logits, offsets = outputs
    columns = classes + (config.model.score == "softmax")
    likely = op.Cast(_likely(op, logits, threshold, columns, config.model), to=FLOAT)
    fullest = op.ReduceMax(op.ReduceSum(likely, [1], keepdims=0), keepdims=1)
    # At least one: some runtimes fail on empty tensors
    width = op.Cast(op.Max(fullest, 1.0), to=INT)
    # Ones before zeros. By ONNX's rule equal values keep the order of the anchors; OpenVINO leaves it open
    _, anchor = op.TopK(likely, width, axis=1, largest=1, sorted=1, _outputs=2)
    row = op.Unsqueeze(anchor, [2])
    some, near = (op.GatherND(values, row, batch_dims=1) for values in (logits, offsets))
    scores = op.Transpose(class_scores(op, some, config.model), perm=[0, 2, 1])
    return _Candidates(scores, _decode(op, near, op.Gather(_constant(op, table), anchor, axis=0), config), width)


def _best_of_each_class(op: Any, scores: ir.Value, width: ir.Value, most: int) -> ir.Value:
    """Set scores [b, c, width] outside the best `most` of their class to 0, without sorting if there are fewer."""
    crowded = op.Greater(width, [most])
    top, _ = op.TopK(scores, op.Where(crowded, [most], [1]), axis=2, largest=1, sorted=1, _outputs=2)
    floor = op.Where(crowded, op.Slice(top, [-1], [_ALL], [2]), 0.0)
    return op.Where(op.GreaterOrEqual(scores, floor), scores, 0.0)


def _decode(op: Any, offsets: ir.Value, table: ir.Value, config: Config) -> ir.Value:
    """Add the boxes that suppression compares."""
    boxes = decode(op, offsets, table, config.model.coder)
    if config.model.coder != "center_size":
        # NonMaxSuppression would swap swapped corners back; here they are boxes without area
        low, high = op.Split(boxes, num_outputs=2, axis=-1, _outputs=2)
        boxes = op.Concat(low, op.Max(low, high), axis=-1)
    return op.Clip(boxes, 0.0, 1.0) if config.post.clip == "before_nms" else boxes


def _small(op: Any, boxes: ir.Value, least: float) -> ir.Value:
    """Add which boxes [b, n] of [b, n, 4] are too narrow or too low."""
    low, high = op.Split(boxes, num_outputs=2, axis=-1, _outputs=2)
    return op.LessOrEqual(op.ReduceMin(op.Sub(high, low), [-1], keepdims=0), least)


def _add_suppression(op: Any, candidates: _Candidates, limits: Limits, config: Config) -> ir.Value:
    """Add NMS in every image and class; return image, label and place of what stays [n, 3]."""
    overlap = limits.nms_threshold
    if config.post.nms_inclusive:
        # The next smaller float32: an overlap above it reaches the threshold
        overlap = op.Mul(overlap, 1 - 2.0**-24)
    return op.NonMaxSuppression(
        candidates.boxes,
        candidates.scores,
        # Not `max_detections`: boxes that clipping leaves without area do not count towards it
        [config.post.pre_nms_topk if config.post.max_per_class == "none" else config.post.max_per_class],
        overlap,
        limits.score_threshold,
    )


def _pack(op: Any, candidates: _Candidates, kept: ir.Value, scale: ir.Value, most: ir.Value) -> Found:
    """Add each image's best detections, in pixels, without boxes that clipping left without area."""
    # The first row belongs to no image and refers to a last box of zeros: padding; some runtimes fail on empty tensors
    kept = op.Concat(_constant(op, np.array([[-1, -1, -1]])), kept, axis=0)
    image, label = (op.Gather(kept, column, axis=1) for column in range(2))
    boxes = op.GatherND(op.Pad(candidates.boxes, [0, 0, 0, 0, 1, 0]), op.Gather(kept, [0, 2], axis=1))
    left, top, right, bottom = op.Split(boxes, num_outputs=4, axis=1, _outputs=4)
    large = op.Reshape(op.And(op.Less(left, right), op.Less(top, bottom)), [-1])
    images = op.Range(0, op.Squeeze(op.Shape(candidates.boxes, start=0, end=1), [0]), 1)
    own = op.And(op.Equal(image, op.Unsqueeze(images, [1])), large)
    counts = op.Min(op.ReduceSum(op.Cast(own, to=INT), [1], keepdims=0), most)
    longest = op.ReduceMax(counts, keepdims=1)
    table = op.Where(own, op.GatherND(candidates.scores, kept), 0.0)
    scores, place = op.TopK(table, op.Max(longest, 1), axis=1, largest=1, sorted=1, _outputs=2)
    scores, place = (op.Slice(values, [0], longest, [1]) for values in (scores, place))
    place = op.Where(op.Greater(scores, 0.0), place, 0)
    boxes = op.Mul(op.Gather(boxes, place, axis=0), scale)
    return Found(boxes, scores, op.Gather(label, place, axis=0), counts)
