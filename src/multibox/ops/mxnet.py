"""MXNet's three contrib operators, argument for argument: MultiBoxPrior, MultiBoxTarget, MultiBoxDetection.

They equal the CPU kernels of Apache MXNet 1.9.1, oddities included, so that code and weights written for them keep
their meaning; each docstring names the oddities. What `multibox` itself trains and predicts with is
`ops.anchors`, `ops.matching`, `ops.mining` and `postprocess`, which have none of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.errors import ConfigError
from multibox.ops.boxes import Number
from multibox.ops.coding import encode
from multibox.ops.matching import Assignment, match_bipartite
from multibox.ops.nms import best_first, suppress

Four = tuple[float, float, float, float]


def multibox_prior(
    data: Tensor | tuple[int, int],
    sizes: Sequence[Number] = (1.0,),
    ratios: Sequence[Number] = (1.0,),
    clip: bool = False,
    steps: Sequence[Number] = (-1.0, -1.0),
    offsets: Sequence[Number] = (0.5, 0.5),
) -> Float[Tensor, "1 a 4"]:
    """Return the anchors of one feature map, as MXNet's `contrib.MultiBoxPrior` does.

    Every cell has len(sizes) + len(ratios) - 1 anchors: each size with the first ratio, then the first size with each
    other ratio. Cells go row by row.

    Args:
        data: the feature map [..., h, w], of which only the shape is used, or its height and width.
        sizes: side of the square of the anchor's area, as a fraction of the image's height.
        ratios: width over height.
        clip: cut anchors to 0..1.
        steps: distance of cells (y, x) as a fraction of the image; not positive: 1/h and 1/w.
        offsets: centre of the first cell (y, x) in steps.

    Returns:
        xyxy, 0 to 1 of the image, on the device of the feature map.
    """
    if isinstance(data, Tensor):
        height, width = data.shape[-2:]
        device = data.device
    else:
        height, width = data
        device = torch.device("cpu")
    if len(sizes) == 0 or len(ratios) == 0:
        raise ConfigError("multibox_prior: expected at least one size and one ratio, got none")
    step_y, step_x = (step if step > 0 else 1 / cells for step, cells in zip(steps, (height, width), strict=True))
    y = (torch.arange(height, device=device) + offsets[0]) * step_y
    x = (torch.arange(width, device=device) + offsets[1]) * step_x
    shapes = [(size, ratios[0] ** 0.5) for size in sizes] + [(sizes[0], ratio**0.5) for ratio in ratios[1:]]
    half_w = torch.tensor([size * height / width * root / 2 for size, root in shapes], device=device)
    half_h = torch.tensor([size / root / 2 for size, root in shapes], device=device)
    cx, cy = x.view(1, -1, 1), y.view(-1, 1, 1)
    full = (height, width, len(shapes))
    sides = [side.expand(full) for side in (cx - half_w, cy - half_h, cx + half_w, cy + half_h)]
    anchors = torch.stack(sides, dim=-1).view(1, -1, 4)
    return anchors.clamp(0, 1) if clip else anchors


def multibox_target(
    anchor: Float[Tensor, "1 a 4"],
    label: Float[Tensor, "b l w"],
    cls_pred: Float[Tensor, "b k a"],
    overlap_threshold: Number = 0.5,
    ignore_label: Number = -1.0,
    negative_mining_ratio: Number = -1.0,
    negative_mining_thresh: Number = 0.5,
    minimum_negative_samples: int = 0,
    variances: Sequence[Number] = (0.1, 0.1, 0.2, 0.2),
) -> tuple[Float[Tensor, "b a4"], Float[Tensor, "b a4"], Float[Tensor, "b a"]]:
    """Return what each anchor should predict, as MXNet's `contrib.MultiBoxTarget` does on CPU.

    Oddities: an image without objects has `ignore_label` everywhere, with and without mining;
    `minimum_negative_samples` has no effect. Where MXNet aborts the process because fewer anchors than asked for can be
    mined, all of them are taken.

    Args:
        anchor: xyxy, 0 to 1.
        label: rows of class (from 0), x1, y1, x2, y2 and anything after; the first row of class -1 ends the list.
        cls_pred: logits with background first, used for mining only.
        overlap_threshold: besides the bipartite pairs, an anchor takes its best object when their IoU is above it;
            not positive: bipartite pairs only.
        ignore_label: class target of anchors that mining left out.
        negative_mining_ratio: background anchors kept for each positive, the least sure ones; not positive: all.
        negative_mining_thresh: only anchors whose largest IoU is below it can be mined.
        minimum_negative_samples: not used.
        variances: divide the offsets.

    Returns:
        Box targets and their mask [b, 4a], and class targets [b, a]: 0 is background, class + 1 an object's.
    """
    valid = (label[..., 0] != -1).cumprod(dim=1).bool()
    most = int(valid.sum(dim=1).max()) if valid.numel() > 0 else 0
    labels, valid = label[:, :most].float(), valid[:, :most]
    threshold = overlap_threshold if overlap_threshold > 0 else None
    found = match_bipartite(anchor[0], labels[..., 1:5], valid, threshold=threshold, inclusive=False)
    image, place = (found.gt_index >= 0).nonzero(as_tuple=True)
    matched = labels[image, found.gt_index[image, place]]
    if negative_mining_ratio > 0:
        negative = _mine(found, cls_pred, negative_mining_ratio, negative_mining_thresh)
    else:
        negative = valid.any(dim=1, keepdim=True)
    cls_target = torch.zeros_like(found.overlap).masked_fill_(~negative, ignore_label)
    cls_target[image, place] = matched[:, 0] + 1
    loc_target = found.overlap.new_zeros((*found.overlap.shape, 4))
    loc_mask = torch.zeros_like(loc_target)
    loc_target[image, place] = encode(matched[:, 1:5], anchor[0, place].float(), _four(variances))
    loc_mask[image, place] = 1
    return loc_target.flatten(1), loc_mask.flatten(1), cls_target


def _mine(
    found: Assignment, cls_pred: Float[Tensor, "b k a"], ratio: Number, most_overlap: Number
) -> Bool[Tensor, "b a"]:
    """Return the anchors kept as background: of each image's candidates those surest not to be background."""
    positive = found.gt_index >= 0
    candidate = ~positive & (found.overlap < most_overlap)
    wanted = (positive.sum(dim=1, keepdim=True) * ratio).long()
    background = cls_pred.float().softmax(dim=1)[:, 0].masked_fill(~candidate, 2)
    order = background.argsort(dim=1, stable=True)
    rank = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return candidate & (torch.empty_like(order).scatter_(1, order, rank) < wanted)


