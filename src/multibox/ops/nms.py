"""Greedy non-maximum suppression, exact, for many groups (one class of one image) at once.

Within a group, boxes stand best first. In each round, the next boxes of every group, its leaders, are compared with
each other; the leaders that are kept then suppress what they overlap in the rest of their group.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.errors import ConfigError
from multibox.ops.boxes import Number, iou_of_sides, split_sides

_BITS = 32
_MASK = (1 << _BITS) - 1
_ABSENT = torch.iinfo(torch.long).min
_LARGE = 1024
"""A group of more boxes is suppressed by itself, since the IoU table of its leaders alone fills the cache."""
_TABLE = 1 << 19
"""IoUs computed per round, over all groups: 2 MB, which a CPU's cache holds."""
_LEADERS = 16
"""Least number of leaders per group and round, so that rounds stay few."""


def best_first(
    scores: Float[Tensor, "r n"], wanted: Bool[Tensor, "r n"], limit: int
) -> tuple[Int[Tensor, "r k"], Bool[Tensor, "r k"]]:
    """Return the columns of each row's `limit` highest wanted scores, the lower of equal ones first, and which exist.

    `topk` leaves the order of equal values open, so it sorts integers made of score and column: the bits of float32
    numbers order like the numbers, once those of negative ones are inverted.
    """
    columns = scores.shape[1]
    # Adding 0 turns -0.0 into 0.0.
    bits = (scores.float() + 0.0).view(torch.int32)
    # In place: this table is the largest of its callers, twice over
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)
    keys = bits.long()
    keys <<= _BITS
    keys |= _MASK - torch.arange(columns, device=scores.device)
    keys.masked_fill_(~wanted, _ABSENT)
    keys = keys.topk(limit, dim=1).values if limit < columns else keys.sort(dim=1, descending=True).values
    present = keys != _ABSENT
    return (_MASK - (keys & _MASK)).masked_fill_(~present, 0), present


def nms(
    boxes_xyxy: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    threshold: Number,
    groups: Int[Tensor, " n"] | None = None,
    inclusive: bool = False,
) -> Int[Tensor, " kept"]:
    """Return the indices of the boxes that greedy suppression keeps, best first; equal scores go by the lower index.

    For use on its own: prediction calls `suppress`, which takes boxes that are sorted and grouped already.

    Args:
        boxes_xyxy: Boxes in any unit.
        scores: The higher the better.
        threshold: A box is suppressed if its IoU with a better kept box of its group is above it; 0 to 1.
        groups: Only boxes of one group suppress each other; None makes one group of all.
        inclusive: Whether an IoU equal to `threshold` suppresses, too (MXNet).

    Raises:
        ConfigError: `threshold` is not an IoU, or is 0 and inclusive.
    """
    ranked = scores.argsort(descending=True, stable=True)
    if groups is None:
        return ranked[suppress(boxes_xyxy[ranked], ranked.new_tensor([len(ranked)]), threshold, inclusive)]
    by_group = groups[ranked].argsort(stable=True)
    order = ranked[by_group]
    sorted_groups = groups[order]
    ends = sorted_groups.diff(append=sorted_groups[-1:] + 1).nonzero().squeeze(1) + 1
    counts = ends.diff(prepend=ends.new_zeros(1))
    keep = torch.empty_like(order, dtype=torch.bool)
    keep[by_group] = suppress(boxes_xyxy[order], counts, threshold, inclusive)
    return ranked[keep]


def suppress(
    boxes_xyxy: Float[Tensor, "n 4"], counts: Int[Tensor, " g"], threshold: Number, inclusive: bool = False
) -> Bool[Tensor, " n"]:
    """Return which boxes greedy suppression keeps within their group: `nms` without the sorting.

    Args:
        boxes_xyxy: Boxes group after group, best first within each.
        counts: Number of boxes of each group.
        threshold: As for `nms`.
        inclusive: As for `nms`.

    Raises:
        ConfigError: `threshold` is not an IoU, or is 0 and inclusive.
    """
    if not 0 <= threshold <= 1 or (inclusive and threshold == 0):
        raise ConfigError(f"nms threshold: expected an IoU from 0 to 1 that some pairs reach, got {threshold}")
    sides = torch.stack(split_sides(boxes_xyxy.float()))
    keep = torch.zeros(len(boxes_xyxy), dtype=torch.bool, device=boxes_xyxy.device)
    if len(keep) == 0:
        return keep
    large = counts > _LARGE
    if not bool(large.any()):
        return _suppress_groups(sides, counts, threshold, inclusive)
    alone = large.repeat_interleave(counts)
    keep[~alone] = _suppress_groups(sides[:, ~alone], counts[~large], threshold, inclusive)
    for end, count in zip(counts.cumsum(0)[large], counts[large], strict=True):
        group = slice(int(end - count), int(end))
        keep[group] = _suppress_groups(sides[:, group], count[None], threshold, inclusive)
    return keep


def _suppress_groups(
    sides: Float[Tensor, "5 n"], counts: Int[Tensor, " g"], threshold: Number, inclusive: bool
) -> Bool[Tensor, " n"]:
    """Return which boxes are kept, in rounds over all groups together."""
    keep = torch.zeros(sides.shape[1], dtype=torch.bool, device=sides.device)
    waiting = torch.arange(len(keep), device=keep.device)
    while len(waiting) > 0:
        counts = counts[counts > 0]
        longest = int(counts.max())
        lane = torch.arange(longest, device=keep.device)
        present = lane < counts[:, None]
        # Index 0 pads short groups. Padding stands behind their boxes, so it suppresses none of them.
        index = waiting.take((lane + (counts.cumsum(0) - counts)[:, None]).mul_(present))
        boxes = sides.index_select(1, index.view(-1)).view(5, *index.shape)
        leaders = min(longest, max(_LEADERS, _TABLE // index.numel()))
        iou = iou_of_sides(boxes[:, :, :leaders].unsqueeze(3).unbind(), boxes.unsqueeze(2).unbind())
        # 1 where the leader overlaps too much, else 0: on a CPU several times as fast as booleans
        over = iou.ge_(threshold) if inclusive else iou.gt_(threshold)
        kept = _keep_leaders(over[:, :, :leaders].triu_(1)).mul_(present[:, :leaders])
        keep[index[:, :leaders][kept > 0]] = True
        if leaders == longest:
            break
        left = torch.bmm(kept.unsqueeze(1), over[:, :, leaders:]).squeeze(1) == 0
        left &= present[:, leaders:]
        waiting, counts = index[:, leaders:][left], left.sum(dim=1)
    return keep


def _keep_leaders(over: Float[Tensor, "g k k"]) -> Float[Tensor, "g k"]:
    """Return which leaders of each group are kept among themselves, as 0 and 1.

    `over` is 1 where the row's leader, which is better, overlaps the column's too much. A leader is kept if no kept one
    suppresses it; this is repeated until no leader changes, at most k times.
    """
    kept = over.new_ones(len(over), 1, over.shape[1])
    while True:
        now = torch.bmm(kept, over).eq_(0)
        if torch.equal(now, kept):
            return kept.squeeze(1)
        kept = now
