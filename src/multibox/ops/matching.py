"""Who learns what: matchers assign each anchor an object, background, or nothing at all.

All matchers share one signature, `f(anchors_xyxy, gt_xyxy, gt_valid, outputs=None, **options)`, and return an
`Assignment`. Boxes are xyxy in one unit, usually 0 to 1 of the network's input.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.ops.boxes import Number

TINY = 1e-37
"""Stands in for an area that is not positive; far below the rounding error of any real one."""


def without_padding(gt_xyxy: Float[Tensor, "b g 4"], gt_valid: Bool[Tensor, "b g"]) -> Float[Tensor, "b g 4"]:
    """Return the objects in float32, with boxes that have no area, and so match nothing, in place of padding."""
    return gt_xyxy.float().masked_fill(~gt_valid[..., None], 0)


def anchor_overlaps(
    anchors_xyxy: Float[Tensor, "a 4"], gt_xyxy: Float[Tensor, "b g 4"], gt_valid: Bool[Tensor, "b g"]
) -> Float[Tensor, "b g a"]:
    """Return the IoU of each object with each anchor, in float32; 0 for rows that are padding and boxes without area.

    The long axis comes last and coordinates are split first: every step and the reductions that follow run over
    contiguous memory.
    """
    anchor_x1, anchor_y1, anchor_x2, anchor_y2 = anchors_xyxy.float().t().contiguous().unbind()
    gt_x1, gt_y1, gt_x2, gt_y2 = without_padding(gt_xyxy, gt_valid).unsqueeze(2).unbind(-1)
    # In place where possible: fresh memory costs more than the arithmetic.
    shared = gt_x2.minimum(anchor_x2).sub_(gt_x1.maximum(anchor_x1)).clamp_(min=0)
    shared.mul_(gt_y2.minimum(anchor_y2).sub_(gt_y1.maximum(anchor_y1)).clamp_(min=0))
    # A box without area shares nothing, so raising its area to TINY only turns 0/0 into 0.
    anchor_areas = ((anchor_x2 - anchor_x1) * (anchor_y2 - anchor_y1)).clamp_(min=TINY)
    gt_areas = ((gt_x2 - gt_x1) * (gt_y2 - gt_y1)).clamp_(min=TINY)
    union = (anchor_areas + gt_areas).sub_(shared)
    return shared.div_(union)


def greedy_bipartite(
    overlaps: Float[Tensor, "b g a"], gt_valid: Bool[Tensor, "b g"], minimum_iou: Number = 1e-6
) -> Int[Tensor, "b g"]:
    """Give each object an anchor of its own, the largest IoU of the image first (Caffe SSD, MXNet MultiBoxTarget).

    The order is total: IoU descending, then the lower anchor, then the lower object. A pair that is first in this order
    both for its anchor and for its object will be taken whatever happens elsewhere, so all such pairs of all images
    are taken in one round. Between rounds only objects whose anchor was lost look for another one.

    Args:
        overlaps: IoU of objects and anchors.
        gt_valid: False marks padding, which gets nothing.
        minimum_iou: pairs must lie above it.

    Returns:
        The anchor of each object, -1 where none was left.
    """
    batch, objects, count = overlaps.shape
    chosen = torch.full((batch, objects), -1, dtype=torch.long, device=overlaps.device)
    if objects == 0 or count == 0:
        return chosen
    best, anchor = overlaps.max(dim=2)
    waiting = gt_valid & (best > minimum_iou)
    # One column more than anchors: pairs that are not taken in a round mark that one.
    taken = torch.zeros((batch, count + 1), dtype=torch.bool, device=overlaps.device)
    while True:
        dominant = _dominant(overlaps, waiting, best, anchor)
        chosen = torch.where(dominant, anchor, chosen)
        taken.scatter_(1, torch.where(dominant, anchor, count), True)
        waiting &= ~dominant
        image, row = (waiting & taken.gather(1, anchor)).nonzero(as_tuple=True)
        if len(row) > 0:
            free = overlaps[image, row].masked_fill_(taken[image, :count], -1)
            best[image, row], anchor[image, row] = free.max(dim=1)
            waiting &= best > minimum_iou
        elif not bool(waiting.any()):
            return chosen


def _dominant(
    overlaps: Float[Tensor, "b g a"],
    waiting: Bool[Tensor, "b g"],
    best: Float[Tensor, "b g"],
    anchor: Int[Tensor, "b g"],
) -> Bool[Tensor, "b g"]:
    """Return which waiting objects nobody else who waits can outbid for their best anchor."""
    objects = overlaps.shape[1]
    bids = overlaps.gather(2, anchor[:, None, :].expand(-1, objects, -1))
    index = torch.arange(objects, device=overlaps.device)
    lower = index[:, None] < index
    own = best[:, None, :]
    outbid = waiting[:, :, None] & ((bids > own) | ((bids == own) & lower))
    return waiting & ~outbid.any(dim=1)


NEGATIVE = -1
"""In `Assignment.gt_index`: the anchor is background."""
IGNORED = -2
"""In `Assignment.gt_index`: the anchor takes part in no loss."""


class Assignment(NamedTuple):
    """What a matcher decided for every anchor of every image."""

    gt_index: Int[Tensor, "b a"]
    """The anchor's object, a row of the image's ground truth; NEGATIVE or IGNORED otherwise."""
    overlap: Float[Tensor, "b a"]
    """Largest IoU with any object of the image; 0 where there is none."""
    weights: Float[Tensor, "b a"]
    """How much a positive counts; 1 is full weight. May be one number expanded: do not write to it."""
    soft_scores: Float[Tensor, "b a"]
    """The score a positive should reach; 1 for hard matchers. May be one number expanded: do not write to it."""


class MatchInputs(NamedTuple):
    """What matchers that look at the network's answer need, detached from the graph."""

    boxes_xyxy: Float[Tensor, "b a 4"]
    """Decoded boxes."""
    scores: Float[Tensor, "b a c"]
    """0 to 1; without background."""
    gt_labels: Int[Tensor, "b g"]
    """0-based class of each object; -1 pads."""


