"""From a network's raw answer to boxes with scores and classes (Caffe's DetectionOutput, batched)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool1d

from multibox.ops.boxes import Number
from multibox.ops.coding import VARIANCES, BoxCode, Variances, decode
from multibox.ops.nms import suppress
from multibox.tensors import HeadOutputs

Score = Literal["softmax", "sigmoid"]
Clip = Literal["before_nms", "after_nms", "never"]

_FIRST_LOOK = 4
"""So many times the detections wanted are looked at first, the best candidates of each picture ..."""
_NEXT_LOOK = 16
"""... and so many times more whenever too few of them survive."""
_SURE = 0.99
"""Scores above it all count as likely; beyond, rounding would decide."""
_MARGIN = 0.01
"""Of a logit; far above its rounding."""


class Found(NamedTuple):
    """What was found in each picture of a batch, best first, padded to the longest."""

    boxes_xyxy: Float[Tensor, "b m 4"]
    """0 to 1 of the network's input; padding is 0."""
    scores: Float[Tensor, "b m"]
    """0 to 1; padding is 0."""
    labels: Int[Tensor, "b m"]
    """0-based class without background; -1 pads."""
    counts: Int[Tensor, " b"]
    """How many rows of each picture are filled."""


class _Candidates(NamedTuple):
    """What may be reported."""

    anchor: Int[Tensor, " n"]
    """picture * anchors + anchor"""
    scores: Float[Tensor, " n"]
    group: Int[Tensor, " n"]
    """picture * k + column of the logits"""
    counts: Int[Tensor, " g"]
    """Candidates that each group had before suppression."""


def postprocess(
    outputs: HeadOutputs,
    anchors_xyxy: Float[Tensor, "a 4"],
    *,
    score: Score,
    variances: Variances = VARIANCES,
    code: BoxCode = "center_size",
    score_threshold: Number = 0.01,
    nms_threshold: Number = 0.45,
    nms_inclusive: bool = False,
    pre_nms_topk: int = 400,
    max_detections: int = 200,
    max_per_class: int = 0,
    min_size: Number = 0.0,
    multi_label: bool = True,
    class_agnostic: bool = False,
    clip: Clip = "after_nms",
) -> Found:
    """Score, select, decode, suppress and cap, for all pictures and classes at once.

    The defaults are those of Caffe's SSD: per class, the best 400 scores above the threshold, greedy NMS; then the best
    200 over all classes. Equal scores go by the lower class, then anchor. Half precision is computed in float32.

    Args:
        outputs: the network's answer.
        anchors_xyxy: the anchors, in the order of the outputs.
        score: softmax over background and classes, or one sigmoid a class.
        variances: of the box code.
        code: the box code.
        score_threshold: scores must lie above it.
        nms_threshold: a box goes when its IoU with a better box that stays is above it.
        nms_inclusive: whether an IoU that equals it is enough (MXNet, NVIDIA).
        pre_nms_topk: the best so many boxes of each class go into NMS.
        max_detections: the best so many boxes of each picture come out.
        max_per_class: and of each of its classes (HiKapok); 0 sets no limit.
        min_size: boxes no wider or no higher, as a share of the picture, are left out from the start (HiKapok).
        multi_label: a box may be reported once for each class; False leaves each anchor its best class only.
        class_agnostic: boxes of all classes suppress each other.
        clip: when boxes are cut to the picture: before NMS (torchvision, HiKapok), after it (Caffe's results) or never.
    """
    logits = outputs.logits.float()
    boxes_of = partial(_boxes, outputs.offsets, anchors_xyxy, variances, code, clip == "before_nms")
    live = _live_anchors(logits, score, score_threshold)
    live = live[_large(boxes_of(live), min_size)] if min_size else live
    scores = _class_scores(logits.flatten(0, 1).index_select(0, live), score, multi_label)
    settle = partial(_settle, boxes_of, logits.shape, class_agnostic, nms_threshold, nms_inclusive, max_per_class, clip)
    found, boxes = _survivors(settle, scores, live, logits.shape, score_threshold, pre_nms_topk, max_detections)
    return _pack(boxes, found, logits.shape, int(score == "softmax"), max_detections)


