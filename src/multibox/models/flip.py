"""The network's answer averaged over a picture and its mirror image (test-time augmentation)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multibox.config import Config
from multibox.models.anchors import anchors_per_cell, make_anchors
from multibox.models.ssd import SSD
from multibox.ops.boxes import at_least_float32
from multibox.ops.coding import decode, encode
from multibox.tensors import HeadOutputs


def answer_both_ways(model: SSD, images: Tensor, config: Config) -> HeadOutputs:
    """Return the mean logits and offsets for pictures [b, 3, h, w] and their mirror images, at the pictures' anchors.

    The mean of the probabilities was no better (docs/decisions.md).
    """
    plain, mirrored = model(images), unmirror(model(images.flip(3)), config)
    logits, offsets = (
        (at_least_float32(one) + at_least_float32(other)) / 2
        for one, other in ((plain.logits, mirrored.logits), (plain.offsets, mirrored.offsets))
    )
    return HeadOutputs(logits, offsets, plain.feature_shapes)


def unmirror(outputs: HeadOutputs, config: Config) -> HeadOutputs:
    """Return the answer for mirror images as an answer for the pictures themselves.

    The answer at column c of a map of w columns goes to column w - 1 - c. Its box is decoded, mirrored and encoded anew
    for the anchor there, which is exact for every box coder and wherever anchors are; where a map's anchors are their
    own mirror image, as they are unless steps do not divide the input evenly, this only negates cx of center_size.
    With such steps (SSD300: 38 of 8 pixels are 304, 10 of 32 are 320) boxes are still right, but the class of an anchor
    was answered for one 4 or 20 pixels beside it, small beside the anchor's 30 or more and 111 or more.
    """
    device = str(outputs.offsets.device)
    anchors = make_anchors(config.anchors, outputs.feature_shapes, config.model.input_size, device)
    order = mirrored_order(outputs.feature_shapes, anchors_per_cell(config), device)
    boxes = decode(outputs.offsets, anchors, config.model.variances, config.model.coder)[:, order]
    x1, y1, x2, y2 = boxes.unbind(-1)
    boxes = torch.stack([1 - x2, y1, 1 - x1, y2], -1)
    offsets = encode(boxes, anchors, config.model.variances, config.model.coder)
    return HeadOutputs(outputs.logits[:, order], offsets, outputs.feature_shapes)


def mirrored_order(shapes: Sequence[tuple[int, int]], per_cell: Sequence[int], device: str = "cpu") -> Tensor:
    """Return for every anchor the index [a] of the one of its kind in the mirrored column of its row."""
    found: list[Tensor] = []
    start = 0
    for (rows, columns), count in zip(shapes, per_cell, strict=True):
        size = rows * columns * count
        index = torch.arange(start, start + size, device=device).view(rows, columns, count)
        found.append(index.flip(1).flatten())
        start += size
    return torch.cat(found)
