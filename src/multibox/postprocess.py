"""From a network's raw answer to boxes with scores and classes (Caffe's DetectionOutput, batched)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from multibox.config import Config
from multibox.models.anchor_layout import make_anchors
from multibox.ops.boxes import Number
from multibox.ops.coding import VARIANCES, BoxCode, Variances, decode
from multibox.ops.nms import suppress
from multibox.structures import Detections
from multibox.tensors import HeadOutputs
from multibox.thresholds import just_below, reaching

Score = Literal["softmax", "sigmoid"]
Clip = Literal["before_nms", "after_nms", "never"]

_FIRST_LOOK = 4
"""So many times the detections wanted are looked at first, the best candidates of each image ..."""
_NEXT_LOOK = 16
"""... and so many times more whenever too few of them survive."""
_SURE = 0.99
"""Scores above it all count as likely; beyond, rounding would decide."""
_MARGIN = 0.01
"""Of a logit; far above its rounding."""


class Found(NamedTuple):
    """What was found in each image of a batch, best first, padded to the longest."""

    boxes_xyxy: Float[Tensor, "b m 4"]
    """0 to 1 of the network's input; padding is 0."""
    scores: Float[Tensor, "b m"]
    """0 to 1; padding is 0."""
    labels: Int[Tensor, "b m"]
    """0-based class without background; -1 pads."""
    counts: Int[Tensor, " b"]
    """How many rows of each image are filled."""


class _Candidates(NamedTuple):
    """What may be reported."""

    anchor: Int[Tensor, " n"]
    """image * anchors + anchor"""
    scores: Float[Tensor, " n"]
    group: Int[Tensor, " n"]
    """image * classes + class"""
    counts: Int[Tensor, " g"]
    """Candidates that each group had before suppression."""


class _Survivors(NamedTuple):
    """What suppression leaves."""

    boxes_xyxy: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    group: Int[Tensor, " n"]
    """As that of the candidates."""


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
    """Score, select, decode, suppress and cap, for all images and classes at once.

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
        max_detections: the best so many boxes of each image come out.
        max_per_class: and of each of its classes (HiKapok); 0 sets no limit.
        min_size: boxes no wider or no higher, as a share of the image, are left out from the start (HiKapok).
        multi_label: a box may be reported once for each class; False leaves each anchor its best class only.
        class_agnostic: boxes of all classes suppress each other.
        clip: when boxes are cut to the image: before NMS (torchvision, HiKapok), after it (Caffe's results) or never.
    """
    background = int(score == "softmax")
    shape = (*outputs.logits.shape[:2], outputs.logits.shape[2] - background)
    logits = outputs.logits.float().flatten(0, 1)
    boxes_of = partial(_boxes, outputs.offsets, anchors_xyxy, variances, code, clip == "before_nms")
    live = _live_anchors(logits, background, score_threshold)
    live = live[_large(boxes_of(live), min_size)] if min_size else live
    scores = _class_scores(logits.index_select(0, live), score, multi_label)
    settle = partial(_settle, boxes_of, shape, class_agnostic, nms_threshold, nms_inclusive, max_per_class, clip)
    found = _survivors(settle, scores, live, shape, score_threshold, pre_nms_topk, max_detections)
    return _pack(found, shape, max_detections)


def _live_anchors(logits: Float[Tensor, "n k"], background: int, threshold: Number) -> Int[Tensor, " m"]:
    """Return the anchors (image * a + anchor) where a class may score above `threshold`; few others are among them.

    Few anchors see anything, so this spares most of them exponentials, decoding and sorting. A sigmoid is above t where
    the logit is above log(t / (1 - t)); a softmax is only where that holds for the logit - that of the background.
    """
    threshold = min(threshold, _SURE)
    limit = math.log(threshold / (1 - threshold)) - _MARGIN if threshold > 0 else -math.inf
    lead = logits[:, 1:] - logits[:, :1] if background else logits.clone()
    # 0 and 1 as floats, counted by a product: making booleans and `any` take five times as long, `amax` twice
    likely = lead.ge_(limit)
    return likely.mv(likely.new_ones(likely.shape[1])).nonzero().squeeze(1)