def _live_anchors(logits: Float[Tensor, "b a k"], score: Score, threshold: Number) -> Int[Tensor, " n"]:
    """Return the anchors (picture * a + anchor) where a class may score above `threshold`; few others are among them.

    Few anchors see anything, so this spares most of them exponentials, decoding and sorting. A sigmoid is above t where
    the logit is above log(t / (1 - t)); a softmax is only where that holds for the logit - that of the background.
    """
    batch, _, width = logits.shape
    if batch == 0:
        return torch.zeros(0, dtype=torch.long, device=logits.device)
    first = int(score == "softmax")
    # As a pooling this takes less than half the time of amax over so short an axis
    best = max_pool1d(logits.reshape(batch, 1, -1)[..., first:], width - first, width).squeeze(1)
    best = best - logits[..., 0] if first else best
    threshold = min(threshold, _SURE)
    limit = math.log(threshold / (1 - threshold)) - _MARGIN if threshold > 0 else -math.inf
    # What is not below: where one class is no number, the others are looked at
    return (best < limit).view(-1).logical_not_().nonzero().squeeze(1)


def _class_scores(logits: Float[Tensor, "n k"], score: Score, multi_label: bool) -> Float[Tensor, "n k"]:
    """Return scores that count; what does not, the background above all, is -1."""
    scores = logits.softmax(dim=1) if score == "softmax" else logits.sigmoid()
    if score == "softmax":
        scores[:, 0] = -1
    if multi_label:
        return scores
    best = scores.argmax(dim=1, keepdim=True)
    return torch.full_like(scores, -1).scatter_(1, best, scores.gather(1, best))


def _boxes(
    offsets: Float[Tensor, "b a 4"],
    anchors_xyxy: Float[Tensor, "a 4"],
    variances: Variances,
    code: BoxCode,
    clip: bool,
    which: Int[Tensor, " n"],
) -> Float[Tensor, "n 4"]:
    """Return the boxes that suppression compares, of the anchors `which` (picture * a + anchor)."""
    anchors_xyxy = anchors_xyxy.index_select(0, which % len(anchors_xyxy))
    boxes = decode(offsets.flatten(0, 1).index_select(0, which), anchors_xyxy, variances, code)
    return boxes.clamp_(0, 1) if clip else boxes


def _large(boxes: Float[Tensor, "n 4"], least: Number) -> Bool[Tensor, " n"]:
    # What is no number is not small
    return ((boxes[:, 2:] - boxes[:, :2]) <= least).any(dim=1).logical_not_()


def _candidates(
    scores: Float[Tensor, "n c"], anchor: Int[Tensor, " n"], shape: Sequence[int], threshold: Number, look: int
) -> tuple[_Candidates, Float[Tensor, " b"] | None]:
    """Return the scores above `threshold`, of each picture those at least as high as its `look`-th best, and that one.

    The latter is -1 for a picture that has fewer, and None where none has more. `shape` is that of the logits.
    """
    batch, anchors, classes = shape
    image, bar = anchor // anchors, None
    if len(anchor) > look:
        # Anchors first, by their best class: few numbers decide about many
        best = scores.amax(dim=1)
        bar = _bar(best, image, batch, look)
        chosen = (best >= bar.take(image)).nonzero().squeeze(1)
        scores, anchor, image = scores.index_select(0, chosen), anchor.take(chosen), image.take(chosen)
    wanted = scores > threshold
    if bar is not None:
        wanted &= scores >= bar.take(image)[:, None]
    place = wanted.view(-1).nonzero().squeeze(1)
    row, values = place // classes, scores.view(-1).take(place)
    if len(place) > look:
        bar = _bar(values, image.take(row), batch, look)
        chosen = (values >= bar.take(image.take(row))).nonzero().squeeze(1)
        place, row, values = place.take(chosen), row.take(chosen), values.take(chosen)
    group = image.take(row) * classes + (place - row * classes)
    return _Candidates(anchor.take(row), values, group, torch.bincount(group, minlength=batch * classes)), bar


def _bar(scores: Float[Tensor, " n"], image: Int[Tensor, " n"], batch: int, look: int) -> Float[Tensor, " b"]:
    """Return each picture's `look`-th best score, -1 where it has fewer."""
    counts = torch.bincount(image, minlength=batch)
    place = torch.arange(len(scores), device=scores.device) - (counts.cumsum(0) - counts).take(image)
    table = scores.new_full((batch, max(look, int(counts.max()))), -1.0).index_put_((image, place), scores)
    return table.topk(look, dim=1).values[:, -1]


