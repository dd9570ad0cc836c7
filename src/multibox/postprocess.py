"""From a network's raw answer to boxes with scores and classes (Caffe's DetectionOutput, batched)."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
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
    pre_nms_topk: int = 400,
    max_detections: int = 200,
    multi_label: bool = True,
    class_agnostic: bool = False,
    clip: Clip = "after_nms",
) -> Found:
    """Score, select, decode, suppress and cap, for all pictures and classes at once.

    The defaults are those of Caffe's SSD: per class, scores above the threshold, the best 400 of them, greedy NMS; then
    the best 200 over all classes. Equal scores go by the lower class, then by the lower anchor. Half precision is
    computed in float32.

    Args:
        outputs: the network's answer.
        anchors_xyxy: the anchors, in the order of the outputs.
        score: softmax over background and classes, or one sigmoid a class.
        variances: of the box code.
        code: the box code.
        score_threshold: scores must lie above it.
        nms_threshold: a box goes when its IoU with a better box that stays is above it.
        pre_nms_topk: the best so many boxes of each class go into NMS.
        max_detections: the best so many boxes of each picture come out.
        multi_label: a box may be reported once for each class; False leaves each anchor its best class only.
        class_agnostic: boxes of all classes suppress each other.
        clip: when boxes are cut to the picture: before NMS (torchvision, HiKapok), after it (Caffe's results) or never.
    """
    scores = _class_scores(outputs.logits, score, multi_label)
    batch, classes, _ = scores.shape
    group, anchor, kept_scores = _candidates(scores, score_threshold, pre_nms_topk)
    image, label = group // classes, group % classes
    boxes = decode(outputs.offsets[image, anchor], anchors_xyxy[anchor], variances, code)
    if clip == "before_nms":
        boxes = boxes.clamp(0, 1)
    if class_agnostic:
        # Candidates stand class after class; a picture's must stand by score alone.
        order = _by_picture(kept_scores, image)
        image, label, boxes, kept_scores = image[order], label[order], boxes[order], kept_scores[order]
    counts = torch.bincount(image if class_agnostic else group)
    keep = suppress(boxes, counts, nms_threshold)
    boxes = boxes.clamp(0, 1) if clip == "after_nms" else boxes
    return _pack(boxes[keep], kept_scores[keep], label[keep], image[keep], batch, max_detections)


def _class_scores(logits: Float[Tensor, "b a k"], score: Score, multi_label: bool) -> Float[Tensor, "b c a"]:
    """Return scores without background, anchors last."""
    logits = logits.float()
    scores = logits.softmax(dim=2)[..., 1:] if score == "softmax" else logits.sigmoid()
    scores = scores.transpose(1, 2).contiguous()
    if multi_label:
        return scores
    best = scores.argmax(dim=1, keepdim=True)
    return torch.zeros_like(scores).scatter_(1, best, scores.gather(1, best))


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


def _by_picture(scores: Float[Tensor, " n"], image: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the order picture by picture, best first."""
    order = scores.argsort(descending=True, stable=True)
    return order[image[order].argsort(stable=True)]


def _pack(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    labels: Int[Tensor, " n"],
    image: Int[Tensor, " n"],
    batch: int,
    most: int,
) -> Found:
    """Sort each picture's boxes by score, cap them and pad the pictures to one length."""
    order = _by_picture(scores, image)
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
