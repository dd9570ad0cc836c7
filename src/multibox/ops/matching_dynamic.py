"""Matchers that ask the network which anchors suit an object best: SimOTA and task-aligned assignment.

They share the signature and the unit of `multibox.ops.matching`, and with ATSS (`multibox.ops.matching`) these
rules. An anchor whose centre lies on an object's border is outside. An anchor that several objects choose goes to one
of those that chose it, the lowest one among equals; of equal anchors the lowest is chosen first. An object that ends
with nothing, which all three papers allow, gets the free anchor that it overlaps most, as `greedy_bipartite` deals them
out: only there does the host wait for a GPU. An object that no free anchor overlaps stays without. Answers that are not
numbers count as a score and an IoU of 0.
"""

import math
from collections.abc import Sequence

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
    greedy_bipartite,
    is_empty,
    without_padding,
)
from multibox.ops.nms import best_first

_EPSILON = 1e-7
"""Keeps logarithms finite; 1 - 1e-7 is still below 1 in float32."""


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
    """Give each object the anchors that answer it at the least cost (Ge et al. 2021, YOLOX, arXiv:2107.08430).

    The cost is the binary cross-entropy of all class scores, which serves those of a softmax too, plus `iou_weight`
    times -ln IoU of the decoded box. Candidates of an object have their centre inside it or near its centre; those for
    which not both hold come after all others. As many are taken as the `topk` largest IoUs of its candidates add up to,
    rounded down, at least one. Several objects: the lowest cost. Unlike in YOLOX, candidates of other objects are none.

    Args:
        anchors_xyxy: the anchors, level after level.
        gt_xyxy: the objects.
        gt_valid: False marks rows that are padding and are never matched.
        outputs: the network's answer, detached.
        level_sizes: anchors of each level.
        cell_sizes: width and height of a cell of each level, in the boxes' unit.
        radius: how far from the object's centre is near, in cells, along each axis.
        topk: IoUs that are added up, and the most anchors of an object.
        iou_weight: weight of the second term.

    Returns:
        The assignment: every other anchor NEGATIVE, weights 1, and as the score of a positive its decoded box's IoU.

    Raises:
        ConfigError: the levels do not add up to the anchors.
    """
    check_levels(level_sizes, len(anchors_xyxy))
    if is_empty(anchors_xyxy, gt_xyxy):
        return all_negative(anchors_xyxy, gt_xyxy)
    overlaps = anchor_overlaps(anchors_xyxy, gt_xyxy, gt_valid)
    gt = without_padding(gt_xyxy, gt_valid)
    inside = lies_inside(*anchor_centers(anchors_xyxy), gt)
    near = _near(anchors_xyxy, gt, level_sizes, [(radius * width, radius * height) for width, height in cell_sizes])
    ious = _decoded_ious(outputs, gt)
    cost = _class_cost(outputs) - iou_weight * ious.clamp(min=_EPSILON).log()
    # Above any cost, yet small: a round 1e5 would leave float32 two decimals of the cost.
    cost += ~(inside & near) * (-math.log(_EPSILON) * (outputs.scores.shape[2] + iou_weight))
    gt_index = settle(_cheapest(cost, ious, inside | near, topk), -cost, overlaps, gt_valid)
    one = overlaps.new_ones(()).expand(gt_index.shape)
    return Assignment(gt_index, overlaps.amax(dim=1), one, _at(ious, gt_index))


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
    """Give each object the anchors inside it that both classify and place it best (Feng et al. 2021, TOOD, 2108.07755).

    An anchor's alignment with an object is s^alpha * u^beta: s its score of the object's class, u its decoded box's
    IoU. Each object takes the `topk` of largest alignment above 0 with centres inside. Several objects: the highest u.

    Args:
        anchors_xyxy: the anchors.
        gt_xyxy: the objects.
        gt_valid: False marks rows that are padding and are never matched.
        outputs: the network's answer, detached.
        topk: the most anchors of an object.
        alpha: exponent of the score.
        beta: exponent of the IoU.

    Returns:
        The assignment: every other anchor NEGATIVE. The score of a positive is its alignment, scaled so that the
        largest of an object's positives equals the largest IoU among them; its weight is the same number, by which the
        paper multiplies the loss of its box, not that of its class.
    """
    if is_empty(anchors_xyxy, gt_xyxy):
        return all_negative(anchors_xyxy, gt_xyxy)
    overlaps = anchor_overlaps(anchors_xyxy, gt_xyxy, gt_valid)
    gt = without_padding(gt_xyxy, gt_valid)
    ious = _decoded_ious(outputs, gt)
    scores = _of_class(outputs.scores.float().nan_to_num(0), outputs.gt_labels)
    # In float64, since a CPU's float32 powers differ in the last digit by place: equals would not tie.
    wide = widest(ious.device)
    alignment = (scores.to(wide).pow(alpha) * ious.to(wide).pow(beta)).float()
    wanted = lies_inside(*anchor_centers(anchors_xyxy), gt) & (alignment > 0)
    columns, present = best_anchors(alignment, wanted, topk)
    gt_index = settle(mark_pairs(columns, present, len(anchors_xyxy)), ious, overlaps, gt_valid)
    soft = _scaled(_at(alignment, gt_index), _at(ious, gt_index), gt_index, gt_valid.shape[1])
    return Assignment(gt_index, overlaps.amax(dim=1), soft, soft)


