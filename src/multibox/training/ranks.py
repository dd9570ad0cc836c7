"""The processes that train together, and what they tell each other; a run in one process is alone.

One process is a rank, counted from 0. Rank 0 writes the run folder and the log. What lies on a GPU is sent from GPU to
GPU (NCCL); numbers and objects of the hosts are sent between hosts (gloo), so that they never wait for a GPU.
"""

import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, distributed

from multibox.errors import MultiboxError

Value = TypeVar("Value")
MISTAKE = 2
"""Exit code of a process that ends because of what another one says."""


class CommonClock:
    """Rank 0's clock, read by all processes at once: between two looks the time stands still, the same everywhere.

    What they decide by the time they then decide alike. A run in one process just reads its clock.
    """

    def __init__(self, ranks: "Ranks") -> None:
        self.ranks = ranks
        self.now = time.monotonic()
        self.asked = False
        """Whether any process was asked to end when they looked last."""

    def __call__(self) -> float:
        """Return the seconds."""
        return time.monotonic() if self.ranks.count == 1 else self.now

    def look(self, asked: bool = False) -> float:
        """Read the clock together, and tell whether this process was asked to end; return the seconds."""
        now = time.monotonic() if self.ranks.writes else -math.inf
        self.now, ended = self.ranks.agree([now, float(asked)])
        self.asked = ended > 0
        return self.now


@dataclass(frozen=True)
class Ranks:
    """Who this process is among those that train together."""

    rank: int = 0
    count: int = 1
    hosts: Any = None
    """The group in which hosts send objects and wait for each other as long as it takes; None if there is one."""

    @property
    def writes(self) -> bool:
        """Whether this process writes the run folder and the log."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the processes, on the device, without waiting for it."""
        return value if self.count == 1 else self.sum(value) / self.count

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over the processes, on the device, without waiting for it."""
        return self._reduced(value, distributed.ReduceOp.SUM)

    def most(self, value: Tensor) -> Tensor:
        """Return the largest over the processes, on the device, without waiting for it."""
        return self._reduced(value, distributed.ReduceOp.MAX)

    def agree(self, values: Sequence[float]) -> list[float]:
        """Return the largest of each number over the processes; the hosts wait for each other, not for a device."""
        if self.count == 1:
            return list(values)
        return [float(value) for value in self.most(torch.tensor(values, dtype=torch.float64))]

    def gather(self, value: Value) -> list[Value]:
        """Return what every process gave, in the order of ranks, to all of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with connected():
            distributed.all_gather_object(values, value, group=self.hosts)
        return values

    def from_first(self, value: Value) -> Value:
        """Return what rank 0 gave."""
        if self.count == 1:
            return value
        values = [value]
        with connected():
            distributed.broadcast_object_list(values, 0, group=self.hosts)
        return values[0]

    def end(self, error: MultiboxError) -> NoReturn:
        """End all processes, which all call this; rank 0 alone says why.

        Raises:
            MultiboxError: The error given, in rank 0.
            SystemExit: In the others.
        """
        # torchrun ends all as soon as one ended: not before rank 0 has come here
        self.gather("")
        if self.writes:
            raise error
        raise SystemExit(MISTAKE)

    def _reduced(self, value: Tensor, how: Any) -> Tensor:
        if self.count == 1:
            return value
        reduced = value.detach().clone()
        with connected():
            distributed.all_reduce(reduced, how)
        return reduced


ALONE = Ranks()


def own_slice(ranks: Ranks, items: int) -> slice:
    """Return which of the items of a global batch this process computes: contiguous, of lengths that differ by 1."""
    return slice(items * ranks.rank // ranks.count, items * (ranks.rank + 1) // ranks.count)


@contextmanager
def connected() -> Generator[None]:
    """Within it the loss of another process is told as such.

    Raises:
        MultiboxError: Another process ended or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no kind of error of its own, NCCL has
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
        raise MultiboxError(
            f"another process of this run ended or cannot be reached ({str(error).splitlines()[0]}); its own message "
            "says why, and torchrun starts all again from the last state where --max-restarts allows it"
        ) from None