def match_bipartite(
    anchors_xyxy: Float[Tensor, "a 4"],
    gt_xyxy: Float[Tensor, "b g 4"],
    gt_valid: Bool[Tensor, "b g"],
    outputs: MatchInputs | None = None,
    *,
    threshold: Number | None = 0.5,
    inclusive: bool = True,
    minimum_iou: Number = 1e-6,
) -> Assignment:
    """Give each object its own anchor, then each remaining anchor its best object (SSD paper, 2.2; Caffe; MXNet).

    Args:
        anchors_xyxy: the anchors.
        gt_xyxy: the objects.
        gt_valid: False marks rows that are padding and are never matched.
        outputs: not used.
        threshold: IoU from which a remaining anchor takes its best object, the lowest one among equals. None, or a
            number above 1, leaves the bipartite pairs alone.
        inclusive: whether IoU equal to `threshold` is enough (Caffe) or not (MXNet).
        minimum_iou: bipartite pairs must lie above it; an object that no anchor touches stays without one.

    Returns:
        The assignment; every anchor that took no object is NEGATIVE.
    """
    if is_empty(anchors_xyxy, gt_xyxy):
        return all_negative(anchors_xyxy, gt_xyxy)
    overlaps = anchor_overlaps(anchors_xyxy, gt_xyxy, gt_valid)
    overlap = overlaps.amax(dim=1)
    gt_index = torch.full_like(overlap, NEGATIVE, dtype=torch.long)
    if threshold is not None and threshold <= 1:
        enough = overlap >= threshold if inclusive else overlap > threshold
        # Zero overlap never makes a match, whatever the threshold.
        _take_best(gt_index, overlaps, enough & (overlap > 0))
    _force(gt_index, greedy_bipartite(overlaps, gt_valid, minimum_iou))
    return _hard(gt_index, overlap)