def _in_order(near: _Candidates, topk: int) -> _Candidates:
    """Return the best `topk` of each group, group by group and best first; equal ones go by anchor."""
    order = _best_first(near.scores, near.group)
    counts = near.counts
    if len(order) > topk:
        group = near.group.take(order)
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts).take(group)
        order, counts = order[rank < topk], counts.clamp(max=topk)
    return _Candidates(near.anchor.take(order), near.scores.take(order), near.group.take(order), counts)


def _best_first(scores: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the order group by group, best first; equal ones stay in the order in which they stand."""
    # float32 that are not negative order like their bits
    return ((group << 32) - scores.view(torch.int32)).argsort(stable=True)


def _survivors(
    settle: Callable[[_Candidates], tuple[Tensor, Tensor]],
    scores: Float[Tensor, "n k"],
    anchor: Int[Tensor, " n"],
    shape: Sequence[int],
    threshold: Number,
    topk: int,
    most: int,
) -> tuple[_Candidates, Float[Tensor, "m 4"]]:
    """Return what survives with its boxes: of each picture at least the best `most`.

    What a candidate falls to is better than it. So only the best candidates are settled, unless too few survive.
    """
    look = max(1, _FIRST_LOOK * most)
    while True:
        near, least = _candidates(scores, anchor, shape, threshold, look)
        near = _in_order(near, topk)
        boxes, keep = settle(near)
        kept = keep.nonzero().squeeze(1)
        found = _Candidates(near.anchor.take(kept), near.scores.take(kept), near.group.take(kept), near.counts)
        if least is None:
            return found, boxes.index_select(0, kept)
        total = torch.bincount(found.group // shape[2], minlength=shape[0])
        if bool(((total >= most) | (least <= threshold)).all()):
            return found, boxes.index_select(0, kept)
        look *= _NEXT_LOOK


def _settle(
    boxes_of: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    class_agnostic: bool,
    threshold: Number,
    inclusive: bool,
    most: int,
    clip: Clip,
    near: _Candidates,
) -> tuple[Float[Tensor, "n 4"], Bool[Tensor, " n"]]:
    """Return the candidates' boxes and which of them no better one of their group, or of their picture, suppresses.

    A box wholly beyond the picture's border is clipped to nothing: no answer to anyone, and it takes nobody's place.
    """
    boxes = boxes_of(near.anchor)
    if class_agnostic:
        # Candidates stand class after class; a picture's must stand by score alone
        image = near.group // shape[2]
        order = _best_first(near.scores, image)
        keep = suppress(boxes[order], image.bincount(), threshold, inclusive)
        keep = torch.zeros_like(keep).index_put((order,), keep)
    else:
        keep = suppress(boxes, near.counts, threshold, inclusive)
    keep = _first_of_each(keep, near, most) if most else keep
    boxes = boxes.clamp_(0, 1) if clip == "after_nms" else boxes
    return boxes, keep & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def _first_of_each(keep: Bool[Tensor, " n"], near: _Candidates, most: int) -> Bool[Tensor, " n"]:
    """Return `keep` without what comes after the first `most` of a group."""
    count = torch.bincount(near.group[keep], minlength=len(near.counts))
    place = keep.cumsum(0) - (count.cumsum(0) - count)[near.group]
    return keep & (place <= most)


def _pack(boxes: Float[Tensor, "n 4"], found: _Candidates, shape: Sequence[int], first: int, most: int) -> Found:
    """Sort each picture's boxes by score, cap them and pad the pictures to one length; column `first` is class 0."""
    batch, _, columns = shape
    scores, image = found.scores, found.group // columns
    labels = found.group - image * columns - first
    total = torch.bincount(image, minlength=batch)
    order = _best_first(scores, image)
    counts = total.clamp(max=most)
    lane = torch.arange(int(counts.max()) if len(counts) > 0 else 0, device=image.device)
    padding = lane >= counts[:, None]
    index = order.take((lane + (total.cumsum(0) - total)[:, None]).masked_fill_(padding, 0))
    return Found(
        boxes[index].masked_fill_(padding[..., None], 0),
        scores.take(index).masked_fill_(padding, 0),
        labels.take(index).masked_fill_(padding, -1),
        counts,
    )
