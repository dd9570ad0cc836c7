"""Who learns what: matchers assign each anchor an object, background, or nothing at all.

All matchers share one signature, `f(anchors_xyxy, gt_xyxy, gt_valid, outputs=None, **options)`, and return an
`Assignment`. Boxes are xyxy in one unit, usually 0 to 1 of the network's input.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.ops.bipartite import greedy_bipartite
from multibox.ops.boxes import Number
from multibox.ops.overlaps import anchor_overlaps

NEGATIVE = -1
"""In `Assignment.gt_index`: the anchor is background."""
IGNORED = -2
"""In `Assignment.gt_index`: the anchor takes part in no loss."""


class Assignment(NamedTuple):
    """What a matcher decided for every anchor of every picture."""

    gt_index: Int[Tensor, "b a"]
    """The anchor's object, a row of the picture's ground truth; NEGATIVE or IGNORED otherwise."""
    overlap: Float[Tensor, "b a"]
    """Largest IoU with any object of the picture; 0 where there is none."""
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
