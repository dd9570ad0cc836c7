"""Cores and memory that this process may use, by affinity masks and control groups (containers)."""

import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
KEEP_MEMORY = "MULTIBOX_KEEP_MEMORY"
"""Environment variable that allows `keep_freed_memory`; the command line sets it to 1 unless it is set."""


def available_cores() -> int:
    """Return the cores that this process may use, at least 1: by its affinity mask and its container's quota.

    Processes that torchrun started on this machine share them evenly.
    """
    # Only Linux tells
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *(math.floor(quota) for quota in _quotas())])) // sharers())


def processor_name() -> str:
    """Return the processor's name as the system gives it, such as `AMD EPYC 7B13`."""
    name = platform.processor() or platform.machine()
    if (PROC / "cpuinfo").exists():
        lines = (PROC / "cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return name


def decoding_threads() -> int:
    """Return the number of threads that decode and draw images beside a network: one per core, at most 8."""
    return min(8, available_cores())


def available_memory() -> int | None:
    """Return the bytes that this process could still take, of the machine or of its container; None if unknown."""
    free = read_kilobytes(PROC / "meminfo", "MemAvailable:")
    left = [] if free is None else [free]
    for group in _groups("memory"):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        used = _number(group / "memory.current", group / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            # Cached files are counted as used, but given back on demand
            left.append(limit - used + (read_number(group / "memory.stat", "inactive_file") or 0))
    return max(0, min(left)) if left else None


def keep_freed_memory(*, always: bool = False) -> bool:
    """Let this process keep the memory of freed tensors for the next ones; return whether it could be arranged.

    The setting holds until the process ends, so a script's own process is left as it is unless `KEEP_MEMORY` is 1 in
    the environment, or `always` is given.

    glibc asks the system for every block above 32 MB anew and gives it back at once. Each large feature map of each
    step then starts with thousands of page faults (docs/decisions.md). Other C libraries have no such setting.
    """
    if not sys.platform.startswith("linux") or not (always or os.environ.get(KEEP_MEMORY) == "1"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])


def read_kilobytes(path: Path, name: str) -> int | None:
    """Return a size of `/proc/meminfo` or `/proc/self/status` in bytes; None where it is missing."""
    number = read_number(path, name)
    return None if number is None else number * 1024


def read_number(path: Path, name: str) -> int | None:
    """Return the number that follows `name` at the start of a line; None where it is missing."""
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return None


def sharers() -> int:
    """Return how many processes torchrun started on this machine together with this one, itself included."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(said) if said.isdigit() and int(said) else 1


def _quotas() -> Iterator[float]:
    """Yield the cores allowed by each control group around this process."""
    for group in _groups("cpu"):
        # Version 2 writes "max 100000" or "150000 100000", version 1 two files and -1
        words = _read(group / "cpu.max").split()
        if len(words) != 2:
            words = [_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        quota, period = words
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            yield int(quota) / int(period)


def throttled_periods() -> tuple[int, int] | None:
    """Return in how many periods a quota stopped this process's control group so far, and of how many.

    Of nested groups, the one that was stopped most often; None where there is no quota or the system does not tell.
    """
    counts: list[tuple[int, int]] = []
    for group in _groups("cpu"):
        stopped, periods = (read_number(group / "cpu.stat", name) for name in ("nr_throttled", "nr_periods"))
        if stopped is not None and periods:
            counts.append((stopped, periods))
    return max(counts, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, from its own up to the root."""
    for line in _read(PROC / "self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            root = CGROUPS / names if names else CGROUPS
            own = root / path.lstrip("/")
            # Inside a container the path is that of the host, which does not exist there
            yield from (own, *own.parents[: len(own.parts) - len(root.parts)]) if own.is_dir() else (root,)


def _number(*paths: Path) -> int | None:
    text = next((text for path in paths if (text := _read(path).strip())), "")
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
