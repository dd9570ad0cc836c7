"""Where the time of a step goes: named spans, which cost nothing unless somebody measures."""

import contextlib
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

import torch

Spans = Callable[[str], AbstractContextManager[None]]
"""Takes the name of what begins, such as "forward"; what it returns is entered while that lasts."""

_NOTHING = contextlib.nullcontext()


def no_spans(name: str) -> AbstractContextManager[None]:
    """Measure nothing."""
    return _NOTHING


class Stopwatch:
    """Adds up the seconds of each span: of the host, and on a GPU those of the device between two events.

    Args:
        device: Where the spans compute.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.host: dict[str, float] = {}
        """Seconds by name."""
        self.events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}

    @contextmanager
    def __call__(self, name: str) -> Generator[None]:
        """Measure one span."""
        if self.on_gpu:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self.events.setdefault(name, []).append(pair)
            pair[0].record()
        began = time.perf_counter()
        yield
        self.host[name] = self.host.get(name, 0.0) + time.perf_counter() - began
        if self.on_gpu:
            self.events[name][-1][1].record()

    def restart(self) -> None:
        """Forget what was measured so far."""
        self.host.clear()
        self.events.clear()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each span where it computes, which waits for a GPU."""
        if not self.on_gpu:
            return dict(self.host)
        torch.cuda.synchronize()
        return {name: sum(a.elapsed_time(b) for a, b in pairs) / 1000 for name, pairs in self.events.items()}
