"""What the machine did meanwhile: our processor time, that of others, a quota that stopped us, memory."""

import multiprocessing
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from multibox.limits import PROC, available_cores, available_memory, throttled_periods
from multibox.training.hardware import process_use
from multibox.training.threads import busy_seconds


@dataclass(frozen=True)
class MachineUse:
    """The use of the machine in a span of time; None where the system does not tell."""

    seconds: float
    cores: int
    """That this process may use."""
    own: float
    """Cores that our processes kept busy on average."""
    others: float | None
    """Cores, of those that we may use, that other programs kept busy."""
    throttled: float | None
    """Share of the periods in which a quota on processor time stopped us; None without one."""


class MachineWatch:
    """Counts from when it is made until `use` is called."""

    def __init__(self) -> None:
        self.cores = available_cores()
        self.before = self._read()

    def use(self) -> MachineUse:
        """Return the use since this watch was made."""
        then, own_then, busy_then, stopped_then = self.before
        now, own, busy, stopped = self._read()
        seconds = max(now - then, 1e-6)
        mine = max(0.0, own - own_then) / seconds
        others = None if busy is None or busy_then is None else max(0.0, (busy - busy_then) / seconds - mine)
        held = None
        if stopped is not None and stopped_then is not None:
            held = (stopped[0] - stopped_then[0]) / max(1, stopped[1] - stopped_then[1])
        return MachineUse(seconds, self.cores, mine, others, held)

    def _read(self) -> tuple[float, float, float | None, tuple[int, int] | None]:
        workers = (process_use(PROC / str(child.pid))[0] for child in multiprocessing.active_children())
        return time.monotonic(), time.process_time() + sum(workers), busy_seconds(), throttled_periods()


def busiest_program() -> str:
    """Return the name of the other program with the most processor time at the moment; "" if none can be seen."""
    ours = {os.getpid(), *(child.pid for child in multiprocessing.active_children())}

    def seconds() -> dict[Path, float]:
        return {one: process_use(one)[0] for one in PROC.glob("[0-9]*") if int(one.name) not in ours}

    before = seconds()
    time.sleep(0.3)
    spent = {one: now - before[one] for one, now in seconds().items() if one in before}
    folder = max(spent, key=lambda one: spent[one], default=None)
    if folder is None or spent[folder] < 0.05:
        return ""
    try:
        return Path((folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")).name
    except OSError:
        return ""


def peak_memory(device: str) -> int:
    """Return the most bytes that this process has taken so far: of the GPU, else of memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def whole_memory(device: str) -> int | None:
    """Return the bytes that this process has or could take, of the GPU or of memory; None if unknown."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    free = available_memory()
    return None if free is None else free + process_use(PROC / "self")[1]
