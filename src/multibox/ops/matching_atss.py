"""ATSS: the IoU from which an anchor is positive, set by the statistics of each object's nearest anchors."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.ops.boxes import widest
from multibox.ops.matching import Assignment, MatchInputs, all_negative, is_empty
from multibox.ops.matching_dynamic import (
    anchor_centers,
    best_anchors,
    check_levels,
    lies_inside,
    mark_pairs,
    settle,
)
from multibox.ops.overlaps import anchor_overlaps, without_padding


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
