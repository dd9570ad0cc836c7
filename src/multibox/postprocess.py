"""Turn a network's outputs into boxes with scores and classes (Caffe's `DetectionOutput`, batched)."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor

from multibox.config import Config, ModelConfig, PostConfig
from multibox.ops.boxes import Number
from multibox.ops.coding import decode
from multibox.ops.nms import suppress
from multibox.structures import Detections, Size
from multibox.tensors import HeadOutputs
from multibox.thresholds import drop_low_scores, just_below

_FIRST_PASS = 4
"""Candidates examined in the first pass, as a multiple of `max_detections`."""
_NEXT_PASS = 16
"""Growth of that number per further pass, while too few candidates survive."""
_SURE = 0.99
"""Scores above it all count as possible; beyond it, rounding would decide."""
_MARGIN = 0.01
"""Of a logit; far above its rounding error."""


class Kept(NamedTuple):
    """The boxes kept in each image of a batch, best first, padded to the longest."""

    boxes_xyxy: Float[Tensor, "b m 4"]
    """0 to 1 of the network's input; padding is 0."""
    scores: Float[Tensor, "b m"]
    """0 to 1; padding is 0."""
    labels: Int[Tensor, "b m"]
    """0-based class without background; -1 pads."""
    counts: Int[Tensor, " b"]
    """Number of boxes of each image."""


class _Candidates(NamedTuple):
    """Scores that may become detections."""

    row: Int[Tensor, " n"]
    """image * anchors + anchor"""
    scores: Float[Tensor, " n"]
    group: Int[Tensor, " n"]
    """image * classes + class"""

    def take(self, index: Int[Tensor, " m"]) -> "_Candidates":
        return _Candidates(self.row.take(index), self.scores.take(index), self.group.take(index))


class _Shape(NamedTuple):
    """Sizes of a batch of outputs."""

    images: int
    anchors: int
    classes: int


class _Scored(NamedTuple):
    """The rows of a batch that may hold detections, with all that is needed to go on from there."""

    row: Int[Tensor, " n"]
    """image * anchors + anchor"""
    scores: Float[Tensor, "n c"]
    boxes_of: Callable[[Tensor], Tensor]
    """Decodes rows [m] into boxes [m, 4]."""
    shape: _Shape


class Examined(NamedTuple):
    """Every box of one image that enters suppression, best first, and what became of it."""

    anchors: Int[Tensor, " n"]
    """The anchor that gave each box."""
    labels: Int[Tensor, " n"]
    """0-based class without background."""
    scores: Float[Tensor, " n"]
    boxes_xyxy: Float[Tensor, "n 4"]
    """0 to 1 of the network's input, as suppression compares them."""
    clipped_xyxy: Float[Tensor, "n 4"]
    """The same, cut at the image's border, as they are reported."""
    passed: Bool[Tensor, " n"]
    """Whether no better box of its class suppresses it."""
    kept: Bool[Tensor, " n"]
    """Whether it is a detection: passed, not without area, and within `max_per_class` and `max_detections`."""


def detect(
    outputs: HeadOutputs,
    anchors_xyxy: Float[Tensor, "a 4"],
    sizes: Sequence[Size],
    config: Config,
    class_names: tuple[str, ...],
    lowest: NDArray[np.float32] | None = None,
) -> list[Detections]:
    """Post-process a batch into detections in pixels of the original images.

    Args:
        outputs: The network's outputs.
        anchors_xyxy: The anchors, in the order of the outputs.
        sizes: Of the original images.
        config: Of the network.
        class_names: Of the network.
        lowest: Lowest score reported of each class [C]; None takes all above `post.score_threshold`.
    """
    post = config.post if lowest is None else replace(config.post, score_threshold=just_below(float(lowest.min())))
    kept = postprocess(outputs, anchors_xyxy, post, config.model)
    scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=torch.float32, device=kept.boxes_xyxy.device)
    boxes = (kept.boxes_xyxy * scale[:, None]).cpu().numpy()
    scores, labels, counts = kept.scores.cpu().numpy(), kept.labels.cpu().numpy(), kept.counts.cpu().numpy()
    detections = [Detections(boxes[i, :n], scores[i, :n], labels[i, :n], class_names) for i, n in enumerate(counts)]
    return detections if lowest is None else [drop_low_scores(one, lowest) for one in detections]


