"""A network that only answers: batch norms folded into convolutions, weights in the precision of the products."""

import contextlib
import copy
import os
from collections.abc import Iterator
from functools import cache

import torch
from torch import nn

from multibox.errors import ConfigError
from multibox.inference.engines import PRECISIONS
from multibox.models.folding import fold_norms
from multibox.models.ssd import SSD


def quick_copy(model: SSD, precision: str, device: str = "cpu") -> SSD:
    """Return a copy that computes the same in less time, to be called within `computing_in(precision)`.

    Autocast alone would cast all weights anew for every picture, and leave each batch norm a pass of its own.

    Raises:
        ConfigError: an unknown precision, or bfloat16 on MPS.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r}: expected {' or '.join(PRECISIONS)}")
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
