"""The forward pass of prediction: batch norms folded, precision and threads chosen, mirror images averaged."""

import contextlib
import copy
import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Tracer
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_eval

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.models.anchor_layout import anchors_for, anchors_per_cell
from multibox.models.backbones.layers import named_modules
from multibox.models.ssd import SSD
from multibox.ops.boxes import at_least_float32
from multibox.ops.coding import decode, encode
from multibox.structures import Size
from multibox.tensors import HeadOutputs

Folds = list[tuple[str, str]]
"""Names of convolutions and of the batch norms right after them."""


def quick_copy(model: SSD, precision: str, device: str = "cpu", folds: Folds | None = None) -> SSD:
    """Return a copy that computes the same in less time, to be called within `computing_in(precision)`.

    Autocast alone would cast all weights anew for every image, and run each batch norm as a pass of its own. `folds`
    are the network's `convolutions_before_norms` if they are known.

    Raises:
        ConfigError: an unknown precision, or bfloat16 on MPS.
    """
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision={precision!r}: expected float32 or bfloat16")
    if precision != "float32" and device.startswith("mps"):
        raise ConfigError(f"precision={precision!r}: device mps computes in float32 only; leave precision out")
    quick = copy.deepcopy(model).eval()
    fold_norms(quick, folds)
    quick.requires_grad_(False)
    if precision == "bfloat16":
        for module in quick.modules():
            if isinstance(module, nn.Conv2d):
                module.bfloat16()
    return quick.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def gains(model: SSD, precision: str) -> bool:
    """Return whether a quick copy would differ from the network at all."""
    return precision != "float32" or bool(_norms(model))


def fold_norms(model: SSD, folds: Folds | None = None) -> list[str]:
    """Fold, in place, each batch norm into the convolution right before it; the network must be in evaluation mode.

    Returns:
        The names of batch norms that stay. Only some backbones of timm have such: a batch norm that follows no
        convolution, or a forward pass that cannot be traced.
    """
    for conv_name, norm_name in convolutions_before_norms(model) if folds is None else folds:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        model.set_submodule(conv_name, fuse_conv_bn_eval(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)))
        # A batch norm of timm contains the activation after it
        model.set_submodule(norm_name, cast(nn.Module, getattr(norm, "act", nn.Identity())))
    return _norms(model)


def convolutions_before_norms(model: SSD) -> Folds:
    """Return names (convolution, batch norm) wherever a batch norm, and nothing else, takes a convolution's output."""
    kinds, levels = ("classification", "localization"), range(len(model.heads.classification))
    parts = ["backbone", *(f"heads.{kind}.{level}" for kind in kinds for level in levels)]
    return [(f"{part}.{conv}", f"{part}.{norm}") for part in parts for conv, norm in _pairs(model.get_submodule(part))]


def _pairs(part: nn.Module) -> list[tuple[str, str]]:
    try:
        nodes = [node for node in _Tracer().trace(part).nodes if node.op == "call_module"]
    except (TraceError, TypeError, RuntimeError):
        return []  # Some models of timm take branches that depend on values
    modules = {node: part.get_submodule(str(node.target)) for node in nodes}
    calls = Counter(node.target for node in nodes)
    pairs: list[tuple[str, str]] = []
    for node in nodes:
        before = node.all_input_nodes[0]
        follows = isinstance(modules[node], nn.BatchNorm2d) and isinstance(modules.get(before), nn.Conv2d)
        if follows and len(before.users) == calls[before.target] == calls[node.target] == 1:
            pairs.append((str(before.target), str(node.target)))
    return pairs


class _Tracer(Tracer):
    """A tracer that records convolutions and batch norms alone, and follows layers sliced out of an `nn.Sequential`."""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if isinstance(m, nn.Conv2d | nn.BatchNorm2d):
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        return forward(*args, **kwargs)


def _norms(model: nn.Module) -> list[str]:
    return [name for name, module in named_modules(model) if isinstance(module, nn.BatchNorm2d)]


@contextlib.contextmanager
def computing_in(precision: str, device: str, threads: int | None = None) -> Generator[None]:
    """Enter the precision and number of CPU threads of a quick network's forward pass, and restore them afterwards."""
    before = torch.get_num_threads()
    wanted = before if threads is None else threads
    if wanted != before:
        torch.set_num_threads(wanted)
    plain = precision == "float32"
    try:
        with contextlib.nullcontext() if plain else torch.autocast(torch.device(device).type, torch.bfloat16):
            yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)


@cache
def single_threaded_forks() -> None:
    """Let processes forked from now on compute with one thread, because the threads of PyTorch's pool are not forked.

    Without this the first forward pass of such a process waits for them forever. Called by the first `predict`: before
    there is a pool, forked processes can make one of their own.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def mean_with_mirrored(model: SSD, images: Tensor, config: Config) -> HeadOutputs:
    """Return the mean logits and offsets of images [b, 3, h, w] and their mirror images, at the images' anchors.

    The mean of the probabilities was no better (docs/decisions.md).
    """
    plain, mirrored = model(images), unmirror(model(images.flip(3)), config)
    logits, offsets = (
        (at_least_float32(one) + at_least_float32(other)) / 2
        for one, other in ((plain.logits, mirrored.logits), (plain.offsets, mirrored.offsets))
    )
    return HeadOutputs(logits, offsets, plain.feature_shapes)


def unmirror(outputs: HeadOutputs, config: Config) -> HeadOutputs:
    """Turn outputs for mirror images into outputs for the images themselves.

    The output at column c of a map of w columns moves to column w - 1 - c. Its box is decoded, mirrored and encoded
    anew for the anchor there, which is exact for every box coder and wherever anchors are. Class scores are exact where
    a map's anchors are their own mirror image. They are not where steps do not divide the input evenly (SSD300: 38
    cells of 8 pixels are 304, 10 of 32 are 320): there a score comes from an anchor 4 or 20 pixels beside, little for
    anchors of 30 or 111 pixels and more.
    """
    anchors = anchors_for(outputs, config)
    order = mirrored_order(outputs.feature_shapes, anchors_per_cell(config), str(anchors.device))
    boxes = decode(outputs.offsets, anchors, config.model.variances, config.model.coder)[:, order]
    x1, y1, x2, y2 = boxes.unbind(-1)
    boxes = torch.stack([1 - x2, y1, 1 - x1, y2], -1)
    offsets = encode(boxes, anchors, config.model.variances, config.model.coder)
    return HeadOutputs(outputs.logits[:, order], offsets, outputs.feature_shapes)


def mirrored_order(shapes: Sequence[Size], per_cell: Sequence[int], device: str = "cpu") -> Tensor:
    """Return for every anchor the index [a] of the one of its kind in the mirrored column of its row."""
    order: list[Tensor] = []
    start = 0
    for (rows, columns), count in zip(shapes, per_cell, strict=True):
        size = rows * columns * count
        index = torch.arange(start, start + size, device=device).view(rows, columns, count)
        order.append(index.flip(1).flatten())
        start += size
    return torch.cat(order)
