"""State and curves of all runs below a folder, kept for the pages that look: each one gets what it has not seen."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multibox.pages.run_folders import ACTIVE, EVENTS, STATUS, TABLE, RunFolder, find_runs, modified, read_state
from multibox.pages.run_history import History

EVERY = 0.9
"""Seconds between two looks at the folders, however many pages ask."""
SCAN_EVERY, SCAN_SHARE = 3.0, 20.0
"""Seconds between two searches for new runs; at least so many times what one took."""
FORGET = 120.0
"""Seconds after which curves that no page shows are dropped."""
MOST_SHOWN = 8
"""Runs whose curves a page shows at once."""


class Viewer:
    """What one page has got so far, and which curves it shows.

    Args:
        cursors: By run, what the page says it has; "" for nothing.
    """

    def __init__(self, cursors: dict[str, str]) -> None:
        self.cursors = dict(list(cursors.items())[:MOST_SHOWN])
        self.states: dict[str, dict[str, Any]] = {}

    @property
    def position(self) -> str:
        """Return the cursors as one line, from which a page that lost its connection goes on."""
        return "~".join(f"{run}:{cursor}" for run, cursor in self.cursors.items())


def parse_position(line: str) -> dict[str, str]:
    """Return the cursors of a line as `Viewer.position` writes it."""
    pairs = (part.partition(":") for part in line[:4000].split("~"))
    return {run: cursor for run, colon, cursor in pairs if colon}


class Hub:
    """All runs below a folder. Its methods may be called from several threads.

    Args:
        root: A folder of run folders, or one run folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.Lock()
        self.runs: dict[str, RunFolder] = {}
        self.states: dict[str, dict[str, Any]] = {}
        self.marks: dict[str, tuple[float | None, ...]] = {}
        """When the files behind a state changed last."""
        self.histories: dict[str, History] = {}
        self.shown: dict[str, float] = {}
        self.looked = self.scanned = float("-inf")
        self.pause = SCAN_EVERY

    def all_states(self) -> list[dict[str, Any]]:
        """Return the state of every run, by name."""
        with self.lock:
            self._look()
            return list(self.states.values())

    def get(self, run: str) -> RunFolder | None:
        """Return the run of an id; None where there is none."""
        with self.lock:
            self._look()
            return self.runs.get(run)

    def get_all(self, runs: Sequence[str]) -> list[RunFolder]:
        """Return the runs of several ids, without those that do not exist."""
        return [found for run in list(dict.fromkeys(runs))[:MOST_SHOWN] if (found := self.get(run)) is not None]

    def state(self, run: str) -> dict[str, Any]:
        """Return a run's state as it is now."""
        with self.lock:
            return read_state(self.runs[run])

    def news(self, viewer: Viewer) -> tuple[dict[str, Any] | None, bool]:
        """Return what the viewer has not seen, None if nothing, and whether there may be more at once.

        {"now": seconds, "runs": states that changed, "gone": ids, "histories": {id: as `History.news` gives it}}
        """
        with self.lock:
            self._look()
            states = self.states
            changed = [state for run, state in states.items() if viewer.states.get(run) != state]
            gone = [run for run in viewer.states if run not in states]
            viewer.states = dict(states)
            histories, more = self._read_histories(viewer)
        if not (changed or gone or histories):
            return None, more
        return {"now": time.time(), "runs": changed, "gone": gone, "histories": histories}, more

    def _read_histories(self, viewer: Viewer) -> tuple[dict[str, Any], bool]:
        now, more, found = time.monotonic(), False, dict[str, Any]()
        for run, cursor in viewer.cursors.items():
            if run not in self.runs:
                continue
            history = self.histories.setdefault(run, History(self.runs[run].folder))
            more |= history.read()
            self.shown[run] = now
            news, viewer.cursors[run] = history.news(cursor)
            if news is not None:
                found[run] = news
        for run in [run for run, last in self.shown.items() if now - last > FORGET]:
            del self.shown[run], self.histories[run]
        return found, more

    def _look(self) -> None:
        """Find new runs and read what changed, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self.looked < EVERY:
            return
        self.looked = now
        if now - self.scanned >= self.pause:
            self.runs = {run.id: run for run in find_runs(self.root)}
            self.scanned = time.monotonic()
            self.pause = max(SCAN_EVERY, SCAN_SHARE * (self.scanned - now))
        self.states = {run: self._state(found) for run, found in self.runs.items()}
        self.marks = {run: mark for run, mark in self.marks.items() if run in self.runs}

    def _state(self, run: RunFolder) -> dict[str, Any]:
        mark = tuple(modified(run.folder / name) for name in (STATUS, EVENTS, TABLE))
        known = self.states.get(run.id)
        # An active run may end without a word, so it is looked at each time
        if known is not None and self.marks.get(run.id) == mark and known["state"] not in ACTIVE:
            return known
        self.marks[run.id] = mark
        state = read_state(run)
        if mark[0] is None:
            state["updated"] = max((each for each in mark if each is not None), default=None)
            history = History(run.folder)
            history.read()
            state |= {name: value for name, value in history.summary().items() if value is not None}
        return state
