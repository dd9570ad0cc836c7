"""From a network's raw answer to boxes with scores and classes (Caffe's DetectionOutput, batched)."""

from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.ops.boxes import Number
from multibox.ops.coding import VARIANCES, BoxCode, Variances, decode
from multibox.ops.nms import suppress
from multibox.ops.ranking import best_first
from multibox.tensors import HeadOutputs

Score = Literal["softmax", "sigmoid"]
Clip = Literal["before_nms", "after_nms", "never"]


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
    decoded = partial(_decode, outputs.offsets, anchors_xyxy, variances, code, clip == "before_nms")
    scores = _class_scores(outputs.logits, score, multi_label)
    scores = scores.masked_fill(_small(decoded(), min_size)[:, None], -1.0) if min_size else scores
    group, anchor, kept_scores = _candidates(scores, score_threshold, pre_nms_topk)
    image, label = group // scores.shape[1], group % scores.shape[1]
    boxes = decoded((image, anchor))
    keep = _survivors(boxes, kept_scores, group, image if class_agnostic else None, nms_threshold, nms_inclusive)
    keep = _first_of_each(keep, group, max_per_class) if max_per_class else keep
    boxes = boxes[keep].clamp(0, 1) if clip == "after_nms" else boxes[keep]
    return _pack(boxes, kept_scores[keep], label[keep], image[keep], len(scores), max_detections)


def _class_scores(logits: Float[Tensor, "b a k"], score: Score, multi_label: bool) -> Float[Tensor, "b c a"]:
    """Return scores without background, anchors last."""
    logits = logits.float()
    scores = logits.softmax(dim=2)[..., 1:] if score == "softmax" else logits.sigmoid()
    scores = scores.transpose(1, 2).contiguous()
    if multi_label:
        return scores
    best = scores.argmax(dim=1, keepdim=True)
    return torch.zeros_like(scores).scatter_(1, best, scores.gather(1, best))


def _decode(
    offsets: Float[Tensor, "b a 4"],
    anchors_xyxy: Float[Tensor, "a 4"],
    variances: Variances,
    code: BoxCode,
    clip: bool,
    where: tuple[Int[Tensor, " n"], Int[Tensor, " n"]] | None = None,
) -> Float[Tensor, "*n 4"]:
    """Return the boxes that suppression compares: all, or those of `where` (picture, anchor)."""
    if where is not None:
        offsets, anchors_xyxy = offsets[where], anchors_xyxy[where[1]]
    boxes = decode(offsets, anchors_xyxy, variances, code)
    return boxes.clamp(0, 1) if clip else boxes


def _small(boxes: Float[Tensor, "b a 4"], least: Number) -> Bool[Tensor, "b a"]:
    return ((boxes[..., 2:] - boxes[..., :2]) <= least).any(dim=-1)


def _candidates(
    scores: Float[Tensor, "b c a"], threshold: Number, topk: int
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Return group (picture * classes + class), anchor and score of what NMS looks at: group by group, best first."""
    rows = scores.flatten(0, 1)
    above = rows > threshold
    counts = above.sum(dim=1)
    group, anchor = above.nonzero(as_tuple=True)
    # Few scores are above: ranking closed rows is far less work than ranking all anchors.
    live = counts.nonzero().squeeze(1)
    counts = counts[live]
    width = int(counts.max()) if len(live) > 0 else 0
    row = torch.arange(len(live), device=rows.device).repeat_interleave(counts)
    place = torch.arange(len(group), device=rows.device) - (counts.cumsum(0) - counts)[row]
    anchors = torch.zeros((len(live), width), dtype=torch.long, device=rows.device)
    anchors[row, place] = anchor
    wanted = torch.arange(width, device=rows.device) < counts[:, None]
    index, present = best_first(rows[live].gather(1, anchors), wanted, topk)
    row, column = present.nonzero(as_tuple=True)
    anchor, group = anchors[row, index[row, column]], live[row]
    return group, anchor, rows[group, anchor]


def _best_first(scores: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the order group by group, best first."""
    order = scores.argsort(descending=True, stable=True)
    return order[group[order].argsort(stable=True)]


def _survivors(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    group: Int[Tensor, " n"],
    image: Int[Tensor, " n"] | None,
    threshold: Number,
    inclusive: bool,
) -> Bool[Tensor, " n"]:
    """Return which boxes no better one suppresses: one of their group, or of their `image` where it is given."""
    if image is None:
        return suppress(boxes, group.bincount(), threshold, inclusive)
    # Candidates stand class after class; a picture's must stand by score alone
    order = _best_first(scores, image)
    keep = suppress(boxes[order], image.bincount(), threshold, inclusive)
    return torch.zeros_like(keep).index_put((order,), keep)


def _first_of_each(keep: Bool[Tensor, " n"], group: Int[Tensor, " n"], most: int) -> Bool[Tensor, " n"]:
    """Return `keep` without what comes after the first `most` of a group, whose members stand best first."""
    order = group.argsort(stable=True)
    kept, owner = keep[order], group[order]
    count = torch.bincount(owner[kept], minlength=int(owner[-1]) + 1 if len(owner) > 0 else 0)
    place = kept.cumsum(0) - (count.cumsum(0) - count)[owner]
    return torch.zeros_like(keep).index_put((order,), kept & (place <= most))


def _pack(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    labels: Int[Tensor, " n"],
    image: Int[Tensor, " n"],
    batch: int,
    most: int,
) -> Found:
    """Sort each picture's boxes by score, cap them and pad the pictures to one length."""
    order = _best_first(scores, image)
    total = torch.bincount(image, minlength=batch)
    owner = image[order]
    place = torch.arange(len(order), device=image.device) - (total.cumsum(0) - total)[owner]
    order, owner, place = (values[place < most] for values in (order, owner, place))
    counts = total.clamp(max=most)
    width = int(counts.max()) if batch > 0 else 0
    found = Found(
        boxes.new_zeros((batch, width, 4)),
        scores.new_zeros((batch, width)),
        labels.new_full((batch, width), -1),
        counts,
    )
    found.boxes_xyxy[owner, place] = boxes[order]
    found.scores[owner, place] = scores[order]
    found.labels[owner, place] = labels[order]
    return found
