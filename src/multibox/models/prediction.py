"""Batch norms folded into the convolutions before them, for networks that only answer."""

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.models.anchor_layout import anchors_per_cell, make_anchors
from multibox.models.ssd import SSD
from multibox.ops.boxes import at_least_float32
from multibox.ops.coding import decode, encode
from multibox.tensors import HeadOutputs


def fold_norms(model: nn.Module) -> None:
    """Fold, in place, each batch norm right behind a convolution in an `nn.Sequential`; the result only evaluates."""
    for parent in list(model.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        before: nn.Module | None = None
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                _fold(before, module)
                setattr(parent, name, nn.Identity())
            before = module


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(  # pyright: ignore[reportAttributeAccessIssue]
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def quick_copy(model: SSD, precision: str, device: str = "cpu") -> SSD:
    """Return a copy that computes the same in less time, to be called within `computing_in(precision)`.

    Autocast alone would cast all weights anew for every image, and leave each batch norm a pass of its own.

    Raises:
        ConfigError: an unknown precision, or bfloat16 on MPS.
    """
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision={precision!r}: expected float32 or bfloat16")
    if precision != "float32" and device.startswith("mps"):
        raise ConfigError(f"precision={precision!r}: device mps computes in float32 only; leave precision out")
    quick = copy.deepcopy(model).eval()
    fold_norms(quick)
    quick.requires_grad_(False)
    if precision == "bfloat16":
        for module in quick.modules():
            if isinstance(module, nn.Conv2d):
                module.bfloat16()
    return quick.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def gains(model: SSD, precision: str) -> bool:
    """Say whether a quick copy would differ at all."""
    return precision != "float32" or any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@contextlib.contextmanager
def computing_in(precision: str, device: str, threads: int | None = None) -> Iterator[None]:
    """Enter the precision and number of CPU threads of a quick network's forward pass, and leave them as they were."""
    before = torch.get_num_threads()
    wanted = before if threads is None else threads
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        if precision == "float32":
            yield
        else:
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)


@cache
def single_threaded_forks() -> None:
    """Let processes forked from now on compute with one thread, for the threads of PyTorch's pool are not forked.

    Without this the first forward pass of such a process waits for them forever. Called by the first `predict`: before
    there is a pool, forked processes can make one of their own.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)


def answer_both_ways(model: SSD, images: Tensor, config: Config) -> HeadOutputs:
    """Return the mean logits and offsets for images [b, 3, h, w] and their mirror images, at the images' anchors.

    The mean of the probabilities was no better (docs/decisions.md).
    """
    plain, mirrored = model(images), unmirror(model(images.flip(3)), config)
    logits, offsets = (
        (at_least_float32(one) + at_least_float32(other)) / 2
        for one, other in ((plain.logits, mirrored.logits), (plain.offsets, mirrored.offsets))
    )
    return HeadOutputs(logits, offsets, plain.feature_shapes)


def unmirror(outputs: HeadOutputs, config: Config) -> HeadOutputs:
    """Return the answer for mirror images as an answer for the images themselves.

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
