"""MXNet's three contrib operators, argument for argument: MultiBoxPrior, MultiBoxTarget, MultiBoxDetection.

They equal the CPU kernels of Apache MXNet 1.9.1 (src/operator/contrib/multibox_*.cc), oddities included, so that code
and weights written for them keep their meaning. Each docstring names the oddities; what `multibox` itself trains and
predicts with has none of them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.errors import ConfigError
from multibox.ops.boxes import Number
from multibox.ops.coding import Variances, decode, encode
from multibox.ops.matching import match_bipartite
from multibox.ops.mining import mine_hard_negatives
from multibox.ops.nms import best_first, suppress


def multibox_prior(
    data: Tensor | tuple[int, int],
    sizes: Sequence[Number] = (1.0,),
    ratios: Sequence[Number] = (1.0,),
    clip: bool = False,
    steps: Sequence[Number] = (-1.0, -1.0),
    offsets: Sequence[Number] = (0.5, 0.5),
) -> Float[Tensor, "1 a 4"]:
    """Return the anchors of one feature map, as MXNet's `contrib.MultiBoxPrior` does.

    Each cell has len(sizes) + len(ratios) - 1 anchors: each size with the first ratio, then the first size with each
    other ratio. Cells go row by row.

    Args:
        data: The feature map [..., h, w], of which only the shape is used, or its height and width.
        sizes: Side of the square of the anchor's area, as a fraction of the image's height.
        ratios: Width over height.
        clip: Cut anchors to 0 to 1.
        steps: Distance of cells (y, x) as a fraction of the image; not positive: 1/h and 1/w.
        offsets: Centre of the first cell (y, x) in steps.

    Returns:
        xyxy, 0 to 1 of the image, on the device of the feature map.

    Raises:
        ConfigError: No size or no ratio.
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
    """Return the training targets of each anchor, as MXNet's `contrib.MultiBoxTarget` does on CPU.

    Oddities: an image without objects has `ignore_label` everywhere, with and without mining;
    `minimum_negative_samples` has no effect. Where MXNet aborts the process because too few anchors can be mined, all
    of them are taken.

    Args:
        anchor: xyxy, 0 to 1.
        label: Rows of class (from 0), x1, y1, x2, y2 and anything after; the first row of class -1 ends the list.
        cls_pred: Logits with background first, used for mining only.
        overlap_threshold: An anchor outside the bipartite pairs takes its best object if their IoU is above it; not
            positive: bipartite pairs only.
        ignore_label: Class target of anchors that mining left out.
        negative_mining_ratio: Background anchors kept per positive, the least sure ones; not positive: all.
        negative_mining_thresh: Only anchors whose largest IoU is below it can be mined.
        minimum_negative_samples: Not used.
        variances: Divide the offsets.

    Returns:
        Box targets and their mask [b, 4a], and class targets [b, a]: 0 is background, class + 1 an object's.
    """
    valid = (label[..., 0] != -1).cumprod(dim=1).bool()
    longest = int(valid.sum(dim=1).max()) if valid.numel() > 0 else 0
    labels, valid = label[:, :longest].float(), valid[:, :longest]
    threshold = overlap_threshold if overlap_threshold > 0 else None
    assignment = match_bipartite(anchor[0], labels[..., 1:5], valid, threshold=threshold, inclusive=False)
    positive = assignment.gt_index >= 0
    if negative_mining_ratio > 0:
        candidate = ~positive & (assignment.overlap < negative_mining_thresh)
        background = cls_pred.float().softmax(dim=1)[:, 0]
        negative = mine_hard_negatives(-background, positive, candidate, negative_mining_ratio)
    else:
        negative = valid.any(dim=1, keepdim=True)
    image, place = positive.nonzero(as_tuple=True)
    matched = labels[image, assignment.gt_index[image, place]]
    cls_target = torch.zeros_like(assignment.overlap).masked_fill_(~negative, ignore_label)
    cls_target[image, place] = matched[:, 0] + 1
    loc_target = assignment.overlap.new_zeros((*positive.shape, 4))
    loc_mask = torch.zeros_like(loc_target)
    loc_target[image, place] = encode(matched[:, 1:5], anchor[0, place].float(), _four(variances))
    loc_mask[image, place] = 1
    return loc_target.flatten(1), loc_mask.flatten(1), cls_target


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

    Oddities: background is not looked at, however probable it is. A score of `threshold` and an IoU of `nms_threshold`
    are enough. Suppressed boxes stay with class -1, and so do, after the `nms_topk` best, the rows that stood there
    before sorting.

    Args:
        cls_prob: Probabilities, background first.
        loc_pred: Offsets of all anchors.
        anchor: xyxy, 0 to 1.
        clip: Cut boxes to 0 to 1 before they are compared.
        threshold: Rows with a lower score are dropped.
        background_id: Not used: background is the first.
        nms_threshold: IoU with a better box that suppresses; not positive or above 1: nothing is sorted or cut either.
        force_suppress: Whether boxes of different classes suppress each other, too.
        variances: Multiply the offsets.
        nms_topk: Best rows of an image that are kept; not positive: all.

    Returns:
        Rows of class (from 0; -1 is none), score, x1, y1, x2, y2, best first; missing rows are -1 throughout.
    """
    scores = cls_prob[:, 1:].float().amax(dim=1)
    above = (scores >= threshold) & (scores > -1)
    counts = above.sum(dim=1)
    cell = above.view(-1).nonzero().squeeze(1)  # image * anchors + anchor
    rows = _rows(scores, cell, loc_pred, anchor[0], _four(variances), clip)
    present = torch.arange(above.shape[1], device=above.device) < counts[:, None]
    if len(cell) == above.numel():
        out = rows.clone().view(*above.shape, 6)
    else:
        out = rows.new_full((*above.shape, 6), -1)
        out[present] = rows
    width = int(counts.max())
    present = present[:, :width]
    suppresses = 0 < nms_threshold <= 1
    if suppresses:
        limit = min(nms_topk, width) if nms_topk > 0 else width
        index, present = best_first(out[:, :width, 1], present, limit)
        chosen = ((counts.cumsum(0) - counts)[:, None] + index)[present]
        cell, rows = cell.take(chosen), rows.index_select(0, chosen)
    image, place = present.nonzero().unbind(1)
    # The place of each maximum among all anchors would cost twenty times as much as the maxima above.
    label = cls_prob[image, 1:, cell - image * above.shape[1]].float().argmax(dim=1)
    if suppresses:
        group = image if force_suppress else image * cls_prob.shape[1] + label
        label = label.where(_survives(rows[:, 2:], group, nms_threshold), -1)
    rows[:, 0] = label
    # As in MXNet, sorted rows overwrite the first of the unsorted ones; those that remain have class -1.
    out.view(-1, 6).index_copy_(0, image * above.shape[1] + place, rows)
    return out


def _rows(
    scores: Float[Tensor, "b a"],
    cell: Int[Tensor, " n"],
    loc_pred: Float[Tensor, "b a4"],
    anchors_xyxy: Float[Tensor, "a 4"],
    variances: Variances,
    clip: bool,
) -> Float[Tensor, "n 6"]:
    """Return class -1, score and box of the anchors `cell` (image * anchors + anchor)."""
    offsets, anchors = loc_pred.float().reshape(-1, 4), anchors_xyxy.float()
    if len(cell) == scores.numel():
        anchors = anchors.repeat(len(scores), 1)
    else:
        offsets, anchors = offsets.index_select(0, cell), anchors.index_select(0, cell % len(anchors))
    # MXNet multiplies offset and variance first; the rounding decides which boxes are suppressed.
    boxes = decode(offsets * offsets.new_tensor(variances), anchors, (1, 1, 1, 1))
    rows = scores.new_full((len(cell), 6), -1)
    rows[:, 1] = scores.view(-1).take(cell)
    rows[:, 2:] = boxes.clamp_(0, 1) if clip else boxes
    return rows


def _survives(boxes_xyxy: Float[Tensor, "n 4"], group: Int[Tensor, " n"], threshold: Number) -> Bool[Tensor, " n"]:
    """Return which boxes NMS keeps; within each group boxes stand best first."""
    order = group.int().argsort(stable=True)
    kept = suppress(boxes_xyxy.index_select(0, order), torch.bincount(group), threshold, inclusive=True)
    return torch.empty_like(kept).scatter_(0, order, kept)


def _four(variances: Sequence[Number]) -> Variances:
    first, second, third, fourth = variances
    return first, second, third, fourth
