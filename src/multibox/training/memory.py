"""How the C library hands out large blocks of memory."""

import ctypes
import os
import sys

VARIABLE = "MULTIBOX_KEEP_MEMORY"
"""Environment variable that allows `keep_freed_memory`; the command line sets it to 1 unless it is set."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory(*, always: bool = False) -> bool:
    """Let this process keep the memory of freed tensors for the next ones; return whether it could be arranged.

    The setting holds for the whole process until it ends, so a script's own process is left as it is unless `VARIABLE`
    is 1 in the environment, or `always` is given.

    glibc asks the system for every block above 32 MB anew and gives it back at once, so each large feature map of each
    step starts with thousands of page faults: a quarter of a TinySSD step on a CPU (docs/decisions.md). Only glibc
    has these settings; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux") or not (always or os.environ.get(VARIABLE) == "1"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])
