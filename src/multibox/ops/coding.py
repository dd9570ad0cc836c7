"""Box coding: a ground truth box as four offsets from an anchor, and back.

Three codes (`CodeType` in Caffe's `PriorBoxParameter`), each divided by the variances, which only scale the targets:

* `center_size` (SSD paper, section 2.2, equation 2), the default everywhere:
  ((gx - ax) / aw / v0, (gy - ay) / ah / v1, ln(gw / aw) / v2, ln(gh / ah) / v3).
* `corner`: (gt - anchor) / variances, corner by corner.
* `corner_size`: the same, over the anchor's width (x) and height (y).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from multibox.ops.boxes import Number, at_least_float32

BoxCode = Literal["center_size", "corner", "corner_size"]
Variances = tuple[Number, Number, Number, Number]

VARIANCES: Variances = (0.1, 0.1, 0.2, 0.2)
"""Of Caffe's release of SSD, and of every implementation since."""

_SMALLEST = 1e-8


def encode(
    gt_xyxy: Float[Tensor, "... a 4"],
    anchors_xyxy: Float[Tensor, "a 4"],
    variances: Variances = VARIANCES,
    code: BoxCode = "center_size",
) -> Float[Tensor, "... a 4"]:
    """Express each gt box as offsets from the anchor in the same place.

    A gt box without width or height, such as padding, has no logarithm. Its size counts as 1e-8, so that its offsets
    are finite and the caller can mask them. Half precision is computed and returned in float32.
    """
    gt_xyxy, anchors_xyxy = at_least_float32(gt_xyxy), at_least_float32(anchors_xyxy)
    if code != "center_size":
        return (gt_xyxy - anchors_xyxy) / _corner_scale(anchors_xyxy, variances, code)
    gt_size = (gt_xyxy[..., 2:] - gt_xyxy[..., :2]).clamp(min=_SMALLEST)
    size = _anchor_size(anchors_xyxy)
    # Twice the distance of the centres over twice the size: one pass less over the big tensor.
    doubled = (gt_xyxy[..., :2] + gt_xyxy[..., 2:]) - (anchors_xyxy[..., :2] + anchors_xyxy[..., 2:])
    moved = doubled / (2 * size * _columns(size, variances[0], variances[1]))
    scaled = torch.log(gt_size / size) / _columns(size, variances[2], variances[3])
    return torch.cat([moved, scaled], dim=-1)


def decode(
    offsets: Float[Tensor, "... a 4"],
    anchors_xyxy: Float[Tensor, "a 4"],
    variances: Variances = VARIANCES,
    code: BoxCode = "center_size",
) -> Float[Tensor, "... a 4"]:
    """Turn offsets from anchors into boxes (xyxy); the inverse of `encode`.

    Nothing is clipped: MXNet and SSD.TensorFlow clip the boxes to 0 to 1 afterwards, Caffe only when it writes results.
    In float32, sizes overflow to infinity from an offset of 443 at a variance of 0.2; clipping ends that. Half
    precision is computed and returned in float32.
    """
    offsets, anchors_xyxy = at_least_float32(offsets), at_least_float32(anchors_xyxy)
    if code != "center_size":
        return offsets * _corner_scale(anchors_xyxy, variances, code) + anchors_xyxy
    low, high = anchors_xyxy.chunk(2, dim=-1)
    moved, scaled = offsets.chunk(2, dim=-1)
    size = _anchor_size(anchors_xyxy)
    center = moved * (size * _columns(size, variances[0], variances[1])) + (low + high) * 0.5
    half = torch.exp(scaled * _columns(size, variances[2], variances[3])) * (size * 0.5)
    return torch.cat([center - half, center + half], dim=-1)


def _anchor_size(anchors_xyxy: Float[Tensor, "a 4"]) -> Float[Tensor, "a 2"]:
    return (anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]).clamp(min=_SMALLEST)


def _columns(like: Float[Tensor, "a 2"], first: Number, second: Number) -> Number | Float[Tensor, "a 2"]:
    # Not torch.tensor([first, second], device=...): that makes a CUDA stream wait for a copy from the host.
    if first == second:
        return first
    return torch.stack([torch.full_like(like[..., 0], first), torch.full_like(like[..., 1], second)], dim=-1)


def _corner_scale(anchors_xyxy: Float[Tensor, "a 4"], variances: Variances, code: BoxCode) -> Float[Tensor, "a 4"]:
    size = _anchor_size(anchors_xyxy) if code == "corner_size" else torch.ones_like(anchors_xyxy[..., :2])
    low = size * _columns(size, variances[0], variances[1])
    high = size * _columns(size, variances[2], variances[3])
    return torch.cat([low, high], dim=-1)
