"""What a run uses of the machine: processor, memory, GPU. Where the system does not tell, a number is None."""

import multiprocessing
import os
import time
from pathlib import Path

import torch

from multibox.limits import PROC, available_cores

Use = dict[str, float | None]


class Hardware:
    """Measures what the processes of a run use, its workers included.

    Args:
        device: Where the run computes, such as "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.cores = available_cores()
        self.before: tuple[float, float] | None = None

    def use(self) -> Use:
        """Return the use since the last call.

        Returns:
            `cpu_percent`: processor time since the last call, 100 if all cores that this process may use were busy;
            None in the first call. `memory_gb`: resident memory, where shared pages count once per process.
            `gpu_percent`: how busy the GPU is, whoever uses it; None without the package nvidia-ml-py.
            `gpu_memory_gb`: GPU memory that this process has reserved. GB are 10^9 bytes.
        """
        now, seconds, memory = time.monotonic(), 0.0, 0
        for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
            spent, resident = process_use(PROC / str(pid))
            seconds, memory = seconds + spent, memory + resident
        before, self.before = self.before, (now, seconds)
        percent = None
        if before is not None and seconds and now > before[0]:
            # A worker that ended takes its seconds along
            percent = max(0.0, 100 * (seconds - before[1]) / (now - before[0]) / self.cores)
        return {
            "cpu_percent": None if percent is None else round(percent, 1),
            "memory_gb": round(memory / 1e9, 3) if memory else None,
            **_gpu(self.device),
        }


def process_use(folder: Path) -> tuple[float, int]:
    """Return the processor seconds and the resident bytes of a process, by its folder in /proc; 0 where unknown."""
    try:
        # The name, in brackets, may hold anything; user and system time are the 12th and 13th word after it
        words = (folder / "stat").read_text().rpartition(")")[2].split()
        pages = int((folder / "statm").read_text().split()[1])
        ticks = int(words[11]) + int(words[12])
        return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0, 0


def _gpu(device: str) -> Use:
    if not device.startswith("cuda"):
        return {"gpu_percent": None, "gpu_memory_gb": None}
    memory = round(torch.cuda.memory_reserved(device) / 1e9, 3)
    try:
        return {"gpu_percent": float(torch.cuda.utilization(device)), "gpu_memory_gb": memory}
    except (ImportError, RuntimeError, AttributeError):
        return {"gpu_percent": None, "gpu_memory_gb": memory}
