"""Greedy non-maximum suppression, exact, for many groups (image and class) of any size at once.

Within a group boxes stand best first. Few boxes are all compared at once. Otherwise, in each round the next boxes of
every group, its leaders, are settled among themselves; those that stay remove what they overlap from the rest of their
group. Boxes of different groups are never compared, and within a large group the rest is kept in small chunks of
neighbours, so that a leader meets only chunks it can reach. Rounds are few where boxes crowd, chunks are few where they
do not.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.errors import ConfigError
from multibox.ops.boxes import Number
from multibox.ops.matching import TINY

_BITS = 32
_MASK = (1 << _BITS) - 1
_NOBODY = torch.iinfo(torch.long).min


def best_first(
    scores: Float[Tensor, "r n"], wanted: Bool[Tensor, "r n"], limit: int
) -> tuple[Int[Tensor, "r k"], Bool[Tensor, "r k"]]:
    """Return the columns of each row's `limit` highest wanted scores, the lower of equal ones first, and which exist.

    `topk` leaves the order of equal values open, so it is given integers of score and column: float32 order like their
    bits, once those of negative numbers are turned round.
    """
    columns = scores.shape[1]
    # Adding 0 makes one zero of the two.
    bits = (scores.float() + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    reverse = _MASK - torch.arange(columns, device=scores.device)
    keys = ((bits.long() << _BITS) | reverse).masked_fill_(~wanted, _NOBODY)
    keys = keys.topk(limit, dim=1).values if limit < columns else keys.sort(dim=1, descending=True).values
    present = keys != _NOBODY
    return (_MASK - (keys & _MASK)).masked_fill_(~present, 0), present


_PAIRS = 1 << 19
"""Leaders are compared with each other; so many pairs of them at a time, over all groups, keep rounds few."""
_FEW = 1024
"""Up to so many boxes in a group, comparing all is faster than making chunks."""
_STRIP = 1 << 17
"""So many pairs at a time, over all groups, stay in the cache; if there are no more, one step compares all."""
_CHUNK = 32
_FAR = 1e30
_SAFETY = 1 - 1e-4
"""Keeps rounding from turning a pair away that the exact test would take."""


class _Limit(NamedTuple):
    """When an IoU is too much."""

    threshold: Number
    inclusive: bool

    def exceeded_(self, iou: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Turn IoUs into 1 where they are too much, else 0: several times as fast as making booleans on a CPU."""
        return iou.ge_(self.threshold) if self.inclusive else iou.gt_(self.threshold)


class _Chunks(NamedTuple):
    """The boxes of all groups in chunks of neighbours, each group beginning a new chunk."""

    geometry: Float[Tensor, "5 c l"]
    """x1, y1, x2, y2, area; slots without a box hold one that meets nothing."""
    bounds: Float[Tensor, "6 c"]
    """What the chunk's boxes span, their smallest and their largest area."""
    first: Int[Tensor, " g"]
    number: Int[Tensor, " g"]
    """Chunks from `first` belong to the group."""
    slot: Int[Tensor, " n"]
    """Where each box is among all slots."""


def nms(
    boxes_xyxy: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    threshold: Number,
    groups: Int[Tensor, " n"] | None = None,
    inclusive: bool = False,
) -> Int[Tensor, " kept"]:
    """Return the boxes that survive greedy suppression, best first; equal scores go by the lower index.

    Args:
        boxes_xyxy: boxes in any unit.
        scores: the higher the better.
        threshold: a box goes when its IoU with a better box of its group that stays is above it; 0 to 1.
        groups: only boxes of the same group suppress each other; None makes one group of all.
        inclusive: whether IoU equal to `threshold` is enough to go (MXNet).
    """
    best_first = scores.argsort(descending=True, stable=True)
    if groups is None:
        counts = best_first.new_tensor([len(best_first)])
        return best_first[suppress(boxes_xyxy[best_first], counts, threshold, inclusive)]
    by_group = groups[best_first].argsort(stable=True)
    order = best_first[by_group]
    counts = _runs(groups[order])[1]
    # Back from group order to score order by writing each answer at its place there.
    keep = torch.empty_like(order, dtype=torch.bool)
    keep[by_group] = suppress(boxes_xyxy[order], counts, threshold, inclusive)
    return best_first[keep]