def match_dual_max(
    anchors_xyxy: Float[Tensor, "a 4"],
    gt_xyxy: Float[Tensor, "b g 4"],
    gt_valid: Bool[Tensor, "b g"],
    outputs: MatchInputs | None = None,
    *,
    low: Number = 0.5,
    high: Number = 0.5,
    inclusive: bool = True,
    ignore_between: bool = True,
    gt_max_first: bool = True,
    minimum_iou: Number = 1e-6,
) -> Assignment:
    """Give each anchor its best object and each object its best anchor (HiKapok's SSD.TensorFlow).

    Objects that share one best anchor are not bipartite: the one with the highest IoU has it, the lowest one among
    equals, and the others are not helped.

    Args:
        anchors_xyxy: the anchors.
        gt_xyxy: the objects.
        gt_valid: False marks rows that are padding and are never matched.
        outputs: not used.
        low: anchors whose largest IoU is below it are background.
        high: anchors whose largest IoU reaches it take that object.
        inclusive: whether an IoU of exactly `high` or `low` counts as above (HiKapok) or as below it (NVIDIA).
        ignore_between: anchors from `low` to `high` are IGNORED; False swaps the meaning of the two zones.
        gt_max_first: objects claim their best anchor whatever it took before; False lets only objects that no anchor
            took claim theirs.
        minimum_iou: a claim must lie above it; in HiKapok's code an object that touches no anchor claims anchor 0.

    Returns:
        The assignment.
    """
    if is_empty(anchors_xyxy, gt_xyxy):
        return all_negative(anchors_xyxy, gt_xyxy)
    overlaps = anchor_overlaps(anchors_xyxy, gt_xyxy, gt_valid)
    overlap = overlaps.amax(dim=1)
    below, between = (NEGATIVE, IGNORED) if ignore_between else (IGNORED, NEGATIVE)
    under, over = (overlap < low, overlap >= high) if inclusive else (overlap <= low, overlap > high)
    gt_index = torch.full_like(overlap, between, dtype=torch.long).masked_fill_(under, below)
    _take_best(gt_index, overlaps, over & (overlap > 0))
    gt_index.masked_fill_(~gt_valid.any(dim=1, keepdim=True), NEGATIVE)
    claimed = _claims(overlaps, gt_valid, minimum_iou)
    if not gt_max_first:
        rows = torch.arange(gt_valid.shape[1], device=gt_index.device)
        served = (gt_index[:, None, :] == rows[:, None]).any(dim=2)
        claimed = claimed.masked_fill(served, -1)
    _force(gt_index, claimed)
    return _hard(gt_index, overlap)


def is_empty(anchors_xyxy: Float[Tensor, "a 4"], gt_xyxy: Float[Tensor, "b g 4"]) -> bool:
    """Return whether there is nothing to match, padding included."""
    return len(anchors_xyxy) == 0 or gt_xyxy.shape[1] == 0


def all_negative(anchors_xyxy: Float[Tensor, "a 4"], gt_xyxy: Float[Tensor, "b g 4"]) -> Assignment:
    """Return the assignment where there is nothing to match."""
    overlap = torch.zeros((len(gt_xyxy), len(anchors_xyxy)), device=anchors_xyxy.device)
    return _hard(torch.full_like(overlap, NEGATIVE, dtype=torch.long), overlap)


def _hard(gt_index: Int[Tensor, "b a"], overlap: Float[Tensor, "b a"]) -> Assignment:
    one = overlap.new_ones(()).expand_as(overlap)
    return Assignment(gt_index, overlap, one, one)


def _take_best(gt_index: Int[Tensor, "b a"], overlaps: Float[Tensor, "b g a"], takes: Bool[Tensor, "b a"]) -> None:
    """Write the object of largest IoU, the lowest one among equals, where `takes`: few anchors, so look only there."""
    image, anchor = takes.nonzero(as_tuple=True)
    gt_index[image, anchor] = overlaps[image, :, anchor].argmax(dim=1)


def _force(gt_index: Int[Tensor, "b a"], anchor_of_gt: Int[Tensor, "b g"]) -> None:
    """Write each object's number at its anchor; -1 means no anchor. No two objects may name the same one."""
    image, row = (anchor_of_gt >= 0).nonzero(as_tuple=True)
    gt_index[image, anchor_of_gt[image, row]] = row


def _claims(overlaps: Float[Tensor, "b g a"], gt_valid: Bool[Tensor, "b g"], minimum_iou: Number) -> Int[Tensor, "b g"]:
    """Return the best anchor of each object, -1 where another object with the same one has the higher IoU."""
    best, anchor = overlaps.max(dim=2)
    claims = gt_valid & (best > minimum_iou)
    index = torch.arange(overlaps.shape[1], device=overlaps.device)
    ahead = (best[:, :, None] > best[:, None, :]) | ((best[:, :, None] == best[:, None, :]) & (index[:, None] < index))
    same = anchor[:, :, None] == anchor[:, None, :]
    beaten = (claims[:, :, None] & same & ahead).any(dim=1)
    return torch.where(claims & ~beaten, anchor, -1)
