"""PyTorch's CPU threads follow the load of the machine.

Threads of one operation wait for each other at its end. If another program takes one of their cores, all of them wait
for the one that is not running, thousands of times per step: a step can take ten times as long, and fewer threads are
faster. `benchmarks/busy_neighbour.py` measures it.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, Self

import torch

from multibox.limits import available_cores

CROWDED = 0.12
"""Share of the time that a thread waits for a core from which fewer threads are tried; alone it is below 0.02."""
BUSY = 0.4
"""Cores that other programs keep busy from which fewer threads are tried."""
QUIET = 0.2
"""Cores that other programs keep busy below which all threads are tried again."""
TRIAL = 2
"""Steps measured with another number of threads, after the first one, which prepares the operations anew."""
WINDOW = 5
"""Steps whose median is compared with a trial."""
BETTER = 0.97
"""A trial must take at most this share of the time before it."""
PATIENCE, MOST_PATIENCE = 20.0, 320.0
"""Seconds before a trial that failed is repeated; doubled each time up to the second number."""
SAMPLE = 0.2
"""Seconds between looks at the machine, at least: the kernel counts in hundredths."""
FEWER, MORE = -1, 1


@dataclass(frozen=True)
class Load:
    """Counters of the machine and of this process, in seconds since some start; None where the system is silent."""

    time: float
    own: float
    """Processor time of this process, all threads."""
    waited: float | None
    """Time that threads of this process were ready to run and waited for a core."""
    busy: float | None
    """Processor time of all programs on the cores that this process may use."""


class ThreadPlan:
    """Chooses the number of PyTorch's CPU threads from step to step; as a context, it restores the number at the end.

    When threads wait for cores that other programs keep busy, fewer are tried for a few steps. When the others are
    gone, or from time to time, more are. The faster number stays.

    Args:
        limit: most threads; "auto" is the number that PyTorch has chosen or OMP_NUM_THREADS says, and at most the cores
            that affinity mask and container allow.
        fixed: whether the number stays. Sums over other numbers of threads differ in the last digits.
        set_threads: sets the number.
        look: reads the counters.
    """

    def __init__(
        self,
        limit: int | Literal["auto"] = "auto",
        *,
        fixed: bool = False,
        set_threads: Callable[[int], None] = torch.set_num_threads,
        look: Callable[[], Load] | None = None,
    ) -> None:
        self.before = torch.get_num_threads()
        self.limit = max(1, min(self.before, available_cores()) if limit == "auto" else limit)
        self.threads = self.limit
        self.fixed = fixed or self.limit == 1
        self.changes: list[tuple[int, int]] = []
        """(step, threads) of every change, trials included."""
        self._set = set_threads
        self._look = look or read_load
        self._last: Load | None = None
        self._steps = 0
        self._times: list[float] = []
        # The number of threads and the seconds per step that a trial is compared with
        self._trial: tuple[int, float] | None = None
        # When the last trial of fewer or more threads failed, and the seconds until the next one
        self._failed = {FEWER: (-1e9, PATIENCE), MORE: (0.0, PATIENCE)}
        self._others: float | None = None
        self._waiting: float | None = None
        set_threads(self.threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self.before)

    def before_step(self) -> None:
        """Start to watch; between steps (validation, saving) nothing is counted."""
        if self._last is None:
            self._last = self._look()

    def after_step(self, seconds: float, work: float = 1.0) -> None:
        """Note a step and change the number of threads for the next one where that seems right.

        Args:
            seconds: how long the step took, loading included.
            work: its size relative to other steps, such as its number of pixels.
        """
        self._steps += 1
        if self.fixed:
            return
        self._times.append(seconds / max(work, 1e-9))
        self._sample()
        if self._trial is not None:
            self._judge(*self._trial)
        elif len(self._times) > TRIAL or (self._crowded() and len(self._times) > 1):
            self._consider()
        del self._times[: -WINDOW - 1]

    def pause(self) -> None:
        """Stop to watch until the next `before_step`: something other than a step comes."""
        self._last = None

    def _sample(self) -> None:
        """Find how long threads waited for cores and how many cores others kept busy since the last look."""
        if self._last is None or time.monotonic() - self._last.time < SAMPLE:
            return
        now, last = self._look(), self._last
        passed = max(now.time - last.time, 1e-6)
        self._last = now
        self._waiting = self._others = None
        if now.waited is not None and last.waited is not None:
            self._waiting = max(0.0, now.waited - last.waited) / passed / self.threads
        if now.busy is not None and last.busy is not None:
            self._others = max(0.0, (now.busy - last.busy - now.own + last.own) / passed)

    def _crowded(self) -> bool:
        """Return whether all signs that the system gives say so, and there is one."""
        signs = ((self._waiting, CROWDED), (self._others, BUSY))
        given = [value > limit for value, limit in signs if value is not None]
        return bool(given) and all(given)

    def _consider(self) -> None:
        """Start a trial where the machine's load or the time since the last one gives a reason."""
        if self._crowded() and self.threads > 1 and self._may(FEWER):
            others = 1.0 if self._others is None else self._others
            # Rounded down: others that share a core with our threads get less than they want
            self._try(max(1, min(self.threads - 1, int(self.limit - others))))
        elif self.threads < self.limit:
            alone = self._others is not None and self._others < QUIET and not (self._waiting or 0) > CROWDED
            if alone or self._may(MORE):
                self._try(self.limit if alone else self.threads + 1)

    def _may(self, direction: int) -> bool:
        failed, patience = self._failed[direction]
        return time.monotonic() - failed > patience

    def _try(self, threads: int) -> None:
        # The latest steps count: the load may have come a moment ago
        self._trial = self.threads, median(self._times[-TRIAL:] if self._crowded() else self._times[-WINDOW:])
        self._change(threads)

    def _judge(self, threads: int, seconds: float) -> None:
        """Keep the faster number of threads once the trial has its steps, or at once where it is much slower."""
        direction = MORE if self.threads > threads else FEWER
        measured = self._times[1:]
        lost = bool(measured) and measured[-1] > 1.5 * seconds
        if len(measured) < TRIAL and not lost:
            return
        self._trial = None
        if not lost and median(measured) <= BETTER * seconds:
            self._failed = {FEWER: (-1e9, PATIENCE), MORE: (time.monotonic(), PATIENCE)}
            self._times = measured
            return
        self._failed[direction] = time.monotonic(), min(MOST_PATIENCE, 2 * self._failed[direction][1])
        self._change(threads)

    def _change(self, threads: int) -> None:
        self.threads = threads
        self._times = []
        self._set(threads)
        self.changes.append((self._steps, threads))


def read_load() -> Load:
    """Read the counters of Linux's /proc; elsewhere only this process's own."""
    return Load(time.monotonic(), time.process_time(), _waited(), busy_seconds())


def _waited() -> float | None:
    """Return the seconds that the threads of this process have waited for a core."""
    total = 0
    try:
        for task in os.scandir("/proc/self/task"):
            # Threads end while they are listed
            try:
                total += int(Path(task.path, "schedstat").read_text().split()[1])
            except (OSError, IndexError, ValueError):
                continue
    except OSError:
        return None
    return total / 1e9


def busy_seconds() -> float | None:
    """Return the seconds that this process's cores have worked, for whomever."""
    try:
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None
    # user, nice, system, (idle, iowait), irq, softirq, steal
    return sum(int(words[at]) for words in lines if words[0] in cores for at in (1, 2, 3, 6, 7, 8)) / ticks