def _class_scores(logits: Float[Tensor, "n k"], score: Score, multi_label: bool) -> Float[Tensor, "n c"]:
    """Return the scores of the classes, without the background; those that do not count are -1."""
    scores = logits.softmax(dim=1)[:, 1:] if score == "softmax" else logits.sigmoid()
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
    """Return the boxes that suppression compares, of the anchors `which` (image * a + anchor)."""
    anchors_xyxy = anchors_xyxy.index_select(0, which % len(anchors_xyxy))
    boxes = decode(offsets.flatten(0, 1).index_select(0, which), anchors_xyxy, variances, code)
    return boxes.clamp_(0, 1) if clip else boxes


def _large(boxes: Float[Tensor, "n 4"], least: Number) -> Bool[Tensor, " n"]:
    # What is no number is not small
    return ((boxes[:, 2:] - boxes[:, :2]) <= least).any(dim=1).logical_not_()


def _candidates(
    scores: Float[Tensor, "n c"], anchor: Int[Tensor, " n"], shape: Sequence[int], threshold: Number, look: int
) -> tuple[_Candidates, Float[Tensor, " b"] | None]:
    """Return the scores above `threshold`, of each image those at least as high as its `look`-th best, and that one.

    The latter is -1 for an image that has fewer, and None where all are returned, for there are few.
    """
    batch, anchors, classes = shape
    few, bar = batch * look, None
    if len(anchor) > few:
        # Anchors first, by their best class: few numbers decide about many
        best, image = scores.amax(dim=1), anchor // anchors
        bar = _bar(best, image, batch, look)
        chosen = (best >= bar.take(image)).nonzero().squeeze(1)
        scores, anchor = scores.index_select(0, chosen), anchor.take(chosen)
    wanted = scores > threshold
    if bar is not None:
        wanted &= scores >= bar.take(anchor // anchors)[:, None]
    row, label = wanted.nonzero().unbind(1)
    values, anchor = scores[row, label], anchor.take(row)
    group = label.add(anchor // anchors, alpha=classes)
    if len(values) > few:
        image = anchor // anchors
        bar = _bar(values, image, batch, look)
        chosen = (values >= bar.take(image)).nonzero().squeeze(1)
        values, anchor, group = values.take(chosen), anchor.take(chosen), group.take(chosen)
    return _Candidates(anchor, values, group, torch.bincount(group, minlength=batch * classes)), bar


def _bar(scores: Float[Tensor, " n"], image: Int[Tensor, " n"], batch: int, look: int) -> Float[Tensor, " b"]:
    """Return each image's `look`-th best score, -1 where it has fewer."""
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
) -> _Survivors:
    """Return what survives: of each image at least the best `most`.

    What a candidate falls to is better than it. So only the best candidates are settled, unless too few survive.
    """
    look = max(1, _FIRST_LOOK * most)
    while True:
        near, least = _candidates(scores, anchor, shape, threshold, look)
        near = _in_order(near, topk)
        boxes, keep = settle(near)
        kept = keep.nonzero().squeeze(1)
        found = _Survivors(boxes.index_select(0, kept), near.scores.take(kept), near.group.take(kept))
        if least is None:
            return found
        total = torch.bincount(found.group // shape[2], minlength=shape[0])
        if bool(((total >= most) | (least <= threshold)).all()):
            return found
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
    """Return the candidates' boxes and which of them no better one of their group, or of their image, suppresses.

    A box wholly beyond the image's border is clipped to nothing: no answer to anyone, and it takes nobody's place.
    """
    boxes = boxes_of(near.anchor)
    if class_agnostic:
        # Candidates stand class after class; an image's must stand by score alone
        image = near.group // shape[2]
        order = _best_first(near.scores, image)
        keep = suppress(boxes[order], image.bincount(), threshold, inclusive)
        keep = torch.zeros_like(keep).index_put((order,), keep)
    else:
        keep = suppress(boxes, near.counts, threshold, inclusive)
    keep = _first_of_each(keep, near, most) if most else keep
    boxes = boxes.clamp_(0, 1) if clip == "after_nms" else boxes
    x1, y1, x2, y2 = boxes.unbind(1)
    return boxes, keep & (x2 > x1) & (y2 > y1)


def _first_of_each(keep: Bool[Tensor, " n"], near: _Candidates, most: int) -> Bool[Tensor, " n"]:
    """Return `keep` without what comes after the first `most` of a group."""
    count = torch.bincount(near.group[keep], minlength=len(near.counts))
    place = keep.cumsum(0) - (count.cumsum(0) - count)[near.group]
    return keep & (place <= most)


def _pack(found: _Survivors, shape: Sequence[int], most: int) -> Found:
    """Sort each image's boxes by score, cap them and pad the images to one length."""
    batch, _, classes = shape
    if batch == 1:
        # Nothing to pad; half of what follows
        scores, order = found.scores.sort(descending=True, stable=True)
        order = order[:most]
        labels, counts = found.group.take(order), order.new_full((1,), len(order))
        return Found(found.boxes_xyxy.index_select(0, order)[None], scores[None, :most], labels[None], counts)
    image = found.group // classes
    labels = found.group - image * classes
    total = torch.bincount(image, minlength=batch)
    order = _best_first(found.scores, image)
    counts = total.clamp(max=most)
    lane = torch.arange(int(counts.max()) if len(counts) > 0 else 0, device=image.device)
    padding = lane >= counts[:, None]
    index = order.take((lane + (total.cumsum(0) - total)[:, None]).masked_fill_(padding, 0))
    return Found(
        found.boxes_xyxy[index].masked_fill_(padding[..., None], 0),
        found.scores.take(index).masked_fill_(padding, 0),
        labels.take(index).masked_fill_(padding, -1),
        counts,
    )


def detect(
    outputs: HeadOutputs,
    sizes: Sequence[tuple[int, int]],
    config: Config,
    names: tuple[str, ...],
    threshold: float | NDArray[np.float32] | None = None,
) -> list[Detections]:
    """Post-process a batch.

    Args:
        outputs: the network's answers.
        sizes: (width, height) of the original images.
        config: of the network.
        names: of the classes.
        threshold: scores lie above it (None: the config's); an array [C] holds the lowest score reported of each class.
    """
    least = threshold if isinstance(threshold, np.ndarray) else None
    above = config.post.score_threshold if threshold is None else threshold
    if isinstance(above, np.ndarray):
        above = just_below(float(above.min()))
    device = str(outputs.offsets.device)
    anchors = make_anchors(config.anchors, outputs.feature_shapes, config.model.input_size, device)
    answer = postprocess(
        outputs,
        anchors,
        score=config.model.score,
        variances=config.model.variances,
        code=config.model.coder,
        score_threshold=above,
        nms_threshold=config.post.nms_threshold,
        nms_inclusive=config.post.nms_inclusive,
        pre_nms_topk=config.post.pre_nms_topk,
        max_detections=config.post.max_detections,
        max_per_class=0 if config.post.max_per_class == "none" else config.post.max_per_class,
        min_size=config.post.min_size,
        multi_label=config.post.multi_label,
        clip=config.post.clip,
    )
    scale = torch.tensor([(w, h, w, h) for w, h in sizes], dtype=torch.float32, device=answer.boxes_xyxy.device)
    boxes = (answer.boxes_xyxy * scale[:, None]).cpu().numpy()
    scores, labels = answer.scores.cpu().numpy(), answer.labels.cpu().numpy()
    counts = answer.counts.cpu().numpy()
    found = [Detections(boxes[i, :n], scores[i, :n], labels[i, :n], names) for i, n in enumerate(counts)]
    return found if least is None else [reaching(one, least) for one in found]