def check_levels(level_sizes: Sequence[int], count: int) -> None:
    """Refuse levels that do not add up to `count` anchors."""
    if sum(level_sizes) != count:
        raise ConfigError(
            f"level_sizes {list(level_sizes)} add up to {sum(level_sizes)}, expected the number of anchors, {count}; "
            "give height * width * anchors per cell of every feature map"
        )


def anchor_centers(anchors_xyxy: Float[Tensor, "a 4"]) -> tuple[Float[Tensor, " a"], Float[Tensor, " a"]]:
    """Return x and y of each anchor's centre, in float32."""
    x1, y1, x2, y2 = anchors_xyxy.float().t().contiguous().unbind()
    return (x1 + x2) * 0.5, (y1 + y2) * 0.5


def lies_inside(
    x: Float[Tensor, "... k"], y: Float[Tensor, "... k"], gt: Float[Tensor, "b g 4"]
) -> Bool[Tensor, "b g k"]:
    """Return whether each point, the same of all objects or each object's own, lies inside the object."""
    x1, y1, x2, y2 = gt.unsqueeze(2).unbind(-1)
    return (x > x1) & (x < x2) & (y > y1) & (y < y2)


def _near(
    anchors_xyxy: Float[Tensor, "a 4"],
    gt: Float[Tensor, "b g 4"],
    level_sizes: Sequence[int],
    reaches: Sequence[tuple[Number, Number]],
) -> Bool[Tensor, "b g a"]:
    """Return whether each anchor's centre lies within its level's reach of the object's; never for one without area."""
    x, y = anchor_centers(anchors_xyxy)
    reach_x, reach_y = (
        torch.cat([x.new_full((size,), reach[axis]) for size, reach in zip(level_sizes, reaches, strict=True)])
        for axis in (0, 1)
    )
    x1, y1, x2, y2 = gt.unsqueeze(2).unbind(-1)
    near = ((x - (x1 + x2) * 0.5).abs() < reach_x) & ((y - (y1 + y2) * 0.5).abs() < reach_y)
    return near & (x2 > x1) & (y2 > y1)


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
    # Exact in float64: ten boxes that fit make ten, not nine.
    wanted = largest.sum(dim=2, keepdim=True, dtype=widest(ious.device)).long().clamp(min=1)
    columns, present = best_anchors(-cost, candidates, topk)
    rank = torch.arange(columns.shape[2], device=columns.device)
    return mark_pairs(columns, present & (rank < wanted), cost.shape[2])


def best_anchors(
    scores: Float[Tensor, "b g n"], wanted: Bool[Tensor, "b g n"], limit: int
) -> tuple[Int[Tensor, "b g k"], Bool[Tensor, "b g k"]]:
    """Return each object's `limit` wanted anchors of highest score, the lower of equal ones first, and which exist."""
    batch, objects, count = scores.shape
    columns, present = best_first(scores.flatten(0, 1), wanted.flatten(0, 1), min(limit, count))
    shape = (batch, objects, columns.shape[1])
    return columns.view(shape), present.view(shape)


def mark_pairs(columns: Int[Tensor, "b g k"], keep: Bool[Tensor, "b g k"], count: int) -> Bool[Tensor, "b g a"]:
    """Return a table of all anchors that is True at the kept ones of each object."""
    # One column more than anchors takes what is not kept.
    marks = torch.zeros((*columns.shape[:2], count + 1), dtype=torch.bool, device=columns.device)
    return marks.scatter_(2, torch.where(keep, columns, count), True)[..., :count]


def settle(
    chosen: Bool[Tensor, "b g a"],
    preference: Float[Tensor, "b g a"],
    overlaps: Float[Tensor, "b g a"],
    gt_valid: Bool[Tensor, "b g"],
) -> Int[Tensor, "b a"]:
    """Give each anchor to the object of largest preference that chose it, then help objects that have none."""
    batch, objects, count = chosen.shape
    best, row = preference.masked_fill(~chosen, -math.inf).max(dim=1)
    taken = best > -math.inf
    gt_index = torch.where(taken, row, NEGATIVE)
    served = torch.zeros((batch, objects + 1), dtype=torch.bool, device=row.device)
    served = served.scatter_(1, torch.where(taken, row, objects), True)[:, :objects]
    anchor = greedy_bipartite(overlaps.masked_fill(taken[:, None], 0), gt_valid & ~served)
    rows = torch.arange(objects, device=row.device).expand(batch, -1)
    room = torch.cat([gt_index, gt_index[:, :1]], dim=1)
    return room.scatter_(1, torch.where(anchor >= 0, anchor, count), rows)[:, :count]