def multibox_detection(
    cls_prob: Float[Tensor, "b k a"],
    loc_pred: Float[Tensor, "b a4"],
    anchor: Float[Tensor, "1 a 4"],
    clip: bool = True,
    threshold: Number = 0.01,
    background_id: int = 0,
    nms_threshold: Number = 0.5,
    force_suppress: bool = False,
    variances: Sequence[Number] = (0.1, 0.1, 0.2, 0.2),
    nms_topk: int = -1,
) -> Float[Tensor, "b a 6"]:
    """Return detections as rows, as MXNet's `contrib.MultiBoxDetection` does on CPU.

    Oddities: background is not looked at, however probable it is; a score of `threshold` and an IoU of `nms_threshold`
    are enough; suppressed boxes stay with class -1, and so does after the `nms_topk` best what stood there unsorted.

    Args:
        cls_prob: probabilities, background first.
        loc_pred: offsets of all anchors.
        anchor: xyxy, 0 to 1.
        clip: cut boxes to 0..1, before they are compared.
        threshold: rows with a lower score are dropped.
        background_id: not used: background is the first.
        nms_threshold: IoU with a better box that suppresses; not positive or above 1: nothing is sorted or cut, either.
        force_suppress: boxes of different classes suppress each other, too.
        variances: multiply the offsets.
        nms_topk: only the best so many rows of an image are kept; not positive: all.

    Returns:
        Rows of class (from 0; -1 is none), score, x1, y1, x2, y2, best first; missing rows are -1 throughout.
    """
    counts, found, rows, out = _rows(cls_prob, _Boxes(loc_pred, anchor, _four(variances), clip), threshold)
    width = int(counts.max())
    limit = min(nms_topk, width) if nms_topk > 0 else width
    suppresses = 0 < nms_threshold <= 1
    present = torch.arange(width, device=rows.device) < counts[:, None]
    if suppresses:
        index, present = best_first(out[:, :width, 1], present, limit)
        chosen = ((counts.cumsum(0) - counts)[:, None] + index)[present]
        found, rows = found.take(chosen), rows.index_select(0, chosen)
    image, place = present.nonzero().unbind(1)
    label = _classes(cls_prob, image, found - image * out.shape[1])
    if suppresses:
        group = image if force_suppress else image * cls_prob.shape[1] + label
        label = label.where(_survives(rows[:, 2:], group, nms_threshold), -1)
    rows[:, 0] = label
    # Like MXNet: over the head of the unsorted rows, whose rest is struck out.
    out.view(-1, 6).index_copy_(0, image * out.shape[1] + place, rows)
    return out


