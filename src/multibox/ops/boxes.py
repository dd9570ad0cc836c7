"""Box formats, areas and overlaps.

Everywhere in the package a box is four numbers along the last axis, in a format that its name says: `xyxy` (two
corners), `xywh` (upper left corner and size) or `cxcywh` (centre and size). Units are the caller's: 0 to 1 of the
input in training, pixels elsewhere.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

IouKind = Literal["iou", "giou", "diou", "ciou"]

Number = float | int
"""A plain `float` annotation would refuse an int where tests check annotations at run time."""

_EPSILON = 1e-7
_BLOCK = 1 << 17
"""Entries of an IoU table computed at a time on a CPU: 512 KB, so that the passes over it stay in the cache."""


def at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return half-precision values as float32; float32 and float64 pass through untouched."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def widest(device: torch.device) -> torch.dtype:
    """Return float64, and float32 on Apple's MPS, which has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def xyxy_to_cxcywh(boxes_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Turn two corners into centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Turn centre and size into two corners."""
    center, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] * 0.5
    return torch.cat([center - half, center + half], dim=-1)


def xywh_to_xyxy(boxes_xywh: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Turn upper left corner and size (COCO's format) into two corners."""
    low, size = boxes_xywh[..., :2], boxes_xywh[..., 2:]
    return torch.cat([low, low + size], dim=-1)


def xyxy_to_xywh(boxes_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Turn two corners into upper left corner and size (COCO's format)."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([low, high - low], dim=-1)


def box_area(boxes_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape"]:
    """Return each box's area; a box whose corners are swapped along an axis has none."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def pairwise_iou(a_xyxy: Float[Tensor, "... n 4"], b_xyxy: Float[Tensor, "... m 4"]) -> Float[Tensor, "... n m"]:
    """Return the IoU (Jaccard overlap) of every box of `a` with every box of `b`.

    Leading axes broadcast: gt [b, g, 4] against anchors [a, 4] gives [b, g, a]. Put the longer list second: it
    becomes the contiguous axis, along which the arithmetic is vectorised. Boxes without area overlap nothing, not
    even themselves: 0, never NaN. Half precision is computed in float32.
    """
    a_xyxy, b_xyxy = at_least_float32(a_xyxy), at_least_float32(b_xyxy)
    a_sides, b_sides = _sides(a_xyxy), [side.unsqueeze(-2) for side in _sides(b_xyxy)]
    rows = max(1, _BLOCK // max(1, b_xyxy.shape[-2]))
    needs_grad = torch.is_grad_enabled() and (a_xyxy.requires_grad or b_xyxy.requires_grad)
    blocked = a_xyxy.device.type == "cpu" and b_xyxy.dim() == 2 and not needs_grad
    if not blocked or a_sides[0].numel() <= rows:
        return _iou_table([side.unsqueeze(-1) for side in a_sides], b_sides)
    flat = [side.reshape(-1, 1) for side in a_sides]
    table = torch.empty(len(flat[0]), len(b_xyxy), dtype=torch.promote_types(a_xyxy.dtype, b_xyxy.dtype))
    for start in range(0, len(table), rows):
        table[start : start + rows] = _iou_table([side[start : start + rows] for side in flat], b_sides)
    return table.view(*a_xyxy.shape[:-1], len(b_xyxy))


def _sides(boxes_xyxy: Float[Tensor, "*shape 4"]) -> list[Float[Tensor, "*shape"]]:
    # x1, y1, x2, y2 and the area, each contiguous. A box without area intersects nothing, so giving it a tiny one
    # leaves its IoU 0 and spares a pass over the table that would mend 0 / 0.
    area = box_area(boxes_xyxy).clamp(min=torch.finfo(boxes_xyxy.dtype).tiny)
    return [*boxes_xyxy.movedim(-1, 0).contiguous().unbind(0), area]


def _iou_table(a_sides: list[Float[Tensor, "... n 1"]], b_sides: list[Float[Tensor, "... 1 m"]]) -> Tensor:
    # In-place wherever possible: the table is big, and every pass over it counts.
    ax1, ay1, ax2, ay2, a_area = a_sides
    bx1, by1, bx2, by2, b_area = b_sides
    overlap = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    overlap = overlap.mul_(torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0))
    return overlap.div_((a_area + b_area).sub_(overlap))


def paired_iou(
    a_xyxy: Float[Tensor, "*shape 4"], b_xyxy: Float[Tensor, "*shape 4"], kind: IouKind = "iou"
) -> Float[Tensor, "*shape"]:
    """Return the overlap of each box of `a` with the box of `b` in the same place; `1 - paired_iou` is a loss.

    `iou` is 0..1; `giou` (arXiv:1902.09630) subtracts the share of the enclosing box that neither fills; `diou` and
    `ciou` (arXiv:1911.08287) subtract the squared distance of the centres over the squared diagonal of the enclosing
    box, `ciou` also the difference of aspect ratios, whose weight alpha is not differentiated through. Differentiable;
    boxes without area give finite values and gradients. Half precision is computed in float32.
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
    # Not prod(): looking for zeros, its gradient makes the host wait for a GPU.
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


def clip_boxes(boxes_xyxy: Float[Tensor, "*shape 4"], limit: Number = 1.0) -> Float[Tensor, "*shape 4"]:
    """Move every corner into 0..`limit`; a box wholly outside loses its area."""
    return boxes_xyxy.clamp(0.0, limit)


def flip_boxes(boxes_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Mirror boxes in 0..1 left to right: x becomes 1 - x, and the two corners trade places.

    Rows of padding (-1) do not stay -1: flip before padding, or mask.
    """
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack([1 - x2, y1, 1 - x1, y2], dim=-1)
