"""Rows of a table that something is computed for, and whether the host may look at values to choose them.

A GPU works on while the host prepares the next step. Whoever asks for a value there, or for a tensor whose size depends
on values (`nonzero`, an index of booleans), makes the host wait until the GPU has done everything before. So on a GPU
all entries of a table are rows, with a mark of those that count. On a CPU the host reads its own memory, and fewer rows
are less work.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_forbidden: ContextVar[bool] = ContextVar("_forbidden", default=False)


def may_read(tensor: Tensor) -> bool:
    """Return whether the host sees the values of a tensor without waiting: on a CPU, and not while it is compiled."""
    if torch.compiler.is_compiling():
        return False
    return tensor.device.type == "cpu" and not _forbidden.get()


@contextmanager
def without_reading() -> Generator[None]:
    """Compute on a CPU as on a GPU, in fixed shapes and without a look at values; for tests of that."""
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


class Rows(NamedTuple):
    """Entries of tables [b, a, ...], in their order: either those that count, or all with a mark."""

    image: Int[Tensor, " p"]
    anchor: Int[Tensor, " p"]
    valid: Bool[Tensor, " p"]
    """Whether the row counts."""
    every: bool
    """Whether every entry is a row."""

    def take(self, table: Tensor) -> Tensor:
        """Return the entries [p, ...] of a table [b, a, ...]."""
        return table.flatten(0, 1) if self.every else table[self.image, self.anchor]

    def put(self, table: Tensor, values: Tensor) -> Tensor:
        """Return a table [b, a] with the values [p] of the rows that count; the one given may be written to."""
        values = values.to(table.dtype)
        if self.every:
            return torch.where(self.valid, values, table.flatten()).view(table.shape)
        table[self.image, self.anchor] = values
        return table


def rows_of(counts: Bool[Tensor, "b a"], fixed: bool = False) -> Rows:
    """Return the entries that count, or all where the host would have to wait for them or the caller wants `fixed`."""
    if may_read(counts) and not fixed:
        # Seven times as fast as torch's nonzero
        image, anchor = np.divmod(np.flatnonzero(counts.numpy()), max(1, counts.shape[1]))
        image, anchor = torch.as_tensor(image), torch.as_tensor(anchor)
        return Rows(image, anchor, torch.ones_like(image, dtype=torch.bool), False)
    images, anchors = (torch.arange(size, device=counts.device) for size in counts.shape)
    return Rows(images.repeat_interleave(len(anchors)), anchors.repeat(len(images)), counts.flatten(), True)


def first_largest(table: Float[Tensor, "... n"]) -> tuple[Float[Tensor, "..."], Int[Tensor, "..."]]:
    """Return the largest entry along the last axis, and the first place that has it; NaN counts as the largest."""
    if not may_read(table) or table.shape[-1] == 0:
        return table.max(dim=-1)
    # On a CPU twelve times as fast as torch's max with indices
    place = torch.as_tensor(table.detach().numpy().argmax(axis=-1))
    return table.gather(-1, place[..., None]).squeeze(-1), place
