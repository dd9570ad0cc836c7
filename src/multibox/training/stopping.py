"""How a run is asked to end: Ctrl-C, SIGTERM, a terminal that hangs up, or a file named `stop`; and when it does.

A step, a save or the end of an epoch is never cut short: weights, counters and files would not belong together. The
start, the wait for a batch and a validation change nothing that is kept, so there the run ends at once.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any, Self

STOP = "stop"
"""File in the run folder that asks the run to save and end; `multibox monitor` makes it."""
LOOK_EVERY = 1.0
"""Seconds between two looks for it."""
SIGHUP: int | None = getattr(signal, "SIGHUP", None)
"""What a process gets whose terminal is closed or whose connection is lost; Windows has none."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which cluster managers send before they kill a process, or SIGHUP. It ends a command as Ctrl-C does."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


class EndNow(KeyboardInterrupt):
    """The run was asked to end where nothing is half done: save the state of the last step, then raise `reason()`."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """Return the exit code of a command that was stopped, as shells report it: 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + (stop.number if isinstance(stop, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def terminable() -> Generator[None]:
    """Within it SIGTERM and SIGHUP raise Terminated, as Ctrl-C does KeyboardInterrupt: half-made files are removed."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    if not _may_handle_signals():
        yield
        return
    before = {number: signal.signal(number, terminate) for number in _heard(signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heard(*numbers: int) -> list[int]:
    """Return the signals with SIGHUP, unless nohup made this process ignore it."""
    hears = SIGHUP is not None and signal.getsignal(SIGHUP) is not signal.SIG_IGN
    return [*numbers, SIGHUP] if SIGHUP is not None and hears else [*numbers]


class Interrupt:
    """While entered, notes SIGINT, SIGTERM, SIGHUP and the file `STOP`; a second SIGINT raises KeyboardInterrupt.

    Further ones of the others change nothing: the run is ending as fast as it can without losing what it learned.

    Args:
        folder: The run folder, in which another program may make the file.
        alone: Whether this process may end when it likes; others that train together end after the same step.
    """

    def __init__(self, folder: Path, *, alone: bool = True) -> None:
        self.alone = alone
        self.file = folder / STOP
        self.signal: int | None = None
        """The first signal that came."""
        self.found = False
        """Whether the file was there."""
        self.looked = time.monotonic()
        self._at_once = False
        self._previous: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether the run should save and end; looks for the file at most once a second, and takes it away."""
        if self.signal is None and not self.found and time.monotonic() - self.looked >= LOOK_EVERY:
            self.looked = time.monotonic()
            self.found = self.file.exists()
            self._take()
        return self.signal is not None or self.found

    def check(self) -> None:
        """End the run if it was asked to; call it where nothing is half done.

        Raises:
            EndNow: it was.
        """
        if self.asked:
            raise EndNow

    @contextlib.contextmanager
    def heard_at_once(self) -> Generator[None]:
        """Within it a first signal raises EndNow wherever the program stands; one that came before raises it here.

        Not where others train together with this process: they decide together, after a step.
        """
        if not self.alone:
            yield
            return
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def reason(self) -> KeyboardInterrupt:
        """Return what to raise once the state is saved: Terminated for SIGTERM or SIGHUP, else KeyboardInterrupt."""
        return KeyboardInterrupt() if self.signal in (None, signal.SIGINT) else Terminated(self.signal)

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            self.file.unlink()

    def __enter__(self) -> Self:
        # One that an earlier process did not live to see
        self._take()
        # Elsewhere signals are not ours to handle
        if _may_handle_signals():
            numbers = _heard(signal.SIGINT, signal.SIGTERM)
            self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        self._take()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = number
        if self._at_once:
            raise EndNow


def _may_handle_signals() -> bool:
    """Return whether this thread may set handlers: only the main thread may."""
    return threading.current_thread() is threading.main_thread()