def postprocess(outputs: HeadOutputs, anchors_xyxy: Float[Tensor, "a 4"], post: PostConfig, model: ModelConfig) -> Kept:
    """Score, select, decode, suppress and cap, for all images and classes at once.

    Equal scores go by the lower class, then by the lower anchor. Half precision is computed in float32. A box can only
    be suppressed by a better one. So the best candidates are examined first, and more only if too few survive.

    Args:
        outputs: The network's outputs.
        anchors_xyxy: The anchors, in the order of the outputs.
        post: Thresholds and limits.
        model: Score and box coder.
    """
    row, scores, boxes_of, shape = _score(outputs, anchors_xyxy, post, model)
    limit = _FIRST_PASS * post.max_detections
    while True:
        candidates, last_taken = _best_candidates(scores, row, shape, post.score_threshold, limit)
        candidates, counts = _sort_by_group(candidates, shape, post.pre_nms_topk)
        boxes = boxes_of(candidates.row)
        keep = suppress(boxes, counts, post.nms_threshold, post.nms_inclusive)
        boxes, keep = _finish(boxes, keep, candidates.group, len(counts), post)
        index = keep.nonzero().squeeze(1)
        boxes, kept = boxes.index_select(0, index), candidates.take(index)
        if last_taken is None:
            break
        enough = torch.bincount(kept.group // shape.classes, minlength=shape.images) >= post.max_detections
        if bool((enough | (last_taken <= post.score_threshold)).all()):
            break
        limit *= _NEXT_PASS
    return _pad(boxes, kept, shape, post.max_detections)


def examine_candidates(
    outputs: HeadOutputs, anchors_xyxy: Float[Tensor, "a 4"], post: PostConfig, model: ModelConfig
) -> Examined:
    """Return all that `postprocess` weighs in one image, with the anchors, instead of what it keeps; for looking at.

    Its steps are those of `postprocess`, but no candidate is left out for speed; the arguments are the same.
    """
    row, scores, boxes_of, shape = _score(outputs, anchors_xyxy, post, model)
    # No image has more candidates than this
    candidates, _ = _best_candidates(scores, row, shape, post.score_threshold, scores.numel() + 1)
    candidates, counts = _sort_by_group(candidates, shape, post.pre_nms_topk)
    boxes = boxes_of(candidates.row)
    passed = suppress(boxes, counts, post.nms_threshold, post.nms_inclusive)
    clipped, kept = _finish(boxes.clone(), passed, candidates.group, len(counts), post)
    _, order = candidates.scores.sort(descending=True, stable=True)
    kept = kept[order]
    return Examined(
        candidates.row[order] % shape.anchors,
        candidates.group[order] % shape.classes,
        candidates.scores[order],
        boxes[order],
        clipped[order],
        passed[order],
        kept & (kept.cumsum(0) <= post.max_detections),
    )


def _score(outputs: HeadOutputs, anchors_xyxy: Float[Tensor, "a 4"], post: PostConfig, model: ModelConfig) -> _Scored:
    """Return the rows with a score that may be above the threshold, and these scores."""
    images, anchors, columns = outputs.logits.shape
    shape = _Shape(images, anchors, columns - (model.score == "softmax"))
    logits, offsets = outputs.logits.float().flatten(0, 1), outputs.offsets.flatten(0, 1)

    def boxes_of(row: Int[Tensor, " n"]) -> Float[Tensor, "n 4"]:
        anchors_of_row = anchors_xyxy.index_select(0, row % anchors)
        boxes = decode(offsets.index_select(0, row), anchors_of_row, model.variances, model.coder)
        return boxes.clamp_(0, 1) if post.clip == "before_nms" else boxes

    row = _possible_rows(logits, model.score, post.score_threshold)
    if post.min_size:
        boxes = boxes_of(row)
        # NaN boxes stay: every comparison with NaN is false.
        row = row[~((boxes[:, 2:] - boxes[:, :2]) <= post.min_size).any(dim=1)]
    scores = class_scores(logits.index_select(0, row), model.score, post.multi_label)
    return _Scored(row, scores, boxes_of, shape)


def _finish(
    boxes_xyxy: Float[Tensor, "n 4"], keep: Bool[Tensor, " n"], group: Int[Tensor, " n"], groups: int, post: PostConfig
) -> tuple[Float[Tensor, "n 4"], Bool[Tensor, " n"]]:
    """Clip the boxes, in place, and return them and which of those to `keep` still count."""
    if post.max_per_class != "none":
        keep = _first_of_each_group(keep, group, groups, post.max_per_class)
    # A box outside the image has no area once it is clipped: it is dropped and does not count as a detection.
    boxes = boxes_xyxy.clamp_(0, 1)
    return boxes, keep & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def _possible_rows(
    logits: Float[Tensor, "n k"], score: Literal["softmax", "sigmoid"], threshold: Number
) -> Int[Tensor, " m"]:
    """Return the rows in which the score of a class may be above `threshold`, and few others.

    Most anchors see background, and this spares them exponentials, decoding and sorting. A sigmoid is above t where the
    logit is above log(t / (1 - t)); a softmax only where logit minus background logit is.
    """
    threshold = min(threshold, _SURE)
    limit = math.log(threshold / (1 - threshold)) - _MARGIN if threshold > 0 else -math.inf
    lead = logits[:, 1:] - logits[:, :1] if score == "softmax" else logits.clone()
    # 0 and 1 as floats, summed by a product: booleans and `any` take five times as long, `amax` twice as long.
    possible = lead.ge_(limit)
    return possible.mv(possible.new_ones(possible.shape[1])).nonzero().squeeze(1)


def class_scores(
    logits: Float[Tensor, "n k"], score: Literal["softmax", "sigmoid"], multi_label: bool
) -> Float[Tensor, "n c"]:
    """Return the scores without background; if not `multi_label`, all but an anchor's best one are -1."""
    scores = logits.softmax(dim=1)[:, 1:] if score == "softmax" else logits.sigmoid()
    if multi_label:
        return scores
    best = scores.argmax(dim=1, keepdim=True)
    return torch.full_like(scores, -1).scatter_(1, best, scores.gather(1, best))


def _best_candidates(
    scores: Float[Tensor, "n c"], row: Int[Tensor, " n"], shape: _Shape, threshold: Number, limit: int
) -> tuple[_Candidates, Float[Tensor, " b"] | None]:
    """Return the scores above `threshold`, per image those at least as high as its `limit`-th best, and that score.

    The latter is -1 for an image with fewer candidates, and None if no candidate was left out.
    """
    few, last_taken = shape.images * limit, None
    if len(row) > few:
        # Anchors first, by their best class: few numbers decide about many.
        best, image = scores.amax(dim=1), row // shape.anchors
        last_taken = _nth_best(best, image, shape.images, limit)
        index = (best >= last_taken.take(image)).nonzero().squeeze(1)
        scores, row = scores.index_select(0, index), row.take(index)
    wanted = scores > threshold
    if last_taken is not None:
        wanted &= scores >= last_taken.take(row // shape.anchors)[:, None]
    place, label = wanted.nonzero().unbind(1)
    row = row.take(place)
    image = row // shape.anchors
    candidates = _Candidates(row, scores[place, label], label.add(image, alpha=shape.classes))
    if len(row) > few:
        last_taken = _nth_best(candidates.scores, image, shape.images, limit)
        candidates = candidates.take((candidates.scores >= last_taken.take(image)).nonzero().squeeze(1))
    return candidates, last_taken


def _nth_best(scores: Float[Tensor, " n"], image: Int[Tensor, " n"], images: int, n: int) -> Float[Tensor, " b"]:
    """Return each image's n-th best score, -1 where it has fewer; scores stand image after image."""
    counts = torch.bincount(image, minlength=images)
    place = torch.arange(len(scores), device=scores.device) - (counts.cumsum(0) - counts).take(image)
    table = scores.new_full((images, max(n, int(counts.max()))), -1.0).index_put_((image, place), scores)
    return table.topk(n, dim=1).values[:, -1]


def _sort_by_group(candidates: _Candidates, shape: _Shape, topk: int) -> tuple[_Candidates, Int[Tensor, " g"]]:
    """Return the best `topk` candidates of each group, group by group and best first, and how many each has."""
    order = _group_order(candidates.scores, candidates.group)
    counts = torch.bincount(candidates.group, minlength=shape.images * shape.classes)
    if len(order) > topk:
        group = candidates.group.take(order)
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts).take(group)
        order, counts = order[rank < topk], counts.clamp(max=topk)
    return candidates.take(order), counts


def _group_order(scores: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the order group by group, best first; equal scores keep their order."""
    # float32 numbers that are not negative order like their bits.
    return ((group << 32) - scores.view(torch.int32)).argsort(stable=True)


def _first_of_each_group(
    keep: Bool[Tensor, " n"], group: Int[Tensor, " n"], groups: int, limit: int
) -> Bool[Tensor, " n"]:
    """Return `keep` with at most the first `limit` of each group."""
    counts = torch.bincount(group[keep], minlength=groups)
    rank = keep.cumsum(0) - (counts.cumsum(0) - counts)[group]
    return keep & (rank <= limit)


def _pad(boxes_xyxy: Float[Tensor, "n 4"], kept: _Candidates, shape: _Shape, limit: int) -> Kept:
    """Sort each image's boxes by score, cut them at `limit` and pad the images to one length."""
    if shape.images == 1:
        # Nothing to pad: half of what follows.
        scores, order = kept.scores.sort(descending=True, stable=True)
        order = order[:limit]
        labels, counts = kept.group.take(order), order.new_full((1,), len(order))
        return Kept(boxes_xyxy.index_select(0, order)[None], scores[None, :limit], labels[None], counts)
    image = kept.group // shape.classes
    labels = kept.group - image * shape.classes
    total = torch.bincount(image, minlength=shape.images)
    order = _group_order(kept.scores, image)
    counts = total.clamp(max=limit)
    lane = torch.arange(int(counts.max()) if len(counts) > 0 else 0, device=image.device)
    padding = lane >= counts[:, None]
    index = order.take((lane + (total.cumsum(0) - total)[:, None]).masked_fill_(padding, 0))
    return Kept(
        boxes_xyxy[index].masked_fill_(padding[..., None], 0),
        kept.scores.take(index).masked_fill_(padding, 0),
        labels.take(index).masked_fill_(padding, -1),
        counts,
    )
