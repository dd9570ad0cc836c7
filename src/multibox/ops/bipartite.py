"""Greedy bipartite matching: exact, batched, in rounds of locally dominant pairs."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.ops.boxes import Number


def greedy_bipartite(
    overlaps: Float[Tensor, "b g a"], gt_valid: Bool[Tensor, "b g"], minimum_iou: Number = 1e-6
) -> Int[Tensor, "b g"]:
    """Give each object an anchor of its own, the largest IoU of the picture first (Caffe SSD, MXNet MultiBoxTarget).

    The order is total: IoU descending, then the lower anchor, then the lower object. A pair that is first in this order
    both for its anchor and for its object will be taken whatever happens elsewhere, so all such pairs of all pictures
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