def suppress(
    boxes_xyxy: Float[Tensor, "n 4"], counts: Int[Tensor, " g"], threshold: Number, inclusive: bool = False
) -> Bool[Tensor, " n"]:
    """Return which boxes survive greedy suppression within their group; the core of `nms` without the sorting.

    Args:
        boxes_xyxy: boxes group after group, best first within each.
        counts: how many boxes each group has.
        threshold: a box goes when its IoU with a better box of its group that stays is above it; 0 to 1.
        inclusive: whether IoU equal to `threshold` is enough to go.
    """
    if not 0 <= threshold <= 1 or (inclusive and threshold == 0):
        raise ConfigError(f"nms threshold: expected an IoU from 0 to 1 that some pairs reach, got {threshold}")
    limit = _Limit(threshold, inclusive)
    if len(boxes_xyxy) == 0:
        return torch.zeros(0, dtype=torch.bool, device=boxes_xyxy.device)
    most = int(counts.max())
    if len(counts) * most * most <= _STRIP:
        return _at_once(boxes_xyxy, counts, most, limit)
    geometry = _geometry(boxes_xyxy)
    return _against_all(geometry, counts, limit) if most <= _FEW else _against_neighbours(geometry, counts, limit)


def _at_once(
    boxes_xyxy: Float[Tensor, "n 4"], counts: Int[Tensor, " g"], most: int, limit: _Limit
) -> Bool[Tensor, " n"]:
    """Compare all boxes of each group, `most` at most, with each other."""
    index, present = _lanes(counts, most)
    everyone = _geometry(boxes_xyxy.index_select(0, index.view(-1))).view(5, *index.shape)
    over = limit.exceeded_(_iou(everyone.unsqueeze(3).unbind(), everyone.unsqueeze(2).unbind()))
    return _settle(over.triu_(1)).masked_select(present) > 0