class _Boxes(NamedTuple):
    """What boxes are decoded from, and how."""

    loc_pred: Float[Tensor, "b a4"]
    anchors: Float[Tensor, "1 a 4"]
    variances: Four
    clip: bool


def _rows(
    cls_prob: Float[Tensor, "b k a"], boxes: _Boxes, threshold: Number
) -> tuple[Int[Tensor, " b"], Int[Tensor, " n"], Float[Tensor, "n 6"], Float[Tensor, "b a 6"]]:
    """Return how many anchors of each image reach the threshold, which, their rows with class -1, and the output.

    The output holds each image's rows at its head. Where all anchors reach the threshold nothing has to be gathered.
    """
    scores = cls_prob[:, 1:].float().amax(dim=1)
    above = (scores >= threshold) & (scores > -1)
    counts = above.sum(dim=1)
    loc_pred, anchors, variances, clip = boxes
    offsets = loc_pred.reshape(*above.shape, 4)
    if bool(above.all()):
        found = place = torch.arange(above.numel(), device=above.device)
        sides = _decode(offsets, anchors, variances)
    else:
        found = above.view(-1).nonzero().squeeze(1)
        start = torch.arange(len(counts), device=above.device) * above.shape[1]
        anchor = found - start.repeat_interleave(counts)
        sides = _decode(offsets.view(-1, 4).index_select(0, found), anchors[0].index_select(0, anchor), variances)
        gap = start - (counts.cumsum(0) - counts)
        place = torch.arange(len(found), device=above.device) + gap.repeat_interleave(counts)
    rows = scores.new_full((len(found), 6), -1)
    # Column by column: stacking along the short axis is several times slower.
    for column, values in enumerate((scores.view(-1).take(found), *sides), start=1):
        rows[:, column] = values.view(-1)
    if clip:
        rows[:, 2:].clamp_(0, 1)
    if place is found:
        return counts, found, rows, rows.view(*above.shape, 6).clone()
    out = rows.new_full((*above.shape, 6), -1)
    out.view(-1, 6).index_copy_(0, place, rows)
    return counts, found, rows, out


def _survives(boxes_xyxy: Float[Tensor, "n 4"], group: Int[Tensor, " n"], threshold: Number) -> Bool[Tensor, " n"]:
    """Return which boxes NMS leaves of boxes that stand best first in any mixture of groups."""
    order = group.int().argsort(stable=True)
    kept = suppress(boxes_xyxy.index_select(0, order), torch.bincount(group), threshold, inclusive=True)
    return torch.empty_like(kept).scatter_(0, order, kept)


def _classes(
    cls_prob: Float[Tensor, "b k a"], image: Int[Tensor, " n"], anchor: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Return the most probable class besides background, the first of equal ones, for some anchors.

    Asking for the place of each maximum at once would cost twenty times what the maxima alone cost.
    """
    return cls_prob[image, 1:, anchor].float().argmax(dim=1)


def _decode(
    offsets: Float[Tensor, "*n 4"], anchors_xyxy: Float[Tensor, "*m 4"], variances: Four
) -> list[Float[Tensor, "*n"]]:
    """Do `coding.decode` in MXNet's order of operations, and without its guard: anchors without area stay so."""
    tx, ty, tw, th = offsets.float().unbind(-1)
    x1, y1, x2, y2 = anchors_xyxy.float().unbind(-1)
    width, height = x2 - x1, y2 - y1
    cx = tx * variances[0] * width + (x1 + x2) / 2
    cy = ty * variances[1] * height + (y1 + y2) / 2
    half_w = torch.exp(tw * variances[2]) * width / 2
    half_h = torch.exp(th * variances[3]) * height / 2
    return [cx - half_w, cy - half_h, cx + half_w, cy + half_h]


def _four(variances: Sequence[Number]) -> Four:
    first, second, third, fourth = variances
    return first, second, third, fourth
