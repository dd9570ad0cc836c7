"""The processes that train together, and what they tell each other; a run in one process is alone.

One process is a rank, counted from 0. Rank 0 writes the run folder and the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """Who this process is among those that train together."""

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes the run folder and the log."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the processes, on the device, without waiting for it."""
        return value

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over the processes, on the device, without waiting for it."""
        return value

    def most(self, value: Tensor) -> Tensor:
        """Return the largest over the processes, on the device, without waiting for it."""
        return value

    def agree(self, values: Sequence[float]) -> list[float]:
        """Return the largest of each number over the processes; the hosts wait for each other, not for a device."""
        return list(values)

    def gather(self, value: Value) -> list[Value]:
        """Return what every process gave, in the order of ranks, to all of them."""
        return [value]

    def from_first(self, value: Value) -> Value:
        """Return what rank 0 gave."""
        return value


ALONE = Ranks()


def alone(count: Tensor) -> Tensor:
    """Return the mean of a count over the processes of a run in one: the count."""
    return count


def own_slice(ranks: Ranks, items: int) -> slice:
    """Return which of the items of a global batch this process computes: contiguous, of lengths that differ by 1."""
    return slice(items * ranks.rank // ranks.count, items * (ranks.rank + 1) // ranks.count)