def _at(table: Float[Tensor, "b g a"], gt_index: Int[Tensor, "b a"]) -> Float[Tensor, "b a"]:
    """Return each positive's entry of its object, 0 elsewhere."""
    return table.gather(1, gt_index.clamp(min=0)[:, None]).squeeze(1).masked_fill_(gt_index < 0, 0)


def _scaled(
    alignment: Float[Tensor, "b a"], iou: Float[Tensor, "b a"], gt_index: Int[Tensor, "b a"], objects: int
) -> Float[Tensor, "b a"]:
    """Scale each object's alignments so that the largest is the largest IoU of its positives; 0 for negatives."""
    own = gt_index.clamp(min=0)
    nothing = alignment.new_zeros((len(alignment), objects))
    largest = nothing.scatter_reduce(1, own, alignment, "amax").gather(1, own)
    reach = nothing.scatter_reduce(1, own, iou, "amax").gather(1, own)
    # Where all alignments of an object are 0, its one positive is a gift of `settle`.
    share = torch.where(largest > 0, alignment / largest, 1.0)
    return (share * reach).masked_fill_(gt_index < 0, 0)


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
    """Give each object those of its nearest anchors that stand out by IoU (Zhang et al. 2020, arXiv:1912.02424).

    Candidates are the nearest anchors of each level by centre; the threshold is the mean of their IoUs plus their
    standard deviation (unbiased, as in the authors' code); a positive reaches it with its centre inside the object.
    Several objects: the highest IoU. An object left without is served by the rules of `multibox.ops.matching_dynamic`.

    Args:
        anchors_xyxy: the anchors, level after level.
        gt_xyxy: the objects.
        gt_valid: False marks rows that are padding and are never matched.
        outputs: not used.
        level_sizes: anchors of each level.
        topk: candidates of an object per level.
        per_cell: anchors per cell of each level. `topk` then counts cells, as in the authors' code; without it, cells
            of several anchors make the candidates fewer places.

    Returns:
        The assignment: every other anchor NEGATIVE, every weight and score 1.

    Raises:
        ConfigError: the levels do not add up to the anchors.
    """
    check_levels(level_sizes, len(anchors_xyxy))
    if is_empty(anchors_xyxy, gt_xyxy):
        return all_negative(anchors_xyxy, gt_xyxy)
    overlaps = anchor_overlaps(anchors_xyxy, gt_xyxy, gt_valid)
    gt = without_padding(gt_xyxy, gt_valid)
    counts = [topk * times for times in per_cell or [1] * len(level_sizes)]
    columns = _nearest(anchors_xyxy, gt, level_sizes, counts)
    # In float64 equal IoUs have exactly their mean, and the order of summation decides nothing.
    ious = overlaps.gather(2, columns).to(widest(overlaps.device))
    deviation = ious.std(dim=2, keepdim=True, correction=min(1, columns.shape[2] - 1))
    x, y = anchor_centers(anchors_xyxy)
    positive = (
        (ious >= ious.mean(dim=2, keepdim=True) + deviation) & (ious > 0) & lies_inside(x[columns], y[columns], gt)
    )
    gt_index = settle(mark_pairs(columns, positive, len(anchors_xyxy)), overlaps, overlaps, gt_valid)
    one = overlaps.new_ones(()).expand(gt_index.shape)
    return Assignment(gt_index, overlaps.amax(dim=1), one, one)


def _nearest(
    anchors_xyxy: Float[Tensor, "a 4"], gt: Float[Tensor, "b g 4"], level_sizes: Sequence[int], counts: Sequence[int]
) -> Int[Tensor, "b g k"]:
    """Return the anchors of each level whose centres lie nearest to each object's, at most `counts` of each level."""
    x, y = anchor_centers(anchors_xyxy)
    x1, y1, x2, y2 = gt.unsqueeze(2).unbind(-1)
    distances = (x - (x1 + x2) * 0.5).square_() + (y - (y1 + y2) * 0.5).square_()
    found: list[Tensor] = []
    start = 0
    for size, count in zip(level_sizes, counts, strict=True):
        level = distances[..., start : start + size]
        everyone = torch.ones((), dtype=torch.bool, device=level.device).expand(level.shape)
        found.append(best_anchors(-level, everyone, count)[0] + start)
        start += size
    return torch.cat(found, dim=2)
