"""A network that only answers: batch norms folded into convolutions, weights in the precision of the products."""

import contextlib
import copy
from contextlib import AbstractContextManager

import torch
from torch import nn

from multibox.errors import ConfigError
from multibox.inference.engines import PRECISIONS
from multibox.models.folding import fold_norms
from multibox.models.ssd import SSD


def quick_copy(model: SSD, precision: str) -> SSD:
    """Return a copy that computes the same in less time, to be called within `computing_in(precision)`.

    Autocast alone would cast all weights anew for every picture, and leave each batch norm a pass of its own.

    Raises:
        ConfigError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r}: expected {' or '.join(PRECISIONS)}")
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


def computing_in(precision: str, device: str) -> AbstractContextManager[None]:
    """Return the context of a quick network's forward pass."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)  # pyright: ignore[reportReturnType]
