"""Ctrl-C between two steps instead of within one."""

import signal
import threading
from types import FrameType


class Interrupt:
    """While entered, the first SIGINT only sets `asked`; a second one raises KeyboardInterrupt at once.

    A step that is torn in two leaves weights and step count that do not belong together, and a resumed run would
    differ from one that never stopped.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        # Only the main thread may set handlers; elsewhere Ctrl-C is not ours to handle
        self.replaces = threading.current_thread() is threading.main_thread()
        if self.replaces:
            self.previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self.replaces:
            signal.signal(signal.SIGINT, self.previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
