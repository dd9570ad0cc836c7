"""Box areas and overlaps.

A box is four numbers along the last axis, xyxy: its two corners. Units are the caller's: 0 to 1 of the network's input
in training, pixels elsewhere.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

IouKind = Literal["iou", "giou", "diou", "ciou"]

Number = float | int
"""For annotations: where tests check types at run time, a plain `float` would refuse an int."""

_EPSILON = 1e-7
_BLOCK = 1 << 17
"""Entries of an IoU table computed at a time on a CPU: 512 KB, so that all passes over it stay in the cache."""


def at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return half-precision values as float32; float32 and float64 pass through untouched."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def box_area(boxes_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape"]:
    """Return the area of each box; 0 where the corners are swapped along an axis."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def pairwise_iou(a_xyxy: Float[Tensor, "... n 4"], b_xyxy: Float[Tensor, "... m 4"]) -> Float[Tensor, "... n m"]:
    """Return the IoU (Jaccard overlap) of every box of `a` with every box of `b`.

    Leading axes broadcast: gt [b, g, 4] with anchors [a, 4] gives [b, g, a]. Put the longer list second: that axis is
    contiguous. Boxes without area overlap nothing, not even themselves: 0, never NaN. Half precision is computed in
    float32.
    """
    a_xyxy, b_xyxy = at_least_float32(a_xyxy), at_least_float32(b_xyxy)
    a_sides, b_sides = split_sides(a_xyxy), [side.unsqueeze(-2) for side in split_sides(b_xyxy)]
    rows = max(1, _BLOCK // max(1, b_xyxy.shape[-2]))
    needs_grad = torch.is_grad_enabled() and (a_xyxy.requires_grad or b_xyxy.requires_grad)
    in_blocks = a_xyxy.device.type == "cpu" and b_xyxy.dim() == 2 and not needs_grad
    if not in_blocks or a_sides[0].numel() <= rows:
        return iou_of_sides([side.unsqueeze(-1) for side in a_sides], b_sides)
    flat = [side.reshape(-1, 1) for side in a_sides]
    table = torch.empty(len(flat[0]), len(b_xyxy), dtype=torch.promote_types(a_xyxy.dtype, b_xyxy.dtype))
    for start in range(0, len(table), rows):
        table[start : start + rows] = iou_of_sides([side[start : start + rows] for side in flat], b_sides)
    return table.view(*a_xyxy.shape[:-1], len(b_xyxy))


def split_sides(boxes_xyxy: Float[Tensor, "*shape 4"]) -> list[Float[Tensor, "*shape"]]:
    """Return x1, y1, x2, y2 and the area of each box, each of them contiguous, for `iou_of_sides`.

    The area of a box without one is a tiny number. Its intersections are 0, so its IoU is 0 instead of 0 / 0.
    """
    area = box_area(boxes_xyxy).clamp(min=torch.finfo(boxes_xyxy.dtype).tiny)
    return [*boxes_xyxy.movedim(-1, 0).contiguous().unbind(0), area]


def iou_of_sides(a_sides: Sequence[Tensor], b_sides: Sequence[Tensor]) -> Tensor:
    """Return the IoU of boxes given as x1, y1, x2, y2 and area, which broadcast against each other."""
    # In place where possible: the table is big, and every pass over it counts.
    ax1, ay1, ax2, ay2, a_area = a_sides
    bx1, by1, bx2, by2, b_area = b_sides
    overlap = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    overlap = overlap.mul_(torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0))
    return overlap.div_((a_area + b_area).sub_(overlap))


def paired_iou(
    a_xyxy: Float[Tensor, "*shape 4"], b_xyxy: Float[Tensor, "*shape 4"], kind: IouKind = "iou"
) -> Float[Tensor, "*shape"]:
    """Return the overlap of each box of `a` with the box of `b` in the same place; `1 - paired_iou` is a loss.

    Differentiable; boxes without area give finite values and gradients. Half precision is computed in float32.

    Args:
        a_xyxy: One box of each pair.
        b_xyxy: The other box.
        kind: `iou` is 0 to 1. `giou` (Rezatofighi et al., arXiv:1902.09630) subtracts the share of the enclosing box
            that neither fills. `diou` and `ciou` (Zheng et al., arXiv:1911.08287) subtract the squared distance of the
            centres over the squared diagonal of the enclosing box. `ciou` also subtracts a term of the aspect ratios,
            whose weight alpha is a constant to the gradient, as in the paper.
    """
    a_xyxy, b_xyxy = at_least_float32(a_xyxy), at_least_float32(b_xyxy)
    a_low, a_high = a_xyxy[..., :2], a_xyxy[..., 2:]
    b_low, b_high = b_xyxy[..., :2], b_xyxy[..., 2:]
    inner = _product(torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low))
    union = box_area(a_xyxy) + box_area(b_xyxy) - inner
    iou = inner / union.clamp(min=_EPSILON**2)
    if kind == "iou":
        return iou
    enclosing = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).clamp(min=0)
    if kind == "giou":
        hull = _product(enclosing).clamp(min=_EPSILON**2)
        return iou - (hull - union) / hull
    distance = ((a_low + a_high - b_low - b_high) * 0.5).square().sum(-1)
    diou = iou - distance / enclosing.square().sum(-1).clamp(min=_EPSILON**2)
    return diou if kind == "diou" else diou - _aspect_term(a_xyxy, b_xyxy, iou)


def _product(sides: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape"]:
    # Not prod(): its gradient looks for zeros, which makes the host wait for a GPU.
    width, height = sides.clamp(min=0).unbind(-1)
    return width * height


def _aspect_term(
    a_xyxy: Float[Tensor, "*shape 4"], b_xyxy: Float[Tensor, "*shape 4"], iou: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    a_width, a_height = (a_xyxy[..., 2:] - a_xyxy[..., :2]).clamp(min=_EPSILON).unbind(-1)
    b_width, b_height = (b_xyxy[..., 2:] - b_xyxy[..., :2]).clamp(min=_EPSILON).unbind(-1)
    angle = torch.atan2(a_width, a_height) - torch.atan2(b_width, b_height)
    difference = angle.square() * (4 / math.pi**2)
    alpha = (difference / (1 - iou + difference).clamp(min=_EPSILON)).detach()
    return alpha * difference
