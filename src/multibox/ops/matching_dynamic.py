"""Assign anchors by thresholds found per object: ATSS, SimOTA and task-aligned assignment.

The last two use the network's outputs. Beyond the rules of `multibox.ops.matching`, all three share these:

* An anchor whose centre lies on an object's border is outside.
* An anchor that several objects choose goes to one of them.
* An object left without an anchor, which the papers allow, gets the free anchor that it overlaps most, as
  `greedy_bipartite` deals them out. An object that overlaps no free anchor stays without one.
* A score or IoU that is NaN counts as 0.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.errors import ConfigError
from multibox.ops.boxes import Number, pairwise_iou, widest
from multibox.ops.matching import (
    NEGATIVE,
    Assignment,
    MatchInputs,
    all_negative,
    anchor_overlaps,
    assign_own,
    greedy_bipartite,
    is_empty,
    with_full_weight,
    without_padding,
)
from multibox.ops.nms import best_first
from multibox.ops.rows import may_read

_EPSILON = 1e-7
"""Keeps logarithms finite; 1 - 1e-7 is still below 1 in float32."""


def match_atss(
    anchors_xyxy: Float[Tensor, "a 4"],
    gt_xyxy: Float[Tensor, "b g 4"],
    gt_valid: Bool[Tensor, "b g"],
    outputs: MatchInputs | None = None,
    *,
    level_sizes: Sequence[int],
    topk: int = 9,
    per_cell: Sequence[int] | None = None,
) -> Assignment:
    """Give each object those of its nearest anchors that stand out by IoU (ATSS; Zhang et al. 2020, arXiv:1912.02424).

    Candidates are the nearest anchors of each level by centre. The threshold is the mean of their IoUs plus the
    standard deviation (unbiased, as in the authors' code). A positive reaches it and has its centre inside the object.
    Of several objects, the one of highest IoU takes the anchor.

    Args:
        anchors_xyxy: The anchors, level after level.
        gt_xyxy: The objects.
        gt_valid: False marks padding, which is never matched.
        outputs: Not used.
        level_sizes: Number of anchors of each level.
        topk: Candidates per object and level.
        per_cell: Anchors per cell of each level. `topk` then counts cells, as in the authors' code; without it, cells
            of several anchors give candidates at fewer places.

    Returns:
        The assignment: every other anchor is NEGATIVE, every weight and score is 1.

    Raises:
        ConfigError: The levels do not add up to the anchors.
    """
    _check_levels(level_sizes, len(anchors_xyxy))
    if is_empty(anchors_xyxy, gt_xyxy):
        return all_negative(anchors_xyxy, gt_xyxy)
    overlaps = anchor_overlaps(anchors_xyxy, gt_xyxy, gt_valid)
    gt = without_padding(gt_xyxy, gt_valid)
    counts = [topk * times for times in per_cell or [1] * len(level_sizes)]
    columns = _nearest(anchors_xyxy, gt, level_sizes, counts)
    # In float64 equal IoUs have exactly their mean, and the order of summation decides nothing.
    ious = overlaps.gather(2, columns).to(widest(overlaps.device))
    deviation = ious.std(dim=2, keepdim=True, correction=min(1, columns.shape[2] - 1))
    x, y = _centers(anchors_xyxy)
    positive = (ious >= ious.mean(dim=2, keepdim=True) + deviation) & (ious > 0) & _inside(x[columns], y[columns], gt)
    gt_index = _resolve(_mark(columns, positive, len(anchors_xyxy)), overlaps, overlaps, gt_valid)
    return with_full_weight(gt_index, overlaps.amax(dim=1))


def match_simota(
    anchors_xyxy: Float[Tensor, "a 4"],
    gt_xyxy: Float[Tensor, "b g 4"],
    gt_valid: Bool[Tensor, "b g"],
    outputs: MatchInputs,
    *,
    level_sizes: Sequence[int],
    cell_sizes: Sequence[tuple[Number, Number]],
    radius: Number = 2.5,
    topk: int = 10,
    iou_weight: Number = 3.0,
) -> Assignment:
    """Give each object the anchors that predict it at the least cost (SimOTA; YOLOX, Ge et al. 2021, arXiv:2107.08430).

    The cost is the binary cross-entropy of all class scores, those of a softmax too, plus `iou_weight` times -ln IoU of
    the decoded box. Candidates of an object have their centre inside it or near its centre; those for which only one
    holds come after all others. As many are taken as the `topk` largest IoUs of its candidates add up to, rounded down,
    at least one. Of several objects, the one of lowest cost takes the anchor. Unlike in YOLOX, candidates of other
    objects are not candidates of this one.

    Args:
        anchors_xyxy: The anchors, level after level.
        gt_xyxy: The objects.
        gt_valid: False marks padding, which is never matched.
        outputs: The network's outputs, detached.
        level_sizes: Number of anchors of each level.
        cell_sizes: Width and height of a cell of each level, in the boxes' unit.
        radius: Distance from the object's centre that counts as near, in cells, along each axis.
        topk: Number of IoUs that are added up, and largest number of anchors per object.
        iou_weight: Weight of the second term.

    Returns:
        The assignment: every other anchor is NEGATIVE, weights are 1, and the score of a positive is the IoU of its
        decoded box.

    Raises:
        ConfigError: The levels do not add up to the anchors.
    """
    _check_levels(level_sizes, len(anchors_xyxy))
    if is_empty(anchors_xyxy, gt_xyxy):
        return all_negative(anchors_xyxy, gt_xyxy)
    overlaps = anchor_overlaps(anchors_xyxy, gt_xyxy, gt_valid)
    gt = without_padding(gt_xyxy, gt_valid)
    inside = _inside(*_centers(anchors_xyxy), gt)
    near = _near(anchors_xyxy, gt, level_sizes, [(radius * width, radius * height) for width, height in cell_sizes])
    ious = _decoded_ious(outputs, gt)
    cost = _class_cost(outputs).sub_(ious.clamp(min=_EPSILON).log_().mul_(iou_weight))
    # Above any cost, yet small: adding a round 1e5 would leave float32 two decimals of the cost.
    cost += ~(inside & near) * (-math.log(_EPSILON) * (outputs.scores.shape[2] + iou_weight))
    gt_index = _resolve(_cheapest(cost, ious, inside | near, topk), -cost, overlaps, gt_valid)
    return with_full_weight(gt_index, overlaps.amax(dim=1))._replace(soft_scores=_at(ious, gt_index))


def match_task_aligned(
    anchors_xyxy: Float[Tensor, "a 4"],
    gt_xyxy: Float[Tensor, "b g 4"],
    gt_valid: Bool[Tensor, "b g"],
    outputs: MatchInputs,
    *,
    topk: int = 13,
    alpha: Number = 1.0,
    beta: Number = 6.0,
) -> Assignment:
    """Give each object the anchors inside it that classify and place it best (TOOD; Feng et al., arXiv:2108.07755).

    An anchor's alignment with an object is s^alpha * u^beta, with s its score of the object's class and u the IoU of
    its decoded box. Each object takes the `topk` of largest alignment above 0 with their centres inside it. Of several
    objects, the one of highest u takes the anchor.

    Args:
        anchors_xyxy: The anchors.
        gt_xyxy: The objects.
        gt_valid: False marks padding, which is never matched.
        outputs: The network's outputs, detached.
        topk: Largest number of anchors per object.
        alpha: Exponent of the score.
        beta: Exponent of the IoU.

    Returns:
        The assignment: every other anchor is NEGATIVE. The score of a positive is its alignment, scaled so that the
        largest of an object's positives equals the largest IoU among them. Its weight is the same number; the paper
        multiplies the loss of the box by it, not that of the class.
    """
    if is_empty(anchors_xyxy, gt_xyxy):
        return all_negative(anchors_xyxy, gt_xyxy)
    overlaps = anchor_overlaps(anchors_xyxy, gt_xyxy, gt_valid)
    gt = without_padding(gt_xyxy, gt_valid)
    ious = _decoded_ious(outputs, gt)
    scores = _of_class(outputs.scores.float().nan_to_num(0), outputs.gt_labels)
    # In float64: a CPU's float32 powers differ in the last digit by place in memory, so equals would not tie.
    wide = widest(ious.device)
    alignment = (scores.to(wide).pow(alpha) * ious.to(wide).pow(beta)).float()
    wanted = _inside(*_centers(anchors_xyxy), gt) & (alignment > 0)
    columns, present = _best_anchors(alignment, wanted, topk)
    gt_index = _resolve(_mark(columns, present, len(anchors_xyxy)), ious, overlaps, gt_valid)
    soft = _scaled(_at(alignment, gt_index), _at(ious, gt_index), gt_index, gt_valid.shape[1])
    return Assignment(gt_index, overlaps.amax(dim=1), soft, soft)


def _check_levels(level_sizes: Sequence[int], count: int) -> None:
    """Refuse levels that do not add up to `count` anchors."""
    if sum(level_sizes) != count:
        raise ConfigError(
            f"level_sizes {list(level_sizes)} add up to {sum(level_sizes)}, expected the number of anchors, {count}; "
            "give height * width * anchors per cell of every feature map"
        )


def _centers(boxes_xyxy: Float[Tensor, "*n 4"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Return x and y of each box's centre, contiguous and in float32."""
    x1, y1, x2, y2 = boxes_xyxy.float().movedim(-1, 0).contiguous().unbind()
    return (x1 + x2) * 0.5, (y1 + y2) * 0.5


def _inside(x: Float[Tensor, "... k"], y: Float[Tensor, "... k"], gt: Float[Tensor, "b g 4"]) -> Bool[Tensor, "b g k"]:
    """Return whether each point lies inside the object; points are the same for all objects, or each object's own."""
    x1, y1, x2, y2 = gt.unsqueeze(2).unbind(-1)
    return (x > x1) & (x < x2) & (y > y1) & (y < y2)


def _distances(
    anchors_xyxy: Float[Tensor, "a 4"], gt: Float[Tensor, "b g 4"]
) -> tuple[Float[Tensor, "b g a"], Float[Tensor, "b g a"]]:
    """Return the distance along x and along y, with its sign, of each anchor's centre from each object's."""
    (x, y), (gt_x, gt_y) = _centers(anchors_xyxy), _centers(gt)
    return x - gt_x[..., None], y - gt_y[..., None]


def _near(
    anchors_xyxy: Float[Tensor, "a 4"],
    gt: Float[Tensor, "b g 4"],
    level_sizes: Sequence[int],
    reaches: Sequence[tuple[Number, Number]],
) -> Bool[Tensor, "b g a"]:
    """Return whether each anchor's centre lies within its level's reach of the object's; False without area."""
    dx, dy = _distances(anchors_xyxy, gt)
    reach_x, reach_y = (
        torch.cat([dx.new_full((size,), reach[axis]) for size, reach in zip(level_sizes, reaches, strict=True)])
        for axis in (0, 1)
    )
    has_area = (gt[..., 2:] > gt[..., :2]).all(dim=2, keepdim=True)
    return (dx.abs() < reach_x) & (dy.abs() < reach_y) & has_area


def _nearest(
    anchors_xyxy: Float[Tensor, "a 4"], gt: Float[Tensor, "b g 4"], level_sizes: Sequence[int], counts: Sequence[int]
) -> Int[Tensor, "b g k"]:
    """Return the anchors of each level whose centres lie nearest to each object's, at most `counts` of each level."""
    dx, dy = _distances(anchors_xyxy, gt)
    distances = dx.square_() + dy.square_()
    columns: list[Tensor] = []
    start = 0
    for size, count in zip(level_sizes, counts, strict=True):
        level = distances[..., start : start + size]
        columns.append(_best_anchors(-level, torch.ones_like(level, dtype=torch.bool), count)[0] + start)
        start += size
    return torch.cat(columns, dim=2)


def _decoded_ious(outputs: MatchInputs, gt: Float[Tensor, "b g 4"]) -> Float[Tensor, "b g a"]:
    return pairwise_iou(gt, outputs.boxes_xyxy.float()).nan_to_num_(nan=0.0)


def _of_class(table: Float[Tensor, "b a c"], gt_labels: Int[Tensor, "b g"]) -> Float[Tensor, "b g a"]:
    images = torch.arange(len(table), device=table.device)[:, None]
    return table.transpose(1, 2)[images, gt_labels.clamp(min=0)]


def _class_cost(outputs: MatchInputs) -> Float[Tensor, "b g a"]:
    """Return -ln s of the object's class plus the sum of -ln (1 - s) of all others."""
    scores = outputs.scores.float().nan_to_num(0).clamp(_EPSILON, 1 - _EPSILON)
    missed = (1 - scores).log()
    return _of_class(missed - scores.log(), outputs.gt_labels) - missed.sum(dim=2)[:, None]


def _cheapest(
    cost: Float[Tensor, "b g a"], ious: Float[Tensor, "b g a"], candidates: Bool[Tensor, "b g a"], topk: int
) -> Bool[Tensor, "b g a"]:
    """Return each object's cheapest candidates, as many as their largest IoUs add up to."""
    largest = ious.masked_fill(~candidates, 0).topk(min(topk, ious.shape[2]), dim=2).values
    # Exact in float64: ten boxes of IoU 1 make ten, not nine.
    wanted = largest.sum(dim=2, keepdim=True, dtype=widest(ious.device)).long().clamp(min=1)
    columns, present = _best_anchors(-cost, candidates, topk)
    rank = torch.arange(columns.shape[2], device=columns.device)
    return _mark(columns, present & (rank < wanted), cost.shape[2])


def _best_anchors(
    scores: Float[Tensor, "b g n"], wanted: Bool[Tensor, "b g n"], limit: int
) -> tuple[Int[Tensor, "b g k"], Bool[Tensor, "b g k"]]:
    """Return each object's `limit` wanted anchors of highest score, and which of them exist."""
    columns, present = best_first(scores.flatten(0, 1), wanted.flatten(0, 1), min(limit, scores.shape[2]))
    shape = (*scores.shape[:2], columns.shape[1])
    return columns.view(shape), present.view(shape)


def _mark(columns: Int[Tensor, "b g k"], keep: Bool[Tensor, "b g k"], count: int) -> Bool[Tensor, "b g a"]:
    """Return a table of `count` anchors that is True at the columns to keep of each object."""
    # One column more than anchors takes those that are not kept.
    marks = torch.zeros((*columns.shape[:2], count + 1), dtype=torch.bool, device=columns.device)
    return marks.scatter_(2, torch.where(keep, columns, count), True)[..., :count]


def _resolve(
    chosen: Bool[Tensor, "b g a"],
    preference: Float[Tensor, "b g a"],
    overlaps: Float[Tensor, "b g a"],
    gt_valid: Bool[Tensor, "b g"],
) -> Int[Tensor, "b a"]:
    """Give each anchor to the object of largest preference that chose it, then free anchors to objects without one."""
    batch, objects, _ = chosen.shape
    best, row = preference.masked_fill(~chosen, -math.inf).max(dim=1)
    taken = best > -math.inf
    gt_index = torch.where(taken, row, NEGATIVE)
    served = torch.zeros((batch, objects + 1), dtype=torch.bool, device=row.device)
    served = served.scatter_(1, torch.where(taken, row, objects), True)[:, :objects]
    left = gt_valid & ~served
    if not may_read(left):
        return assign_own(gt_index, greedy_bipartite(overlaps.masked_fill(taken[:, None], 0), left))
    # On a CPU only images with such an object
    images = torch.as_tensor(np.flatnonzero(left.any(dim=1).numpy()))
    if len(images) > 0:
        free = overlaps[images].masked_fill_(taken[images, None], 0)
        gt_index[images] = assign_own(gt_index[images], greedy_bipartite(free, left[images]))
    return gt_index


def _at(table: Float[Tensor, "b g a"], gt_index: Int[Tensor, "b a"]) -> Float[Tensor, "b a"]:
    """Return the entry of each positive with its object; 0 elsewhere."""
    return table.gather(1, gt_index.clamp(min=0)[:, None]).squeeze(1).masked_fill_(gt_index < 0, 0)


def _scaled(
    alignment: Float[Tensor, "b a"], iou: Float[Tensor, "b a"], gt_index: Int[Tensor, "b a"], objects: int
) -> Float[Tensor, "b a"]:
    """Scale each object's alignments so that the largest is the largest IoU of its positives; 0 for negatives."""
    own = gt_index.clamp(min=0)
    zeros = alignment.new_zeros((len(alignment), objects))
    largest = zeros.scatter_reduce(1, own, alignment, "amax").gather(1, own)
    reach = zeros.scatter_reduce(1, own, iou, "amax").gather(1, own)
    # Where all alignments of an object are 0, its one positive was dealt to it by `_resolve`.
    share = torch.where(largest > 0, alignment / largest, 1.0)
    return (share * reach).masked_fill_(gt_index < 0, 0)