def _against_all(geometry: Float[Tensor, "5 n"], counts: Int[Tensor, " g"], limit: _Limit) -> Bool[Tensor, " n"]:
    """Compare leaders with everyone who waits in their group."""
    keep = geometry.new_zeros(geometry.shape[1], dtype=torch.bool)
    waiting = torch.arange(len(keep), device=keep.device)
    while len(waiting) > 0:
        counts = counts.take(counts.nonzero().squeeze(1))
        most = int(counts.max())
        index, present = _lanes(counts, most)
        index = waiting.take(index)
        everyone = geometry.index_select(1, index.view(-1)).view(5, *index.shape)
        # So many leaders that a step's numbers stay in the cache
        size = min(most, max(16, _STRIP // index.numel()))
        over = _iou(everyone[:, :, :size].unsqueeze(3).unbind(), everyone.unsqueeze(2).unbind())
        limit.exceeded_(over)
        kept = _settle(over[:, :, :size].triu_(1)).mul_(present[:, :size])
        keep.index_fill_(0, index[:, :size].take(kept.view(-1).nonzero().squeeze(1)), True)
        if size == most:
            break
        left = torch.bmm(kept.unsqueeze(1), over[:, :, size:]).squeeze(1) == 0
        left &= present[:, size:]
        waiting, counts = index[:, size:][left], left.sum(dim=1)
    return keep


def _against_neighbours(geometry: Float[Tensor, "5 n"], counts: Int[Tensor, " g"], limit: _Limit) -> Bool[Tensor, " n"]:
    """Compare leaders with the chunks that they can reach."""
    group = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    keep = torch.zeros_like(group, dtype=torch.bool)
    waiting = torch.arange(len(group), device=group.device)
    chunks: _Chunks | None = None
    while len(waiting) > 0:
        active, index, present, rank = _leaders(group.take(waiting))
        index = waiting.take(index)
        leaders = geometry.index_select(1, index.view(-1)).view(5, *index.shape)
        kept = (_settle(_pairs_over(leaders, limit)) > 0) & present
        keep[index[kept]] = True
        waiting = waiting[rank >= index.shape[1]]
        if len(waiting) == 0:
            break
        chunks = chunks or _chunks(geometry, group, counts)
        beaten = _beaten(leaders, kept, active, chunks, limit)
        waiting = waiting[~beaten.take(chunks.slot.take(waiting))]
    return keep


def _geometry(boxes_xyxy: Float[Tensor, "n 4"]) -> Float[Tensor, "5 n"]:
    x1, y1, x2, y2 = boxes_xyxy.float().t().contiguous().unbind()
    # A box without area shares nothing, so raising its area to TINY only turns 0/0 into 0.
    return torch.stack([x1, y1, x2, y2, ((x2 - x1) * (y2 - y1)).clamp_(min=TINY)])


def _leaders(
    group: Int[Tensor, " w"],
) -> tuple[Int[Tensor, " r"], Int[Tensor, "r k"], Bool[Tensor, "r k"], Int[Tensor, " w"]]:
    """Return the groups of those who wait, the next members of each, whether these exist, and everyone's rank."""
    starts, counts = _runs(group)
    rank = torch.arange(len(group), device=group.device) - starts.repeat_interleave(counts)
    index, present = _lanes(counts, max(16, math.isqrt(_PAIRS // len(starts))))
    return group.take(starts), index, present, rank


def _lanes(lengths: Int[Tensor, " r"], size: int) -> tuple[Int[Tensor, "r k"], Bool[Tensor, "r k"]]:
    """Return the first `size` members of each run as a table, and which of them exist; 0 stands in for the others."""
    lane = torch.arange(size, device=lengths.device)
    present = lane < lengths[:, None]
    return (lane + (lengths.cumsum(0) - lengths)[:, None]).mul_(present), present


def _runs(values: Int[Tensor, " n"]) -> tuple[Int[Tensor, " r"], Int[Tensor, " r"]]:
    """Return where each run of equal values starts and how long it is."""
    new = torch.ones_like(values, dtype=torch.bool)
    new[1:] = values[1:] != values[:-1]
    starts = new.nonzero().squeeze(1)
    return starts, starts.diff(append=starts.new_tensor([len(values)]))


def _settle(beats: Float[Tensor, "r k k"]) -> Float[Tensor, "r k"]:
    """Return which leaders survive among themselves, as 0 and 1: repeat until nobody's fate changes.

    What pads a row stands behind its boxes, so it beats none of them.
    """
    kept = beats.new_ones(len(beats), 1, beats.shape[1])
    while True:
        now = torch.bmm(kept, beats).eq_(0)
        if torch.equal(now, kept):
            return kept.squeeze(1)
        kept = now


def _pairs_over(leaders: Float[Tensor, "5 r k"], limit: _Limit) -> Float[Tensor, "r k k"]:
    """Return 1 where the row's box, which is better, overlaps the column's too much."""
    rows, size = leaders.shape[1:]
    height = max(8, _STRIP // (rows * size))
    beats = leaders.new_zeros((rows, size, size))
    # Strips above the diagonal: half the pairs, and what is computed at a time stays in the cache.
    for start in range(0, size, height):
        one = leaders[:, :, start : start + height].unsqueeze(3)
        over = limit.exceeded_(_iou(one.unbind(), leaders[:, :, start:].unsqueeze(2).unbind()))
        over[:, :, :height].triu_(1)
        beats[:, start : start + height, start:] = over
    return beats


def _iou(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Tensor:
    shared = one[2].minimum(other[2]).sub_(one[0].maximum(other[0])).clamp_(min=0)
    # One side clamped is enough: a negative product is a negative IoU.
    shared.mul_(one[3].minimum(other[3]).sub_(one[1].maximum(other[1])))
    union = (one[4] + other[4]).sub_(shared)
    return shared.div_(union)


def _chunks(geometry: Float[Tensor, "5 n"], group: Int[Tensor, " n"], counts: Int[Tensor, " g"]) -> _Chunks:
    number = (counts + _CHUNK - 1) // _CHUNK
    first = number.cumsum(0) - number
    starts = counts.cumsum(0) - counts
    order = _neighbours(geometry, group)
    owner = group[order]
    place = first[owner] * _CHUNK + torch.arange(len(group), device=group.device) - starts[owner]
    slot = torch.empty_like(place)
    slot[order] = place
    blank = geometry.new_tensor([_FAR, _FAR, -_FAR, -_FAR, TINY])
    table = blank[:, None].repeat(1, int(number.sum()) * _CHUNK)
    # Nothing has an IoU with a box that is infinite or not a number, and a chunk must not span it.
    table[:, place] = torch.where(geometry[4].isfinite(), geometry, blank[:, None])[:, order]
    table = table.view(5, -1, _CHUNK)
    bounds = torch.stack([*table[:2].amin(dim=2), *table[2:4].amax(dim=2), *table[4].aminmax(dim=1)])
    return _Chunks(table, bounds, first, number, slot)


def _neighbours(geometry: Float[Tensor, "5 n"], group: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return an order by group, then by size, then along a Z-shaped curve through the boxes' centres."""
    centers = (geometry[:2] + geometry[2:4]).nan_to_num(0, 0, 0)
    low, high = centers.amin(dim=1, keepdim=True), centers.amax(dim=1, keepdim=True)
    cell = ((centers - low) * (255 / (high - low).clamp(min=TINY))).long().clamp_(0, 255)
    for shift, mask in ((4, 0x0F0F), (2, 0x3333), (1, 0x5555)):
        cell = (cell | (cell << shift)) & mask
    octave = torch.frexp(geometry[4].nan_to_num(TINY))[1].long()
    smaller = (octave.amax() - octave).clamp_(max=15)
    return ((group << 20) | (smaller << 16) | (cell[1] << 1) | cell[0]).argsort()


def _beaten(
    leaders: Float[Tensor, "5 r k"],
    kept: Bool[Tensor, "r k"],
    active: Int[Tensor, " r"],
    chunks: _Chunks,
    limit: _Limit,
) -> Bool[Tensor, " s"]:
    """Return which slots a kept leader of their group suppresses."""
    x1, y1, x2, y2, area = leaders.unsqueeze(3).unbind()
    # IoU t needs a shared width of t leader widths, and so for the height: the leader may be shrunk by that much.
    # And it needs areas that differ by less than a factor of t.
    part = limit.threshold * _SAFETY
    dx, dy = (x2 - x1) * part, (y2 - y1) * part
    lane = torch.arange(int(chunks.number[active].max()), device=active.device)
    own = lane < chunks.number[active][:, None]
    chunk = (chunks.first[active][:, None] + lane).clamp_(max=chunks.bounds.shape[1] - 1)
    bx1, by1, bx2, by2, least, largest = (side.take(chunk).unsqueeze(1) for side in chunks.bounds)
    meets = (x1 + dx) <= bx2
    meets &= (x2 - dx) >= bx1
    meets &= (y1 + dy) <= by2
    meets &= (y2 - dy) >= by1
    meets &= area * part <= largest
    meets &= area >= least * part
    meets &= (kept & area.squeeze(2).isfinite()).unsqueeze(2)
    meets &= own.unsqueeze(1)
    met = meets.view(-1).nonzero().squeeze(1)
    leader = met // len(lane)
    target = chunk.view(-1)[(leader // kept.shape[1]) * len(lane) + met % len(lane)]
    one = tuple(side.take(leader).unsqueeze(1) for side in leaders)
    other = tuple(side.index_select(0, target) for side in chunks.geometry)
    over = limit.exceeded_(_iou(one, other))
    hits = torch.zeros(chunks.geometry.shape[1:], device=over.device)
    return hits.index_add_(0, target, over).view(-1) > 0
