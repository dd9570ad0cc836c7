"""Assign every anchor an object, background or nothing: what all matchers share, and the two that look at IoU alone.

The five matchers have one signature, `f(anchors_xyxy, gt_xyxy, gt_valid, outputs=None, **options)`, and return an
`Assignment`. Boxes are xyxy in one unit, usually 0 to 1 of the network's input. Of equals the lowest anchor and the
lowest object win.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.ops.boxes import Number, pairwise_iou
from multibox.ops.rows import first_largest, may_read, rows_of

NEGATIVE = -1
"""In `Assignment.gt_index`: the anchor is background."""
IGNORED = -2
"""In `Assignment.gt_index`: the anchor takes part in no loss."""
SMALLEST_IOU = 1e-6
"""An object takes an anchor of its own only if their IoU is above it (Caffe's `MatchBBox`)."""
CHUNK = 1 << 22
"""Pairs of object and anchor that a CPU weighs at a time, but at least one image's: 16 MB per table of them."""
CHUNK_ELSEWHERE = 1 << 23
"""The same on a GPU, where some tables of 8 bytes per pair stand side by side."""
_CODE = (1 << 33) - 1
"""Of an offer: the bits that hold anchor and object; the 30 above hold the IoU, at most 1, as float32."""


class Assignment(NamedTuple):
    """A matcher's decision for every anchor of every image."""

    gt_index: Int[Tensor, "b a"]
    """Row of the anchor's object in the image's ground truth, or NEGATIVE or IGNORED."""
    overlap: Float[Tensor, "b a"]
    """Largest IoU with any object of the image; 0 where there is none."""
    weights: Float[Tensor, "b a"]
    """Weight of a positive in the localisation loss. May be one number expanded: do not write to it."""
    soft_scores: Float[Tensor, "b a"]
    """Score that a positive should reach, 0 to 1. May be one number expanded: do not write to it."""


class MatchInputs(NamedTuple):
    """The network's outputs for the matchers that use them, detached from the graph."""

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
) -> Assignment:
    """Give each object its own anchor, then each remaining anchor its best object (SSD paper, 2.2; Caffe; MXNet).

    Args:
        anchors_xyxy: The anchors.
        gt_xyxy: The objects.
        gt_valid: False marks padding, which is never matched.
        outputs: Not used.
        threshold: IoU from which a remaining anchor takes its best object. None, or a number above 1, keeps the
            bipartite pairs alone.
        inclusive: Whether an IoU equal to `threshold` is enough (Caffe) or not (MXNet).

    Returns:
        The assignment; every anchor without an object is NEGATIVE.
    """
    if is_empty(anchors_xyxy, gt_xyxy):
        return all_negative(anchors_xyxy, gt_xyxy)

    def weigh(gt: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        overlaps = anchor_overlaps(anchors_xyxy, gt, valid)
        overlap = overlaps.amax(dim=1)
        gt_index = torch.full_like(overlap, NEGATIVE, dtype=torch.long)
        if threshold is not None and threshold <= 1:
            enough = overlap >= threshold if inclusive else overlap > threshold
            gt_index = _assign_best(gt_index, overlaps, enough & (overlap > 0))
        return gt_index, overlap, greedy_bipartite(overlaps, valid) if may_read(overlaps) else _offers(overlaps, valid)

    gt_index, overlap, own = in_chunks(weigh, len(anchors_xyxy), gt_xyxy, gt_valid)
    # Dealt out for all images together: on a GPU, rounds are many small kernels
    own = own if may_read(own) else _deal(own)
    return with_full_weight(assign_own(gt_index, own), overlap)


def match_dual_max(
    anchors_xyxy: Float[Tensor, "a 4"],
    gt_xyxy: Float[Tensor, "b g 4"],
    gt_valid: Bool[Tensor, "b g"],
    outputs: MatchInputs | None = None,
    *,
    low: Number = 0.5,
    high: Number = 0.5,
    inclusive: bool = True,
) -> Assignment:
    """Give each anchor its best object and each object its best anchor (SSD.TensorFlow, `do_dual_max_match`).

    Not bipartite: of several objects with the same best anchor, the one of highest IoU takes it, and the others take no
    other. Unlike in SSD.TensorFlow, an object that overlaps no anchor does not take anchor 0.

    Args:
        anchors_xyxy: The anchors.
        gt_xyxy: The objects.
        gt_valid: False marks padding, which is never matched.
        outputs: Not used.
        low: Anchors whose largest IoU is below it are background; those from `low` to `high` are IGNORED.
        high: Anchors whose largest IoU reaches it take that object.
        inclusive: Whether an IoU of exactly `high` or `low` counts as above (SSD.TensorFlow) or as below it (NVIDIA).
    """
    if is_empty(anchors_xyxy, gt_xyxy):
        return all_negative(anchors_xyxy, gt_xyxy)

    def weigh(gt: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        overlaps = anchor_overlaps(anchors_xyxy, gt, valid)
        overlap = overlaps.amax(dim=1)
        under, over = (overlap < low, overlap >= high) if inclusive else (overlap <= low, overlap > high)
        gt_index = torch.full_like(overlap, IGNORED, dtype=torch.long).masked_fill_(under, NEGATIVE)
        gt_index = _assign_best(gt_index, overlaps, over & (overlap > 0))
        gt_index.masked_fill_(~valid.any(dim=1, keepdim=True), NEGATIVE)
        best, anchor = first_largest(overlaps)
        claims = valid & (best > SMALLEST_IOU)
        same = anchor[:, :, None] == anchor[:, None, :]
        outbid = (claims[:, :, None] & same & _is_ahead(best, best[:, :, None])).any(dim=1)
        return assign_own(gt_index, torch.where(claims & ~outbid, anchor, -1)), overlap

    return with_full_weight(*in_chunks(weigh, len(anchors_xyxy), gt_xyxy, gt_valid))


def in_chunks(
    weigh: Callable[..., tuple[Tensor, ...]], anchors: int, gt_xyxy: Float[Tensor, "b g 4"], *rest: Tensor
) -> tuple[Tensor, ...]:
    """Return what `weigh` returns of the batch, computed for a few images at a time so that memory stays small.

    Args:
        weigh: Takes some images of `gt_xyxy` and of `rest`; returns tensors with one entry per image.
        anchors: Number of anchors.
        gt_xyxy: The objects.
        rest: Further tensors with one entry per image.
    """
    most = CHUNK if may_read(gt_xyxy) else CHUNK_ELSEWHERE
    images = max(1, most // max(1, anchors * gt_xyxy.shape[1]))
    if images >= len(gt_xyxy):
        return weigh(gt_xyxy, *rest)
    # Copied into their places at once: kept between the tables of the next images, they would leave holes in memory
    whole: list[Tensor] = []
    for start in range(0, len(gt_xyxy), images):
        some = slice(start, start + images)
        parts = weigh(*(part[some] for part in (gt_xyxy, *rest)))
        whole = whole or [part.new_empty((len(gt_xyxy), *part.shape[1:])) for part in parts]
        for place, part in zip(whole, parts, strict=True):
            place[some] = part
    return tuple(whole)


def is_empty(anchors_xyxy: Float[Tensor, "a 4"], gt_xyxy: Float[Tensor, "b g 4"]) -> bool:
    """Return whether there are no anchors or no rows of ground truth."""
    return len(anchors_xyxy) == 0 or gt_xyxy.shape[1] == 0


def all_negative(anchors_xyxy: Float[Tensor, "a 4"], gt_xyxy: Float[Tensor, "b g 4"]) -> Assignment:
    """Return the assignment where there is nothing to match."""
    overlap = torch.zeros((len(gt_xyxy), len(anchors_xyxy)), device=anchors_xyxy.device)
    return with_full_weight(torch.full_like(overlap, NEGATIVE, dtype=torch.long), overlap)


def with_full_weight(gt_index: Int[Tensor, "b a"], overlap: Float[Tensor, "b a"]) -> Assignment:
    """Return the assignment in which every weight and every score is 1."""
    one = overlap.new_ones(()).expand_as(overlap)
    return Assignment(gt_index, overlap, one, one)


def without_padding(gt_xyxy: Float[Tensor, "b g 4"], gt_valid: Bool[Tensor, "b g"]) -> Float[Tensor, "b g 4"]:
    """Return the objects in float32, with boxes of area 0, which match nothing, in place of padding."""
    return gt_xyxy.float().masked_fill(~gt_valid[..., None], 0)


def anchor_overlaps(
    anchors_xyxy: Float[Tensor, "a 4"], gt_xyxy: Float[Tensor, "b g 4"], gt_valid: Bool[Tensor, "b g"]
) -> Float[Tensor, "b g a"]:
    """Return the IoU of each object with each anchor, in float32; 0 for padding and for boxes without area."""
    return pairwise_iou(without_padding(gt_xyxy, gt_valid), anchors_xyxy.float())


def greedy_bipartite(overlaps: Float[Tensor, "b g a"], gt_valid: Bool[Tensor, "b g"]) -> Int[Tensor, "b g"]:
    """Give each object an anchor of its own, the largest IoU of the image first (Caffe, MXNet MultiBoxTarget).

    Pairs are ordered by IoU descending, then the lower anchor, then the lower object. A pair that comes first both for
    its anchor and for its object is taken whatever happens elsewhere. So each round takes all such pairs of all images;
    between rounds, only objects that lost their anchor look for another one. Where the host would have to wait to see
    whether any is left, there are as many rounds as objects, and each takes one pair of every image.

    Args:
        overlaps: IoU of objects and anchors.
        gt_valid: False marks padding, which gets no anchor.

    Returns:
        The anchor of each object; -1 where none above `SMALLEST_IOU` was left.
    """
    batch, objects, count = overlaps.shape
    chosen = torch.full((batch, objects), -1, dtype=torch.long, device=overlaps.device)
    if objects == 0 or count == 0:
        return chosen
    if not may_read(overlaps):
        return _deal(_offers(overlaps, gt_valid))
    best, anchor = first_largest(overlaps)
    waiting = gt_valid & (best > SMALLEST_IOU)
    # One column more than anchors: pairs that are not taken in a round mark that one.
    taken = torch.zeros((batch, count + 1), dtype=torch.bool)
    while True:
        # [b, bidder, object]: the bidder's IoU with the best anchor of the object
        bids = overlaps.gather(2, anchor[:, None, :].expand(-1, objects, -1))
        first = waiting & ~(waiting[:, :, None] & _is_ahead(best, bids)).any(dim=1)
        chosen = torch.where(first, anchor, chosen)
        taken.scatter_(1, torch.where(first, anchor, count), True)
        waiting &= ~first
        image, row, _, _ = rows_of(waiting & taken.gather(1, anchor))
        if len(row) > 0:
            free = overlaps[image, row].masked_fill_(taken[image, :count], -1)
            best[image, row], anchor[image, row] = first_largest(free)
            waiting &= best > SMALLEST_IOU
        elif not bool(waiting.any()):
            return chosen


def _offers(overlaps: Float[Tensor, "b g a"], gt_valid: Bool[Tensor, "b g"]) -> Int[Tensor, "b g k"]:
    """Return each object's best pairs as numbers that order like them, as many as objects; -1 where there is none.

    No object needs more: the others can take only so many anchors. Bits of positive float32 numbers order like them.
    """
    _, objects, count = overlaps.shape
    index = torch.arange(count, device=overlaps.device) * objects
    code = index + torch.arange(objects, device=overlaps.device)[:, None]
    offers = (overlaps.contiguous().view(torch.int32).long() << 33) + (_CODE - code)
    offers.masked_fill_(~((overlaps > SMALLEST_IOU) & gt_valid[..., None]), -1)
    return offers.topk(min(objects, count), dim=2).values


def _deal(offers: Int[Tensor, "b g k"]) -> Int[Tensor, "b g"]:
    """Return each object's anchor, one pair of every image after the other; `_offers` says what offers are."""
    batch, objects, each = offers.shape
    anchors = torch.div(_CODE - (offers & _CODE), objects, rounding_mode="floor").flatten(1)
    offers = offers.clone()
    left, taken = offers.flatten(1), list[Tensor]()
    for _ in range(each):
        best, place = left.max(dim=1, keepdim=True)
        left.masked_fill_(anchors == anchors.gather(1, place), -1)
        offers.scatter_(1, (place // each)[..., None].expand(-1, 1, each), -1)
        taken.append(best)
    pairs = torch.cat(taken, dim=1)
    code = _CODE - (pairs & _CODE)
    chosen = torch.full((batch, objects + 1), -1, dtype=torch.long, device=offers.device)
    anchor = torch.div(code, objects, rounding_mode="floor")
    return chosen.scatter_(1, torch.where(pairs >= 0, code % objects, objects), anchor)[:, :objects]


def _is_ahead(best: Float[Tensor, "b g"], bids: Float[Tensor, "b g #g"]) -> Bool[Tensor, "b g g"]:
    """Return whether the row's bid beats the column's own IoU; among equals the lower row does."""
    index = torch.arange(best.shape[1], device=best.device)
    own = best[:, None, :]
    return (bids > own) | ((bids == own) & (index[:, None] < index))


def _assign_best(
    gt_index: Int[Tensor, "b a"], overlaps: Float[Tensor, "b g a"], takes: Bool[Tensor, "b a"]
) -> Int[Tensor, "b a"]:
    """Return the table with the object of largest IoU where an anchor takes it."""
    rows = rows_of(takes)
    if rows.every:
        return torch.where(takes, overlaps.argmax(dim=1), gt_index)
    # Few anchors take one, so argmax over them alone is fast
    return rows.put(gt_index, first_largest(overlaps[rows.image, :, rows.anchor])[1])


def assign_own(gt_index: Int[Tensor, "b a"], anchor_of_gt: Int[Tensor, "b g"]) -> Int[Tensor, "b a"]:
    """Return the table with each object at its own anchor; -1 is no anchor. No two objects may have the same one."""
    objects = torch.arange(anchor_of_gt.shape[1], device=gt_index.device).expand(len(gt_index), -1)
    # One column more than anchors takes the objects that have none.
    padded = torch.cat([gt_index, gt_index[:, :1]], dim=1)
    place = torch.where(anchor_of_gt >= 0, anchor_of_gt, gt_index.shape[1])
    return padded.scatter_(1, place, objects)[:, : gt_index.shape[1]]
